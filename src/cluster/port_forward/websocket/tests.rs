use proptest::prelude::*;

use super::*;

fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<(Vec<u8>, Vec<Event>), WebSocketError> {
    let mut decoder = Decoder::default();
    let (mut payload, mut others) = (Vec::new(), Vec::new());
    for mut part in parts {
        while !part.is_empty() {
            let (taken, event) = decoder.next(part)?;
            part = &part[taken..];
            match event {
                Some(Event::Payload { count, .. }) => {
                    payload.extend(&part[..count]);
                    decoder.took(count);
                    part = &part[count..];
                }
                Some(other) => others.push(other),
                None => assert!(taken > 0, "the decoder must make progress"),
            }
        }
    }
    Ok((payload, others))
}

fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        0..126 => frame.push(payload.len() as u8),
        126..65536 => {
            frame.push(126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

#[test]
fn fragments_empty_continuations_and_pings_between() {
    let bytes = [
        server_frame(0x82, b""),
        server_frame(0x02, b"one "),
        server_frame(0x89, b"are you there"),
        server_frame(0x00, b"two "),
        server_frame(0x8a, b""),
        server_frame(0x80, b""),
        server_frame(0x82, &[b'x'; 70_000]),
        server_frame(0x88, b"\x03\xf3bad"),
    ]
    .concat();
    let (payload, events) = decode([&bytes[..]].into_iter()).unwrap();
    assert_eq!(payload, [&b"one two "[..], &[b'x'; 70_000]].concat());
    let close = Event::Close { code: 1011, reason: "bad".into() };
    assert_eq!(events, [Event::Ping(b"are you there".to_vec()), close]);
    assert_eq!(decode(bytes.chunks(1)).unwrap(), (payload, events));
}

#[test]
fn where_messages_begin() {
    let bytes = [
        server_frame(0x82, b"aa"),
        server_frame(0x02, b""), // begins with an empty fragment
        server_frame(0x89, b"p"),
        server_frame(0x00, b"bb"),
        server_frame(0x80, b"bb"),
        server_frame(0x82, b""),
        server_frame(0x82, b"cc"),
    ]
    .concat();
    for size in [1, 2, 3, 100] {
        let (mut decoder, mut text) = (Decoder::default(), String::new());
        for mut part in bytes.chunks(size) {
            while !part.is_empty() {
                let (taken, event) = decoder.next(part).unwrap();
                part = &part[taken..];
                if let Some(Event::Payload { count, begins }) = event {
                    text.push_str(if begins { "|" } else { "" });
                    text.push_str(std::str::from_utf8(&part[..count]).unwrap());
                    decoder.took(count);
                    part = &part[count..];
                }
            }
        }
        assert_eq!(text, "|aa|bbbb|cc", "parts of {size}");
    }
}

#[test]
fn what_a_tunnel_never_carries_is_an_error() {
    let cases: [(&[u8], WebSocketError); 9] = [
        (&[0x81, 1, b'x'], WebSocketError::Opcode(1)),
        (&[0x83, 0], WebSocketError::Opcode(3)),
        (&[0xc2, 0], WebSocketError::Reserved),
        (&[0x82, 0x81, 0, 0, 0, 0, 0], WebSocketError::Masked),
        (&[0x80, 0], WebSocketError::Fragments),
        (&[0x02, 0, 0x82, 0], WebSocketError::Fragments),
        (&[0x09, 0], WebSocketError::Length),
        (&[0x89, 126, 0, 126], WebSocketError::Length),
        (&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], WebSocketError::Length),
    ];
    for (bytes, error) in cases {
        assert_eq!(decode(bytes.chunks(1)).unwrap_err(), error, "{bytes:02x?}");
    }
}

#[test]
fn masking_equals_the_definition() {
    let key = [1, 2, 3, 4];
    for length in 0..40usize {
        let plain: Vec<u8> = (0..length as u8).collect();
        let mut fast = plain.clone();
        mask(&mut fast, key);
        let slow: Vec<u8> = plain.iter().enumerate().map(|(i, b)| b ^ key[i % 4]).collect();
        assert_eq!(fast, slow);
    }
}

#[test]
fn sealed_messages_are_minimal_and_masked() {
    for (length, size) in [(0, 6), (125, 6), (126, 8), (32 * 1024, 8)] {
        let mut buffer = vec![0; HEADER_MAX + length];
        let begin = seal(&mut buffer, HEADER_MAX, [9, 8, 7, 6]);
        assert_eq!(HEADER_MAX - begin, size);
        assert_eq!(buffer[begin], 0x82);
        assert_eq!(buffer[HEADER_MAX - 4..HEADER_MAX], [9, 8, 7, 6]);
        assert!(buffer[HEADER_MAX..].iter().zip([9, 8, 7, 6].iter().cycle()).all(|(b, k)| b == k));
    }
    assert_eq!(close([0; 4]), [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]);
    assert_eq!(pong(b"ab", [0; 4]), [0x8a, 0x82, 0, 0, 0, 0, b'a', b'b']);
}

#[test]
fn mask_keys_differ() {
    let mut keys = MaskKeys::new();
    let drawn: std::collections::HashSet<_> = (0..200).map(|_| keys.draw()).collect();
    assert!(drawn.len() > 190);
}

proptest! {
    #[test]
    fn any_split_gives_the_same_payload(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..10),
        cut in 1usize..40,
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|m| server_frame(0x82, m)).collect();
        prop_assert_eq!(decode(bytes.chunks(cut)).unwrap().0, messages.concat());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(bytes.chunks(3));
    }
}
