//! The folder of one running stack, its ports, and what dead runs left behind.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use crate::compose;
use crate::error::{Context as _, Error, Result};
use crate::install::local;

/// `.local/run/<id>`: logs, and data that go when the run ends. Locked as long as its process lives.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    keep_logs: AtomicBool,
    _lock: File,
}

impl RunDir {
    pub(crate) fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let runs = local().join("run");
        fs::create_dir_all(&runs).context(runs.display())?;
        // Held until the new folder is locked, or another process's sweep could take it for a dead one.
        let sweeping = File::create(runs.join("sweep.lock")).context(runs.display())?;
        flock(&sweeping, FlockOperation::LockExclusive).context(runs.display())?;
        sweep(&runs);
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = runs.join(id);
        fs::create_dir_all(path.join("data")).context(path.display())?;
        let lock = File::create(path.join("lock")).context(path.display())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context(path.display())?;
        Ok(Self { path, keep_logs: AtomicBool::new(false), _lock: lock })
    }

    /// The run of this process that belongs to no stack: logs of functions.
    pub(crate) fn of_process() -> Result<&'static Self> {
        static RUN: OnceLock<RunDir> = OnceLock::new();
        if let Some(run) = RUN.get() {
            return Ok(run);
        }
        let run = Self::new()?;
        Ok(RUN.get_or_init(|| run))
    }

    pub(crate) fn id(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or("run")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn log(&self, service: &str) -> PathBuf {
        self.path.join(format!("{service}.log"))
    }

    /// Leaves the logs when the run ends; the next one sweeps them.
    pub(crate) fn keep_logs(&self) {
        self.keep_logs.store(true, Ordering::Relaxed);
    }

    /// A folder that is removed with the run.
    pub(crate) fn data(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join("data").join(name);
        fs::create_dir_all(&path).context(path.display())?;
        Ok(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.path.join("data"));
        if !self.keep_logs.load(Ordering::Relaxed) && !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes what runs left behind whose process is gone: nobody holds their lock any more.
fn sweep(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(lock) = File::open(path.join("lock")) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && compose::sweep(&path) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// A port on loopback that nobody listens on.
///
/// Below the range the kernel takes for outgoing connections: a service binds its port seconds after it was chosen, and
/// a stopped broker's port must not be taken, or met by a client connecting to itself, before it starts again.
pub fn free_port() -> Result<u16> {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        AtomicU32::new(nanos / 1000 + std::process::id() * 37)
    });
    for _ in 0..1000 {
        let offset = u16::try_from(next.fetch_add(1, Ordering::Relaxed) % 12_000).unwrap_or(0);
        let port = 20_000 + offset;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new("no free port between 20000 and 32000"))
}

/// A line that says what is going on, with the seconds since the start.
pub fn progress(text: impl std::fmt::Display) {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let seconds = STARTED.get_or_init(Instant::now).elapsed().as_secs_f32();
    // Not `eprintln!`, which the test harness keeps to itself: the first start of all takes a minute.
    let _ = writeln!(std::io::stderr(), "{seconds:7.1}s  {text}");
}
