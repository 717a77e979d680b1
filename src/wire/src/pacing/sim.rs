//! A deterministic line with sessions on it: the law and the gate as they are, everything else simulated.
//!
//! Each direction of the line is one FIFO without loss, with a rate and a delay that may change, shared by all
//! sessions. Times are microseconds, rates bits per second. What the lines must show is in [`paths`].

mod events;
mod paths;
mod seen;

use std::time::Duration;

use self::events::{Event, Events};
use self::seen::Seen;
use super::gate::{Answer, FlowHistory, Gate};
use super::law::Policy;
use crate::link::TimedAck;

/// The link's rule for acknowledgements.
const ACK_BYTES: u64 = 32 << 10;
const ACK_TIME: u64 = 5_000;
const ACK_RIDE: u64 = 1_000;

/// Bytes on the line of an acknowledgement, with all headers below it.
const ACK_SIZE: u64 = 90;

/// Bytes of a ping.
const PING: usize = 64;

/// Period of the timer that serves waiters nobody else wakes.
const TICK: u64 = 25_000;

const SECOND: u64 = 1_000_000;

/// What a flow sends, and when it starts.
#[derive(Clone, Copy)]
enum Load {
    /// Without end.
    Endless { from: u64 },
    /// So many bytes each second.
    Bursts { bytes: u64 },
}

/// One session: its bulk flows, up and down.
#[derive(Clone, Default)]
struct Flows {
    loads: [Vec<Load>; 2],
    /// Distance of its clocks from the others'.
    clock: u64,
    /// Where its budget comes from, if not from what the whole simulation is run with.
    policy: Option<Policy>,
}

#[derive(Clone)]
struct Line {
    rate: fn(u64) -> f64,
    delay: fn(u64) -> u64,
    /// Acknowledgements are late by up to this; one in 50 by up to five times as much.
    jitter: u64,
    /// Busy processors: an end that sleeps and is to do something gets its turn after up to this. It then does all that
    /// has come meanwhile.
    turn: fn(u64) -> u64,
    /// Of all that is random.
    seed: u64,
}

/// One direction of a session, at both its ends.
struct Pipe {
    gate: Gate<usize>,
    flows: Vec<Flow>,
    sent: u64,
    // The receiving end.
    received: u64,
    received_at: u64,
    told: u64,
    first_untold: u64,
    timer: bool,
    pacing: bool,
    /// Bytes of the burst that arrived.
    burst: u64,
    /// Acknowledgements do not overtake each other.
    last_ack: u64,
}

struct Flow {
    load: Load,
    history: FlowHistory,
    left: u64,
    waiting: bool,
    ping: Option<u64>,
}

struct World {
    line: Line,
    now: u64,
    events: Events,
    /// Per direction of the line: when its last bit leaves, when its last packet arrives.
    busy: [(u64, u64); 2],
    sessions: Vec<[Pipe; 2]>,
    /// Per session and end: what it does at its turn, if it waits for one.
    turns: Vec<[Vec<Event>; 2]>,
    clocks: Vec<u64>,
    random: u64,
    burst_at: u64,
    seen: Seen,
}

/// Lets `sessions` use the line for so many seconds.
fn run(line: &Line, sessions: &[Flows], policy: Policy, seconds: u64) -> Seen {
    let pipe = |flows: &Flows, direction: usize| Pipe {
        gate: Gate::new(flows.policy.unwrap_or(policy)),
        flows: std::iter::once(Flow::new(Load::Bursts { bytes: 0 })) // the ping's
            .chain(flows.loads[direction].iter().map(|&load| Flow::new(load)))
            .collect(),
        sent: 0,
        received: 0,
        received_at: 0,
        told: 0,
        first_untold: 0,
        timer: false,
        pacing: false,
        burst: 0,
        last_ack: 0,
    };
    let mut world = World {
        line: line.clone(),
        now: 0,
        events: Events::default(),
        busy: [(0, 0); 2],
        sessions: sessions.iter().map(|flows| [pipe(flows, 0), pipe(flows, 1)]).collect(),
        turns: vec![Default::default(); sessions.len()],
        clocks: sessions.iter().map(|flows| flows.clock).collect(),
        random: line.seed,
        burst_at: 0,
        seen: Seen::nothing(line, sessions.len()),
    };
    for session in 0..sessions.len() {
        world.events.at(100_000 + 1_000 * session as u64, Event::Ping { session });
    }
    world.events.at(300_000, Event::Tick);
    world.events.at(400_000, Event::Burst);
    while let Some((at, event)) = world.events.pop() {
        if at > seconds * SECOND {
            break;
        }
        world.now = at;
        if !world.wait_for_turn(event) {
            world.happen(event);
        }
    }
    world.seen
}

impl Flow {
    fn new(load: Load) -> Self {
        Self { load, history: FlowHistory::default(), left: 0, waiting: false, ping: None }
    }

    fn left(&self, now: u64) -> u64 {
        match self.load {
            Load::Endless { from } if now >= from => u64::MAX,
            Load::Endless { .. } => 0,
            Load::Bursts { .. } => self.left,
        }
    }
}

impl World {
    fn random(&mut self) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }

    /// Whether it happens later because the end that does it is not running.
    fn wait_for_turn(&mut self, event: Event) -> bool {
        let longest = (self.line.turn)(self.now);
        let (session, end) = match event {
            Event::Arrive { session, direction, .. } => (session, 1 - direction),
            Event::AckTimer { session, direction } => (session, 1 - direction),
            Event::AckDone { session, direction, .. } | Event::Pace { session, direction } => {
                (session, direction)
            }
            _ => return false,
        };
        if longest == 0 && self.turns[session][end].is_empty() {
            return false;
        }
        if self.turns[session][end].is_empty() {
            let wait = self.random() % longest;
            self.events.at(self.now + wait, Event::Turn { session, end });
        }
        self.turns[session][end].push(event);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { session, end } => {
                for event in std::mem::take(&mut self.turns[session][end]) {
                    self.happen(event);
                }
            }
            Event::Arrive { session, direction, link, payload, ping } => {
                self.arrive(session, direction, link, payload, ping);
            }
            Event::AckTimer { session, direction } => {
                self.sessions[session][direction].timer = false;
                self.acknowledge(session, direction);
            }
            Event::AckArrive { session, direction, ack } => {
                let late = match (self.line.jitter, self.random(), self.random()) {
                    (0, ..) => 0,
                    (jitter, how, 0..0x4000_0000) if how % 50 == 0 => how / 50 % (jitter * 5),
                    (jitter, how, _) => how % jitter,
                };
                let pipe = &mut self.sessions[session][direction];
                pipe.last_ack = pipe.last_ack.max(self.now + late);
                let at = pipe.last_ack;
                self.events.at(at, Event::AckDone { session, direction, ack });
            }
            Event::AckDone { session, direction, ack } => {
                let now = self.clock(session);
                self.sessions[session][direction].gate.acknowledged(now, ack);
                self.pump(session, direction);
            }
            Event::Pace { session, direction } => {
                self.sessions[session][direction].pacing = false;
                self.pump(session, direction);
            }
            Event::Ping { session } => {
                let flow = &mut self.sessions[session][0].flows[0];
                flow.left = PING as u64;
                flow.ping = Some(self.now);
                self.pump(session, 0);
            }
            Event::Tick => {
                for session in 0..self.sessions.len() {
                    self.pump(session, 0);
                    self.pump(session, 1);
                }
                self.events.at(self.now + TICK, Event::Tick);
            }
            Event::Burst => {
                self.burst_at = self.now;
                for session in 0..self.sessions.len() {
                    for direction in 0..2 {
                        for flow in &mut self.sessions[session][direction].flows {
                            if let Load::Bursts { bytes } = flow.load {
                                flow.left += bytes;
                            }
                        }
                        self.pump(session, direction);
                    }
                }
                self.events.at(self.now + SECOND, Event::Burst);
            }
        }
    }

    /// The sender's clock of a session.
    fn clock(&self, session: usize) -> Duration {
        Duration::from_micros(self.now + self.clocks[session]) + Duration::from_secs(1_800_000_000)
    }

    /// Lets every flow of one direction send what it may.
    fn pump(&mut self, session: usize, direction: usize) {
        let now = self.clock(session);
        loop {
            let mut grants = Vec::new();
            let pipe = &mut self.sessions[session][direction];
            pipe.gate.dispatch(now, |flow, bytes| {
                pipe.flows[flow].history.sent(bytes);
                pipe.flows[flow].waiting = false;
                grants.push((flow, bytes));
                true
            });
            for (index, flow) in pipe.flows.iter_mut().enumerate() {
                let granted: u64 = grants.iter().filter(|(i, _)| *i == index).map(|&(_, n)| n as u64).sum();
                let wanted = (flow.left(self.now) - granted).min(64 << 10) as usize;
                if flow.waiting || wanted == 0 {
                    continue;
                }
                match pipe.gate.ask(now, &mut flow.history, wanted) {
                    Answer::Granted(bytes) => grants.push((index, bytes)),
                    Answer::Wait(queue) => {
                        pipe.gate.wait(queue, index, wanted);
                        flow.waiting = true;
                    }
                }
            }
            if grants.is_empty() {
                break;
            }
            for (flow, bytes) in grants {
                self.send(session, direction, flow, bytes as u64);
            }
        }
        let pipe = &mut self.sessions[session][direction];
        if let Some(at) = pipe.gate.wake_at(now)
            && !pipe.pacing
        {
            pipe.pacing = true;
            // Timers have a grain of a millisecond.
            let wait = (at.saturating_sub(now).as_micros() as u64).next_multiple_of(1_000).max(1_000);
            self.events.at(self.now + wait, Event::Pace { session, direction });
        }
    }

    fn send(&mut self, session: usize, direction: usize, flow: usize, payload: u64) {
        self.ride(session, 1 - direction);
        let now = self.clock(session);
        let pipe = &mut self.sessions[session][direction];
        let flow = &mut pipe.flows[flow];
        if matches!(flow.load, Load::Bursts { .. }) {
            flow.left -= payload;
        }
        let ping = flow.ping.take();
        let mut link = payload + 60; // headers of HTTP/2, SSH and the link
        pipe.sent += link;
        pipe.gate.written(now, pipe.sent);
        let mut payload = payload;
        // The line carries segments; on fast lines several at once, to keep the simulation cheap.
        let segment = ((self.line.rate)(self.now) * 0.25e-3 / 8.0).clamp(1_448.0, 32_768.0) as u64;
        while link > 0 {
            let part = link.min(segment);
            link -= part;
            let content = payload.min(part);
            payload -= content;
            let ping = ping.filter(|_| link == 0);
            let event = Event::Arrive { session, direction, link: part, payload: content, ping };
            self.transmit(direction, part + part / 40, event);
        }
    }

    /// Puts a packet on the line.
    fn transmit(&mut self, direction: usize, size: u64, event: Event) {
        let (left, arrived) = self.busy[direction];
        let start = left.max(self.now);
        let left = start + (size as f64 * 8e6 / (self.line.rate)(start)).max(1.0) as u64;
        let arrived = arrived.max(left + (self.line.delay)(left));
        self.busy[direction] = (left, arrived);
        self.events.at(arrived, event);
    }

    fn arrive(&mut self, session: usize, direction: usize, link: u64, payload: u64, ping: Option<u64>) {
        let now = self.now;
        self.seen.moved(session, direction, now, payload);
        let pipe = &mut self.sessions[session][direction];
        if pipe.told == pipe.received {
            pipe.first_untold = now;
        }
        pipe.received += link;
        pipe.received_at = now;
        if pipe.flows.last().is_some_and(|flow| matches!(flow.load, Load::Bursts { bytes: 1.. })) {
            pipe.burst += payload;
            // Pings are not counted in: their bytes are too few to matter.
            if let Some(Flow { load: Load::Bursts { bytes }, .. }) = pipe.flows.last()
                && pipe.burst >= *bytes
            {
                pipe.burst = 0;
                self.seen.bursts.push(now - self.burst_at);
            }
        }
        if pipe.received - pipe.told >= ACK_BYTES {
            self.acknowledge(session, direction);
        } else if !pipe.timer {
            pipe.timer = true;
            self.events.at(now + ACK_TIME, Event::AckTimer { session, direction });
        }
        match ping {
            Some(at) if direction == 0 => {
                let flow = &mut self.sessions[session][1].flows[0];
                flow.left = PING as u64;
                flow.ping = Some(at);
                self.pump(session, 1);
            }
            Some(at) => {
                self.seen.pings[session].push((at, now - at));
                let pause = 5_000 + self.random() % 5_000;
                self.events.at(now + pause, Event::Ping { session });
            }
            None => {}
        }
    }

    /// Data that leaves takes a waiting acknowledgement along.
    fn ride(&mut self, session: usize, direction: usize) {
        let pipe = &self.sessions[session][direction];
        if pipe.received > pipe.told && self.now - pipe.first_untold >= ACK_RIDE {
            self.acknowledge(session, direction);
        }
    }

    fn acknowledge(&mut self, session: usize, direction: usize) {
        let now = self.now;
        let pipe = &mut self.sessions[session][direction];
        if pipe.received == pipe.told {
            return;
        }
        pipe.told = pipe.received;
        let ack = TimedAck {
            offset: pipe.received,
            // The peer's clock starts elsewhere and runs 50 ppm fast.
            received_at: Duration::from_micros(123_456_789 + pipe.received_at + pipe.received_at / 20_000),
            held: Duration::from_micros(now - pipe.received_at),
        };
        self.transmit(1 - direction, ACK_SIZE, Event::AckArrive { session, direction, ack });
    }
}
