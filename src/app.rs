//! Joins everything: starts in order, waits, stops in the reverse order.
//!
//! Start: helper (a password is asked for first; the rest of the program has given up root by then) → cluster → pod →
//! tunnel → listeners → rules. Stop: redirected connections are reset while the rules still stand → rules → tunnel →
//! pod.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use kshuttle_helper::protocol::Plan;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::addr::Subnet;
use crate::cli::{ClusterArgs, PodArgs, PortForwardArgs, RedirectArgs, SocksArgs};
use crate::cluster::client::{self, Cluster};
use crate::cluster::delivery::Payload;
use crate::cluster::port_forward::{Dialer, PortForwardStream};
use crate::cluster::sshd_pod::wait::StartFailure;
use crate::cluster::sshd_pod::{self, PodError, PodOptions, Program, RunAs, SshdPod};
use crate::cluster::subnets;
use crate::port_forward::{self, Wanted};
use crate::privileged::{Helper, PrivilegedError, Starting};
use crate::proxy::{self, Connections, redirect, socks};
use crate::report::Steps;
use crate::shutdown::Signals;
use crate::tunnel::identity::{HostKey, Identity};
use crate::tunnel::ssh::{Session, SessionError};

/// How long a running pod's server may take to listen: it only has to read its environment and make a key.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a tunnel that ended waits to learn whether its pod did; the connections in it are reset already.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause between tries to reach it.
const LISTEN_PAUSE: Duration = Duration::from_millis(100);

/// `kshuttle [SUBNET]…`: redirects until a signal, or until something ends that it needs.
///
/// # Errors
/// Why it could not start or go on; [`crate::shutdown::Stop`] after a signal.
pub async fn redirect(cluster: &ClusterArgs, args: &RedirectArgs, helper: Starting) -> anyhow::Result<()> {
    run(async |parts: &mut Parts, steps: &mut Steps| {
        parts.helper = Some(helper.hello().await?);
        let (cluster, session) = parts.open_tunnel(cluster, &args.pod, steps).await?;
        let ranges = ranges(&cluster, &args.subnets, steps).await?;
        parts.redirect(&cluster, &session, ranges, &args.exclude, steps).await?;
        steps.ready("Ctrl-C ends it");
        parts.until_failure(&session).await
    })
    .await
}

/// `kshuttle socks`: serves SOCKS5 until a signal, or until the tunnel ends.
///
/// # Errors
/// As [`redirect()`].
pub async fn socks(cluster: &ClusterArgs, args: &SocksArgs) -> anyhow::Result<()> {
    run(async |parts: &mut Parts, steps: &mut Steps| {
        // Before anything else: the commonest mistake is a port that is taken.
        let listener = proxy::listen(args.listen).with_context(|| format!("listen on {}", args.listen))?;
        let (_, session) = parts.open_tunnel(cluster, &args.pod, steps).await?;
        let address = listener.local_addr().context("ask for the port")?;
        let (connections, tunnel) = (parts.connections.clone(), session.clone());
        parts.listeners.spawn(async move { socks::serve(listener, &connections, tunnel).await });
        steps.ready(format_args!("SOCKS5 on {address}, e.g. ALL_PROXY=socks5h://{address}; Ctrl-C ends it"));
        parts.until_failure(&session).await
    })
    .await
}

/// `kshuttle port-forward`: forwards until a signal, or until its pod is gone for good.
///
/// # Errors
/// As [`redirect()`].
pub async fn port_forward(cluster: &ClusterArgs, args: &PortForwardArgs) -> anyhow::Result<()> {
    run(async |parts: &mut Parts, steps: &mut Steps| {
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
        steps.ready("Ctrl-C ends it");
        Err(forwarding.serve(&parts.connections, &mut parts.listeners).await.into())
    })
    .await
}

/// Runs `work`, which starts everything and waits for an end, until a signal; then stops in order. A second signal ends the stop, too: what is left then is taken away
/// by the helper and, when its idle time is over, by the pod itself.
async fn run(
    work: impl AsyncFnOnce(&mut Parts, &mut Steps) -> anyhow::Result<Infallible>,
) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("catch signals")?;
    let mut parts = Parts::default();
    let mut steps = Steps::default();
    let ended = tokio::select! {
        Err(error) = work(&mut parts, &mut steps) => error,
        stop = signals.next() => stop.into(),
    };
    tokio::select! {
        () = parts.stop(&mut steps) => Err(ended),
        stop = signals.next() => Err(stop.into()),
    }
}

/// What has been started so far, in this order.
#[derive(Default)]
struct Parts {
    helper: Option<Helper>,
    pod: Option<SshdPod>,
    session: Option<Session>,
    connections: Connections,
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
    ) -> anyhow::Result<(Cluster, Session)> {
        let cluster = connect_cluster(args, steps).await?;
        let identity = Identity::generate().context("make this session's key")?;
        let pod = self.start_pod(&cluster, pod, &identity, steps).await?;
        let dialer = Dialer::new(cluster.client().clone(), cluster.namespace(), args.transport);
        let session = tokio::select! {
            session = connect(&dialer, pod.name(), &identity, steps) => session?,
            // A program that dies at once may have been seen running.
            end = pod.ended() => return Err(start_failed(pod, end)),
        };
        self.session = Some(session.clone());
        Ok((cluster, session))
    }

    async fn start_pod(
        &mut self,
        cluster: &Cluster,
        args: &PodArgs,
        identity: &Identity,
        steps: &mut Steps,
    ) -> anyhow::Result<&SshdPod> {
        let owner = owner();
        let program = match &args.image {
            Some(image) => Program::Image(image.clone()),
            None => Program::Delivered { payload: Payload::load()?, carrier: args.carrier_image.clone() },
        };
        let options = PodOptions {
            program,
            run_as: args.run_as_user.map_or(RunAs::Default, RunAs::Uid),
            authorized_key: identity.authorized_key().context("write down this session's key")?,
            idle: args.pod_idle,
            session: session_name(),
            start_time_max: sshd_pod::START_TIME_MAX,
            owner: owner.clone(),
        };
        sshd_pod::reap_finished(cluster, &owner).await;
        let pod = self.pod.insert(sshd_pod::create(cluster, &options, |text| steps.waiting(text)).await?);
        pod.wait_running(|text| steps.waiting(text)).await?;
        steps.done("pod", format_args!("{} is running", pod.name()));
        Ok(pod)
    }

    async fn redirect(
        &mut self,
        cluster: &Cluster,
        session: &Session,
        include: Vec<IpNet>,
        exclude: &[Subnet],
        steps: &mut Steps,
    ) -> anyhow::Result<()> {
        let mut ports = [None, None];
        for (port, address, wanted) in [
            (0, Ipv4Addr::LOCALHOST.into(), include.iter().any(|net| net.addr().is_ipv4())),
            (1, Ipv6Addr::LOCALHOST.into(), include.iter().any(|net| net.addr().is_ipv6())),
        ] {
            if !wanted {
                continue;
            }
            let listener =
                proxy::listen(SocketAddr::new(address, 0)).with_context(|| format!("listen on {address}"))?;
            ports[port] = Some(listener.local_addr().context("ask for the port")?.port());
            let (connections, tunnel) = (self.connections.clone(), session.clone());
            self.listeners.spawn(async move { redirect::serve(listener, &connections, tunnel).await });
        }
        // Our own way to the cluster must not lead through itself.
        let guarded = cluster.guarded_addresses().await.into_iter().map(IpNet::from);
        let exclude = exclude.iter().map(|subnet| subnet.0).chain(guarded).collect();
        for net in include.iter().filter(|net| !redirect::has_route(net)) {
            steps.say(format_args!(
                "warning: this machine has no route towards {net}; connections there fail until it has one"
            ));
        }
        let helper = self.helper.as_mut().ok_or(PrivilegedError::Ended)?;
        let listed = list(&include);
        let plan =
            Plan { session: session_name(), include, exclude, listener_v4: ports[0], listener_v6: ports[1] };
        self.redirected = true;
        let done = helper.apply(plan).await?;
        steps.done("redirect", format_args!("{listed} ({} table {})", done.method, done.table));
        Ok(())
    }

    /// Waits until something ends by itself that the session needs.
    async fn until_failure(&mut self, session: &Session) -> anyhow::Result<Infallible> {
        let pod = self.pod.as_ref();
        let pod_ended = async {
            match pod {
                Some(pod) => anyhow!(pod.ended().await).context(format!("the pod {} ended", pod.name())),
                None => std::future::pending().await,
            }
        };
        let tunnel_ended = async {
            session.ended().await;
            // If the pod's end is the cause, the API server knows it about now.
            tokio::time::sleep(CAUSE_TIMEOUT).await;
            anyhow!("the tunnel to the pod ended")
        };
        let helper_lost = async {
            match self.helper.as_mut() {
                Some(helper) => helper.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = tunnel_ended => Err(error),
            error = pod_ended => Err(error),
            error = helper_lost => Err(error.into()),
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
        if let Some(session) = self.session.take() {
            session.close().await;
        }
        if let Some(pod) = self.pod.take() {
            match pod.delete().await {
                Ok(()) => steps.done("pod", "deleted"),
                Err(error) => steps.say(format_args!("warning: {}", crate::report::chain(&error))),
            }
        }
    }
}

async fn connect_cluster(args: &ClusterArgs, steps: &mut Steps) -> anyhow::Result<Cluster> {
    let options = client::Options {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
        namespace: args.namespace.clone(),
        as_user: args.as_user.clone(),
        as_groups: args.as_groups.clone(),
    };
    let cluster = client::connect(&options).await?;
    steps.done("cluster", format_args!("{}, namespace {}", cluster.server(), cluster.namespace()));
    Ok(cluster)
}

/// Reaches the pod's server, which may have started only just now.
async fn connect(
    dialer: &Dialer,
    pod: &str,
    identity: &Identity,
    steps: &mut Steps,
) -> anyhow::Result<Session> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    let host_key = HostKey::default();
    loop {
        let error = match attempt(dialer, pod, identity, &host_key).await {
            Ok((session, transport)) => {
                let fingerprint = host_key.fingerprint().unwrap_or_default();
                steps.done("tunnel", format_args!("SSH over {transport}, host key {fingerprint}"));
                return Ok(session);
            }
            Err(error) => error,
        };
        // The stream opens before anyone listens; what was refused shows in the handshake over it.
        let early = matches!(error.downcast_ref(), Some(SessionError::Handshake(_)));
        if !early || Instant::now() > deadline {
            return Err(error);
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

async fn attempt(
    dialer: &Dialer,
    pod: &str,
    identity: &Identity,
    host_key: &HostKey,
) -> anyhow::Result<(Session, String)> {
    let stream: PortForwardStream = dialer.open(pod, sshd_pod::LISTEN_PORT).await?;
    let transport = stream.transport().to_string();
    Ok((Session::start(stream, identity, host_key).await?, transport))
}

/// What to redirect: what the user says, else what the cluster tells.
async fn ranges(cluster: &Cluster, asked: &[Subnet], steps: &mut Steps) -> anyhow::Result<Vec<IpNet>> {
    if !asked.is_empty() {
        return Ok(IpNet::aggregate(&asked.iter().map(|subnet| subnet.0).collect()));
    }
    let found = subnets::discover(cluster).await?;
    for note in &found.notes {
        steps.say(format_args!("  …         {note}"));
    }
    Ok(found.ranges)
}

/// Whose pods are ours: left-overs of the same user on the same machine are removed, nobody else's.
fn owner() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    format!("{}@{}", user.as_deref().unwrap_or("unknown"), host.as_deref().unwrap_or("unknown"))
}

/// Names this run where several meet: its table and its pod's annotation. Process ids are unique on a machine.
fn session_name() -> String {
    std::process::id().to_string()
}

fn start_failed(pod: &SshdPod, source: StartFailure) -> anyhow::Error {
    PodError::Start { pod: pod.name().to_owned(), source }.into()
}

fn list(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
