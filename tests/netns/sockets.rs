//! Sockets that the helper passed: they reach name servers whose queries come to us, and the sessions below us.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixDatagram;
use std::thread;

use kshuttle_helper::plan::{MAX_RANKS, MAX_SOCKETS};
use kshuttle_helper::protocol::{Method, NameServer, Plan, Reply, Request};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, setfsgid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::answers::{Answers, answered, asks, at, connected, real, servers};
use super::helper::{Helper, plan};
use super::iptables::with_each;
use super::listener::Listener;
use super::names::{ELSEWHERE, named, ready};
use super::neighbour::{ADDRESS4, ADDRESS6, Neighbour};
use super::scene::{self, PATIENCE, accept, eventually, leaked, says};

/// One for datagrams of IPv4, which gives up after a while.
fn lent(helper: &mut Helper) -> UdpSocket {
    let socket = UdpSocket::from(helper.sockets(false, false, 1).remove(0));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What the user side does with sockets it got, in a thread without any right, of another group.
fn use_sockets(datagrams: OwnedFd, stream: OwnedFd, server: SocketAddr, real: &Answers) {
    thread::scope(|scope| {
        let user_side = scope.spawn(move || {
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
            setfsgid(Gid::from_raw(65534));
            set_capabilities(None, sets).unwrap();
            let socket = UdpSocket::from(datagrams);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut ports = BTreeSet::new();
            for _ in 0..6 {
                socket.connect(server).unwrap();
                ports.insert(asks(&socket, real).port());
                rustix::net::connect_unspec(&socket).unwrap();
            }
            assert!(ports.len() > 3, "a new port each time: {ports:?}");
            rustix::net::connect(&stream, &server).unwrap();
            let mut stream = TcpStream::from(stream);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut server_end = accept(&real.tcp);
            says(&mut stream, &mut server_end);
            says(&mut server_end, &mut stream);
            // We end it first, so what is said last is said for no socket.
            stream.shutdown(std::net::Shutdown::Both).unwrap();
            drop(stream);
            assert_eq!(scene::read_end(&mut server_end).unwrap(), 0);
        });
        user_side.join().unwrap();
    });
}

/// A server in a redirected range, and one on this machine.
fn passed_sockets(method: Method) {
    let neighbour = Neighbour::move_in();
    let (v4, v6) = (real(&neighbour, ADDRESS4), real(&neighbour, ADDRESS6));
    let local = Answers::at("127.0.0.1", 53);
    let all = [(ADDRESS4, v4), (ADDRESS6, v6), ("127.0.0.1", local)];
    let (stubs, names): (Vec<_>, Vec<_>) = all.iter().map(|(server, _)| Answers::stub(server)).unzip();
    let mut helper = ready(method, ELSEWHERE, &names);
    for ((server, real), stub) in all.iter().zip(&stubs) {
        let v6 = server.contains(':');
        let mut datagrams = helper.sockets(v6, false, 4);
        let stream = helper.sockets(v6, true, 1).remove(0);
        use_sockets(datagrams.remove(0), stream, at(server, 53), real);
        // All others are answered by us.
        answered(server, 53, stub);
    }
    // Only for port 53: they are no way around the redirect.
    let before = leaked();
    let other = UdpSocket::from(helper.sockets(false, false, 1).remove(0));
    let _ = other.send_to(b"x", at(ADDRESS4, 54)); // nobody is at our port for datagrams
    let report = helper.stop();
    assert_eq!((report.guard_dropped, report.failures, leaked()), (0, vec![], before));
}

pub(crate) fn they_reach_the_servers() {
    scene::run(|| passed_sockets(Method::Nft));
    with_each(|| passed_sockets(Method::Iptables));
}

/// conntrack remembers a port for longer than it is in use: a query of ours from one that a program had reaches the server, and
/// one of a program from a port that we had comes to us.
fn used_ports(method: Method) {
    let neighbour = servers();
    let servers = ["198.51.100.53", "127.0.0.1"];
    let all = [real(&neighbour, servers[0]), Answers::at(servers[1], 53)];
    let (stubs, names): (Vec<_>, Vec<_>) = servers.iter().map(|server| Answers::stub(server)).unzip();
    let mut helper = ready(method, ELSEWHERE, &names);
    for ((server, real), stub) in servers.iter().zip(&all).zip(&stubs) {
        let passed = lent(&mut helper);
        let program = connected(server);
        asks(&program, stub);
        let port = program.local_addr().unwrap().port();
        drop(program);
        rustix::net::bind(&passed, &at("0.0.0.0", port)).unwrap();
        passed.connect(at(server, 53)).unwrap();
        asks(&passed, real);
        drop(passed);
        let passed = lent(&mut helper);
        passed.connect(at(server, 53)).unwrap();
        asks(&passed, real);
        let port = passed.local_addr().unwrap().port();
        drop(helper.sockets(false, false, 1)); // once it answers again, it has closed its own
        drop(passed);
        let program = UdpSocket::bind(at("0.0.0.0", port)).unwrap();
        program.set_read_timeout(Some(PATIENCE)).unwrap();
        program.connect(at(server, 53)).unwrap();
        asks(&program, stub);
    }
    assert_eq!(helper.stop().failures, []);
}

pub(crate) fn used_ports_are_not_confused() {
    scene::run(|| used_ports(Method::Nft));
    with_each(|| used_ports(Method::Iptables));
}

pub(crate) fn they_are_not_for_everybody() {
    scene::run(|| {
        let plan = plan("a", &Listener::start(), ELSEWHERE, &[]);
        let refused = |helper: &mut Helper, count: u8| {
            helper.say(&Request::Sockets { v6: false, stream: false, count });
            match helper.hear() {
                Some(Reply::Refused { message }) => message,
                other => panic!("instead of refused: {other:?}"),
            }
        };
        let mut over_pipes = Helper::ready(&plan);
        assert!(refused(&mut over_pipes, 1).contains("over a Unix socket"));
        assert_eq!(over_pipes.stop().failures, []);
        let mut helper = Helper::start_over_socket_pair();
        helper.make_ready(&plan);
        for count in [0, MAX_SOCKETS + 1] {
            assert_eq!(refused(&mut helper, count), "count: must be 1 to 16");
        }
        // Nobody keeps those that nobody uses.
        for _ in 0..200 {
            assert_eq!(helper.sockets(true, true, MAX_SOCKETS).len(), usize::from(MAX_SOCKETS));
        }
        assert_eq!(helper.stop().failures, []);
        let mut early = Helper::start_over_socket_pair();
        early.say(&Request::Sockets { v6: false, stream: false, count: 1 });
        match early.hear() {
            Some(Reply::Failed { message, .. }) => assert!(message.contains("no plan"), "{message}"),
            other => panic!("instead of failed: {other:?}"),
        }
    });
}

pub(crate) fn a_group_that_somebody_has_is_not_taken() {
    scene::run(|| {
        let groups = fs::read_to_string("/etc/group").unwrap();
        fs::write("/run/group", groups.trim_end().to_owned() + "\nsomebody:x:27507:\n").unwrap();
        mount(Some("/run/group"), "/etc/group", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let (stub, name) = Answers::stub("127.0.0.1");
        let local = Answers::at("127.0.0.1", 53);
        let mut helper = ready(Method::Nft, ELSEWHERE, &[name]);
        assert!(scene::ruleset().contains("27508") && !scene::ruleset().contains("27507"));
        let passed = lent(&mut helper);
        passed.connect(at("127.0.0.1", 53)).unwrap();
        asks(&passed, &local);
        asks(&connected("127.0.0.1"), &stub);
        assert_eq!(helper.stop().failures, []);
    });
}

/// Another session with the same name server, and nothing else that is the same.
fn beside(method: Method, session: &str, server: NameServer) -> Helper {
    let mut helper = Helper::start_over_socket_pair();
    let plan = plan(session, &Listener::start(), &["192.0.2.0/24"], &[]);
    helper.make_ready(&Plan { method, ..plan });
    named(&mut helper, &[server]);
    helper
}

/// What this session asks the server reaches it, or the stub of a session below.
fn passed_on(helper: &mut Helper, server: &str, to: &Answers) {
    let datagrams = lent(helper);
    datagrams.connect(at(server, 53)).unwrap();
    asks(&datagrams, to);
    let stream = helper.sockets(false, true, 1).remove(0);
    rustix::net::connect(&stream, &at(server, 53)).unwrap();
    let (mut stream, mut answering) = (TcpStream::from(stream), accept(&to.tcp));
    says(&mut stream, &mut answering);
    says(&mut answering, &mut stream);
}

/// Programs ask the last that came, each session asks the one before, and only the first asks the server itself.
fn sessions_in_a_row(method: Method) {
    let neighbour = servers();
    for (server, real) in
        [("127.0.0.1", Answers::at("127.0.0.1", 53)), ("198.51.100.53", real(&neighbour, "198.51.100.53"))]
    {
        let before = scene::state();
        let stubs: [_; 4] = std::array::from_fn(|_| Answers::stub(server));
        let [(one, name_one), (two, name_two), (three, name_three), (four, name_four)] = &stubs;
        let program = connected(server);
        let mut first = ready(method, ELSEWHERE, &[*name_one]);
        asks(&program, one);
        let mut second = beside(method, "b", *name_two);
        let mut third = beside(method, "c", *name_three);
        asks(&program, three);
        passed_on(&mut third, server, two);
        passed_on(&mut second, server, one);
        passed_on(&mut first, server, &real);
        // One in the middle goes, whatever by; another one takes its place, and is asked by the one above it.
        second.signal(Signal::SIGKILL);
        assert_eq!(second.wait(), (None, String::new()), "the watchdog is through");
        asks(&program, three);
        eventually("its rules are gone", || {
            !(scene::ruleset() + &super::iptables::saved()).contains("kshuttle_b")
        });
        passed_on(&mut third, server, one);
        let mut fourth = beside(method, "d", *name_four);
        if method == Method::Nft {
            asks(&program, three);
            passed_on(&mut third, server, four);
            passed_on(&mut fourth, server, one);
        }
        for helper in [third, fourth, first] {
            assert_eq!(helper.stop().failures, []);
        }
        asks(&program, &real);
        assert_eq!(scene::state(), before);
    }
}

pub(crate) fn sessions_ask_each_other_in_a_row() {
    scene::run(|| sessions_in_a_row(Method::Nft));
    with_each(|| sessions_in_a_row(Method::Iptables));
}

pub(crate) fn the_number_of_sessions_is_bounded() {
    scene::run(|| {
        let name = |rank: u8| format!("kshuttle-helper/rank/{rank}");
        let take = |rank| {
            UnixDatagram::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name(rank)).unwrap())
        };
        let mut others: Vec<_> = (0..MAX_RANKS).map(|rank| take(rank).unwrap()).collect();
        let mut helper = Helper::start();
        helper.say(&Request::Plan(plan("a", &Listener::start(), ELSEWHERE, &[])));
        match helper.hear() {
            Some(Reply::Failed { step, message }) => {
                assert_eq!(
                    (step.as_str(), message.as_str()),
                    ("rank", "16 sessions redirect on this machine already")
                );
            }
            other => panic!("instead of failed: {other:?}"),
        }
        helper.wait();
        assert_eq!(scene::ruleset(), "");
        others.pop();
        let mut helper = ready(Method::Nft, ELSEWHERE, &[]);
        take(MAX_RANKS - 1).unwrap_err();
        helper.signal(Signal::SIGKILL);
        helper.wait();
        eventually("the place is free", || take(MAX_RANKS - 1).is_ok());
    });
}
