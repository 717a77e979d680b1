//! Joins everything: starts in order, waits, stops in the reverse order.
//!
//! Start: helper (a password is asked for first; the rest of the program has given up root by then) → cluster → pod →
//! tunnels → listeners → rules. Stop: redirected connections are reset while the rules still stand → rules → tunnels →
//! pod. Between the two the keeper (`keeper.rs`) keeps pod and tunnels up.

mod cleanup;
pub mod existing;
mod explain;
mod keeper;
mod names;
mod questions;
pub mod redirect;
mod ssh_config;
mod through;
pub mod uploaded;

use std::convert::Infallible;

use anyhow::Context;
use tokio::task::JoinSet;

pub use self::cleanup::cleanup;
use self::names::Names;
pub use self::questions::{dns, look_up, quit, status};
pub use self::ssh_config::{ssh_config, ssh_proxy};
use self::through::Through;
use crate::cli::{ClusterArgs, PodArgs, PortForwardArgs, RedirectArgs, SocksArgs};
use crate::cluster::client::{self, Cluster};
use crate::control::Session;
use crate::control::socket::Control;
use crate::port_forward::{self, Wanted};
use crate::privileged::{Helper, Starting};
use crate::proxy::{self, Connections, socks};
use crate::report::Steps;
use crate::session;
use crate::session::ticket::Ticket;
use crate::shutdown::{Questions, Signals, Stop};
use crate::tunnel::pool::{Pool, Settings};

/// `kshuttle [SUBNET]…`: redirects until a signal, or until something ends that it needs.
///
/// # Errors
/// Why it could not start or go on; [`crate::shutdown::Stop`] after a signal.
pub async fn redirect(
    cluster: &ClusterArgs,
    args: &RedirectArgs,
    helper: Option<Starting>,
) -> anyhow::Result<()> {
    run("redirect", async |parts: &mut Parts, steps: &mut Steps| {
        if let Some(helper) = helper {
            parts.helper = Some(helper.hello().await?);
        }
        let cluster = parts.open_tunnel(cluster, &args.pod, steps).await?;
        let ranges = parts.redirect(&cluster, args, steps).await?;
        parts.names = parts.names(&cluster, args, &ranges, steps).await?;
        parts.ranges = Some(ranges);
        parts.ready(steps, "Ctrl-C ends it");
        Err(parts.until_failure(steps).await)
    })
    .await
}

/// `kshuttle socks`: serves SOCKS5 until a signal, or until the tunnel ends.
///
/// # Errors
/// As [`redirect()`].
pub async fn socks(cluster: &ClusterArgs, args: &SocksArgs) -> anyhow::Result<()> {
    run("socks", async |parts: &mut Parts, steps: &mut Steps| {
        // Before anything else: the commonest mistake is a port that is taken.
        let listener = proxy::listen(args.listen).with_context(|| format!("listen on {}", args.listen))?;
        parts.open_tunnel(cluster, &args.pod, steps).await?;
        let address = listener.local_addr().context("ask for the port")?;
        let (connections, tunnel) = (parts.connections.clone(), parts.tunnel()?);
        parts.listeners.spawn(async move { socks::serve(listener, &connections, tunnel).await });
        parts.ready(
            steps,
            format_args!("SOCKS5 on {address}, e.g. ALL_PROXY=socks5h://{address}; Ctrl-C ends it"),
        );
        Err(parts.until_failure(steps).await)
    })
    .await
}

/// `kshuttle port-forward`: forwards until a signal, or until its pod is gone for good.
///
/// # Errors
/// As [`redirect()`].
pub async fn port_forward(cluster: &ClusterArgs, args: &PortForwardArgs) -> anyhow::Result<()> {
    run("port-forward", async |parts: &mut Parts, steps: &mut Steps| {
        let transport = cluster.transport;
        let cluster = connect_cluster(cluster, steps).await?;
        let wanted = Wanted {
            target: args.target.clone(),
            ports: args.ports.clone(),
            addresses: args.address.clone(),
            transport,
        };
        let forwarding = port_forward::start(cluster, wanted, steps).await?;
        for (address, port) in forwarding.places() {
            steps.forwarding(address, port);
        }
        parts.ready(steps, "Ctrl-C ends it");
        Err(forwarding.serve(&parts.connections, &mut parts.listeners).await.into())
    })
    .await
}

/// Runs `work`, which starts everything and waits for an end, until a signal or `kshuttle quit`; then stops in order. A second
/// signal ends the stop, too: what is left then is taken away by the helper and, when its idle time is over, by the pod itself.
async fn run(
    command: &'static str,
    work: impl AsyncFnOnce(&mut Parts, &mut Steps) -> anyhow::Result<Infallible>,
) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("catch signals")?;
    let questions = Questions::catch().context("catch signals")?;
    let session = Session::start(command);
    let mut parts = Parts { session: Some(session.clone()), ..Parts::default() };
    let mut steps = Steps::default();
    let ended = tokio::select! {
        Err(error) = work(&mut parts, &mut steps) => error,
        stop = signals.next() => stop.into(),
        () = session.quit() => Stop::Quit.into(),
        never = answer(questions, &session) => match never {},
    };
    tokio::select! {
        () = parts.stop(&mut steps) => Err(ended),
        stop = signals.next() => Err(stop.into()),
    }
}

/// Answers whoever asks how the session is: SIGUSR1, and the control socket.
async fn answer(mut questions: Questions, session: &Session) -> Infallible {
    let told = async {
        loop {
            questions.next().await;
            for line in session.status().lines() {
                Steps::default().say(line);
            }
        }
    };
    let served = async {
        match Control::listen() {
            Ok(control) => control.serve(session.clone()).await,
            Err(error) => tracing::info!(%error, "no place for a control socket"),
        }
        std::future::pending().await
    };
    tokio::select! {
        never = told => never,
        never = served => never,
    }
}

/// What has been started so far, in this order.
#[derive(Default)]
struct Parts {
    session: Option<Session>,
    helper: Option<Helper>,
    through: Option<Through>,
    connections: Connections,
    ranges: Option<redirect::Ranges>,
    names: Option<Names>,
    /// One task per listener; they end when this is dropped.
    listeners: JoinSet<()>,
    redirected: bool,
}

impl Parts {
    async fn open_tunnel(
        &mut self,
        args: &ClusterArgs,
        pod: &PodArgs,
        steps: &mut Steps,
    ) -> anyhow::Result<Cluster> {
        self.connections = Connections::through(pod.tunnels.into());
        let cluster = connect_cluster(args, steps).await?;
        let through = self.through.insert(Through::new(cluster.clone(), args.transport, pod)?);
        if let Some(session) = &self.session {
            session.has(through.pool());
        }
        let started = through.start(steps).await;
        if pod.explain {
            for line in explain::ways(&cluster, pod, through.way(), started.is_ok()).await {
                steps.say(format_args!("  way       {line}"));
            }
        }
        started.map(|()| cluster)
    }

    /// Has names come to us, where there are rules. The helper answers while it is waited for.
    async fn names(
        &mut self,
        cluster: &Cluster,
        args: &RedirectArgs,
        ranges: &redirect::Ranges,
        steps: &mut Steps,
    ) -> anyhow::Result<Option<Names>> {
        let (pool, session) = (self.tunnel()?, self.session.clone());
        let (Some(questions), Some(helper)) = (ranges.questions(), self.helper.as_mut()) else {
            return Ok(None);
        };
        let start =
            names::Start { cluster, pool, questions, ranges: ranges.now(), session: session.as_ref() };
        tokio::select! {
            names = Names::start(start, &args.names, steps) => Ok(names?),
            error = helper.lost(repaired) => Err(error.into()),
        }
    }

    /// Tells the user, and from now on those who ask, that everything stands.
    fn ready(&self, steps: &mut Steps, words: impl std::fmt::Display) {
        if let Some(session) = &self.session {
            session.is_ready();
        }
        steps.ready(words);
    }

    /// Where connections go.
    fn tunnel(&self) -> anyhow::Result<Pool> {
        Ok(self.through.as_ref().context("no tunnel was opened")?.pool().clone())
    }

    /// Waits until something is lost that the session needs and nobody can replace.
    async fn until_failure(&mut self, steps: &mut Steps) -> anyhow::Error {
        let Self { session, helper, through, ranges, names, .. } = self;
        let kept = async {
            match through {
                Some(through) => through.keep(steps).await,
                None => std::future::pending().await,
            }
        };
        let helper_lost = async {
            match helper {
                Some(helper) => helper.lost(repaired).await,
                None => std::future::pending().await,
            }
        };
        let followed = async {
            match ranges {
                Some(ranges) => ranges.follow(session.as_ref(), &mut Steps::default()).await,
                None => std::future::pending().await,
            }
        };
        let named = async {
            match names {
                Some(names) => names.follow(&mut Steps::default()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = kept => error,
            error = helper_lost => error.into(),
            error = followed => error.into(),
            error = named => error.into(),
        }
    }

    /// Takes everything back. Failures are told and do not keep the rest from being tried.
    async fn stop(&mut self, steps: &mut Steps) {
        steps.restart();
        // While the rules still stand: afterwards a reset would not be translated back and never arrive.
        self.connections.reset_all().await;
        if let Some(helper) = self.helper.take().filter(|_| self.redirected) {
            match helper.stop().await {
                Ok(report) if report.failures.is_empty() => steps.done("rules", "taken out"),
                Ok(report) => {
                    for failure in report.failures {
                        steps.say(format_args!(
                            "warning: take the rules out ({}): {}",
                            failure.step, failure.message
                        ));
                    }
                }
                Err(error) => steps.say(format_args!("warning: {}", crate::report::chain(&error))),
            }
        }
        self.listeners.abort_all();
        self.names = None; // not before: questions that were under way are answered
        if let Some(through) = self.through.take() {
            through.stop(steps).await;
        }
    }
}

async fn connect_cluster(args: &ClusterArgs, steps: &mut Steps) -> anyhow::Result<Cluster> {
    let cluster = client::connect(&options(args)).await?;
    steps.done("cluster", format_args!("{}, namespace {}", cluster.server(), cluster.namespace()));
    Ok(cluster)
}

fn options(args: &ClusterArgs) -> client::Options {
    client::Options {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
        namespace: args.namespace.clone(),
        as_user: args.as_user.clone(),
        as_groups: args.as_groups.clone(),
    }
}

/// Somebody else's change of the firewall was undone.
fn repaired(what: String) {
    Steps::default()
        .say(format_args!("warning: somebody took redirect rules out ({what}); they stand again"));
}

/// Whose pods are ours: left-overs of the same user on the same machine are removed, nobody else's.
fn owner() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    format!("{}@{}", user_name().as_deref().unwrap_or("unknown"), host.as_deref().unwrap_or("unknown"))
}

/// Whether nobody uses this pod of this session any more, certainly: its process is gone, and no other goes on with it.
fn is_over(session: &str, uid: &str) -> bool {
    session::is_dead(session) && !Ticket::is_held(uid)
}

/// Who runs this, if the uid has a name.
fn user_name() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name)
}

/// What the flags say about the tunnels.
fn tunnels(args: &PodArgs) -> Settings {
    Settings { tunnels: args.tunnels, lifetime: args.tunnel_lifetime, pacing: args.pacing }
}

/// Names this run where several meet: its table and its pod's annotation. Process ids are unique on a machine.
fn session_name() -> String {
    std::process::id().to_string()
}
