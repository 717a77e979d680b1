//! One end of a link, without I/O and without a clock: callers bring bytes and the time, a duration since any fixed
//! moment that never goes back.
//!
//! ```text
//! detached ──opening()──▶ opening ──attach()──▶ attached ──detach()──▶ detached
//!     └──────────── `keep` passes ────────────▶ ended ◀── CLOSE, broken rules, refusal
//! ```
//!
//! `opening` also fences the attachment before it: each has an epoch, and one with an old epoch can change nothing any
//! more, wherever its task happens to be. So what a greeting says was received stays true.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::end::End;
use super::frame::{self, CloseReason, Decoder, Frame, FrameError};
use super::hello::Refusal;
use super::inbox::Inbox;
use super::liveness::{DEAD_AFTER, Liveness};
use super::observer::TimedAck;
use super::outgoing::Outgoing;
use super::receipts::Receipts;
use super::replay::{BadOffset, Replay};

/// Bounds of a link.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes written and not acknowledged, small writes counted with what keeping them costs; more ends the link.
    pub unacknowledged: usize,
    /// Bytes received that the layer above has not read; more ends the link.
    pub unread: usize,
    /// How long the link lives without an attachment.
    pub keep: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // What is in flight is bounded by the layer above: one SSH channel with a window of at most 16 MiB. As much
        // again is for what SSH adds to small packets.
        Self { unacknowledged: 32 << 20, unread: 32 << 20, keep: Duration::from_secs(180) }
    }
}

/// Why an attachment can go on no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// A newer one has taken over here.
    Stale,
    /// The peer says a newer one has taken over.
    Fenced,
    /// Nothing was heard for too long.
    Silent,
    /// The machine slept longer than any peer waits.
    Slept,
    /// What arrives is no frame.
    Frame(FrameError),
    /// The link has ended.
    Ended(End),
}

/// What a greeting says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) epoch: u64,
    pub(super) received: u64,
    /// This end was attached before.
    pub(super) resume: bool,
}

#[derive(Debug)]
struct Attached {
    decoder: Decoder,
    live: Liveness,
    pong: Option<u64>,
    close_sent: bool,
    slept: bool,
}

#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    replay: Replay,
    receipts: Receipts,
    inbox: Inbox,
    /// The layer above writes no more.
    finished: bool,
    epoch: u64,
    attachments: u64,
    attached: Option<Attached>,
    detached_at: Duration,
    ended: Option<End>,
    last_word: Option<CloseReason>,
    rtt: Option<Duration>,
}

impl State {
    pub(super) fn new(limits: Limits, now: Duration) -> Self {
        Self {
            limits,
            replay: Replay::new(limits.unacknowledged),
            receipts: Receipts::default(),
            inbox: Inbox::default(),
            finished: false,
            epoch: 0,
            attachments: 0,
            attached: None,
            detached_at: now,
            ended: None,
            last_word: None,
            rtt: None,
        }
    }

    // The layer above.

    /// Takes bytes to send; the offset after them.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<u64, End> {
        if let Some(end) = self.ended {
            return Err(end);
        }
        match self.replay.write(data) {
            Ok(()) => Ok(self.replay.end()),
            Err(_) => {
                self.end(End::Unacknowledged, Some(CloseReason::Overflow));
                Err(End::Unacknowledged)
            }
        }
    }

    /// Nothing more will be written. Once everything is sent the peer is told, which ends the link for both.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Nobody uses this end any more.
    pub(super) fn abandon(&mut self) {
        self.finish();
        self.inbox.discard();
        if self.attachments == 0 {
            self.end(End::Done, None); // the peer has never heard of it
        }
    }

    /// Moves what arrived into `ready`. True when reading had paused and may go on.
    pub(super) fn take_received(&mut self, ready: &mut VecDeque<Bytes>) -> bool {
        self.inbox.take(ready)
    }

    // The life of an attachment.

    /// Begins a new attachment and fences the one before.
    pub(super) fn opening(&mut self, now: Duration) -> Result<Opening, End> {
        if let Some(end) = self.ended {
            return Err(end);
        }
        self.lose(now);
        self.epoch += 1;
        Ok(Opening { epoch: self.epoch, received: self.receipts.received(), resume: self.attachments > 0 })
    }

    /// The server has welcomed the client; frames may follow.
    pub(super) fn attach(&mut self, epoch: u64, peer_received: u64, now: Duration) -> Result<(), Stop> {
        self.check(epoch)?;
        if let Err(bad) = self.replay.rewind(peer_received) {
            return Err(Stop::Ended(self.break_off(bad)));
        }
        self.receipts.told_all();
        self.attachments += 1;
        self.attached = Some(Attached {
            decoder: Decoder::default(),
            live: Liveness::new(now),
            pong: None,
            close_sent: false,
            slept: false,
        });
        Ok(())
    }

    /// A client's greeting has come: fences the attachment before and attaches. What to say was received; the client's
    /// attempt is the epoch on this side too.
    pub(super) fn accept(&mut self, attempt: u64, peer_received: u64, now: Duration) -> Result<u64, Stop> {
        if attempt <= self.epoch {
            return Err(Stop::Stale); // it was overtaken on the way
        }
        self.lose(now);
        self.epoch = attempt;
        self.attach(attempt, peer_received, now)?;
        Ok(self.receipts.received())
    }

    /// The connection is gone.
    pub(super) fn detach(&mut self, epoch: u64, now: Duration) {
        if epoch == self.epoch {
            self.lose(now);
        }
    }

    /// Takes what is due to be sent now. Nothing when there is nothing to say.
    pub(super) fn transmit(&mut self, epoch: u64, now: Duration, out: &mut Outgoing) -> Result<(), Stop> {
        self.check(epoch)?;
        let Some(attached) = &mut self.attached else { return Err(Stop::Stale) };
        if let Some(number) = attached.pong.take() {
            frame::pong(number, out.small());
        }
        if let Some(number) = attached.live.take_ping(now) {
            frame::ping(number, out.small());
        }
        let joins = !out.small().is_empty() || self.replay.has_unsent();
        if let Some(ack) = self.receipts.take(now, joins) {
            frame::ack(ack, out.small());
        }
        while out.has_room() {
            let Some(piece) = self.replay.send(out.small()) else { break };
            out.push(piece);
            attached.live.asked(now);
        }
        if self.finished && !attached.close_sent && !self.replay.has_unsent() {
            frame::close(CloseReason::Done, out.small());
            attached.close_sent = true;
            attached.live.asked(now);
        }
        out.join();
        Ok(())
    }

    /// Takes the frames out of `input`, which has just grown. Acknowledgements are also added to `acks`.
    pub(super) fn receive(
        &mut self,
        epoch: u64,
        now: Duration,
        input: &mut BytesMut,
        acks: &mut Vec<TimedAck>,
    ) -> Result<(), Stop> {
        self.check(epoch)?;
        let Some(attached) = &mut self.attached else { return Err(Stop::Stale) };
        attached.live.heard(now);
        while let Some(frame) = attached.decoder.next(input).map_err(Stop::Frame)? {
            match frame {
                Frame::Data(data) => {
                    self.receipts.count(data.len(), now);
                    self.inbox.put(data);
                    if self.inbox.unread() > self.limits.unread {
                        return Err(self.end(End::Unread, Some(CloseReason::Overflow)));
                    }
                }
                Frame::Ack(ack) => {
                    if let Err(bad) = self.replay.acknowledge(ack.offset) {
                        return Err(Stop::Ended(self.break_off(bad)));
                    }
                    acks.push(ack);
                }
                Frame::Ping(number) => attached.pong = Some(number),
                Frame::Pong(number) => self.rtt = attached.live.pong(number, now).or(self.rtt),
                Frame::Close(CloseReason::Done) => {
                    let answer = (!attached.close_sent).then_some(CloseReason::Done);
                    return Err(self.end(End::Done, answer));
                }
                Frame::Close(reason) => return Err(self.end(End::Peer(reason), None)),
                Frame::Fenced => return Err(Stop::Fenced),
            }
        }
        Ok(())
    }

    /// Whether the connection may be read.
    pub(super) fn may_read(&mut self, now: Duration) -> bool {
        self.inbox.may_read(now)
    }

    // Time.

    /// When the attachment must look at the clock and for something to send, if nothing else happens.
    /// `blocked` while nothing more can be sent.
    pub(super) fn next_timeout(&self, now: Duration, blocked: bool) -> Option<Duration> {
        let attached = self.attached.as_ref().filter(|_| self.ended.is_none())?;
        let resume = self.inbox.pauses_until().filter(|resume| *resume > now);
        let ack = self.receipts.deadline().filter(|_| !blocked);
        let first = ack.into_iter().chain(resume).min();
        Some(attached.live.deadline().min(first.unwrap_or(Duration::MAX)))
    }

    /// Looks at the clock, for the attachment `epoch`.
    pub(super) fn on_time(&mut self, epoch: u64, now: Duration) -> Result<(), Stop> {
        self.check(epoch)?;
        let Some(attached) = &mut self.attached else { return Err(Stop::Stale) };
        if attached.slept {
            return Err(Stop::Slept);
        }
        attached.live.on_time(now).map_err(|_| Stop::Silent)
    }

    /// When a link that nothing carries ends.
    pub(super) fn expires_at(&self) -> Option<Duration> {
        (self.attached.is_none() && self.ended.is_none()).then(|| self.detached_at + self.limits.keep)
    }

    /// Ends the link if nothing has carried it for too long.
    pub(super) fn expire(&mut self, now: Duration) {
        if self.expires_at().is_some_and(|at| now >= at) {
            self.end(End::Expired, None);
        }
    }

    /// Asks the peer at once, with a short bound: the network has changed. False without an attachment.
    pub(super) fn probe(&mut self, now: Duration) -> bool {
        self.attached.as_mut().map(|attached| attached.live.probe(now)).is_some()
    }

    /// The machine has slept for `gap` that `now` does not show. After a short one the path is asked, after a long one
    /// the peer has given it up.
    pub(super) fn slept(&mut self, gap: Duration, now: Duration) {
        self.probe(now);
        if let Some(attached) = &mut self.attached {
            attached.slept |= gap >= DEAD_AFTER;
        }
    }

    // The end.

    /// Ends the link from this side.
    pub(super) fn close(&mut self, reason: CloseReason) {
        self.end(End::Local(reason), Some(reason));
    }

    /// The server will never let us attach again.
    pub(super) fn refused(&mut self, reason: Refusal) {
        // It has gone after our goodbye; only its answer was lost.
        let done = self.finished && self.replay.in_flight() == 0;
        self.end(if done { End::Done } else { End::Refused(reason) }, None);
    }

    pub(super) fn ended(&self) -> Option<End> {
        self.ended
    }

    /// What the peer should still hear, once.
    pub(super) fn take_last_word(&mut self) -> Option<CloseReason> {
        self.last_word.take()
    }

    // For the status.

    pub(super) fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    pub(super) fn attachments(&self) -> u64 {
        self.attachments
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(super) fn measured(&mut self, rtt: Duration) {
        self.rtt = Some(rtt);
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.replay.in_flight()
    }

    pub(super) fn held(&self) -> usize {
        self.replay.held()
    }

    pub(super) fn unread(&self) -> usize {
        self.inbox.unread()
    }

    fn check(&self, epoch: u64) -> Result<(), Stop> {
        match self.ended {
            Some(end) => Err(Stop::Ended(end)),
            None if epoch != self.epoch => Err(Stop::Stale),
            None => Ok(()),
        }
    }

    fn lose(&mut self, now: Duration) {
        if self.attached.take().is_some() {
            self.detached_at = now;
        }
    }

    fn break_off(&mut self, bad: BadOffset) -> End {
        let BadOffset { claimed, lowest, highest } = bad;
        let end = End::Offset { claimed, lowest, highest };
        self.end(end, Some(CloseReason::Protocol));
        end
    }

    /// The first end counts.
    fn end(&mut self, end: End, last_word: Option<CloseReason>) -> Stop {
        if self.ended.is_none() {
            self.ended = Some(end);
            self.last_word = last_word;
            self.replay = Replay::new(0); // nobody will ask for it again
        }
        Stop::Ended(self.ended.unwrap_or(end))
    }
}
