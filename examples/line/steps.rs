//! Lines that change while a transfer runs.

use std::time::Duration;

use kshuttle_test_support::load::Load;

use crate::table::Sample;
use crate::ways::Way;
use crate::{Parts, Path};

/// How long each part of a run takes.
const PART: u64 = 8;

/// Windows that are looked at, in seconds, with how they are called.
const WINDOWS: [(u64, u64, &str); 7] = [
    (2, 8, "before"),
    (8, 9, "1st second after"),
    (9, 10, "2nd"),
    (10, 16, "then"),
    (16, 17, "1st second back"),
    (17, 18, "2nd"),
    (18, 24, "then"),
];

/// Runs both kinds of steps over each way.
pub(crate) fn measure(parts: &Parts, ways: &[Way]) -> anyhow::Result<Vec<Sample>> {
    let path = |rate, rtt| Path { rate, rtt: Duration::from_millis(rtt) };
    let kinds = [[path(100e6, 40), path(10e6, 40)], [path(50e6, 40), path(50e6, 120)]];
    let mut samples = Vec::new();
    for [from, to] in kinds {
        for &way in ways {
            let (line, near, _far) = parts.open(from, way)?;
            let at = |part| Duration::from_secs(part * PART);
            let seen = parts.run(&near, &line, &[(at(1), to), (at(2), from)], at(3));
            for (begin, end, name) in WINDOWS {
                let now = if (PART..2 * PART).contains(&begin) { to } else { from };
                let window = seen.between(Duration::from_secs(begin), Duration::from_secs(end));
                let mut sample = Sample::new(now, way, Load { down: 1, up: 0 }, 1, &window, &window);
                sample.step = Some(format!("{from} → {to} and back: {name}"));
                eprintln!("{sample}");
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}
