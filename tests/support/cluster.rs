//! Three brokers of one cluster.

use std::path::Path;

use crate::error::Result;
use crate::kafka::Broker;
use crate::run::{RunDir, free_port};
use crate::zookeeper::ZooKeeper;

/// Three brokers; the first is the controller too, where there is no `ZooKeeper`, and is not to be stopped. Every topic has
/// three replicas, and needs two of them in sync, so one broker may be lost. Always from jars: a compose project holds one broker.
#[derive(Debug)]
pub struct Cluster([Broker; 3]);

impl Cluster {
    pub(crate) async fn start(libs: &Path, run: &RunDir) -> Result<Self> {
        let (controller, ports) = (free_port()?, [free_port()?, free_port()?, free_port()?]);
        let voters = format!("1@127.0.0.1:{controller}");
        let name = "cluster-zookeeper";
        let zookeeper = ZooKeeper::if_needed(libs, &run.data(name)?, &run.log(name))?;
        let start = async |id: u16, port: u16| {
            let (name, node, own) = (format!("cluster-{id}"), id.to_string(), format!("PLAINTEXT://127.0.0.1:{port}"));
            let (roles, listeners) = match id {
                1 => ("broker,controller", format!("{own},CONTROLLER://127.0.0.1:{controller}")),
                _ => ("broker", own),
            };
            let in_quorum =
                [("process.roles", roles), ("listeners", &listeners), ("controller.quorum.voters", voters.as_str())];
            let in_zookeeper = [("broker.id", node.as_str())];
            let in_both = [
                ("node.id", node.as_str()),
                ("default.replication.factor", "3"),
                ("min.insync.replicas", "2"),
                ("offsets.topic.replication.factor", "3"),
                ("transaction.state.log.replication.factor", "3"),
                ("transaction.state.log.min.isr", "2"),
            ];
            let own: &[_] = if zookeeper.is_some() { &in_zookeeper } else { &in_quorum };
            let settings = [own, &in_both].concat();
            Broker::with(zookeeper.clone(), libs, &run.data(&name)?, run.log(&name), port, &settings).await
        };
        let (one, two, three) = tokio::try_join!(start(1, ports[0]), start(2, ports[1]), start(3, ports[2]))?;
        Ok(Self([one, two, three]))
    }

    /// All brokers' `host:port`, separated by commas.
    pub fn bootstrap(&self) -> String {
        self.0.each_ref().map(Broker::bootstrap).join(",")
    }

    /// A broker by its id, from 1 on.
    pub fn broker(&self, id: i32) -> &Broker {
        usize::try_from(id - 1).ok().and_then(|index| self.0.get(index)).expect("one of three")
    }
}
