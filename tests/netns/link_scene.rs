//! A network namespace with a real systemd-resolved: a server outside, which it asked before, a stub inside, and programs
//! that ask.

use std::net::SocketAddr;
use std::process::Command;

use kshuttle_helper::protocol::{self, Plan, Reply, Request};
use kshuttle_test_support::dns::Server;
use kshuttle_test_support::resolver::{self, Library, Resolver};

use super::helper::{Helper, plan};
use super::listener::Listener;
use super::scene::{self, output};

/// Names inside and what they have.
pub(crate) const INSIDE: &[(&str, &str)] = &[
    ("hello.demo.svc.cluster.local", "10.96.7.7"),
    ("hello.demo.svc.cluster.local", "fd00:10:96::7"),
    ("hello.demo.svc", "10.96.7.7"),
    ("7.7.96.10.in-addr.arpa", "hello.demo.svc.cluster.local"),
];

/// The same names elsewhere: who has these was not asked of us.
const OTHERS: &[(&str, &str)] = &[
    ("www.public.test", "203.0.113.80"),
    ("hello.demo.svc", "203.0.113.66"),
    ("7.7.96.10.in-addr.arpa", "elsewhere.public.test"),
];

/// Why the test of this name cannot run here.
pub(crate) fn missing(test: &str) -> Option<String> {
    (test.starts_with("link") || test.contains("with_a_link")).then(resolver::missing).flatten()
}

/// resolved with a server, and a stub.
pub(crate) struct Scene {
    pub(crate) resolver: Resolver,
    pub(crate) upstream: Server,
    pub(crate) stub: Server,
    pub(crate) listener: Listener,
}

impl Scene {
    pub(crate) fn start(library: Library) -> Self {
        let upstream = Server::with_names(SocketAddr::new(scene::WAN4.parse().unwrap(), 53), OTHERS);
        let resolver = Resolver::start(&[upstream.address], library);
        let stub = Server::with_names("127.0.0.1:0".parse().unwrap(), INSIDE);
        Self { resolver, upstream, stub, listener: Listener::start() }
    }

    pub(crate) fn plan(&self, session: &str) -> Plan {
        plan(session, &self.listener, &["10.96.0.0/12"], &[])
    }

    pub(crate) fn helper(&self) -> Helper {
        Helper::ready(&self.plan("a"))
    }

    /// One with a link for these domains.
    pub(crate) fn linked(&self, domains: &[&str], search: &[&str]) -> Helper {
        let mut helper = self.helper();
        set(&mut helper, &self.link(domains, search));
        helper
    }

    pub(crate) fn link(&self, domains: &[&str], search: &[&str]) -> protocol::Link {
        link_to(&self.stub, domains, search)
    }
}

pub(crate) fn link_to(stub: &Server, domains: &[&str], search: &[&str]) -> protocol::Link {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let port = Some(stub.address.port());
    let (port_v4, port_v6) = if stub.address.is_ipv4() { (port, None) } else { (None, port) };
    protocol::Link { port_v4, port_v6, domains: names(domains), search: names(search) }
}

pub(crate) fn with(library: Library, test: impl FnOnce(Scene) + Send) {
    scene::run(|| test(Scene::start(library)));
}

pub(crate) fn with_each(test: impl Fn(Scene) + Send + Sync) {
    [Library::Dns, Library::Resolve].into_iter().for_each(|library| with(library, &test));
}

pub(crate) fn set(helper: &mut Helper, link: &protocol::Link) {
    helper.say(&Request::Link(link.clone()));
    assert_eq!(helper.hear(), Some(Reply::Updated {}));
}

/// The sentence that says why not.
pub(crate) fn refused(helper: &mut Helper, link: &protocol::Link) -> String {
    helper.say(&Request::Link(link.clone()));
    match helper.hear() {
        Some(Reply::Refused { message }) => message,
        other => panic!("instead of refused: {other:?}"),
    }
}

/// What a program finds by getaddrinfo: addresses, sorted.
pub(crate) fn found(name: &str) -> Vec<String> {
    let asked = Command::new("getent").args(["ahosts", name]).output().unwrap();
    let said = String::from_utf8(asked.stdout).unwrap();
    let mut addresses: Vec<String> =
        said.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// What dig is told by resolved's address.
pub(crate) fn dug(arguments: &[&str]) -> String {
    let common = ["@127.0.0.53", "+short", "+tries=1"];
    output("dig", &[&common, arguments].concat()).trim().to_owned()
}

/// A connection to the cluster is redirected.
pub(crate) fn rules_stand(scene: &Scene) {
    drop(scene::connect_to("10.96.1.1:80"));
    assert_eq!(scene.listener.next().0.to_string(), "10.96.1.1:80");
}
