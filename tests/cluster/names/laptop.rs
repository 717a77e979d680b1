//! Laptops that resolve names in different ways, and the programs that ask them.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use kshuttle_test_support::dns::Server;
use kshuttle_test_support::kshuttle::eventually;
use kshuttle_test_support::resolver::{self, Library, Resolver};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The laptop's own name server, on an address of its own.
const SERVER: &str = "198.51.100.2:53";

/// What it knows.
const OUTSIDE: &[(&str, &str)] = &[("www.public.test", "203.0.113.80"), ("docs.dev", "203.0.113.81")];

/// How the laptop resolves names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Laptop {
    /// `/etc/resolv.conf` names a server.
    Plain,
    /// It names a forwarder on this machine (dnsmasq, as NetworkManager starts it), which asks that server.
    Forwarder,
    /// systemd-resolved answers; the C library asks it by DNS.
    Resolved,
    /// The same; the C library asks it by nss-resolve.
    NssResolve,
}

/// A program that looks names up.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) command: fn(&str) -> Command,
    /// It completes single words by the search list.
    pub(super) completes: bool,
}

fn command(line: &str, name: &str) -> Command {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(name);
    command
}

fn built(file: &str) -> String {
    let folder = std::env::var("KSHUTTLE_TEST_LOOKUP").expect("the caller asked what is missing");
    format!("{folder}/{file}")
}

const PYTHON: &str = "import socket,sys;print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1],80)})";

pub(super) fn programs(laptop: Laptop) -> Vec<Program> {
    let mut all = vec![
        Program { name: "glibc", command: |name| command("getent ahosts", name), completes: true },
        Program {
            name: "Python",
            command: |name| {
                let mut python = Command::new("/usr/bin/python3");
                python.args(["-c", PYTHON, name]);
                python
            },
            completes: true,
        },
        Program { name: "static Go", command: |name| command(&built("go"), name), completes: true },
        Program { name: "static musl", command: |name| command(&built("musl"), name), completes: true },
        Program { name: "dig, UDP", command: |name| command("dig +short +notcp", name), completes: false },
        Program { name: "dig, TCP", command: |name| command("dig +short +tcp", name), completes: false },
    ];
    if fs::exists("/usr/bin/java").unwrap() {
        let java = |name: &str| command(&format!("java {}", built("Lookup.java")), name);
        all.push(Program { name: "Java", command: java, completes: true });
    }
    if has_resolved(laptop) {
        let query = |name: &str| command("resolvectl query", name);
        all.push(Program { name: "resolvectl", command: query, completes: true });
    }
    all
}

pub(super) fn has_resolved(laptop: Laptop) -> bool {
    matches!(laptop, Laptop::Resolved | Laptop::NssResolve)
}

/// Runs it in mounts of its own, where names are resolved this way. None of that is seen elsewhere.
pub(super) fn with(laptop: Laptop, test: impl FnOnce(&Server) + Send) {
    thread::scope(|scope| {
        let tested = scope.spawn(|| {
            let address: SocketAddr = SERVER.parse().unwrap();
            let server = Server::with_names(address, OUTSIDE);
            let running = match laptop {
                Laptop::Plain => {
                    plain(address);
                    None
                }
                Laptop::Forwarder => {
                    resolver::lay_over();
                    lay_over_resolv_conf("127.0.0.1:53".parse().unwrap());
                    Some(Running::Forwarder(forwarder(address)))
                }
                Laptop::Resolved => Some(Running::Resolved(Resolver::start(&[address], Library::Dns))),
                Laptop::NssResolve => Some(Running::Resolved(Resolver::start(&[address], Library::Resolve))),
            };
            test(&server);
            drop(running);
        });
        if let Err(panic) = tested.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What answers in front of the laptop's name server.
enum Running {
    Resolved(#[allow(dead_code, reason = "it is there to be dropped")] Resolver),
    Forwarder(Child),
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Forwarder(dnsmasq) = self {
            dnsmasq.kill().unwrap();
            dnsmasq.wait().unwrap();
        }
    }
}

fn forwarder(server: SocketAddr) -> Child {
    let server = format!("--server={}", server.ip());
    let mut dnsmasq = Command::new("dnsmasq");
    dnsmasq.args([
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--cache-size=0",
        "--user=root",
        "--pid-file=",
    ]);
    let dnsmasq = dnsmasq.args(["--listen-address=127.0.0.1", "--bind-interfaces", &server]).spawn().unwrap();
    eventually("dnsmasq answers", Duration::from_secs(10), || {
        command("dig +short @127.0.0.1", "www.public.test").output().unwrap().status.success().then_some(())
    });
    dnsmasq
}

fn plain(server: SocketAddr) {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    lay_over_resolv_conf(server);
}

/// The file stays: nothing can be mounted over one that is deleted. The laptop's own /tmp vanishes with it.
pub(super) fn lay_over_resolv_conf(server: SocketAddr) {
    let file = std::env::temp_dir().join(format!("resolv.conf-{}-{}", server.ip(), std::process::id()));
    fs::write(&file, format!("nameserver {}\n", server.ip())).unwrap();
    mount(Some(&file), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}
