//! What roles allow, and the types that prove it was asked.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::errors::{Code, Error};
use crate::names::{GroupId, TopicName};

/// An authenticated caller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Principal(Arc<Caller>);

#[derive(Debug)]
struct Caller {
    id: String,
    subject: String,
    grants: Vec<Grant>,
}

impl Principal {
    pub(super) fn new(issuer: &str, kind: &str, name: &str, grants: Vec<Grant>) -> Self {
        // JSON, because no name can be written so that it looks like two parts.
        let id = Value::from([issuer, kind, name].map(Value::from).to_vec()).to_string();
        Self(Arc::new(Caller { id, subject: name.to_owned(), grants }))
    }

    /// The name for logs: the token's `sub`, else its client.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Who it is, beyond doubt: the issuer, and whether the name is a subject's or a client's. For comparison, such as of a
    /// lease's holder.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Whether the caller may do this to any topic at all. `403 forbidden` otherwise.
    pub fn may<A: Action>(self) -> Result<May<A>, Error> {
        if self.0.grants.iter().any(|grant| A::ROLES.contains(&grant.role)) {
            return Ok(May { principal: self, action: PhantomData });
        }
        let roles: Vec<_> = A::ROLES.iter().map(|role| role.name()).collect();
        Err(Error::new(Code::Forbidden, format!("The caller has no role {}", roles.join(" or "))))
    }
}

/// Something that a caller may or may not do. `Scope` is what it is done to.
pub trait Action: sealed::Rule + Send + Sync {}

/// Writing records to a topic.
#[derive(Debug, Clone, Copy)]
pub enum Write {}

/// Reading a topic's records for a consumer group.
#[derive(Debug, Clone, Copy)]
pub enum Read {}

/// Reading a topic's records for no group.
#[derive(Debug, Clone, Copy)]
pub enum Fetch {}

/// Seeing that a topic is there, and how it is set.
#[derive(Debug, Clone, Copy)]
pub enum Describe {}

/// Making and deleting topics, and moving dead letters back to where they came from.
#[derive(Debug, Clone, Copy)]
pub enum Admin {}

impl Action for Write {}
impl Action for Read {}
impl Action for Fetch {}
impl Action for Describe {}
impl Action for Admin {}

impl sealed::Rule for Write {
    const ROLES: &'static [Role] = &[Role::Producer];
    type Scope = TopicName;

    fn topic(scope: &TopicName) -> &TopicName {
        scope
    }

    fn covered(scope: &TopicName, grant: &Grant) -> bool {
        matches(&grant.topics, scope.as_str())
    }
}

impl sealed::Rule for Read {
    const ROLES: &'static [Role] = &[Role::Consumer];
    type Scope = (TopicName, GroupId);

    fn topic((topic, _): &Self::Scope) -> &TopicName {
        topic
    }

    fn covered((topic, group): &Self::Scope, grant: &Grant) -> bool {
        matches(&grant.topics, topic.as_str()) && matches(&grant.groups, group.as_str())
    }
}

impl sealed::Rule for Fetch {
    const ROLES: &'static [Role] = &[Role::Consumer];
    type Scope = TopicName;

    fn topic(scope: &TopicName) -> &TopicName {
        scope
    }

    /// Not for a role that is narrowed to some groups: what those have not got yet, or never will, is not its caller's to
    /// read past them.
    fn covered(scope: &TopicName, grant: &Grant) -> bool {
        matches(&grant.topics, scope.as_str()) && grant.groups == "*"
    }
}

impl sealed::Rule for Describe {
    const ROLES: &'static [Role] = &[Role::Consumer, Role::Producer];
    type Scope = TopicName;

    fn topic(scope: &TopicName) -> &TopicName {
        scope
    }

    fn covered(scope: &TopicName, grant: &Grant) -> bool {
        matches(&grant.topics, scope.as_str())
    }
}

impl sealed::Rule for Admin {
    const ROLES: &'static [Role] = &[Role::Admin];
    type Scope = TopicName;

    fn topic(scope: &TopicName) -> &TopicName {
        scope
    }

    fn covered(scope: &TopicName, grant: &Grant) -> bool {
        matches(&grant.topics, scope.as_str())
    }
}

mod sealed {
    use super::{Debug, Grant, Role, TopicName};

    /// How an action is judged. Out of reach, so that no other module can add an action that judges kindly.
    pub trait Rule {
        /// The roles that allow it, any of them.
        const ROLES: &'static [Role];
        /// What it is done to.
        type Scope: Debug + Clone;

        /// The topic in the scope.
        fn topic(scope: &Self::Scope) -> &TopicName;

        /// Whether a grant of the role reaches this far.
        fn covered(scope: &Self::Scope, grant: &Grant) -> bool;
    }
}

/// Proof that a caller may do this to some topic; which ones is still to be asked.
#[derive(Debug, Clone)]
pub struct May<A: Action> {
    principal: Principal,
    action: PhantomData<A>,
}

impl<A: Action> May<A> {
    /// Who may.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Whether the caller may do it here. `403 topic_forbidden` otherwise, and for Kafka's internal topics always.
    pub fn on(&self, scope: A::Scope) -> Result<Authorized<A>, Error> {
        let topic = A::topic(&scope);
        if topic.is_internal() {
            return Err(Error::new(
                Code::TopicForbidden,
                format!("{topic}: internal topics are closed to every caller"),
            ));
        }
        if !self.reaches(&scope) {
            return Err(Error::new(Code::TopicForbidden, format!("{topic}: no role of the caller allows this")));
        }
        Ok(Authorized { scope, principal: self.principal.clone() })
    }

    /// Whether the caller may do it here, for lists of what the caller may see.
    pub fn reaches(&self, scope: &A::Scope) -> bool {
        let covers = |grant: &Grant| A::ROLES.contains(&grant.role) && A::covered(scope, grant);
        !A::topic(scope).is_internal() && self.principal.0.grants.iter().any(covers)
    }
}

impl May<Admin> {
    /// Whether the caller may move what lies in one topic to another: then `group` may read the one for it, and the other be
    /// written to. `403 topic_forbidden` otherwise.
    pub fn redrive(
        &self,
        from: TopicName,
        to: TopicName,
        group: GroupId,
    ) -> Result<(Authorized<Read>, Authorized<Admin>), Error> {
        self.on(from.clone())?;
        Ok((Authorized { scope: (from, group), principal: self.principal.clone() }, self.on(to)?))
    }
}

impl May<Read> {
    /// Whether there may be a topic that the caller can read for this group. `403 topic_forbidden` otherwise. Which ones,
    /// [`Self::reaches`] says.
    pub fn of_group(&self, group: GroupId) -> Result<GroupReader, Error> {
        let names = |grant: &Grant| grant.role == Role::Consumer && matches(&grant.groups, group.as_str());
        if !self.principal.0.grants.iter().any(names) {
            return Err(Error::new(Code::TopicForbidden, "No role of the caller allows this group"));
        }
        Ok(GroupReader(group))
    }
}

/// Proof that a caller may read some topic for a group. Only [`May::of_group`] makes it.
#[derive(Debug)]
pub struct GroupReader(GroupId);

impl GroupReader {
    /// The group.
    pub fn group(&self) -> &GroupId {
        &self.0
    }
}

/// Proof that a caller may do this, here. Only [`May::on`] makes it, and Kafka is reached with nothing less.
#[derive(Debug, Clone)]
pub struct Authorized<A: Action> {
    scope: A::Scope,
    principal: Principal,
}

impl<A: Action> Authorized<A> {
    /// Who may.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The topic it may be done to.
    pub fn topic(&self) -> &TopicName {
        A::topic(&self.scope)
    }
}

impl Authorized<Read> {
    /// The group it may be done for.
    pub fn group(&self) -> &GroupId {
        &self.scope.1
    }
}

/// The roles that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `kafka_producer:write`
    Producer,
    /// `kafka_consumer:read`
    Consumer,
    /// `kafka_admin:write`
    Admin,
}

impl Role {
    /// As it stands in a token, without anything that narrows it.
    const fn name(self) -> &'static str {
        match self {
            Self::Producer => "kafka_producer:write",
            Self::Consumer => "kafka_consumer:read",
            Self::Admin => "kafka_admin:write",
        }
    }
}

/// One role of a token, with the topics and groups it is narrowed to.
#[derive(Debug)]
pub struct Grant {
    role: Role,
    topics: String,
    groups: String,
}

impl Grant {
    /// Reads a role's name. Anything but a well-formed role of ours is none: what is malformed grants nothing.
    fn parse(name: &str) -> Option<Self> {
        let parts: Vec<_> = name.splitn(4, ':').collect();
        // An empty part is a template that was filled with nothing. To take it for "all" would turn it into everything.
        if parts.iter().any(|part| part.is_empty()) {
            return None;
        }
        let (role, topics, groups) = match parts[..] {
            ["kafka_producer", "write"] => (Role::Producer, "*", "*"),
            ["kafka_producer", "write", topics] => (Role::Producer, topics, "*"),
            ["kafka_consumer", "read"] => (Role::Consumer, "*", "*"),
            ["kafka_consumer", "read", topics] => (Role::Consumer, topics, "*"),
            ["kafka_consumer", "read", topics, groups] => (Role::Consumer, topics, groups),
            ["kafka_admin", "write"] => (Role::Admin, "*", "*"),
            ["kafka_admin", "write", topics] => (Role::Admin, topics, "*"),
            _ => return None,
        };
        Some(Self { role, topics: topics.to_owned(), groups: groups.to_owned() })
    }
}

/// Whether the whole text fits the glob, in which `*` stands for any characters, also none. Taking the leftmost place for
/// each piece is enough, so nothing is ever tried twice.
fn matches(glob: &str, text: &str) -> bool {
    let Some((first, rest)) = glob.split_once('*') else { return glob == text };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut text) = text.strip_prefix(first).and_then(|text| text.strip_suffix(last)) else { return false };
    middle.split('*').all(|piece| match text.find(piece) {
        Some(at) => {
            text = &text[at + piece.len()..];
            true
        }
        None => false,
    })
}

/// Where a token keeps its roles: paths of member names.
pub(super) struct RoleClaims(Vec<Vec<String>>);

impl RoleClaims {
    /// The configured paths, or else the three places that Keycloak uses.
    pub(super) fn new(audience: &str, configured: Option<&[String]>) -> Self {
        let path = |steps: &[&str]| steps.iter().map(|step| (*step).to_owned()).collect();
        Self(match configured {
            Some(paths) => paths.iter().map(|path| steps(path)).collect(),
            None => vec![
                path(&["realm_access", "roles"]),
                path(&["resource_access", audience, "roles"]),
                path(&["authorization", "permissions"]),
            ],
        })
    }

    /// The union of what all of a token's roles grant.
    pub(super) fn grants(&self, claims: &Map<String, Value>) -> Vec<Grant> {
        let mut grants = Vec::new();
        let mut add = |role: &str| grants.extend(Grant::parse(role));
        for path in &self.0 {
            let Some((first, rest)) = path.split_first() else { continue };
            let leaf = rest.iter().try_fold(claims.get(first), |value, step| Some(value?.get(step.as_str())));
            match leaf.flatten() {
                // As `scope` is written (RFC 6749, 3.3).
                Some(Value::String(roles)) => roles.split(' ').for_each(&mut add),
                Some(Value::Array(roles)) => roles.iter().for_each(|role| match role {
                    Value::String(role) => add(role),
                    permission => scopes(permission, &mut add),
                }),
                _ => {}
            }
        }
        grants
    }
}

/// A permission of Keycloak's authorization services, `{"rsname", "scopes": [..]}`, is a role for each of its scopes.
fn scopes(permission: &Value, add: &mut impl FnMut(&str)) {
    let name = permission.get("rsname").and_then(Value::as_str);
    let scopes = permission.get("scopes").and_then(Value::as_array);
    if let (Some(name), Some(scopes)) = (name, scopes) {
        scopes.iter().filter_map(Value::as_str).for_each(|scope| add(&format!("{name}:{scope}")));
    }
}

/// Splits a path at its dots; `\.` is a dot within a name.
fn steps(path: &str) -> Vec<String> {
    let mut steps = Vec::new();
    let mut step = String::new();
    let mut rest = path.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '.' => steps.push(std::mem::take(&mut step)),
            '\\' => step.push(rest.next_if_eq(&'.').unwrap_or('\\')),
            other => step.push(other),
        }
    }
    steps.push(step);
    steps
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn principal(roles: &[&str]) -> Principal {
        Principal::new("https://issuer", "sub", "me", roles.iter().filter_map(|role| Grant::parse(role)).collect())
    }

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).expect("a legal name")
    }

    fn writes(roles: &[&str], name: &str) -> Result<(), Code> {
        let may = principal(roles).may::<Write>().map_err(|error| error.code())?;
        may.on(topic(name)).map(drop).map_err(|error| error.code())
    }

    fn reads(roles: &[&str], name: &str, group: &str) -> Result<(), Code> {
        let may = principal(roles).may::<Read>().map_err(|error| error.code())?;
        may.on((topic(name), GroupId::parse(group).expect("legal"))).map(drop).map_err(|error| error.code())
    }

    const FORBIDDEN: Result<(), Code> = Err(Code::Forbidden);
    const TOPIC_FORBIDDEN: Result<(), Code> = Err(Code::TopicForbidden);

    #[test]
    fn a_role_allows_what_it_names_and_nothing_else() {
        assert_eq!(writes(&["kafka_producer:write"], "orders"), Ok(()));
        assert_eq!(reads(&["kafka_producer:write"], "orders", "g"), FORBIDDEN);
        assert_eq!(reads(&["kafka_consumer:read"], "orders", "g"), Ok(()));
        assert_eq!(writes(&["kafka_consumer:read"], "orders"), FORBIDDEN);

        let narrow = ["kafka_producer:write:orders-*"];
        assert_eq!(writes(&narrow, "orders-eu"), Ok(()));
        assert_eq!(writes(&narrow, "orders"), TOPIC_FORBIDDEN);
        assert_eq!(writes(&narrow, "my-orders-eu"), TOPIC_FORBIDDEN);

        let narrow = ["kafka_consumer:read:orders:team:*"];
        assert_eq!(reads(&narrow, "orders", "team:a"), Ok(()));
        assert_eq!(reads(&narrow, "orders", "other"), TOPIC_FORBIDDEN);
        assert_eq!(reads(&narrow, "payments", "team:a"), TOPIC_FORBIDDEN);
    }

    fn over<A: Action + sealed::Rule<Scope = TopicName>>(roles: &[&str], name: &str) -> Result<(), Code> {
        let may = principal(roles).may::<A>().map_err(|error| error.code())?;
        may.on(topic(name)).map(drop).map_err(|error| error.code())
    }

    #[test]
    fn who_may_write_or_read_may_see_and_only_an_admin_may_change() {
        for role in ["kafka_producer:write:orders", "kafka_consumer:read:orders", "kafka_consumer:read:orders:team-a"] {
            assert_eq!(over::<Describe>(&[role], "orders"), Ok(()), "{role}");
            assert_eq!(over::<Describe>(&[role], "payments"), TOPIC_FORBIDDEN, "{role}");
            assert_eq!(over::<Admin>(&[role], "orders"), FORBIDDEN, "{role}");
        }
        assert_eq!(over::<Describe>(&["kafka_admin:write"], "orders"), FORBIDDEN);
        assert_eq!(over::<Admin>(&["kafka_admin:write"], "orders"), Ok(()));
        assert_eq!(over::<Admin>(&["kafka_admin:write"], "__consumer_offsets"), TOPIC_FORBIDDEN);
        assert_eq!(over::<Admin>(&["kafka_admin:write:*.dlq"], "orders.dlq"), Ok(()));
        assert_eq!(over::<Admin>(&["kafka_admin:write:*.dlq"], "orders"), TOPIC_FORBIDDEN);
    }

    #[test]
    fn letters_move_only_between_topics_that_are_both_the_admin_s() {
        let moves = |roles: &[&str]| {
            let may = principal(roles).may::<Admin>().map_err(|error| error.code())?;
            let group = GroupId::parse("g").expect("legal");
            may.redrive(topic("orders.dlq"), topic("orders"), group).map(drop).map_err(|error| error.code())
        };
        assert_eq!(moves(&["kafka_admin:write"]), Ok(()));
        assert_eq!(moves(&["kafka_admin:write:orders*"]), Ok(()));
        assert_eq!(moves(&["kafka_admin:write:orders", "kafka_admin:write:*.dlq"]), Ok(()));
        for half in ["kafka_admin:write:orders", "kafka_admin:write:orders.dlq"] {
            assert_eq!(moves(&[half, "kafka_consumer:read", "kafka_producer:write"]), TOPIC_FORBIDDEN);
        }
        assert_eq!(moves(&["kafka_consumer:read", "kafka_producer:write"]), FORBIDDEN);
    }

    #[test]
    fn a_role_for_some_groups_does_not_read_past_them() {
        for role in ["kafka_consumer:read", "kafka_consumer:read:orders", "kafka_consumer:read:orders:*"] {
            assert_eq!(over::<Fetch>(&[role], "orders"), Ok(()), "{role}");
        }
        assert_eq!(over::<Fetch>(&["kafka_consumer:read:orders:team-a*"], "orders"), TOPIC_FORBIDDEN);
        assert_eq!(over::<Fetch>(&["kafka_consumer:read:orders"], "payments"), TOPIC_FORBIDDEN);
        assert_eq!(over::<Fetch>(&["kafka_producer:write", "kafka_admin:write"], "orders"), FORBIDDEN);
    }

    #[test]
    fn the_union_decides_but_grants_are_not_mixed() {
        let roles = ["kafka_consumer:read:a:g1", "kafka_consumer:read:b:g2"];
        assert_eq!(reads(&roles, "a", "g1"), Ok(()));
        assert_eq!(reads(&roles, "b", "g2"), Ok(()));
        assert_eq!(reads(&roles, "a", "g2"), TOPIC_FORBIDDEN);
        assert_eq!(writes(&["kafka_producer:write:a", "kafka_producer:write"], "b"), Ok(()));
    }

    #[test]
    fn a_group_is_read_where_a_grant_of_it_names_a_topic() {
        let of = |roles: &[&str], group: &str| {
            let may = principal(roles).may::<Read>().map_err(|error| error.code())?;
            may.of_group(GroupId::parse(group).expect("legal")).map(drop).map_err(|error| error.code())
        };
        let roles = ["kafka_consumer:read:a:g1", "kafka_consumer:read:b:g2*", "kafka_producer:write"];
        assert_eq!(of(&roles, "g1"), Ok(()));
        assert_eq!(of(&roles, "g22"), Ok(()));
        assert_eq!(of(&roles, "g3"), TOPIC_FORBIDDEN);
        assert_eq!(of(&["kafka_producer:write"], "g1"), FORBIDDEN);
        let may = principal(&roles).may::<Read>().expect("a role");
        let reaches = |name: &str| may.reaches(&(topic(name), GroupId::parse("g1").expect("legal")));
        assert_eq!(["a", "b", "c", "__consumer_offsets"].map(reaches), [true, false, false, false]);
    }

    #[test]
    fn internal_topics_are_closed_to_everybody() {
        for role in ["kafka_producer:write", "kafka_producer:write:*", "kafka_producer:write:__*"] {
            assert_eq!(writes(&[role], "__consumer_offsets"), TOPIC_FORBIDDEN, "{role}");
        }
        assert_eq!(reads(&["kafka_consumer:read:__x:*"], "__x", "g"), TOPIC_FORBIDDEN);
    }

    #[test]
    fn what_is_malformed_grants_nothing() {
        for role in [
            "",
            "kafka_producer",
            "kafka_producer:",
            "kafka_producer:write:",
            "kafka_producer::orders",
            "kafka_producer:write:orders:group",
            "kafka_producer:write:orders:",
            "kafka_producer:read",
            "kafka_consumer:write",
            "kafka_consumer:read:",
            "kafka_consumer:read::g",
            "kafka_consumer:read:t:",
            "KAFKA_PRODUCER:WRITE",
            " kafka_producer:write",
            "kafka_producer:write ",
            "kafka_producer:*",
            "*",
            "*:*",
            "kafka_*:write",
            "kafka_admin",
            "kafka_admin:read",
            "kafka_admin:write:",
            "kafka_admin:write:orders:group",
        ] {
            assert!(Grant::parse(role).is_none(), "{role:?}");
        }
    }

    #[test]
    fn only_the_star_is_special_and_the_whole_text_must_match() {
        for (glob, text) in [
            ("*", ""),
            ("*", "a"),
            ("a*", "a"),
            ("a*b", "ab"),
            ("a*b", "a.b.b"),
            ("*a*a*", "aa"),
            ("**", "x"),
            ("a**b", "ab"),
            ("*b", "ab"),
            ("a*b*c", "a-b-b-c"),
            ("ü*", "über"),
        ] {
            assert!(matches(glob, text), "{glob} {text}");
        }
        for (glob, text) in [
            ("a", "ab"),
            ("a", ""),
            ("a*", "ba"),
            ("*a", "ab"),
            ("ab*ba", "aba"),
            ("*a*a*", "a"),
            ("a*b*c", "a-c-b"),
            ("a?", "ab"),
            ("a.c", "abc"),
            ("[ab]", "a"),
            (r"a\*", "a*b"),
            ("A*", "ab"),
        ] {
            assert!(!matches(glob, text), "{glob} {text}");
        }
        // Trying every way to place these stars would take longer than the universe has.
        assert!(!matches(&"a*".repeat(4000), &"a".repeat(249)));
        assert!(!matches(&format!("{}b", "*a".repeat(100)), &"a".repeat(249)));
    }

    fn granted(claims: &Value, configured: Option<&[&str]>) -> Vec<(Role, String)> {
        let configured = configured.map(|paths| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
        RoleClaims::new("my.gateway", configured.as_deref())
            .grants(claims.as_object().expect("an object"))
            .into_iter()
            .map(|grant| (grant.role, grant.topics))
            .collect()
    }

    #[test]
    fn roles_come_from_keycloak_s_three_places() {
        let claims = json!({
            "realm_access": {"roles": ["kafka_producer:write:a", 5, null, "offline_access"]},
            "resource_access": {
                "my.gateway": {"roles": ["kafka_producer:write:b"]},
                "account": {"roles": ["kafka_producer:write:no"]},
            },
            "authorization": {"permissions": [
                {"rsname": "kafka_producer", "scopes": ["write:c", 1]},
                {"rsname": "kafka_consumer:read", "scopes": ["d"]},
                {"rsname": "kafka_producer:write"},
                {"scopes": ["kafka_producer:write"]},
            ]},
            "scope": "openid kafka_producer:write:no",
            "roles": ["kafka_producer:write:no"],
        });
        let of = |role, topic: &str| (role, topic.to_owned());
        assert_eq!(
            granted(&claims, None),
            [of(Role::Producer, "a"), of(Role::Producer, "b"), of(Role::Producer, "c"), of(Role::Consumer, "d")]
        );
        assert_eq!(granted(&json!({"realm_access": ["x"], "resource_access": 1, "authorization": null}), None), []);
    }

    #[test]
    fn configured_paths_stand_instead_of_keycloak_s() {
        let claims = json!({
            "realm_access": {"roles": ["kafka_producer:write:no"]},
            "scope": "openid kafka_producer:write:a",
            "https://my.org/roles": {"kafka": ["kafka_consumer:read:b"]},
        });
        let paths: &[&str] = &["scope", r"https://my\.org/roles.kafka", "missing.path", "scope.below", ""];
        let of = |role, topic: &str| (role, topic.to_owned());
        assert_eq!(granted(&claims, Some(paths)), [of(Role::Producer, "a"), of(Role::Consumer, "b")]);
        assert_eq!(steps(r"a\b.\.c.d\"), ["a\\b", ".c", "d\\"]);
    }

    #[test]
    fn identities_cannot_be_forged_by_a_clever_name() {
        let id = |kind, name| Principal::new("https://issuer", kind, name, Vec::new()).id().to_owned();
        assert_ne!(id("sub", "a"), id("client", "a"));
        assert_ne!(id("sub", "a\",\"b"), id("sub", "a"));
        assert_ne!(id("sub", "a"), Principal::new("https://other", "sub", "a", Vec::new()).id());
    }

    #[test]
    fn the_proof_names_who_and_what() {
        let may = principal(&["kafka_consumer:read"]).may::<Read>().expect("allowed");
        let proof = may.on((topic("orders"), GroupId::parse("g").expect("legal"))).expect("allowed");
        assert_eq!((proof.topic().as_str(), proof.group().as_str()), ("orders", "g"));
        assert_eq!((proof.principal().subject(), proof.principal().id()), ("me", may.principal().id()));
    }
}
