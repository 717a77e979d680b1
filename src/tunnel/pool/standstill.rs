//! Notices a session that stands still though its link lives: both ends wait for each other, above what the link looks at.
//!
//! Nobody else would: the link's sign of life comes from the link, and SSH's own keep-alives would end a session whose link
//! is only interrupted.

use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

/// Pause between two questions: an idle tunnel stays idle, and a defect that needs one is rare.
const PAUSE: Duration = Duration::from_secs(30);

/// So long a living link may take to bring an answer. In front of it there is at most one budget, which is seconds even where
/// a line got slower by two orders of magnitude.
const STILL_MAX: Duration = Duration::from_secs(60);

/// How often the link is looked at meanwhile; an interruption takes longer to notice, let alone to mend.
const LOOK: Duration = Duration::from_secs(1);

/// Returns when `answers` has not come back for [`STILL_MAX`] during which the link was always `attached`.
pub(super) async fn stands_still<F: Future<Output = ()>>(
    attached: impl Fn() -> bool,
    answers: impl Fn() -> F,
) {
    loop {
        sleep(PAUSE).await;
        let mut answer = pin!(answers());
        let mut waited = Duration::ZERO;
        while waited < STILL_MAX {
            tokio::select! {
                () = &mut answer => break,
                () = sleep(LOOK) => waited = if attached() { waited + LOOK } else { Duration::ZERO },
            }
        }
        if waited >= STILL_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::time::{Instant, timeout};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_over_a_living_link_it_is_over() {
        let began = Instant::now();
        stands_still(|| true, pending).await;
        assert_eq!(began.elapsed(), PAUSE + STILL_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn late_answers_are_answers() {
        let late = || sleep(STILL_MAX - LOOK);
        assert!(timeout(LONG, stands_still(|| true, late)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_link_is_interrupted_nothing_counts() {
        // Away for one look of each minute.
        let looks = Cell::new(0);
        let attached = || {
            looks.set(looks.get() + 1);
            looks.get() % 59 != 0
        };
        assert!(timeout(LONG, stands_still(attached, pending)).await.is_err());
    }
}
