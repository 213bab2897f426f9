//! A stretch of wire between functions and a broker, on which a test catches single requests and answers.
//!
//! It understands Kafka's frames (a length; in requests the API's key and version, a correlation id and the client's
//! id; in answers the correlation id) and nothing of what they hold.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::error::{Context as _, Result};
use crate::lambda_api::SERVERS;
use crate::process::lock;
use crate::run::free_port;

/// Kafka's APIs, by their keys on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
#[expect(missing_docs, reason = "the names are Kafka's own")]
pub enum Api {
    Produce = 0,
    Fetch = 1,
    ListOffsets = 2,
    Metadata = 3,
    OffsetFetch = 9,
    FindCoordinator = 10,
    InitProducerId = 22,
    AddPartitionsToTxn = 24,
    AddOffsetsToTxn = 25,
    EndTxn = 26,
    TxnOffsetCommit = 28,
}

/// Where a frame is caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Before the broker gets the request.
    Request,
    /// When the broker has answered, before the client gets that.
    Answer,
}

/// The wire to one broker. Clients get there because the broker names it as its own address.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    wire: Arc<Wire>,
}

/// What all its connections know.
#[derive(Debug, Default)]
struct Wire {
    traps: Mutex<Vec<Trap>>,
    /// How many connections there were so far.
    connections: AtomicUsize,
    /// Whose connections are dead, up to which one.
    dead: Mutex<HashMap<Vec<u8>, usize>>,
}

#[derive(Debug)]
struct Trap {
    id: usize,
    client: String,
    api: Api,
    at: At,
    containing: String,
    /// How many more of them pass before one is caught.
    passing: usize,
    caught: oneshot::Sender<Held>,
}

/// A frame on its way. Dropped, it takes its connection with it: it never arrives.
#[derive(Debug)]
pub struct Held(oneshot::Sender<()>);

impl Held {
    /// Lets it go on.
    pub fn pass(self) {
        let _ = self.0.send(());
    }
}

impl Proxy {
    /// Listens on a port of its own for clients of the broker at `broker`.
    pub(crate) async fn start(broker: u16) -> Result<Self> {
        let (port, wire) = (free_port()?, Arc::<Wire>::default());
        let listen = SERVERS.spawn(TcpListener::bind(("127.0.0.1", port)));
        let listener = listen.await.context("proxy")?.context("proxy")?;
        let proxy = Self { port, wire: Arc::clone(&wire) };
        SERVERS.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let wire = Arc::clone(&wire);
                // A broken connection is one like any other: both ends see that it is closed.
                SERVERS.spawn(async move { carry(client, broker, &wire).await });
            }
        });
        Ok(proxy)
    }

    /// `host:port`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Catches the next frame of a client (its `client.id`) with `containing` in its request, after `passing` others of
    /// that kind.
    pub fn catch(
        &self,
        client: &str,
        (api, at): (Api, At),
        containing: &str,
        passing: usize,
    ) -> oneshot::Receiver<Held> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let (caught, held) = oneshot::channel();
        let (client, containing) = (client.to_owned(), containing.to_owned());
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        lock(&self.wire.traps).push(Trap { id, client, api, at, containing, passing, caught });
        held
    }

    /// Lets the connections that a client (its `client.id`) has now die in silence: they stay open, and nothing arrives any
    /// more, in either direction. New ones are like any other.
    pub fn forget(&self, client: &str) {
        let so_far = self.wire.connections.load(Ordering::Relaxed);
        lock(&self.wire.dead).insert(client.as_bytes().to_owned(), so_far);
    }
}

impl Wire {
    /// Whether nothing arrives any more on this connection, by its number and its client.
    fn is_dead(&self, number: usize, client: &Mutex<Vec<u8>>) -> bool {
        lock(&self.dead).get(&*lock(client)).is_some_and(|so_far| number < *so_far)
    }
}

/// Carries frames both ways until one end closes its connection, or a frame is dropped.
async fn carry(client: TcpStream, broker: u16, wire: &Wire) -> io::Result<()> {
    let number = wire.connections.fetch_add(1, Ordering::Relaxed);
    let broker = TcpStream::connect(("127.0.0.1", broker)).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    // Whose connection it is, by its requests.
    let whose = Mutex::<Vec<u8>>::default();
    // The traps of answers that are to be caught, by correlation id.
    let awaited = Mutex::new(HashMap::<Vec<u8>, usize>::new());
    let there = async {
        loop {
            let frame = frame(&mut from_client).await?;
            sender(&frame).unwrap_or_default().clone_into(&mut lock(&whose));
            if wire.is_dead(number, &whose) {
                continue;
            }
            match sprung(&wire.traps, &frame) {
                Some((At::Request, id)) => held(&wire.traps, id).await?,
                Some((At::Answer, id)) => drop(lock(&awaited).insert(correlation(&frame, 8).to_owned(), id)),
                None => {}
            }
            to_broker.write_all(&frame).await?;
        }
    };
    let back = async {
        loop {
            let frame = match frame(&mut from_broker).await {
                // The end of a dead connection is not heard of.
                Err(_) if wire.is_dead(number, &whose) => std::future::pending().await,
                read => read?,
            };
            if wire.is_dead(number, &whose) {
                continue;
            }
            let trap = lock(&awaited).remove(correlation(&frame, 4));
            if let Some(id) = trap {
                held(&wire.traps, id).await?;
            }
            to_client.write_all(&frame).await?;
        }
    };
    tokio::select! {
        ended = there => ended,
        ended = back => ended,
    }
}

/// Hands a frame to the test, and waits for its word.
///
/// A trap is gone only now: a client that closes its connection before the answer to a request asks again on another.
async fn held(traps: &Mutex<Vec<Trap>>, id: usize) -> io::Result<()> {
    let trap = {
        let mut traps = lock(traps);
        let index = traps.iter().position(|trap| trap.id == id);
        index.map(|index| traps.swap_remove(index))
    };
    let (go_on, word) = oneshot::channel();
    match trap.map(|trap| trap.caught.send(Held(go_on))) {
        Some(Ok(())) => word.await.map_err(io::Error::other),
        // Caught already, or the test is over.
        Some(Err(_)) | None => Ok(()),
    }
}

/// A frame with its length in front.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame).await?;
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
    frame.resize(4 + usize::try_from(length).map_err(io::Error::other)?, 0);
    from.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

/// The trap that a request springs, if any.
fn sprung(traps: &Mutex<Vec<Trap>>, request: &[u8]) -> Option<(At, usize)> {
    let api = i16::from_be_bytes(request.get(4..6)?.try_into().ok()?);
    let client = sender(request)?;
    let mut traps = lock(traps);
    let of_this_kind = |trap: &Trap| {
        let text = trap.containing.as_bytes();
        trap.api as i16 == api
            && trap.client.as_bytes() == client
            && (text.is_empty() || request.windows(text.len()).any(|window| window == text))
    };
    let trap = traps.iter_mut().find(|trap| of_this_kind(trap))?;
    if trap.passing == 0 {
        return Some((trap.at, trap.id));
    }
    trap.passing -= 1;
    None
}

/// The `client.id` in a request.
fn sender(request: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes(request.get(12..14)?.try_into().ok()?));
    request.get(14..14 + length)
}

fn correlation(frame: &[u8], at: usize) -> &[u8] {
    frame.get(at..at + 4).unwrap_or_default()
}
