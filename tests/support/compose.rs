//! The stack in containers, where an engine answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::error::{Context as _, Error, Result};
use crate::install::{kafka_since, kafka_version, keycloak_version, registry_version, settings};
use crate::kafka::version_settings;
use crate::process::{Process, ended_by, output};
use crate::run::RunDir;

/// Which projects a run started, one a line as `<engine> <project>`, for whoever sweeps it up when it died.
const PROJECTS: &str = "compose-projects";

/// The engine whose daemon answers and that knows `compose`, if any. `KAFKA_GATEWAY_STACK=local` says not to look.
pub(crate) async fn engine() -> Option<&'static str> {
    static ENGINE: OnceCell<Option<&'static str>> = OnceCell::const_new();
    let look = async || {
        if std::env::var("KAFKA_GATEWAY_STACK").is_ok_and(|way| way == "local") {
            return None;
        }
        for engine in ["docker", "podman"] {
            let answers = async |args: &[&str]| {
                let mut command = Command::new(engine);
                command.args(args);
                output(engine, command).await.is_ok()
            };
            if answers(&["info"]).await && answers(&["compose", "version"]).await {
                return Some(engine);
            }
        }
        None
    };
    *ENGINE.get_or_init(look).await
}

/// One compose project. Taken down, with its volumes, when dropped.
#[derive(Debug)]
pub(crate) struct Compose {
    engine: &'static str,
    project: String,
    file: PathBuf,
    overrides: Option<PathBuf>,
    env: Vec<(&'static str, String)>,
    up: Option<Process>,
}

impl Compose {
    /// Brings `services` up; `broker` holds further settings of Kafka.
    pub(crate) fn up(
        engine: &'static str,
        run: &RunDir,
        name: &str,
        ports: &[(&'static str, u16)],
        services: &[&str],
        broker: &[(&str, &str)],
    ) -> Result<Self> {
        let version = kafka_version()?;
        if !kafka_since(3, 7) {
            let way = "KAFKA_GATEWAY_STACK=local starts it from its jars";
            return Err(Error::new(format!(
                "there is no image of Kafka {version}, apache/kafka begins with 3.7; {way}"
            )));
        }
        let broker = [version_settings(), broker].concat();
        let project = format!("kafka-gateway-{}-{name}", run.id());
        let mut env: Vec<_> = ports.iter().map(|(name, port)| (*name, port.to_string())).collect();
        env.push(("KAFKA_VERSION", version));
        env.push(("KEYCLOAK_VERSION", keycloak_version()));
        env.push(("REGISTRY_VERSION", registry_version()));
        let file = settings().join("compose.yaml");
        let overrides = if broker.is_empty() { None } else { Some(write_overrides(run, name, &broker)?) };
        let projects = run.path().join(PROJECTS);
        let known = fs::read_to_string(&projects).unwrap_or_default();
        fs::write(&projects, format!("{known}{engine} {project}\n")).context(projects.display())?;

        let mut this = Self { engine, project, file, overrides, env, up: None };
        // Attached, and told to end when we do: compose stops the containers then.
        let inner = this.command(&["up", "--no-color"]);
        let mut command = ended_by("TERM", inner.get_program());
        command.args(inner.get_args()).args(services);
        command.envs(this.env.iter().map(|(name, value)| (*name, value)));
        this.up = Some(Process::start("compose", command, &run.log(&format!("compose-{name}")))?);
        Ok(this)
    }

    /// Runs a compose subcommand to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Result<String> {
        output(&format!("{} compose {}", self.engine, args.join(" ")), self.command(args)).await
    }

    pub(crate) fn process(&self) -> Option<&Process> {
        self.up.as_ref()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.engine);
        command.args(["compose", "--project-name", &self.project, "--file"]).arg(&self.file);
        if let Some(overrides) = &self.overrides {
            command.arg("--file").arg(overrides);
        }
        command.args(args).envs(self.env.iter().map(|(name, value)| (*name, value)));
        command
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        down(self.engine, &self.project);
    }
}

/// Takes down what a dead run left; false if that must be tried again.
pub(crate) fn sweep(run: &Path) -> bool {
    let projects = fs::read_to_string(run.join(PROJECTS)).unwrap_or_default();
    let projects = projects.lines().filter_map(|line| line.split_once(' '));
    projects.fold(true, |gone, (engine, project)| down(engine, project) && gone)
}

fn down(engine: &str, project: &str) -> bool {
    let mut command = Command::new(engine);
    command.args(["compose", "--project-name", project, "down", "--volumes", "--timeout", "2"]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Kafka's settings as the image takes them, in a second compose file (JSON is YAML).
fn write_overrides(run: &RunDir, name: &str, broker: &[(&str, &str)]) -> Result<PathBuf> {
    let variable = |name: &str| format!("KAFKA_{}", name.replace('.', "_").to_uppercase());
    let environment: serde_json::Map<_, _> =
        broker.iter().map(|(name, value)| (variable(name), (*value).into())).collect();
    let path = run.path().join(format!("compose-{name}.json"));
    let text = serde_json::json!({ "services": { "kafka": { "environment": environment } } }).to_string();
    fs::write(&path, text).context(path.display())?;
    Ok(path)
}

/// How long a service may take: pulling its image is part of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) fn silent(name: &str) -> Error {
    Error::new(format!("{name} does not answer"))
}
