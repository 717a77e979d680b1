//! The words between the user's `kshuttle` and its root helper, and the frames they travel in.
//!
//! A frame is its length (`u32`, big-endian, without itself) and one JSON object with a `type`. Both sides refuse
//! what they do not know: another field, another type, a frame longer than [`MAX_FRAME`]. The order of the
//! conversation stands in the crate's documentation; what a plan may say is checked in [`crate::plan`].

use std::io::{self, Write};

use ipnet::IpNet;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize};

/// The conversation's version, said in [`Reply::Hello`]. The user side refuses any other: both programs are
/// installed together.
pub const VERSION: u32 = 1;

/// Longest frame in bytes, without its length field. The largest plan (4096 + 1024 subnets of at most 46 bytes
/// each) is 230 KiB.
pub const MAX_FRAME: usize = 256 * 1024;

/// Bytes of the length field.
const LENGTH: usize = 4;

/// What the user side says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// The only plan of this conversation. Answered by [`Reply::Ready`] or [`Reply::Failed`].
    Plan(Plan),
    /// Undo now and answer [`Reply::Stopped`]. End of input does the same without an answer.
    Stop {},
}

/// What the helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Reply {
    /// First frame of every conversation.
    Hello {
        /// [`VERSION`] of the helper.
        protocol: u32,
        /// The helper's package version, for people.
        version: String,
    },
    /// The rules stand, and were read back.
    Ready {
        /// Who redirects: `nft`.
        method: String,
        /// The table's name in the family `inet`.
        table: String,
    },
    /// Nothing (or nothing any more) is redirected. The helper ends after this.
    Failed {
        /// Which part failed: `privilege`, `protocol`, `plan`, `nft`, `watchdog`, `standing`, `rules`, `verify`, `conntrack`
        /// or `lost`.
        step: String,
        /// The chain of causes in one line, for people.
        message: String,
    },
    /// The answer to [`Request::Stop`]; everything is undone, or `failures` says what is not.
    Stopped {
        /// What the undo saw.
        report: UndoReport,
    },
}

/// What is to be redirected, as data: the helper writes every command itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Names the table (`kshuttle_<session>`): 1 to 32 of `a-z`, `0-9` and `-`. Two sessions of one machine must differ.
    #[serde(deserialize_with = "field::session")]
    pub session: String,
    /// Destinations to redirect, at most [`crate::plan::MAX_INCLUDE`].
    #[serde(deserialize_with = "field::include")]
    pub include: Vec<IpNet>,
    /// Destinations to leave alone although included, at most [`crate::plan::MAX_EXCLUDE`].
    #[serde(default, deserialize_with = "field::exclude")]
    pub exclude: Vec<IpNet>,
    /// Port on 127.0.0.1 that takes IPv4 connections; needed if `include` has an IPv4 subnet.
    #[serde(default, deserialize_with = "field::listener_v4")]
    pub listener_v4: Option<u16>,
    /// Port on ::1 that takes IPv6 connections; needed if `include` has an IPv6 subnet.
    #[serde(default, deserialize_with = "field::listener_v6")]
    pub listener_v6: Option<u16>,
}

/// What the undo did and what it could not do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoReport {
    /// Milliseconds spent waiting for redirected connections to end.
    pub waited_ms: u64,
    /// Redirected connections that had not ended when the wait was over; they are cut off without a reset.
    pub still_open: u64,
    /// Conntrack entries deleted.
    pub entries_deleted: u64,
    /// Packets that the guard chain dropped over the whole session: they were meant for the cluster and would have
    /// gone to the local network.
    pub guard_dropped: u64,
    /// Steps that failed, in order; empty means everything is as it was before.
    pub failures: Vec<StepFailure>,
}

/// One step of the undo that failed. The others were run all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepFailure {
    /// `flush`, `wait`, `entries`, `counter`, `table`, `nft` or `watchdog`.
    pub step: String,
    /// The chain of causes in one line.
    pub message: String,
}

/// Why a frame was not written, or not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side announced, or we were about to send, more than [`MAX_FRAME`] bytes.
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME} allowed")]
    TooLong(usize),
    /// The frame is not one of the messages above.
    #[error("a frame is not understood")]
    Malformed(#[source] serde_json::Error),
    /// The other side is gone, or the pipe failed.
    #[error("a frame cannot be written")]
    Write(#[source] io::Error),
}

/// Writes one message as one frame, in one write.
pub fn write<M: Serialize>(to: &mut impl Write, message: &M) -> Result<(), Error> {
    let mut frame = vec![0; LENGTH];
    serde_json::to_writer(&mut frame, message).map_err(Error::Malformed)?;
    let length = frame.len() - LENGTH;
    let announced =
        u32::try_from(length).ok().filter(|_| length <= MAX_FRAME).ok_or(Error::TooLong(length))?;
    frame[..LENGTH].copy_from_slice(&announced.to_be_bytes());
    to.write_all(&frame).and_then(|()| to.flush()).map_err(Error::Write)
}

/// Puts frames together from bytes as they come, in pieces of any size. Holds at most one frame and what came with it.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Takes bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, `None` if more bytes are needed. After an error the conversation is over: there is no way
    /// to find the next frame.
    pub fn take<M: DeserializeOwned>(&mut self) -> Result<Option<M>, Error> {
        let Some((announced, rest)) = self.bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*announced) as usize;
        if length > MAX_FRAME {
            return Err(Error::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(frame).map_err(Error::Malformed)?;
        self.bytes.drain(..LENGTH + length);
        Ok(Some(message))
    }
}

/// serde names a field only when it is missing or unknown; these name it when its value is wrong, too.
mod field {
    use super::*;

    fn named<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: &str, from: D) -> Result<T, D::Error> {
        T::deserialize(from).map_err(|error| D::Error::custom(format_args!("{field}: {error}")))
    }

    macro_rules! named_fields {
        ($($field:ident: $type:ty),* $(,)?) => {$(
            pub(super) fn $field<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                named(stringify!($field), from)
            }
        )*};
    }

    named_fields! {
        session: String,
        include: Vec<IpNet>,
        exclude: Vec<IpNet>,
        listener_v4: Option<u16>,
        listener_v6: Option<u16>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(json: &str) -> Vec<u8> {
        let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    }

    fn read(json: &str) -> Result<Option<Request>, String> {
        let mut frames = Frames::default();
        frames.push(&frame(json));
        frames.take().map_err(|error| match error {
            Error::Malformed(cause) => cause.to_string(),
            other => other.to_string(),
        })
    }

    const PLAN: &str = r#"{"type":"plan","session":"a-1","include":["10.0.0.0/8","fd00::/8"],"exclude":["10.1.0.0/16"],"listener_v4":1024,"listener_v6":1025}"#;

    fn plan() -> Plan {
        Plan {
            session: "a-1".into(),
            include: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            exclude: vec!["10.1.0.0/16".parse().unwrap()],
            listener_v4: Some(1024),
            listener_v6: Some(1025),
        }
    }

    #[test]
    fn the_words_are_these() {
        let text = |reply: &Reply| serde_json::to_string(reply).unwrap();
        assert_eq!(serde_json::to_string(&Request::Plan(plan())).unwrap(), PLAN);
        assert_eq!(serde_json::to_string(&Request::Stop {}).unwrap(), r#"{"type":"stop"}"#);
        assert_eq!(
            text(&Reply::Hello { protocol: 1, version: "0.1.0".into() }),
            r#"{"type":"hello","protocol":1,"version":"0.1.0"}"#
        );
        assert_eq!(
            text(&Reply::Ready { method: "nft".into(), table: "kshuttle_a-1".into() }),
            r#"{"type":"ready","method":"nft","table":"kshuttle_a-1"}"#
        );
        assert_eq!(
            text(&Reply::Failed { step: "plan".into(), message: "session: …".into() }),
            r#"{"type":"failed","step":"plan","message":"session: …"}"#
        );
        let failures = vec![StepFailure { step: "wait".into(), message: "m".into() }];
        assert_eq!(
            text(&Reply::Stopped { report: UndoReport { failures, ..UndoReport::default() } }),
            concat!(
                r#"{"type":"stopped","report":{"waited_ms":0,"still_open":0,"entries_deleted":0,"guard_dropped":0,"#,
                r#""failures":[{"step":"wait","message":"m"}]}}"#
            )
        );
    }

    #[test]
    fn messages_come_back_as_they_went() {
        for request in [Request::Plan(plan()), Request::Stop {}] {
            let mut bytes = Vec::new();
            write(&mut bytes, &request).unwrap();
            let mut frames = Frames::default();
            for byte in &bytes[..bytes.len() - 1] {
                frames.push(std::slice::from_ref(byte));
                assert_eq!(frames.take::<Request>().unwrap(), None);
            }
            frames.push(&bytes[bytes.len() - 1..]);
            assert_eq!(frames.take().unwrap(), Some(request));
            assert_eq!(frames.take::<Request>().unwrap(), None);
        }
    }

    #[test]
    fn two_frames_in_one_read_are_two_messages() {
        let mut frames = Frames::default();
        frames.push(&[frame(PLAN), frame(r#"{"type":"stop"}"#)].concat());
        assert_eq!(frames.take().unwrap(), Some(Request::Plan(plan())));
        assert_eq!(frames.take().unwrap(), Some(Request::Stop {}));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (json, says) in [
            (r#"{"type":"stop","x":1}"#, "unknown field `x`"),
            (r#"{"type":"run","command":"sh"}"#, "unknown variant `run`"),
            (r#"{"type":"plan","session":"a","include":[],"command":"sh"}"#, "unknown field `command`"),
            (r#"{"session":"a","include":[]}"#, "missing field `type`"),
            (r#"{"type":"plan","include":[]}"#, "missing field `session`"),
            ("[]", "missing field `type`"),
            ("", "EOF"),
            (r#"{"type":"stop"} x"#, "trailing characters"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
    }

    #[test]
    fn a_wrong_value_names_its_field() {
        for (field, value) in [
            ("session", "7"),
            ("include", r#"["10.0.0.0/33"]"#),
            ("include", r#"["10.0.0.0/8; flush ruleset"]"#),
            ("exclude", r#""10.0.0.0/8""#),
            ("listener_v4", "65536"),
            ("listener_v6", "-1"),
        ] {
            let mut plan: serde_json::Value = serde_json::from_str(PLAN).unwrap();
            plan[field] = serde_json::from_str(value).unwrap();
            let error = read(&plan.to_string()).unwrap_err();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
        }
    }

    #[test]
    fn a_long_frame_is_refused_before_it_is_there() {
        let mut frames = Frames::default();
        frames.push(&u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes());
        assert!(matches!(frames.take::<Request>(), Err(Error::TooLong(_))));
        let long = Reply::Failed { step: "x".repeat(MAX_FRAME), message: String::new() };
        assert!(matches!(write(&mut Vec::new(), &long), Err(Error::TooLong(_))));
    }

    #[test]
    fn the_largest_plan_fits() {
        let subnet: IpNet = "1111:2222:3333:4444:5555:6666:7777:8888/128".parse().unwrap();
        let plan = Plan {
            session: "x".repeat(32),
            include: vec![subnet; crate::plan::MAX_INCLUDE],
            exclude: vec![subnet; crate::plan::MAX_EXCLUDE],
            ..plan()
        };
        write(&mut Vec::new(), &Request::Plan(plan)).unwrap();
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..16)) {
            let mut frames = Frames::default();
            for piece in pieces {
                frames.push(&piece);
                if frames.take::<Request>().is_err() {
                    break;
                }
            }
        }

        #[test]
        fn hostile_json_never_panics(json in r#"\{("type":"(plan|stop)"|"include":\[("[0-9a-f:./]{0,20}",?){0,3}\]|"session":"[a-z;{}]{0,9}"|"listener_v4":[0-9]{0,7}|,){0,9}\}"#) {
            let mut frames = Frames::default();
            frames.push(&frame(&json));
            if let Ok(Some(Request::Plan(plan))) = frames.take::<Request>() {
                let _ = crate::plan::Plan::check(plan);
            }
        }
    }
}
