//! Asking a session that runs: how it is, and to end.
//!
//! Each session has a folder with a socket ([`registry`]); a question is one line of JSON, and so is the answer ([`socket`]).
//! Only the session's own user and root are answered.

pub mod registry;
pub mod socket;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use ipnet::IpNet;
use kshuttle_wire::link::Phase;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::dns::Explanation;
use crate::tunnel::pool::{Pool, TunnelStatus};

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Request {
    /// How are you?
    Status,
    /// What becomes of a question about a name?
    Dns {
        /// The name.
        name: String,
        /// The type of records: `A`, `AAAA`, …
        kind: String,
    },
    /// End in order.
    Quit,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Dns`].
    Dns(Explanation),
    /// To [`Request::Quit`]: it is ending.
    Ending,
    /// The question was not understood, or has no answer.
    Error(String),
}

/// A session at one moment. A newer one may have more fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name, the id of its process.
    pub name: String,
    /// `redirect`, `socks` or `port-forward`.
    pub command: String,
    /// kshuttle's version.
    pub version: String,
    /// Whether it has said that it is ready.
    pub ready: bool,
    /// Since its start.
    pub seconds: f64,
    /// What it redirects.
    #[serde(default)]
    pub ranges: Vec<IpNet>,
    /// The cluster's domain, where this machine's questions about names come to it.
    #[serde(default)]
    pub domain: Option<String>,
    /// None before the pod runs, and for `port-forward`.
    pub tunnels: Vec<Tunnel>,
}

/// A tunnel at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Its number, from 1.
    pub number: usize,
    /// `up`, `down` or `starting`.
    pub state: String,
    /// What its byte stream is made of.
    pub way: String,
    /// Whether connections outlive the byte stream.
    pub resumable: bool,
    /// Connections in it.
    pub connections: usize,
    /// For how long there has been no byte stream.
    pub down_seconds: Option<f64>,
    /// Losses of the byte stream that no connection noticed.
    pub losses_survived: u64,
    /// Round trip, as measured last.
    pub rtt_ms: Option<f64>,
    /// What arrives at the pod, as measured last.
    pub bytes_per_second: Option<f64>,
    /// What may be under way.
    pub budget_bytes: Option<u64>,
    /// Sent and not confirmed.
    pub in_flight_bytes: Option<u64>,
    /// Kept for the case that it must be sent again.
    pub replay_buffer_bytes: Option<usize>,
    /// Why the last attempt or byte stream failed.
    pub last_error: Option<String>,
    /// The same in a line for people.
    pub words: String,
}

/// The session of this process, as those see it who ask. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    command: &'static str,
    started: Instant,
    ready: OnceLock<()>,
    pool: OnceLock<Pool>,
    ranges: Mutex<Vec<IpNet>>,
    domain: OnceLock<String>,
    explain: OnceLock<Explain>,
    quit: Notify,
}

/// Answers [`Request::Dns`]: name and type.
pub type Explain =
    Arc<dyn Fn(String, String) -> BoxFuture<'static, Result<Explanation, String>> + Send + Sync>;

impl Session {
    /// One that starts now.
    pub fn start(command: &'static str) -> Self {
        let (ready, pool) = (OnceLock::new(), OnceLock::new());
        Self {
            shared: Arc::new(Shared {
                command,
                started: Instant::now(),
                ready,
                pool,
                ranges: Mutex::default(),
                domain: OnceLock::new(),
                explain: OnceLock::new(),
                quit: Notify::new(),
            }),
        }
    }

    /// Its tunnels, from now on.
    pub fn has(&self, pool: &Pool) {
        let _ = self.shared.pool.set(pool.clone()); // there is one for each session
    }

    /// It redirects these, from now on.
    pub fn redirects(&self, ranges: Vec<IpNet>) {
        *self.shared.ranges.lock().unwrap_or_else(PoisonError::into_inner) = ranges;
    }

    /// It answers this machine's questions about names of this domain, from now on.
    pub fn answers_for(&self, domain: String) {
        let _ = self.shared.domain.set(domain); // a pod made anew is in the same cluster
    }

    /// It explains names, from now on.
    pub fn explains(&self, explain: Explain) {
        let _ = self.shared.explain.set(explain); // there is one for each session
    }

    /// It serves, from now on.
    pub fn is_ready(&self) {
        let _ = self.shared.ready.set(()); // once is enough
    }

    /// Ends the session, once whoever asked has the answer.
    fn end(&self) {
        self.shared.quit.notify_one();
    }

    /// Waits until somebody wants it to end.
    pub async fn quit(&self) {
        self.shared.quit.notified().await;
    }

    /// How it is.
    pub fn status(&self) -> Status {
        let Shared { command, started, ready, pool, ranges, domain, .. } = &*self.shared;
        Status {
            name: std::process::id().to_string(),
            command: (*command).to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: ready.get().is_some(),
            seconds: started.elapsed().as_secs_f64(),
            ranges: ranges.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            domain: domain.get().cloned(),
            tunnels: pool.get().map(Pool::status).unwrap_or_default().into_iter().map(Tunnel::from).collect(),
        }
    }

    async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(self.status()),
            Request::Dns { name, kind } => match self.shared.explain.get() {
                Some(explain) => explain(name, kind).await.map_or_else(Answer::Error, Answer::Dns),
                None => Answer::Error("it leaves names alone".to_owned()),
            },
            Request::Quit => Answer::Ending,
        }
    }
}

impl Status {
    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let state = if self.ready { "ready" } else { "starting" };
        let age = Duration::from_secs(self.seconds as u64);
        let first =
            format!("session {}: kshuttle {}, {state}, for {} s", self.name, self.command, age.as_secs());
        std::iter::once(first)
            .chain(self.tunnels.iter().map(|tunnel| format!("  {}", tunnel.words)))
            .collect()
    }
}

impl From<TunnelStatus> for Tunnel {
    fn from(status: TunnelStatus) -> Self {
        let state = match (&status.down_for, status.up) {
            (_, true) => "up",
            (Some(_), false) => "down",
            (None, false) => "starting",
        };
        let link = status.link.as_ref().filter(|link| !matches!(link.phase, Phase::Ended(_)));
        Self {
            words: status.to_string(),
            number: status.number,
            state: state.to_owned(),
            resumable: status.link.is_some(),
            connections: status.flows,
            down_seconds: status.down_for.map(|down| down.as_secs_f64()),
            losses_survived: status.survived,
            rtt_ms: link.and_then(|link| link.rtt).map(|rtt| rtt.as_secs_f64() * 1e3),
            bytes_per_second: status.pacing.map(|path| path.rate),
            budget_bytes: status.pacing.map(|path| path.budget),
            in_flight_bytes: link.map(|link| link.in_flight),
            replay_buffer_bytes: link.map(|link| link.replay_buffer),
            way: status.way,
            last_error: status.last_error,
        }
    }
}
