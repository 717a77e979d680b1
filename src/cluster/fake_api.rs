//! An API server for tests: answers from a script, one request per connection, and remembers what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::client::Cluster;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `GET /path?query`.
    pub(crate) line: String,
    pub(crate) accept: String,
    /// Null when there was none.
    pub(crate) body: Value,
}

/// What is answered to the next request whose `METHOD /path` starts with `when`.
pub(crate) struct Answer {
    pub(crate) when: &'static str,
    pub(crate) code: u16,
    /// One document, or for a watch the events one after another.
    pub(crate) bodies: Vec<Value>,
    /// Keep the connection open after the bodies, as a watch does.
    pub(crate) stays: bool,
}

impl Answer {
    pub(crate) fn ok(when: &'static str, body: Value) -> Self {
        Self { when, code: 200, bodies: vec![body], stays: false }
    }

    pub(crate) fn refusal(when: &'static str, code: u16, reason: &str, message: &str) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message
        });
        Self { when, code, bodies: vec![body], stays: false }
    }

    /// Events of a watch: `(type, object)`.
    pub(crate) fn watch(when: &'static str, events: Vec<(&str, Value)>, stays: bool) -> Self {
        let bodies =
            events.into_iter().map(|(kind, object)| json!({"type": kind, "object": object})).collect();
        Self { when, code: 200, bodies, stays }
    }
}

pub(crate) struct FakeApi {
    pub(crate) cluster: Cluster,
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

struct State {
    script: VecDeque<Answer>,
    asked: Vec<Asked>,
}

impl FakeApi {
    /// Starts one on loopback; our namespace is `dev`.
    pub(crate) async fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { script: script.into_iter().collect(), asked: Vec::new() }));
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        let mut config = Config::new(url.parse().unwrap());
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        Self { cluster: Cluster::for_test(client, "dev"), url, state, accepting }
    }

    /// All requests so far, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// The script's answers that nobody asked for.
    pub(crate) fn left(&self) -> usize {
        self.state.lock().unwrap().script.len()
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Compares `value` with `fixtures/api/NAME`; writes the file when `KSHUTTLE_BLESS` is set.
#[track_caller]
pub(crate) fn golden(name: &str, value: &impl serde::Serialize) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/api").join(name);
    let text =
        serde_json::to_string_pretty(value).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION") + "\n";
    if std::env::var_os("KSHUTTLE_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{} is not (KSHUTTLE_BLESS=1 writes it):\n{text}", path.display());
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut accept, mut length) = (String::new(), String::new(), 0);
    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
        return;
    }
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "accept" => value.clone_into(&mut accept),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();

    let answer = {
        let mut state = state.lock().unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        state.asked.push(Asked { line: line.clone(), accept, body });
        let position = state.script.iter().position(|answer| line.starts_with(answer.when));
        position.and_then(|position| state.script.remove(position))
    };
    let answer = answer.unwrap_or_else(|| {
        Answer::refusal("", 500, "InternalError", &format!("the test has no answer to {line}"))
    });
    let head =
        format!("HTTP/1.1 {} X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n", answer.code);
    let _ = stream.write_all(head.as_bytes()).await;
    for body in &answer.bodies {
        let _ = stream.write_all(format!("{body}\n").as_bytes()).await;
        let _ = stream.flush().await;
    }
    if answer.stays {
        // Until the client leaves.
        let _ = stream.read(&mut [0]).await;
    }
    let _ = stream.shutdown().await;
}
