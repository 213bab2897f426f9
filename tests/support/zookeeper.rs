//! The `ZooKeeper` that a Kafka before 3.3 keeps its state in: one node, from Kafka's own jars.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Context as _, Result};
use crate::install::kafka_since;
use crate::kafka::java;
use crate::process::Process;
use crate::run::free_port;

/// For how long a broker that was killed counts as alive; until then its successor is not let in.
pub(crate) const SESSION: Duration = Duration::from_secs(3);

/// How often `ZooKeeper` looks for sessions that have ended.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// A running `ZooKeeper`. Ended when dropped.
#[derive(Debug)]
pub(crate) struct ZooKeeper {
    port: u16,
    _process: Process,
}

impl ZooKeeper {
    /// One, if the stack's Kafka needs one.
    pub(crate) fn if_needed(libs: &Path, data: &Path, log: &Path) -> Result<Option<Arc<Self>>> {
        if kafka_since(3, 3) { Ok(None) } else { Self::start(libs, data, log).map(|started| Some(Arc::new(started))) }
    }

    /// Starts it, and does not wait: Kafka does.
    fn start(libs: &Path, data: &Path, log: &Path) -> Result<Self> {
        let port = free_port()?;
        let properties = data.join("zookeeper.properties");
        let text = format!(
            "clientPort={port}\nclientPortAddress=127.0.0.1\ndataDir={}\ntickTime={}\nadmin.enableServer=false\n",
            data.join("zookeeper").display(),
            TICK.as_millis()
        );
        fs::write(&properties, text).context(properties.display())?;
        let mut command = java(libs);
        command
            .args(["-Xmx128m", "-Dlog4j2.level=INFO", "org.apache.zookeeper.server.ZooKeeperServerMain"])
            .arg(&properties);
        Ok(Self { port, _process: Process::start("zookeeper", command, log)? })
    }

    /// What a broker must be told to use it, instead of being its own controller.
    pub(crate) fn settings(&self) -> [(&'static str, String); 6] {
        [
            ("process.roles", String::new()),
            ("controller.listener.names", String::new()),
            ("broker.id", "1".to_owned()),
            ("zookeeper.connect", format!("127.0.0.1:{}", self.port)),
            ("zookeeper.connection.timeout.ms", "30000".to_owned()),
            ("zookeeper.session.timeout.ms", SESSION.as_millis().to_string()),
        ]
    }
}
