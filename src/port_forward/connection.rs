//! One local connection's way to the target's pod, across pods that go away and an API server that restarts.
//!
//! Finding → dialing → joined. It goes back to finding as long as no byte came from a pod and what the application sent is
//! still known in full. The connection is armed all the time: every end but an orderly one resets it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use kshuttle_wire::relay::reset_by_peer;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::ForwardingError;
use super::relay::{RelayError, Sent, relay};
use crate::cluster::port_forward::{Dialer, PortForwardError, PortForwardStream};
use crate::cluster::target::{Found, Resolver, TargetError};
use crate::report::chain;

/// An application is kept waiting for this long while there is no pod to take its connection: a container restarts and
/// becomes ready in it, an API server starts again. Longer, and people take it for hanging.
pub const REACH_TIME_MAX: Duration = Duration::from_secs(30);

/// Pauses after failures. The longest, with jitter twice a second, is how late a new pod may be found.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_secs(1))
    .with_jitter()
    .without_max_times();

/// What all connections of the command share.
pub(super) struct Way {
    pub(super) resolver: Resolver,
    pub(super) dialer: Dialer,
    /// Whether the named pod may come again, as far as was seen last.
    name_returns: AtomicBool,
    /// Tells the command that there is no sense in going on.
    over: mpsc::Sender<ForwardingError>,
}

impl Way {
    /// `name_returns` of the pod that was found first.
    pub(super) fn new(
        resolver: Resolver,
        dialer: Dialer,
        name_returns: bool,
        over: mpsc::Sender<ForwardingError>,
    ) -> Self {
        Self { resolver, dialer, name_returns: name_returns.into(), over }
    }

    /// Whether the named pod is gone for good: its name will not return, or did not in all that time. The command ends then.
    fn is_over(&self, error: &ConnectionError, waited: bool) -> bool {
        let ConnectionError::Target(error) = error else { return false };
        let over = error.is_gone() && (waited || !self.name_returns.load(Ordering::Relaxed));
        if over {
            // One is enough to end it.
            let _ = self.over.try_send(ForwardingError::Gone(error.clone()));
        }
        over
    }
}

/// Why a connection is reset.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("no pod to take it")]
    Target(#[source] Arc<TargetError>),
    #[error("cannot reach pod {pod}")]
    Open {
        pod: String,
        #[source]
        source: PortForwardError,
    },
    #[error("connection to pod {pod} ended")]
    Relay {
        pod: String,
        /// Nothing came from the pod.
        early: bool,
        #[source]
        source: RelayError,
    },
    #[error("the application left")]
    Left(#[source] std::io::Error),
    #[error("no answer within {} s", REACH_TIME_MAX.as_secs())]
    Slow,
}

impl ConnectionError {
    /// Whether another attempt may come to another end. `Open`: the answers that stay as they are, are not.
    fn may_pass(&self) -> bool {
        match self {
            Self::Target(error) => error.may_pass(),
            Self::Open { source, .. } => !is_final(source),
            Self::Relay { .. } | Self::Left(_) | Self::Slow => false,
        }
    }

    /// Something people should read without asking: the target or the way to it is not as it should be. What happens to
    /// a connection that worked is its own business.
    fn concerns_user(&self) -> bool {
        match self {
            Self::Target(_) | Self::Open { .. } | Self::Slow => true,
            Self::Relay { early, source, .. } => {
                *early
                    && matches!(source, RelayError::Pod(_))
                    && !matches!(cause(source), Some(PortForwardError::Closed))
            }
            Self::Left(_) => false,
        }
    }
}

fn is_final(error: &PortForwardError) -> bool {
    match error {
        PortForwardError::Name(_)
        | PortForwardError::Unauthorized { .. }
        | PortForwardError::Forbidden { .. }
        | PortForwardError::BadUpgrade(_) => true,
        PortForwardError::Refusals { error, others, .. } => {
            is_final(error) && others.iter().all(|(_, error)| is_final(error))
        }
        _ => false,
    }
}

/// Serves one connection to the `index`th port.
pub(super) async fn serve(mut socket: TcpStream, index: usize, way: Arc<Way>) {
    match carry(&mut socket, index, &way).await {
        Ok(pod) => tracing::debug!(pod, "closed"),
        Err(error) if error.concerns_user() => {
            tracing::warn!("connection reset: {}", chain(&error));
        }
        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "reset"),
    }
}

/// The name of the pod that served it.
async fn carry(socket: &mut TcpStream, index: usize, way: &Way) -> Result<String, ConnectionError> {
    let deadline = Instant::now() + REACH_TIME_MAX;
    let mut sent = Sent::default();
    let mut failed: Option<Arc<Found>> = None;
    let mut pauses = PAUSES.build();
    loop {
        let avoid = failed.as_ref().map(|found| found.uid.as_str());
        let (found, stream) = reach(socket, index, way, avoid, deadline).await?;
        let pod = found.pod.clone();
        let Err(source) = relay(socket, stream, &mut sent).await else { return Ok(pod) };
        let error = ConnectionError::Relay { pod, early: !sent.is_answered(), source };
        let again =
            sent.is_complete() && Instant::now() < deadline && refused_by_leaving(&error, &found, way).await;
        if !again {
            return Err(error);
        }
        tracing::debug!(error = &error as &dyn std::error::Error, "looking for another pod");
        failed = Some(found);
        sleep(pauses.next().expect("without end")).await;
    }
}

/// Whether the pod never got the connection because it is on its way out.
async fn refused_by_leaving(error: &ConnectionError, found: &Found, way: &Way) -> bool {
    let ConnectionError::Relay { source, .. } = error else { return false };
    match cause(source) {
        Some(PortForwardError::SandboxGone { .. }) => true,
        Some(PortForwardError::Refused { .. }) => !way.resolver.is_good(found).await,
        _ => false,
    }
}

fn cause(error: &RelayError) -> Option<&PortForwardError> {
    let RelayError::Pod(error) = error else { return None };
    error.get_ref()?.downcast_ref()
}

/// Finds and dials until the deadline, or until the application leaves.
async fn reach(
    socket: &TcpStream,
    index: usize,
    way: &Way,
    avoid: Option<&str>,
    deadline: Instant,
) -> Result<(Arc<Found>, PortForwardStream), ConnectionError> {
    let mut last = ConnectionError::Slow;
    let attempts = async {
        let mut avoid = avoid.map(str::to_owned);
        let mut pauses = PAUSES.build();
        loop {
            last = match attempt(index, way, avoid.as_deref()).await {
                Ok(reached) => return Ok(reached),
                Err((found, error)) => {
                    avoid = found.map(|found| found.uid.clone()).or(avoid);
                    error
                }
            };
            if !last.may_pass() || way.is_over(&last, false) {
                return Err(());
            }
            tracing::debug!(error = &last as &dyn std::error::Error, "trying again");
            sleep(pauses.next().expect("without end")).await;
        }
    };
    let reached = tokio::select! {
        reached = timeout_at(deadline, attempts) => reached,
        error = reset_by_peer(socket) => return Err(ConnectionError::Left(error)),
    };
    match reached {
        Ok(Ok(reached)) => Ok(reached),
        Ok(Err(())) => Err(last),
        Err(_) => {
            way.is_over(&last, true);
            Err(last)
        }
    }
}

type Failed = (Option<Arc<Found>>, ConnectionError);

async fn attempt(
    index: usize,
    way: &Way,
    avoid: Option<&str>,
) -> Result<(Arc<Found>, PortForwardStream), Failed> {
    let found = match way.resolver.find(avoid).await {
        Ok(found) => found,
        Err(error) => return Err((None, ConnectionError::Target(error))),
    };
    way.name_returns.store(found.name_returns, Ordering::Relaxed);
    match way.dialer.open(&found.pod, found.ports[index].pod).await {
        Ok(stream) => Ok((found, stream)),
        Err(source) => {
            let pod = found.pod.clone();
            Err((Some(found), ConnectionError::Open { pod, source }))
        }
    }
}
