//! What is measured: ways from an application to servers behind a line, with the line between their two ends.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::FutureExt as _;
use kshuttle::tunnel::Connect as _;
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::pool::{DialError, Dialed, Pool, Route, Settings};
use kshuttle::tunnel::ssh::USER;
use kshuttle_test_support::net::{closed_port, server};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_wire::pacing::Policy;
use kshuttle_wire::relay;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::places;
use crate::sshuttle::Sshuttle;

/// Time for a way to come up over the slowest line.
const UP_LIMIT: Duration = Duration::from_secs(30);

/// How often it is looked whether a program answers.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long it is waited for that: several round trips of the longest line.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

const OPENSSH_SERVER: &str = "/usr/sbin/sshd";

/// A way to carry connections.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// kshuttle's tunnels, paced so.
    Kshuttle(Policy),
    /// `ssh -L`, OpenSSH at both ends.
    OpenSsh,
    /// `sshuttle` over OpenSSH.
    Sshuttle,
}

/// What the far ends have in common.
pub(crate) struct Far {
    identity: Identity,
    keys: tempfile::TempDir,
    openssh: SocketAddr,
}

/// The far end of one way. Each gets one of its own: the pod's server waits for lost tunnels, and holds a limited number.
pub(crate) struct FarEnd {
    pub(crate) address: SocketAddr,
    _sshd: Option<Sshd>,
}

/// A way that is up. Ends when dropped.
pub(crate) struct Near {
    pub(crate) addresses: [SocketAddr; 3],
    _pool: Option<Pool>,
    _ssh: Option<Child>,
    _sshuttle: Option<Sshuttle>,
}

impl Way {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Kshuttle(policy) => format!("kshuttle, {policy}"),
            Self::OpenSsh => "`ssh -L`".to_owned(),
            Self::Sshuttle => "`sshuttle`".to_owned(),
        }
    }

    /// Leads connections to `targets` over the line that is at `line` and ends at the way's far end.
    pub(crate) async fn start(
        self,
        far: &Far,
        line: SocketAddr,
        targets: [SocketAddr; 3],
    ) -> anyhow::Result<Near> {
        match self {
            Self::Kshuttle(policy) => {
                let pool = pool(far, line, policy).await?;
                let mut addresses = targets;
                for address in &mut addresses {
                    *address = door(pool.clone(), *address).await?;
                }
                Ok(Near { addresses, _pool: Some(pool), _ssh: None, _sshuttle: None })
            }
            Self::OpenSsh => {
                let mut addresses = targets;
                for address in &mut addresses {
                    *address = closed_port().await;
                }
                let ssh = ssh(far, line, addresses, targets)?;
                tokio::time::timeout(UP_LIMIT, answers(addresses[2])).await.context("ssh answers")?;
                Ok(Near { addresses, _pool: None, _ssh: Some(ssh), _sshuttle: None })
            }
            Self::Sshuttle => {
                let sshuttle = Sshuttle::start(&format!("ssh {}", ssh_options(far, line)))?;
                let addresses = targets.map(|target| SocketAddr::from((places::SERVERS, target.port())));
                tokio::time::timeout(UP_LIMIT, answers(addresses[2])).await.context("sshuttle answers")?;
                Ok(Near { addresses, _pool: None, _ssh: None, _sshuttle: Some(sshuttle) })
            }
        }
    }
}

impl Far {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let identity = Identity::generate()?;
        let keys = tempfile::tempdir()?;
        let openssh = openssh_server(&identity, keys.path()).await?;
        Ok(Self { identity, keys, openssh })
    }

    /// Starts what the line must lead to.
    pub(crate) async fn end(&self, way: Way) -> anyhow::Result<FarEnd> {
        Ok(match way {
            Way::Kshuttle(_) => {
                let sshd = Sshd::start(&self.identity.authorized_key()?).await;
                FarEnd { address: sshd.address, _sshd: Some(sshd) }
            }
            Way::OpenSsh | Way::Sshuttle => FarEnd { address: self.openssh, _sshd: None },
        })
    }
}

async fn pool(far: &Far, line: SocketAddr, pacing: Policy) -> anyhow::Result<Pool> {
    let pool = Pool::start(Settings { pacing, ..Settings::default() });
    pool.lead(Some(Route {
        name: "the far end".to_owned(),
        dial: Arc::new(move || {
            async move {
                let stream = TcpStream::connect(line).await.map_err(DialError::passing)?;
                stream.set_nodelay(true).map_err(DialError::passing)?;
                Ok(Dialed { stream: Box::new(stream), way: "a line".to_owned() })
            }
            .boxed()
        }),
        identity: far.identity.clone(),
        user: USER.to_owned(),
        host_key: HostKey::default(),
        ours: true,
    }));
    pool.first_up(UP_LIMIT).await?;
    let all_up = async {
        while !pool.status().iter().all(|tunnel| tunnel.up) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(UP_LIMIT, all_up).await.context("all tunnels are up")?;
    Ok(pool)
}

/// A local address that leads to `target` through the pool.
async fn door(pool: Pool, target: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let pool = pool.clone();
            tokio::spawn(async move {
                let _ = socket.set_nodelay(true);
                if let Ok(flow) = pool.connect(&target.into()).await {
                    let _ = relay::relay(socket, flow).await;
                }
            });
        }
    });
    Ok(address)
}

/// An OpenSSH server that takes each connection as inetd would hand it over.
async fn openssh_server(identity: &Identity, keys: &Path) -> anyhow::Result<SocketAddr> {
    let file = |name: &str| keys.join(name);
    write_key(&file("client"), &identity.to_openssh()?)?;
    write_key(&file("host"), &Identity::generate()?.to_openssh()?)?;
    std::fs::write(file("authorized"), identity.authorized_key()?)?;
    let configuration = format!(
        "HostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nLogLevel ERROR\n",
        keys.display()
    );
    std::fs::write(file("sshd_config"), configuration)?;
    let path = file("sshd_config");
    Ok(server(move |socket| {
        let path = path.clone();
        async move {
            let _ = socket.set_nodelay(true);
            let Ok(socket) = socket.into_std() else { return };
            let _ = socket.set_nonblocking(false);
            let Ok(second) = socket.try_clone() else { return };
            let mut sshd = Command::new(OPENSSH_SERVER);
            sshd.arg("-i").arg("-f").arg(path).stderr(Stdio::null());
            sshd.stdin(std::os::fd::OwnedFd::from(socket)).stdout(std::os::fd::OwnedFd::from(second));
            if let Ok(mut child) = sshd.kill_on_drop(true).spawn() {
                let _ = child.wait().await;
            }
        }
    })
    .await)
}

fn write_key(path: &Path, key: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, key.as_bytes())?;
    Ok(())
}

/// How OpenSSH logs in over the line, whoever starts it.
fn ssh_options(far: &Far, line: SocketAddr) -> String {
    format!(
        "-F none -c aes128-gcm@openssh.com -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o LogLevel=ERROR -o IdentitiesOnly=yes -i {}/client -p {}",
        far.keys.path().display(),
        line.port()
    )
}

fn ssh(
    far: &Far,
    line: SocketAddr,
    addresses: [SocketAddr; 3],
    targets: [SocketAddr; 3],
) -> anyhow::Result<Child> {
    if !Path::new(OPENSSH_SERVER).exists() {
        bail!("{OPENSSH_SERVER} is not there");
    }
    let mut ssh = Command::new("ssh");
    ssh.arg("-N").args(ssh_options(far, line).split(' '));
    for (address, target) in addresses.iter().zip(targets) {
        ssh.arg("-L").arg(format!("127.0.0.1:{}:{target}", address.port()));
    }
    ssh.arg("root@127.0.0.1").stdin(Stdio::null()).kill_on_drop(true);
    Ok(ssh.spawn()?)
}

/// Returns once an echo comes back from `address`.
async fn answers(address: SocketAddr) {
    let echo = async || {
        let mut socket = TcpStream::connect(address).await?;
        socket.write_all(b"x").await?;
        socket.read_exact(&mut [0]).await
    };
    // Before its rules are there, what is sent to a redirected range gets no answer at all.
    while !matches!(tokio::time::timeout(ANSWER_LIMIT, echo()).await, Ok(Ok(_))) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
