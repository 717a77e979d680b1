//! gzip (RFC 1952) without a heap. The bytes were checked by their SHA-256 before, so the checksum inside adds
//! nothing; the length is compared, which finds a file that was cut before it was hashed.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::failure::Failure;
use crate::sys::File;

/// How far back deflate may refer (RFC 1951, 3.2.5).
const WINDOW: usize = 32 * 1024;
/// Two magic bytes, method, flags, time, extra flags, system.
const HEADER_BYTES: usize = 10;
/// CRC-32 and length, both little-endian.
const TRAILER_BYTES: usize = 8;

/// Writes the plain bytes of `packed` into `file`, at most `limit` of them.
pub(crate) fn unpack(packed: &[u8], file: &File, limit: usize) -> Result<(), Failure> {
    let mut input = after_header(packed).ok_or(Failure::Gzip("no gzip header"))?;
    let mut state = DecompressorOxide::new();
    let mut window = [0_u8; WINDOW];
    let (mut position, mut total) = (0, 0_usize);
    loop {
        let (status, read, written) = decompress(&mut state, input, &mut window, position, 0);
        input = &input[read..];
        total += written;
        if total > limit {
            return Err(Failure::TooMuch("a program above 64 MiB"));
        }
        file.write_all(&window[position..position + written]).map_err(Failure::Memory)?;
        position = (position + written) % WINDOW;
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => {
                return Err(Failure::Gzip("it ends too early"));
            }
            _ => return Err(Failure::Gzip("the data is damaged")),
        }
    }
    match input.get(4..TRAILER_BYTES) {
        Some(length) if length == (total as u32).to_le_bytes() => Ok(()),
        Some(_) => Err(Failure::Gzip("its length is not the announced one")),
        None => Err(Failure::Gzip("it ends too early")),
    }
}

/// What follows the header and its optional fields (RFC 1952, 2.3.1).
fn after_header(packed: &[u8]) -> Option<&[u8]> {
    let [0x1f, 0x8b, 8, flags, ..] = *packed else { return None };
    let mut rest = packed.get(HEADER_BYTES..)?;
    if flags & 0x04 != 0 {
        let length = usize::from(u16::from_le_bytes([*rest.first()?, *rest.get(1)?]));
        rest = rest.get(2 + length..)?; // FEXTRA
    }
    for text in [0x08, 0x10] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = &rest[end + 1..]; // FNAME, FCOMMENT
        }
    }
    if flags & 0x02 != 0 {
        rest = rest.get(2..)?; // FHCRC
    }
    Some(rest)
}
