//! Every way it can end: applications see a reset, nothing is left behind.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use kshuttle_test_support::http::connect;
use kshuttle_test_support::kshuttle::{
    Kshuttle, LeakMeter, PATIENCE, eventually, kubectl, output, processes, program,
};
use nix::sys::signal::{Signal, kill};

use crate::reach::{RANGES, bench};

/// What must be gone after an unclean end is gone within this time.
const SOON: Duration = Duration::from_secs(5);

fn ruleset() -> String {
    output(Command::new("nft").args(["list", "ruleset"]))
}

fn listeners() -> String {
    output(Command::new("ss").args(["-Hltn"]))
}

/// A connection that is open and quiet, and one in the middle of a download.
fn applications() -> Vec<TcpStream> {
    let mut quiet = connect(bench(7003)).unwrap();
    quiet.write_all(b"x").unwrap();
    quiet.read_exact(&mut [0; 1]).unwrap();
    let mut busy = connect(bench(7001)).unwrap();
    busy.read_exact(&mut [0; 65536]).unwrap();
    vec![quiet, busy]
}

/// Reads on until the end, which must be a reset; says how long that took after `since`.
fn assert_reset(applications: Vec<TcpStream>, since: Instant) {
    for mut socket in applications {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let error = loop {
            match socket.read(&mut buffer) {
                Ok(0) => panic!("a clean end: an application would take half for the whole"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    println!("      all reset after {} ms", since.elapsed().as_millis());
}

fn assert_nothing_left(rules: &str, open: &str) {
    eventually("no process is left", SOON, || {
        processes(&program("kshuttle").to_string_lossy()).is_empty().then_some(())
    });
    eventually("the rules are as before", SOON, || (ruleset() == rules).then_some(()));
    eventually("no listener is left", SOON, || (listeners() == open).then_some(()));
}

fn phase(pod: &str) -> String {
    kubectl(&["get", "pod", pod, "--ignore-not-found", "-o", "jsonpath={.status.phase}"])
}

pub(crate) fn signals_stop_in_order() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let (rules, open) = (ruleset(), listeners());
        let mut kshuttle = Kshuttle::start(&RANGES);
        let pod = kshuttle.pod();
        let applications = applications();
        let meter = LeakMeter::start();
        let since = Instant::now();
        kshuttle.signal(signal);
        assert_reset(applications, since);
        let status = kshuttle.wait();
        assert_eq!(status.code(), Some(code), "{signal}: {}", kshuttle.said());
        assert!(!kshuttle.said().contains("warning"), "{}", kshuttle.said());
        assert_eq!(meter.leaked(), 0);
        assert_nothing_left(&rules, &open);
        eventually("the pod is deleted", PATIENCE, || phase(&pod).is_empty().then_some(()));
    }
}

pub(crate) fn a_second_signal_waits_for_nothing() {
    let (rules, open) = (ruleset(), listeners());
    let mut kshuttle = Kshuttle::start(&[&RANGES[..], &["--pod-idle", "5s"]].concat());
    let helpers = processes(&program("kshuttle-helper").to_string_lossy());
    // A helper that does not answer: the orderly stop would wait for it.
    for helper in &helpers {
        kill(*helper, Signal::SIGSTOP).unwrap();
    }
    kshuttle.signal(Signal::SIGINT);
    eventually("it has begun to stop", PATIENCE, || connect(bench(7003)).is_ok_and(is_reset).then_some(()));
    let status = kshuttle.stop(Signal::SIGINT);
    assert_eq!(status.code(), Some(130), "{}", kshuttle.said());
    for helper in &helpers {
        kill(*helper, Signal::SIGCONT).unwrap();
    }
    assert_nothing_left(&rules, &open);
}

/// Whether a connection is reset rather than used.
fn is_reset(mut socket: TcpStream) -> bool {
    let _ = socket.write_all(b"x");
    matches!(socket.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

pub(crate) fn sigkill_of_kshuttle_leaves_nothing() {
    let (rules, open) = (ruleset(), listeners());
    let mut kshuttle = Kshuttle::start(&[&RANGES[..], &["--pod-idle", "5s"]].concat());
    let pod = kshuttle.pod();
    let applications = applications();
    let since = Instant::now();
    kshuttle.stop(Signal::SIGKILL);
    assert_reset(applications, since);
    assert_nothing_left(&rules, &open);
    eventually("the pod has ended by itself", PATIENCE, || (phase(&pod) == "Succeeded").then_some(()));
    // The next session takes the left-over away.
    let mut next = Kshuttle::start(&RANGES);
    eventually("the left-over is deleted", PATIENCE, || phase(&pod).is_empty().then_some(()));
    next.stop(Signal::SIGTERM);
}

pub(crate) fn sigkill_of_the_helper_leaves_nothing() {
    let (rules, open) = (ruleset(), listeners());
    let mut kshuttle = Kshuttle::start(&RANGES);
    let pod = kshuttle.pod();
    let applications = applications();
    let helpers = processes(&program("kshuttle-helper").to_string_lossy());
    // The oldest is the helper, the other its watchdog.
    let helper = helpers.iter().min_by_key(|pid| pid.as_raw()).unwrap();
    let since = Instant::now();
    kill(*helper, Signal::SIGKILL).unwrap();
    assert_reset(applications, since);
    let status = kshuttle.wait();
    assert_eq!(status.code(), Some(7), "{}", kshuttle.said());
    assert!(kshuttle.said().contains("helper"), "{}", kshuttle.said());
    assert_nothing_left(&rules, &open);
    eventually("the pod is deleted", PATIENCE, || phase(&pod).is_empty().then_some(()));
}

pub(crate) fn ctrl_c_while_starting_leaves_nothing() {
    let (rules, open) = (ruleset(), listeners());
    let mut command = Command::new(program("kshuttle"));
    command.args(RANGES);
    let mut kshuttle = Kshuttle::spawn(command);
    eventually("it waits for the pod", PATIENCE, || kshuttle.said().contains("waiting").then_some(()));
    let status = kshuttle.stop(Signal::SIGINT);
    assert_eq!(status.code(), Some(130), "{}", kshuttle.said());
    assert_nothing_left(&rules, &open);
    eventually("no pod is left", PATIENCE, || {
        kubectl(&["get", "pod", "-l", "app.kubernetes.io/name=kshuttle", "-o", "name"])
            .is_empty()
            .then_some(())
    });
}

pub(crate) fn a_pod_that_ends_is_replaced() {
    let (rules, open) = (ruleset(), listeners());
    let mut kshuttle = Kshuttle::start(&RANGES);
    let old = kshuttle.pod();
    let before = applications();
    let meter = LeakMeter::start();
    let since = Instant::now();
    kubectl(&["delete", "pod", &old, "--wait=false"]);
    assert_reset(before, since);
    // Made while there is no pod: they wait for the next one.
    let after = applications();
    assert_eq!(meter.leaked(), 0);
    let said = kshuttle.said();
    assert!(said.contains(&format!("the pod {old} ended")), "{said}");
    let since = Instant::now();
    kshuttle.signal(Signal::SIGTERM);
    assert_reset(after, since);
    assert_eq!(kshuttle.wait().code(), Some(143), "{}", kshuttle.said());
    assert_nothing_left(&rules, &open);
    eventually("no pod is left", PATIENCE, || {
        kubectl(&["get", "pod", "-l", "app.kubernetes.io/name=kshuttle", "-o", "name"])
            .is_empty()
            .then_some(())
    });
}
