//! The pod's SSH server, in this process.

use std::net::SocketAddr;
use std::time::Duration;

use kshuttle_sshd::server::Server;
use kshuttle_sshd::settings::Settings;
use russh::keys::PublicKey;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A running server; stops when dropped.
pub struct Sshd {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Sshd {
    /// Starts a server that lets in `authorized_key` (an `authorized_keys` line).
    ///
    /// # Panics
    /// When the key is malformed or loopback does not work.
    pub async fn start(authorized_key: &str) -> Self {
        let settings = Settings {
            authorized_key: PublicKey::from_openssh(authorized_key).expect("an OpenSSH public key"),
            port: 0,
            idle: Duration::from_secs(300),
            attended: false,
        };
        let server = Server::bind(settings).await.expect("bind to loopback");
        let address = server.address().expect("a bound socket has an address");
        Self { address, task: tokio::spawn(server.run()) }
    }

    /// A fresh byte stream to it.
    ///
    /// # Panics
    /// When loopback does not work.
    pub async fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.expect("connect to the server");
        stream.set_nodelay(true).expect("a TCP socket");
        stream
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.task.abort();
    }
}
