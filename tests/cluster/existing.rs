//! `--pod`: through a pod that somebody else made, ours or OpenSSH's.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, context, eventually, kubectl, output, program};
use tempfile::TempDir;

use crate::reach::{RANGES, bench};
use crate::scene::apply;
use crate::socks::fetches;

const LENGTH: &str = "/64M";

/// A pod that stays as long as this does.
struct Pod(&'static str);

impl Pod {
    fn start(name: &'static str, container: serde_json::Value) -> Self {
        let spec = serde_json::json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
        let metadata = serde_json::json!({"name": name});
        apply(&serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
        let this = Self(name);
        kubectl(&["wait", "--for=condition=Ready", "pod", name, "--timeout=60s"]);
        this
    }

    /// OpenSSH's server; lets root in with [`Stock::key`].
    fn openssh(name: &'static str, stock: &Stock) -> Self {
        let probe = serde_json::json!({"tcpSocket": {"port": 2222}, "periodSeconds": 1});
        let image = stock.image;
        Self::start(name, serde_json::json!({"name": "sshd", "image": image, "readinessProbe": probe}))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may be gone, and another panic would hide the first.
        let delete = ["delete", "pod", self.0, "--ignore-not-found", "--wait=false"];
        let _ = Command::new("kubectl").args(delete).args(context()).stdout(Stdio::null()).status();
    }
}

/// An OpenSSH as Debian has it.
struct Stock {
    image: &'static str,
    /// Names the folder of the image, from `scripts/test`.
    variable: &'static str,
}

/// Debian 12's, OpenSSH 9.
const STOCK: Stock = Stock { image: "kshuttle.test/sshd:1", variable: "KSHUTTLE_TEST_STOCK" };

/// Debian 11's, OpenSSH 8.
const OLDER_STOCK: Stock =
    Stock { image: "kshuttle.test/sshd:bullseye", variable: "KSHUTTLE_TEST_OLDER_STOCK" };

impl Stock {
    /// The key that the image lets in.
    fn key(&self) -> String {
        let folder =
            std::env::var_os(self.variable).expect("scripts/test makes the image and names its folder");
        PathBuf::from(folder).join("id").to_str().unwrap().to_owned()
    }
}

/// `kshuttle` with a folder of its own to remember host keys in.
fn command(state: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("kshuttle"));
    command.args(arguments).args(context()).env("XDG_STATE_HOME", state.path());
    command
}

pub(crate) fn a_pod_of_ours_that_is_there_gets_a_link_and_stays() {
    let state = tempfile::tempdir().unwrap();
    let key = state.path().join("id").to_str().unwrap().to_owned();
    output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &key]));
    let public = std::fs::read_to_string(format!("{key}.pub")).unwrap();
    let image = std::env::var("KSHUTTLE_TEST_IMAGE").expect("scripts/test imports the image and names it");
    let pod = Pod::start(
        "standing",
        serde_json::json!({
            "name": "sshd", "image": image, "env": [{"name": "KSHUTTLE_AUTHORIZED_KEY", "value": public}],
            "ports": [{"name": "ssh", "containerPort": 2222}],
        }),
    );
    let arguments = ["socks", "--listen", "127.0.0.1:0", "--pod", pod.0, "-i", &key];
    for first in [true, false] {
        let kshuttle = Kshuttle::start_as(command(&state, &arguments));
        let said = kshuttle.said();
        assert_eq!(said.contains("was not known before"), first, "{said}");
        assert!(!said.contains("not kshuttle's"), "{said}");
        fetches(&kshuttle);
    }
    assert_eq!(kubectl(&["get", "pod", pod.0, "-o", "jsonpath={.status.phase}"]), "Running");
}

pub(crate) fn an_openssh_9_pod_carries_redirected_connections() {
    carries_redirected_connections(&STOCK);
}

pub(crate) fn an_openssh_8_pod_carries_redirected_connections() {
    carries_redirected_connections(&OLDER_STOCK);
}

fn carries_redirected_connections(stock: &Stock) {
    let state = tempfile::tempdir().unwrap();
    let pod = Pod::openssh("stock", stock);
    let key = stock.key();
    let place = format!("root@{}", pod.0);
    let flags = ["--pod", &place, "--pod-port", "2222", "-i", &key];
    let mut kshuttle = Kshuttle::start_as(command(&state, &[&RANGES[..], &flags].concat()));
    assert!(kshuttle.said().contains("not kshuttle's"), "{}", kshuttle.said());
    let downloads: Vec<_> = (0..4).map(|_| thread::spawn(|| get(bench(8080), LENGTH).unwrap())).collect();
    for download in downloads {
        let answer = download.join().unwrap();
        assert_eq!(Some(answer.sha256), answer.announced);
    }
    let mut idle = connect(bench(7003)).unwrap();
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0; 1]).unwrap();
    // The pod goes in mid-transfer: never a clean end.
    let mut busy = connect(bench(7001)).unwrap();
    busy.read_exact(&mut [0; 1 << 20]).unwrap();
    kubectl(&["delete", "pod", pod.0, "--wait=false"]);
    for socket in [&mut busy, &mut idle] {
        let mut buffer = vec![0; 1 << 20];
        let error = loop {
            match socket.read(&mut buffer) {
                Ok(0) => panic!("a clean end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    // One of the same name takes its place, with the same key.
    eventually("the pod is gone", PATIENCE, || {
        kubectl(&["get", "pod", pod.0, "--ignore-not-found", "-o", "name"]).is_empty().then_some(())
    });
    let again = Pod::openssh("stock", stock);
    assert_eq!(get(hello(), "/").unwrap().text, "hello from the cluster\n");
    kshuttle.stop(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(kubectl(&["get", "pod", again.0, "-o", "jsonpath={.status.phase}"]), "Running");
}

fn hello() -> SocketAddr {
    let ip = kubectl(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"]);
    SocketAddr::new(ip.parse().unwrap(), 80)
}

pub(crate) fn what_does_not_fit_the_pod_is_told() {
    let state = tempfile::tempdir().unwrap();
    let pod = Pod::openssh("misfit", &STOCK);
    let (key, other) = (STOCK.key(), state.path().join("other").to_str().unwrap().to_owned());
    output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &other]));
    let (root, nobody) = (format!("root@{}", pod.0), format!("nobody@{}", pod.0));
    let host_key = format!("{other}.pub");
    for (flags, words) in [
        (&["--pod", &root, "--pod-port", "2222", "-i", &other][..], "does not let `root` in"),
        (&["--pod", &nobody, "--pod-port", "2222", "-i", &key], "does not let `nobody` in"),
        (&["--pod", &root, "--pod-port", "2222", "-i", &key, "--host-key", &host_key], "another host key"),
        (&["--pod", "no-such-pod", "-i", &key], "no-such-pod"),
    ] {
        let output = command(&state, &["socks", "--listen", "127.0.0.1:0"]).args(flags).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{flags:?}: {said}");
        assert!(said.contains(words), "{flags:?}: {said}");
    }
}
