//! `kshuttle port-forward`: the user's own pods, without a pod of ours.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually, kubectl, program};
use nix::sys::signal::Signal;

const HELLO: &str = "hello from the cluster\n";

/// The command on 127.0.0.1 and free ports, and these.
fn forward(target: &str, ports: &[&str]) -> (Kshuttle, Vec<SocketAddr>) {
    let arguments = ["port-forward", "--address", "127.0.0.1", target];
    let kshuttle = Kshuttle::start(&[&arguments[..], ports].concat());
    let addresses = kshuttle.forwarded(ports.len());
    (kshuttle, addresses)
}

/// The pod of a Deployment that is not being deleted.
fn pod(app: &str) -> String {
    let running = "jsonpath={range .items[?(@.status.phase==\"Running\")]}{.metadata.name} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
    let pods = kubectl(&["get", "pod", "-l", &format!("app={app}"), "-o", running]);
    let mut names = pods.lines().map(str::trim).filter(|line| !line.contains(' '));
    names.next().expect("a pod that stays").to_owned()
}

fn echo(socket: &mut TcpStream, text: &[u8]) {
    socket.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

fn assert_reset(mut socket: TcpStream) {
    let error = loop {
        match socket.read(&mut [0; 65536]) {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

pub(crate) fn pods_and_services_by_every_name() {
    let pod = pod("hello");
    for (target, port) in [
        (pod.as_str(), "8080"),
        (&format!("pod/{pod}"), "http"),
        ("svc/hello", "80"),
        ("service/hello", "http"),
        ("svc/hello-headless", "8080"),
        ("deploy/hello", "http"),
    ] {
        let (_kshuttle, to) = forward(target, &[&format!(":{port}")]);
        assert_eq!(get(to[0], "/").unwrap().text, HELLO, "{target} {port}");
    }
}

pub(crate) fn several_ports_over_websocket() {
    several_ports_over("websocket");
}

pub(crate) fn several_ports_over_spdy() {
    several_ports_over("spdy");
}

fn several_ports_over(transport: &str) {
    let arguments = ["port-forward", "svc/bench", ":echo", ":http", "--transport", transport];
    let kshuttle = Kshuttle::start(&arguments);
    let to = kshuttle.forwarded(4); // two ports on both families
    assert!(to.iter().any(SocketAddr::is_ipv6) && to[0].port() == to[1].port(), "{to:?}");
    for address in &to[..2] {
        echo(&mut connect(*address).unwrap(), &[b'x'; 100_000]);
    }
    for address in &to[2..] {
        let answer = get(*address, "/10M").unwrap();
        assert_eq!(Some(answer.sha256), answer.announced);
    }
}

pub(crate) fn a_refused_port_leaves_the_other_connections_alone() {
    let (kshuttle, to) = forward("svc/bench", &[":echo", ":refused"]);
    let mut open = connect(to[0]).unwrap();
    echo(&mut open, b"before");
    for _ in 0..3 {
        match connect(to[1]) {
            Ok(mut refused) => {
                let _ = refused.write_all(b"anybody?");
                assert_reset(refused);
            }
            // Before this program was told that it is connected.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        echo(&mut open, b"after");
    }
    echo(&mut connect(to[0]).unwrap(), b"new");
    eventually("it is told", PATIENCE, || {
        kshuttle.said().contains("connection refused in the pod").then_some(())
    });
}

/// 300 MiB take longer than the second after which the runtime would cut them.
pub(crate) fn an_answer_after_the_applications_end_is_whole() {
    let (_kshuttle, to) = forward("svc/bench", &[":http"]);
    // The server sums the file before it answers for the first time; the protocol's patience is shorter than that may take.
    assert_eq!(get(to[0], "/300M").unwrap().length, 300 << 20);
    for pause in [Duration::ZERO, Duration::from_secs(3)] {
        let mut socket = connect(to[0]).unwrap();
        socket.write_all(b"GET /300M HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        thread::sleep(pause); // it has other things to do than to read
        let length = std::io::copy(&mut socket, &mut std::io::sink()).unwrap();
        assert!(length > 300 << 20, "only {length} bytes");
    }
}

pub(crate) fn a_reset_of_the_pod_and_the_end_of_the_command_are_resets() {
    let (mut kshuttle, to) = forward("deploy/bench", &[":7005", ":7003", ":7001"]);
    let mut reset = connect(to[0]).unwrap();
    reset.write_all(b"x").unwrap();
    assert_reset(reset);
    let mut quiet = connect(to[1]).unwrap();
    echo(&mut quiet, b"x");
    let mut busy = connect(to[2]).unwrap();
    busy.read_exact(&mut [0; 65536]).unwrap();
    let status = kshuttle.stop(Signal::SIGINT);
    assert_eq!(status.code(), Some(130), "{}", kshuttle.said());
    assert_reset(quiet);
    assert_reset(busy);
    assert_eq!(connect(to[1]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

pub(crate) fn the_next_connection_reaches_the_replacement() {
    for target in ["svc/hello", "deploy/hello"] {
        let old = pod("hello");
        let (kshuttle, to) = forward(target, &[":http"]);
        assert!(kshuttle.said().contains(&old), "{}", kshuttle.said());
        assert_eq!(get(to[0], "/").unwrap().text, HELLO);
        kubectl(&["delete", "pod", &old, "--wait=false"]);
        assert_eq!(get(to[0], "/").unwrap().text, HELLO, "while it goes");
        kubectl(&["wait", "--for=delete", "pod", &old, "--timeout=60s"]);
        assert_eq!(get(to[0], "/").unwrap().text, HELLO, "after it went");
        assert_ne!(pod("hello"), old);
    }
}

pub(crate) fn a_named_pod_that_is_gone_ends_it() {
    let old = pod("hello");
    let (mut kshuttle, to) = forward(&old, &[":http"]);
    kubectl(&["delete", "pod", &old]);
    assert!(get(to[0], "/").is_err());
    assert_eq!(kshuttle.wait().code(), Some(5), "{}", kshuttle.said());
    let said = kshuttle.said();
    assert!(said.contains(&old) && said.contains("hint: `deploy/NAME`"), "{said}");
    kubectl(&["rollout", "status", "deployment", "hello", "--timeout=60s"]);
}

pub(crate) fn what_cannot_be_forwarded_is_told() {
    let limited = std::env::var("KSHUTTLE_BOX_LIMITED").expect("the box names the limited user's kubeconfig");
    for (arguments, code, words) in [
        (&["svc/bench", "echo-udp"][..], 1, "only TCP"),
        (&["svc/bench", "53"], 1, "8080 (http)"),
        (&["deploy/bench", "nothing"], 1, "8080 (http)"),
        (&["svc/nothing", "80"], 5, "no service nothing in namespace `default`"),
        (&["nothing", "80", "-n", "shop"], 5, "no pod nothing in namespace `shop`"),
        (&["svc/web", "80", "-n", "shop", "--kubeconfig", &limited], 4, "may not get services"),
        (&["svc/web", "53/udp"], 2, "only TCP"),
        (&["svc/web"], 2, "REMOTE"),
    ] {
        let output = Command::new(program("kshuttle")).arg("port-forward").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
