//! A bad line as a program, for scripts: see [`kshuttle_test_support::line`].
//!
//! ```text
//! kshuttle-line --to ADDRESS:PORT [--listen ADDRESS:PORT] [--rate 20M] [--up 5M] [--delay 20ms] [--jitter 5ms]
//!               [--reset-every 2s] [--black-hole-every 60s] [--stall-every 30s] [--stall-for 3s] [--seed 1]
//! ```
//!
//! Prints `listening on ADDRESS:PORT`, then a line for each fault. Rates are bits per second. Every fault comes at a
//! random time around its interval (from half of it to one and a half), decided by the seed. Faults begin with the first byte
//! on its standard input; it ends with that input.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program of the tests")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kshuttle_test_support::line::{Direction, Line, Quality, Random};
use tokio::io::AsyncReadExt;

#[derive(Default)]
struct Settings {
    listen: Option<SocketAddr>,
    to: Option<SocketAddr>,
    down: Quality,
    up_rate: Option<f64>,
    reset_every: Option<Duration>,
    black_hole_every: Option<Duration>,
    stall_every: Option<Duration>,
    stall_for: Duration,
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match parse(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("kshuttle-line: {error}");
            return ExitCode::from(2);
        }
    };
    let Some(to) = settings.to else {
        eprintln!("kshuttle-line: --to is missing");
        return ExitCode::from(2);
    };
    let listen = settings.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    let line = Line::listen(listen, to, settings.seed).await;
    let up = Quality { rate: settings.up_rate.or(settings.down.rate), ..settings.down };
    line.set(Direction::Down, settings.down);
    line.set(Direction::Up, up);
    println!("listening on {}", line.address);
    let mut input = tokio::io::stdin();
    let _ = input.read_u8().await; // an end shows again below
    let start = Instant::now();
    let say =
        |what: &str, number: usize| println!("{:9.3} s  {what} ({number})", start.elapsed().as_secs_f64());
    let stall = async {
        let mut direction = Direction::Up;
        let mut random = Random(settings.seed ^ 3);
        loop {
            pause(&mut random, settings.stall_every).await;
            let quality = if direction == Direction::Up { up } else { settings.down };
            line.set(direction, Quality { stalled: true, ..quality });
            say(if direction == Direction::Up { "up stalled" } else { "down stalled" }, 1);
            tokio::time::sleep(settings.stall_for).await;
            line.set(direction, quality);
            direction = if direction == Direction::Up { Direction::Down } else { Direction::Up };
        }
    };
    let reset = async {
        let mut random = Random(settings.seed ^ 1);
        loop {
            pause(&mut random, settings.reset_every).await;
            say("reset", line.reset_all());
        }
    };
    let black_hole = async {
        let mut random = Random(settings.seed ^ 2);
        loop {
            pause(&mut random, settings.black_hole_every).await;
            say("black hole", line.black_hole_all());
        }
    };
    let ended = async {
        let mut rest = Vec::new();
        let _ = input.read_to_end(&mut rest).await;
    };
    tokio::select! {
        () = ended => {}
        () = reset => {}
        () = black_hole => {}
        () = stall => {}
    }
    println!("{:9.3} s  carried {} bytes", start.elapsed().as_secs_f64(), line.carried());
    ExitCode::SUCCESS
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Settings, String> {
    let mut settings = Settings { stall_for: Duration::from_secs(3), seed: 1, ..Settings::default() };
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let wrong = || format!("{flag} {value}: not understood");
        match flag.as_str() {
            "--to" => settings.to = Some(value.parse().map_err(|_| wrong())?),
            "--listen" => settings.listen = Some(value.parse().map_err(|_| wrong())?),
            "--rate" => settings.down.rate = Some(rate(&value).ok_or_else(wrong)?),
            "--up" => settings.up_rate = Some(rate(&value).ok_or_else(wrong)?),
            "--delay" => settings.down.delay = time(&value).ok_or_else(wrong)?,
            "--jitter" => settings.down.jitter = time(&value).ok_or_else(wrong)?,
            "--reset-every" => settings.reset_every = Some(time(&value).ok_or_else(wrong)?),
            "--black-hole-every" => settings.black_hole_every = Some(time(&value).ok_or_else(wrong)?),
            "--stall-every" => settings.stall_every = Some(time(&value).ok_or_else(wrong)?),
            "--stall-for" => settings.stall_for = time(&value).ok_or_else(wrong)?,
            "--seed" => settings.seed = value.parse().map_err(|_| wrong())?,
            _ => return Err(format!("{flag} is not known")),
        }
    }
    Ok(settings)
}

/// Bits per second with `k`, `M` or `G`; as bytes per second.
fn rate(text: &str) -> Option<f64> {
    let (number, factor) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(number) if text.ends_with('k') => (number, 1e3),
        Some(number) if text.ends_with('M') => (number, 1e6),
        Some(number) => (number, 1e9),
        None => (text, 1.0),
    };
    number.parse::<f64>().ok().filter(|rate| *rate > 0.0).map(|rate| rate * factor / 8.0)
}

fn time(text: &str) -> Option<Duration> {
    if let Some(number) = text.strip_suffix("ms") {
        return number.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

/// From half of `interval` to one and a half; for ever without one.
async fn pause(random: &mut Random, interval: Option<Duration>) {
    let Some(interval) = interval else { return std::future::pending().await };
    tokio::time::sleep(interval.mul_f64(0.5 + random.share())).await;
}
