//! All services together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use crate::browser::Browser;
use crate::cluster::Cluster;
use crate::compose::{self, Compose};
use crate::error::{Error, Result};
use crate::install;
use crate::kafka::Broker;
use crate::keycloak::{self, Tokens};
use crate::page::Page;
use crate::process::{Process, output, supervised};
use crate::proxy::Proxy;
use crate::pushgateway;
use crate::registry;
use crate::run::{RunDir, free_port, progress};
use crate::secured::Secured;
use crate::watch::Gateway;

/// A running Kafka, Keycloak and Pushgateway. Ended, with their data, when dropped or when the process is gone.
#[derive(Debug)]
pub struct Stack {
    // Dropped from top to bottom: the services before the folder they write to.
    kafka: Broker,
    services: Services,
    registry: OnceCell<Registry>,
    keycloak_port: u16,
    pushgateway_port: u16,
    tokens: Tokens,
    extra: AtomicU32,
    run: RunDir,
}

/// A schema registry that runs.
#[derive(Debug)]
struct Registry {
    url: String,
    _process: RegistryProcess,
}

#[derive(Debug)]
enum RegistryProcess {
    Local { _process: Process },
    Container { _compose: Compose },
}

#[derive(Debug)]
enum Services {
    Local { kafka_libs: PathBuf, _others: Box<[Process]> },
    Containers { engine: &'static str, _compose: Arc<Compose> },
}

impl Stack {
    /// The one stack of a test process, started by the first test that asks.
    pub async fn shared() -> &'static Stack {
        static SHARED: OnceCell<Stack> = OnceCell::const_new();
        SHARED.get_or_init(async || Stack::start().await.unwrap_or_else(|e| panic!("{e}"))).await
    }

    /// Installs what is missing, starts everything side by side on free ports, and waits until all of it answers.
    pub async fn start() -> Result<Stack> {
        let run = RunDir::new()?;
        let started = match compose::engine().await {
            Some(engine) => containers(engine, &run).await,
            None => local(&run).await,
        };
        let (kafka, services, keycloak_port, pushgateway_port) = started.inspect_err(|_| run.keep_logs())?;
        let (tokens, extra) = (Tokens::default(), AtomicU32::new(2));
        Ok(Stack { kafka, services, registry: OnceCell::new(), keycloak_port, pushgateway_port, tokens, extra, run })
    }

    /// The broker.
    pub fn kafka(&self) -> &Broker {
        &self.kafka
    }

    /// Kafka's `host:port`.
    pub fn bootstrap(&self) -> String {
        self.kafka.bootstrap()
    }

    /// The realm's issuer, as tokens name it.
    pub fn issuer(&self) -> String {
        keycloak::issuer(self.keycloak_port)
    }

    /// The schema registry's base URL. It is installed and started by the first who asks: most tests need none.
    pub async fn registry(&self) -> &str {
        self.try_registry().await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// [`Stack::registry`] without the panic.
    pub async fn try_registry(&self) -> Result<&str> {
        let registry = self.registry.get_or_try_init(async || {
            let (name, port) = ("schema-registry", free_port()?);
            let process = match &self.services {
                Services::Local { .. } => {
                    let process = registry::start(&install::registry().await?, &self.run.log(name), port)?;
                    told(name, registry::ready(Some(&process), port)).await?;
                    RegistryProcess::Local { _process: process }
                }
                Services::Containers { engine, .. } => {
                    let ports = [("SCHEMA_REGISTRY_PORT", port)];
                    let compose = Compose::up(engine, &self.run, name, &ports, &[name], &[])?;
                    told(name, registry::ready(compose.process(), port)).await?;
                    RegistryProcess::Container { _compose: compose }
                }
            };
            Ok(Registry { url: registry::url(port), _process: process })
        });
        registry.await.map(|registry| registry.url.as_str())
    }

    /// The Pushgateway's base URL.
    pub fn pushgateway(&self) -> String {
        format!("http://127.0.0.1:{}", self.pushgateway_port)
    }

    /// Where the services' logs are.
    pub fn logs(&self) -> &Path {
        self.run.path()
    }

    /// An access token for one of the realm's clients (`gateway-full`, `gateway-reader`, `gateway-none`,
    /// `gateway-narrow`, `gateway-no-audience`), kept until it nears its end.
    pub async fn token(&self, client_id: &str) -> String {
        self.try_token(client_id).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// [`Stack::token`] without the panic.
    pub async fn try_token(&self, client_id: &str) -> Result<String> {
        self.tokens.get(&self.issuer(), client_id).await
    }

    /// The environment of a function that works with this stack.
    pub fn kafka_env(&self) -> BTreeMap<String, String> {
        let env = [
            ("KAFKA_BOOTSTRAP_SERVERS", self.bootstrap()),
            ("OIDC_ISSUER", self.issuer()),
            ("OIDC_AUDIENCE", "kafka-gateway".to_owned()),
            ("PUSHGATEWAY_URL", self.pushgateway()),
        ];
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Another broker, alone, with settings of its own (`("offsets.retention.minutes", "1")`).
    pub async fn extra_broker(&self, settings: &[(&str, &str)]) -> Broker {
        self.try_extra_broker(settings).await.unwrap_or_else(|e| panic!("{e}"))
    }

    async fn try_extra_broker(&self, settings: &[(&str, &str)]) -> Result<Broker> {
        self.broker_on(free_port()?, settings).await
    }

    /// Another broker, alone, that clients reach through a [`Proxy`] only.
    pub async fn proxied_broker(&self) -> (Broker, Proxy) {
        let started = async {
            let port = free_port()?;
            let proxy = Proxy::start(port).await?;
            let advertised = format!("PLAINTEXT://{}", proxy.bootstrap());
            // Looks every second for transactions that nobody ends, not every ten.
            let cleanup = ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000");
            Ok::<_, Error>((self.broker_on(port, &[("advertised.listeners", &advertised), cleanup]).await?, proxy))
        };
        started.await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Three more brokers, of one cluster.
    pub async fn cluster(&self) -> Cluster {
        let started = async { Cluster::start(&self.kafka_libs().await?, &self.run).await };
        started.await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// One more broker, with TLS, logins and ACLs.
    pub async fn secured(&self) -> Secured {
        let started = async { Secured::start(&self.kafka_libs().await?, &self.run).await };
        started.await.unwrap_or_else(|e| panic!("{e}"))
    }

    async fn kafka_libs(&self) -> Result<PathBuf> {
        match &self.services {
            Services::Local { kafka_libs, .. } => Ok(kafka_libs.clone()),
            Services::Containers { .. } => install::kafka_libs().await,
        }
    }

    async fn broker_on(&self, port: u16, settings: &[(&str, &str)]) -> Result<Broker> {
        let name = format!("kafka-{}", self.extra.fetch_add(1, Ordering::Relaxed));
        match &self.services {
            Services::Local { kafka_libs, .. } => {
                let data = self.run.data(&name)?;
                Broker::local(kafka_libs, &data, self.run.log(&name), port, settings).await
            }
            Services::Containers { engine, .. } => {
                let compose = Compose::up(engine, &self.run, &name, &[("KAFKA_PORT", port)], &["kafka"], settings)?;
                Broker::container(Arc::new(compose), port).await
            }
        }
    }

    /// The functions at their routes, served by `cargo lambda watch`, with `more` variables.
    pub async fn gateway(&self, more: &[(&str, &str)]) -> Gateway {
        let log = self.run.log(&format!("watch-{}", self.extra.fetch_add(1, Ordering::Relaxed)));
        Gateway::start(self, more, Some(&log)).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// The API as a page, before such a gateway.
    pub async fn page(&self, gateway: &Gateway) -> Page {
        Page::start(self, gateway).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// A browser that nobody sees.
    pub async fn browser(&self) -> Browser {
        let started = async {
            let (data, log) = (self.run.data("browser")?, self.run.log("browser"));
            Browser::start(&data, &log).await
        };
        started.await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Runs one of Kafka's own tools against this stack: `--bootstrap-server` is added.
    pub async fn kafka_tool(&self, main_class: &str, args: &[&str]) -> String {
        let bootstrap = self.bootstrap();
        self.kafka.tool(main_class, &[&["--bootstrap-server", &bootstrap], args].concat()).await
    }

    /// Runs a Python script (it may import aiokafka) and returns what it wrote to standard output.
    pub async fn python(&self, script: impl AsRef<Path>, args: &[&str]) -> String {
        let result = async {
            let mut python = supervised(install::venv().await?.join("bin/python"));
            python.arg(script.as_ref()).args(args);
            output(&script.as_ref().display().to_string(), python).await
        };
        result.await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts a Python script and leaves it running: a consumer that stays a member, for one.
    pub async fn python_spawn(&self, script: impl AsRef<Path>, args: &[&str]) -> Process {
        let result = async { self.python_in(&install::venv().await?, script.as_ref(), args) };
        result.await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// [`Stack::python`] in an environment of its own, below `.local/<name>`, with these packages.
    pub async fn python_with(
        &self,
        (name, packages): (&str, &[&str]),
        script: impl AsRef<Path>,
        args: &[&str],
    ) -> String {
        let result = async {
            let mut python = supervised(install::venv_with(name, packages).await?.join("bin/python"));
            python.arg(script.as_ref()).args(args);
            output(&script.as_ref().display().to_string(), python).await
        };
        result.await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// [`Stack::python_spawn`] in an environment of its own, below `.local/<name>`, with these packages.
    pub async fn python_spawn_with(
        &self,
        (name, packages): (&str, &[&str]),
        script: impl AsRef<Path>,
        args: &[&str],
    ) -> Process {
        let result = async { self.python_in(&install::venv_with(name, packages).await?, script.as_ref(), args) };
        result.await.unwrap_or_else(|e| panic!("{e}"))
    }

    fn python_in(&self, venv: &Path, script: &Path, args: &[&str]) -> Result<Process> {
        let mut python = supervised(venv.join("bin/python"));
        python.env("PYTHONUNBUFFERED", "1").arg(script).args(args);
        let log = self.run.log(&format!("python-{}", self.extra.fetch_add(1, Ordering::Relaxed)));
        Process::start("python", python, &log)
    }
}

type Started = (Broker, Services, u16, u16);

async fn local(run: &RunDir) -> Result<Started> {
    let installed = install::all().await?;
    let (kafka_port, keycloak_port, pushgateway_port) = (free_port()?, free_port()?, free_port()?);
    progress("starting kafka, keycloak and pushgateway");
    let keycloak = keycloak::start(&installed, &run.data("keycloak")?, &run.log("keycloak"), keycloak_port)?;
    let pushgateway = pushgateway::start(&installed.pushgateway, &run.log("pushgateway"), pushgateway_port)?;
    let data = run.data("kafka")?;
    let kafka = Broker::local(&installed.kafka_libs, &data, run.log("kafka"), kafka_port, &[]);
    let (kafka, (), ()) = tokio::try_join!(
        told("kafka", kafka),
        told("keycloak", keycloak::ready(Some(&keycloak), keycloak_port)),
        told("pushgateway", pushgateway::ready(Some(&pushgateway), pushgateway_port)),
    )?;
    let others = Box::new([keycloak, pushgateway]);
    let services = Services::Local { kafka_libs: installed.kafka_libs, _others: others };
    Ok((kafka, services, keycloak_port, pushgateway_port))
}

/// What every stack has, by its name in compose.yaml.
const SERVICES: &[&str] = &["kafka", "keycloak", "pushgateway"];

async fn containers(engine: &'static str, run: &RunDir) -> Result<Started> {
    let (kafka_port, keycloak_port, pushgateway_port) = (free_port()?, free_port()?, free_port()?);
    let ports = [("KAFKA_PORT", kafka_port), ("KEYCLOAK_PORT", keycloak_port), ("PUSHGATEWAY_PORT", pushgateway_port)];
    progress(format_args!("starting kafka, keycloak and pushgateway with {engine} compose"));
    let compose = Arc::new(Compose::up(engine, run, "stack", &ports, SERVICES, &[])?);
    let (kafka, (), ()) = tokio::try_join!(
        told("kafka", Broker::container(Arc::clone(&compose), kafka_port)),
        told("keycloak", keycloak::ready(compose.process(), keycloak_port)),
        told("pushgateway", pushgateway::ready(compose.process(), pushgateway_port)),
    )?;
    Ok((kafka, Services::Containers { engine, _compose: compose }, keycloak_port, pushgateway_port))
}

async fn told<T>(name: &str, ready: impl Future<Output = Result<T>>) -> Result<T> {
    let ready = ready.await?;
    progress(format_args!("{name} answers"));
    Ok(ready)
}
