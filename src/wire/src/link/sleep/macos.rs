//! macOS has two clocks that differ by exactly the time asleep (clock_gettime(3)).

use std::time::Duration;

use nix::libc;
use nix::time::{ClockId, clock_gettime};

/// How long the machine has slept since it was started.
pub(super) fn asleep() -> Duration {
    // Both clocks exist since macOS 10.12; without one the machine counts as never asleep. Neither is ever set.
    let read = |clock| clock_gettime(ClockId::from_raw(clock)).map_or(Duration::ZERO, Duration::from);
    read(libc::CLOCK_MONOTONIC_RAW).saturating_sub(read(libc::CLOCK_UPTIME_RAW))
}
