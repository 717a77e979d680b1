//! Golden bytes taken from a real server, hostile frames, and "any split gives the same events".

use proptest::prelude::*;

use super::*;

/// An event without its borrow; neighbouring pieces of one stream's data joined.
#[derive(Debug, PartialEq, Eq)]
enum Owned {
    SynStream(u32),
    SynReply(u32, bool),
    Reset(u32, u32),
    Ping(u32),
    GoAway(u32),
    Data(u32, Vec<u8>, bool),
}

fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Owned>, SpdyError> {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    for mut part in parts {
        while !part.is_empty() {
            let (taken, event) = decoder.next(part)?;
            assert!(taken > 0, "the decoder must make progress");
            part = &part[taken..];
            let Some(event) = event else { continue };
            match event {
                Event::Data { stream, bytes, fin } => match events.last_mut() {
                    Some(Owned::Data(last, joined, ended)) if *last == stream && !*ended => {
                        joined.extend(bytes);
                        *ended = fin;
                    }
                    _ => events.push(Owned::Data(stream, bytes.to_vec(), fin)),
                },
                Event::SynStream { stream } => events.push(Owned::SynStream(stream)),
                Event::SynReply { stream, fin } => events.push(Owned::SynReply(stream, fin)),
                Event::Reset { stream, status } => events.push(Owned::Reset(stream, status)),
                Event::Ping { id } => events.push(Owned::Ping(id)),
                Event::GoAway { status } => events.push(Owned::GoAway(status)),
            }
        }
    }
    Ok(events)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

/// The opening of a port-forward to port 8000, as accepted by spdystream 0.5.1 behind a real API server.
#[test]
fn opening_equals_the_golden_bytes() {
    let mut out = Vec::new();
    let mut blocks = HeaderBlocks::default();
    let headers = |kind| [("streamtype", kind), ("port", "8000"), ("requestid", "0")];
    blocks.syn_stream(&mut out, 1, false, &headers("error"));
    out.extend(data_header(1, FIN, 0));
    blocks.syn_stream(&mut out, 3, false, &headers("data"));
    out.extend(data_header(3, 0, 5));
    out.extend(b"hello");
    let golden = hex("80030001 00000057 00000001 00000000 0000
        78bbe3c6a7c2 00 3d00 c2ff
        00000003 0000000a 73747265616d74797065 00000005 6572726f72
        00000004 706f7274 00000004 38303030 00000009 726571756573746964 00000001 30
        000000ffff
        00000001 01000000
        80030001 00000050 00000003 00000000 0000
        00 3c00 c3ff
        00000003 0000000a 73747265616d74797065 00000004 64617461
        00000004 706f7274 00000004 38303030 00000009 726571756573746964 00000001 30
        000000ffff
        00000003 00000005 68656c6c6f");
    assert_eq!(out, golden);
}

#[test]
fn small_frames_equal_what_go_writes() {
    let mut out = Vec::new();
    ping(&mut out, 1);
    rst_stream(&mut out, 3, CANCEL);
    assert_eq!(out, hex("80030006 00000004 00000001  80030003 00000008 00000003 00000005"));
    assert_eq!(data_header(3, FIN, 0x01_02_03), [0, 0, 0, 3, 1, 1, 2, 3]);
}

#[test]
fn answer_of_a_real_server() {
    let bytes = hex("80030002 00000014 00000003 78f9e3c6a7c2 62606060 00000000ffff
        80030002 0000000c 00000001 026100000000ffff
        00000003 00000005 68656c6c6f
        80030007 00000008 00000003 00000000");
    let expected = [
        Owned::SynReply(3, false),
        Owned::SynReply(1, false),
        Owned::Data(3, b"hello".to_vec(), false),
        Owned::GoAway(0),
    ];
    assert_eq!(decode([&bytes[..]].into_iter()).unwrap(), expected);
    assert_eq!(decode(bytes.chunks(1)).unwrap(), expected);
}

/// 2000 header blocks are one valid zlib stream: every block inflates to its own text.
#[test]
fn header_blocks_stay_one_zlib_stream() {
    let mut blocks = HeaderBlocks::default();
    let mut inflate = flate2::Decompress::new(false);
    for number in 0..2000u32 {
        let mut out = Vec::new();
        let id = number.to_string();
        blocks.syn_stream(&mut out, number * 2 + 1, false, &[("requestid", &id)]);
        let mut block = &out[HEADER + 10..];
        if number == 0 {
            block = block.strip_prefix(&ZLIB_HEADER[..]).expect("zlib header first");
        }
        let mut plain = Vec::with_capacity(256);
        inflate.decompress_vec(block, &mut plain, flate2::FlushDecompress::Sync).unwrap();
        assert_eq!(plain, [&be32(1)[..], &be32(9), b"requestid", &be32(id.len()), id.as_bytes()].concat());
        assert!(out.ends_with(&SYNC_FLUSH));
    }
}

#[test]
fn unknown_and_useless_frames_are_skipped() {
    for kind in [4u16, 5, 8, 9, 10, 0x7fff] {
        let mut bytes = Vec::new();
        for length in [0usize, 3, 8, 700] {
            control_header(&mut bytes, kind, 0, length);
            bytes.extend(vec![0xaa; length]);
        }
        ping(&mut bytes, 2);
        assert_eq!(decode(bytes.chunks(7)).unwrap(), [Owned::Ping(2)], "type {kind}");
    }
}

#[test]
fn syn_reply_blocks_are_never_inflated() {
    let mut bytes = Vec::new();
    control_header(&mut bytes, SYN_REPLY, FIN, 4 + 1000);
    bytes.extend(1u32.to_be_bytes());
    bytes.extend([0xff; 1000]); // no zlib stream at all
    assert_eq!(decode(bytes.chunks(13)).unwrap(), [Owned::SynReply(1, true)]);
}

#[test]
fn wrong_lengths_and_versions_are_errors() {
    let error = |kind: u16, length: usize| {
        let mut bytes = Vec::new();
        control_header(&mut bytes, kind, 0, length);
        decode(bytes.chunks(3)).unwrap_err()
    };
    for (kind, length) in
        [(PING, 8), (PING, 0), (RST_STREAM, 4), (GOAWAY, 12), (SYN_REPLY, 3), (SYN_STREAM, 9)]
    {
        assert_eq!(error(kind, length), SpdyError::Length { kind, length });
    }
    assert_eq!(error(SYN_REPLY, 65_537), SpdyError::TooLong { kind: SYN_REPLY, length: 65_537 });
    let version = decode([&hex("80020006 00000004")[..]].into_iter()).unwrap_err();
    assert_eq!(version, SpdyError::Version(2));
}

/// 16 MiB announced: what is there comes out at once, and the decoder keeps nothing of it.
#[test]
fn a_huge_announced_length_is_passed_through() {
    let mut decoder = Decoder::default();
    assert_eq!(decoder.next(&hex("00000003 00ffffff")).unwrap(), (8, None));
    for _ in 0..3 {
        let (taken, event) = decoder.next(b"abc").unwrap();
        assert_eq!((taken, event), (3, Some(Event::Data { stream: 3, bytes: b"abc", fin: false })));
    }
    assert_eq!(decoder.in_data(), Some(3));
    assert!(!decoder.at_boundary());
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0u32..6, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(id, fin, payload)| {
                let mut bytes = data_header(id, u8::from(fin), payload.len()).to_vec();
                bytes.extend(payload);
                bytes
            }
        ),
        any::<u32>().prop_map(|id| {
            let mut bytes = Vec::new();
            ping(&mut bytes, id);
            bytes
        }),
        (1u32..6, any::<u32>()).prop_map(|(id, status)| {
            let mut bytes = Vec::new();
            rst_stream(&mut bytes, id, status);
            bytes
        }),
        (0u16..12, 10usize..30).prop_map(|(kind, length)| {
            let kind = if matches!(kind, RST_STREAM | PING | GOAWAY) { 8 } else { kind };
            let mut bytes = Vec::new();
            control_header(&mut bytes, kind, 0, length);
            bytes.extend(vec![7; length]);
            bytes
        }),
    ]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_events(
        frames in proptest::collection::vec(frame(), 0..20),
        cuts in proptest::collection::vec(1usize..20, 1..50),
    ) {
        let bytes = frames.concat();
        let whole = decode([&bytes[..]].into_iter()).unwrap();
        let mut rest = &bytes[..];
        let mut parts = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (head, tail) = rest.split_at((*cut).min(rest.len()));
            parts.push(head);
            rest = tail;
        }
        prop_assert_eq!(decode(parts.into_iter()).unwrap(), whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(bytes.chunks(5));
    }
}
