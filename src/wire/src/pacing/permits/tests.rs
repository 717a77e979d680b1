//! Time stands still here but for the timers, so every wait is exact.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const KIB: usize = 1 << 10;

fn fixed(bytes: u64) -> Arc<Pacer> {
    Pacer::new(format!("fixed:{bytes}").parse().unwrap())
}

/// A flow that has already sent enough not to be sparse.
async fn bulk_flow(pacer: &Arc<Pacer>) -> FlowHistory {
    let mut history = FlowHistory::default();
    assert_eq!(soon(pacer.take(&mut history, 16 * KIB)).await, 16 * KIB);
    history
}

/// Bytes written, all acknowledged, over a path of 50 ms.
async fn learn_a_megabyte_per_second(pacer: &Pacer) -> u64 {
    let mut written = 0;
    for _ in 0..200 {
        written += 10_000;
        pacer.written(written);
        tokio::time::advance(Duration::from_millis(10)).await;
        if written > 50_000 {
            ack(pacer, written - 50_000);
        }
    }
    tokio::time::advance(Duration::from_millis(50)).await;
    ack(pacer, written);
    written
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The timer would turn for ever where nobody is ever served.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("never served")
}

fn ack(pacer: &Pacer, offset: u64) {
    pacer.acknowledged(TimedAck { offset, received_at: pacer.clock.now(), held: Duration::ZERO });
}

#[tokio::test(start_paused = true)]
async fn permits_end_with_the_budget_and_come_back_with_the_acknowledgement() {
    let pacer = fixed(64 * KIB as u64);
    let mut flow = bulk_flow(&pacer).await;
    let mut sum = 16 * KIB;
    while sum < 64 * KIB {
        let granted = soon(pacer.take(&mut flow, 64 * KIB)).await;
        assert_eq!(granted, 4 * KIB); // a sixteenth
        sum += granted;
    }
    pacer.written(sum as u64);
    let mut next = pin!(pacer.take(&mut flow, 64 * KIB));
    assert!(poll(next.as_mut()).is_pending());
    ack(&pacer, 4 * KIB as u64 - 1);
    assert!(poll(next.as_mut()).is_pending(), "a byte is missing");
    ack(&pacer, 4 * KIB as u64);
    assert_eq!(poll(next.as_mut()), Poll::Ready(4 * KIB));
}

#[tokio::test(start_paused = true)]
async fn waiters_take_turns() {
    let pacer = fixed(16 * KIB as u64);
    let (mut first, mut second) = (bulk_flow(&pacer).await, FlowHistory::default());
    pacer.written(16 * KIB as u64);
    second.sent(16 * KIB);
    let mut order = Vec::new();
    let mut a = Box::pin(pacer.take(&mut first, 64 * KIB));
    let mut b = Box::pin(pacer.take(&mut second, 64 * KIB));
    assert!(poll(a.as_mut()).is_pending() && poll(b.as_mut()).is_pending());
    let mut written = 16 * KIB as u64;
    for acked in (2..=14).step_by(2) {
        ack(&pacer, acked * KIB as u64);
        let who = match (poll(a.as_mut()), poll(b.as_mut())) {
            (Poll::Ready(2048), Poll::Pending) => 'a',
            (Poll::Pending, Poll::Ready(2048)) => 'b',
            other => panic!("{other:?}"),
        };
        order.push(who);
        written += 2 * KIB as u64;
        pacer.written(written);
        // It asks for more at once, and is behind the other now.
        if who == 'a' {
            drop(a);
            a = Box::pin(pacer.take(&mut first, 64 * KIB));
            assert!(poll(a.as_mut()).is_pending());
        } else {
            drop(b);
            b = Box::pin(pacer.take(&mut second, 64 * KIB));
            assert!(poll(b.as_mut()).is_pending());
        }
    }
    assert_eq!(order, ['a', 'b', 'a', 'b', 'a', 'b', 'a']);
}

#[tokio::test(start_paused = true)]
async fn a_sparse_flow_overtakes_the_queue_but_not_without_bound() {
    let pacer = fixed(64 * KIB as u64);
    let mut bulk = bulk_flow(&pacer).await;
    for _ in 0..12 {
        soon(pacer.take(&mut bulk, 64 * KIB)).await;
    }
    pacer.written(64 * KIB as u64);
    let mut waiting = pin!(pacer.take(&mut bulk, 64 * KIB));
    assert!(poll(waiting.as_mut()).is_pending());
    // 64 KiB are under way; a quarter and once the budget more are for sparse flows.
    let mut overtaken = 0;
    let mut written = 64 * KIB as u64;
    loop {
        let mut sparse = FlowHistory::default();
        let mut take = Box::pin(pacer.take(&mut sparse, 8 * KIB));
        match poll(take.as_mut()) {
            Poll::Ready(granted) => {
                assert_eq!(granted, 8 * KIB, "all of it at once");
                overtaken += granted;
                written += granted as u64;
                pacer.written(written);
            }
            Poll::Pending => {
                assert_eq!(overtaken, 88 * KIB);
                // First in line all the same: room for one chunk is the sparse flow's.
                ack(&pacer, 8 * KIB as u64);
                assert_eq!(poll(take.as_mut()), Poll::Ready(8 * KIB));
                assert!(poll(waiting.as_mut()).is_pending());
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flow_is_sparse_again_after_a_pause() {
    let pacer = fixed(16 * KIB as u64);
    let mut flow = bulk_flow(&pacer).await;
    pacer.written(16 * KIB as u64);
    assert!(poll(pin!(pacer.take(&mut flow, 1))).is_pending());
    tokio::time::advance(Duration::from_millis(101)).await;
    assert_eq!(soon(pacer.take(&mut flow, 1)).await, 1);
}

/// HTTP/2 drops what a reset stream had queued; nothing of it is ever written or acknowledged.
#[tokio::test(start_paused = true)]
async fn permitted_bytes_that_never_reach_the_link_are_forgotten() {
    let pacer = fixed(16 * KIB as u64);
    let mut flow = bulk_flow(&pacer).await; // the whole budget, never written
    let started = Instant::now();
    assert_eq!(soon(pacer.take(&mut flow, 64 * KIB)).await, 2 * KIB);
    let took = started.elapsed();
    assert!((50..=100).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_resets_leave_nothing_behind() {
    let pacer = fixed(16 * KIB as u64);
    for _ in 0..1_000 {
        let mut flow = FlowHistory::default();
        soon(pacer.take(&mut flow, 16 * KIB)).await; // never written
    }
    let mut flow = FlowHistory::default();
    flow.sent(16 * KIB);
    soon(pacer.take(&mut flow, 64 * KIB)).await;
    tokio::time::advance(Duration::from_millis(51)).await;
    soon(pacer.take(&mut flow, 1)).await;
    assert_eq!(pacer.figures().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_gone_gets_nothing() {
    let pacer = fixed(16 * KIB as u64);
    let mut flow = bulk_flow(&pacer).await;
    pacer.written(16 * KIB as u64);
    for _ in 0..100 {
        let mut gone = FlowHistory::default();
        gone.sent(16 * KIB);
        let mut take = Box::pin(pacer.take(&mut gone, 64 * KIB));
        assert!(poll(take.as_mut()).is_pending());
    }
    let mut last = pin!(pacer.take(&mut flow, 64 * KIB));
    assert!(poll(last.as_mut()).is_pending());
    // One chunk's room: were the dead counted, it would be theirs.
    ack(&pacer, 2 * KIB as u64);
    assert_eq!(poll(last.as_mut()), Poll::Ready(2 * KIB));
}

#[tokio::test(start_paused = true)]
async fn with_nothing_under_way_there_is_always_a_permit() {
    let pacer = fixed(1);
    let mut flow = FlowHistory::default();
    flow.sent(16 * KIB);
    for written in 1..100 {
        let granted = soon(pacer.take(&mut flow, 64 * KIB)).await as u64;
        assert_eq!(granted, 2 * KIB as u64);
        pacer.written(written * granted);
        ack(&pacer, written * granted);
    }
}

/// Replayed bytes are still under way after a new attachment; a budget below them must not stop the session.
#[tokio::test(start_paused = true)]
async fn a_new_attachment_goes_on() {
    let pacer = Pacer::new(Policy::Auto);
    let mut flow = bulk_flow(&pacer).await;
    pacer.written(10 << 20);
    pacer.attached(0);
    let mut next = pin!(pacer.take(&mut flow, 64 * KIB));
    assert!(poll(next.as_mut()).is_pending());
    ack(&pacer, 10 << 20);
    assert_eq!(poll(next.as_mut()), Poll::Ready(4 * KIB));
}

/// What the peer received before the connection broke is acknowledged by its greeting alone.
#[tokio::test(start_paused = true)]
async fn a_new_attachment_of_a_peer_that_has_everything_goes_on() {
    let pacer = Pacer::new(Policy::Auto);
    let mut flow = bulk_flow(&pacer).await;
    pacer.written(10 << 20);
    let mut next = pin!(pacer.take(&mut flow, 64 * KIB));
    assert!(poll(next.as_mut()).is_pending());
    pacer.attached(10 << 20);
    assert_eq!(poll(next.as_mut()), Poll::Ready(4 * KIB));
}

/// The pace of the old path says nothing about the new one.
#[tokio::test(start_paused = true)]
async fn a_new_attachment_owes_nothing_to_the_old_pace() {
    let pacer = Pacer::new(Policy::Auto);
    let mut flow = bulk_flow(&pacer).await;
    let mut written = learn_a_megabyte_per_second(&pacer).await;
    loop {
        let mut next = pin!(pacer.take(&mut flow, 64 * KIB));
        match poll(next.as_mut()) {
            Poll::Ready(bytes) => written += bytes as u64,
            Poll::Pending => {
                pacer.attached(written);
                assert!(poll(next.as_mut()).is_ready());
                break;
            }
        }
        pacer.written(written);
    }
}

/// The pace is kept by the timer alone: all is acknowledged, and nothing else happens.
#[tokio::test(start_paused = true)]
async fn the_pace_is_kept_without_acknowledgements() {
    let pacer = Pacer::new(Policy::Auto);
    let mut flow = bulk_flow(&pacer).await;
    let written = learn_a_megabyte_per_second(&pacer).await;
    let budget = pacer.figures().budget;
    let started = Instant::now();
    let mut sum = 0;
    while sum + 64 * KIB < budget as usize {
        sum += soon(pacer.take(&mut flow, 64 * KIB)).await;
        pacer.written(written + sum as u64);
    }
    let took = started.elapsed();
    assert!(sum > 0);
    assert!(took > Duration::from_millis(2), "{sum} of {budget} at once: {took:?}");
    assert!(took < Duration::from_secs(1), "{sum} of {budget} in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_timer_ends_when_nobody_waits_and_with_the_pacer() {
    let pacer = fixed(16 * KIB as u64);
    let mut flow = bulk_flow(&pacer).await;
    soon(pacer.take(&mut flow, 64 * KIB)).await; // waited, served by the timer
    tokio::time::advance(Duration::from_millis(60)).await;
    tokio::task::yield_now().await;
    assert_eq!(pacer.lock().wakes_at, None);
    pacer.written(1 << 20);
    assert!(poll(pin!(pacer.take(&mut flow, 64 * KIB))).is_pending());
    assert!(pacer.lock().wakes_at.is_some());
    let weak = Arc::downgrade(&pacer);
    drop(pacer);
    assert!(weak.upgrade().is_none());
}

/// Takes those away that were served; returns how many.
fn served<F: Future>(waiting: &mut Vec<std::pin::Pin<Box<F>>>) -> usize {
    let before = waiting.len();
    waiting.retain_mut(|take| poll(take.as_mut()).is_pending());
    before - waiting.len()
}

/// An acknowledgement makes room for many, the pace lets a few go at once: the rest must not wait for the next tick.
#[tokio::test(start_paused = true)]
async fn the_timer_wakes_sooner_when_only_the_pace_holds_back() {
    let pacer = Pacer::new(Policy::Auto);
    let written = learn_a_megabyte_per_second(&pacer).await;
    let mut histories: Vec<_> = (0..10).map(|_| FlowHistory::default()).collect();
    let mut waiting: Vec<_> = Vec::new();
    for history in &mut histories {
        // Asking as a sparse flow starts its 100 ms; what it got then makes it a bulk flow.
        assert_eq!(soon(pacer.take(history, 1)).await, 1);
        history.sent(16 * KIB);
    }
    pacer.written(written + pacer.figures().budget);
    for history in &mut histories {
        let mut take = Box::pin(pacer.take(history, 64 * KIB));
        assert!(poll(take.as_mut()).is_pending());
        waiting.push(take);
    }
    tokio::time::sleep(Duration::from_millis(55)).await; // the next tick is 20 ms away
    ack(&pacer, written + pacer.figures().in_flight);
    let at_once = served(&mut waiting);
    assert!((1..10).contains(&at_once), "{at_once}");
    tokio::time::sleep(Duration::from_millis(8)).await;
    assert!(served(&mut waiting) >= 1);
}
