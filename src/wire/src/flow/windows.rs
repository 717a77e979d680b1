//! Stream windows that follow what arrives: one flow must be able to fill a long, fast path, and flows nobody reads
//! must stay cheap.
//!
//! HTTP/2 has one initial window for all streams of a connection, and changing it changes the open ones too. So the
//! window grows with the whole session's rate, but only as far as all flows that hold data, should none be read any more,
//! stay within 256 MiB ([`LARGEST_FLOWS`]). Flows that hold none cost no window: a thousand idle ones slow nobody down, and when one of them
//! is not read any more, that is seen within [`PERIOD`].
//!
//! A smaller window may leave a sender with nothing although all it sent has been used: h2 0.4 keeps up to a third of a
//! window to itself until more is used, and does not look again when the window shrinks. So once the peer has confirmed
//! a smaller window, every flow that waits for data makes h2 look again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::STREAM_WINDOW;
use crate::pacing::Pacer;

/// Largest stream window: the largest budget.
const LARGEST: u64 = 16 << 20;

/// So many flows that hold data may have [`LARGEST`] each; with more, the window falls with the square of their number. In
/// whatever order flows stop being read, each holds no more than the window of its turn, and these sum up to twice what the
/// first eight hold: 256 MiB, beyond the [`STREAM_WINDOW`] each has anyway and what arrives until a smaller window is
/// confirmed.
const LARGEST_FLOWS: u64 = 8;

/// Window over what arrives in one round trip: a window no larger than that would itself be what limits the rate.
const HEADROOM: f64 = 2.0;

/// Added to the round trip, for the queue the pacing keeps and the peer's scheduling.
const SLACK: Duration = Duration::from_millis(20);

/// Round trip assumed as long as none is known.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);

/// Shortest time the rate is taken over. Also how often the window may change, and so SETTINGS are sent, and how often a
/// large one is looked at: 20 times a second, but never more than [`KEEP`] after the last transfer.
const PERIOD: Duration = Duration::from_millis(50);

/// A window larger than needed is kept for so long: transfers come in groups.
const KEEP: Duration = Duration::from_secs(10);

/// Decides the stream window of one end of a session.
pub(super) struct Windows {
    /// Where the round trip comes from; `None` leaves the window as it is.
    pacer: Option<Arc<Pacer>>,
    state: Mutex<State>,
    changed: Notify,
    /// The peer keeps to a smaller window from now on.
    shrunk: watch::Sender<()>,
}

struct State {
    flows: u64,
    /// Those of them that took data and have not used it.
    holding: u64,
    /// Bytes used up since `since`.
    used: u64,
    since: Instant,
    /// As the peer was last told.
    window: u32,
    wanted: u32,
    /// A smaller window was told, and it is not known whether the peer has confirmed it.
    shrinking: bool,
    /// When so much was last needed.
    needed_at: Instant,
}

/// One open flow, counted.
pub(super) struct Counted {
    windows: Arc<Windows>,
    holds: bool,
    shrunk: watch::Receiver<()>,
}

impl Windows {
    pub(super) fn new(pacer: Option<Arc<Pacer>>) -> Arc<Self> {
        let state = State::new(Instant::now());
        let shrunk = watch::Sender::new(());
        Arc::new(Self { pacer, state: Mutex::new(state), changed: Notify::new(), shrunk })
    }

    pub(super) fn count(self: &Arc<Self>) -> Counted {
        self.lock().flows += 1;
        Counted { windows: self.clone(), holds: false, shrunk: self.shrunk.subscribe() }
    }

    /// Flows that are open now.
    pub(super) fn flows(&self) -> usize {
        self.lock().flows as usize
    }

    /// Waits for a window to tell the peer: another one, or the same again to learn whether it has confirmed a smaller
    /// one. Safe to cancel.
    pub(super) async fn changed(&self) -> u32 {
        loop {
            let look = {
                let state = self.lock();
                state.shrinking || state.window > STREAM_WINDOW
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(PERIOD), if look => self.lock().look(Instant::now()),
            }
            let state = self.lock();
            if state.wanted != state.window || state.shrinking {
                return state.wanted;
            }
        }
    }

    /// The peer is being told, and so has confirmed whatever it was told before. Without this call, as while it has not
    /// confirmed the last change, the next round trip asks again.
    pub(super) fn told(&self, window: u32) {
        let mut state = self.lock();
        if state.shrinking {
            self.shrunk.send_replace(());
        }
        state.shrinking = window < state.window;
        state.window = window;
    }

    fn used(&self, bytes: usize, held: bool) {
        let mut state = self.lock();
        state.holding -= u64::from(held);
        let Some(pacer) = &self.pacer else { return };
        state.used += bytes as u64;
        let now = Instant::now();
        if now - state.since < PERIOD {
            return;
        }
        let path = pacer.figures();
        let rtt = match path.base_rtt {
            Duration::ZERO => UNKNOWN_RTT,
            rtt => rtt + path.noise,
        };
        if now - state.since < rtt {
            return;
        }
        state.decide(now, rtt + SLACK);
        if state.wanted != state.window {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers stay usable whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            flows: 0,
            holding: 0,
            used: 0,
            since: now,
            window: STREAM_WINDOW,
            wanted: STREAM_WINDOW,
            shrinking: false,
            needed_at: now,
        }
    }

    fn decide(&mut self, now: Instant, round: Duration) {
        let rate = self.used as f64 / (now - self.since).as_secs_f64();
        (self.used, self.since) = (0, now);
        let needed = (HEADROOM * rate * round.as_secs_f64()) as u64;
        let room = self.room();
        let needed = needed.clamp(STREAM_WINDOW.into(), room.into()) as u32;
        let window = self.window.min(room);
        // Small corrections are not worth a frame.
        if needed >= window / 2 {
            self.needed_at = now;
        }
        let grows = needed > window + window / 4 || needed > window && needed == room;
        self.wanted = if grows || now - self.needed_at > KEEP { needed } else { window };
    }

    /// Nobody may be using anything: because all is idle, or because nothing is read any more.
    fn look(&mut self, now: Instant) {
        self.wanted = match now - self.needed_at {
            idle if idle > KEEP + PERIOD => STREAM_WINDOW,
            _ => self.wanted.min(self.room()),
        };
    }

    /// The largest window for as many as hold data, see [`LARGEST_FLOWS`].
    fn room(&self) -> u32 {
        let holding = self.holding.max(LARGEST_FLOWS);
        (LARGEST * LARGEST_FLOWS.pow(2) / holding.pow(2)).max(STREAM_WINDOW.into()) as u32
    }
}

impl Counted {
    /// Tells that this flow took data. What follows it may wait unread from now on.
    pub(super) fn took(&mut self) {
        if !std::mem::replace(&mut self.holds, true) {
            self.windows.lock().holding += 1;
        }
    }

    /// Tells that `bytes` of this flow are used up.
    pub(super) fn used(&mut self, bytes: usize) {
        self.windows.used(bytes, std::mem::take(&mut self.holds));
    }

    /// Waits until the peer has confirmed a smaller window, once for each. Safe to cancel.
    pub(super) async fn shrunk(&mut self) {
        // The sender lives in `windows`, so waiting cannot fail.
        let _ = self.shrunk.changed().await;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.windows.lock();
        state.flows -= 1;
        state.holding -= u64::from(self.holds);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;
    use crate::flow::client::FlowClient;
    use crate::flow::{Flow, Session};
    use crate::link::{Observer, TimedAck};
    use crate::pacing::Policy;

    const MIB: u32 = 1 << 20;

    /// A session of so many milliseconds of round trip.
    async fn windows(rtt: u64) -> Arc<Windows> {
        let pacer = Pacer::new(Policy::Auto);
        pacer.written(100);
        tokio::time::advance(Duration::from_millis(rtt)).await;
        pacer.acknowledged(TimedAck { offset: 100, received_at: Duration::ZERO, held: Duration::ZERO });
        Windows::new(Some(pacer))
    }

    /// Uses up `rate` bytes per second for two seconds, as fast as the window allows, telling the peer of each change.
    async fn use_up(windows: &Windows, flow: &mut Counted, rate: f64, rtt: f64) {
        for _ in 0..200 {
            tokio::time::advance(Duration::from_millis(10)).await;
            let allowed = f64::from(windows.lock().window) / rtt;
            flow.used((rate.min(allowed) / 100.0) as usize);
            let wanted = windows.lock().wanted;
            windows.told(wanted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_flow_gets_what_a_long_fast_path_holds_and_no_more() {
        let windows = windows(100).await;
        let mut flow = windows.count();
        assert_eq!(windows.lock().window, MIB);
        use_up(&windows, &mut flow, 25e6, 0.1).await;
        let window = windows.lock().window;
        assert!((3 * MIB..8 * MIB).contains(&window), "{window}");
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        assert_eq!(windows.lock().window, 16 * MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_and_near_sessions_keep_the_small_window() {
        for (rtt, rate) in [(100, 2.5e6), (20, 10e6), (1, 20e6)] {
            let windows = windows(rtt).await;
            let mut flow = windows.count();
            use_up(&windows, &mut flow, rate, rtt as f64 / 1e3).await;
            assert_eq!(windows.lock().window, MIB, "{rtt} ms {rate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_flows_share_the_memory() {
        let windows = windows(100).await;
        let mut flow = windows.count();
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        let mut others: Vec<Counted> = (0..1_099).map(|_| windows.count()).collect();
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        assert_eq!(windows.lock().window, 16 * MIB, "idle flows hold nothing");
        others[..16].iter_mut().for_each(Counted::took);
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        assert_eq!(windows.lock().window, 4 * MIB);
        others.iter_mut().for_each(Counted::took);
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        assert_eq!(windows.lock().window, MIB);
        drop(others);
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        assert_eq!(windows.lock().window, 16 * MIB);
    }

    #[test]
    fn in_whatever_order_flows_get_stuck_they_hold_no_more_than_promised() {
        let mut state = State::new(Instant::now());
        let mut held = 0;
        for holding in 1..=super::super::MAX_FLOWS as u64 {
            state.holding = holding;
            held += u64::from(state.room() - STREAM_WINDOW);
        }
        assert!(held < 256 << 20, "{held}");
    }

    #[tokio::test(start_paused = true)]
    async fn when_nothing_is_read_any_more_the_window_shrinks_all_the_same() {
        let windows = windows(100).await;
        let mut flow = windows.count();
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        let mut stuck: Vec<Counted> = (0..16).map(|_| windows.count()).collect();
        stuck.iter_mut().for_each(Counted::took);
        let began = Instant::now();
        assert_eq!(windows.changed().await, 4 * MIB);
        assert!(began.elapsed() <= 2 * PERIOD);
        windows.told(4 * MIB);
        // And when all is idle.
        stuck.iter_mut().for_each(|flow| flow.used(1));
        while windows.lock().window > MIB {
            windows.told(windows.changed().await);
        }
        assert!((KEEP..KEEP + 4 * PERIOD).contains(&began.elapsed()), "{:?}", began.elapsed());
        windows.told(MIB); // confirmed
        assert!(tokio::time::timeout(10 * KEEP, windows.changed()).await.is_err(), "nobody looks any more");
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_shrinks_when_long_not_needed() {
        let windows = windows(100).await;
        let mut flow = windows.count();
        use_up(&windows, &mut flow, 50e6, 0.1).await;
        let large = windows.lock().window;
        for _ in 0..4 {
            use_up(&windows, &mut flow, 1e3, 0.1).await;
        }
        assert_eq!(windows.lock().window, large);
        for _ in 0..2 {
            use_up(&windows, &mut flow, 1e3, 0.1).await;
        }
        assert_eq!(windows.lock().window, MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn without_pacing_nothing_changes() {
        let windows = Windows::new(None);
        let mut flow = windows.count();
        use_up(&windows, &mut flow, 1e9, 0.1).await;
        assert_eq!(windows.lock().window, MIB);
    }

    /// A client's flow into a server whose windows are the test's, and the server's end of it.
    async fn flow(windows: Arc<Windows>) -> (Flow, Flow) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (accepted, flow) = oneshot::channel();
        tokio::spawn(async move {
            let mut connection = crate::flow::tune!(h2::server::Builder::new()).handshake(far).await.unwrap();
            let session = Session { pacer: None, windows };
            let mut accepted = Some(accepted);
            loop {
                tokio::select! {
                    request = connection.accept() => {
                        let Some(Ok((request, mut respond))) = request else { return };
                        let send = respond.send_response(http::Response::new(()), false).unwrap();
                        let flow = Flow::open(send, request.into_body(), &session);
                        let _ = accepted.take().unwrap().send(flow);
                    }
                    window = session.windows.changed() => {
                        if connection.set_initial_window_size(window).is_ok() {
                            session.windows.told(window);
                        }
                    }
                }
            }
        });
        let client = FlowClient::start(near).await.unwrap();
        (client.open("there:1").await.unwrap(), flow.await.unwrap())
    }

    /// Sends so much and uses it up at the other end.
    async fn carry(from: &mut Flow, to: &mut Flow, mut left: usize) {
        let send = from.send.send(Bytes::from(vec![7; left]));
        let take = async {
            while left > 0 {
                let data = to.recv.data().await.unwrap().unwrap();
                to.recv.release(data.len());
                left -= data.len();
            }
        };
        let both = async { tokio::join!(send, take).0 };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("stands still").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_smaller_window_stops_nobody() {
        let windows = Windows::new(None);
        let (mut near, mut far) = flow(windows.clone()).await;
        for part in 1..=6 {
            let set = |wanted| {
                windows.lock().wanted = wanted;
                windows.changed.notify_one();
            };
            set(8 * MIB);
            carry(&mut near, &mut far, 16 << 20).await;
            // All is used, and the sender does not know of the last part.
            carry(&mut near, &mut far, part << 18).await;
            set(MIB);
            carry(&mut near, &mut far, 16 << 20).await;
        }
    }
}
