//! Connections that stood before the rules: they go on, and their source ports open no way past the rules.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::helper::{Helper, plan};
use super::listener::Listener;
use super::neighbour::{ADDRESS4, ADDRESS6, Neighbour};
use super::scene::{
    self, accept, begin_connect, connect_to, eventually, finish_connect, leaked, read_end, says,
};

const INCLUDE: [&str; 2] = ["10.96.0.0/16", "fd00:96::/32"];

/// A connection: this machine's end, and the neighbour's.
type Ends = (TcpStream, TcpStream);

/// One that the neighbour made, as somebody who is logged in here.
fn inbound(neighbour: &Neighbour, listens_at: &str) -> Ends {
    let listener = TcpListener::bind((listens_at, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = if listens_at == scene::WAN6 { scene::WAN6 } else { scene::WAN4 };
    let theirs = neighbour.connects_to(SocketAddr::new(address.parse().unwrap(), port).to_string());
    (accept(&listener), theirs)
}

/// One that this machine made.
fn outbound(neighbour: &Neighbour, to: &'static str) -> Ends {
    let listener = neighbour.listens(to);
    (connect_to(&listener.local_addr().unwrap().to_string()), accept(&listener))
}

/// The connections go on after the rules: this machine speaks first, then the neighbour.
fn go_on(connect: impl FnOnce(&Neighbour) -> Vec<Ends>) {
    let neighbour = Neighbour::move_in();
    let connections = connect(&neighbour);
    let listener = Listener::start();
    let helper = Helper::ready(&plan("a", &listener, &INCLUDE, &[]));
    for (mut ours, mut theirs) in connections {
        says(&mut ours, &mut theirs);
        says(&mut theirs, &mut ours);
        says(&mut ours, &mut theirs);
    }
    assert!(listener.is_idle());
    let report = helper.stop();
    assert_eq!((report.guard_dropped, report.failures), (0, vec![]));
}

fn all_kinds(neighbour: &Neighbour) -> Vec<Ends> {
    vec![
        inbound(neighbour, scene::WAN4),
        inbound(neighbour, scene::WAN6),
        inbound(neighbour, "::"),
        outbound(neighbour, ADDRESS4),
        outbound(neighbour, ADDRESS6),
    ]
}

pub(crate) fn who_is_logged_in_stays() {
    scene::run(|| go_on(|neighbour| vec![inbound(neighbour, scene::WAN4), inbound(neighbour, scene::WAN6)]));
}

/// As sshd has it: an IPv6 socket that speaks IPv4.
pub(crate) fn who_is_logged_in_by_a_socket_of_both_families_stays() {
    scene::run(|| go_on(|neighbour| vec![inbound(neighbour, "::")]));
}

pub(crate) fn what_this_machine_made_goes_on() {
    scene::run(|| go_on(|neighbour| vec![outbound(neighbour, ADDRESS4), outbound(neighbour, ADDRESS6)]));
}

pub(crate) fn all_go_on_where_conntrack_knew_them() {
    scene::run(|| {
        scene::nft(
            "add table inet foreign; \
             add chain inet foreign out { type filter hook output priority 10; policy accept; }; \
             add rule inet foreign out ct state new counter",
        );
        go_on(all_kinds);
    });
}

/// It lets in only what conntrack knows: the entries must survive, whoever speaks first.
pub(crate) fn a_stateful_firewall_lets_them_go_on() {
    scene::run(|| {
        let neighbour = Neighbour::move_in();
        scene::nft(
            "add table inet foreign; \
             add chain inet foreign in { type filter hook input priority 0; policy accept; }; \
             add rule inet foreign in ct state established,related accept; \
             add rule inet foreign in iifname wan0 meta l4proto tcp drop",
        );
        let listener = Listener::start();
        for to in [ADDRESS4, ADDRESS6] {
            let (mut ours, mut theirs) = outbound(&neighbour, to);
            let helper = Helper::ready(&plan("a", &listener, &INCLUDE, &[]));
            says(&mut theirs, &mut ours);
            says(&mut ours, &mut theirs);
            assert_eq!(helper.stop().guard_dropped, 0);
        }
        assert!(listener.is_idle());
    });
}

/// The same source port to the same destination is a new connection, and redirected like any other.
fn is_redirected_when_reused() {
    let neighbour = Neighbour::move_in();
    let listener = Listener::start();
    for to in [ADDRESS4, ADDRESS6] {
        let (mut ours, mut theirs) = outbound(&neighbour, to);
        let (port, destination) = (ours.local_addr().unwrap().port(), ours.peer_addr().unwrap());
        let helper = Helper::ready(&plan("a", &listener, &INCLUDE, &[]));
        says(&mut ours, &mut theirs);
        drop(theirs); // first, so that the port waits there and not here
        assert_eq!(read_end(&mut ours).unwrap(), 0);
        drop(ours);
        eventually("it is over", || !is_in_use(port));
        let at_the_end = leaked();

        let mut application = finish_connect(begin_connect(port, &destination.to_string()));
        let (original, mut stream) = listener.next();
        assert_eq!(original, destination);
        says(&mut application, &mut stream);
        says(&mut stream, &mut application);
        // What conntrack does not follow is not translated, and no standing connection is left that it could belong to.
        scene::nft(&format!(
            "add table inet foreign; \
             add chain inet foreign raw {{ type filter hook output priority -300; policy accept; }}; \
             add rule inet foreign raw tcp sport {port} tcp dport {} notrack",
            destination.port()
        ));
        application.write_all(b"not for the local network").unwrap();
        scene::nft("delete table inet foreign");
        drop((application, stream));
        let report = helper.stop();
        assert_eq!(leaked() - at_the_end, 0, "packets on wan0");
        assert!(report.guard_dropped > 0, "{report:?}");
        assert_eq!(report.failures, []);
    }
}

pub(crate) fn a_reused_source_port_is_redirected() {
    scene::run(is_redirected_when_reused);
}

pub(crate) fn a_reused_source_port_is_redirected_where_conntrack_knew_it() {
    scene::run(|| {
        scene::foreign_nat_table();
        is_redirected_when_reused();
    });
}

/// Does any socket of this namespace have this port?
fn is_in_use(port: u16) -> bool {
    let local = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap();
        table.lines().any(|line| line.split_whitespace().nth(1).is_some_and(|end| end.ends_with(&local)))
    })
}
