//! Measures pings, new connections and transfers over simulated lines, through kshuttle's tunnels with different pacing and
//! through OpenSSH and sshuttle, in turns. `scripts/bench --line` builds and runs it; `docs/pacing.md` has figures.
//!
//! ```text
//! line [--quick] [--rounds N] [--lines 5/80,20/40,…|none] [--ways auto,fixed:1048576,ssh,sshuttle] [--loads down1,up4,both,…]
//!      [--steps] [--seconds N] [--json FILE]
//! ```
//!
//! The line (a queue of 4 MiB each way, no loss) stands between the two ends of the tunnel; there is no Kubernetes. As root
//! each end has a network namespace of its own; without it `sshuttle` cannot be measured.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its report")]

mod places;
mod sshuttle;
mod steps;
mod table;
mod ways;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kshuttle_test_support::line::{Line, Quality};
use kshuttle_test_support::load::{Load, Seen, Servers, percentile};
use tokio::runtime::{Builder, Runtime};

use table::Sample;
use ways::{Far, FarEnd, Near, Way};

/// Until a line is full and the pacing knows it.
const WARM_UP: Duration = Duration::from_secs(2);

/// Without transfers: what the round trip is.
const IDLE: Duration = Duration::from_secs(1);

/// A rate in bits per second (0: no limit) and a round trip.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) rate: f64,
    pub(crate) rtt: Duration,
}

struct Options {
    rounds: usize,
    paths: Vec<Path>,
    ways: Vec<Way>,
    loads: Vec<Load>,
    steps: bool,
    time: Duration,
    json: Option<std::path::PathBuf>,
}

/// Each part has threads of its own, as programs would.
pub(crate) struct Parts {
    near: Runtime,
    applications: Runtime,
    line: Runtime,
    far: Arc<Far>,
    servers: Servers,
    far_runtime: Runtime,
}

fn main() -> anyhow::Result<()> {
    let mut options = options()?;
    // Before there are other threads.
    let place = if nix::unistd::geteuid().is_root() { places::enter()? } else { places::stay() };
    if !place.is_apart() || sshuttle::folder().is_none() {
        eprintln!("sshuttle is not measured: that needs root and scripts/bench");
        options.ways.retain(|way| !matches!(way, Way::Sshuttle));
    }
    let runtime = || Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let far_runtime = place.runtime()?;
    let far = there(&far_runtime, Far::start())?;
    let servers = there(&far_runtime, Servers::start());
    // The line listens here and connects there.
    let line = place.runtime()?;
    let parts =
        Parts { near: runtime()?, applications: runtime()?, line, far: Arc::new(far), servers, far_runtime };
    let mut samples = Vec::new();
    for path in &options.paths {
        for round in 1..=options.rounds {
            for &load in &options.loads {
                for &way in &options.ways {
                    let sample = measure(&parts, *path, way, load, round, options.time)
                        .with_context(|| format!("{} over {path}", way.name()))?;
                    eprintln!("{sample}");
                    samples.push(sample);
                }
            }
        }
    }
    if !samples.is_empty() {
        println!("{}", table::markdown(&samples));
    }
    if options.steps {
        let stepped = steps::measure(&parts, &options.ways)?;
        println!("{}", table::steps(&stepped));
        samples.extend(stepped);
    }
    if let Some(file) = options.json {
        std::fs::write(
            file,
            serde_json::to_string_pretty(&samples.iter().map(Sample::json).collect::<Vec<_>>())?,
        )?;
    }
    Ok(())
}

/// Runs it in a thread of this runtime.
fn there<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(runtime.spawn(work)).expect("no panic")
}

fn measure(
    parts: &Parts,
    path: Path,
    way: Way,
    load: Load,
    round: usize,
    time: Duration,
) -> anyhow::Result<Sample> {
    let (line, near, far) = parts.open(path, way)?;
    let servers = parts.servers.through(near.addresses);
    let (idle, seen) = parts.applications.block_on(async {
        let idle = servers.run(Load { down: 0, up: 0 }, IDLE).await;
        (idle, servers.run(load, WARM_UP + time).await)
    });
    drop((line, near, far));
    let seen = seen.between(WARM_UP, WARM_UP + time);
    Ok(Sample::new(path, way, load, round, &idle, &seen))
}

impl Parts {
    /// A fresh line with a fresh way over it.
    pub(crate) fn open(&self, path: Path, way: Way) -> anyhow::Result<(Line, Near, FarEnd)> {
        let all = self.far.clone();
        let far = there(&self.far_runtime, async move { all.end(way).await })?;
        let line = self.line.block_on(async {
            let line = Line::start(far.address, 1).await;
            line.set_both(path.quality());
            line
        });
        let near = self.near.block_on(way.start(&self.far, line.address, self.servers.addresses))?;
        Ok((line, near, far))
    }

    /// Runs one transfer down, and changes the line at the given times.
    pub(crate) fn run(&self, near: &Near, line: &Line, changes: &[(Duration, Path)], time: Duration) -> Seen {
        let servers = self.servers.through(near.addresses);
        self.applications.block_on(async {
            let start = tokio::time::Instant::now();
            let change = async {
                for (at, path) in changes {
                    tokio::time::sleep_until(start + *at).await;
                    line.set_both(path.quality());
                }
            };
            tokio::join!(servers.run(Load { down: 1, up: 0 }, time), change).0
        })
    }
}

impl Path {
    fn quality(self) -> Quality {
        let rate = (self.rate > 0.0).then_some(self.rate / 8.0);
        Quality { rate, delay: self.rtt / 2, ..Quality::default() }
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.rate > 0.0 {
            write!(f, "{} Mbit/s {} ms", self.rate / 1e6, self.rtt.as_millis())
        } else {
            f.write_str("no line")
        }
    }
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        rounds: 3,
        paths: list("5/80,20/40,200/100,1000/20", path)?,
        ways: list("auto,fixed:262144,fixed:1048576,fixed:16777216,ssh,sshuttle", way)?,
        loads: list("down1,down4,up1,up4,both", load)?,
        steps: true,
        time: Duration::from_secs(8),
        json: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--quick" => {
                options.rounds = 1;
                options.time = Duration::from_secs(3);
                options.loads = list("down1,up4,both", load)?;
                options.ways = list("auto,fixed:1048576,ssh,sshuttle", way)?;
            }
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.time = Duration::from_secs(value()?.parse()?),
            "--lines" => options.paths = list(&value()?, path)?,
            "--ways" => options.ways = list(&value()?, way)?,
            "--loads" => options.loads = list(&value()?, load)?,
            "--steps" => options.paths.clear(),
            "--no-steps" => options.steps = false,
            "--json" => options.json = Some(value()?.into()),
            _ => bail!("{argument} is not known; see examples/line/main.rs"),
        }
    }
    Ok(options)
}

fn list<T>(words: &str, read: impl Fn(&str) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    words.split(',').map(|word| read(word).with_context(|| format!("{word:?} is not understood"))).collect()
}

/// `MBITS/MS`, or `none`.
fn path(word: &str) -> anyhow::Result<Path> {
    if word == "none" {
        return Ok(Path { rate: 0.0, rtt: Duration::ZERO });
    }
    let (rate, rtt) = word.split_once('/').context("neither MBITS/MS nor none")?;
    Ok(Path { rate: rate.parse::<f64>()? * 1e6, rtt: Duration::from_millis(rtt.parse()?) })
}

fn way(word: &str) -> anyhow::Result<Way> {
    Ok(match word {
        "ssh" => Way::OpenSsh,
        "sshuttle" => Way::Sshuttle,
        policy => Way::Kshuttle(policy.parse()?),
    })
}

fn load(word: &str) -> anyhow::Result<Load> {
    Ok(match word {
        "both" => Load { down: 1, up: 1 },
        _ if word.starts_with("down") => Load { down: word[4..].parse()?, up: 0 },
        _ => Load { down: 0, up: word.strip_prefix("up").context("not a load")?.parse()? },
    })
}

/// For the report: milliseconds that something took.
pub(crate) fn times(seen: &[(Duration, Duration)]) -> [f64; 2] {
    [50, 99].map(|percent| percentile(seen, percent).unwrap_or(f64::NAN))
}
