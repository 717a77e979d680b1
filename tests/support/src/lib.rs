//! Shared by kshuttle's tests.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "the harness and the guards speak to whoever runs the tests"
)]

pub mod dns;
pub mod harness;
pub mod http;
pub mod kshuttle;
pub mod line;
pub mod load;
pub mod net;
pub mod openssh;
pub mod operator;
pub mod proxy;
#[cfg(target_os = "linux")]
pub mod resolver;
pub mod sshd;

use std::time::Duration;

/// Runs `future`, and fails the test when it hangs. Nothing is measured with it.
///
/// # Panics
/// When the future is not done within a minute.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("hangs")
}

/// Bytes that repeat nowhere near: a lost, doubled or swapped block shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}
