//! Accepts connections on the pod's loopback and serves SSH to the one key.
//!
//! A connection's first byte says what it is: plain SSH, or one of the connections that carry a link
//! ([`kshuttle_wire::link`]), in which SSH runs and survives them. Until it has logged in, or is attached to a link, it is
//! a visitor ([`crate::door`]), and not for longer than [`LOGIN_TIME`]. What a client may do is in [`crate::login`].

use std::borrow::Cow;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kshuttle_wire::link::server::Links;
use kshuttle_wire::link::{Limits, LinkStream, hello};
use kshuttle_wire::pacing::{Pacer, Policy};
use kshuttle_wire::{ssh, write_queue};
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::{MethodKind, MethodSet, SshId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::door::{Door, Entrance, Visitor};
use crate::idle::Presence;
use crate::login::Login;
use crate::settings::Settings;

/// Time to log in, from the connection on. A port-forward over a slow line needs six round trips.
pub const LOGIN_TIME: Duration = Duration::from_secs(10);

/// Time for a connection's first byte. Both ends of SSH speak unasked (RFC 4253 §4.2), but a client may wait for the
/// server's identification: then it gets it after this. A link's greeting comes one round trip after the connection.
const FIRST_BYTE_TIME: Duration = Duration::from_secs(5);

/// Pause after a failed `accept`, so that running out of descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server, bound but not yet serving.
pub struct Server {
    listener: TcpListener,
    host_key: PublicKey,
    service: Service,
    idle: Duration,
}

/// What a connection is served with.
#[derive(Clone)]
struct Service {
    plain: Arc<russh::server::Config>,
    over_link: Arc<russh::server::Config>,
    links: Links,
    authorized_key: PublicKey,
    presence: Presence,
    door: Door,
}

/// The server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken or not permitted.
    #[error("listen on 127.0.0.1:{port}")]
    Listen {
        /// The port asked for.
        port: u16,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// No randomness, or none good enough.
    #[error("make the host key")]
    HostKey(#[source] russh::keys::ssh_key::Error),
}

impl Server {
    /// Makes a host key that never leaves memory, and listens.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(settings: Settings) -> Result<Self, StartError> {
        let host_key = host_key()?;
        let public = host_key.public_key().clone();
        let service = Service {
            plain: Arc::new(config(host_key.clone())),
            over_link: Arc::new(config_over_link(host_key)),
            links: Links::new(limits(settings.idle)),
            authorized_key: settings.authorized_key,
            presence: Presence::default(),
            door: Door::default(),
        };
        let port = settings.port;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|source| StartError::Listen { port, source })?;
        Ok(Self { listener, host_key: public, service, idle: settings.idle })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What it will show its clients.
    pub fn host_key(&self) -> &PublicKey {
        &self.host_key
    }

    /// Its links, to tell their clients when the process leaves.
    pub fn links(&self) -> Links {
        self.service.links.clone()
    }

    /// Serves until nobody has been logged in for the idle time.
    pub async fn run(self) {
        let serve = async {
            loop {
                self.service.door.room().await;
                match self.listener.accept().await {
                    Ok((socket, _)) => {
                        let _ = socket.set_nodelay(true); // an optimisation
                        let service = self.service.clone();
                        let visitor = Arc::new(service.door.enter());
                        tokio::spawn(service.serve(socket, visitor));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = serve => {}
            () = self.service.presence.abandoned(self.idle) => tracing::info!("nobody is logged in any more"),
        }
    }
}

impl Service {
    async fn serve(self, socket: TcpStream, visitor: Arc<Visitor>) {
        let deadline = Instant::now() + LOGIN_TIME;
        let mut first = [0];
        let seen = tokio::select! {
            seen = tokio::time::timeout(FIRST_BYTE_TIME, socket.peek(&mut first)) => seen,
            () = visitor.turned_away() => return,
        };
        match seen {
            Ok(Ok(1)) if first[0] == hello::MAGIC[0] => {
                self.serve_connection(socket, visitor, deadline).await
            }
            Ok(Err(error)) => tracing::debug!(%error, "connection ended at once"),
            Ok(Ok(0)) => tracing::debug!("connection ended at once"),
            Ok(Ok(_)) | Err(_) => {
                let stream = write_queue::decouple(Entrance::new(socket, visitor.clone()));
                let login = Login::new(self.authorized_key, self.presence, visitor.clone(), None);
                serve_ssh(self.plain, stream, login, visitor, deadline).await;
            }
        }
    }

    /// One of a link's connections. It is a visitor until the first answer to it: then its greeting was understood.
    async fn serve_connection(self, socket: TcpStream, visitor: Arc<Visitor>, deadline: Instant) {
        let links = self.links.clone();
        let connection = Entrance::until_answered(socket, visitor.clone());
        let served = links.serve(connection, |stream| self.start_link(stream, deadline));
        match within(served, visitor, deadline).await {
            Ok(why) => tracing::debug!(%why, "connection of a link ended"),
            Err(error) => tracing::debug!(%error, "connection not attached to a link"),
        }
    }

    /// SSH over a new link; it outlives the connection that brought it.
    fn start_link(self, stream: LinkStream, deadline: Instant) {
        let visitor = Arc::new(self.door.enter());
        let parts = (self.over_link, self.authorized_key, self.presence);
        tokio::spawn(serve_new_link(parts, stream, visitor, deadline));
    }
}

/// Runs to the end; when the deadline comes first, the visitor is turned away and it ends by that.
async fn within<T>(served: impl Future<Output = T>, visitor: Arc<Visitor>, deadline: Instant) -> T {
    let mut served = std::pin::pin!(served);
    tokio::select! {
        end = &mut served => return end,
        () = tokio::time::sleep_until(deadline) => visitor.turn_away("nobody logged in in time"),
    }
    served.await
}

/// A link without a connection counts as a client, but no longer than a pod without a client is wanted at all.
fn limits(idle: Duration) -> Limits {
    let limits = Limits::default();
    Limits { keep: limits.keep.min(idle), ..limits }
}

/// A new Ed25519 host key.
///
/// # Errors
/// When the system gives no randomness.
pub fn host_key() -> Result<PrivateKey, StartError> {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(StartError::HostKey)
}

/// SSH settings of the server.
pub fn config(host_key: PrivateKey) -> russh::server::Config {
    russh::server::Config {
        server_id: SshId::Standard(Cow::Borrowed(ssh::SERVER_ID)),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // Guessing an Ed25519 key is hopeless at any speed; waiting would only delay a stock client's probes.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 6, // OpenSSH's MaxAuthTries: clients offer the keys of their agent one by one
        keys: vec![host_key],
        limits: ssh::limits(),
        window_size: ssh::WINDOW,
        maximum_packet_size: ssh::MAX_PACKET,
        channel_buffer_size: ssh::CHANNEL_BUFFER,
        preferred: ssh::preferred(),
        inactivity_timeout: None, // keep-alives find dead peers; an idle session is a session
        keepalive_interval: Some(ssh::KEEPALIVE_INTERVAL),
        keepalive_max: ssh::KEEPALIVE_MAX,
        ..Default::default()
    }
}

/// The same over a link, which knows by itself whether its peer is there: keep-alives would end a session that its link
/// still holds.
pub fn config_over_link(host_key: PrivateKey) -> russh::server::Config {
    russh::server::Config {
        keepalive_interval: None,
        window_size: ssh::LINK_WINDOW,
        channel_buffer_size: ssh::LINK_CHANNEL_BUFFER,
        ..config(host_key)
    }
}

/// Serves one link to its end.
pub async fn serve_link(
    config: Arc<russh::server::Config>,
    stream: LinkStream,
    authorized_key: PublicKey,
    presence: Presence,
) {
    let visitor = Arc::new(Door::default().enter());
    serve_new_link((config, authorized_key, presence), stream, visitor, Instant::now() + LOGIN_TIME).await;
}

async fn serve_new_link(
    (config, authorized_key, presence): (Arc<russh::server::Config>, PublicKey, Presence),
    stream: LinkStream,
    visitor: Arc<Visitor>,
    deadline: Instant,
) {
    let pacer = Pacer::new(Policy::Auto);
    stream.observe(pacer.clone());
    let login = Login::new(authorized_key, presence, visitor.clone(), Some(pacer));
    serve_ssh(config, Entrance::new(stream, visitor.clone()), login, visitor, deadline).await;
}

/// `stream` must take writes without waiting, see [`write_queue`], and end when the visitor is turned away: russh runs a
/// session in a task of its own, which dropping a future does not end.
async fn serve_ssh<S>(
    config: Arc<russh::server::Config>,
    stream: S,
    login: Login,
    visitor: Arc<Visitor>,
    deadline: Instant,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session = async { russh::server::run_stream(config, stream, login).await?.await };
    if let Err(error) = within(session, visitor, deadline).await {
        tracing::debug!(%error, "session ended");
    }
}
