//! Two ends of a link over a network that does everything a network may do, with a clock and a dice of its own: the
//! same seed gives the same run. What a connection can do and suffer is in [`network`].
//!
//! Checked all along: bytes arrive once and in order, buffers stay within their bounds, an end that hears nothing gives
//! its connection up within 15 s. And after the storm everything that was written arrives.

mod network;

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::BytesMut;

use self::network::{Dice, Wire};
use super::end::End;
use super::frame::{self, CloseReason};
use super::hello::{Answer, Hello, Refusal, Token, VERSIONS, negotiate};
use super::outgoing::Outgoing;
use super::state::{Limits, State, Stop};

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// What the layer above leaves unacknowledged, as SSH's window does.
const WINDOW: u64 = 300 << 10;

/// What the storm may keep queued: the window and what small writes cost.
const LIMITS: Limits =
    Limits { unacknowledged: 4 << 20, unread: 2 << 20, keep: Duration::from_secs(1 << 30) };

/// The promise: an end that hears nothing gives up within this time.
const DETECTION: Duration = Duration::from_secs(15);

/// The stream's bytes by offset, with a period no power of two meets.
const PERIOD: u64 = 65_521;
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dice = Dice::new(42);
    let period: Vec<u8> = (0..PERIOD).map(|_| dice.next() as u8).collect();
    period.iter().chain(&period).copied().collect()
});

fn pattern(offset: u64, length: usize) -> &'static [u8] {
    let start = (offset % PERIOD) as usize;
    &PATTERN[start..start + length]
}

/// One attachment as its task sees it.
struct Pump {
    wire: usize,
    /// `None` while greeting.
    epoch: Option<u64>,
    opening: u64,
    started: Duration,
    input: BytesMut,
    out: Outgoing,
    /// The link has ended; what is still to be said is in `out`.
    leaves: bool,
}

struct Side {
    state: State,
    /// Attachments whose task is still there; fenced ones find out late.
    pumps: Vec<Pump>,
    written: u64,
    read: u64,
}

struct World {
    dice: Dice,
    now: Duration,
    wires: Vec<Wire>,
    sides: [Side; 2],
    steps: u64,
    attachments: u64,
    /// Moments for which nobody writes.
    quiet: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Duration::from_secs(1000);
        let side = || Side { state: State::new(LIMITS, now), pumps: vec![], written: 0, read: 0 };
        let mut dice = Dice::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        dice.next();
        Self { dice, now, wires: vec![], sides: [side(), side()], steps: 0, attachments: 0, quiet: 0 }
    }

    fn dial(&mut self) {
        self.wires.push(Wire::new(&mut self.dice));
        let wire = self.wires.len() - 1;
        let Ok(opening) = self.sides[CLIENT].state.opening(self.now) else { return };
        let hello = Hello {
            versions: VERSIONS,
            token: Token::from_bytes([1; 16]),
            resume: opening.resume,
            attempt: opening.epoch,
            received: opening.received,
        };
        let mut out = Outgoing::default();
        out.last_word(|bytes| hello.encode(bytes));
        for (side, out) in [(CLIENT, out), (SERVER, Outgoing::default())] {
            self.sides[side].pumps.push(Pump {
                wire,
                epoch: None,
                opening: opening.epoch,
                started: self.now,
                input: BytesMut::new(),
                out,
                leaves: false,
            });
        }
    }

    /// What the task of one attachment does when it is woken. `None` when the attachment is over.
    fn pump(&mut self, side: usize, pump: &mut Pump) -> Option<()> {
        let Self { wires, sides, now, .. } = self;
        let (wire, state, now) = (&mut wires[pump.wire], &mut sides[side].state, *now);
        if let Some(epoch) = pump.epoch {
            if state.ended().is_some() && !pump.leaves {
                pump.leaves = true;
                if let Some(reason) = state.take_last_word() {
                    pump.out.last_word(|bytes| frame::close(reason, bytes));
                }
            }
            if !pump.leaves {
                state.on_time(epoch, now).ok()?;
                if pump.out.is_empty() {
                    state.transmit(epoch, now, &mut pump.out).ok()?;
                }
            }
        }
        if wire.is_closed() && pump.leaves {
            return None;
        }
        wire.write(side, now, &mut pump.out);
        if pump.leaves {
            return (!pump.out.is_empty()).then_some(());
        }
        if pump.epoch.is_some() && !state.may_read(now) {
            return Some(());
        }
        let read = wire.read(side, now, &mut pump.input);
        if read > 0 {
            match pump.epoch {
                Some(epoch) => {
                    match state.receive(epoch, now, &mut pump.input, &mut vec![]) {
                        Ok(()) | Err(Stop::Ended(End::Done)) => {}
                        Err(Stop::Stale) => return None,
                        Err(stop) => panic!("{stop:?}"),
                    }
                    assert!(state.unread() <= LIMITS.unread);
                }
                None => self.greet(side, pump)?,
            }
        } else if wire.has_ended(side) {
            return None;
        }
        Some(())
    }

    fn greet(&mut self, side: usize, pump: &mut Pump) -> Option<()> {
        let state = &mut self.sides[side].state;
        if side == SERVER {
            let Some(hello) = Hello::decode(&mut pump.input).unwrap() else { return Some(()) };
            let version = negotiate(&VERSIONS, &hello.versions).unwrap();
            let received = match state.accept(hello.attempt, hello.received, self.now) {
                Ok(received) => received,
                Err(stop) => {
                    let reason = match stop {
                        Stop::Stale => Refusal::Superseded,
                        Stop::Ended(End::Done) => Refusal::UnknownToken,
                        stop => panic!("{stop:?}"),
                    };
                    pump.out.last_word(|bytes| Answer::Refused(reason).encode(bytes));
                    pump.leaves = true;
                    return Some(());
                }
            };
            pump.epoch = Some(hello.attempt);
            let welcome = Answer::Welcome { version, received };
            pump.out.last_word(|bytes| welcome.encode(bytes));
        } else {
            let Some(answer) = Answer::decode(&mut pump.input, &VERSIONS).unwrap() else { return Some(()) };
            let received = match answer {
                Answer::Welcome { received, .. } => received,
                Answer::Refused(Refusal::Superseded) => return None,
                Answer::Refused(reason) => {
                    state.refused(reason);
                    return None;
                }
            };
            match state.attach(pump.opening, received, self.now) {
                Ok(()) => {}
                Err(Stop::Stale | Stop::Ended(End::Done)) => return None,
                Err(stop) => panic!("{stop:?}"),
            }
            pump.epoch = Some(pump.opening);
            self.attachments += 1;
        }
        if !pump.input.is_empty() {
            let received =
                self.sides[side].state.receive(pump.epoch?, self.now, &mut pump.input, &mut vec![]);
            assert!(matches!(received, Ok(()) | Err(Stop::Ended(End::Done))), "{received:?}");
        }
        Some(())
    }

    /// Wakes all tasks of one side; stale ones only sometimes, as if the scheduler forgot them.
    fn wake(&mut self, side: usize, lazy: bool) {
        for mut pump in std::mem::take(&mut self.sides[side].pumps) {
            let latest = self.wires.len() - 1 == pump.wire;
            let asleep = lazy && !latest && !self.dice.one_in(4);
            // A greeting is given up after ten seconds.
            let late = pump.epoch.is_none() && self.now > pump.started + Duration::from_secs(10);
            if asleep || !late && self.pump(side, &mut pump).is_some() {
                self.sides[side].pumps.push(pump);
            } else {
                if let Some(epoch) = pump.epoch {
                    self.sides[side].state.detach(epoch, self.now);
                }
                self.wires[pump.wire].close();
            }
        }
        if side == CLIENT && self.sides[CLIENT].pumps.is_empty() && self.sides[CLIENT].state.ended().is_none()
        {
            self.dial();
        }
    }

    fn write(&mut self, side: usize) {
        let length = match self.dice.below(8) {
            0 => 1,
            1..=5 => 1 + self.dice.below(2_000),
            _ => 1 + self.dice.below(60_000),
        };
        let Side { state, written, .. } = &mut self.sides[side];
        if state.in_flight() + length <= WINDOW {
            *written = state.write(pattern(*written, length as usize)).unwrap();
            assert!(state.held() as u64 <= 3 * WINDOW, "{}", state.held());
        }
    }

    fn read(&mut self, side: usize) {
        let mut pieces = VecDeque::new();
        self.sides[side].state.take_received(&mut pieces);
        for piece in pieces {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(60_000));
                assert!(now == pattern(self.sides[side].read, now.len()), "wrong byte for end {side}");
                self.sides[side].read += now.len() as u64;
                rest = later;
            }
            assert!(self.sides[side].read <= self.sides[1 - side].written);
        }
    }

    fn fault(&mut self) {
        let Some(at) = self.wires.len().checked_sub(1) else { return };
        if self.dice.one_in(3) {
            self.quiet = 50; // only pings can find this one
        }
        let (now, which) = (self.now, self.dice.below(8));
        let side = self.dice.below(2) as usize;
        let (cut, keep) = (self.dice.one_in(2), self.dice.below(5_000) as usize);
        let wire = &mut self.wires[at];
        match which {
            0..=2 => wire.reset(if cut { 0 } else { keep }),
            // Black hole, and a stall of one direction.
            3 => [CLIENT, SERVER].into_iter().for_each(|side| wire.swallow(side, now)),
            4 => wire.swallow(side, now),
            // Trickle, jitter.
            5 => wire.grain = 1,
            6 => wire.delay = Duration::from_micros(self.dice.below(400_000)),
            // The client dials again though the old connection stands.
            _ => self.dial(),
        }
    }

    /// Lets time pass until something happens.
    fn pass(&mut self, longest: Duration) {
        let due = self.sides.iter().filter_map(|side| {
            let blocked = side.pumps.last().is_some_and(|pump| !pump.out.is_empty());
            side.state.next_timeout(self.now, blocked)
        });
        let arrivals = self.wires.last().into_iter().flat_map(Wire::arrivals);
        let next = due.chain(arrivals).filter(|at| *at > self.now).min().unwrap_or(Duration::MAX);
        self.now = next.min(self.now + longest);
        for side in [CLIENT, SERVER] {
            self.wake(side, true);
        }
        for (side, Side { pumps, state, .. }) in self.sides.iter().enumerate() {
            for pump in pumps.iter().filter(|pump| pump.epoch.is_some() && state.is_attached()) {
                let silent_since = self.wires[pump.wire].silent_since(side);
                let latest = self.wires.len() - 1 == pump.wire;
                if let Some(since) = silent_since.filter(|_| latest) {
                    assert!(self.now < since + DETECTION, "end {side} did not notice the silence");
                }
            }
        }
    }

    fn step(&mut self, storm: bool) {
        self.steps += 1;
        let side = self.dice.below(2) as usize;
        match self.dice.below(16) {
            0..=2 if storm && self.quiet == 0 => self.write(side),
            3..=4 => self.read(side),
            5..=9 => self.wake(side, true),
            10 if storm && self.dice.one_in(10) => self.fault(),
            10 if self.dice.one_in(50) => {
                self.sides[side].state.probe(self.now);
            }
            _ => {
                self.quiet = self.quiet.saturating_sub(1);
                let long = self.quiet > 0 || self.dice.one_in(10);
                let longest = if long { 3_000_000 } else { 2_000 };
                let longest = Duration::from_micros(self.dice.below(longest) + 1);
                self.pass(longest);
            }
        }
    }

    /// For whoever reads a failure.
    fn outline(&self) -> Vec<String> {
        let line = |side: &Side| {
            let pumps: Vec<_> = side.pumps.iter().map(|p| (p.wire, p.epoch, p.leaves)).collect();
            let Side { state, written, read, .. } = side;
            format!(
                "written {written} read {read} in flight {} attached {} ended {:?} pumps {pumps:?}",
                state.in_flight(),
                state.is_attached(),
                state.ended()
            )
        };
        self.sides.iter().map(line).collect()
    }

    fn all_arrived(&self) -> bool {
        let [client, server] = &self.sides;
        client.read == server.written
            && server.read == client.written
            && client.state.in_flight() + server.state.in_flight() == 0
    }

    /// The network behaves; everything must arrive.
    fn calm(&mut self) {
        self.dial();
        let wire = self.wires.last_mut().unwrap();
        (wire.grain, wire.delay) = (50_000, Duration::from_millis(20));
        let patience = self.now + Duration::from_secs(60);
        while !self.all_arrived() {
            self.step(false);
            assert!(self.now < patience, "no progress over a path that works: {:?}", self.outline());
        }
    }
}

#[test]
fn two_million_steps_of_bad_network_lose_double_and_swap_nothing() {
    let (mut steps, mut attachments, mut bytes, mut seed) = (0, 0, 0, 0);
    while steps < 2_000_000 {
        let mut world = World::new(seed);
        world.dial();
        for _ in 0..2_500 {
            world.step(true);
        }
        world.calm();
        // The end, from either side, is told to the other.
        let side = (seed % 2) as usize;
        world.sides[side].state.finish();
        let patience = world.now + Duration::from_secs(60);
        // A server whose client went without its answer being heard waits until it expires.
        let lonely = |world: &World| {
            let [client, server] = &world.sides;
            client.state.ended().is_some() && server.state.is_finished() && !server.state.is_attached()
        };
        while !lonely(&world) && world.sides.iter().any(|side| side.state.ended().is_none()) {
            world.pass(Duration::from_millis(100));
            assert!(world.now < patience, "the end was not told, seed {seed}: {:?}", world.outline());
        }
        assert_eq!(world.sides[CLIENT].state.ended(), Some(End::Done), "seed {seed}");
        steps += world.steps;
        attachments += world.attachments;
        bytes += world.sides[CLIENT].read + world.sides[SERVER].read;
        seed += 1;
    }
    println!("{seed} seeds, {steps} steps, {attachments} attachments, {} MiB", bytes >> 20);
    assert!(attachments > 3 * seed && bytes > seed << 19, "the storm was too weak or too strong");
}

#[test]
fn a_closed_link_takes_and_gives_nothing_more() {
    let mut world = World::new(7);
    world.dial();
    world.calm();
    world.sides[SERVER].state.close(CloseReason::Leaving);
    assert_eq!(world.sides[SERVER].state.take_last_word(), Some(CloseReason::Leaving));
    assert_eq!(world.sides[SERVER].state.write(b"x"), Err(End::Local(CloseReason::Leaving)));
    assert_eq!(world.sides[SERVER].state.opening(world.now), Err(End::Local(CloseReason::Leaving)));
}
