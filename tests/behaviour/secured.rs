//! The one broker with TLS, logins and ACLs, and functions that log in to it.

use tests::{Function, Secured, Stack};
use tokio::sync::OnceCell;

use crate::world::function_with;

/// The password of the user `gateway`. A colon belongs to it.
pub(crate) const PASSWORD: &str = "pa:ss-word";

/// What is missing where it cannot be set up.
pub(crate) const SECURED: &str = "the secured broker is set up with Kafka 4's tools";

/// Starts it with the first test that asks. `gateway` has a password and a certificate, and may do everything.
pub(crate) async fn secured() -> &'static Secured {
    static SECURED: OnceCell<Secured> = OnceCell::const_new();
    let start = async || {
        let secured = Stack::shared().await.secured().await;
        tokio::join!(
            secured.user("SCRAM-SHA-256", "gateway", PASSWORD),
            secured.user("SCRAM-SHA-512", "gateway", PASSWORD),
            secured.sign("gateway", "30", None)
        );
        secured
    };
    SECURED.get_or_init(start).await
}

/// Starts a function that comes to a listener in one of the ways of `KAFKA_SECURITY`, with `more` variables.
pub(crate) async fn function_by(name: &str, security: &str, listener: &str, more: &[(&str, &str)]) -> Function {
    let secured = secured().await;
    let (server, ca) = (secured.listener(listener), secured.certificates().path("ca.pem"));
    let ca = ca.to_str().expect("UTF-8");
    let own = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("KAFKA_SECURITY", security), ("KAFKA_CA_FILE", ca)];
    function_with(name, &[&own, more].concat()).await
}

/// Starts a function that logs in as a user.
pub(crate) async fn function_as(name: &str, user: &str, password: &str) -> Function {
    function_by(name, "scram-sha-512", "SCRAM", &[("KAFKA_CREDENTIALS", &format!("{user}:{password}"))]).await
}
