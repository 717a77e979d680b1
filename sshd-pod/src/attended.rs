//! A server that somebody holds by its standard streams (`KSHUTTLE_ATTENDED`), as `kubectl exec` does: it tells them where it
//! listens and who it is, and leaves when told to.
//!
//! When the holder is lost, the server goes on: its clients may be there still, and if not, it leaves when idle.

use std::io::{Read, Write};
use std::net::SocketAddr;

use russh::keys::PublicKey;
use tokio::sync::oneshot;

/// Writes `kshuttle-sshd PORT HOST-KEY` to standard output, in one line. Afterwards nothing is written any more: nobody may be
/// there to read it.
///
/// # Errors
/// When nobody is there already, or the host key cannot be written down.
pub fn announce(address: SocketAddr, host_key: &PublicKey) -> Result<(), Box<dyn std::error::Error>> {
    let line = format!("kshuttle-sshd {} {}\n", address.port(), host_key.to_openssh()?);
    let mut output = std::io::stdout();
    output.write_all(line.as_bytes())?;
    output.flush()?;
    let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&nowhere)?;
    nix::unistd::dup2_stderr(&nowhere)?;
    Ok(())
}

/// Waits for a byte on standard input. Its end says nothing: the holder's connection may be lost.
pub async fn told_to_leave() {
    let (tell, told) = oneshot::channel();
    // Not on the runtime's threads: nobody could end a read there, and the process would wait for it at its end.
    std::thread::spawn(move || {
        if matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
            let _ = tell.send(()); // nobody listens: it leaves already
        }
    });
    if told.await.is_err() {
        std::future::pending::<()>().await;
    }
}
