//! The main job: ranges, listeners and rules, and what changes in them while they stand.

mod warnings;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use ipnet::IpNet;
use kshuttle_helper::protocol::{Bridge, Plan, Who};
use nix::ifaddrs::getifaddrs;
use nix::unistd::{Group, User};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::Parts;
use crate::addr::Exclude;
use crate::cli::{RedirectArgs, RedirectMethod};
use crate::cluster::client::Cluster;
use crate::cluster::subnets::{self, Mode, Watch};
use crate::control::registry::{Found, sessions};
use crate::control::socket::ask;
use crate::control::{Answer, Request, Status};
use crate::dns;
use crate::privileged::questions::{Questions, UpdateError};
use crate::privileged::{PrivilegedError, Redirected};
use crate::proxy::datagrams::{self, Remembered};
use crate::proxy::{self, redirect};
use crate::report::Steps;
use crate::surroundings;

/// Networks and servers that are told one by one; more are counted.
const TOLD_MAX: usize = 8;

/// Why nothing is redirected.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// Two sessions cannot have one address.
    #[error("session {name} redirects {theirs} already, which meets {ours}")]
    Taken {
        /// The other session.
        name: String,
        /// Its range.
        theirs: IpNet,
        /// The one that was wanted.
        ours: IpNet,
    },
    /// `--user` or `--group`.
    #[error("there is no {0} {1}")]
    Nobody(&'static str, String),
    /// `--listen-bridge`.
    #[error("the interface {0} has no address (is it there?)")]
    NoBridge(String),
    /// `--narrow` within ranges that no address is in.
    #[error("nothing in the cluster has an address in the ranges named")]
    NothingNarrow,
}

/// What is redirected now, and how that changes.
pub struct Ranges {
    /// What the cluster tells; none where the user says all of it.
    watch: Option<Watch>,
    /// What the user says; of what the cluster tells, only what is in here.
    within: Option<Vec<IpNet>>,
    exclude: Vec<IpNet>,
    questions: Option<Questions>,
    /// Those that are redirected now.
    now: watch::Sender<Vec<IpNet>>,
}

impl Ranges {
    /// Whom to ask while the rules stand; none where there are no rules.
    pub fn questions(&self) -> Option<Questions> {
        self.questions.clone()
    }

    /// What is redirected, and each change of it.
    pub fn now(&self) -> watch::Receiver<Vec<IpNet>> {
        self.now.subscribe()
    }

    /// What the user says, else what the cluster tells.
    async fn find(
        cluster: &Cluster,
        args: &RedirectArgs,
        steps: &mut Steps,
    ) -> anyhow::Result<(Self, Vec<IpNet>)> {
        let said = args.ranges().context("read the ranges")?;
        let within = (!said.is_empty()).then(|| IpNet::aggregate(&said));
        let now = watch::Sender::default();
        let mut ranges = Self { watch: None, within, exclude: Vec::new(), questions: None, now };
        if let Some(within) = ranges.within.clone().filter(|_| !args.narrow) {
            return Ok((ranges, within));
        }
        let mode = if args.narrow { Mode::Narrow } else { Mode::Ranges };
        let found = subnets::find(cluster, mode).await?;
        for note in &found.notes {
            steps.say(format_args!("  …         {note}"));
        }
        let include = limited(found.watch.ranges().to_vec(), ranges.within.as_deref());
        anyhow::ensure!(!include.is_empty(), RedirectError::NothingNarrow);
        ranges.watch = Some(found.watch);
        Ok((ranges, include))
    }

    /// Follows the cluster for as long as the rules stand.
    pub async fn follow(
        &mut self,
        session: Option<&crate::control::Session>,
        steps: &mut Steps,
    ) -> PrivilegedError {
        let (Some(watch), Some(questions)) = (&mut self.watch, self.questions.clone()) else {
            return std::future::pending().await;
        };
        loop {
            let include = limited(watch.next().await, self.within.as_deref());
            let (include, taken) = without_others(include).await;
            for error in taken {
                steps.say(format_args!("warning: not redirected: {error}"));
            }
            let listed = shortened(&include);
            match questions.update(include.clone(), self.exclude.clone()).await {
                Ok(()) => {
                    steps.say(format_args!("ranges changed: {listed}"));
                    self.now.send_replace(include.clone());
                    if let Some(session) = session {
                        session.redirects(include);
                    }
                }
                Err(UpdateError::Refused(why)) => {
                    steps.say(format_args!("warning: the ranges stay as they were: {why}"))
                }
                Err(UpdateError::Helper(error)) => return error,
            }
        }
    }
}

/// Of these, what the user wants.
fn limited(all: Vec<IpNet>, within: Option<&[IpNet]>) -> Vec<IpNet> {
    let wanted = |net: &IpNet| within.is_none_or(|within| within.iter().any(|range| range.contains(net)));
    all.into_iter().filter(wanted).collect()
}

/// Takes away what other sessions have, and says so.
async fn without_others(include: Vec<IpNet>) -> (Vec<IpNet>, Vec<RedirectError>) {
    let mut taken = Vec::new();
    let others: Vec<_> = others().await.into_iter().map(|other| (other.name, other.ranges)).collect();
    let free = include.into_iter().filter(|ours| match meets(&others, *ours) {
        Some(error) => {
            taken.push(error);
            false
        }
        None => true,
    });
    (free.collect(), taken)
}

fn meets(others: &[(String, Vec<IpNet>)], ours: IpNet) -> Option<RedirectError> {
    others.iter().find_map(|(name, ranges)| {
        let theirs = *ranges.iter().find(|theirs| surroundings::overlap(theirs, &ours))?;
        Some(RedirectError::Taken { name: name.clone(), theirs, ours })
    })
}

/// This user's other sessions.
pub(super) async fn others() -> Vec<Status> {
    let mut others = Vec::new();
    let ours = super::session_name();
    for Found { name, socket } in sessions().into_iter().filter(|found| found.name != ours) {
        // One that does not answer is ending, or of a version that redirects nothing we could know of.
        if let Ok(Answer::Status(status)) = ask(&name, &socket, Request::Status).await {
            others.push(status);
        }
    }
    others
}

impl Parts {
    /// Puts everything up, rules last.
    pub(super) async fn redirect(
        &mut self,
        cluster: &Cluster,
        args: &RedirectArgs,
        steps: &mut Steps,
    ) -> anyhow::Result<Ranges> {
        let (mut ranges, include) = Ranges::find(cluster, args, steps).await?;
        let (include, taken) = without_others(include).await;
        if let Some(error) = taken.into_iter().next() {
            return Err(error.into());
        }
        let (nets, exclude_ports) = excluded(args, &include, steps);
        // Our own way to the cluster must not lead through itself.
        let guarded = cluster.guarded_addresses().await.into_iter().map(IpNet::from);
        ranges.exclude = nets.into_iter().chain(guarded).collect();
        let (later, now) = include.iter().partition(|net| args.makes_ipv6_routes() && net.addr().is_ipv6());
        warnings::of_missing_routes(now, args, steps);
        warnings::of_surroundings(&include, &ranges.exclude, args, steps);

        let mut plan = Plan {
            session: super::session_name(),
            method: args.redirect.of_helper(),
            include: include.clone(),
            exclude: ranges.exclude.clone(),
            exclude_ports,
            who: who(args)?,
            ipv6_routes: args.makes_ipv6_routes(),
            ..Plan::default()
        };
        let mut sockets = Vec::new();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let wanted = include.iter().any(|net| net.addr().is_ipv4() == address.is_ipv4());
            let Some(ports) = self.listen(address, None, args, wanted, &mut sockets)? else { continue };
            let (listener, datagrams) = if address.is_ipv4() {
                (&mut plan.listener_v4, &mut plan.datagrams_v4)
            } else {
                (&mut plan.listener_v6, &mut plan.datagrams_v6)
            };
            (*listener, *datagrams) = (Some(ports.0), ports.1);
        }
        for (name, address, subnet) in bridges(args)? {
            let Some(ports) = self.listen(address, Some(subnet), args, true, &mut sockets)? else {
                continue;
            };
            plan.bridges.push(Bridge { name, address, subnet, listener: ports.0, datagrams: ports.1 });
        }
        if let Some(session) = &self.session {
            session.redirects(include.clone());
        }
        ranges.now.send_replace(include.clone());
        let remembered = match args.redirect {
            RedirectMethod::None => {
                let ports = [plan.listener_v4, plan.listener_v6]
                    .map(|port| port.map_or("-".into(), |port| port.to_string()));
                steps.done(
                    "redirect",
                    format_args!(
                        "none; transparent listeners: 127.0.0.1:{} and [::1]:{}",
                        ports[0], ports[1]
                    ),
                );
                return Ok(ranges); // datagrams need the helper
            }
            _ => self.put_rules_in(plan, &mut ranges, steps).await?,
        };
        warnings::of_missing_routes(later, args, steps); // unless they stand now
        for (socket, only) in sockets {
            let Some(questions) = ranges.questions.clone() else { break };
            let tunnel = self.tunnel()?;
            self.listeners.spawn(async move {
                let error = datagrams::serve(socket, only, remembered, questions, tunnel).await;
                tracing::warn!(%error, "datagrams are not served any more");
            });
        }
        Ok(ranges)
    }

    async fn put_rules_in(
        &mut self,
        plan: Plan,
        ranges: &mut Ranges,
        steps: &mut Steps,
    ) -> anyhow::Result<Remembered> {
        let helper = self.helper.as_mut().ok_or(PrivilegedError::Ended)?;
        let listed = shortened(&plan.include);
        self.redirected = true;
        let Redirected { method, table, notes, datagrams } = helper.apply(plan).await?;
        ranges.questions = Some(helper.questions());
        for note in notes {
            steps.say(format_args!("note: {note}"));
        }
        steps.done("redirect", format_args!("{listed} ({method} table {table})"));
        let [unanswered, answered] = datagrams;
        Ok(Remembered { unanswered, answered })
    }

    /// Listens at this address: the ports for connections and for datagrams. None where this machine lacks the family
    /// and nobody needs it.
    fn listen(
        &mut self,
        address: IpAddr,
        only: Option<IpNet>,
        args: &RedirectArgs,
        wanted: bool,
        sockets: &mut Vec<(UdpSocket, Option<IpNet>)>,
    ) -> anyhow::Result<Option<(u16, Option<u16>)>> {
        let listener = match proxy::listen(SocketAddr::new(address, 0)) {
            Ok(listener) => listener,
            Err(error) if wanted => return Err(error).with_context(|| format!("listen on {address}")),
            Err(_) => return Ok(None),
        };
        let port = listener.local_addr().context("ask for the port")?.port();
        let (connections, tunnel) = (self.connections.clone(), self.tunnel()?);
        self.listeners.spawn(async move { redirect::serve(listener, only, &connections, tunnel).await });
        if args.no_udp || args.redirect == RedirectMethod::None {
            return Ok(Some((port, None)));
        }
        let socket =
            datagrams::bind(address).with_context(|| format!("listen on {address} for datagrams"))?;
        let datagrams = socket.local_addr().context("ask for the port")?.port();
        sockets.push((socket, only));
        Ok(Some((port, Some(datagrams))))
    }
}

/// What the user wants to be left alone, and this machine's name servers: it must go on resolving names as before.
fn excluded(args: &RedirectArgs, include: &[IpNet], steps: &mut Steps) -> (Vec<IpNet>, Vec<SocketAddr>) {
    let (mut nets, mut ports) = (Vec::new(), BTreeSet::new());
    for exclude in &args.exclude {
        match exclude {
            Exclude::Net(net) => nets.push(*net),
            Exclude::Port(port) => drop(ports.insert(*port)),
        }
    }
    let inside = |server: &SocketAddr| include.iter().any(|net| net.contains(&server.ip()));
    for server in dns::system::name_servers().into_iter().filter(inside) {
        steps.say(format_args!(
            "note: {server} is this machine's name server inside a redirected range; it is left alone"
        ));
        ports.insert(server);
    }
    (nets, ports.into_iter().collect())
}

fn who(args: &RedirectArgs) -> anyhow::Result<Who> {
    let by_number = |name: &String| name.parse::<u32>().ok();
    let user = |name: &String| {
        let found =
            by_number(name).or_else(|| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()));
        found.ok_or_else(|| RedirectError::Nobody("user", name.clone()))
    };
    let group = |name: &String| {
        let found =
            by_number(name).or_else(|| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()));
        found.ok_or_else(|| RedirectError::Nobody("group", name.clone()))
    };
    Ok(Who {
        users: args.user.iter().map(user).collect::<Result<_, _>>()?,
        groups: args.group.iter().map(group).collect::<Result<_, _>>()?,
        cgroups: args.cgroup.iter().map(|path| path.trim_matches('/').to_owned()).collect(),
    })
}

/// The first address of each family that each bridge has: there the kernel redirects to.
fn bridges(args: &RedirectArgs) -> anyhow::Result<Vec<(String, IpAddr, IpNet)>> {
    let mut bridges = Vec::new();
    for name in &args.listen_bridge {
        let before = bridges.len();
        for interface in
            getifaddrs().context("list the interfaces")?.filter(|one| one.interface_name == *name)
        {
            let Some((address, net)) = network_of(&interface) else { continue };
            let seen = bridges[before..]
                .iter()
                .any(|(_, other, _): &(_, IpAddr, _)| other.is_ipv4() == address.is_ipv4());
            if !seen {
                bridges.push((name.clone(), address, net));
            }
        }
        anyhow::ensure!(bridges.len() > before, RedirectError::NoBridge(name.clone()));
    }
    Ok(bridges)
}

fn network_of(interface: &nix::ifaddrs::InterfaceAddress) -> Option<(IpAddr, IpNet)> {
    let (address, mask) = (interface.address.as_ref()?, interface.netmask.as_ref()?);
    let v4 = |address: &nix::sys::socket::SockaddrStorage| Some(IpAddr::V4(address.as_sockaddr_in()?.ip()));
    let v6 = |address: &nix::sys::socket::SockaddrStorage| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip()));
    let ip = |address| v4(address).or_else(|| v6(address));
    let address = ip(address)?;
    if matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
        return None; // the kernel redirects to a global one
    }
    let net = IpNet::with_netmask(address, ip(mask)?).ok()?;
    Some((address, net.trunc()))
}

/// The first few, for people.
fn shortened(nets: &[IpNet]) -> String {
    let mut text = nets.iter().take(TOLD_MAX).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if nets.len() > TOLD_MAX {
        text += &format!(" and {} more", nets.len() - TOLD_MAX);
    }
    text
}
