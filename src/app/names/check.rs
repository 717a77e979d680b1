//! Proof that questions come to us, by each way that programs use; and that the rest of the Internet's names did not suffer.
//!
//! A check name is answered by the stub alone. So an answer proves the way, whatever is in caches and in the cluster.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::process::Command;
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::Stub;
use super::capture::can_be_redirected;
use crate::dns::probe::ask;
use crate::dns::system::System;
use crate::dns::zone::{CANARY, Zones};
use crate::dns::{Canary, Name, Transport};

/// A name that everybody has (RFC 2606 §3): it is asked once before and once after names come to us.
const OUTSIDE: &str = "example.com.";

/// Longest wait for its first answer; where there is no Internet there is none.
const BEFORE: Duration = Duration::from_secs(1);

/// Longest wait for the second: the servers may have lost a datagram.
const AFTER: Duration = Duration::from_secs(4);

/// Longest wait for a check name: programs wait 5 s.
const CHECK: Duration = Duration::from_secs(3);

/// The same for a program that asks its C library, which may have other servers to ask first.
const PROGRAM: Duration = Duration::from_secs(6);

/// Why names of the cluster are not found, or those of others.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("a question to the name server {0} over {1} did not come to kshuttle")]
    Lost(SocketAddr, Transport),
    #[error(
        "a program that asks its C library for a name does not reach kshuttle (/etc/nsswitch.conf, nscd?)"
    )]
    Program,
    #[error("{OUTSIDE} was found before and is not any more")]
    Outside,
}

/// Whether a name outside was found before names came to us.
pub(super) struct Before {
    found: bool,
}

impl Before {
    pub(super) async fn ask(system: &System) -> Self {
        Self { found: outside(system, BEFORE).await }
    }

    /// What was found is found.
    pub(super) async fn compare(self, system: &System) -> Result<(), CheckError> {
        if !self.found || outside(system, AFTER).await { Ok(()) } else { Err(CheckError::Outside) }
    }
}

async fn outside(system: &System, limit: Duration) -> bool {
    let (Some(server), Ok(name)) = (system.servers.first(), Name::from_ascii(OUTSIDE)) else { return false };
    timeout(limit, ask(*server, &name, Transport::Udp)).await.is_ok_and(|answer| answer.is_ok())
}

/// Every way once.
pub(super) async fn all(stub: &Stub, zones: &Zones, system: &System) -> Result<(), CheckError> {
    for server in system.servers.iter().filter(|server| can_be_redirected(server)) {
        for transport in [Transport::Udp, Transport::Tcp] {
            let (nonce, name) = check_name(zones);
            let mut seen = stub.canaries();
            let asked = async { ask(*server, &name, transport).await.is_ok() };
            if !comes(&mut seen, &nonce, asked, CHECK).await {
                return Err(CheckError::Lost(*server, transport));
            }
        }
    }
    let (nonce, name) = check_name(zones);
    let mut seen = stub.canaries();
    if comes(&mut seen, &nonce, program(&name), PROGRAM).await { Ok(()) } else { Err(CheckError::Program) }
}

/// What no other session's check names have: process ids alone are used again, and caches remember.
pub(super) fn label() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), since.as_nanos())
}

/// A name that nobody has asked for: no cache knows it.
fn check_name(zones: &Zones) -> (String, Name) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nonce = format!("{:x}", COUNT.fetch_add(1, Ordering::Relaxed));
    let name = Name::from_ascii(format!("{nonce}.{}.{CANARY}.svc.{}", zones.check, zones.domain));
    (nonce, name.unwrap_or_default())
}

/// True when whoever asks got an answer, and the stub saw the question.
async fn comes(
    seen: &mut broadcast::Receiver<Canary>,
    nonce: &str,
    asked: impl Future<Output = bool>,
    limit: Duration,
) -> bool {
    let seen = async {
        loop {
            match seen.recv().await {
                Ok(canary) if canary.nonce == nonce => return true,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return false,
            }
        }
    };
    timeout(limit, async { tokio::join!(asked, seen) }).await.is_ok_and(|(answered, seen)| answered && seen)
}

/// A fresh process: this one may have read its configuration long ago.
async fn program(name: &Name) -> bool {
    let Ok(kshuttle) = std::env::current_exe() else { return false };
    let mut command = Command::new(kshuttle);
    command.args(["look-up", &name.to_ascii()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.status().await.is_ok_and(|status| status.success())
}
