//! Several tunnels to one pod: where a new flow goes, and what it does while there is none.
//!
//! ```text
//!  Route (how to reach the pod) ─▶ slot 0: link + session ─┐
//!                               └▶ slot 1: link + session ─┴─▶ Pool::connect: the least loaded that is attached
//! ```
//!
//! A slot (`slot.rs`) keeps its link attached to byte streams, one after the other (`linked.rs`); the session over it does
//! not notice. Only when the link itself is lost does the session end, with every flow of it; then the slot makes both
//! anew. Towards SSH servers that are not ours there is no link (`stock.rs`). Nothing here knows what the byte streams are
//! made of.

mod linked;
mod load;
mod slot;
mod standstill;
mod status;
mod stock;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use kshuttle_wire::causes::chain;
use kshuttle_wire::flow::Flow;
use kshuttle_wire::flow::client::OpenError;
use kshuttle_wire::flow::udp::DatagramFlow;
use kshuttle_wire::link::sleep::Sleeps;
use kshuttle_wire::pacing::Policy;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::slot::Slot;
pub use self::status::TunnelStatus;
use super::identity::{HostKey, Identity};
use super::network::Changes;
use super::ssh::{ResolverFileError, Session};
use super::{ByteStream, Connect, ConnectError};
use crate::addr::Target;

/// Tunnels to a pod. Two: a path that fails leaves the other one, and the planned renewal of one disturbs nobody.
pub const TUNNELS: u8 = 2;

/// How long a new connection waits for a tunnel. Long enough for an API server's restart or a new pod, shorter than
/// the time most applications wait for an answer.
pub const HOLD: Duration = Duration::from_secs(30);

/// Age at which a byte stream is replaced by a fresh one, if nothing else is said: load balancers in front of API
/// servers commonly cut connections after an hour.
pub const LIFETIME: Duration = Duration::from_secs(50 * 60);

/// How much may be under way in each direction of a tunnel, if nothing else is said: what the path is measured to hold
/// (`docs/pacing.md`).
pub const PACING: Policy = Policy::Auto;

/// How to reach one pod. A clone is the same route.
#[derive(Clone)]
pub struct Route {
    /// The pod, as people call it.
    pub name: String,
    /// Opens a byte stream to its server.
    pub dial: Arc<dyn Fn() -> BoxFuture<'static, Result<Dialed, DialError>> + Send + Sync>,
    /// Who we are.
    pub identity: Identity,
    /// As whom we log in; our own server does not care.
    pub user: String,
    /// Who the pod is, pinned by the first session.
    pub host_key: HostKey,
    /// Whether the server is known to be ours. Else it is asked, and one that is not gets plain SSH: connections that do not
    /// outlive their byte stream.
    pub ours: bool,
}

/// A fresh byte stream.
pub struct Dialed {
    /// The stream.
    pub stream: Box<dyn ByteStream>,
    /// What it is made of, for people.
    pub way: String,
}

/// Why there is no byte stream, or no session over it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("open a tunnel to the pod")]
pub struct DialError {
    /// Its cause.
    #[source]
    pub cause: Arc<dyn Error + Send + Sync>,
    /// Whether trying again cannot help unless somebody else acts: a right is missing, the pod is gone.
    pub lasting: bool,
}

/// Settings of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How many tunnels.
    pub tunnels: u8,
    /// Age at which a byte stream is replaced.
    pub lifetime: Duration,
    /// How much may be under way.
    pub pacing: Policy,
}

impl Default for Settings {
    fn default() -> Self {
        Self { tunnels: TUNNELS, lifetime: LIFETIME, pacing: PACING }
    }
}

/// The tunnels. Cheap to clone; they end when the last clone is dropped.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    _tasks: Arc<JoinSet<()>>,
}

struct Shared {
    settings: Settings,
    route: watch::Sender<Option<Route>>,
    slots: Vec<Slot>,
    /// Told whenever a slot's state changes.
    changed: watch::Sender<()>,
    /// Whether a slot is up, as [`watch_up`] found it last.
    up: watch::Sender<bool>,
    /// Told when this machine's network changed.
    network: watch::Sender<()>,
    /// Told when the end is wanted; what is lost then is no news.
    closing: AtomicBool,
}

impl DialError {
    /// One that may not come again.
    pub fn passing(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: cause.into().into(), lasting: false }
    }

    /// One that lasts until somebody acts.
    pub fn lasting(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { lasting: true, ..Self::passing(cause) }
    }

    /// The causes in one line, for the log.
    fn words(&self) -> String {
        chain(&*self.cause)
    }
}

impl Shared {
    /// Forgets the slot's link and session; what still uses them gets errors.
    fn clear(&self, slot: &Slot) {
        slot.clear();
        self.changed.send_replace(());
    }

    /// Waits for `pause`, or for a change of the network: then trying at once is worth it.
    async fn pause(&self, pause: Option<Duration>) {
        let mut network = self.network.subscribe();
        // Either end will do.
        let _ = tokio::time::timeout(pause.unwrap_or_default(), network.changed()).await;
    }
}

impl Pool {
    /// Starts without a route: connections are held until [`lead`](Self::lead) gives one.
    pub fn start(settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            settings,
            route: watch::Sender::new(None),
            slots: (0..settings.tunnels.into()).map(Slot::new).collect(),
            changed: watch::Sender::new(()),
            up: watch::Sender::new(false),
            network: watch::Sender::new(()),
            closing: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        for index in 0..settings.tunnels.into() {
            tasks.spawn(slot::run(shared.clone(), index));
        }
        tasks.spawn(watch_up(shared.clone()));
        tasks.spawn(watch_network(shared.clone()));
        tasks.spawn(watch_sleep(shared.clone()));
        Self { shared, _tasks: Arc::new(tasks) }
    }

    /// Leads all tunnels to another pod, or to none. Flows to the pod before are reset at once.
    pub fn lead(&self, route: Option<Route>) {
        self.shared.route.send_modify(|led| {
            *led = route;
            // Before anybody sees the new route: whoever waits for it must not take the old one's state for its own, and
            // what its tunnels have made already must not be forgotten.
            self.shared.slots.iter().for_each(Slot::forget);
        });
        self.shared.changed.send_replace(());
    }

    /// Waits for the first tunnel of the present route, at most `limit`.
    ///
    /// # Errors
    /// The last attempt's error, at once if trying again cannot help.
    pub async fn first_up(&self, limit: Duration) -> Result<String, DialError> {
        let mut changed = self.shared.changed.subscribe();
        let deadline = Instant::now() + limit;
        loop {
            changed.borrow_and_update();
            if let Some(way) = self.shared.slots.iter().find_map(Slot::way) {
                return Ok(way);
            }
            let error = self.shared.slots.iter().find_map(Slot::last_error);
            if let Some(error) = error.as_ref().filter(|error| error.lasting) {
                return Err(error.clone());
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                let silence = || DialError::passing(format!("no answer within {} s", limit.as_secs()));
                return Err(error.unwrap_or_else(silence));
            }
        }
    }

    /// Waits until no tunnel is up, and nothing will change that unless somebody acts; why.
    pub async fn lost(&self) -> DialError {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let up = self.shared.slots.iter().any(|slot| slot.status().up);
            let lasting = self.shared.slots.iter().filter_map(Slot::last_error).find(|error| error.lasting);
            match lasting {
                Some(error) if !up => return error,
                _ => {}
            }
            // The sender lives in `self`, so waiting cannot fail.
            let _ = changed.changed().await;
        }
    }

    /// The pod's `/etc/resolv.conf`.
    ///
    /// # Errors
    /// When no tunnel is up, or the server does not tell.
    pub async fn resolver_file(&self) -> Result<Vec<u8>, ResolverFileError> {
        self.best().ok_or(ResolverFileError::NoTunnel)?.resolver_file().await
    }

    /// Whether new connections find a tunnel, and each change of that.
    pub fn is_up(&self) -> watch::Receiver<bool> {
        self.shared.up.subscribe()
    }

    /// The state of each tunnel.
    pub fn status(&self) -> Vec<TunnelStatus> {
        self.shared.slots.iter().map(Slot::status).collect()
    }

    /// Ends all tunnels orderly: the pod learns of it at once. Flows are reset.
    pub async fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        for slot in &self.shared.slots {
            slot.close().await;
        }
        self.lead(None);
    }

    /// Opens a flow through the best tunnel; while there is none, waits for one.
    async fn open<T, F>(&self, through: impl Fn(Session) -> F) -> Result<T, ConnectError>
    where
        F: Future<Output = Result<T, OpenError>>,
    {
        let mut changed = self.shared.changed.subscribe();
        let deadline = Instant::now() + HOLD;
        loop {
            changed.borrow_and_update();
            if let Some(session) = self.best() {
                match through(session).await {
                    // It ended while we asked; its slot learns of it now.
                    Err(OpenError::Closed(_) | OpenError::Ended) if Instant::now() < deadline => {}
                    answer => return Ok(answer?),
                }
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(ConnectError::NoTunnel);
            }
        }
    }

    /// The tunnel a new flow goes to: attached, not full, with the fewest bytes on their way, then the fewest flows.
    fn best(&self) -> Option<Session> {
        let ready = self.shared.slots.iter().filter_map(Slot::ready);
        ready.min_by_key(|(load, _)| *load).map(|(_, session)| session)
    }
}

impl Connect for Pool {
    async fn connect(&self, target: &Target) -> Result<Flow, ConnectError> {
        let opened = self.open(|session| async move { session.open(target).await }).await;
        if let Err(ConnectError::NoTunnel) = opened {
            tracing::warn!(%target, "connection reset: no tunnel within {} s", HOLD.as_secs());
        }
        opened
    }

    async fn connect_udp(&self, target: &Target) -> Result<DatagramFlow, ConnectError> {
        self.open(|session| async move { session.open_udp(target).await }).await
    }
}

async fn watch_up(shared: Arc<Shared>) {
    let mut changed = shared.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let up = shared.slots.iter().any(|slot| slot.status().up);
        shared.up.send_if_modified(|before| std::mem::replace(before, up) != up);
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = changed.changed().await;
    }
}

async fn watch_network(shared: Arc<Shared>) {
    let changes = match Changes::listen() {
        Ok(changes) => changes,
        Err(error) => return tracing::info!(%error, "changes of the network are not told to us"),
    };
    while let Ok(()) = changes.next().await {
        tracing::debug!("the network changed");
        shared.network.send_replace(());
        for slot in &shared.slots {
            slot.probe();
        }
    }
}

async fn watch_sleep(shared: Arc<Shared>) {
    let mut sleeps = Sleeps::default();
    loop {
        let gap = sleeps.next().await;
        tracing::debug!("the machine slept for {} s", gap.as_secs());
        shared.network.send_replace(());
        for slot in &shared.slots {
            slot.slept(gap);
        }
    }
}
