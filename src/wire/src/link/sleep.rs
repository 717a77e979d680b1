//! Notices that the machine slept: timers stand still then, and the connections' peers have given up.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as clock;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as clock;

use std::time::Duration;

/// How often it looks; also the time a sleep goes unnoticed at most. Rare enough not to keep a processor awake.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Shorter gaps are no sleep: the clocks are read one after the other, and the wall clock is adjusted.
const LEAST: Duration = Duration::from_secs(1);

/// Waits for sleeps of this machine, for [`LinkHandle::slept`](super::LinkHandle::slept).
pub struct Sleeps {
    asleep: Duration,
    clock: fn() -> Duration,
}

impl Default for Sleeps {
    /// Sleeps from now on.
    fn default() -> Self {
        Self { asleep: clock::asleep(), clock: clock::asleep }
    }
}

impl Sleeps {
    /// Returns after the machine has slept, with how long. May be dropped.
    pub async fn next(&mut self) -> Duration {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let asleep = (self.clock)();
            let gap = asleep.saturating_sub(self.asleep);
            self.asleep = asleep;
            if gap >= LEAST {
                return gap;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static ASLEEP: AtomicU64 = AtomicU64::new(100);

    #[tokio::test(start_paused = true)]
    async fn only_a_jump_is_a_sleep() {
        let clock = || Duration::from_millis(ASLEEP.load(Ordering::Relaxed));
        let mut sleeps = Sleeps { asleep: clock(), clock };
        ASLEEP.fetch_add(900, Ordering::Relaxed);
        assert!(tokio::time::timeout(Duration::from_secs(60), sleeps.next()).await.is_err());
        ASLEEP.fetch_add(3_600_000, Ordering::Relaxed);
        let gap = tokio::time::timeout(Duration::from_secs(3), sleeps.next()).await.unwrap();
        assert_eq!(gap, Duration::from_secs(3600));
        assert!(tokio::time::timeout(Duration::from_secs(60), sleeps.next()).await.is_err());
    }

    #[tokio::test]
    async fn the_real_clock_does_not_sleep_while_a_test_runs() {
        let before = clock::asleep();
        assert!(clock::asleep().abs_diff(before) < LEAST);
    }
}
