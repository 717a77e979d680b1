//! Where no clock counts sleep alone: the wall clock runs through it, the monotonic one (macOS) stands still. When the wall
//! clock is set forward that looks like a sleep; one unneeded probe or a new connection is all it costs.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

static START: LazyLock<(Instant, SystemTime)> = LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// How long the machine has slept since this was first asked.
pub(super) fn asleep() -> Duration {
    let (instant, wall) = *START;
    wall.elapsed().unwrap_or_default().saturating_sub(instant.elapsed())
}
