//! Certificates for one run, made with openssl: an authority, and what it signs.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::process::{output, supervised};

/// A folder with an authority and what it has signed; each file is PEM.
#[derive(Debug)]
pub struct Certificates(PathBuf);

/// How a certificate is signed, beside by whom.
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj"];

impl Certificates {
    /// Makes an authority.
    pub(crate) async fn make(dir: PathBuf) -> Result<Self> {
        let made = Self(dir);
        let (key, certificate) = (made.path("ca.key"), made.path("ca.pem"));
        let mut openssl = made.openssl("req");
        openssl.arg("-x509").args(KEY).args(["/CN=test authority", "-noenc", "-days", "30", "-keyout"]);
        openssl.arg(&key).arg("-out").arg(&certificate);
        output("openssl req", openssl).await?;
        Ok(made)
    }

    /// Makes `<name>.key` and `<name>.pem`, with the common name `name`, for a server on this machine or a client. Where
    /// `days` is negative it is over already. With a password the key is encrypted.
    pub(crate) async fn sign(&self, name: &str, days: &str, password: Option<&str>) -> Result<()> {
        let (key, certificate, request) =
            (self.path(&format!("{name}.key")), self.path(&format!("{name}.pem")), self.path(&format!("{name}.csr")));
        let mut openssl = self.openssl("req");
        openssl.arg("-new").args(KEY).arg(format!("/CN={name}")).arg("-keyout").arg(&key).arg("-out").arg(&request);
        openssl.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
        match password {
            Some(password) => openssl.args(["-passout", &format!("pass:{password}")]),
            None => openssl.arg("-noenc"),
        };
        output("openssl req", openssl).await?;
        let mut openssl = self.openssl("x509");
        openssl.args(["-req", "-copy_extensions", "copy", "-days", days]);
        openssl.arg("-CA").arg(self.path("ca.pem")).arg("-CAkey").arg(self.path("ca.key"));
        openssl.arg("-in").arg(&request).arg("-out").arg(&certificate);
        output("openssl x509", openssl).await.map(drop)
    }

    /// A file's path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file's text.
    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn openssl(&self, command: &str) -> std::process::Command {
        let mut openssl = supervised("openssl");
        openssl.arg(command).current_dir(Path::new(&self.0));
        openssl
    }
}
