//! `kshuttle port-forward`: local ports, each leading to a port of the target's pod. Without a pod of ours, without root.
//!
//! ```text
//!  start:       target → pod → ports → listeners → may we?                 (words.rs: what the user wrote)
//!  connection:  accept → pod of the moment → Dialer → both ways            (connection.rs, relay.rs)
//! ```
//!
//! One upgraded connection for each local one: they share nothing, so none can stop or end another. Limits of the
//! protocol: `docs/port-forward.md`.

mod connection;
mod relay;
pub mod words;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub use self::connection::REACH_TIME_MAX;
use self::connection::Way;
use self::words::{Address, Forward};
use crate::cluster::client::Cluster;
use crate::cluster::port_forward::{Dialer, PortForwardError, Transport};
use crate::cluster::target::{Found, Resolver, Target, TargetError};
use crate::proxy::{Connections, listen};
use crate::report::Steps;

/// Longest wait for a ready pod at the start; kubectl's (`--pod-running-timeout`) is the same.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Between two looks at the pods while starting.
const START_PAUSE: Duration = Duration::from_millis(500);

/// Free ports of the first address that are tried on the others, when the kernel chooses.
const FREE_TRIES_MAX: u32 = 16;

/// What the user asks for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where to.
    pub target: Target,
    /// At least one.
    pub ports: Vec<Forward>,
    /// At least one.
    pub addresses: Vec<Address>,
    /// How.
    pub transport: Transport,
}

/// Why nothing is forwarded, or nothing more.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// There is no pod for it.
    #[error("cannot forward to {target}")]
    Target {
        /// Where to.
        target: Target,
        /// Why not.
        source: Arc<TargetError>,
    },
    /// The API server does not let us.
    #[error("cannot forward to pod {pod}")]
    Probe {
        /// The pod.
        pod: String,
        /// Why not.
        source: PortForwardError,
    },
    /// The port is taken or not permitted.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The named pod does not come back.
    #[error("the pod is gone")]
    Gone(#[source] Arc<TargetError>),
}

/// Ports that listen.
pub struct Forwarding {
    way: Arc<Way>,
    /// With the index of its port.
    listeners: Vec<(usize, TcpListener)>,
    /// In the pod that was found first.
    ports: Vec<u16>,
    over: mpsc::Receiver<ForwardingError>,
}

/// Finds the pod, listens, and makes sure that the cluster lets us.
///
/// # Errors
/// See [`ForwardingError`].
pub async fn start(
    cluster: Cluster,
    wanted: Wanted,
    steps: &mut Steps,
) -> Result<Forwarding, ForwardingError> {
    let dialer = Dialer::new(cluster.client().clone(), cluster.namespace(), wanted.transport);
    let remotes = wanted.ports.iter().map(|port| port.remote.clone()).collect();
    let resolver = Resolver::new(cluster, wanted.target, remotes);
    let found = first_pod(&resolver, steps)
        .await
        .map_err(|source| ForwardingError::Target { target: resolver.target().clone(), source })?;

    let mut listeners = Vec::new();
    for (index, (forward, port)) in wanted.ports.iter().zip(&found.ports).enumerate() {
        let local = forward.local.unwrap_or(port.named);
        listeners.extend(listen_on(&wanted.addresses, local)?.into_iter().map(|listener| (index, listener)));
    }
    let transport = dialer
        .probe(&found.pod, found.ports[0].pod)
        .await
        .map_err(|source| ForwardingError::Probe { pod: found.pod.clone(), source })?;
    steps.done("pod", format_args!("{} over {transport}", found.pod));
    let ports = found.ports.iter().map(|port| port.pod).collect();
    let (tell, over) = mpsc::channel(1);
    Ok(Forwarding {
        way: Arc::new(Way::new(resolver, dialer, found.name_returns, tell)),
        listeners,
        ports,
        over,
    })
}

impl Forwarding {
    /// Where it listens, and which port of the pod that leads to.
    pub fn places(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        // A bound socket has an address, so none is left out.
        self.listeners
            .iter()
            .filter_map(|(index, listener)| Some((listener.local_addr().ok()?, self.ports[*index])))
    }

    /// Serves, one task in `tasks` per listener, until going on makes no sense any more.
    pub async fn serve(mut self, connections: &Connections, tasks: &mut JoinSet<()>) -> ForwardingError {
        for (index, listener) in self.listeners {
            let (connections, way) = (connections.clone(), self.way.clone());
            tasks.spawn(async move {
                connections.accept(listener, |socket| connection::serve(socket, index, way.clone())).await;
            });
        }
        self.over.recv().await.expect("`self.way` holds the sender")
    }
}

/// Waits for a pod only where one is on its way; a wrong name is told at once.
pub(crate) async fn first_pod(
    resolver: &Resolver,
    steps: &mut Steps,
) -> Result<Arc<Found>, Arc<TargetError>> {
    let deadline = Instant::now() + START_TIME_MAX;
    let mut said = String::new();
    loop {
        let error = match resolver.find(None).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let coming = matches!(*error, TargetError::NotReady { .. } | TargetError::NotRunning { .. });
        if !coming || Instant::now() > deadline {
            return Err(error);
        }
        let words = error.to_string();
        if words != said {
            steps.waiting(&words);
            said = words;
        }
        sleep(START_PAUSE).await;
    }
}

/// Listens on the same port of all addresses.
fn listen_on(addresses: &[Address], port: u16) -> Result<Vec<TcpListener>, ForwardingError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match listen_once(addresses, port) {
            // What is free on one address may be taken on another.
            Err(ForwardingError::Listen { source, .. })
                if port == 0 && tries < FREE_TRIES_MAX && source.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn listen_once(addresses: &[Address], mut port: u16) -> Result<Vec<TcpListener>, ForwardingError> {
    let mut listeners = Vec::new();
    for address in addresses {
        for (place, ip) in address.ips().into_iter().enumerate() {
            let address = SocketAddr::new(ip, port);
            let listener = match listen(address) {
                Ok(listener) => listener,
                // A machine without IPv6 has a localhost, too.
                Err(error) if place > 0 && has_no_such_family(&error) => continue,
                Err(source) => return Err(ForwardingError::Listen { address, source }),
            };
            port = listener.local_addr().map_or(port, |bound| bound.port());
            listeners.push(listener);
        }
    }
    Ok(listeners)
}

fn has_no_such_family(error: &io::Error) -> bool {
    use nix::libc::EAFNOSUPPORT;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_has_one_free_port_on_both_families() {
        let listeners = listen_on(&[Address::Localhost], 0).unwrap();
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert!(
            addresses
                .iter()
                .all(|address| address.port() == addresses[0].port() && address.ip().is_loopback())
        );
        let error = listen_on(&[Address::Localhost], addresses[0].port()).unwrap_err();
        assert!(error.to_string().starts_with("listen on 127.0.0.1:"), "{error}");
    }
}
