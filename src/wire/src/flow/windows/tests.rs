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
