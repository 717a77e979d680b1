//! An API server that gives scripted answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kshuttle::cluster::port_forward::{Dialer, PortForwardError, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The subprotocols of WebSocket: SPDY within it, and the old protocol.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
pub(super) const CHANNELS: &str = "v4.channel.k8s.io";

/// What the server does with one request.
#[derive(Clone)]
pub(super) enum Answer {
    /// Sends this and closes.
    Http(String),
    /// Closes without a word.
    Cut,
    /// Sends a right 101 for the way asked for, then plays an echo of one message.
    Upgrade,
    /// Sends this as the head of a 101 (`ACCEPT` replaced), one byte per segment if asked, then as `Upgrade`.
    Head { head: String, by_byte: bool },
    /// Says nothing while so much time passes, by turning the clock.
    SilentFor(Duration),
}

pub(super) fn http(status: &str, headers: &str, body: &str) -> Answer {
    Answer::Http(format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    ))
}

/// As Kubernetes says it.
pub(super) fn status(code: &str, reason: &str, message: &str) -> Answer {
    let number = &code[..3];
    let body = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{message}","reason":"{reason}","code":{number}}}"#
    );
    http(code, "Content-Type: application/json\r\n", &body)
}

pub(super) struct Api {
    pub(super) dialer: Dialer,
    /// The heads of the requests, as they came.
    pub(super) requests: mpsc::UnboundedReceiver<String>,
}

/// A server that gives these answers in turn and reports every request's head.
pub(super) async fn api(transport: Transport, answers: impl IntoIterator<Item = Answer>) -> Api {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
    let (report, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (answers, report) = (answers.clone(), report.clone());
            tokio::spawn(serve(socket, answers, report));
        }
    });
    let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
    config.default_retry = false;
    config.proxy_url = None;
    let client = kube::Client::try_from(config).unwrap();
    Api { dialer: Dialer::new(client, "ns", transport), requests }
}

impl Api {
    /// Opens and reads to the end.
    pub(super) async fn run(&self) -> Result<(Transport, Vec<u8>), PortForwardError> {
        let mut stream = self.dialer.open("pod", 8000).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        Ok((stream.transport(), bytes))
    }

    /// Methods of all requests so far, those for the old protocol marked.
    pub(super) fn asked(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Ok(head) = self.requests.try_recv() {
            let old = if head.contains(CHANNELS) { " v4" } else { "" };
            lines.push(format!("{}{old}", head.split(' ').next().unwrap()));
        }
        lines
    }
}

async fn serve(
    mut socket: TcpStream,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    report: mpsc::UnboundedSender<String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = socket.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let (websocket, channels) = (head.starts_with("GET"), head.contains(CHANNELS));
    report.send(head.clone()).unwrap();
    let answer = answers.lock().unwrap().pop_front().expect("no more requests than answers");
    let (text, by_byte) = match answer {
        Answer::Http(text) => {
            let _ = socket.write_all(text.as_bytes()).await; // it may stop reading at its limit
            let _ = socket.shutdown().await;
            while socket.read_u8().await.is_ok() {}
            return;
        }
        Answer::Cut => return,
        Answer::SilentFor(time) => {
            tokio::time::pause();
            tokio::time::advance(time).await;
            tokio::time::resume();
            while socket.read_u8().await.is_ok() {}
            return;
        }
        Answer::Upgrade if channels => (websocket_head().replace(TUNNEL, CHANNELS), false),
        Answer::Upgrade => (if websocket { websocket_head() } else { spdy_head() }, false),
        Answer::Head { head, by_byte } => (head, by_byte),
    };
    let text = text.replace("ACCEPT", &derive_accept_key(header(&head, "sec-websocket-key").as_bytes()));
    // Nothing may be on the way to us before our 101: it would be lost behind a real API server.
    let early = socket.try_read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(early, Err(std::io::ErrorKind::WouldBlock));
    let frames = b"\x80\x03\x00\x02\x00\x00\x00\x04\x00\x00\x00\x03\
        \x80\x03\x00\x02\x00\x00\x00\x04\x00\x00\x00\x01\
        \x00\x00\x00\x03\x01\x00\x00\x05hello\x00\x00\x00\x01\x01\x00\x00\x00";
    let mut bytes = text.into_bytes();
    // In the same segment as the 101:
    if channels {
        bytes.extend(b"\x82\x03\x00\x40\x1f\x82\x03\x01\x40\x1f\x82\x06\x00hello\x88\x02\x03\xe8");
    } else {
        if websocket {
            bytes.extend([0x82, frames.len() as u8]);
        }
        bytes.extend(frames);
    }
    if by_byte {
        socket.set_nodelay(true).unwrap();
        for byte in bytes {
            socket.write_all(&[byte]).await.unwrap();
        }
    } else {
        socket.write_all(&bytes).await.unwrap();
    }
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await; // a reset is as good an end
}

/// A right answer; `ACCEPT` stands for the key's.
pub(super) fn websocket_head() -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: ACCEPT\r\nSec-WebSocket-Protocol: {TUNNEL}\r\n\r\n"
    )
}

pub(super) fn spdy_head() -> String {
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
        .to_owned()
}

/// A header's value; empty without it.
pub(super) fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .next()
        .unwrap_or("")
}
