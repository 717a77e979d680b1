//! The pod's server as a stock OpenSSH client sees it.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use kshuttle::tunnel::identity::Identity;
use kshuttle_test_support::net::{closed_port, echo, server};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::within;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

struct Scene {
    sshd: Sshd,
    folder: TempDir,
}

async fn scene() -> Scene {
    let identity = Identity::generate().unwrap();
    let sshd = Sshd::start(&identity.authorized_key().unwrap()).await;
    let folder = tempfile::tempdir().unwrap();
    for (name, identity) in [("right", &identity), ("wrong", &Identity::generate().unwrap())] {
        let path = folder.path().join(name);
        std::fs::write(&path, identity.to_openssh().unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    Scene { sshd, folder }
}

impl Scene {
    /// `ssh` with the key of this name and nothing of the user's own configuration.
    fn ssh(&self, key: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-i"])
            .arg(self.folder.path().join(key))
            .args(["-p", &self.sshd.address.port().to_string(), "-T"])
            .env_remove("SSH_AUTH_SOCK")
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        ssh
    }
}

#[tokio::test]
async fn ssh_w_carries_a_connection() {
    let scene = scene().await;
    let target = server(echo).await;
    let mut ssh = scene
        .ssh("right")
        .args(["-W", &target.to_string(), "kshuttle@127.0.0.1"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("OpenSSH's client is needed: apt-get install openssh-client");
    ssh.stdin.take().unwrap().write_all(b"through a stock client").await.unwrap();
    let output = within(ssh.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through a stock client", "{output:?}");
}

#[tokio::test]
async fn a_refused_target_is_told() {
    let scene = scene().await;
    let closed = closed_port().await;
    let output = within(scene.ssh("right").args(["-W", &closed.to_string(), "kshuttle@127.0.0.1"]).output())
        .await
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("connect failed"), "{output:?}");
}

#[tokio::test]
async fn commands_shells_and_other_keys_are_refused() {
    let scene = scene().await;
    for (key, command) in [
        ("right", &["kshuttle@127.0.0.1", "id"][..]),
        ("right", &["kshuttle@127.0.0.1"]),
        ("wrong", &["kshuttle@127.0.0.1", "id"]),
    ] {
        let output = within(scene.ssh(key).args(command).output()).await.unwrap();
        assert!(!output.status.success(), "{key} {command:?}: {output:?}");
        assert!(output.stdout.is_empty());
    }
}
