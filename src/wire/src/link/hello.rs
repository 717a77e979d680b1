//! How an attachment begins: the client's HELLO and the server's answer. Pure functions; nothing here waits.
//!
//! ```text
//! HELLO    magic(8) length(1) lowest(1) highest(1) flags(1) token(16) attempt(8) received(8) …
//! WELCOME  magic(8) length(1) 1       version(1) received(8) …
//! REFUSED  magic(8) length(1) 2       reason(1) …
//! ```
//!
//! `length` counts what follows it. A newer end may append fields and set new flags: an older one passes over both,
//! which is what lets the two still talk. What must be understood asks for a higher `lowest`. Numbers are big endian.

use std::fmt;
use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, BytesMut};
use subtle::{Choice, ConstantTimeEq};

/// First bytes of both directions. The first one is neither ASCII (SSH begins with `SSH-`, RFC 4253 §4.2) nor the
/// start of a TLS record or a UTF-8 character; the last one shows whether something on the way rewrites line ends.
pub const MAGIC: [u8; 8] = *b"\x89kslink\n";

/// Versions of the link this build speaks.
pub const VERSIONS: RangeInclusive<u8> = 1..=1;

const HELLO_LENGTH: usize = 3 + TOKEN_LENGTH + 8 + 8;
const WELCOME_LENGTH: usize = 1 + 1 + 8;
const REFUSED_LENGTH: usize = 1 + 1;
const TOKEN_LENGTH: usize = 16;

const FLAG_RESUME: u8 = 1;
const WELCOME: u8 = 1;
const REFUSED: u8 = 2;

/// The name of a link and the right to attach to it: 128 random bits. A thief of it can break the link, no more: SSH
/// above still authenticates both ends.
#[derive(Clone, Copy)]
pub struct Token([u8; TOKEN_LENGTH]);

/// What the client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Versions the client speaks.
    pub versions: RangeInclusive<u8>,
    /// Which link.
    pub token: Token,
    /// The client was welcomed on this link before: a server that does not know it must not begin a new one.
    pub resume: bool,
    /// Counts the client's attempts on this link from 1 on: a greeting that was long under way must not fence a newer one.
    pub attempt: u64,
    /// Link bytes the client has received so far.
    pub received: u64,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Attached; frames follow.
    Welcome {
        /// The version both speak from here on.
        version: u8,
        /// Link bytes the server has received so far.
        received: u64,
    },
    /// Not attached; the connection ends.
    Refused(Refusal),
}

/// Why a server does not let a client attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The server was restarted, or kept the link as long as it keeps one: what was in flight is lost.
    #[error("the pod does not know this session any more")]
    UnknownToken,
    /// No room for one more link.
    #[error("the pod holds as many sessions as it may")]
    TooMany,
    /// No version in common.
    #[error("the pod speaks no version of the link that we speak")]
    Version,
    /// The client's offset is not one it can have.
    #[error("the pod says our offset is impossible")]
    Offset,
    /// A newer attempt of the same client came first. The link goes on.
    #[error("a newer connection carries the session")]
    Superseded,
    /// A reason of a newer server.
    #[error("the pod refused for a reason unknown here ({0})")]
    Other(u8),
}

/// The first bytes are not what they must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not this protocol at all.
    #[error("the peer does not speak the link")]
    Magic,
    /// Not this protocol but SSH.
    #[error("the peer speaks plain SSH, not the link")]
    Ssh,
    /// Too short for what it must hold.
    #[error("the peer's greeting has {0} bytes, too few")]
    Length(usize),
    /// Neither welcome nor refusal.
    #[error("the peer's answer is of the unknown kind {0}")]
    Kind(u8),
    /// The lowest version is above the highest, or is 0.
    #[error("the peer's versions {0} to {1} are no range")]
    Versions(u8, u8),
    /// A link that begins cannot have received anything.
    #[error("the peer begins a link but says it received {0} bytes of it")]
    Offset(u64),
    /// Attempts count from 1.
    #[error("the peer's attempt has no number")]
    Attempt,
    /// The server chose a version we did not offer.
    #[error("the peer chose version {0} of the link, which was not offered")]
    NotOffered(u8),
}

impl Token {
    /// A new random token.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut token = [0; TOKEN_LENGTH];
        getrandom::fill(&mut token)?;
        Ok(Self(token))
    }

    /// The token of these bytes.
    pub const fn from_bytes(bytes: [u8; TOKEN_LENGTH]) -> Self {
        Self(bytes)
    }
}

impl ConstantTimeEq for Token {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

impl Hello {
    /// Appends the greeting to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&MAGIC);
        out.put_u8(HELLO_LENGTH as u8);
        out.put_u8(*self.versions.start());
        out.put_u8(*self.versions.end());
        out.put_u8(if self.resume { FLAG_RESUME } else { 0 });
        out.put_slice(&self.token.0);
        out.put_u64(self.attempt);
        out.put_u64(self.received);
    }

    /// Takes a greeting off the front of `input`; `None` while it is incomplete.
    ///
    /// # Errors
    /// As soon as the bytes cannot become a greeting.
    pub fn decode(input: &mut BytesMut) -> Result<Option<Self>, HelloError> {
        let Some(mut body) = body(input, HELLO_LENGTH)? else { return Ok(None) };
        let (lowest, highest) = (body.get_u8(), body.get_u8());
        if lowest == 0 || lowest > highest {
            return Err(HelloError::Versions(lowest, highest));
        }
        let resume = body.get_u8() & FLAG_RESUME != 0;
        let mut token = [0; TOKEN_LENGTH];
        body.copy_to_slice(&mut token);
        let (attempt, received) = (body.get_u64(), body.get_u64());
        if attempt == 0 {
            return Err(HelloError::Attempt);
        }
        if !resume && received != 0 {
            return Err(HelloError::Offset(received));
        }
        Ok(Some(Self { versions: lowest..=highest, token: Token(token), resume, attempt, received }))
    }
}

impl Answer {
    /// Appends the answer to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&MAGIC);
        match self {
            Self::Welcome { version, received } => {
                out.put_slice(&[WELCOME_LENGTH as u8, WELCOME, *version]);
                out.put_u64(*received);
            }
            Self::Refused(reason) => out.put_slice(&[REFUSED_LENGTH as u8, REFUSED, reason.code()]),
        }
    }

    /// Takes an answer to a client that offered `versions` off the front of `input`; `None` while it is incomplete.
    ///
    /// # Errors
    /// As soon as the bytes cannot become an answer.
    pub fn decode(input: &mut BytesMut, versions: &RangeInclusive<u8>) -> Result<Option<Self>, HelloError> {
        let Some(mut body) = body(input, REFUSED_LENGTH)? else { return Ok(None) };
        match body.get_u8() {
            WELCOME if body.len() + 1 < WELCOME_LENGTH => Err(HelloError::Length(body.len() + 1)),
            WELCOME => {
                let version = body.get_u8();
                if !versions.contains(&version) {
                    return Err(HelloError::NotOffered(version));
                }
                Ok(Some(Self::Welcome { version, received: body.get_u64() }))
            }
            REFUSED => Ok(Some(Self::Refused(Refusal::from_code(body.get_u8())))),
            kind => Err(HelloError::Kind(kind)),
        }
    }
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Self::UnknownToken => 1,
            Self::TooMany => 2,
            Self::Version => 3,
            Self::Offset => 4,
            Self::Superseded => 5,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::UnknownToken,
            2 => Self::TooMany,
            3 => Self::Version,
            4 => Self::Offset,
            5 => Self::Superseded,
            code => Self::Other(code),
        }
    }
}

/// The highest version both ends speak.
pub fn negotiate(ours: &RangeInclusive<u8>, theirs: &RangeInclusive<u8>) -> Option<u8> {
    let highest = *ours.end().min(theirs.end());
    (highest >= *ours.start() && highest >= *theirs.start()).then_some(highest)
}

/// Takes magic, length and body off the front of `input`.
fn body(input: &mut BytesMut, least: usize) -> Result<Option<BytesMut>, HelloError> {
    let seen = input.len().min(MAGIC.len());
    if input[..seen] != MAGIC[..seen] {
        let ssh = input[..seen.min(4)] == b"SSH-"[..seen.min(4)];
        return Err(if ssh { HelloError::Ssh } else { HelloError::Magic });
    }
    let Some(&length) = input.get(MAGIC.len()) else { return Ok(None) };
    let length = usize::from(length);
    if length < least {
        return Err(HelloError::Length(length));
    }
    if input.len() < MAGIC.len() + 1 + length {
        return Ok(None);
    }
    input.advance(MAGIC.len() + 1);
    Ok(Some(input.split_to(length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: Token = Token([7; TOKEN_LENGTH]);

    fn hello() -> Hello {
        Hello { versions: 1..=1, token: TOKEN, resume: true, attempt: 2, received: 0x0102_0304_0506_0708 }
    }

    fn bytes(encode: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        encode(&mut out);
        out
    }

    #[test]
    fn the_greeting_is_these_bytes_for_ever() {
        let golden = b"\x89kslink\n\x23\x01\x01\x01\
            \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
            \0\0\0\0\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(bytes(|out| hello().encode(out)), golden[..]);
        let welcome = Answer::Welcome { version: 1, received: 9 };
        assert_eq!(bytes(|out| welcome.encode(out)), b"\x89kslink\n\x0a\x01\x01\0\0\0\0\0\0\0\x09"[..]);
        let refused = Answer::Refused(Refusal::UnknownToken);
        assert_eq!(bytes(|out| refused.encode(out)), b"\x89kslink\n\x02\x02\x01"[..]);
    }

    #[test]
    fn greetings_come_back_from_any_prefix_only_when_complete() {
        let whole = bytes(|out| hello().encode(out));
        for length in 0..whole.len() {
            assert_eq!(Hello::decode(&mut BytesMut::from(&whole[..length])), Ok(None), "{length}");
        }
        let mut input = whole.clone();
        input.put_slice(b"next");
        assert_eq!(Hello::decode(&mut input), Ok(Some(hello())));
        assert_eq!(input, b"next"[..]);
        for answer in
            [Answer::Welcome { version: 1, received: u64::MAX }, Answer::Refused(Refusal::Other(200))]
        {
            let whole = bytes(|out| answer.encode(out));
            for length in 0..whole.len() {
                let decoded = Answer::decode(&mut BytesMut::from(&whole[..length]), &VERSIONS);
                assert_eq!(decoded, Ok(None), "{length}");
            }
            assert_eq!(Answer::decode(&mut whole.clone(), &VERSIONS), Ok(Some(answer)));
        }
    }

    #[test]
    fn an_older_server_and_a_newer_client_agree() {
        // The client of the future: more versions, an unknown flag, a field we do not know.
        let mut newer = bytes(|out| Hello { versions: 1..=3, ..hello() }.encode(out));
        newer[8] += 5;
        newer[11] |= 0x80;
        newer.put_slice(b"later");
        let hello = Hello::decode(&mut newer).unwrap().unwrap();
        assert!(newer.is_empty() && hello.resume);
        assert_eq!(negotiate(&(1..=1), &hello.versions), Some(1));
        // The server of the future answers the same way.
        let mut answer = bytes(|out| Answer::Welcome { version: 1, received: 4 }.encode(out));
        answer[8] += 3;
        answer.put_slice(b"new");
        let answer = Answer::decode(&mut answer, &VERSIONS).unwrap().unwrap();
        assert_eq!(answer, Answer::Welcome { version: 1, received: 4 });
        assert_eq!(negotiate(&(2..=5), &(1..=3)), Some(3));
        assert_eq!(negotiate(&(1..=3), &(2..=2)), Some(2));
        assert_eq!(negotiate(&(4..=5), &(1..=3)), None);
        assert_eq!(negotiate(&(1..=1), &(2..=3)), None);
    }

    #[test]
    fn impossible_greetings_are_refused() {
        let broken = |change: fn(&mut BytesMut)| {
            let mut input = bytes(|out| hello().encode(out));
            change(&mut input);
            Hello::decode(&mut input).unwrap_err()
        };
        assert_eq!(broken(|b| b[8] = 34), HelloError::Length(34));
        assert_eq!(broken(|b| b[9] = 0), HelloError::Versions(0, 1));
        assert_eq!(broken(|b| b[9] = 2), HelloError::Versions(2, 1));
        assert_eq!(broken(|b| b[35] = 0), HelloError::Attempt);
        assert_eq!(broken(|b| b[11] = 0), HelloError::Offset(0x0102_0304_0506_0708));
        assert_eq!(Hello::decode(&mut BytesMut::from("SSH-2.0-x")), Err(HelloError::Ssh));
        assert_eq!(Hello::decode(&mut BytesMut::from("S")), Err(HelloError::Ssh));
        assert_eq!(Hello::decode(&mut BytesMut::from("GET /")), Err(HelloError::Magic));
        let mut answer = bytes(|out| Answer::Welcome { version: 2, received: 0 }.encode(out));
        assert_eq!(Answer::decode(&mut answer, &VERSIONS), Err(HelloError::NotOffered(2)));
        let mut short = BytesMut::from(&b"\x89kslink\n\x04\x01\x01\0\0"[..]);
        assert_eq!(Answer::decode(&mut short, &VERSIONS), Err(HelloError::Length(4)));
        let mut kind = BytesMut::from(&b"\x89kslink\n\x02\x09\x01"[..]);
        assert_eq!(Answer::decode(&mut kind, &VERSIONS), Err(HelloError::Kind(9)));
    }

    #[test]
    fn the_token_is_random_and_not_shown() {
        let (one, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(one, one.clone());
        assert_eq!(format!("{one:?}"), "Token(secret)");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(input: Vec<u8>, after_magic: bool) {
            let mut garbage = BytesMut::new();
            if after_magic {
                garbage.put_slice(&MAGIC);
            }
            garbage.put_slice(&input);
            let _ = Hello::decode(&mut garbage.clone());
            let _ = Answer::decode(&mut garbage, &VERSIONS);
        }
    }
}
