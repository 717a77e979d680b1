//! A real OpenSSH server: one process for each connection, as inetd starts it, so that it needs no port of its own and a test
//! can kill one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

const SSHD: &str = "/usr/sbin/sshd";

/// Where a root's sshd wants an empty folder; Debian's service makes it.
const PRIVSEP: &str = "/run/sshd";

/// A running server. Its processes end when it is dropped.
pub struct OpenSsh {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who may log in: the user of this process.
    pub user: String,
    /// Its host key.
    pub host_key: PublicKey,
    children: Arc<Mutex<Vec<Child>>>,
    task: JoinHandle<()>,
    folder: TempDir,
}

impl OpenSsh {
    /// Starts a server that lets in `authorized_key`, with these lines at the front of its configuration (the first counts).
    ///
    /// # Panics
    /// When there is no OpenSSH server on this machine.
    pub async fn start(authorized_key: &str, configuration: &str) -> Self {
        assert!(Path::new(SSHD).exists(), "OpenSSH's server is needed: apt-get install openssh-server");
        if nix::unistd::getuid().is_root() {
            std::fs::create_dir_all(PRIVSEP).expect("root may make it");
        }
        let folder = tempfile::tempdir().expect("make a folder");
        let place = |name: &str| folder.path().join(name);
        let key =
            PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).expect("make a key");
        key.write_openssh_file(place("host_key"), LineEnding::LF).expect("write the host key");
        std::fs::write(place("authorized_keys"), authorized_key).expect("write the authorized keys");
        let here = folder.path().display();
        let configuration = format!(
            "{configuration}\nHostKey {here}/host_key\nAuthorizedKeysFile {here}/authorized_keys\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\nLogLevel DEBUG1\n"
        );
        std::fs::write(place("sshd_config"), configuration).expect("write the configuration");

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind to loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let children = Arc::new(Mutex::new(Vec::new()));
        let (started, config, log) = (children.clone(), place("sshd_config"), place("log"));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let child = serve(socket, &config, &log);
                started.lock().expect("no panic while holding the lock").push(child);
            }
        });
        let user =
            nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().expect("we are somebody").name;
        Self { address, user, host_key: key.public_key().clone(), children, task, folder }
    }

    /// Connections so far.
    ///
    /// # Panics
    /// Never in practice.
    pub fn connections(&self) -> usize {
        self.children.lock().expect("no panic while holding the lock").len()
    }

    /// What its processes said.
    ///
    /// # Panics
    /// When there was no connection yet.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("log")).expect("sshd writes its log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// SIGKILL for all its processes.
    ///
    /// # Panics
    /// Never in practice.
    pub fn kill(&self) {
        for child in self.children.lock().expect("no panic while holding the lock").iter_mut() {
            let _ = child.start_kill(); // it may have ended
        }
    }
}

impl Drop for OpenSsh {
    fn drop(&mut self) {
        self.task.abort();
        self.kill();
    }
}

fn serve(socket: TcpStream, config: &Path, log: &Path) -> Child {
    let socket = socket.into_std().expect("a socket");
    socket.set_nonblocking(false).expect("a socket");
    let _ = socket.set_nodelay(true); // as the real one does
    let other = socket.try_clone().expect("a second descriptor");
    Command::new(SSHD)
        .args(["-i", "-f"])
        .arg(config)
        .arg("-E")
        .arg(log)
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::from(OwnedFd::from(other)))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("start sshd")
}
