//! How questions come to the stub: by a link that systemd-resolved is told about, by redirection of name servers, or both
//! where programs use both ways. Why which is in `docs/dns.md`.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use kshuttle_helper::protocol::{Link, NameServer};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Stub;
use crate::cli::NamesMethod;
use crate::dns::system::{DNS, System};
use crate::dns::{Front, Upstream};
use crate::privileged::questions::{Questions, UpdateError};
use crate::proxy::listen;

/// Ports that are tried until one is free for UDP and TCP alike.
const PORT_TRIES: usize = 16;

/// Where nss-resolve asks systemd-resolved, which is alive while it is there (nss-resolve(8)).
const NSS_RESOLVE: &str = "/run/systemd/resolve/io.systemd.Resolve";

/// What stands.
pub(super) struct Capture {
    questions: Questions,
    /// For questions from systemd-resolved, about these domains.
    link: Option<(Standing, Domains)>,
    /// For those to name servers, one each.
    servers: Vec<(IpAddr, Standing)>,
    /// What systemd-resolved itself asks.
    behind: watch::Sender<Vec<SocketAddr>>,
}

/// Those that are asked about, and those that complete single words.
type Domains = (Vec<String>, Vec<String>);

/// A front that is served until this is dropped.
struct Standing {
    port: u16,
    _tasks: JoinSet<()>,
}

/// What is to stand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) link: bool,
    pub(super) servers: Vec<IpAddr>,
}

impl Wanted {
    /// What programs of this machine use.
    pub(super) fn of(method: NamesMethod, system: &System) -> Self {
        Self::chosen(
            method,
            system,
            asks_resolved(&read("/etc/nsswitch.conf")) && Path::new(NSS_RESOLVE).exists(),
        )
    }

    fn chosen(method: NamesMethod, system: &System, nss_resolve: bool) -> Self {
        let servers = system.servers.iter().filter(|server| can_be_redirected(server)).map(SocketAddr::ip);
        let (resolved, others): (Vec<_>, Vec<_>) = servers.partition(is_resolved);
        match method {
            NamesMethod::None => Self::default(),
            NamesMethod::Link => Self { link: true, servers: Vec::new() },
            NamesMethod::Redirect => Self { link: false, servers: [resolved, others].concat() },
            NamesMethod::Auto => Self { link: nss_resolve || !resolved.is_empty(), servers: others },
        }
    }

    /// The same without the link: programs that ask systemd-resolved by DNS are served all the same.
    pub(super) fn without_link(system: &System) -> Self {
        Self::chosen(NamesMethod::Redirect, system, false)
    }
}

/// Not of one link only, which the rules do not tell apart, and of one family.
pub(super) fn can_be_redirected(server: &SocketAddr) -> bool {
    let special = match server.ip() {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    server.port() == DNS && !special
}

/// systemd-resolved's own addresses (systemd-resolved.service(8)).
fn is_resolved(server: &IpAddr) -> bool {
    [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)].iter().any(|own| *server == *own)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Does `hosts:` of nsswitch.conf(5) name nss-resolve?
fn asks_resolved(nsswitch: &str) -> bool {
    let hosts = nsswitch.lines().find_map(|line| line.trim().strip_prefix("hosts:"));
    hosts.is_some_and(|hosts| {
        hosts.split('#').next().unwrap_or_default().split_whitespace().any(|word| word == "resolve")
    })
}

impl Capture {
    pub(super) fn new(questions: Questions) -> Self {
        Self { questions, link: None, servers: Vec::new(), behind: watch::Sender::default() }
    }

    /// What the fronts of systemd-resolved's questions ask about names that are not the cluster's.
    pub(super) fn behind(&self, servers: Vec<SocketAddr>) {
        self.behind.send_replace(servers);
    }

    /// Has queries to these name servers come to fronts of their own, and to no others.
    pub(super) async fn redirect(&mut self, stub: &Stub, servers: &[IpAddr]) -> Result<(), CaptureError> {
        let mut fronts = Vec::new();
        for server in servers {
            // Bound and served before the first query comes.
            match self.servers.iter().position(|(address, _)| address == server) {
                Some(place) => fronts.push(self.servers.swap_remove(place)),
                None => {
                    let upstream = Upstream::Server(SocketAddr::new(*server, DNS));
                    fronts.push((*server, Standing::start(stub, server.is_ipv6(), upstream).await?));
                }
            }
        }
        let old = std::mem::replace(&mut self.servers, fronts);
        let said =
            self.servers.iter().map(|(address, front)| NameServer { address: *address, port: front.port });
        self.questions.names(said.collect()).await?;
        drop(old); // not before nothing comes there any more
        Ok(())
    }

    /// Has systemd-resolved ask a front about these domains, or other domains than before.
    pub(super) async fn link(
        &mut self,
        stub: &Stub,
        domains: Vec<String>,
        search: Vec<String>,
    ) -> Result<(), CaptureError> {
        let first = match self.link {
            Some(_) => None,
            None => Some(Standing::start(stub, false, Upstream::Servers(self.behind.subscribe())).await?),
        };
        let standing = first.as_ref().or(self.link.as_ref().map(|(front, _)| front));
        let port_v4 = standing.map(|front| front.port);
        let said = Link { port_v4, port_v6: None, domains: domains.clone(), search: search.clone() };
        self.questions.link(said).await?;
        let front = first.or(self.link.take().map(|(front, _)| front));
        self.link = front.map(|front| (front, (domains, search)));
        Ok(())
    }

    /// Has nothing come to us any more.
    pub(super) async fn release(&mut self, stub: &Stub) -> Result<(), CaptureError> {
        if self.link.is_some() {
            // It stays for as long as the helper; without domains nobody is asked there.
            self.link(stub, Vec::new(), Vec::new()).await?;
            self.link = None;
        }
        self.redirect(stub, &[]).await
    }

    /// Whether systemd-resolved asks us.
    pub(super) fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// Whether it does so about these domains; none where it does not at all.
    pub(super) fn is_linked_for(&self, domains: &[String], search: &[String]) -> Option<bool> {
        self.link.as_ref().map(|(_, said)| said.0 == domains && said.1 == search)
    }

    /// The name servers whose questions come to us.
    pub(super) fn servers(&self) -> Vec<IpAddr> {
        self.servers.iter().map(|(address, _)| *address).collect()
    }
}

/// Why questions do not come to us.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error("listen for questions about names")]
    Listen(#[from] io::Error),
    #[error(transparent)]
    Helper(#[from] UpdateError),
}

impl Standing {
    async fn start(stub: &Stub, v6: bool, upstream: Upstream) -> io::Result<Self> {
        let (datagrams, connections) = bind(v6).await?;
        let port = datagrams.local_addr()?.port();
        let (stub, mut tasks) = (stub.clone(), JoinSet::new());
        tasks.spawn(async move { stub.serve(Front { datagrams, connections, upstream }).await });
        Ok(Self { port, _tasks: tasks })
    }
}

/// One port for both.
async fn bind(v6: bool) -> io::Result<(UdpSocket, TcpListener)> {
    let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let mut tries = 0;
    loop {
        let datagrams = UdpSocket::bind(SocketAddr::new(loopback, 0)).await?;
        match listen(datagrams.local_addr()?) {
            Ok(connections) => return Ok((datagrams, connections)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < PORT_TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(servers: &[&str]) -> System {
        let servers = servers.iter().map(|server| server.parse().unwrap()).collect();
        System { servers, upstream: Vec::new(), search: Vec::new(), ndots: 1 }
    }

    #[test]
    fn what_programs_use_is_captured() {
        let resolved = system(&["127.0.0.53:53"]);
        let plain =
            system(&["198.51.100.53:53", "[2001:db8::53]:53", "198.51.100.54:5353", "[fe80::1%2]:53"]);
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let both = ips(&["198.51.100.53", "2001:db8::53"]);
        let wanted = |link, servers| Wanted { link, servers };
        let auto = NamesMethod::Auto;
        assert_eq!(Wanted::chosen(auto, &resolved, false), wanted(true, vec![]));
        assert_eq!(Wanted::chosen(auto, &plain, false), wanted(false, both.clone()));
        assert_eq!(Wanted::chosen(auto, &plain, true), wanted(true, both.clone()));
        assert_eq!(Wanted::chosen(NamesMethod::Link, &plain, false), wanted(true, vec![]));
        assert_eq!(Wanted::chosen(NamesMethod::Redirect, &plain, true), wanted(false, both));
        assert_eq!(Wanted::without_link(&resolved), wanted(false, ips(&["127.0.0.53"])));
        assert_eq!(Wanted::chosen(NamesMethod::None, &plain, true), Wanted::default());
    }

    #[test]
    fn the_line_of_nsswitch() {
        assert!(asks_resolved("passwd: files\nhosts:  files resolve [!UNAVAIL=return] dns\n"));
        assert!(!asks_resolved("hosts: files dns # resolve\n"));
        assert!(!asks_resolved("hosts: files mdns4_minimal [NOTFOUND=return] dns myresolve\n"));
        assert!(!asks_resolved(""));
    }

    #[tokio::test]
    async fn one_port_serves_both() {
        let (datagrams, connections) = bind(false).await.unwrap();
        assert_eq!(datagrams.local_addr().unwrap(), connections.local_addr().unwrap());
    }
}
