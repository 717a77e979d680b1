//! The tunnels to a pod that is not ours to make or to delete (`--pod`): any SSH server in it will do.
//!
//! Who we are and who it is are known beforehand, as to ssh: a private key of the user's, a host key that is named, remembered
//! or pinned now.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use russh::keys::PublicKey;
use tokio::time::Instant;

use crate::cli::PodArgs;
use crate::cluster::client::Cluster;
use crate::cluster::port_forward::{Dialer, PortForwardError, Transport};
use crate::cluster::target::ports::Remote;
use crate::cluster::target::{Found, Resolver, Target, TargetError, TargetWordError};
use crate::port_forward::first_pod;
use crate::report::Steps;
use crate::tunnel::identity::{HostKey, Identity, IdentityError};
use crate::tunnel::known_hosts::{KnownHosts, KnownHostsError};
use crate::tunnel::pool::{DialError, Dialed, Pool, Route};
use crate::tunnel::ssh::SessionError;

/// The port's name that is looked for when no port is given.
const PORT_NAME: &str = "ssh";

/// The port when there is none of that name: ssh's.
const PORT: u16 = 22;

/// Private keys that are tried when none is named, in ssh's order; it also knows RSA, which we do not.
const DEFAULT_KEYS: [&str; 2] = [".ssh/id_ecdsa", ".ssh/id_ed25519"];

/// Longest wait for the first tunnel to a pod that runs.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(30);

/// A named pod that is gone may come again for so long: a container or node restarts, a StatefulSet makes it anew.
const GONE_TIME_MAX: Duration = Duration::from_secs(60);

/// Which pod, and as whom: `[USER@]TARGET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As ssh: the user of this machine if not given.
    pub user: Option<String>,
    /// A pod, or what has pods.
    pub target: Target,
}

impl FromStr for Place {
    type Err = TargetWordError;

    fn from_str(text: &str) -> Result<Self, TargetWordError> {
        let (user, target) = match text.rsplit_once('@') {
            Some((user, target)) => (Some(user.to_owned()).filter(|user| !user.is_empty()), target),
            None => (None, text),
        };
        Ok(Self { user, target: target.parse()? })
    }
}

/// Why the pod cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExistingError {
    /// There is none.
    #[error("cannot go through {target}")]
    Target {
        /// Which.
        target: Target,
        /// Why not.
        source: Arc<TargetError>,
    },
    /// The user's key.
    #[error("no key to log in with")]
    Identity(#[source] IdentityError),
    /// There is none to try.
    #[error("no private key to log in with in {0}")]
    NoIdentity(String),
    /// The word behind `--host-key`.
    #[error("`{0}` is neither a public key like `ssh-ed25519 AAAA…` nor a file with one")]
    HostKeyWord(String),
    /// The file of remembered host keys.
    #[error("is it the pod we know?")]
    KnownHosts(#[source] KnownHostsError),
    /// Not the key we know.
    #[error("{target} shows another host key than {known}")]
    HostKeyChanged {
        /// Which.
        target: Target,
        /// Where ours is from.
        known: String,
    },
    /// Key or user.
    #[error("{target} does not let `{user}` in with this key")]
    Refused {
        /// Which.
        target: Target,
        /// As whom.
        user: String,
    },
}

/// The tunnels, and what is known about the pod.
pub(super) struct Existing {
    cluster: Cluster,
    transport: Transport,
    place: Place,
    port: Option<Remote>,
    identity: Identity,
    host_key: HostKey,
    /// Where the known host key is from.
    known: Option<String>,
    /// Those remembered.
    hosts: KnownHosts,
    pool: Pool,
}

impl Existing {
    /// Nothing is asked yet; connections are held already.
    pub(super) fn new(
        cluster: Cluster,
        transport: Transport,
        place: &Place,
        args: &PodArgs,
    ) -> Result<Self, ExistingError> {
        let named = args.host_key.as_deref().map(named_host_key).transpose()?;
        Ok(Self {
            identity: identity(args.identity.as_deref())?,
            known: named.as_ref().map(|_| "--host-key says".to_owned()),
            host_key: named.map_or_else(HostKey::default, HostKey::known),
            cluster,
            transport,
            place: place.clone(),
            port: args.pod_port.map(Remote::Number),
            hosts: KnownHosts::of_user(),
            pool: Pool::start(super::tunnels(args)),
        })
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Finds the pod and waits for the first tunnel to it.
    pub(super) async fn start(&mut self, steps: &mut Steps) -> anyhow::Result<()> {
        let target = self.place.target.clone();
        let (resolver, found) = self.find(steps).await?;
        steps.done("pod", format_args!("{} is there already, and stays", found.pod));
        let name = format!(
            "{}/{}/{}:{}",
            self.cluster.server().authority().map_or("", |authority| authority.as_str()),
            self.cluster.namespace(),
            target.to_string().replace(' ', "/"),
            found.ports[0].named
        );
        if self.known.is_none()
            && let Some(key) = self.hosts.find(&name).map_err(ExistingError::KnownHosts)?
        {
            self.host_key = HostKey::known(key);
            self.known = Some(format!("{} says", self.hosts.file().display()));
        }
        let user = self.place.user.clone().or_else(super::user_name).unwrap_or_else(|| "root".to_owned());
        self.pool.lead(Some(self.route(resolver, &found, user.clone())));
        let way = match self.pool.first_up(CONNECT_TIME_MAX).await {
            Ok(way) => way,
            Err(error) => return Err(self.explained(error, user)),
        };
        let fingerprint = self.host_key.fingerprint().unwrap_or_default();
        steps.done("tunnel", format_args!("SSH over {way}, host key {fingerprint}"));
        if let (None, Some(key)) = (&self.known, self.host_key.pinned()) {
            steps.say(format_args!(
                "warning: this host key was not known before; from now on only it will do"
            ));
            if let Err(error) = self.hosts.add(&name, key) {
                steps.say(format_args!("warning: {}", crate::report::chain(&error)));
            }
        }
        if self.pool.status().iter().all(|tunnel| tunnel.link.is_none()) {
            steps
                .say("warning: its SSH server is not kshuttle's: connections end when the port-forward does");
        }
        Ok(())
    }

    /// Returns when there is no way to the pod any more that could come back by itself.
    pub(super) async fn keep(&mut self) -> anyhow::Error {
        self.pool.lost().await.into()
    }

    /// Ends the tunnels.
    pub(super) async fn stop(self) {
        self.pool.close().await;
    }

    /// The pod, with the port that was given, or the one called `ssh`, or 22.
    async fn find(&self, steps: &mut Steps) -> Result<(Resolver, Arc<Found>), ExistingError> {
        let target = &self.place.target;
        let ports = match &self.port {
            Some(port) => vec![port.clone()],
            None => vec![Remote::Name(PORT_NAME.to_owned()), Remote::Number(PORT)],
        };
        let mut result = None;
        for port in ports {
            let resolver = Resolver::new(self.cluster.clone(), target.clone(), vec![port]);
            match first_pod(&resolver, steps).await {
                Ok(found) => return Ok((resolver, found)),
                Err(error) => {
                    let other = matches!(*error, TargetError::Port(_));
                    result = Some(error);
                    if !other {
                        break;
                    }
                }
            }
        }
        let source = result.expect("there is at least one port");
        Err(ExistingError::Target { target: target.clone(), source })
    }

    fn route(&self, resolver: Resolver, found: &Found, user: String) -> Route {
        let dialer = Dialer::new(self.cluster.client().clone(), self.cluster.namespace(), self.transport);
        let way = Arc::new(Way {
            resolver,
            dialer,
            name_returns: found.name_returns,
            avoid: Mutex::default(),
            gone_since: Mutex::default(),
        });
        Route {
            name: self.place.target.to_string(),
            dial: Arc::new(move || {
                let way = way.clone();
                async move { way.dial().await }.boxed()
            }),
            identity: self.identity.clone(),
            user,
            host_key: self.host_key.clone(),
            ours: false,
        }
    }

    /// What the user can do something about, in words of this way in.
    fn explained(&self, error: DialError, user: String) -> anyhow::Error {
        let target = self.place.target.clone();
        match (error.cause.downcast_ref(), &self.known) {
            (Some(SessionError::HostKey), Some(known)) => {
                ExistingError::HostKeyChanged { target, known: known.clone() }.into()
            }
            (Some(SessionError::KeyRefused), _) => ExistingError::Refused { target, user }.into(),
            _ => error.into(),
        }
    }
}

/// From the target to a byte stream, each time anew.
struct Way {
    resolver: Resolver,
    dialer: Dialer,
    /// Whether a pod of this name may come again.
    name_returns: bool,
    /// The uid of a pod to which there was no way.
    avoid: Mutex<Option<String>>,
    gone_since: Mutex<Option<Instant>>,
}

impl Way {
    async fn dial(&self) -> Result<Dialed, DialError> {
        let avoid = locked(&self.avoid).clone();
        let found = match self.resolver.find(avoid.as_deref()).await {
            Ok(found) => found,
            Err(error) => return Err(self.missing(error)),
        };
        *locked(&self.gone_since) = None;
        match self.dialer.open(&found.pod, found.ports[0].pod).await {
            Ok(stream) => {
                *locked(&self.avoid) = None;
                Ok(Dialed { way: stream.transport().to_string(), stream: Box::new(stream) })
            }
            Err(error) if error.is_denied() => Err(DialError::lasting(error)),
            Err(error) => {
                if matches!(error, PortForwardError::NotFound { .. }) {
                    *locked(&self.avoid) = Some(found.uid.clone());
                }
                Err(DialError::passing(error))
            }
        }
    }

    fn missing(&self, error: Arc<TargetError>) -> DialError {
        let gone = error.is_gone() && {
            let since = *locked(&self.gone_since).get_or_insert_with(Instant::now);
            !self.name_returns || since.elapsed() > GONE_TIME_MAX
        };
        if gone || !error.may_pass() { DialError::lasting(error) } else { DialError::passing(error) }
    }
}

fn locked<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each use is a single step.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn identity(file: Option<&Path>) -> Result<Identity, ExistingError> {
    if let Some(file) = file {
        return Identity::read(file).map_err(ExistingError::Identity);
    }
    let home = std::env::home_dir().unwrap_or_default();
    let files: Vec<PathBuf> = DEFAULT_KEYS.iter().map(|name| home.join(name)).collect();
    match files.iter().find(|file| file.exists()) {
        Some(file) => Identity::read(file).map_err(ExistingError::Identity),
        None => Err(ExistingError::NoIdentity(home.join(".ssh").display().to_string())),
    }
}

/// A public key, or a file that holds one, as `ssh_host_ed25519_key.pub` does.
fn named_host_key(word: &str) -> Result<PublicKey, ExistingError> {
    let parsed = match PublicKey::from_openssh(word) {
        Ok(key) => Some(key),
        Err(_) => {
            std::fs::read_to_string(word).ok().and_then(|text| PublicKey::from_openssh(text.trim()).ok())
        }
    };
    parsed.ok_or_else(|| ExistingError::HostKeyWord(word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn places_are_written_as_for_ssh_and_kubectl() {
        let place: Place = "jane@deploy/ssh".parse().unwrap();
        assert_eq!((place.user.as_deref(), place.target), (Some("jane"), "deploy/ssh".parse().unwrap()));
        assert_eq!("web-0".parse::<Place>().unwrap().user, None);
        for word in ["", "jane@", "cm/x", "a b"] {
            assert!(word.parse::<Place>().is_err(), "{word}");
        }
    }

    #[test]
    fn host_keys_are_words_or_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pub");
        std::fs::write(&file, format!("{KEY} root@x\n")).unwrap();
        let key = named_host_key(KEY).unwrap();
        assert_eq!(named_host_key(file.to_str().unwrap()).unwrap().key_data(), key.key_data());
        assert!(matches!(named_host_key("ssh-ed25519 AAAA"), Err(ExistingError::HostKeyWord(_))));
    }
}
