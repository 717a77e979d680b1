//! How long the system remembers where a sender's datagrams were meant to go, as far as we can tell.
//!
//! Trap: once the system has forgotten an exchange, another one of the same program can arrive from the very same address
//! and port, and mean somebody else. So a sender is asked about again after a silence, and forgotten before the system forgets
//! it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

/// A sender that was silent for so long is asked about again: the shortest timeout of conntrack that is in use is 30 s.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// How much earlier than the system we forget.
const MARGIN: Duration = Duration::from_secs(5);

/// Conntrack counts answers only of an exchange that is older than this (`nf_conntrack_proto_udp.c`: two seconds).
const YOUNG: Duration = Duration::from_secs(3);

/// A name server's answer ends the exchange: clients ask from a new port each time (RFC 5452), and there are many.
const AFTER_DNS: Duration = Duration::from_secs(10);

/// Port of name servers.
const DNS: u16 = 53;

/// How long the system remembers exchanges of datagrams.
#[derive(Debug, Clone, Copy)]
pub struct Remembered {
    /// Without an answer.
    pub unanswered: Duration,
    /// With answers.
    pub answered: Duration,
}

/// What the system remembers of a sender and its destination, as far as we can tell.
pub(super) struct Exchange {
    remembered: Remembered,
    with_dns: bool,
    started: Instant,
    /// The last datagram, in either direction.
    used: Instant,
    answered: bool,
}

impl Exchange {
    pub(super) fn with(to: SocketAddr, remembered: Remembered) -> Self {
        let now = Instant::now();
        Self { remembered, with_dns: to.port() == DNS, started: now, used: now, answered: false }
    }

    /// A datagram of the sender went out.
    pub(super) fn sent(&mut self) {
        self.used = Instant::now();
    }

    /// One came back.
    pub(super) fn answered(&mut self) {
        (self.used, self.answered) = (Instant::now(), true);
    }

    /// May the system have forgotten it, and the sender mean somebody else?
    pub(super) fn is_doubtful(&self) -> bool {
        self.used.elapsed() >= ASK_AGAIN
    }

    /// When to forget it.
    pub(super) fn end(&self) -> Instant {
        let counts = self.answered && self.used.duration_since(self.started) > YOUNG;
        let Remembered { unanswered, answered } = self.remembered;
        let most = if counts { answered } else { unanswered }.saturating_sub(MARGIN);
        self.used + if self.answered && self.with_dns { most.min(AFTER_DNS) } else { most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMEMBERED: Remembered =
        Remembered { unanswered: Duration::from_secs(65), answered: Duration::from_secs(185) };

    fn lasts(exchange: &Exchange) -> u64 {
        exchange.end().duration_since(exchange.used).as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn we_forget_before_the_system_does() {
        let mut exchange = Exchange::with("10.0.0.1:4000".parse().unwrap(), REMEMBERED);
        assert_eq!(lasts(&exchange), 60);
        exchange.answered();
        assert_eq!(lasts(&exchange), 60, "a young exchange counts as unanswered");
        tokio::time::advance(Duration::from_secs(4)).await;
        exchange.sent();
        assert_eq!(lasts(&exchange), 180);
        exchange.answered = false;
        assert_eq!(lasts(&exchange), 60);
        let mut question = Exchange::with("10.0.0.1:53".parse().unwrap(), REMEMBERED);
        assert_eq!(lasts(&question), 60);
        question.answered();
        assert_eq!(lasts(&question), 10);
        let second = Duration::from_secs(1);
        let short = Exchange::with(
            "10.0.0.1:1".parse().unwrap(),
            Remembered { unanswered: second, answered: second },
        );
        assert_eq!(lasts(&short), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sender_is_doubtful_before_any_system_forgets_it() {
        let exchange = Exchange::with("10.0.0.1:4000".parse().unwrap(), REMEMBERED);
        tokio::time::advance(ASK_AGAIN - Duration::from_millis(1)).await;
        assert!(!exchange.is_doubtful());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(exchange.is_doubtful());
    }
}
