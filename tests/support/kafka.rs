//! A Kafka broker, on this machine or in a container.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::Metadata;

use crate::compose::{Compose, PATIENCE, silent};
use crate::error::{Context as _, Error, Result};
use crate::install::{kafka_since, settings};
use crate::process::{Process, lock, output, supervised};
use crate::run::free_port;
use crate::zookeeper::{SESSION, TICK, ZooKeeper};

/// A single-node Kafka. Ended, and its data forgotten, when dropped.
#[derive(Debug)]
pub struct Broker {
    port: u16,
    host: Host,
}

#[derive(Debug)]
enum Host {
    Local {
        libs: PathBuf,
        properties: PathBuf,
        log: PathBuf,
        // Dropped from top to bottom: the broker before what it lives on.
        process: Mutex<Option<Process>>,
        zookeeper: Option<Arc<ZooKeeper>>,
    },
    Container(Arc<Compose>),
}

impl Broker {
    /// Formats a data folder and starts a broker on it; `overrides` are Kafka's own property names.
    pub(crate) async fn local(
        libs: &Path,
        data: &Path,
        log: PathBuf,
        port: u16,
        overrides: &[(&str, &str)],
    ) -> Result<Self> {
        Self::with(ZooKeeper::if_needed(libs, data, &log)?, libs, data, log, port, overrides).await
    }

    /// The same, with a `ZooKeeper` that others may have as well, or without.
    pub(crate) async fn with(
        zookeeper: Option<Arc<ZooKeeper>>,
        libs: &Path,
        data: &Path,
        log: PathBuf,
        port: u16,
        overrides: &[(&str, &str)],
    ) -> Result<Self> {
        let base = settings().join("kafka/server.properties");
        let mut text = fs::read_to_string(&base).context(base.display())?;
        let plaintext = format!("PLAINTEXT://127.0.0.1:{port}");
        let mut own =
            vec![("advertised.listeners", plaintext.clone()), ("log.dirs", data.join("log").display().to_string())];
        if let Some(zookeeper) = &zookeeper {
            own.push(("listeners", plaintext));
            own.extend(zookeeper.settings());
        } else {
            let controller = free_port()?;
            own.push(("listeners", format!("{plaintext},CONTROLLER://127.0.0.1:{controller}")));
            own.push(("controller.quorum.voters", format!("1@127.0.0.1:{controller}")));
        }
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in own.chain(version_settings().iter().copied()).chain(overrides.iter().copied()) {
            let _ = writeln!(text, "{name}={value}");
        }
        let properties = data.join("server.properties");
        fs::write(&properties, text).context(properties.display())?;

        if zookeeper.is_none() {
            let mut format = java(libs);
            format.args(["kafka.tools.StorageTool", "format", "--cluster-id", "5L6g3nShT-eMCtK--X86sw", "--config"]);
            format.arg(&properties);
            output("kafka's storage format", format).await?;
        }
        let host = Host::Local { libs: libs.to_owned(), properties, log, process: Mutex::new(None), zookeeper };
        let broker = Self { port, host };
        broker.start().await?;
        Ok(broker)
    }

    /// The broker of a compose project.
    pub(crate) async fn container(compose: Arc<Compose>, port: u16) -> Result<Self> {
        let broker = Self { port, host: Host::Container(compose) };
        broker.ready().await?;
        Ok(broker)
    }

    /// `host:port`, the same after every restart.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process, while it runs on this machine.
    pub fn pid(&self) -> Option<i32> {
        match &self.host {
            Host::Local { process, .. } => lock(process).as_ref().map(Process::pid),
            Host::Container(_) => None,
        }
    }

    /// Ends it in order (SIGTERM), and waits.
    pub async fn stop(&self) {
        match &self.host {
            Host::Local { process, .. } => {
                let process = lock(process).take();
                if let Some(process) = process {
                    process.stop(Duration::from_secs(30)).await;
                }
            }
            Host::Container(compose) => expect(compose.run(&["stop", "kafka"]).await),
        }
    }

    /// Ends it at once (SIGKILL).
    pub async fn kill(&self) {
        match &self.host {
            Host::Local { process, zookeeper, .. } => {
                drop(lock(process).take());
                if zookeeper.is_some() {
                    tokio::time::sleep(SESSION + 2 * TICK).await;
                }
            }
            Host::Container(compose) => expect(compose.run(&["kill", "kafka"]).await),
        }
    }

    /// Starts it again after [`Broker::stop`] or [`Broker::kill`], on the same port and data; waits until it answers.
    pub async fn start(&self) -> Result<()> {
        match &self.host {
            Host::Local { libs, properties, log, process, .. } => {
                // With what a test had compiled for it.
                let mut command = jvm(&[&libs.join("*"), &properties.with_file_name("classes")]);
                command.args(["-Xms128m", "-Xmx512m", "-Dlog4j2.level=INFO", "kafka.Kafka"]).arg(properties);
                *lock(process) = Some(Process::start("kafka", command, log)?);
            }
            Host::Container(compose) => drop(compose.run(&["start", "kafka"]).await?),
        }
        self.ready().await
    }

    /// Stop, start, answering again.
    pub async fn restart(&self) {
        self.stop().await;
        expect(self.start().await.map(|()| String::new()));
    }

    /// Freezes it: connections stay open and nothing is answered.
    pub async fn pause(&self) {
        match &self.host {
            Host::Local { process, .. } => lock(process).iter().for_each(Process::freeze),
            Host::Container(compose) => expect(compose.run(&["pause", "kafka"]).await),
        }
    }

    /// Lets it go on after [`Broker::pause`].
    pub async fn resume(&self) {
        match &self.host {
            Host::Local { process, .. } => lock(process).iter().for_each(Process::thaw),
            Host::Container(compose) => expect(compose.run(&["unpause", "kafka"]).await),
        }
    }

    /// Runs one of Kafka's own tools by its main class, as the newest Kafka names it, and returns what it wrote to standard
    /// output. The caller passes `--bootstrap-server`.
    pub async fn tool(&self, main_class: &str, args: &[&str]) -> String {
        let main_class = match main_class {
            "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand" if !kafka_since(3, 9) => {
                "kafka.admin.ConsumerGroupCommand"
            }
            "org.apache.kafka.tools.LeaderElectionCommand" if !kafka_since(3, 9) => "kafka.admin.LeaderElectionCommand",
            "org.apache.kafka.tools.consumer.ConsoleConsumer" if !kafka_since(3, 9) => "kafka.tools.ConsoleConsumer",
            same => same,
        };
        let result = match &self.host {
            Host::Local { libs, .. } => {
                let mut command = java(libs);
                command.arg(main_class).args(args);
                output(main_class, command).await
            }
            Host::Container(compose) => {
                let run = ["exec", "-T", "kafka", "/opt/kafka/bin/kafka-run-class.sh", main_class];
                compose.run(&[&run, args].concat()).await
            }
        };
        result.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits until a metadata request is answered, with every partition that its folder holds: with a `ZooKeeper`, a broker
    /// answers before it has heard of them.
    async fn ready(&self) -> Result<()> {
        let bootstrap = self.bootstrap();
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .set("reconnect.backoff.max.ms", "200")
            .set("log_level", "0")
            .create()
            .context("kafka client")?;
        let (client, started) = (Arc::new(client), Instant::now());
        loop {
            let asked = Arc::clone(&client);
            let asked = move || asked.fetch_metadata(None, Duration::from_millis(500));
            let answer = tokio::task::spawn_blocking(asked).await.context("metadata request")?;
            if answer.is_ok_and(|metadata| !metadata.brokers().is_empty() && names(&metadata, &self.partitions())) {
                return Ok(());
            }
            if let Some(error) = self.given_up(started.elapsed()) {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The topics and partitions in its folder.
    fn partitions(&self) -> Vec<(String, i32)> {
        let Host::Local { properties, .. } = &self.host else { return Vec::new() };
        let folders = fs::read_dir(properties.with_file_name("log")).into_iter().flatten().flatten();
        let names = folders.filter_map(|folder| {
            let (topic, partition) =
                folder.file_name().to_str()?.rsplit_once('-').map(|it| (it.0.to_owned(), it.1.parse()))?;
            Some((topic, partition.ok()?))
        });
        names.filter(|(topic, _)| topic != "__cluster_metadata").collect()
    }

    fn given_up(&self, waited: Duration) -> Option<Error> {
        match &self.host {
            Host::Local { process, .. } => {
                let process = lock(process);
                let Some(process) = &*process else { return Some(silent("kafka")) };
                if process.exited().is_some() {
                    return Some(process.failure("ended while it was starting"));
                }
                (waited > Duration::from_secs(60)).then(|| process.failure("does not answer"))
            }
            Host::Container(compose) => {
                let up = compose.process()?;
                let over = waited > PATIENCE || up.exited().is_some();
                over.then(|| up.failure("did not bring kafka up"))
            }
        }
    }
}

/// What differs from version to version. Properties that a version does not know it ignores.
pub(crate) fn version_settings() -> &'static [(&'static str, &'static str)] {
    if kafka_since(4, 0) {
        return &[];
    }
    // To name the new group protocol, a preview in 3.7 to 3.9, would change the coordinator for classic groups as well. And
    // up to 3.5 each request for a producer id keeps a thread until the broker has the next thousand of them, for which it asks
    // the controller: where that is itself, and all its threads (8) wait, nobody gets an id for half a minute (KAFKA-14694).
    &[("group.coordinator.rebalance.protocols", "classic"), ("num.io.threads", "64")]
}

/// A JVM with Kafka's own classes.
pub(crate) fn java(libs: &Path) -> Command {
    jvm(&[&libs.join("*")])
}

/// A JVM for short lives: no second compiler, no parallel collector.
fn jvm(class_path: &[&Path]) -> Command {
    let mut command = supervised("java");
    command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]);
    command.arg(std::env::join_paths(class_path).expect("no colon in a path"));
    command
}

fn names(metadata: &Metadata, partitions: &[(String, i32)]) -> bool {
    partitions.iter().all(|(topic, partition)| {
        let topic = metadata.topics().iter().find(|found| found.name() == topic);
        topic.is_some_and(|topic| topic.partitions().iter().any(|it| it.id() == *partition))
    })
}

fn expect(result: Result<String>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}
