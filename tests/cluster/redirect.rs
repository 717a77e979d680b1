//! What is redirected, and whose: flags of the main job against the real cluster.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, LeakMeter, eventually, kubectl, output, program};
use nix::sys::signal::Signal;

use super::reach::{RANGES, bench};

/// A node that joins the cluster, as far as the API server knows; it leaves when dropped.
pub(crate) struct NewNode(String);

impl NewNode {
    /// Named by its pods' range.
    pub(crate) fn with_pods_in(range: &str) -> Self {
        let name = format!("late-{}", range.replace(['.', '/'], "-"));
        let node = format!(
            r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}"}},
                "spec":{{"podCIDR":"{range}","podCIDRs":["{range}"],"unschedulable":true}}}}"#
        );
        let file = std::env::temp_dir().join(format!("kshuttle-{name}-{}", std::process::id()));
        fs::write(&file, node).unwrap();
        let _ = Command::new("kubectl").args(["delete", "node", &name, "--ignore-not-found"]).output();
        kubectl(&["create", "-f", file.to_str().unwrap()]);
        fs::remove_file(&file).unwrap();
        Self(name)
    }
}

impl Drop for NewNode {
    fn drop(&mut self) {
        kubectl(&["delete", "node", &self.0]);
    }
}

fn fails(arguments: &[&str]) -> String {
    let failed = Command::new(program("kshuttle")).args(arguments).output().unwrap();
    assert!(!failed.status.success());
    String::from_utf8(failed.stderr).unwrap()
}

pub(crate) fn ranges_come_from_a_file() {
    let file = std::env::temp_dir().join(format!("kshuttle-ranges-{}", std::process::id()));
    fs::write(&file, "# the cluster's\n10.96.0.0/12  10.244.0.0/16 # Services, pods\n\n").unwrap();
    let kshuttle = Kshuttle::start(&["-f", file.to_str().unwrap()]);
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
    drop(kshuttle);
    fs::write(&file, "10.96.0.0/12\nnonsense\n").unwrap();
    let said = fails(&["-f", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    assert!(said.contains(":2: \"nonsense\" is not an address or a range"), "{said}");
}

pub(crate) fn one_port_of_an_address_is_left_alone() {
    let _kshuttle = Kshuttle::start(&["10.96.0.0/12", "-x", "10.96.77.77:7003"]);
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
    let meter = LeakMeter::start();
    assert!(TcpStream::connect_timeout(&bench(7003), Duration::from_millis(200)).is_err());
    assert!(meter.leaked() > 0);
}

pub(crate) fn iptables_serves_as_well() {
    let kshuttle = Kshuttle::start(&[&RANGES[..], &["--redirect", "iptables"]].concat());
    assert!(kshuttle.said().contains("(iptables table kshuttle_"), "{}", kshuttle.said());
    let meter = LeakMeter::start();
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
    let answer =
        output(Command::new("dig").args(["@10.96.0.10", "+short", "hello.default.svc.cluster.local"]));
    assert!(!answer.trim().is_empty());
    assert_eq!(meter.leaked(), 0);
    drop(kshuttle);
    assert!(!output(&mut Command::new("iptables-save")).contains("kshuttle"));
}

/// Rules of one's own, to the port that it names.
pub(crate) fn without_rules_it_listens_all_the_same() {
    let kshuttle = Kshuttle::start(&["10.96.0.0/12", "--redirect", "none"]);
    let said = kshuttle.said();
    let port = said.split("listeners: 127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap();
    let table = format!("own_rules_{}", std::process::id());
    output(Command::new("nft").arg(format!(
        "add table ip {table}; add chain ip {table} out {{ type nat hook output priority -100; }}; \
         add rule ip {table} out ip daddr 10.96.77.77 tcp dport 8080 redirect to :{port}"
    )));
    let answer = get(bench(8080), "/");
    output(Command::new("nft").arg(format!("delete table ip {table}")));
    assert_eq!(answer.unwrap().text, "hello from bench\n");
}

pub(crate) fn narrow_redirects_what_there_is_and_follows() {
    let _kshuttle = Kshuttle::start(&["--narrow"]);
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
    let meter = LeakMeter::start();
    assert!(
        TcpStream::connect_timeout(&"10.96.200.200:80".parse().unwrap(), Duration::from_millis(200)).is_err()
    );
    assert!(meter.leaked() > 0, "an address that nothing has takes the machine's own way");
    // A Service that is made now is reached soon.
    let _ = Command::new("kubectl").args(["delete", "service", "late", "--ignore-not-found"]).output();
    kubectl(&["expose", "deployment", "bench", "--name", "late", "--port", "80", "--target-port", "8080"]);
    let address = kubectl(&["get", "service", "late", "-o", "jsonpath={.spec.clusterIP}"]);
    let address: SocketAddr = format!("{address}:80").parse().unwrap();
    let answer = eventually("the new Service is reached", Duration::from_secs(5), || {
        let socket = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
        drop(socket);
        get(address, "/").ok()
    });
    kubectl(&["delete", "service", "late"]);
    assert_eq!(answer.text, "hello from bench\n");
}

/// A node that joins while kshuttle runs: its pods' range is reached within five seconds.
pub(crate) fn a_new_node_s_pods_are_reached() {
    let kshuttle = Kshuttle::start(&[]);
    let node = NewNode::with_pods_in("10.244.99.0/24");
    let said = eventually("the range is told", Duration::from_secs(5), || {
        Some(kshuttle.said()).filter(|said| said.contains("10.244.99.0/24"))
    });
    drop(node);
    assert!(said.contains("ranges changed: "), "{said}");
    let meter = LeakMeter::start();
    // Redirected: it is refused by the cluster, not lost in the local network.
    let mut socket = connect("10.244.99.7:80".parse().unwrap()).unwrap();
    let _ = socket.write_all(b"x");
    assert_eq!(meter.leaked(), 0);
}

pub(crate) fn the_same_range_twice_is_refused_and_others_are_not() {
    let first = Kshuttle::start(&["10.96.0.0/12"]);
    let said = fails(&["10.96.0.0/16"]);
    assert!(said.contains(&format!("session {} redirects 10.96.0.0/12 already", first.pid())), "{said}");
    assert!(said.contains("hint: "), "{said}");
    let _second = Kshuttle::start(&["10.244.0.0/16"]);
    let pod = kubectl(&["get", "pod", "-l", "app=bench", "-o", "jsonpath={.items[0].status.podIP}"]);
    assert_eq!(get(format!("{pod}:8080").parse().unwrap(), "/").unwrap().text, "hello from bench\n");
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
}

pub(crate) fn five_thousand_connections_at_once() {
    const COUNT: usize = 5000;
    let _kshuttle = Kshuttle::start(&[&RANGES[..], &["--tunnels", "3"]].concat());
    let meter = LeakMeter::start();
    let mut sockets: Vec<TcpStream> = (0..COUNT).map(|_| connect(bench(7003)).unwrap()).collect();
    for (number, socket) in sockets.iter_mut().enumerate() {
        socket.write_all(&[number as u8]).unwrap();
    }
    for (number, socket) in sockets.iter_mut().enumerate() {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap_or_else(|error| panic!("connection {number}: {error}"));
        assert_eq!(byte[0], number as u8);
    }
    assert_eq!(meter.leaked(), 0);
}

/// Who has no descriptor left takes the next connections when others have ended.
pub(crate) fn running_out_of_descriptors_is_survived() {
    let mut command = Command::new("bash");
    let line = format!("ulimit -n 150; exec {} {}", program("kshuttle").display(), RANGES.join(" "));
    command.args(["-c", &line]);
    let kshuttle = Kshuttle::start_as(command);
    let echo = |socket: &mut TcpStream| -> std::io::Result<()> {
        socket.write_all(b"x")?;
        socket.read_exact(&mut [0; 1])
    };
    let mut sockets: Vec<TcpStream> = (0..300).map(|_| connect(bench(7003)).unwrap()).collect();
    assert!(sockets[..50].iter_mut().all(|socket| echo(socket).is_ok()));
    eventually("it says so", Duration::from_secs(10), || {
        kshuttle.said().contains("accept a connection").then_some(())
    });
    let mut waiting = sockets.split_off(200);
    drop(sockets);
    for socket in &mut waiting {
        echo(socket).unwrap();
    }
}

/// More at once than there may be: each is served or reset, and afterwards all is well.
pub(crate) fn a_storm_of_connections_is_refused_at_the_bound() {
    const COUNT: usize = 20_000;
    let mut kshuttle = Kshuttle::start(&[&RANGES[..], &["--tunnels", "1"]].concat());
    let meter = LeakMeter::start();
    let started = Instant::now();
    let workers: Vec<_> = (0..20)
        .map(|_| {
            std::thread::spawn(move || {
                let sockets: Vec<_> = (0..COUNT / 20).map(|_| connect(bench(7003))).collect();
                let connected = started.elapsed();
                let served = sockets
                    .into_iter()
                    .flatten()
                    .map(|mut socket| {
                        let served = socket.write_all(b"x").and_then(|()| socket.read_exact(&mut [0; 1]));
                        usize::from(served.is_ok())
                    })
                    .sum::<usize>();
                (served, connected)
            })
        })
        .collect();
    let ended: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    let served: usize = ended.iter().map(|(served, _)| served).sum();
    let connected = ended.iter().map(|(_, connected)| *connected).max().unwrap();
    println!("      {served} of {COUNT} served, {:.0} connects/s", COUNT as f64 / connected.as_secs_f64());
    assert!(served >= 1000, "{served}");
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
    assert_eq!(meter.leaked(), 0);
    assert!(kshuttle.stop(Signal::SIGINT).code().is_some());
}

/// Somebody listens on this machine at an address inside a redirected range: that stays this machine's.
pub(crate) fn own_addresses_stay_own() {
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let _kshuttle = Kshuttle::start(&RANGES);
    connect(own.local_addr().unwrap()).unwrap();
    own.accept().unwrap();
}
