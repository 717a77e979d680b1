//! The server held by its standard streams, as `kubectl exec` holds it.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::process::Stdio;
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// For what should happen at once; only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it hangs")
}

/// It, and what it announced: its port and host key.
async fn start(idle: u32) -> (Child, u16, String) {
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kshuttle-sshd"))
        .arg("serve")
        .env("KSHUTTLE_AUTHORIZED_KEY", key.public_key().to_openssh().unwrap())
        .env("KSHUTTLE_LISTEN_PORT", "0")
        .env("KSHUTTLE_IDLE_SECONDS", idle.to_string())
        .env("KSHUTTLE_ATTENDED", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    within(output.read_line(&mut line)).await.unwrap();
    // Nothing more comes: both are closed at its side.
    assert_eq!(within(output.read_to_end(&mut Vec::new())).await.unwrap(), 0);
    let [name, port, algorithm, key] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{line}")
    };
    assert_eq!((name, algorithm), ("kshuttle-sshd", "ssh-ed25519"));
    (child, port.parse().unwrap(), key.to_owned())
}

#[tokio::test]
async fn a_word_ends_it() {
    let (mut child, port, _) = start(300).await;
    within(TcpStream::connect(("127.0.0.1", port))).await.unwrap();
    child.stdin.as_mut().unwrap().write_all(b"q").await.unwrap();
    assert!(within(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn when_its_holder_is_lost_it_serves_on_until_it_is_idle() {
    let (mut child, port, _) = start(2).await;
    drop(child.stdin.take());
    drop(child.stderr.take());
    // It answers with its identification.
    let mut socket = within(TcpStream::connect(("127.0.0.1", port))).await.unwrap();
    socket.write_all(b"SSH-2.0-test\r\n").await.unwrap();
    let mut said = [0; 8];
    within(socket.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"SSH-2.0-");
    assert!(within(child.wait()).await.unwrap().success());
}
