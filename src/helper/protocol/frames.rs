//! Messages as frames: a length (`u32`, big-endian, without itself) and one JSON object.

use std::io::{self, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest frame in bytes, without its length field. The largest plan (4096 + 1024 subnets of at most 46 bytes
/// each, and 256 ports) is 242 KiB.
pub const MAX_FRAME: usize = 256 * 1024;

/// Bytes of the length field.
const LENGTH: usize = 4;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Plan, Reply, Request};
    use super::*;

    const PLAN: &str = r#"{"type":"plan","session":"a","include":["10.0.0.0/8"]}"#;

    fn plan() -> Plan {
        Plan { session: "a".into(), include: vec!["10.0.0.0/8".parse().unwrap()], ..Plan::default() }
    }

    fn frame(json: &str) -> Vec<u8> {
        let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
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
    fn a_long_frame_is_refused_before_it_is_there() {
        let mut frames = Frames::default();
        frames.push(&u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes());
        assert!(matches!(frames.take::<Request>(), Err(Error::TooLong(_))));
        let long = Reply::Failed { step: "x".repeat(MAX_FRAME), message: String::new() };
        assert!(matches!(write(&mut Vec::new(), &long), Err(Error::TooLong(_))));
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
    }
}
