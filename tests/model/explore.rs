//! A breadth-first explorer: it visits every state that a model can reach, and keeps the shortest way to each.

use std::collections::{HashSet, VecDeque};
use std::fmt::{Debug, Display, Formatter};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// Something whose states can be explored.
pub(crate) trait Model {
    /// Everything that the future depends on.
    type State: Copy + Eq + Hash;
    /// What leads from one state to the next.
    type Action: Copy + Debug;
    /// What must hold in every state.
    type Property: Copy + Debug + PartialEq;

    /// Where it begins.
    fn beginnings(&self) -> Vec<Self::State>;
    /// What may happen in `state`; added to `actions`.
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);
    /// What comes of it.
    fn next(&self, state: &Self::State, action: Self::Action) -> Self::State;
    /// The property that does not hold in `state`, if there is one.
    fn violated(&self, state: &Self::State) -> Option<Self::Property>;
    /// A line about `state`, for the steps of a counterexample.
    fn describe(&self, state: &Self::State) -> String;
}

/// The shortest way to a state in which a property does not hold.
#[derive(Debug)]
pub(crate) struct Counterexample<P> {
    /// The property.
    pub(crate) property: P,
    /// One line for each step.
    pub(crate) steps: Vec<String>,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Report<P> {
    /// How many states were visited.
    pub(crate) states: usize,
    /// How many steps lead from one to another.
    pub(crate) transitions: usize,
    /// How many steps the farthest state is away.
    pub(crate) depth: usize,
    /// How long it took.
    pub(crate) took: Duration,
    /// The first state in which a property does not hold; the exploration ends there.
    pub(crate) counterexample: Option<Counterexample<P>>,
}

impl<P: Debug> Display for Report<P> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { states, transitions, depth, took, counterexample } = self;
        write!(f, "{states} states, {transitions} transitions, depth {depth}, {took:.1?}")?;
        let Some(Counterexample { property, steps }) = counterexample else { return Ok(()) };
        write!(f, "\n  {property:?} does not hold after:")?;
        steps.iter().try_for_each(|step| write!(f, "\n    {step}"))
    }
}

/// A quick hash: what is hashed here is nobody's choice, and equality decides.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value.cast_unsigned() as u64);
    }
}

/// Visits every state, nearest first, until one violates a property.
pub(crate) fn explore<M: Model>(model: &M) -> Report<M::Property> {
    let begun = Instant::now();
    let mut seen: HashSet<M::State, BuildHasherDefault<Quick>> = HashSet::default();
    // Where each state came from; its index is its number.
    let mut origins: Vec<(usize, Option<M::Action>)> = Vec::new();
    let mut queue: VecDeque<(M::State, usize, usize)> = VecDeque::new();
    let mut report = Report { states: 0, transitions: 0, depth: 0, took: Duration::ZERO, counterexample: None };
    for state in model.beginnings() {
        if seen.insert(state) {
            queue.push_back((state, origins.len(), 0));
            origins.push((origins.len(), None));
        }
    }
    let mut actions = Vec::new();
    while let Some((state, number, depth)) = queue.pop_front() {
        report.depth = depth;
        if let Some(property) = model.violated(&state) {
            report.counterexample = Some(Counterexample { property, steps: steps(model, &origins, number) });
            break;
        }
        actions.clear();
        model.actions(&state, &mut actions);
        for &action in &actions {
            report.transitions += 1;
            let next = model.next(&state, action);
            if seen.insert(next) {
                queue.push_back((next, origins.len(), depth + 1));
                origins.push((number, Some(action)));
            }
        }
    }
    report.states = origins.len();
    report.took = begun.elapsed();
    report
}

/// The way to a state, taken once more from its beginning.
fn steps<M: Model>(model: &M, origins: &[(usize, Option<M::Action>)], mut number: usize) -> Vec<String> {
    let mut taken = Vec::new();
    while let (origin, Some(action)) = origins[number] {
        taken.push(action);
        number = origin;
    }
    // The beginnings have the first numbers, in their order.
    let Some(mut state) = model.beginnings().into_iter().nth(number) else { return Vec::new() };
    let mut lines = vec![format!("{:<52} {}", "(the beginning)", model.describe(&state))];
    for action in taken.into_iter().rev() {
        state = model.next(&state, action);
        lines.push(format!("{:<52} {}", format!("{action:?}"), model.describe(&state)));
    }
    lines
}
