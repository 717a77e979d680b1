//! Who is logged in, and since when nobody is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Counts logged-in sessions.
#[derive(Clone)]
pub struct Presence {
    sessions: Arc<watch::Sender<usize>>,
}

/// One logged-in session; dropping it is its end.
pub struct Present {
    sessions: Arc<watch::Sender<usize>>,
}

impl Default for Presence {
    fn default() -> Self {
        Self { sessions: Arc::new(watch::Sender::new(0)) }
    }
}

impl Presence {
    /// A session has logged in.
    pub fn enter(&self) -> Present {
        self.sessions.send_modify(|count| *count += 1);
        Present { sessions: self.sessions.clone() }
    }

    /// Sessions that are logged in.
    pub fn count(&self) -> usize {
        *self.sessions.borrow()
    }

    /// Returns once nobody has been logged in for `limit` without a break. Connections that do not log in do not
    /// count: nobody keeps the pod alive without the key.
    pub async fn abandoned(&self, limit: Duration) {
        let mut sessions = self.sessions.subscribe();
        loop {
            // The sender lives in `self`, so waiting cannot fail.
            let _ = sessions.wait_for(|count| *count == 0).await;
            tokio::select! {
                () = tokio::time::sleep(limit) => return,
                _ = sessions.wait_for(|count| *count > 0) => {}
            }
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.sessions.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn leaves_only_after_the_whole_limit_alone() {
        let presence = Presence::default();
        let watched = presence.clone();
        let mut left = tokio::spawn(async move { watched.abandoned(LIMIT).await });
        tokio::time::advance(LIMIT - Duration::from_secs(1)).await;
        let first = presence.enter();
        let second = presence.enter();
        drop(first);
        tokio::time::advance(LIMIT * 10).await;
        assert!(!left.is_finished());
        drop(second);
        tokio::time::advance(LIMIT - Duration::from_secs(1)).await;
        assert!(futures_pending(&mut left).await);
        tokio::time::advance(Duration::from_secs(2)).await;
        left.await.unwrap();
    }

    async fn futures_pending(task: &mut tokio::task::JoinHandle<()>) -> bool {
        tokio::task::yield_now().await;
        !task.is_finished()
    }
}
