//! What one run saw, and all of them as Markdown.

use std::fmt;

use kshuttle_test_support::load::{Load, Seen, rate};
use serde_json::{Value, json};

use crate::ways::Way;
use crate::{Path, times};

/// One way over one line with one load.
pub(crate) struct Sample {
    path: Path,
    way: String,
    load: String,
    round: usize,
    /// Of a step: which, and when.
    pub(crate) step: Option<String>,
    /// Ping and new connection without transfers, median, in ms.
    idle: [f64; 2],
    /// Median and 99th percentile in ms.
    ping: [f64; 2],
    connection: [f64; 2],
    /// Bytes per second, down and up.
    rates: [f64; 2],
}

impl Sample {
    pub(crate) fn new(path: Path, way: Way, load: Load, round: usize, idle: &Seen, seen: &Seen) -> Self {
        let load = match load {
            Load { down, up: 0 } => format!("{down} down"),
            Load { down: 0, up } => format!("{up} up"),
            Load { down, up } => format!("{down} down and {up} up"),
        };
        Self {
            path,
            way: way.name(),
            load,
            round,
            step: None,
            idle: [times(&idle.pings)[0], times(&idle.connections)[0]],
            ping: times(&seen.pings),
            connection: times(&seen.connections),
            rates: [rate(&seen.down), rate(&seen.up)],
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "line_mbits": self.path.rate / 1e6, "rtt_ms": self.path.rtt.as_millis() as u64, "way": self.way,
            "load": self.load, "round": self.round, "step": self.step,
            "idle_ping_ms": self.idle[0], "idle_connection_ms": self.idle[1],
            "ping_p50_ms": self.ping[0], "ping_p99_ms": self.ping[1],
            "connection_p50_ms": self.connection[0], "connection_p99_ms": self.connection[1],
            "down_mb_s": self.rates[0] / 1e6, "up_mb_s": self.rates[1] / 1e6,
        })
    }

    /// The 99th percentile that is wanted: twice the idle round trip and 30 ms.
    fn goal(&self) -> f64 {
        2.0 * self.path.rtt.as_secs_f64() * 1e3 + 30.0
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [down, up] = self.rates.map(|rate| rate / 1e6);
        write!(f, "{:18} {:16} {:24} ", self.path.to_string(), self.load, self.way)?;
        write!(
            f,
            "idle {:.1} {:.1}, ping {:.0} {:.0} ms, ",
            self.idle[0], self.idle[1], self.ping[0], self.ping[1]
        )?;
        write!(f, "new {:.0} {:.0} ms, {down:.2} {up:.2} MB/s", self.connection[0], self.connection[1])?;
        self.step.iter().try_for_each(|step| write!(f, ", {step}"))
    }
}

/// A table for each line; medians over the rounds.
pub(crate) fn markdown(samples: &[Sample]) -> String {
    let mut text = String::new();
    let mut lines: Vec<String> = samples.iter().map(|sample| sample.path.to_string()).collect();
    lines.dedup();
    for line in lines {
        let own: Vec<&Sample> = samples.iter().filter(|sample| sample.path.to_string() == line).collect();
        text += &format!(
            "\n**{line}** (goal {:.0} ms; idle: ping {:.1}, new connection {:.1} ms)\n\n",
            own[0].goal(),
            median(own.iter().map(|sample| sample.idle[0])),
            median(own.iter().map(|sample| sample.idle[1])),
        );
        text += "| transfers | way | ping p50, p99 ms | new connection p50, p99 ms | down | up |\n|---|---|---|---|---|---|\n";
        let mut rows: Vec<(&str, &str)> = Vec::new();
        for sample in &own {
            if !rows.contains(&(&sample.load, &sample.way)) {
                rows.push((&sample.load, &sample.way));
            }
        }
        for (load, way) in rows {
            let of: Vec<&&Sample> = own.iter().filter(|s| s.load == load && s.way == way).collect();
            let middle = |value: fn(&Sample) -> f64| median(of.iter().map(|sample| value(sample)));
            let part = |value| share(own[0].path, value);
            text += &format!(
                "| {load} | {way} | {:.0}, {:.0} | {:.0}, {:.0} | {} | {} |\n",
                middle(|s| s.ping[0]),
                middle(|s| s.ping[1]),
                middle(|s| s.connection[0]),
                middle(|s| s.connection[1]),
                part(middle(|s| s.rates[0])),
                part(middle(|s| s.rates[1])),
            );
        }
    }
    text
}

/// One row for each way and window.
pub(crate) fn steps(samples: &[Sample]) -> String {
    let mut text = "\n| step | way | ping p50, p99 ms | part of the line |\n|---|---|---|---|\n".to_owned();
    for sample in samples {
        let part = share(sample.path, sample.rates[0]);
        let step = sample.step.as_deref().unwrap_or_default();
        text +=
            &format!("| {step} | {} | {:.0}, {:.0} | {part} |\n", sample.way, sample.ping[0], sample.ping[1]);
    }
    text
}

/// Percent of the line, or MB/s without one.
fn share(path: Path, rate: f64) -> String {
    match rate {
        0.0 => "–".to_owned(),
        rate if path.rate > 0.0 => format!("{:.1} %", rate * 800.0 / path.rate),
        rate => format!("{:.0} MB/s", rate / 1e6),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
