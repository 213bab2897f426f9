//! Child processes that never outlive this one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Context as _, Error, Result};

type Job = (Command, mpsc::SyncSender<io::Result<Child>>);

/// A command whose process the kernel kills when this process is gone, even by SIGKILL.
pub(crate) fn supervised(program: impl AsRef<OsStr>) -> Command {
    ended_by("KILL", program)
}

/// A command whose process the kernel sends `signal` when this process is gone. Elsewhere than on Linux there is no
/// such thing: there only an orderly end takes the children along.
pub(crate) fn ended_by(signal: &str, program: impl AsRef<OsStr>) -> Command {
    if !cfg!(target_os = "linux") {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    command
}

/// Spawns from a thread that lives as long as the process: the kernel's parent-death signal follows the *thread* that
/// forked, and a test's thread ends with its test.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    // Of its own group: Ctrl-C in a terminal goes to the starter alone, which then ends things in order.
    command.stdin(Stdio::null()).process_group(0);
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let gone = |_| io::Error::other("the spawning thread is gone");
    lock(spawner).send((command, reply)).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    answer.recv().map_err(gone)?
}

/// Runs a command to its end; its standard output if it succeeded, an error that shows the output if not.
pub(crate) async fn output(what: &str, mut command: Command) -> Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output =
        tokio::task::spawn_blocking(move || spawn(command)?.wait_with_output()).await.context(what)?.context(what)?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(out.into_owned());
    }
    let text = format!("{out}{err}");
    Err(Error::new(format!("{what} ended with {}:\n{}", output.status, tail(&text))))
}

/// A running program whose output goes to a file. Killed and waited for when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    log: Option<PathBuf>,
}

impl Process {
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).context(log.display())?;
        let err = out.try_clone().context(log.display())?;
        command.stdout(out).stderr(err);
        Self::spawn(name, command, Some(log.to_owned()))
    }

    /// Like [`Process::start`], for a program whose output goes where this one's goes.
    pub(crate) fn attached(name: &str, command: Command) -> Result<Self> {
        Self::spawn(name, command, None)
    }

    fn spawn(name: &str, command: Command, log: Option<PathBuf>) -> Result<Self> {
        let child = spawn(command).context(format_args!("starting {name}"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::new(format!("{name} has no usable pid")))?;
        Ok(Self { name: name.to_owned(), pid, child: Mutex::new(child), log })
    }

    /// The program's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// Everything it has written so far, standard output and standard error together.
    pub fn output(&self) -> String {
        let log = self.log.as_ref().and_then(|log| fs::read(log).ok()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Stops it in its tracks (SIGSTOP), as Lambda freezes a sandbox.
    ///
    /// A signal is only the beginning: on a busy machine the threads go on for some time, each until it is stopped.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        while self.exited().is_none() && self.threads().any(|state| !matches!(state, 'T' | 'Z' | 'X')) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The states of its threads, as the kernel names them. Elsewhere than on Linux there are none to be seen.
    fn threads(&self) -> impl Iterator<Item = char> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        // The name before it may hold anything.
        stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next())
    }

    /// Lets it go on after [`Process::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until it has ended by itself; `None` if it still runs after `limit`.
    pub async fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            let exited = self.exited();
            if exited.is_some() || started.elapsed() > limit {
                return exited;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGTERM, and SIGKILL if it is still there after `grace`.
    pub(crate) async fn stop(&self, grace: Duration) {
        self.terminate();
        if self.wait(grace).await.is_none() {
            self.kill();
        }
    }

    pub(crate) fn failure(&self, what: &str) -> Error {
        let log = self.log.as_deref().unwrap_or(Path::new("its output")).display();
        Error::new(format!("{} {what}; the end of {log}:\n{}", self.name, tail(&self.output())))
    }

    /// Under the lock, and only while the child is unreaped: its pid cannot have become another process's.
    fn signal(&self, signal: Signal) {
        let mut child = lock(&self.child);
        if matches!(child.try_wait(), Ok(None)) {
            let _ = kill_process(self.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// A panic elsewhere must not keep the clean-up from running.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process's resident memory, in MiB.
pub fn resident(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") / 1024.0
}
