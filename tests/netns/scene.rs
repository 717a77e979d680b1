//! A network namespace with a route to everywhere that ends nowhere.
//!
//! `wan0` is one end of a veth pair and has default routes of both families to neighbours that do not exist. What the
//! machine would have sent to the local network is in its counter: that is the leak meter.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

/// Longest wait for anything that is sure to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Address of `wan0`.
pub(crate) const WAN4: &str = "198.51.100.2";
/// Address of `wan0`.
pub(crate) const WAN6: &str = "2001:db8:51::2";

const SETUP: &str = "
    link set lo up
    link add wan0 type veth peer name wan1
    link set wan0 address 02:00:00:00:00:02
    link set wan0 multicast off addrgenmode none
    link set wan1 multicast off addrgenmode none
    link set wan1 up
    link set wan0 up
    addr add 198.51.100.2/24 dev wan0
    addr add 2001:db8:51::2/64 dev wan0 nodad
    route add default via 198.51.100.1
    -6 route add default via 2001:db8:51::1
    neigh add 198.51.100.1 lladdr 02:00:00:00:00:01 dev wan0 nud permanent
    neigh add 2001:db8:51::1 lladdr 02:00:00:00:00:01 dev wan0 nud permanent
";

/// Why these tests cannot run here. A missing nft is no reason: the product needs it, too.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root: network namespaces and rules".into());
    }
    let has = |name: &str| {
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|place| Path::new(place).join(name).exists())
    };
    assert!(has("nft"), "nft is missing: apt-get install nftables");
    assert!(has("ip"), "ip is missing: apt-get install iproute2");
    assert!(has("iptables") && has("xtables-legacy-multi"), "iptables is missing: apt-get install iptables");
    assert!(has("conntrack"), "conntrack is missing: apt-get install conntrack");
    None
}

/// Runs the test in a thread with a namespace of its own; what it starts is in there, too.
pub(crate) fn run(test: impl FnOnce() + Send) {
    let result = thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                // What the helper writes down, and what tests put in place of programs, is this namespace's alone.
                let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
                mount(none, "/", none, private, none).unwrap();
                mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
                fs::write("/proc/sys/net/ipv6/conf/default/router_solicitations", "0").unwrap();
                SETUP.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(ip);
                // The kernel makes these when the other end's carrier comes, a little later.
                eventually("the links have their multicast routes", || {
                    let routes = output("ip", &["-6", "route", "show", "table", "local"]);
                    ["wan0", "wan1"].iter().all(|link| routes.contains(&format!("ff00::/8 dev {link}")))
                });
                test();
            })
            .join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// One `ip` command.
pub(crate) fn ip(arguments: &str) {
    output("ip", &arguments.split_whitespace().collect::<Vec<_>>());
}

/// One `nft` command.
pub(crate) fn nft(command: &str) -> String {
    output("nft", &[command])
}

/// All rules, without counts.
pub(crate) fn ruleset() -> String {
    output("nft", &["-s", "list", "ruleset"])
}

/// All that a helper could change: rules of both makes, policy rules, routes, links, the network's settings, and its records.
pub(crate) fn state() -> String {
    let mut state = ruleset();
    if fs::exists("/run/kshuttle-helper").unwrap() {
        state += "/run/kshuttle-helper is there\n";
    }
    for saved in ["iptables-save", "ip6tables-save"] {
        let text = output(saved, &[]);
        // Without times and what the system's own chains counted.
        let rules = text.lines().filter(|line| !line.starts_with('#'));
        state.extend(rules.map(|line| format!("{}\n", line.split(" [").next().unwrap_or_default())));
    }
    let routes = ["route", "show", "table", "all"];
    for what in [&["rule"][..], &["-6", "rule"], &routes, &[&["-6"][..], &routes].concat(), &["link"]] {
        state += &output("ip", what);
    }
    settings(Path::new("/proc/sys/net"), &mut state);
    state
}

/// Every setting below this folder that can be read, but for what the kernel counts by itself.
fn settings(folder: &Path, state: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            settings(&path, state);
        } else if !path.ends_with("nf_conntrack_count") {
            let value = fs::read_to_string(&path).unwrap_or_default();
            *state += &format!("{} = {}\n", path.display(), value.trim());
        }
    }
}

/// What a program prints; it must succeed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Packets that left by `wan0`, without the multicast reports of IPv6 that no setting stops.
pub(crate) fn leaked() -> u64 {
    loop {
        let before = reports();
        let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let wan = devices.lines().find_map(|line| line.trim().strip_prefix("wan0:")).unwrap();
        let sent: u64 = wan.split_whitespace().nth(9).unwrap().parse().unwrap();
        if reports() == before {
            return sent - before;
        }
    }
}

fn reports() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/net/dev_snmp6/wan0").unwrap();
    let reports = counters.lines().find_map(|line| line.strip_prefix("Icmp6OutMLDv2Reports")).unwrap();
    reports.trim().parse().unwrap()
}

/// Entries of conntrack in this namespace.
pub(crate) fn conntrack_entries() -> u64 {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse().unwrap()
}

/// Makes conntrack work before the helper comes, as Docker would.
pub(crate) fn foreign_nat_table() {
    nft("add table ip docker; \
         add chain ip docker out { type nat hook output priority -100; policy accept; }; \
         add rule ip docker out ct state new counter");
}

/// Looks again and again until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Connects as an application would.
pub(crate) fn connect_to(address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().unwrap();
    let stream =
        TcpStream::connect_timeout(&address, PATIENCE).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The next connection to this listener.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let mut accepted = None;
    listener.set_nonblocking(true).unwrap();
    eventually("somebody connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let stream = accepted.unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Begins to connect from this address of IPv4, and does not wait for an answer.
pub(crate) fn begin_connect_from(address: &str, to: &str) -> OwnedFd {
    begin(&format!("{address}:0"), to.parse().unwrap())
}

/// Begins to connect, from this port (0: any), and does not wait for an answer.
pub(crate) fn begin_connect(from: u16, address: &str) -> OwnedFd {
    let address: SocketAddr = address.parse().unwrap();
    let local = if address.is_ipv4() { format!("0.0.0.0:{from}") } else { format!("[::]:{from}") };
    begin(&local, address)
}

fn begin(from: &str, address: SocketAddr) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from.parse::<SocketAddr>().unwrap())).unwrap();
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => socket,
        Err(error) => panic!("{address} from {from}: {error}"),
    }
}

/// Waits until a connection that was begun is there.
pub(crate) fn finish_connect(socket: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(socket);
    eventually("the connection is made", || {
        if let Some(error) = stream.take_error().unwrap() {
            panic!("connecting: {error}");
        }
        stream.peer_addr().is_ok()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// One end says something that the other hears.
pub(crate) fn says(from: &mut TcpStream, to: &mut TcpStream) {
    io::Write::write_all(from, b"hello").unwrap();
    let mut heard = [0; 5];
    io::Read::read_exact(to, &mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

/// How a read of the application ends: `Ok(0)` is the end of the stream.
pub(crate) fn read_end(stream: &mut TcpStream) -> io::Result<usize> {
    io::Read::read(stream, &mut [0; 16])
}
