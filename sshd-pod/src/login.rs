//! What a client may do: with the right key and the right name flows, direct-tcpip and reading the pod's resolver file,
//! otherwise nothing. Refusals are logged; what a stranger chose is quoted and cut in them.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use kshuttle_wire::pacing::Pacer;
use kshuttle_wire::{flow, ssh};
use russh::keys::{HashAlg, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use tokio::sync::Semaphore;

use crate::direct;
use crate::door::Visitor;
use crate::idle::{Presence, Present};

/// The one name that may log in. Stock clients have it from the `User` line of `kshuttle ssh-config`.
pub const USER: &str = "kshuttle";

/// Sessions at once. A client keeps two tunnels; the rest is for stock clients and for sessions that are dead and not
/// yet noticed.
const MAX_SESSIONS: usize = 64;

/// Channels a session may hold open: with their windows they bound its memory.
const MAX_CHANNELS: usize = 1_000;

/// Session channels that may wait for their subsystem request; a client asks for it at once.
const MAX_WAITING_CHANNELS: usize = 8;

/// Of a name that a stranger chose, this many characters are logged.
const LOGGED_MAX: usize = 64;

/// One client's rights.
pub(crate) struct Login {
    authorized_key: PublicKey,
    presence: Presence,
    /// Until it has logged in.
    visitor: Arc<Visitor>,
    present: Option<Present>,
    /// Session channels that no subsystem was asked for yet.
    channels: Vec<Channel<Msg>>,
    room: Arc<Semaphore>,
    /// Of the link, if there is one.
    pacer: Option<Arc<Pacer>>,
}

impl Login {
    pub(crate) fn new(
        authorized_key: PublicKey,
        presence: Presence,
        visitor: Arc<Visitor>,
        pacer: Option<Arc<Pacer>>,
    ) -> Self {
        Self {
            authorized_key,
            presence,
            visitor,
            present: None,
            channels: vec![],
            room: Arc::new(Semaphore::new(MAX_CHANNELS)),
            pacer,
        }
    }

    fn judge(&self, user: &str, key: &PublicKey) -> Auth {
        if user != USER {
            tracing::info!(user = %cut(user), "refused: wrong user");
        } else if key.key_data() != self.authorized_key.key_data() {
            // The comment does not matter.
            tracing::info!(key = %key.fingerprint(HashAlg::Sha256), "refused: wrong key");
        } else if self.presence.count() >= MAX_SESSIONS {
            tracing::warn!("refused: {MAX_SESSIONS} sessions are open");
        } else {
            return Auth::Accept;
        }
        Auth::reject()
    }
}

/// Quoted and shortened.
fn cut(text: &str) -> String {
    format!("{:?}", text.chars().take(LOGGED_MAX).collect::<String>())
}

fn refuse(what: &str) {
    tracing::info!("refused: {what}");
}

/// A small file in the container's memory: reading it holds nobody up.
fn send_resolver_file(id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
    let mut text = Vec::new();
    let read = File::open(ssh::RESOLVER_FILE)
        .and_then(|file| file.take(ssh::RESOLVER_MAX as u64).read_to_end(&mut text));
    if let Err(error) = read {
        tracing::info!(%error, "no {}", ssh::RESOLVER_FILE);
        return session.channel_failure(id);
    }
    session.channel_success(id)?;
    session.data(id, text)?;
    session.eof(id)?;
    session.close(id)
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, key.public_key))
    }

    async fn auth_password(&mut self, user: &str, _: &str) -> Result<Auth, Self::Error> {
        tracing::info!(user = %cut(user), "refused: a password");
        Ok(Auth::reject())
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Self::Error> {
        self.present = Some(self.presence.enter());
        self.visitor.admit();
        tracing::debug!("logged in");
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
        } else {
            refuse("more channels than a session may have");
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
        } else {
            refuse("more sessions without a subsystem than there may be");
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
            Some(place) if name == ssh::RESOLVER_SUBSYSTEM => {
                drop(self.channels.swap_remove(place));
                send_resolver_file(id, session)
            }
            _ => {
                tracing::info!(subsystem = %cut(name), "refused: a subsystem");
                session.channel_failure(id)
            }
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
        refuse("a terminal");
        session.channel_failure(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        refuse("a shell");
        session.channel_failure(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse("a command");
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
        refuse("X11");
        session.channel_failure(channel)
    }

    async fn agent_request(&mut self, _: ChannelId, _: &mut Session) -> Result<bool, Self::Error> {
        refuse("the agent");
        Ok(false)
    }

    // Refused by default, silently: dropping the handle refuses the channel.

    async fn channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse("X11");
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse("a connection to a Unix socket of the pod");
        Ok(())
    }

    async fn tcpip_forward(&mut self, _: &str, _: &mut u32, _: &mut Session) -> Result<bool, Self::Error> {
        refuse("listening in the cluster");
        Ok(false)
    }

    async fn streamlocal_forward(&mut self, _: &str, _: &mut Session) -> Result<bool, Self::Error> {
        refuse("listening in the cluster");
        Ok(false)
    }
}
