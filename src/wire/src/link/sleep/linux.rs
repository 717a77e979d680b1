//! Linux has two clocks that differ by exactly the time asleep (clock_gettime(2)).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long the machine has slept since it was started.
pub(super) fn asleep() -> Duration {
    // Both clocks exist since Linux 2.6.39; without one the machine counts as never asleep.
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}
