//! Our pod and the tunnels to it, kept up for as long as the session lasts.
//!
//! The tunnels mend themselves (see [`crate::tunnel::pool`]); here is what they cannot: make the pod, or go on with the one
//! of a session that was killed, and make another when it is gone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::FutureExt;
use russh::keys::PublicKey;
use tokio::time::Instant;

use super::explain::Way;
use super::{owner, session_name};
use crate::cli::PodArgs;
use crate::cluster::api_error::ApiError;
use crate::cluster::client::Cluster;
use crate::cluster::delivery::Payload;
use crate::cluster::port_forward::{Dialer, PortForwardError, Transport};
use crate::cluster::rights::{self, Right, RightsError};
use crate::cluster::sshd_pod::left_over;
use crate::cluster::sshd_pod::patch::PodPatch;
use crate::cluster::sshd_pod::wait::StartFailure;
use crate::cluster::sshd_pod::{self, PodError, PodOptions, Program, RunAs, SshdPod};
use crate::report::{Steps, chain};
use crate::session::Session;
use crate::session::ticket::{Contents, Ticket};
use crate::tunnel::identity::{HostKey, Identity};
use crate::tunnel::pool::{DialError, Dialed, Pool, Route};
use crate::tunnel::ssh::USER;

/// How long a running pod's server may take to listen: it only has to read its environment and make a key.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a pod that ran already when we came: it listens, or it is of no use.
const RESUME_TIMEOUT: Duration = Duration::from_secs(3);

/// A pod that ended sooner than this after its tunnel stood did not end by chance.
const SETTLED: Duration = Duration::from_secs(30);

/// Pods in a row that may end before they settled; then the cause is in the pod, and another one will not do better.
const UNSETTLED_MAX: u32 = 3;

/// Pauses between attempts to make another pod while the API server does not answer.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(500))
    .with_max_delay(Duration::from_secs(10))
    .with_jitter()
    .without_max_times();

/// The pod, once there is one, and the tunnels to it.
pub(super) struct Keeper {
    cluster: Cluster,
    dialer: Dialer,
    args: PodArgs,
    identity: Identity,
    pool: Pool,
    patch: Option<PodPatch>,
    pod: Option<SshdPod>,
    /// By which the next run finds the pod, should this one be killed.
    ticket: Option<Ticket>,
}

impl Keeper {
    /// Nothing is started yet, but connections are held already.
    pub(super) fn new(cluster: Cluster, transport: Transport, args: &PodArgs) -> anyhow::Result<Self> {
        Ok(Self {
            dialer: Dialer::new(cluster.client().clone(), cluster.namespace(), transport),
            cluster,
            args: args.clone(),
            identity: Identity::generate().context("make this session's key")?,
            pool: Pool::start(super::tunnels(args)),
            // Before anything is started: the commonest mistake is in there.
            patch: args.pod_patch.as_deref().map(PodPatch::read).transpose().map_err(PodError::from)?,
            pod: None,
            ticket: None,
        })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How the pod came to be, or was tried to.
    pub(super) fn way(&self) -> Way {
        match (&self.ticket, &self.args.image) {
            (Some(ticket), _) if ticket.contents().run > 1 => Way::Resume,
            (_, Some(_)) => Way::Image,
            (_, None) => Way::Delivery,
        }
    }

    /// The pod's name, once there is one.
    pub(super) fn pod_name(&self) -> Option<&str> {
        self.pod.as_ref().map(SshdPod::name)
    }

    /// Waits until the pod has ended, without making another.
    pub(super) async fn pod_ended(&self) -> anyhow::Error {
        match &self.pod {
            Some(pod) => start_failed(pod, pod.ended().await).context("the pod ended"),
            None => std::future::pending().await,
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Makes the pod, or goes on with one that is there, and waits for the first tunnel to it. Connections to the pod before
    /// are reset at once.
    pub(super) async fn start(&mut self, steps: &mut Steps) -> anyhow::Result<()> {
        self.pool.lead(None);
        let options = self.options()?;
        if self.pod.is_none() && self.resume(&options, steps).await {
            return Ok(());
        }
        let started = match self.make_pod(&options, steps).await {
            Ok(()) => self.lead(&options, steps).await,
            Err(error) => Err(error),
        };
        match started {
            Err(error) if lacks_right(&error) => Err(self.all_that_lacks(error).await),
            started => started,
        }
    }

    /// Goes on with a pod of a session of this user on this machine that was killed, if it is what would be made now. What
    /// speaks against it is no error: then one is made.
    async fn resume(&mut self, options: &PodOptions, steps: &mut Steps) -> bool {
        let (server, namespace) = (self.cluster.server().to_string(), self.cluster.namespace());
        let Some(ticket) = Ticket::take(|ticket| {
            // The recipe last: it reads the whole program.
            ticket.server == server && ticket.namespace == namespace && ticket.recipe == options.recipe()
        }) else {
            return false;
        };
        let contents = ticket.contents().clone();
        let keys = (Identity::from_openssh(&contents.key), PublicKey::from_openssh(&contents.host_key));
        let found = sshd_pod::find_running(&self.cluster, options, &contents.pod, &contents.uid).await;
        let ((Ok(identity), Ok(host_key)), Ok(Some(pod))) = (keys, found) else {
            ticket.remove();
            return false;
        };
        let host_key = HostKey::known(host_key);
        self.pool.lead(Some(route(&self.dialer, &pod, &identity, &host_key)));
        match self.pool.first_up(RESUME_TIMEOUT).await {
            Ok(way) => {
                steps.done("pod", format_args!("{} is running still: its session was killed", pod.name()));
                self.identity = identity;
                self.ticket = Some(ticket);
                self.stands(&way, pod, &host_key, options, contents.run, steps);
                left_over::reap(&self.cluster, &options.owner, super::is_over).await;
                true
            }
            Err(error) => {
                tracing::info!(pod = pod.name(), error = chain(&error), "cannot go on with a pod that runs");
                self.pool.lead(None);
                // It is reaped with all that is left over.
                ticket.remove();
                false
            }
        }
    }

    /// A tunnel to `pod` is there.
    fn stands(
        &mut self,
        way: &str,
        pod: SshdPod,
        host_key: &HostKey,
        options: &PodOptions,
        run: u32,
        steps: &mut Steps,
    ) {
        let fingerprint = host_key.fingerprint().unwrap_or_default();
        steps.done("tunnel", format_args!("SSH over {way}, host key {fingerprint}"));
        let (Ok(key), Some(Ok(host_key))) =
            (self.identity.to_openssh(), host_key.pinned().map(PublicKey::to_openssh))
        else {
            return;
        };
        let written = Ticket::write(Contents {
            server: self.cluster.server().to_string(),
            namespace: self.cluster.namespace().to_owned(),
            pod: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            recipe: options.recipe(),
            key,
            host_key,
            run,
        });
        match written {
            Ok(ticket) => self.ticket = Some(ticket),
            Err(error) => tracing::info!(%error, "no place for a session ticket"),
        }
        self.pod = Some(pod);
    }

    /// What was refused is rarely all that is missing.
    async fn all_that_lacks(&self, error: anyhow::Error) -> anyhow::Error {
        match rights::review(&self.cluster, self.args.image.is_none()).await {
            Ok(mut review) if !review.missing.is_empty() => {
                // Old API servers name us only when they refuse.
                let refused = error.downcast_ref().and_then(PodError::missing_right);
                review.user = review.user.or_else(|| refused.and_then(|right| right.user.clone()));
                RightsError::new(self.cluster.namespace(), review, Some(error.into())).into()
            }
            _ => error,
        }
    }

    /// Leads the tunnels to the pod and waits for the first.
    async fn lead(&mut self, options: &PodOptions, steps: &mut Steps) -> anyhow::Result<()> {
        let Self { pod: Some(pod), pool, .. } = self else { unreachable!("there is a pod") };
        let host_key = HostKey::default();
        pool.lead(Some(route(&self.dialer, pod, &self.identity, &host_key)));
        let way = tokio::select! {
            way = pool.first_up(LISTEN_TIMEOUT) => way?,
            // A program that dies at once may have been seen running.
            end = pod.ended() => return Err(start_failed(pod, end)),
        };
        let pod = pod.clone();
        self.stands(&way, pod, &host_key, options, 1, steps);
        Ok(())
    }

    /// Replaces the pod whenever it ends; returns why there can be no other.
    pub(super) async fn keep(&mut self, steps: &mut Steps) -> anyhow::Error {
        let mut unsettled = 0;
        while let Some(pod) = &self.pod {
            let stood = Instant::now();
            let end = pod.ended().await;
            unsettled = if stood.elapsed() < SETTLED { unsettled + 1 } else { 0 };
            if unsettled == UNSETTLED_MAX {
                return start_failed(pod, end)
                    .context(format!("{UNSETTLED_MAX} pods ended one after the other"));
            }
            steps.restart();
            steps.say(format_args!(
                "the pod {} ended ({}): its connections were reset, new ones wait for another pod",
                pod.name(),
                chain(&end)
            ));
            if let Err(error) = self.replace(steps).await {
                return error;
            }
        }
        unreachable!("keep() is called after start()")
    }

    async fn replace(&mut self, steps: &mut Steps) -> anyhow::Result<()> {
        let mut pauses = PAUSES.build();
        loop {
            let error = match self.start(steps).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !passes(&error) {
                return Err(error.context("make another pod"));
            }
            steps.waiting(&format!("for the API server: {}", chain(error.as_ref())));
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
        }
    }

    /// Ends the tunnels and deletes the pod. Failures are told.
    pub(super) async fn stop(self, steps: &mut Steps) {
        self.pool.close().await;
        let Some(pod) = self.pod else { return };
        match pod.delete().await {
            Ok(()) => {
                self.ticket.into_iter().for_each(Ticket::remove);
                steps.done("pod", "deleted");
            }
            Err(error) => steps.say(format_args!("warning: {}", chain(&error))),
        }
    }

    fn options(&self) -> anyhow::Result<PodOptions> {
        let program = match &self.args.image {
            Some(image) => Program::Image(image.clone()),
            None => {
                Program::Delivered { payload: Payload::load()?, carrier: self.args.carrier_image.clone() }
            }
        };
        Ok(PodOptions {
            program,
            run_as: self.args.run_as_user.map_or(RunAs::Default, RunAs::Uid),
            authorized_key: self.identity.authorized_key().context("write down this session's key")?,
            idle: self.args.pod_idle,
            session: Session::current().map_or_else(session_name, |session| session.to_string()),
            start_time_max: self.args.pod_start.unwrap_or(sshd_pod::START_TIME_MAX),
            // Who names a time may be waiting for a node that is yet to be made.
            node_time_max: self.args.pod_start.unwrap_or(sshd_pod::NODE_TIME_MAX),
            pull_policy: self.args.image_pull_policy,
            patch: self.patch.clone(),
            owner: owner(),
        })
    }

    async fn make_pod(&mut self, options: &PodOptions, steps: &mut Steps) -> anyhow::Result<()> {
        self.ticket.take().into_iter().for_each(Ticket::remove);
        if let Some(before) = self.pod.take() {
            // It ended, or its replacement did not start: what is left of it is of no use.
            if let Err(error) = before.delete().await {
                tracing::info!(error = chain(&error), "the pod before stays");
            }
        }
        left_over::reap(&self.cluster, &options.owner, super::is_over).await;
        let pod = sshd_pod::create(&self.cluster, options, |text| steps.waiting(text)).await?;
        // Known before it runs: a stop meanwhile deletes it.
        let pod = self.pod.insert(pod);
        let (running, may_delete) = tokio::join!(
            pod.wait_running(|text| steps.waiting(text)),
            rights::may(&self.cluster, Right { resource: "pods", verb: "delete" })
        );
        running?;
        steps.done("pod", format_args!("{} is running", pod.name()));
        if matches!(may_delete, Ok(false)) {
            steps.say(format_args!(
                "warning: deleting pods is not permitted here: this one ends by itself {} s after the session",
                self.args.pod_idle.as_secs()
            ));
        }
        Ok(())
    }
}

fn route(dialer: &Dialer, pod: &SshdPod, identity: &Identity, host_key: &HostKey) -> Route {
    route_to(dialer, pod.name(), sshd_pod::LISTEN_PORT, identity, host_key)
}

/// To our server on this port of this very pod; when the pod is gone, for good.
pub(super) fn route_to(
    dialer: &Dialer,
    pod: &str,
    port: u16,
    identity: &Identity,
    host_key: &HostKey,
) -> Route {
    let (dialer, name) = (dialer.clone(), pod.to_owned());
    let dial = move || {
        let (dialer, name) = (dialer.clone(), name.clone());
        async move {
            match dialer.open(&name, port).await {
                Ok(stream) => Ok(Dialed { way: stream.transport().to_string(), stream: Box::new(stream) }),
                Err(error) if error.is_denied() || matches!(error, PortForwardError::NotFound { .. }) => {
                    Err(DialError::lasting(error))
                }
                Err(error) => Err(DialError::passing(error)),
            }
        }
        .boxed()
    };
    Route {
        name: pod.to_owned(),
        dial: Arc::new(dial),
        identity: identity.clone(),
        user: USER.to_owned(),
        host_key: host_key.clone(),
        ours: true,
    }
}

fn lacks_right(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(|error: &PodError| error.missing_right().is_some())
            || PortForwardError::among(cause).is_some_and(PortForwardError::is_forbidden)
    })
}

/// Whether the same may succeed later without anybody acting: the API server is not there now.
fn passes(error: &anyhow::Error) -> bool {
    let api = error.chain().find_map(|cause| cause.downcast_ref::<PodError>()).and_then(PodError::api_error);
    match api {
        Some(ApiError::Timeout(_) | ApiError::Transport(_) | ApiError::Strange(_)) => true,
        Some(ApiError::Other { code, .. }) => *code == 429 || *code >= 500,
        Some(_) => false,
        None => error.chain().any(|cause| {
            matches!(
                PortForwardError::among(cause),
                Some(
                    PortForwardError::Dial(_)
                        | PortForwardError::Timeout { .. }
                        | PortForwardError::Server { .. }
                )
            )
        }),
    }
}

fn start_failed(pod: &SshdPod, source: StartFailure) -> anyhow::Error {
    PodError::Start { pod: pod.name().to_owned(), namespace: pod.namespace().to_owned(), source }.into()
}
