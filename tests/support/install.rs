//! What the stack needs, downloaded once into `.local/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Context as _, Error, Result};
use crate::keycloak;
use crate::process::{output, supervised};
use crate::run::progress;

const KEYCLOAK_VERSION: &str = "26.4.0";
const REGISTRY_VERSION: &str = "3.0.9";
const SWAGGER_UI: &str = "swagger-ui-dist@5.35.0";
const MAVEN_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0";
/// `cargo-lambda` comes without its dependency ziglang (400 MB): only cross-compiling needs it.
const PYTHON_PACKAGES: [(&str, &[&str]); 2] = [("cargo-lambda==1.9.2", &["--no-deps"]), ("aiokafka==0.14.0", &[])];

/// Where things were installed.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) kafka_libs: PathBuf,
    pub(crate) keycloak: PathBuf,
    pub(crate) keycloak_realm: PathBuf,
    pub(crate) pushgateway: PathBuf,
}

/// The project's root folder.
pub(crate) fn workspace_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

pub(crate) fn local() -> PathBuf {
    workspace_root().join(".local")
}

pub(crate) fn settings() -> PathBuf {
    workspace_root().join("infra/local")
}

/// The Kafka version: `KAFKA_VERSION`, or the one `pom.xml` names.
pub fn kafka_version() -> Result<String> {
    if let Ok(version) = std::env::var("KAFKA_VERSION") {
        return Ok(version);
    }
    let pom = fs::read_to_string(settings().join("kafka/pom.xml")).context("infra/local/kafka/pom.xml")?;
    let version = pom.split("<kafka.version>").nth(1).and_then(|rest| rest.split("</").next());
    version.map(str::to_owned).ok_or_else(|| Error::new("infra/local/kafka/pom.xml names no kafka.version"))
}

/// Whether the stack's Kafka is of this version or a newer one.
pub fn kafka_since(major: u32, minor: u32) -> bool {
    let version = kafka_version().unwrap_or_else(|e| panic!("{e}"));
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let number = numbers.next().flatten().zip(numbers.next().flatten());
    number.unwrap_or_else(|| panic!("KAFKA_VERSION: {version} is no version")) >= (major, minor)
}

pub(crate) fn keycloak_version() -> String {
    std::env::var("KEYCLOAK_VERSION").unwrap_or_else(|_| KEYCLOAK_VERSION.to_owned())
}

pub(crate) fn registry_version() -> String {
    std::env::var("REGISTRY_VERSION").unwrap_or_else(|_| REGISTRY_VERSION.to_owned())
}

/// Installs everything the stack needs without a container engine.
pub(crate) async fn all() -> Result<Installed> {
    require(&[
        ("java", "openjdk-17-jre-headless"),
        ("mvn", "maven"),
        ("python3", "python3-venv"),
        ("setpriv", "util-linux"),
        ("apt-get", "apt"),
        ("dpkg-deb", "dpkg"),
    ])
    .context("no container engine answers")?;
    let _lock = exclusive().await?;
    // One Maven at a time: two would write to the same local repository.
    let from_maven = async { Ok::<_, Error>((kafka().await?, keycloak().await?)) };
    // The Python environment is not needed yet; now its download costs no waiting.
    let ((kafka_libs, keycloak), pushgateway, _) = tokio::try_join!(from_maven, pushgateway(), python())?;
    let keycloak_realm = keycloak_realm(&keycloak).await?;
    Ok(Installed { kafka_libs, keycloak, keycloak_realm, pushgateway })
}

/// Kafka's jars alone, for what containers do not do.
pub(crate) async fn kafka_libs() -> Result<PathBuf> {
    require(&[("java", "openjdk-17-jre-headless"), ("mvn", "maven")])?;
    let _lock = exclusive().await?;
    kafka().await
}

/// Compiles a class of `support/java` that a broker is to load, into its folder's `classes`.
pub(crate) async fn javac(libs: &Path, source: &str, classes: &Path) -> Result<()> {
    require(&[("javac", "openjdk-17-jdk-headless")])?;
    let mut javac = supervised("javac");
    javac.arg("-cp").arg(libs.join("*")).arg("-d").arg(classes);
    javac.arg(workspace_root().join("tests/support/java").join(source));
    output("javac", javac).await.map(drop)
}

/// A Python environment with an independent Kafka client and cargo-lambda.
pub(crate) async fn venv() -> Result<PathBuf> {
    require(&[("python3", "python3-venv")])?;
    let _lock = exclusive().await?;
    python().await
}

async fn python() -> Result<PathBuf> {
    let names: Vec<_> = PYTHON_PACKAGES.iter().map(|(package, _)| *package).collect();
    step("python environment", &local().join("venv"), &names.join(" "), async |dir| {
        output("python3 -m venv", args("python3", [Path::new("-m"), Path::new("venv"), dir])).await?;
        for (package, options) in PYTHON_PACKAGES {
            pip_install(dir, &[package], options).await?;
        }
        Ok(())
    })
    .await
}

/// A Python environment of its own, with these packages: a change to one must not renew the one that the tests use.
pub(crate) async fn venv_with(name: &str, packages: &[&str]) -> Result<PathBuf> {
    require(&[("python3", "python3-venv")])?;
    let _lock = exclusive().await?;
    step(&format!("python environment {name}"), &local().join(name), &packages.join(" "), async |dir| {
        output("python3 -m venv", args("python3", [Path::new("-m"), Path::new("venv"), dir])).await?;
        pip_install(dir, packages, &[]).await
    })
    .await
}

/// Swagger UI's files. They are only unpacked: neither its scripts nor what it depends on (a counter of installations)
/// is wanted.
pub(crate) async fn swagger_ui() -> Result<PathBuf> {
    require(&[("npm", "npm"), ("tar", "tar")])?;
    let _lock = exclusive().await?;
    step(SWAGGER_UI, &local().join("swagger-ui"), SWAGGER_UI, async |dir| {
        let mut npm = supervised("npm");
        npm.args(["pack", "--silent", SWAGGER_UI]).current_dir(dir);
        let archive = output(&format!("npm pack {SWAGGER_UI}"), npm).await?;
        let archive = dir.join(archive.trim());
        let mut tar = supervised("tar");
        tar.arg("-xzf").arg(&archive).args(["--strip-components=1", "-C"]).arg(dir);
        output("tar", tar).await?;
        fs::remove_file(&archive).context(archive.display())
    })
    .await
}

/// A browser, and what drives it.
pub(crate) fn chromium() -> Result<()> {
    require(&[("chromium", "chromium"), ("chromedriver", "chromium-driver")])
}

async fn pip_install(venv: &Path, packages: &[&str], options: &[&str]) -> Result<()> {
    let mut pip = supervised(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(packages).args(options);
    output(&format!("pip install {}", packages.join(" ")), pip).await.map(drop)
}

async fn kafka() -> Result<PathBuf> {
    let (version, pom) = (kafka_version()?, settings().join("kafka/pom.xml"));
    let stamp = fs::read_to_string(&pom).context(pom.display())?;
    step(&format!("kafka {version}"), &local().join(format!("kafka-{version}")), &stamp, async |dir| {
        let mut mvn = supervised("mvn");
        mvn.args(["-q", "-B", "-f"]).arg(&pom).arg(format!("{MAVEN_PLUGIN}:copy-dependencies"));
        mvn.arg(format!("-Dkafka.version={version}")).arg(format!("-DoutputDirectory={}", dir.display()));
        // Before 4.0 Kafka brings a binding of its own, and two would be one too many.
        mvn.arg("-DexcludeArtifactIds=slf4j-log4j12,slf4j-reload4j");
        output("mvn dependency:copy-dependencies", mvn).await.map(drop)
    })
    .await
}

async fn keycloak() -> Result<PathBuf> {
    let version = keycloak_version();
    let home = local().join(format!("keycloak-{version}"));
    step(&format!("keycloak {version}"), &home, &version, async |dir| {
        let mut mvn = supervised("mvn");
        mvn.args(["-q", "-B", &format!("{MAVEN_PLUGIN}:unpack")]);
        mvn.arg(format!("-Dartifact=org.keycloak:keycloak-quarkus-dist:{version}:zip"));
        // Without a project the plugin leaves its markers in the folder it runs in.
        mvn.arg(format!("-DoutputDirectory={}", dir.display())).current_dir(dir);
        output("mvn dependency:unpack", mvn).await?;
        keycloak::build(&dir.join(format!("keycloak-{version}"))).await
    })
    .await?;
    Ok(home.join(format!("keycloak-{version}")))
}

/// The schema registry: its folder, with the jar to run.
pub(crate) async fn registry() -> Result<PathBuf> {
    let _lock = exclusive().await?;
    let version = registry_version();
    let home = local().join(format!("apicurio-registry-{version}"));
    step(&format!("apicurio registry {version}"), &home, &version, async |dir| {
        let mut mvn = supervised("mvn");
        mvn.args(["-q", "-B", &format!("{MAVEN_PLUGIN}:unpack")]);
        mvn.arg(format!("-Dartifact=io.apicurio:apicurio-registry-app:{version}:tar.gz:all"));
        mvn.arg(format!("-DoutputDirectory={}", dir.display())).current_dir(dir);
        output("mvn dependency:unpack", mvn).await.map(drop)
    })
    .await
}

/// A database with the realm in it: creating the schema, the keys and the realm takes two thirds of a first start.
async fn keycloak_realm(home: &Path) -> Result<PathBuf> {
    let realm = settings().join("keycloak/realm.json");
    let stamp = fs::read_to_string(&realm).context(realm.display())?;
    let dir = local().join(format!("keycloak-{}-realm", keycloak_version()));
    step("keycloak realm", &dir, &stamp, async |dir| keycloak::prepare_database(home, dir).await).await
}

async fn pushgateway() -> Result<PathBuf> {
    debian("pushgateway", "prometheus-pushgateway", "prometheus-pushgateway").await
}

/// Prometheus' server or its `promtool`.
pub(crate) async fn prometheus(program: &str) -> Result<PathBuf> {
    require(&[("apt-get", "apt"), ("dpkg-deb", "dpkg")])?;
    let _lock = exclusive().await?;
    debian("prometheus", "prometheus", program).await
}

/// A program of one of the distribution's packages, which is unpacked into `.local/<dir>` and not installed; or the one that
/// is installed.
async fn debian(dir: &str, package: &str, program: &str) -> Result<PathBuf> {
    if let Some(found) = find(program) {
        return Ok(found);
    }
    let dir = local().join(dir);
    step(package, &dir, "debian", async |dir| {
        let mut download = supervised("apt-get");
        download.args(["download", "-q", package]).current_dir(dir);
        let hint = "is the package list there? (apt-get update)";
        output(&format!("apt-get download {package}"), download).await.context(hint)?;
        let package = fs::read_dir(dir).context(dir.display())?.flatten().map(|entry| entry.path());
        let package = package.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "deb"));
        let package = package.ok_or_else(|| Error::new("apt-get download left no package"))?;
        output("dpkg-deb", args("dpkg-deb", [Path::new("-x"), &package, dir])).await?;
        fs::remove_file(&package).context(package.display())
    })
    .await?;
    Ok(dir.join("usr/bin").join(program))
}

/// Fills `dir` unless it was filled by the same recipe before. The stamp is written last, so a broken attempt is redone.
async fn step<F>(name: &str, dir: &Path, stamp: &str, fill: F) -> Result<PathBuf>
where
    F: AsyncFnOnce(&Path) -> Result<()>,
{
    let marker = dir.join(".installed");
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == stamp) {
        return Ok(dir.to_owned());
    }
    progress(format_args!("{name}: installing into {}", dir.display()));
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).context(dir.display())?;
    fill(dir).await?;
    fs::write(&marker, stamp).context(marker.display())?;
    progress(format_args!("{name}: installed"));
    Ok(dir.to_owned())
}

/// One installation at a time on this machine.
async fn exclusive() -> Result<File> {
    fs::create_dir_all(local()).context(".local")?;
    let file = File::create(local().join("install.lock")).context("install.lock")?;
    let mut told = false;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if !told {
            progress("waiting for another process that is installing");
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(file)
}

/// Names everything that is missing at once, with the one command that installs it.
fn require(tools: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|(tool, _)| find(tool).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(tool, _)| *tool).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let (names, packages) = (names.join(", "), packages.join(" "));
    Err(Error::new(format!("missing: {names}; install with: apt-get install -y {packages}")))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn args<const N: usize>(program: &str, args: [&Path; N]) -> Command {
    let mut command = supervised(program);
    command.args(args);
    command
}
