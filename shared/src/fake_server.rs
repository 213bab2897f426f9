//! An HTTP server for tests: it hands over what it gets, and answers when and as it is told.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Held {
    /// `PUT /path`.
    pub(crate) line: String,
    pub(crate) body: String,
    stream: BufReader<tokio::net::TcpStream>,
}

impl Held {
    pub(crate) async fn answer(mut self, status: &str, body: &str) {
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        // The other side may have given up: that is what some tests are about.
        let _ = self.stream.write_all(answer.as_bytes()).await;
    }

    /// Returns when the other side gave up.
    pub(crate) async fn abandoned(mut self) {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest).await;
    }
}

/// The server's address, and the requests it gets. They are held until the test answers them.
pub(crate) async fn start() -> (String, mpsc::UnboundedReceiver<Held>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let (mut line, mut length) = (String::new(), 0);
                stream.read_line(&mut line).await.expect("a request");
                loop {
                    let mut header = String::new();
                    stream.read_line(&mut header).await.expect("a header");
                    let header = header.trim().to_ascii_lowercase();
                    if header.is_empty() {
                        break;
                    }
                    if let Some(value) = header.strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a number");
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.expect("a body");
                let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
                let body = String::from_utf8(body).expect("text");
                let _ = sender.send(Held { line, body, stream });
            });
        }
    });
    (address, requests)
}
