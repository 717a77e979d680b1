//! When the laptop's network changes: another Wi-Fi, a cable, a VPN, a new address after sleep.
//!
//! A tunnel's byte stream may be dead then, without any packet saying so. Whoever hears of a change asks his tunnels
//! at once in place of waiting for their own clocks.

use std::io;
use std::time::Duration;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as imp;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as imp;

/// Changes come in bursts (link, address, routes); one question answers for all of them.
const BURST: Duration = Duration::from_millis(250);

/// The system's messages about addresses, links and routes.
pub(super) struct Changes(imp::Changes);

impl Changes {
    /// Starts to listen; needs no rights.
    ///
    /// # Errors
    /// When the system gives no socket for it; then only the tunnels' own clocks find dead paths.
    pub(super) fn listen() -> io::Result<Self> {
        imp::Changes::listen().map(Self)
    }

    /// Waits for the next burst of changes, and for its end. Safe to cancel.
    ///
    /// # Errors
    /// When the socket breaks.
    pub(super) async fn next(&self) -> io::Result<()> {
        self.0.next().await?;
        tokio::time::sleep(BURST).await;
        self.0.forget()
    }
}
