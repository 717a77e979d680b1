//! What can be reached, what cannot, and that nothing goes elsewhere.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, LeakMeter, PATIENCE, eventually, kubectl, output};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use super::redirect::NewNode;
use super::scene::ThroughLine;

/// The box's ranges: Services and pods, both families.
pub(crate) const RANGES: [&str; 4] =
    ["10.96.0.0/12", "10.244.0.0/16", "fd00:10:96::/112", "fd00:10:244::/56"];

/// The `bench` Service; see `fixtures/cluster/bench`.
pub(crate) fn bench(port: u16) -> SocketAddr {
    SocketAddr::new("10.96.77.77".parse().unwrap(), port)
}

fn addresses(arguments: &[&str]) -> Vec<IpAddr> {
    kubectl(arguments).split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

pub(crate) fn services_and_pods_answer_over_both_families() {
    let _kshuttle = Kshuttle::start(&RANGES);
    let service = |namespace: &str, name: &str| {
        addresses(&["-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIPs[*]}"])
    };
    let pods =
        addresses(&["get", "pod", "-l", "app=hello", "-o", "jsonpath={.items[*].status.podIPs[*].ip}"]);
    let hello = service("default", "hello");
    assert_eq!((hello.len(), pods.len()), (2, 2), "the box is dual-stack");
    for (ips, port, text) in [
        (hello, 80, "hello from the cluster\n"),
        (service("default", "hello6"), 80, "hello from the cluster\n"),
        (pods, 8080, "hello from the cluster\n"),
        (service("shop", "web"), 80, "web in shop\n"),
    ] {
        for ip in ips {
            assert_eq!(get(SocketAddr::new(ip, port), "/").unwrap().text, text, "{ip}");
        }
    }
}

pub(crate) fn without_subnets_the_cluster_tells_its_ranges() {
    let kshuttle = Kshuttle::start(&[]);
    let said = kshuttle.said();
    for range in ["10.96.0.0/12", "10.244.0.0/24", "fd00:10:96::/112", "fd00:10:244::/64"] {
        assert!(said.contains(range), "{range} is not in: {said}");
    }
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
}

pub(crate) fn a_refused_port_is_an_error_at_once() {
    let _kshuttle = Kshuttle::start(&RANGES);
    // The reset may come before this program has been told that it is connected.
    let asked = connect(bench(9999)).and_then(|mut socket| {
        let _ = socket.write_all(b"anybody?");
        socket.read(&mut [0; 1])
    });
    let error = asked.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "not after a timeout, not as a clean end");
}

pub(crate) fn a_black_hole_hangs_nobody_else() {
    let _kshuttle = Kshuttle::start(&RANGES);
    // An address the node sends into nothing.
    let mut hole = connect("10.244.255.1:80".parse().unwrap()).unwrap();
    let others: Vec<_> = (0..20).map(|_| thread::spawn(|| get(bench(8080), "/1M").unwrap())).collect();
    for other in others {
        let answer = other.join().unwrap();
        assert_eq!(Some(answer.sha256), answer.announced);
    }
    // Still nothing from the hole, then its own end: a reset.
    hole.set_nonblocking(true).unwrap();
    assert_eq!(hole.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    hole.set_nonblocking(false).unwrap();
    hole.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(hole.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

pub(crate) fn excluded_ranges_are_left_alone() {
    let _kshuttle = Kshuttle::start(&["10.96.0.0/12", "-x", "10.96.77.0/24"]);
    let meter = LeakMeter::start();
    let refused = TcpStream::connect_timeout(&bench(8080), Duration::from_millis(200));
    assert!(refused.is_err(), "the dead end never answers");
    assert!(meter.leaked() > 0, "an excluded address takes the machine's own way");
}

/// Beside them: the connection to the API server is reset, the pod of both tunnels is deleted, other people's rules are flushed,
/// ranges change; and the stop. Some source ports were in use before the rules stood.
pub(crate) fn nothing_leaks_in_a_hundred_thousand_connects() {
    const WORKERS: usize = 16;
    const CONNECTS: usize = 100_000;
    const PORTS: Range<u16> = 20_000..20_192; // below those that the kernel chooses
    const AGAIN: usize = 500; // so rarely one of them: it may be in use, for a minute after its end
    for port in PORTS {
        let tried = from_port(port);
        tried.set_nonblocking(true).unwrap();
        assert!(tried.connect(&bench(7003).into()).is_err(), "nobody answers yet");
    }
    let way = ThroughLine::start();
    let mut kshuttle = Kshuttle::start(&["--kubeconfig", way.kubeconfig.to_str().unwrap()]);
    let meter = LeakMeter::start();
    let done = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let done = done.clone();
            thread::spawn(move || {
                for i in 0..CONNECTS / WORKERS {
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut socket = if i % AGAIN == 0 {
                        let number = (worker * 12 + i / AGAIN % 12) % PORTS.len();
                        let socket = from_port(PORTS.start + u16::try_from(number).unwrap());
                        if socket.connect_timeout(&bench(7003).into(), PATIENCE).is_err() {
                            continue;
                        }
                        TcpStream::from(socket)
                    } else {
                        connect(bench(7003)).unwrap()
                    };
                    let _ = socket.write_all(b"x");
                    // Some are reset by us, some half-closed, some closed with the answer unread.
                    match i % 3 {
                        0 => drop(socket.read(&mut [0; 1])),
                        1 => drop(socket.shutdown(std::net::Shutdown::Write)),
                        _ => {}
                    }
                }
            })
        })
        .collect();
    let mut nodes = Vec::new();
    for step in 1..10 {
        eventually("the next tenth is through", 3 * PATIENCE, || {
            (done.load(Ordering::Relaxed) >= step * CONNECTS / 10).then_some(())
        });
        match step {
            3 | 6 | 9 => drop(way.line.reset_all()),
            4 => drop(kubectl(&["delete", "pod", &kshuttle.pod(), "--wait=false"])),
            1 | 7 => drop(output(Command::new("nft").args(["flush", "ruleset"]))),
            _ => nodes.push(NewNode::with_pods_in(&format!("10.244.{}.0/24", 100 + step))),
        }
    }
    for worker in workers {
        worker.join().unwrap();
    }
    assert!(kshuttle.said().contains("ranges changed: "), "{}", kshuttle.said());
    assert!(kshuttle.said().contains(" ended"), "{}", kshuttle.said());
    drop(nodes);
    let open: Vec<_> = (0..100).map(|_| connect(bench(7003)).unwrap()).collect();
    assert_eq!(kshuttle.stop(Signal::SIGTERM).code(), Some(143));
    for mut socket in open {
        assert_eq!(socket.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(meter.leaked(), 0);
}

/// A socket of this port, which others may have had.
fn from_port(port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into()).unwrap();
    socket
}
