//! The two network namespaces the measurement runs in as root: `sshuttle` redirects what is sent from its side to a range,
//! and its other end must not be redirected again. Only the line leads from one to the other.
//!
//! ```text
//! near (this process)                     far (threads of the far end and of the line)
//! applications ──▶ a way's near end ──▶ line ──▶ a way's far end ──▶ servers
//!        RANGE ──▶ nowhere                    RANGE ──▶ loopback
//! ```

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, bail};
#[cfg(target_os = "linux")]
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::{Builder, Runtime};

/// For measurements of networks (RFC 2544 §C.2.2): nobody's.
pub(crate) const RANGE: &str = "198.18.0.0/24";

/// The far end's loopback, as it is called in [`RANGE`].
pub(crate) const SERVERS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// A route, or connecting would fail before any rule sees it.
const SETUP: &str = "
    link set lo up
    link add bench0 type veth peer name bench1
    addr add 192.0.2.1/32 dev bench0
    link set bench1 up
    link set bench0 up
    route add 198.18.0.0/24 dev bench0
";

const FAR_RULES: &str = "table ip bench {
    chain out { type nat hook output priority -100; ip daddr 198.18.0.0/24 redirect; }
}";

/// Where the far end's threads live. Without one everything is in one place.
#[derive(Clone)]
pub(crate) struct Far(Option<Arc<File>>);

/// Moves this thread, and so all that are made from now on, into a namespace of its own, and makes the other.
#[cfg(target_os = "linux")]
pub(crate) fn enter() -> anyhow::Result<Far> {
    let far = std::thread::spawn(|| {
        settle()?;
        run("nft", &[FAR_RULES])?;
        File::open("/proc/thread-self/ns/net").context("open the namespace")
    });
    let far = far.join().expect("no panic")?;
    settle()?;
    Ok(Far(Some(Arc::new(far))))
}

/// There are none but on Linux.
#[cfg(not(target_os = "linux"))]
pub(crate) fn enter() -> anyhow::Result<Far> {
    Ok(stay())
}

/// Everything stays where it is: nobody but root may do better.
pub(crate) fn stay() -> Far {
    Far(None)
}

#[cfg(target_os = "linux")]
fn settle() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    SETUP.lines().map(str::trim).filter(|line| !line.is_empty()).try_for_each(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        run("ip", &words)
    })
}

/// Takes out what a rival left.
pub(crate) fn flush_rules() -> anyhow::Result<()> {
    run("nft", &["flush ruleset"])
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status =
        Command::new(program).args(arguments).status().with_context(|| format!("start {program}"))?;
    if !status.success() {
        bail!("{program} {arguments:?}: {status}");
    }
    Ok(())
}

impl Far {
    /// Whether there are two places.
    pub(crate) fn is_apart(&self) -> bool {
        self.0.is_some()
    }

    /// Threads over there. What is polled by `block_on` itself stays here.
    pub(crate) fn runtime(&self) -> std::io::Result<Runtime> {
        let mut builder = Builder::new_multi_thread();
        #[cfg(target_os = "linux")]
        if let Some(far) = self.0.clone() {
            builder.on_thread_start(move || {
                setns(&far, CloneFlags::CLONE_NEWNET).expect("enter a namespace of our own");
            });
        }
        builder.worker_threads(2).enable_all().build()
    }
}
