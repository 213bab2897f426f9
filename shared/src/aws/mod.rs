//! What AWS gives to a function: the login at MSK by IAM, and secrets. The only code that knows AWS's SDK, and that the feature `aws`
//! takes away.

use std::time::SystemTime;

#[cfg(feature = "aws")]
mod sdk;
#[cfg(feature = "aws")]
mod secret;
#[cfg(feature = "aws")]
pub use sdk::Aws;

/// A token for MSK.
pub struct Token {
    /// A presigned request to connect, in base64.
    pub text: String,
    /// When it ends.
    pub until: SystemTime,
}

impl std::fmt::Debug for Token {
    /// Not the token itself.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("until", &self.until).finish_non_exhaustive()
    }
}

/// Nothing: the feature `aws` is not built in, and no value of this can be made.
#[cfg(not(feature = "aws"))]
#[derive(Debug)]
pub enum Aws {}

#[cfg(not(feature = "aws"))]
impl Aws {
    /// Never there.
    pub fn new(_: &str) -> Option<Self> {
        None
    }

    /// Never called.
    #[allow(clippy::unused_async)] // as the other one is
    pub async fn token(&self) -> Result<Token, crate::errors::BoxError> {
        match *self {}
    }

    /// Never called.
    #[allow(clippy::unused_async)] // as the other one is
    pub async fn secret(&self, _: &crate::config::Arn) -> Result<String, crate::errors::BoxError> {
        match *self {}
    }
}
