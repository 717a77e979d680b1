//! One SSH session with a pod, and the flows in it: over a link, over a bare stream, or (the lesser mode) with a server that
//! is not ours, where each flow is a channel.

mod resolver_file;

use std::sync::Arc;
use std::time::Duration;

use kshuttle_wire::flow::Flow;
use kshuttle_wire::flow::channel::Channels;
use kshuttle_wire::flow::client::{FlowClient, OpenError};
use kshuttle_wire::flow::udp::DatagramFlow;
use kshuttle_wire::link::LinkStream;
use kshuttle_wire::pacing::{Figures, Pacer, Policy};
use kshuttle_wire::{ssh, write_queue};
use russh::client::{self, DisconnectReason, Handle};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Disconnect, Preferred, SshId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

pub use self::resolver_file::ResolverFileError;
use super::ByteStream;
use super::ident::Greeted;
use super::identity::{HostKey, Identity};
use super::{Connect, ConnectError};
use crate::addr::Target;

/// Time for key exchange, login and the flows channel: six round trips and two key operations, also over a bad line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// User name sent to our own server, which looks at the key only.
pub const USER: &str = "kshuttle";

/// Time for a sign of life when something happened to the path. Behind a deep queue on a slow line an answer takes seconds.
const PROBE_TIME: Duration = Duration::from_secs(10);

/// What an originator is called (RFC 4254 §7.2): servers log it, nobody uses it.
const ORIGINATOR: (&str, u32) = ("127.0.0.1", 0);

/// An open session. Cheap to clone; ends when [`close`](Self::close)d or with its stream.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle<Peer>>,
    flows: Flows,
    pacer: Option<Arc<Pacer>>,
    ended: CancellationToken,
}

/// What carries the flows.
#[derive(Clone)]
enum Flows {
    Streams(FlowClient),
    Channels(Channels),
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream ended or the two ends share no algorithm.
    #[error("set up SSH with the pod")]
    Handshake(#[source] russh::Error),
    /// Another key than at the first connection, or than the user says: this is not the pod we mean.
    #[error("the pod shows another host key than before")]
    HostKey,
    /// The pod does not accept our key.
    #[error("the pod refused our key")]
    KeyRefused,
    /// The server is no server of ours, or a newer one.
    #[error("the pod's SSH server does not offer `{}`", ssh::FLOWS_SUBSYSTEM)]
    NoFlows,
    /// HTTP/2 did not start.
    #[error("start flows in the SSH session")]
    Flows(#[source] OpenError),
    /// Too slow or silent.
    #[error("no complete SSH handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
}

impl Session {
    /// Logs in over `stream` and starts flows.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn start<S>(stream: S, identity: &Identity, host_key: &HostKey) -> Result<Self, SessionError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let stream = write_queue::decouple(stream);
        let handshake = Self::handshake(config(), stream, identity, host_key, None);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(SessionError::Timeout))
    }

    /// The same over a link, which is its own write queue, and knows by itself whether the pod is there: keep-alives
    /// would end a session that its link still holds. Its flows are paced by `policy`, both ways.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn start_on_link(
        stream: LinkStream,
        identity: &Identity,
        host_key: &HostKey,
        policy: Policy,
    ) -> Result<Self, SessionError> {
        let config = client::Config {
            keepalive_interval: None,
            window_size: ssh::LINK_WINDOW,
            channel_buffer_size: ssh::LINK_CHANNEL_BUFFER,
            ..config()
        };
        let pacer = Pacer::new(policy);
        stream.observe(pacer.clone());
        let handshake = Self::handshake(config, stream, identity, host_key, Some((pacer, policy)));
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(SessionError::Timeout))
    }

    /// Logs in to a server that is not ours, as `user`.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub(super) async fn start_stock(
        stream: Greeted<Box<dyn ByteStream>>,
        user: &str,
        identity: &Identity,
        host_key: &HostKey,
    ) -> Result<Self, SessionError> {
        let config = client::Config {
            client_id: SshId::Standard(ssh::CLIENT_ID.into()),
            window_size: ssh::STOCK_WINDOW,
            limits: ssh::stock_limits(),
            preferred: host_key
                .algorithms()
                .map_or_else(ssh::preferred, |key| Preferred { key, ..ssh::preferred() }),
            ..config()
        };
        let (stream, backlog) = write_queue::decouple_counted(stream);
        let ended = CancellationToken::new();
        let login = Self::login(config, stream, user, identity, host_key, &ended);
        let handle =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, login).await.unwrap_or(Err(SessionError::Timeout))?;
        let flows = Flows::Channels(Channels::new(ended.clone(), backlog));
        Ok(Self { handle: Arc::new(handle), flows, pacer: None, ended })
    }

    /// `stream` must take writes without waiting, see [`write_queue`].
    async fn login<S>(
        config: client::Config,
        stream: S,
        user: &str,
        identity: &Identity,
        host_key: &HostKey,
        ended: &CancellationToken,
    ) -> Result<Handle<Peer>, SessionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = Peer { host_key: host_key.clone(), ended: ended.clone() };
        let mut handle =
            client::connect_stream(Arc::new(config), stream, peer).await.map_err(|error| match error {
                russh::Error::UnknownKey => SessionError::HostKey,
                error => SessionError::Handshake(error),
            })?;
        let key = PrivateKeyWithHashAlg::new(identity.private_key(), None);
        let login = handle.authenticate_publickey(user, key).await.map_err(SessionError::Handshake)?;
        if !login.success() {
            return Err(SessionError::KeyRefused);
        }
        Ok(handle)
    }

    /// `stream` must take writes without waiting, see [`write_queue`].
    async fn handshake<S>(
        config: client::Config,
        stream: S,
        identity: &Identity,
        host_key: &HostKey,
        pacing: Option<(Arc<Pacer>, Policy)>,
    ) -> Result<Self, SessionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ended = CancellationToken::new();
        let handle = Self::login(config, stream, USER, identity, host_key, &ended).await?;
        let mut channel = handle.channel_open_session().await.map_err(SessionError::Handshake)?;
        if let Some((_, policy)) = pacing.as_ref().filter(|(_, policy)| *policy != Policy::Auto) {
            let policy = policy.to_string();
            channel.set_env(false, ssh::PACING_VARIABLE, policy).await.map_err(SessionError::Handshake)?;
        }
        channel.request_subsystem(true, ssh::FLOWS_SUBSYSTEM).await.map_err(SessionError::Handshake)?;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => break,
                Some(ChannelMsg::WindowAdjusted { .. }) => {}
                _ => return Err(SessionError::NoFlows),
            }
        }
        let pacer = pacing.map(|(pacer, _)| pacer);
        let flows = FlowClient::start_paced(channel.into_stream(), pacer.clone())
            .await
            .map_err(SessionError::Flows)?;
        Ok(Self { handle: Arc::new(handle), flows: Flows::Streams(flows), pacer, ended })
    }

    /// Returns when the session has ended, whoever ended it. Its flows have then been reset.
    pub async fn ended(&self) {
        let flows = async {
            match &self.flows {
                Flows::Streams(flows) => flows.closed().cancelled().await,
                Flows::Channels(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = flows => {}
        }
    }

    /// Whether the session has ended.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Says goodbye; the pod resets what is still open.
    pub async fn close(&self) {
        // Fails when the session is over already.
        let _ = self.handle.disconnect(Disconnect::ByApplication, "", "").await;
        self.abandon();
    }

    /// Resets flows that are channels, at once; the session ends when nobody holds it any more. Flows of other sessions end
    /// with their stream.
    pub(super) fn abandon(&self) {
        if let Flows::Channels(_) = self.flows {
            self.ended.cancel();
        }
    }

    /// Asks for a connection to `target`; see [`Connect::connect`].
    ///
    /// # Errors
    /// When the session has ended.
    pub async fn open(&self, target: &Target) -> Result<Flow, OpenError> {
        match &self.flows {
            Flows::Streams(flows) => flows.open(&target.to_string()).await,
            Flows::Channels(_) if self.ended.is_cancelled() => Err(OpenError::Ended),
            Flows::Channels(channels) => {
                let handle = self.handle.clone();
                let (host, port) = target.host_and_port();
                Ok(channels.open(async move {
                    let (from, from_port) = ORIGINATOR;
                    handle.channel_open_direct_tcpip(host, port.into(), from, from_port).await
                }))
            }
        }
    }

    /// Asks for a UDP flow to `target`; see [`Connect::connect_udp`].
    ///
    /// # Errors
    /// When the session has ended, or its server carries no UDP.
    pub async fn open_udp(&self, target: &Target) -> Result<DatagramFlow, OpenError> {
        match &self.flows {
            Flows::Streams(flows) => {
                let (host, port) = target.host_and_port();
                flows.open_udp(&host, port).await
            }
            Flows::Channels(_) => Err(OpenError::OnlyTcp),
        }
    }

    /// Returns when the server has answered a question, or the session has ended.
    pub async fn answers(&self) {
        // Fails when the session is over already; who waits for that finds out.
        let _ = self.handle.send_ping().await;
    }

    /// Asks for a sign of life, where no link does that; without one the session ends.
    pub(super) fn probe(&self) {
        let Flows::Channels(_) = self.flows else { return };
        let session = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = session.ended() => {}
                answer = tokio::time::timeout(PROBE_TIME, session.answers()) => if answer.is_err() {
                    tracing::debug!("no sign of life");
                    session.abandon();
                },
            }
        });
    }

    /// The channels, where flows are such.
    pub(super) fn channels(&self) -> Option<&Channels> {
        match &self.flows {
            Flows::Streams(_) => None,
            Flows::Channels(channels) => Some(channels),
        }
    }

    /// What was learned about the path, over a link.
    pub fn pacing(&self) -> Option<Figures> {
        self.pacer.as_ref().map(|pacer| pacer.figures())
    }

    /// Flows that are open now.
    pub fn open_flows(&self) -> usize {
        match &self.flows {
            Flows::Streams(flows) => flows.open_flows(),
            Flows::Channels(channels) => channels.count(),
        }
    }
}

impl Connect for Session {
    async fn connect(&self, target: &Target) -> Result<Flow, ConnectError> {
        Ok(self.open(target).await?)
    }

    async fn connect_udp(&self, target: &Target) -> Result<DatagramFlow, ConnectError> {
        Ok(self.open_udp(target).await?)
    }
}

fn config() -> client::Config {
    client::Config {
        limits: ssh::limits(),
        window_size: ssh::WINDOW,
        maximum_packet_size: ssh::MAX_PACKET,
        channel_buffer_size: ssh::CHANNEL_BUFFER,
        preferred: ssh::preferred(),
        inactivity_timeout: None, // keep-alives find a dead peer; an idle session is a session
        keepalive_interval: Some(ssh::KEEPALIVE_INTERVAL),
        keepalive_max: ssh::KEEPALIVE_MAX,
        ..Default::default()
    }
}

/// The pod as russh asks about it.
struct Peer {
    host_key: HostKey,
    ended: CancellationToken,
}

impl client::Handler for Peer {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.host_key.accepts(key),
            PublicKeyOrCertificate::Certificate(_) => false, // our server has none
        })
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Self::Error>) -> Result<(), Self::Error> {
        tracing::debug!(?reason, "SSH session ended");
        self.ended.cancel();
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.ended.cancel(); // also when russh's task ended without saying so
    }
}
