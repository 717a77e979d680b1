//! UDP into the cluster: a resolver's questions, echoes, many destinations from one socket.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use kshuttle_test_support::kshuttle::{Kshuttle, LeakMeter, PATIENCE, kubectl, output};

use super::reach::RANGES;

/// The `bench` Service's echo of datagrams; see `fixtures/cluster/bench`.
const ECHO: &str = "10.96.77.77:7007";

fn bind() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(crate) fn cluster_dns_answers_over_udp_and_tcp() {
    let _kshuttle = Kshuttle::start(&RANGES);
    let wanted = kubectl(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"]);
    for way in ["+notcp", "+tcp"] {
        let answer = output(Command::new("dig").args([
            "@10.96.0.10",
            way,
            "+short",
            "hello.default.svc.cluster.local",
        ]));
        assert_eq!(answer.trim(), wanted, "{way}");
    }
}

/// A program that waits for answers: at most 32 datagrams are under way.
pub(crate) fn ten_thousand_datagrams_come_back() {
    const COUNT: u32 = 10_000;
    const WINDOW: u32 = 32;
    let _kshuttle = Kshuttle::start(&RANGES);
    let meter = LeakMeter::start();
    let socket = bind();
    socket.connect(ECHO).unwrap();
    let send = |number: u32| {
        let mut datagram = [0; 1400];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        datagram[4..].fill(number.to_be_bytes()[3]);
        socket.send(&datagram).unwrap();
    };
    (0..WINDOW).for_each(send);
    let mut seen = HashSet::new();
    for next in WINDOW.. {
        let mut datagram = [0; 2000];
        let length =
            socket.recv(&mut datagram).unwrap_or_else(|error| panic!("after {}: {error}", seen.len()));
        let number = u32::from_be_bytes(datagram[..4].try_into().unwrap());
        assert_eq!(length, 1400);
        assert!(datagram[4..1400].iter().all(|byte| *byte == number.to_be_bytes()[3]));
        assert!(seen.insert(number), "{number} came twice");
        if next < COUNT {
            send(next);
        } else if seen.len() == COUNT as usize {
            break;
        }
    }
    assert_eq!(meter.leaked(), 0);
}

pub(crate) fn one_socket_talks_to_several_services() {
    let _kshuttle = Kshuttle::start(&RANGES);
    let pod = kubectl(&["get", "pod", "-l", "app=bench", "-o", "jsonpath={.items[0].status.podIP}"]);
    let other = kubectl(&["get", "service", "udp-echo", "-o", "jsonpath={.spec.clusterIP}"]);
    let socket = bind();
    let to: Vec<SocketAddr> = [ECHO.to_owned(), format!("{pod}:7007"), format!("{other}:9000")]
        .iter()
        .map(|to| to.parse().unwrap())
        .collect();
    for (round, to) in to.iter().cycle().take(30).enumerate() {
        socket.send_to(format!("round {round}").as_bytes(), to).unwrap();
        let mut answer = [0; 100];
        let (length, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!((from, &answer[..length]), (*to, format!("round {round}").as_bytes()));
    }
}

/// Each of them is a port of its own, as resolvers do it, and stays open. Not all in one instant: UDP has no way to say that a
/// buffer is full.
pub(crate) fn many_sockets_at_once() {
    const SOCKETS: usize = 500;
    const AT_ONCE: usize = 50;
    let _kshuttle = Kshuttle::start(&RANGES);
    let sockets: Vec<UdpSocket> = (0..SOCKETS).map(|_| bind()).collect();
    for (volley, sockets) in sockets.chunks(AT_ONCE).enumerate() {
        let text = |at: usize| (volley * AT_ONCE + at).to_string();
        for (at, socket) in sockets.iter().enumerate() {
            socket.connect(ECHO).unwrap();
            socket.send(text(at).as_bytes()).unwrap();
        }
        for (at, socket) in sockets.iter().enumerate() {
            let mut answer = [0; 100];
            let length = socket.recv(&mut answer).unwrap();
            assert_eq!(&answer[..length], text(at).as_bytes());
        }
    }
}

pub(crate) fn without_udp_it_is_left_alone() {
    let _kshuttle = Kshuttle::start(&[&RANGES[..], &["--no-udp"]].concat());
    let meter = LeakMeter::start();
    let socket = bind();
    socket.send_to(b"x", ECHO).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    assert!(socket.recv(&mut [0; 10]).is_err());
    assert!(meter.leaked() > 0);
}
