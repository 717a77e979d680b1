//! What can be reached, what cannot, and that nothing goes elsewhere.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, LeakMeter, kubectl};

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

pub(crate) fn nothing_leaks_in_ten_thousand_connects() {
    const WORKERS: usize = 16;
    let _kshuttle = Kshuttle::start(&RANGES);
    let meter = LeakMeter::start();
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            thread::spawn(|| {
                for i in 0..10_000 / WORKERS {
                    let mut socket = connect(bench(7003)).unwrap();
                    socket.write_all(b"x").unwrap();
                    // Some are reset by us, some half-closed, some closed with the answer unread.
                    match i % 3 {
                        0 => socket.read_exact(&mut [0; 1]).unwrap(),
                        1 => socket.shutdown(std::net::Shutdown::Write).unwrap(),
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(meter.leaked(), 0);
}
