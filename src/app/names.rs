//! Names while the rules stand: learns what the cluster calls itself, brings questions to the stub, and keeps both true.
//!
//! States: learnt → captured → checked → followed. A change of this machine's name servers, of the cluster's namespaces or of
//! the ranges leads back to captured. What cannot be had is told; redirecting goes on without names.

mod capture;
mod check;
mod domains;
mod learn;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use ipnet::IpNet;
use kshuttle_wire::causes::chain;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::capture::{Capture, CaptureError, Wanted};
use self::check::Before;
use self::learn::{LearnError, Learnt};
use super::redirect::others;
use crate::cli::{NamesArgs, NamesMethod};
use crate::cluster::client::Cluster;
use crate::cluster::names::{follow_namespaces, namespaces};
use crate::control::Session;
use crate::dns::system::{self, System};
use crate::dns::zone::Zones;
use crate::dns::{self, Settings, Upstream};
use crate::privileged::PrivilegedError;
use crate::privileged::questions::{Questions, UpdateError};
use crate::privileged::sockets::{Lent, Sockets};
use crate::proxy::redirect::has_route;
use crate::report::Steps;
use crate::tunnel::pool::Pool;

/// How often it is looked whether names still come to us, if nothing happened.
const LOOK: Duration = Duration::from_secs(60);

/// The stub as it is used here.
pub(super) type Stub = dns::Stub<Pool, Exempt>;

/// Sockets that are not redirected: opened by the helper.
#[derive(Clone)]
pub(super) struct Exempt(Sockets);

impl dns::Sockets for Exempt {
    type Udp = Lent;

    async fn udp(&self, server: SocketAddr) -> io::Result<Lent> {
        self.0.datagrams(server).await.map_err(io::Error::other)
    }

    async fn tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect(server).await.map_err(io::Error::other)
    }
}

/// What stands, and what may change it.
pub(super) struct Names {
    stub: Stub,
    zones: watch::Sender<Zones>,
    ranges: watch::Receiver<Vec<IpNet>>,
    namespaces: watch::Receiver<Option<BTreeSet<String>>>,
    system: system::Watch,
    capture: Capture,
    method: NamesMethod,
    /// Whether systemd-resolved completes single words.
    search: bool,
    looped: watch::Receiver<u64>,
    /// How the last look ended; told when it changes.
    well: bool,
    /// Told in `zones`, but systemd-resolved could not take them.
    refused: bool,
    _followers: JoinSet<()>,
}

/// What is needed to start.
pub(super) struct Start<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) pool: Pool,
    pub(super) questions: Questions,
    pub(super) ranges: watch::Receiver<Vec<IpNet>>,
    pub(super) session: Option<&'a Session>,
}

impl Names {
    /// Brings questions to us and proves it. None where names are left alone, which was told.
    ///
    /// # Errors
    /// When the helper is gone.
    pub(super) async fn start(
        from: Start<'_>,
        args: &NamesArgs,
        steps: &mut Steps,
    ) -> Result<Option<Self>, PrivilegedError> {
        let Start { cluster, pool, questions, ranges, session } = from;
        if args.method() == NamesMethod::None {
            return Ok(None);
        }
        let system = system::Watch::new();
        let (learnt, before) =
            tokio::join!(learn::learn(cluster, &pool, args, steps), Before::ask(system.seen()));
        let Learnt { domain, servers, by } = match learnt {
            Ok(learnt) => learnt,
            Err(error @ (LearnError::Domain(_) | LearnError::Servers(_))) => {
                steps.say(format_args!("warning: names are left alone: {error}"));
                return Ok(None);
            }
        };
        let domain_text = domains::text(&domain);
        let told = format!("{domain_text} at {} (told by {by})", servers[0].ip());
        let (followers, namespaces) = namespaces_of(cluster, args, steps).await;
        let zones = watch::Sender::new(Zones {
            domain,
            servers,
            namespace: cluster.namespace().to_owned(),
            namespaces: namespaces.borrow().clone(),
            mapped: args.mapped(),
            ranges: ranges.borrow().clone(),
            extra: args.dns_zone.iter().map(|zone| (zone.name.clone(), zone.server)).collect(),
            check: check::label(),
            ipv6: reaches_ipv6(&ranges.borrow()),
        });
        let stub = Stub::new(Settings {
            up: pool.is_up(),
            tunnel: pool,
            zones: zones.subscribe(),
            sockets: Exempt(Sockets::new(questions.clone())),
        });
        if let Some(session) = session {
            explain_in(session, &stub);
        }
        let looped = stub.looped();
        let mut names = Self {
            capture: Capture::new(questions),
            search: !args.no_dns_search,
            method: args.method(),
            well: true,
            refused: false,
            _followers: followers,
            stub,
            zones,
            ranges,
            namespaces,
            system,
            looped,
        };
        names.capture(steps).await?;
        if !names.is_captured() {
            steps.say("warning: names are left alone: questions about them cannot be brought to kshuttle");
            return Ok(None);
        }
        if let Err(error) = before.compare(names.system.seen()).await {
            steps.say(format_args!("warning: names are left alone: {error}"));
            names.release().await?;
            return Ok(None);
        }
        names.settle(steps).await?;
        if let Some(session) = session {
            session.answers_for(domain_text.clone());
        }
        names.tell_of_others(&domain_text, steps).await;
        steps.done("names", format_args!("{told}; {}", names.how()));
        Ok(Some(names))
    }

    /// Keeps names right for as long as the rules stand; returns when the helper is gone.
    pub(super) async fn follow(&mut self, steps: &mut Steps) -> PrivilegedError {
        let mut next = Instant::now() + LOOK;
        loop {
            let changed = tokio::select! {
                _ = self.system.changed() => {
                    next = Instant::now();
                    self.servers_changed(steps).await
                }
                Ok(()) = self.ranges.changed() => self.zones_changed(steps).await,
                Ok(()) = self.namespaces.changed() => self.zones_changed(steps).await,
                Ok(()) = self.looped.changed() => {
                    steps.say(
                        "warning: kshuttle's own questions to the name servers came back to it; their redirection is taken out. \
                         Does another program redirect port 53?",
                    );
                    self.redirect(steps, &[]).await
                }
                () = sleep_until(next) => {
                    let settled = self.settle(steps).await;
                    next = Instant::now() + LOOK;
                    settled
                }
            };
            if let Err(error) = changed {
                return error;
            }
        }
    }

    async fn servers_changed(&mut self, steps: &mut Steps) -> Result<(), PrivilegedError> {
        steps.say("this machine's name servers changed");
        self.tell_zones(); // with the network, the way to IPv6 may have changed
        self.capture(steps).await
    }

    /// Puts up what this machine's programs use now.
    async fn capture(&mut self, steps: &mut Steps) -> Result<(), PrivilegedError> {
        let system = self.system.seen().clone();
        let mut wanted = Wanted::of(self.method, &system);
        self.capture.behind(system.upstream.clone());
        if wanted.link && !self.link(steps).await? && self.method == NamesMethod::Auto {
            wanted = Wanted::without_link(&system);
            steps.say("note: programs that ask systemd-resolved by nss-resolve do not find the cluster's names then");
        }
        self.redirect(steps, &wanted.servers).await
    }

    /// True when systemd-resolved asks us.
    async fn link(&mut self, steps: &mut Steps) -> Result<bool, PrivilegedError> {
        let (domains, search) = domains::of(&self.zones.borrow(), self.search);
        let answer = self.capture.link(&self.stub, domains, search).await;
        told(answer, "systemd-resolved does not ask kshuttle", &mut self.refused, steps)
    }

    async fn redirect(&mut self, steps: &mut Steps, servers: &[IpAddr]) -> Result<(), PrivilegedError> {
        let answer = self.capture.redirect(&self.stub, servers).await;
        told(answer, "questions to the name servers do not come to kshuttle", &mut false, steps).map(drop)
    }

    async fn release(&mut self) -> Result<(), PrivilegedError> {
        match self.capture.release(&self.stub).await {
            Err(CaptureError::Helper(UpdateError::Helper(error))) => Err(error),
            _ => Ok(()), // there is nothing that could be told more
        }
    }

    fn is_captured(&self) -> bool {
        self.capture.is_linked() || !self.capture.servers().is_empty()
    }

    /// The stub, and systemd-resolved, hear what the cluster and the ranges are now.
    async fn zones_changed(&mut self, steps: &mut Steps) -> Result<(), PrivilegedError> {
        self.tell_zones();
        let (domains, search) = domains::of(&self.zones.borrow(), self.search);
        match self.capture.is_linked_for(&domains, &search) {
            Some(false) => self.link(steps).await.map(drop),
            Some(true) | None => Ok(()),
        }
    }

    fn tell_zones(&mut self) {
        let (ranges, namespaces) =
            (self.ranges.borrow_and_update().clone(), self.namespaces.borrow_and_update().clone());
        self.zones.send_modify(|zones| {
            zones.ipv6 = reaches_ipv6(&ranges);
            (zones.ranges, zones.namespaces) = (ranges, namespaces);
        });
    }

    /// Looks whether questions come to us. If not, they are captured anew: somebody may have taken that out, or systemd-resolved
    /// forgot it. Tells when the end is news. Name servers that change meanwhile make the look worthless.
    async fn settle(&mut self, steps: &mut Steps) -> Result<(), PrivilegedError> {
        let mut again = true;
        loop {
            let (zones, seen) = (self.zones.borrow().clone(), self.system.seen().clone());
            let looked = tokio::select! {
                looked = check::all(&self.stub, &zones, &seen) => Some(looked),
                _ = self.system.changed() => None,
            };
            match looked {
                None => {
                    again = true;
                    self.servers_changed(steps).await?;
                }
                Some(Err(_)) if std::mem::take(&mut again) => self.capture(steps).await?,
                Some(Err(error)) => {
                    if std::mem::take(&mut self.well) {
                        steps.say(format_args!("warning: names of the cluster: {}", chain(&error)));
                    }
                    return Ok(());
                }
                Some(Ok(())) => {
                    if !std::mem::replace(&mut self.well, true) {
                        steps.say("names of the cluster are found again");
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Two clusters of one domain: no name says which is meant.
    async fn tell_of_others(&self, domain: &str, steps: &mut Steps) {
        // systemd-resolved asks both, and takes the answer that comes first.
        let whose = if self.capture.is_linked() { "either's" } else { "this session's while it runs" };
        for other in others().await.into_iter().filter(|other| other.domain.as_deref() == Some(domain)) {
            steps.say(format_args!(
                "note: {domain} is the domain of session {}, too: names below it and below svc are {whose} \
                 (--no-dns leaves them to the other)",
                other.name
            ));
        }
    }

    /// For people.
    fn how(&self) -> String {
        let servers: Vec<String> = self.capture.servers().iter().map(ToString::to_string).collect();
        let servers = servers.join(", ");
        match (self.capture.is_linked(), servers.is_empty()) {
            (true, true) => "systemd-resolved asks kshuttle about them".to_owned(),
            (false, _) => format!("questions to {servers} pass kshuttle"),
            (true, false) => format!("systemd-resolved asks kshuttle, and questions to {servers} pass it"),
        }
    }
}

/// True when it stands; a refusal is told once.
fn told(
    answer: Result<(), CaptureError>,
    what: &str,
    refused: &mut bool,
    steps: &mut Steps,
) -> Result<bool, PrivilegedError> {
    match answer {
        Ok(()) => {
            *refused = false;
            Ok(true)
        }
        Err(CaptureError::Helper(UpdateError::Helper(error))) => Err(error),
        Err(error) => {
            if !std::mem::replace(refused, true) {
                steps.say(format_args!("warning: {what}: {}", chain(&error)));
            }
            Ok(false)
        }
    }
}

/// The namespaces and who follows them.
async fn namespaces_of(
    cluster: &Cluster,
    args: &NamesArgs,
    steps: &mut Steps,
) -> (JoinSet<()>, watch::Receiver<Option<BTreeSet<String>>>) {
    let mut followers = JoinSet::new();
    match namespaces(cluster).await {
        Ok(all) => {
            let public =
                all.iter().filter(|name| dns::zone::is_public(name) && !args.mapped().contains(*name));
            for name in public {
                steps.say(format_args!(
                    "note: {name} is a namespace and a domain of the Internet: names in .{name} stay the Internet's \
                     (SERVICE.{name}.svc is the cluster's; --mapped-namespaces {name} changes it)"
                ));
            }
            let (sender, known) = watch::channel(Some(all));
            let cluster = cluster.clone();
            followers.spawn(async move {
                let tell = |all| _ = sender.send_if_modified(|known| known.replace(all) != *known);
                follow_namespaces(&cluster, tell).await;
            });
            (followers, known)
        }
        Err(error) => {
            tracing::info!(error = chain(&error), "namespaces cannot be listed");
            (followers, watch::channel(None).1)
        }
    }
}

/// Whether this machine sends anything to the cluster's addresses of IPv6.
fn reaches_ipv6(ranges: &[IpNet]) -> bool {
    ranges.iter().any(|range| matches!(range, IpNet::V6(_)) && has_route(range))
}

/// Whoever asks the session about a name is answered by the stub.
fn explain_in(session: &Session, stub: &Stub) {
    let stub = stub.clone();
    session.explains(Arc::new(move |name: String, kind: String| {
        let stub = stub.clone();
        async move {
            let upstream = Upstream::Servers(watch::channel(System::read().upstream).1);
            stub.explain(&name, &kind, &upstream).await.map_err(|error| error.to_string())
        }
        .boxed()
    }));
}
