//! One SSH session with our pod, and the flows in it.

use std::sync::Arc;
use std::time::Duration;

use kshuttle_wire::flow::Flow;
use kshuttle_wire::flow::client::{FlowClient, OpenError};
use kshuttle_wire::link::LinkStream;
use kshuttle_wire::pacing::{Figures, Pacer, Policy};
use kshuttle_wire::{ssh, write_queue};
use russh::client::{self, DisconnectReason, Handle};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::identity::{HostKey, Identity};
use super::{Connect, ConnectError};
use crate::addr::Target;

/// Time for key exchange, login and the flows channel: six round trips and two key operations, also over a bad line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// User name sent; the pod looks at the key only.
const USER: &str = "kshuttle";

/// An open session. Cheap to clone; ends when [`close`](Self::close)d or with its stream.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle<Peer>>,
    flows: FlowClient,
    pacer: Option<Arc<Pacer>>,
    ended: CancellationToken,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream ended or the two ends share no algorithm.
    #[error("set up SSH with the pod")]
    Handshake(#[source] russh::Error),
    /// Another key than at the first connection: this is not the pod we started.
    #[error("the pod shows another host key than before")]
    HostKey,
    /// The pod does not accept this run's key.
    #[error("the pod refused this session's key")]
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
        let config = client::Config { keepalive_interval: None, window_size: ssh::LINK_WINDOW, ..config() };
        let pacer = Pacer::new(policy);
        stream.observe(pacer.clone());
        let handshake = Self::handshake(config, stream, identity, host_key, Some((pacer, policy)));
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(SessionError::Timeout))
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
        let peer = Peer { host_key: host_key.clone(), ended: ended.clone() };
        let mut handle =
            client::connect_stream(Arc::new(config), stream, peer).await.map_err(|error| match error {
                russh::Error::UnknownKey => SessionError::HostKey,
                error => SessionError::Handshake(error),
            })?;
        let key = PrivateKeyWithHashAlg::new(identity.private_key(), None);
        let login = handle.authenticate_publickey(USER, key).await.map_err(SessionError::Handshake)?;
        if !login.success() {
            return Err(SessionError::KeyRefused);
        }
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
        Ok(Self { handle: Arc::new(handle), flows, pacer, ended })
    }

    /// Returns when the session has ended, whoever ended it. Its flows have then been reset.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = self.flows.closed().cancelled() => {}
        }
    }

    /// Says goodbye; the pod resets what is still open.
    pub async fn close(&self) {
        // Fails when the session is over already.
        let _ = self.handle.disconnect(Disconnect::ByApplication, "", "").await;
    }

    /// Asks for a connection to `target`; see [`Connect::connect`].
    ///
    /// # Errors
    /// When the session has ended.
    pub async fn open(&self, target: &Target) -> Result<Flow, OpenError> {
        self.flows.open(&target.to_string()).await
    }

    /// What was learned about the path, over a link.
    pub fn pacing(&self) -> Option<Figures> {
        self.pacer.as_ref().map(|pacer| pacer.figures())
    }

    /// Flows that are open now.
    pub fn open_flows(&self) -> usize {
        self.flows.open_flows()
    }
}

impl Connect for Session {
    async fn connect(&self, target: &Target) -> Result<Flow, ConnectError> {
        Ok(self.open(target).await?)
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
