//! AWS's SDK, which is asked for nothing before something is needed of it.

use std::time::{Duration, UNIX_EPOCH};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_msk_iam_sasl_signer::generate_auth_token_from_credentials_provider;
use aws_types::region::Region;
use futures_util::FutureExt;
use tokio::sync::OnceCell;

use super::{Token, secret};
use crate::config::Arn;
use crate::errors::BoxError;

/// The function's own role, in a region.
pub struct Aws {
    region: Region,
    /// The usual chain; in Lambda it ends at the environment's variables, and asks nobody.
    provider: OnceCell<SharedCredentialsProvider>,
    /// For Secrets Manager.
    client: OnceCell<reqwest::Client>,
}

impl std::fmt::Debug for Aws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aws").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Aws {
    /// Asks for nothing yet. None, if the feature `aws` is not built in.
    #[allow(clippy::unnecessary_wraps)] // the other one has none
    pub fn new(region: &str) -> Option<Self> {
        Some(Self { region: Region::new(region.to_owned()), provider: OnceCell::new(), client: OnceCell::new() })
    }

    /// A new token for MSK, signed with the role's credentials of now. It ends after 15 minutes, or with them.
    pub async fn token(&self) -> Result<Token, BoxError> {
        // Boxed: the SDK's futures are too deep for the compiler, within all of ours.
        self.sign().boxed().await
    }

    async fn sign(&self) -> Result<Token, BoxError> {
        let credentials = self.provider().await.provide_credentials().await?;
        let ends = credentials.expiry();
        let signer = SharedCredentialsProvider::new(credentials);
        let (text, until_ms) = generate_auth_token_from_credentials_provider(self.region.clone(), signer).await?;
        let until = UNIX_EPOCH + Duration::from_millis(u64::try_from(until_ms)?);
        Ok(Token { text, until: ends.map_or(until, |ends| until.min(ends)) })
    }

    /// What a secret holds now.
    pub async fn secret(&self, arn: &Arn) -> Result<String, BoxError> {
        let credentials = self.provider().boxed().await.provide_credentials().await?;
        let client = async || tokio::task::spawn_blocking(crate::app::http_client).await?;
        secret::read(self.client.get_or_try_init(client).await?, credentials, arn).await
    }

    async fn provider(&self) -> &SharedCredentialsProvider {
        let make = async || {
            let chain = DefaultCredentialsChain::builder().region(self.region.clone()).build();
            SharedCredentialsProvider::new(chain.await)
        };
        self.provider.get_or_init(make).await
    }
}
