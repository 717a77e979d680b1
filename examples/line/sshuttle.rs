//! `sshuttle` over the line, as root redirects with it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::places;

/// Where its package was unpacked; `scripts/bench --line` says it.
const FOLDER: &str = "KSHUTTLE_BENCH_SSHUTTLE";

/// Time for it to take its rules out.
const END_LIMIT: Duration = Duration::from_secs(5);

/// It runs; its rules are there until it is dropped.
pub(crate) struct Sshuttle(Child);

/// Where it is, if it is to be measured.
pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

impl Sshuttle {
    /// Redirects [`places::RANGE`] through the OpenSSH that the command `ssh` reaches.
    pub(crate) fn start(ssh: &str) -> anyhow::Result<Self> {
        let folder = folder().context("sshuttle is not there")?;
        let mut sshuttle = Command::new("python3");
        sshuttle.env("PYTHONPATH", &folder).arg(folder.join("bin/sshuttle"));
        sshuttle.args([
            "--method",
            "nft",
            "--disable-ipv6",
            "--ssh-cmd",
            ssh,
            "-r",
            "root@127.0.0.1",
            places::RANGE,
        ]);
        let child = sshuttle.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.context("start sshuttle")?))
    }
}

impl Drop for Sshuttle {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM); // it may have ended
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20)); // nobody tells when a child ends
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        if let Err(error) = places::flush_rules() {
            eprintln!("what sshuttle left: {error:#}");
        }
    }
}
