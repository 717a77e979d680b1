//! DNS for this machine: a stub that sends each question where its name belongs.
//!
//! ```text
//!  a program ── front (UDP, TCP) ── zone: whose name?
//!                                     ├─ the cluster's ── cache ── remote ── tunnel ──▶ the cluster's DNS
//!                                     │     └─ "no such name", and it was only perhaps the cluster's ─┐
//!                                     └─ not the cluster's ── upstream ◀──────────────────────────────┘
//!                                          byte for byte, through sockets that are not redirected ──▶ the system's servers
//! ```
//!
//! How questions get to the fronts is not known here, nor what the tunnel is made of. `docs/dns.md` tells users about it.

mod answer;
mod cache;
mod explain;
mod framed;
mod front;
mod message;
pub mod probe;
mod remote;
mod sockets;
pub mod system;
mod upstream;
pub mod zone;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Semaphore, broadcast, watch};

use self::cache::Cache;
pub use self::explain::{ExplainError, Explanation};
use self::remote::Remote;
pub use self::sockets::{Ordinary, OrdinaryUdp, Sockets};
use self::upstream::Relay;
use self::zone::Zones;
use crate::tunnel::Connect;

/// Every question is answered within this, if only by SERVFAIL, and the answer is there within 3 s: programs ask again after
/// 5 s, and some (resolved) hang for 20 s when nobody answers.
const LIMIT: Duration = Duration::from_millis(2_800);

/// Questions under way at one time, of all fronts. Each may hold a descriptor; 1,024 is what a process usually gets.
const UNDER_WAY_MAX: usize = 512;

/// TCP clients at one time, of all fronts; one more waits to be accepted. They are few: most come for one large answer.
const CLIENTS_MAX: usize = 128;

/// Check questions that nobody has looked at yet.
const CANARIES_MAX: usize = 64;

/// What a stub works with.
pub struct Settings<C, S> {
    /// The way into the cluster.
    pub tunnel: C,
    /// Whether there is one now. While not, questions that only the cluster can answer fail at once.
    pub up: watch::Receiver<bool>,
    /// What is known about the cluster.
    pub zones: watch::Receiver<Zones>,
    /// The way to the system's own servers.
    pub sockets: S,
}

/// Where questions come in: both sockets are bound, to loopback.
pub struct Front {
    /// For UDP.
    pub datagrams: UdpSocket,
    /// For TCP.
    pub connections: TcpListener,
    /// Where names that are not the cluster's are asked.
    pub upstream: Upstream,
}

/// The system's own servers.
#[derive(Debug, Clone)]
pub enum Upstream {
    /// These, in this order; the list may change.
    Servers(watch::Receiver<Vec<SocketAddr>>),
    /// The one that the front stands for.
    Server(SocketAddr),
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a connection.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// A check question came: `NONCE.LABEL.kshuttle-check.DOMAIN`, or with `svc`; see [`zone::Zones::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The first label, in small letters.
    pub nonce: String,
    /// How it came.
    pub transport: Transport,
    /// The front's address.
    pub at: SocketAddr,
}

/// A stub; clones are the same one.
pub struct Stub<C, S>(Arc<Shared<C, S>>);

impl<C, S> Clone for Stub<C, S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<C, S> {
    tunnel: C,
    up: watch::Receiver<bool>,
    zones: watch::Receiver<Zones>,
    relay: Relay<S>,
    cache: Mutex<Cache>,
    /// By the servers that each asks.
    remotes: Mutex<HashMap<Vec<SocketAddr>, Arc<Remote>>>,
    room: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    looped: watch::Sender<u64>,
    canaries: broadcast::Sender<Canary>,
}

impl<C: Connect, S: Sockets> Stub<C, S> {
    /// A stub without a front.
    pub fn new(settings: Settings<C, S>) -> Self {
        let Settings { tunnel, up, zones, sockets } = settings;
        Self(Arc::new(Shared {
            tunnel,
            up,
            zones,
            relay: Relay::new(sockets),
            cache: Mutex::default(),
            remotes: Mutex::default(),
            room: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            looped: watch::Sender::new(0),
            canaries: broadcast::Sender::new(CANARIES_MAX),
        }))
    }

    /// Serves a front, for ever. Dropping this ends what is under way there.
    pub async fn serve(&self, front: Front) {
        front::serve(self, front).await;
    }

    /// How many questions of our own came back to us. Any is too many: something redirects what must not be, and the
    /// redirection has to go.
    pub fn looped(&self) -> watch::Receiver<u64> {
        self.0.looped.subscribe()
    }

    /// Check questions that come from now on.
    pub fn canaries(&self) -> broadcast::Receiver<Canary> {
        self.0.canaries.subscribe()
    }

    /// Waits until no question is under way; within 3 s, if no new ones come.
    pub async fn quiet(&self) {
        let all = u32::try_from(UNDER_WAY_MAX).unwrap_or(u32::MAX);
        drop(self.0.room.acquire_many(all).await); // is never closed
    }

    /// Who asks these servers. There are as many lists of servers as the user named, and those of the cluster.
    fn remote(&self, servers: &[SocketAddr]) -> Arc<Remote> {
        // A panic while holding the lock cannot leave the map half changed.
        let mut remotes = self.0.remotes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = remotes.get(servers) {
            return remote.clone();
        }
        let remote = Arc::new(Remote::start(self.0.tunnel.clone(), servers.to_vec()));
        remotes.insert(servers.to_vec(), remote.clone());
        remote
    }
}

#[cfg(test)]
mod tests;
