//! UDP: datagrams arrive with the question answered where they were meant to go.

use std::net::{SocketAddr, UdpSocket};

use kshuttle_helper::protocol::{Bridge, Method, Plan, Reply, Request};

use super::helper::{Helper, plan};
use super::iptables::with_each;
use super::listener::Listener;
use super::neighbour::Container;
use super::scene::{self, PATIENCE, eventually, leaked};

const INCLUDE: [&str; 2] = ["10.0.0.0/8", "fd00::/8"];

/// A socket that gives up after a while.
pub(crate) fn bind(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn with_datagrams(listener: &Listener, v4: &UdpSocket, v6: &UdpSocket) -> Plan {
    let port = |socket: &UdpSocket| Some(socket.local_addr().unwrap().port());
    Plan { datagrams_v4: port(v4), datagrams_v6: port(v6), ..plan("a", listener, &INCLUDE, &[]) }
}

pub(crate) fn origin(helper: &mut Helper, from: SocketAddr, at: &UdpSocket) -> Option<SocketAddr> {
    helper.say(&Request::Origin { from, at: at.local_addr().unwrap() });
    match helper.hear() {
        Some(Reply::Origin { from: about, to }) => {
            assert_eq!(about, from);
            to
        }
        other => panic!("instead of an origin: {other:?}"),
    }
}

pub(crate) fn one_socket_to_many_destinations() {
    scene::run(|| {
        let (v4, v6) = (bind("127.0.0.1:0"), bind("[::1]:0"));
        let mut helper = Helper::ready(&with_datagrams(&Listener::start(), &v4, &v6));
        for (ours, application, network) in
            [(&v4, bind("0.0.0.0:0"), "10.1.2."), (&v6, bind("[::]:0"), "[fd00::")]
        {
            let destinations = (1..=50).map(|host| {
                format!("{network}{host}{}:{}", if network.starts_with('[') { "]" } else { "" }, 50 + host)
            });
            for destination in destinations {
                let destination: SocketAddr = destination.parse().unwrap();
                application.send_to(b"question", destination).unwrap();
                let (length, from) = ours.recv_from(&mut [0; 64]).unwrap();
                assert_eq!((length, origin(&mut helper, from, ours)), (8, Some(destination)));
                ours.send_to(b"answer", from).unwrap();
                let (length, sender) = application.recv_from(&mut [0; 64]).unwrap();
                assert_eq!((length, sender), (6, destination), "what the application sees");
            }
        }
        let stranger = bind("127.0.0.1:0");
        assert_eq!(origin(&mut helper, stranger.local_addr().unwrap(), &v4), None);
        assert_eq!(leaked(), 0);
        let report = helper.stop();
        assert_eq!((report.guard_dropped, report.failures, report.entries_deleted), (0, vec![], 100));
        assert_eq!(scene::ruleset(), "");
    });
}

/// The trap: after its entry's end the same port may mean another destination, and the listener sees the same sender.
pub(crate) fn a_port_used_again_is_asked_again() {
    scene::run(|| {
        let (v4, v6) = (bind("127.0.0.1:0"), bind("[::1]:0"));
        let mut helper = Helper::ready(&with_datagrams(&Listener::start(), &v4, &v6));
        let mut senders = Vec::new();
        for destination in ["10.1.2.3:53", "10.4.5.6:53"] {
            let application = bind("0.0.0.0:20123");
            application.send_to(b"question", destination).unwrap();
            let (_, from) = v4.recv_from(&mut [0; 64]).unwrap();
            assert_eq!(origin(&mut helper, from, &v4).unwrap().to_string(), destination);
            senders.push(from);
            scene::output("conntrack", &["-D", "-p", "udp", "--orig-port-src", "20123"]); // as if its time were over
            assert_eq!(origin(&mut helper, from, &v4), None);
        }
        assert_eq!(senders[0], senders[1], "nothing but the question can tell them apart");
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn their_timeouts_are_ours() {
    scene::run(|| {
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "5").unwrap();
        let (v4, v6) = (bind("127.0.0.1:0"), bind("[::1]:0"));
        let helper = Helper::ready(&with_datagrams(&Listener::start(), &v4, &v6));
        bind("0.0.0.0:0").send_to(b"x", "10.1.2.3:53").unwrap();
        bind("[::]:0").send_to(b"x", "[fd00::9]:53").unwrap();
        for family in ["ipv4", "ipv6"] {
            let listed = scene::output("conntrack", &["-L", "-f", family, "-p", "udp"]);
            let left: u32 = listed.split_whitespace().nth(2).unwrap().parse().unwrap();
            assert!((50..=65).contains(&left), "{listed}");
        }
        assert_eq!(helper.stop().failures, []);
    });
}

/// What was sent before goes past new rules as long as conntrack remembers it.
pub(crate) fn what_was_sent_before_is_redirected_now() {
    scene::run(|| {
        scene::foreign_nat_table();
        let application = bind("0.0.0.0:0");
        application.connect("10.1.2.3:53").unwrap();
        application.send(b"before").unwrap();
        eventually("it left by wan0", || leaked() == 1);
        let (v4, v6) = (bind("127.0.0.1:0"), bind("[::1]:0"));
        let mut helper = Helper::ready(&with_datagrams(&Listener::start(), &v4, &v6));
        application.send(b"after").unwrap();
        let (length, from) = v4.recv_from(&mut [0; 64]).unwrap();
        assert_eq!((length, origin(&mut helper, from, &v4).unwrap().to_string()), (5, "10.1.2.3:53".into()));
        assert_eq!(leaked(), 1);
        // And after the end it goes its own way again.
        assert_eq!(helper.stop().failures, []);
        application.send(b"afterwards").unwrap();
        eventually("it left by wan0", || leaked() == 2);
    });
}

/// Whoever wants only connections redirected has datagrams left alone.
pub(crate) fn without_a_port_they_are_left_alone() {
    scene::run(|| {
        let helper = Helper::ready(&plan("a", &Listener::start(), &INCLUDE, &[]));
        bind("0.0.0.0:0").send_to(b"x", "10.1.2.3:53").unwrap();
        eventually("it left by wan0", || leaked() == 1);
        assert_eq!(helper.stop().guard_dropped, 0);
    });
}

/// What they send to the cluster comes to the bridge's listeners, and they see the answers come from there.
fn containers_ask(method: Method) {
    let container = Container::start();
    let (v4, v6) = (bind("172.18.0.1:0"), bind("[fd77::1]:0"));
    let streams = Listener::at(["172.18.0.1", "fd77::1"]);
    let bridge = |ours: &UdpSocket, subnet: &str, listener| Bridge {
        name: "br0".into(),
        address: ours.local_addr().unwrap().ip(),
        subnet: subnet.parse().unwrap(),
        listener,
        datagrams: Some(ours.local_addr().unwrap().port()),
    };
    let bridges = vec![bridge(&v4, "172.18.0.0/24", streams.v4), bridge(&v6, "fd77::/64", streams.v6)];
    let plan = plan("a", &Listener::start(), &INCLUDE, &[]);
    let mut helper = Helper::ready(&Plan { method, bridges, ..plan });
    for (ours, any, destinations) in [
        (&v4, "0.0.0.0:0", ["10.1.2.3:53", "10.1.2.4:54"]),
        (&v6, "[::]:0", ["[fd00::9]:53", "[fd00::10]:54"]),
    ] {
        let application = container.does(move || bind(any));
        for destination in destinations.map(|text| text.parse::<SocketAddr>().unwrap()) {
            application.send_to(b"question", destination).unwrap();
            let (length, from) = ours.recv_from(&mut [0; 64]).unwrap();
            assert_eq!((length, origin(&mut helper, from, ours)), (8, Some(destination)));
            ours.send_to(b"answer", from).unwrap();
            let (length, sender) = application.recv_from(&mut [0; 64]).unwrap();
            assert_eq!((length, sender), (6, destination), "what the container sees");
        }
    }
    assert_eq!(leaked(), 0);
    assert_eq!(helper.stop().failures, []);
}

pub(crate) fn containers_behind_a_bridge() {
    scene::run(|| containers_ask(Method::Nft));
    with_each(|| containers_ask(Method::Iptables));
}
