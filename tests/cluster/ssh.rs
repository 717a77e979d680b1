//! OpenSSH's own client through our pod, with the stanza of `kshuttle ssh-config`.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use kshuttle_test_support::http::get;
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually, kubectl, output, program};
use nix::sys::signal::Signal;
use tempfile::NamedTempFile;

/// `kshuttle ssh-config` and the file with its stanza.
struct Scene {
    kshuttle: Kshuttle,
    config: NamedTempFile,
}

impl Scene {
    fn start() -> Self {
        let mut command = Command::new(program("kshuttle"));
        command.args(["ssh-config", "--host", "pod"]);
        let kshuttle = Kshuttle::start_as(command);
        let stanza = eventually("the stanza is printed", PATIENCE, || {
            let printed = kshuttle.printed();
            printed.contains("ServerAliveInterval").then_some(printed)
        });
        let mut config = NamedTempFile::new().unwrap();
        config.write_all(stanza.as_bytes()).unwrap();
        Self { kshuttle, config }
    }

    fn ssh(&self, arguments: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-o", "BatchMode=yes", "-F"]).arg(self.config.path()).args(arguments).arg("pod");
        ssh
    }
}

/// Ends a child at the end of its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago; ssh cannot choose one and say which.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn openssh_forwards_through_the_pod() {
    let scene = Scene::start();
    let name = scene.kshuttle.pid().to_string();
    let status = output(Command::new(program("kshuttle")).args(["status", &name]));
    assert!(status.starts_with(&format!("session {name}: kshuttle ssh-config, ready")), "{status}");
    let service = kubectl(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"]);

    // -W: one connection on standard input and output.
    let mut w = scene
        .ssh(&["-W", &format!("{service}:80")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    w.stdin.take().unwrap().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let answer = w.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&answer.stdout).contains("hello from the cluster"), "{answer:?}");

    // -L: a port, to a name that the pod resolves. -D: SOCKS.
    let (local, dynamic) = (free_port(), free_port());
    let ssh = scene
        .ssh(&[
            "-N",
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &format!("127.0.0.1:{local}:hello.default.svc:80"),
        ])
        .args(["-D", &format!("127.0.0.1:{dynamic}")])
        .spawn()
        .unwrap();
    let _ssh = Running(ssh);
    let address: SocketAddr = ([127, 0, 0, 1], local).into();
    let text = eventually("-L answers", PATIENCE, || get(address, "/").ok()).text;
    assert_eq!(text, "hello from the cluster\n");
    let proxy = format!("socks5h://127.0.0.1:{dynamic}");
    let text =
        output(Command::new("curl").args(["-sS", "--max-time", "30", "-x", &proxy, "http://web.shop/"]));
    assert_eq!(text, "web in shop");
}

pub(crate) fn openssh_gets_nothing_else_and_the_key_goes_with_the_session() {
    let mut scene = Scene::start();
    let shell = scene.ssh(&["-T"]).stdin(Stdio::null()).output().unwrap();
    assert!(!shell.status.success() && shell.stdout.is_empty(), "{shell:?}");
    let other = scene.ssh(&["-o", "User=root", "-W", "10.96.0.1:443"]).stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("Permission denied (publickey)"), "{other:?}");
    let pod = scene.kshuttle.pod();
    let log = kubectl(&["logs", &pod]);
    assert!(log.contains("refused: a shell") && log.contains("refused: wrong user user=\"root\""), "{log}");

    let stanza = scene.kshuttle.printed();
    let key = stanza.split("IdentityFile \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert!(std::fs::exists(&key).unwrap());
    let status = scene.kshuttle.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(143), "{}", scene.kshuttle.said());
    assert!(!std::fs::exists(&key).unwrap());
}

/// The server listens on the pod's loopback: from the pod network there is nothing.
pub(crate) fn the_pods_port_is_not_on_the_pod_network() {
    let kshuttle = Kshuttle::start(&["socks", "--listen", "127.0.0.1:0"]);
    let addresses = kubectl(&["get", "pod", &kshuttle.pod(), "-o", "jsonpath={.status.podIPs[*].ip}"]);
    let neighbour = crate::scene::OwnPod::start("neighbour");
    for address in addresses.split(' ') {
        let dial = format!("nc -w 5 {address} 2222 </dev/null; echo status $?");
        let said = kubectl(&["exec", neighbour.name, "-c", "shell", "--", "sh", "-c", &dial]);
        assert_eq!(said, "status 1", "{address}: refused, or silent");
    }
    // The same question has an answer where there is one.
    let open = kubectl(&["get", "pod", neighbour.name, "-o", "jsonpath={.status.podIP}"]);
    let dial = format!("nc -w 5 {open} 8080 </dev/null; echo status $?");
    let said = kubectl(&["exec", neighbour.name, "-c", "shell", "--", "sh", "-c", &dial]);
    assert_eq!(said, "status 0");
}
