//! Accepts connections on the pod's loopback and serves SSH to the one key.
//!
//! A connection's first byte says what it is: plain SSH, or one of the connections that carry a link
//! ([`kshuttle_wire::link`]), in which SSH runs and survives them.

use std::borrow::Cow;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kshuttle_wire::link::server::Links;
use kshuttle_wire::link::{Limits, LinkStream, hello};
use kshuttle_wire::pacing::{Pacer, Policy};
use kshuttle_wire::{flow, ssh, write_queue};
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, MethodKind, MethodSet, SshId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::direct;
use crate::idle::{Presence, Present};
use crate::settings::Settings;

/// Connections at once, logged in or not. A client keeps a few; the rest is room for one that comes back while its
/// dead sessions are not yet noticed.
const MAX_CONNECTIONS: usize = 64;

/// Channels a session may hold open: with their windows they bound its memory.
const MAX_CHANNELS: usize = 1_000;

/// Time to log in. A port-forward over a slow line needs three round trips and a key exchange.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for a connection's first byte. Both ends of SSH speak unasked (RFC 4253 §4.2), but a client may wait for the
/// server's identification: then it gets it after this. A link's greeting comes one round trip after the connection.
const FIRST_BYTE_TIME: Duration = Duration::from_secs(5);

/// Pause after a failed `accept`, so that running out of descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server, bound but not yet serving.
pub struct Server {
    listener: TcpListener,
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
        let service = Service {
            plain: Arc::new(config(host_key.clone())),
            over_link: Arc::new(config_over_link(host_key)),
            links: Links::new(limits(settings.idle)),
            authorized_key: settings.authorized_key,
            presence: Presence::default(),
        };
        let port = settings.port;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(|source| StartError::Listen { port, source })?;
        Ok(Self { listener, service, idle: settings.idle })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Its links, to tell their clients when the process leaves.
    pub fn links(&self) -> Links {
        self.service.links.clone()
    }

    /// Serves until nobody has been logged in for the idle time.
    pub async fn run(self) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let serve = async {
            loop {
                // A waiting client gets its turn when another leaves, rather than a refusal.
                let Ok(place) = room.clone().acquire_owned().await else { return };
                match self.listener.accept().await {
                    Ok((socket, _)) => {
                        let _ = socket.set_nodelay(true); // an optimisation
                        let service = self.service.clone();
                        tokio::spawn(async move {
                            service.serve(socket).await;
                            drop(place);
                        });
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
    async fn serve(self, socket: TcpStream) {
        let mut first = [0];
        let seen = tokio::time::timeout(FIRST_BYTE_TIME, socket.peek(&mut first)).await;
        match seen {
            Ok(Ok(1)) if first[0] == hello::MAGIC[0] => {
                let links = self.links.clone();
                match links.serve(socket, |stream| self.start_link(stream)).await {
                    Ok(why) => tracing::debug!(%why, "connection of a link ended"),
                    Err(error) => tracing::debug!(%error, "connection not attached to a link"),
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "connection ended at once"),
            _ => serve_stream(self.plain, socket, self.authorized_key, self.presence).await,
        }
    }

    /// SSH over a new link; it outlives the connection that brought it.
    fn start_link(self, stream: LinkStream) {
        tokio::spawn(serve_link(self.over_link, stream, self.authorized_key, self.presence));
    }
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
    russh::server::Config { keepalive_interval: None, window_size: ssh::LINK_WINDOW, ..config(host_key) }
}

/// Serves one connection with plain SSH to its end.
pub async fn serve_stream<S>(
    config: Arc<russh::server::Config>,
    stream: S,
    authorized_key: PublicKey,
    presence: Presence,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    serve_ssh(config, write_queue::decouple(stream), authorized_key, presence, None).await;
}

/// Serves one link to its end.
pub async fn serve_link(
    config: Arc<russh::server::Config>,
    stream: LinkStream,
    authorized_key: PublicKey,
    presence: Presence,
) {
    let pacer = Pacer::new(Policy::Auto);
    stream.observe(pacer.clone());
    serve_ssh(config, stream, authorized_key, presence, Some(pacer)).await;
}

/// `stream` must take writes without waiting, see [`write_queue`].
async fn serve_ssh<S>(
    config: Arc<russh::server::Config>,
    stream: S,
    authorized_key: PublicKey,
    presence: Presence,
    pacer: Option<Arc<Pacer>>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let logged_in = Arc::new(Notify::new());
    let handler = Login {
        authorized_key,
        presence,
        logged_in: logged_in.clone(),
        present: None,
        channels: vec![],
        room: Arc::new(Semaphore::new(MAX_CHANNELS)),
        pacer,
    };
    let too_late = async {
        tokio::select! {
            () = logged_in.notified() => std::future::pending().await,
            () = tokio::time::sleep(LOGIN_TIMEOUT) => {}
        }
    };
    let session = async { russh::server::run_stream(config, stream, handler).await?.await };
    tokio::select! {
        result = session => if let Err(error) = result {
            tracing::debug!(%error, "session ended");
        },
        () = too_late => tracing::debug!("nobody logged in in time"),
    }
}

/// One client's rights: with the right key flows and direct-tcpip, otherwise nothing.
struct Login {
    authorized_key: PublicKey,
    presence: Presence,
    logged_in: Arc<Notify>,
    present: Option<Present>,
    /// Session channels that no subsystem was asked for yet.
    channels: Vec<Channel<Msg>>,
    room: Arc<Semaphore>,
    /// Of the link, if there is one.
    pacer: Option<Arc<Pacer>>,
}

impl Login {
    fn knows(&self, key: &PublicKey) -> bool {
        key.key_data() == self.authorized_key.key_data() // the comment does not matter
    }
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.knows(offer.public_key) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(if self.knows(key.public_key) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Self::Error> {
        self.present = Some(self.presence.enter());
        self.logged_in.notify_one();
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // Dropping `reply` refuses the channel.
        if let Ok(place) = self.room.clone().try_acquire_owned() {
            let host = host.to_owned();
            tokio::spawn(async move {
                direct::serve(channel, reply, host, port).await;
                drop(place);
            });
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.len() < MAX_WAITING_CHANNELS {
            reply.accept().await;
            self.channels.push(channel);
        }
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let place = self.channels.iter().position(|channel| channel.id() == id);
        match place {
            Some(place) if name == ssh::FLOWS_SUBSYSTEM => {
                let channel = self.channels.swap_remove(place);
                session.channel_success(id)?;
                let pacer = self.pacer.clone();
                tokio::spawn(async move {
                    if let Err(error) = flow::server::serve_paced(channel.into_stream(), pacer).await {
                        tracing::debug!(%error, "flows ended");
                    }
                });
                Ok(())
            }
            _ => session.channel_failure(id),
        }
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match (&self.pacer, value.parse()) {
            (Some(pacer), Ok(policy)) if name == ssh::PACING_VARIABLE => {
                pacer.set_policy(policy);
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    // What a shell server would do: refused aloud, since the default is silence and a client that waits.

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn agent_request(&mut self, _: ChannelId, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(false)
    }
}

/// Session channels that may wait for their subsystem request; a client asks for it at once.
const MAX_WAITING_CHANNELS: usize = 8;
