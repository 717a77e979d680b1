//! `kshuttle status` and `quit`, and SIGUSR1, while a session is still starting: its API server takes connections and says
//! nothing.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually, output};
use nix::sys::signal::Signal;
use tempfile::TempDir;

struct Scene {
    /// Takes connections as the kernel does: nobody accepts them.
    _api: TcpListener,
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let api = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let server = format!("http://{}", api.local_addr().unwrap());
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { _api: api, folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kshuttle"));
        command.args(arguments).env("XDG_RUNTIME_DIR", self.folder.path());
        command.env("KUBECONFIG", self.folder.path().join("kubeconfig"));
        command
    }

    fn session(&self) -> Kshuttle {
        Kshuttle::spawn(self.command(&["socks", "--listen", "127.0.0.1:0"]))
    }

    /// As `kshuttle status -o json` says, of this session.
    fn status(&self, of: &Kshuttle) -> Option<serde_json::Value> {
        let all = output(&mut self.command(&["status", "-o", "json"]));
        let all: Vec<serde_json::Value> = serde_json::from_str(&all).unwrap();
        all.into_iter().find(|session| session["name"] == of.pid().to_string())
    }
}

#[test]
fn a_session_that_starts_says_so_and_can_be_ended() {
    let scene = Scene::new();
    let mut one = scene.session();
    let mut other = scene.session();
    for session in [&one, &other] {
        let status = eventually("the session is found", PATIENCE, || scene.status(session));
        assert_eq!((&status["command"], &status["ready"]), (&"socks".into(), &false.into()));
    }
    let name = one.pid().to_string();
    let words = output(&mut scene.command(&["status", &name]));
    assert!(words.starts_with(&format!("session {name}: kshuttle socks, starting, for ")), "{words}");

    // By default the signal would end it.
    one.signal(Signal::SIGUSR1);
    eventually("the signal is answered", PATIENCE, || {
        one.said().contains("socks, starting, for").then_some(())
    });

    let which = scene.command(&["quit"]).output().unwrap();
    assert_eq!(which.status.code(), Some(1), "there are two: {which:?}");
    output(&mut scene.command(&["quit", &name]));
    assert_eq!(one.wait().code(), Some(0), "{}", one.said());
    assert!(scene.status(&one).is_none());
    assert!(scene.status(&other).is_some());

    // One that was killed leaves its socket; nobody sees it, and the next session takes it away.
    other.stop(Signal::SIGKILL);
    let folder = scene.folder.path().join("kshuttle").join(other.pid().to_string());
    assert!(folder.exists() && scene.status(&other).is_none());
    let mut last = scene.session();
    eventually("the session is found", PATIENCE, || scene.status(&last));
    assert!(!folder.exists());
    assert_eq!(last.stop(Signal::SIGTERM).code(), Some(143));
}
