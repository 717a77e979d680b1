//! The life of the one stream pair of a connection, without I/O or clock: what frames mean, when it is over, and how
//! it ended.
//!
//! ```text
//!  Open ──data stream ended, or error text came──▶ Ending ──both ended, or ERROR_WAIT passed──▶ Done(how)
//!    └──────────── connection lost, GOAWAY, protocol error, silence ───────────────────────────▶ Done(how)
//! ```
//!
//! The data stream's end comes *before* the reason: a refused port is DATA(FIN) on the data stream, then text on the
//! error stream, then RST_STREAM. So the end of data says nothing until the error stream ended too, or a
//! short wait passed. Sources: containerd, CRI-O and cri-dockerd through k8s.io/cri-streaming `portforward`.

use super::{
    PortForwardError,
    spdy::{CANCEL, Event, REFUSED_STREAM, StreamId},
};

/// Our streams. Ids are odd and rise; one pair per connection, because a connection is one head-of-line domain.
pub(super) const ERROR_STREAM: StreamId = 1;
pub(super) const DATA_STREAM: StreamId = 3;

/// Bytes of error text kept; the real ones have a few hundred.
const TEXT_MAX: usize = 8 * 1024;

/// What the connection must do because of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    Nothing,
    /// Payload for the reader.
    Deliver(&'a [u8]),
    /// Answer a PING.
    Pong(u32),
    /// Refuse a stream the server opened.
    Refuse(StreamId, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset(u32),
}

#[derive(Debug, Default)]
struct Half {
    /// SYN_REPLY, or any other frame: the server knows the stream.
    confirmed: bool,
    end: Option<End>,
}

/// State of both streams.
#[derive(Debug, Default)]
pub(super) struct Pair {
    data: Half,
    error: Half,
    text: Vec<u8>,
    any_data: bool,
    local_fin: bool,
    goaway: Option<u32>,
}

impl Pair {
    /// The text, in a vector that grows by doubling.
    pub(super) const MEMORY_MAX: usize = 2 * TEXT_MAX;

    #[cfg(any(test, fuzzing))]
    pub(super) fn memory(&self) -> usize {
        self.text.capacity()
    }

    /// Frames of streams that are not ours or have ended are ignored: servers do send them after a reset.
    pub(super) fn on<'a>(&mut self, event: Event<'a>) -> Action<'a> {
        match event {
            Event::Ping { id } if id % 2 == 0 => return Action::Pong(id),
            Event::Ping { .. } => {} // the answer to one of ours; any frame is a sign of life
            Event::SynStream { stream } => return Action::Refuse(stream, REFUSED_STREAM),
            Event::GoAway { status } => self.goaway = Some(status),
            Event::SynReply { stream, fin } => {
                if let Some(half) = self.half(stream) {
                    half.confirmed = true;
                    if fin {
                        half.end = half.end.or(Some(End::Fin));
                    }
                }
            }
            Event::Reset { stream, status } => {
                if let Some(half) = self.half(stream) {
                    half.confirmed = true;
                    half.end = half.end.or(Some(End::Reset(status)));
                }
            }
            Event::Data { stream, bytes, fin } => {
                let Some(half) = self.half(stream) else { return Action::Nothing };
                if half.end.is_some() {
                    return Action::Nothing;
                }
                half.confirmed = true;
                half.end = fin.then_some(End::Fin);
                if stream == DATA_STREAM && !bytes.is_empty() {
                    self.any_data = true;
                    return Action::Deliver(bytes);
                }
                let room = TEXT_MAX - self.text.len();
                self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
        Action::Nothing
    }

    /// We have sent the end of our data.
    pub(super) fn sent_fin(&mut self) {
        self.local_fin = true;
    }

    /// The connection was closed as planned, over a protocol where that is how both streams end.
    pub(super) fn closed(&mut self) {
        for half in [&mut self.data, &mut self.error] {
            half.end = half.end.or(Some(End::Fin));
        }
    }

    /// The pod may still send; otherwise payload of the data stream is ignored, not delivered.
    pub(super) fn data_open(&self) -> bool {
        self.data.end.is_none()
    }

    /// Both streams were answered: the server's time for that is over. The pod's bytes say so too, because the runtime
    /// connects to the pod only when it has both, and a reply may lie behind bytes that nobody reads.
    pub(super) fn confirmed(&self) -> bool {
        self.any_data || (self.data.confirmed && self.error.confirmed)
    }

    /// The pod's side has ended; only the reason may still be missing. Nothing more will be read by anybody.
    pub(super) fn ending(&self) -> bool {
        self.data.end.is_some() || !self.text.is_empty() || matches!(self.error.end, Some(End::Reset(_)))
    }

    /// Nothing more can come: both streams ended, or the server said it leaves.
    pub(super) fn settled(&self) -> bool {
        self.goaway.is_some() || (self.data.end.is_some() && self.error.end.is_some())
    }

    /// How it ended, once settled or after the wait for the error stream.
    pub(super) fn verdict(&self) -> Result<(), PortForwardError> {
        if !self.text.is_empty() {
            return Err(classify(&self.text));
        }
        let reset = |status| PortForwardError::Reset { status: Some(status), text: String::new() };
        match (self.data.end, self.error.end, self.goaway) {
            (Some(End::Reset(status)), _, _) | (Some(End::Fin), Some(End::Reset(status)), _) => {
                Err(reset(status))
            }
            (Some(End::Fin), _, _) if self.any_data || self.local_fin => Ok(()),
            (Some(End::Fin), _, _) => Err(PortForwardError::ClosedBeforeData),
            (None, _, Some(status)) => Err(PortForwardError::GoAway { status }),
            (None, Some(End::Reset(status)), None) => Err(reset(status)),
            (None, _, None) => Err(reset(CANCEL)), // not reached: nothing says that it is over
        }
    }

    /// How it ended when the connection was lost: what the streams said before goes first.
    pub(super) fn verdict_when_lost(&self, lost: PortForwardError) -> Result<(), PortForwardError> {
        if self.ending() || self.settled() { self.verdict() } else { Err(lost) }
    }

    /// Our streams that the server still considers open, to be reset on leaving.
    pub(super) fn open_streams(&self) -> impl Iterator<Item = StreamId> {
        let open = |half: &Half, id| half.end.is_none().then_some(id);
        [open(&self.data, DATA_STREAM), open(&self.error, ERROR_STREAM)].into_iter().flatten()
    }

    fn half(&mut self, stream: StreamId) -> Option<&mut Half> {
        match stream {
            DATA_STREAM => Some(&mut self.data),
            ERROR_STREAM => Some(&mut self.error),
            _ => None,
        }
    }
}

/// The runtime has no error codes, only text; these pieces are the same in containerd, CRI-O and cri-dockerd (socat).
fn classify(text: &[u8]) -> PortForwardError {
    let text = String::from_utf8_lossy(text).trim().to_owned();
    let lower = text.to_ascii_lowercase();
    let has = |needles: &[&str]| needles.iter().any(|needle| lower.contains(needle));
    if has(&["connection refused"]) {
        PortForwardError::Refused { text }
    } else if has(&[
        "failed to find sandbox",
        "network namespace for sandbox",
        "sandbox container is not running",
    ]) || (has(&["network namespace"]) && has(&["is closed"]))
    {
        PortForwardError::SandboxGone { text }
    } else if has(&["connection reset", "broken pipe"]) {
        PortForwardError::Reset { status: None, text }
    } else {
        PortForwardError::Node { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &[u8] = b"error forwarding port 9 to pod x, uid : failed to execute portforward in network \
        namespace \"/var/run/netns/cni\": failed to connect to localhost:9 inside namespace: dial tcp4 127.0.0.1:9: \
        connect: connection refused";

    fn data(stream: StreamId, bytes: &[u8], fin: bool) -> Event<'_> {
        Event::Data { stream, bytes, fin }
    }

    fn reply(stream: StreamId) -> Event<'static> {
        Event::SynReply { stream, fin: false }
    }

    fn reset(stream: StreamId, status: u32) -> Event<'static> {
        Event::Reset { stream, status }
    }

    fn play(events: &[Event<'_>]) -> Pair {
        let mut pair = Pair::default();
        for event in events {
            pair.on(event.clone());
        }
        pair
    }

    #[test]
    fn replies_in_any_order_and_data_before_its_reply() {
        let mut pair = Pair::default();
        assert_eq!(pair.on(data(3, b"early", false)), Action::Deliver(b"early"));
        assert_eq!(pair.on(data(3, b"", true)), Action::Nothing);
        assert!(pair.confirmed() && pair.ending() && !pair.settled());
        pair.on(reply(3));
        pair.on(reply(1));
        pair.on(data(1, b"", true));
        assert!(pair.confirmed() && pair.settled());
        assert!(pair.verdict().is_ok());
    }

    #[test]
    fn refused_in_all_known_shapes() {
        let shapes: [&[Event<'_>]; 5] = [
            &[reply(3), data(3, b"", true), reply(1), data(1, REFUSED, false), reset(1, 5)],
            &[reply(3), reply(1), data(3, b"", true), data(1, REFUSED, true)],
            &[reply(3), reply(1), data(1, REFUSED, true), data(3, b"", true)],
            &[reply(3), reply(1), data(1, REFUSED, false), reset(3, 5), reset(1, 5)],
            &[
                data(3, b"", true),
                data(1, &REFUSED[..40], false),
                data(1, b"\xff\xfe", false),
                data(1, &REFUSED[40..], false),
                reset(1, 5),
            ],
        ];
        for shape in shapes {
            let pair = play(shape);
            assert!(pair.settled());
            let error = pair.verdict().unwrap_err();
            assert!(matches!(&error, PortForwardError::Refused { .. }), "{error:?}");
        }
    }

    #[test]
    fn text_decides_the_kind() {
        let kind =
            |text: &str| play(&[data(3, b"x", true), data(1, text.as_bytes(), true)]).verdict().unwrap_err();
        assert!(matches!(
            kind("read tcp4 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer"),
            PortForwardError::Reset { status: None, .. }
        ));
        assert!(matches!(
            kind("failed to find sandbox \"abc\" in store: not found"),
            PortForwardError::SandboxGone { .. }
        ));
        assert!(matches!(
            kind("network namespace for sandbox \"abc\" is closed"),
            PortForwardError::SandboxGone { .. }
        ));
        assert!(matches!(kind("socat not found"), PortForwardError::Node { .. }));
        assert!(matches!(
            kind("2021 socat[1] E connect(5, AF=2 127.0.0.1:9, 16): Connection refused"),
            PortForwardError::Refused { .. }
        ));
    }

    #[test]
    fn a_megabyte_of_error_text_is_capped() {
        let mut pair = play(&[data(3, b"", true)]);
        for _ in 0..1024 {
            pair.on(data(1, &[b'e'; 1024], false));
        }
        assert_eq!(pair.text.len(), TEXT_MAX);
        assert_eq!(pair.text.capacity(), TEXT_MAX);
    }

    #[test]
    fn clean_end_without_a_byte_is_told_apart() {
        let pair = play(&[reply(3), reply(1), data(3, b"", true), data(1, b"", true)]);
        assert!(matches!(pair.verdict(), Err(PortForwardError::ClosedBeforeData)));
        let mut upload = play(&[reply(3), reply(1)]);
        upload.sent_fin();
        upload.on(data(3, b"", true));
        upload.on(data(1, b"", true));
        assert!(upload.verdict().is_ok());
    }

    #[test]
    fn resets_keep_their_status() {
        for status in [1, 3, 5, 11] {
            let pair = play(&[reply(3), reply(1), data(3, b"part", false), reset(3, status)]);
            assert!(pair.ending() && !pair.settled());
            let error = pair.verdict().unwrap_err();
            assert!(matches!(error, PortForwardError::Reset { status: Some(s), .. } if s == status));
        }
        let late = play(&[data(3, b"part", false), reset(3, 5), data(1, b"something broke", true)]);
        assert!(matches!(late.verdict(), Err(PortForwardError::Node { .. })));
    }

    #[test]
    fn frames_of_strange_and_ended_streams_are_ignored() {
        let mut pair = play(&[data(3, b"x", true)]);
        for event in [
            data(3, b"after fin", false),
            data(0, b"zero", true),
            data(5, b"never opened", true),
            reset(0, 5),
            reset(7, 5),
            reply(9),
            reset(3, 5),
            Event::Ping { id: 77 },
        ] {
            assert_eq!(pair.on(event), Action::Nothing);
        }
        assert_eq!(pair.data.end, Some(End::Fin));
        assert_eq!(pair.on(Event::SynStream { stream: 2 }), Action::Refuse(2, REFUSED_STREAM));
        assert_eq!(pair.on(Event::Ping { id: 4 }), Action::Pong(4));
    }

    #[test]
    fn goaway_ends_it_but_an_earlier_reset_is_the_reason() {
        let plain = play(&[reply(3), reply(1), Event::GoAway { status: 0 }]);
        assert!(plain.settled());
        assert!(matches!(plain.verdict(), Err(PortForwardError::GoAway { status: 0 })));
        let idle = play(&[reply(3), reply(1), reset(1, 5), reset(3, 5), Event::GoAway { status: 0 }]);
        assert!(matches!(idle.verdict(), Err(PortForwardError::Reset { status: Some(5), .. })));
    }

    #[test]
    fn only_open_streams_are_reset_on_leaving() {
        assert_eq!(play(&[]).open_streams().collect::<Vec<_>>(), [3, 1]);
        assert_eq!(play(&[data(3, b"", true)]).open_streams().collect::<Vec<_>>(), [1]);
    }
}
