//! A broker that is secured in every way the gateway knows.

use std::fs;
use std::path::Path;

use crate::certificates::Certificates;
use crate::error::{Context as _, Result};
use crate::install;
use crate::kafka::Broker;
use crate::lambda_api::REGION;
use crate::run::{RunDir, free_port};

/// Its listeners, and how each is secured. The plain one is for the tests themselves.
const LISTENERS: [(&str, &str); 5] =
    [("PLAINTEXT", "PLAINTEXT"), ("TLS", "SSL"), ("MTLS", "SSL"), ("SCRAM", "SASL_SSL"), ("IAM", "SASL_SSL")];

/// The secret key of everybody who logs in at the listener `IAM`, as `java/MskTokens.java` has it.
pub const SECRET_KEY: &str = "an/example+secret/key";

/// How often whoever logged in there, or by SCRAM-SHA-512, must log in again.
const AGAIN_MS: &str = "10000";

/// A broker with a listener for each kind of security, and Kafka's own authorizer on. Whoever comes without a name may
/// do everything, which is the tests themselves and `tls`, and so may `gateway`, by a certificate or a password, and who
/// logs in as on MSK; others may do what they are granted. Always from jars.
#[derive(Debug)]
pub struct Secured {
    broker: Broker,
    ports: [u16; LISTENERS.len()],
    certificates: Certificates,
}

impl Secured {
    pub(crate) async fn start(libs: &Path, run: &RunDir) -> Result<Self> {
        let data = run.data("secured")?;
        let (_, certificates) = (fs::create_dir_all(data.join("tls")), Certificates::make(data.join("tls")).await?);
        certificates.sign("broker", "30", None).await?;
        install::javac(libs, "MskTokens.java", &data.join("classes")).await?;
        // Kafka takes key and certificate from one file.
        let keystore = certificates.path("keystore.pem");
        let text = certificates.read("broker.key") + &certificates.read("broker.pem");
        fs::write(&keystore, text).context(keystore.display())?;

        let (controller, mut ports) = (free_port()?, [0; LISTENERS.len()]);
        for port in &mut ports {
            *port = free_port()?;
        }
        let names = LISTENERS.iter().zip(ports);
        let advertised: Vec<_> = names.map(|((name, _), port)| format!("{name}://127.0.0.1:{port}")).collect();
        let advertised = advertised.join(",");
        let protocols: Vec<_> = LISTENERS.iter().map(|(name, protocol)| format!("{name}:{protocol}")).collect();
        let iam = format!(
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required secretKey=\"{SECRET_KEY}\" \
             region=\"{REGION}\";"
        );
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let settings = [
            ("listeners", format!("{advertised},CONTROLLER://127.0.0.1:{controller}")),
            ("advertised.listeners", advertised),
            ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
            ("listener.security.protocol.map", format!("{},CONTROLLER:PLAINTEXT", protocols.join(","))),
            ("ssl.keystore.type", "PEM".to_owned()),
            ("ssl.keystore.location", keystore.display().to_string()),
            ("ssl.truststore.type", "PEM".to_owned()),
            ("ssl.truststore.location", certificates.path("ca.pem").display().to_string()),
            ("listener.name.mtls.ssl.client.auth", "required".to_owned()),
            ("listener.name.scram.sasl.enabled.mechanisms", "SCRAM-SHA-256,SCRAM-SHA-512".to_owned()),
            ("listener.name.scram.scram-sha-256.sasl.jaas.config", scram.to_owned()),
            ("listener.name.scram.scram-sha-512.sasl.jaas.config", scram.to_owned()),
            ("listener.name.scram.scram-sha-512.connections.max.reauth.ms", AGAIN_MS.to_owned()),
            ("listener.name.iam.sasl.enabled.mechanisms", "OAUTHBEARER".to_owned()),
            ("listener.name.iam.oauthbearer.sasl.jaas.config", iam),
            ("listener.name.iam.oauthbearer.sasl.server.callback.handler.class", "MskTokens".to_owned()),
            ("listener.name.iam.oauthbearer.sasl.login.callback.handler.class", "MskTokens".to_owned()),
            ("listener.name.iam.oauthbearer.connections.max.reauth.ms", AGAIN_MS.to_owned()),
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned()),
            ("super.users", "User:ANONYMOUS;User:CN=gateway;User:gateway;User:iam".to_owned()),
        ];
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let broker = Broker::local(libs, &data, run.log("kafka-secured"), ports[0], &settings).await?;
        Ok(Self { broker, ports, certificates })
    }

    /// The broker; its own `bootstrap` is the plain listener.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The files of its authority, and of who was signed by it.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// `host:port` of a listener: `PLAINTEXT`, `TLS`, `MTLS`, `SCRAM`, `IAM`.
    pub fn listener(&self, name: &str) -> String {
        let found = LISTENERS.iter().zip(self.ports).find(|((listener, _), _)| *listener == name);
        format!("127.0.0.1:{}", found.expect("a listener").1)
    }

    /// Signs a client's certificate: `<name>.key` and `<name>.pem` in [`Self::certificates`]. See [`Certificates`] for
    /// `days` and `password`.
    pub async fn sign(&self, name: &str, days: &str, password: Option<&str>) {
        self.certificates.sign(name, days, password).await.unwrap_or_else(|e| panic!("{e}"));
    }

    /// Makes a user for a SCRAM mechanism, or gives it another password.
    pub async fn user(&self, mechanism: &str, name: &str, password: &str) {
        let config = format!("{mechanism}=[password={password}]");
        let args = ["--alter", "--entity-type", "users", "--entity-name", name, "--add-config", &config];
        self.tool("kafka.admin.ConfigCommand", &args).await;
    }

    /// Allows a user operations on resources, as `kafka-acls` takes them: `["--topic", "a", "--operation", "Read"]`.
    pub async fn allow(&self, principal: &str, grant: &[&str]) {
        let args = [&["--add", "--allow-principal", principal], grant].concat();
        self.tool("org.apache.kafka.tools.AclCommand", &args).await;
    }

    async fn tool(&self, main_class: &str, args: &[&str]) {
        let bootstrap = self.broker.bootstrap();
        self.broker.tool(main_class, &[&["--bootstrap-server", &bootstrap], args].concat()).await;
    }
}
