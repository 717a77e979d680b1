//! ctnetlink messages: what we ask of the kernel's connection tracking, and what it answers.
//!
//! Layout: a netlink header (16 bytes, host order), an `nfgenmsg` (4 bytes), then attributes: length, type, value padded
//! to 4 bytes; values in network order. Numbers are those of the kernel's `uapi/linux/netlink.h`,
//! `uapi/linux/netfilter/nfnetlink.h` and `nfnetlink_conntrack.h`. Reading is bounds-checked throughout: what does not
//! add up ends the reading, it never panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const HEADER: usize = 16;
const GENERIC: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

const SUBSYSTEM: u16 = 1 << 8; // NFNL_SUBSYS_CTNETLINK
const CT_NEW: u16 = SUBSYSTEM; // IPCTNL_MSG_CT_NEW: an entry in a dump
const CT_GET: u16 = SUBSYSTEM | 1;
const CT_DELETE: u16 = SUBSYSTEM | 2;

const ATTRIBUTE_TYPE: u16 = 0x3fff; // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
const NESTED: u16 = 0x8000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

/// `IPS_SEEN_REPLY` of the kernel's `uapi/linux/netfilter/nf_conntrack_common.h`.
const SEEN_REPLY: u32 = 1 << 1;

const TCP: u8 = 6;
const UDP: u8 = 17;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// From where to where, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::firewall) struct Tuple {
    /// Sender.
    pub(in crate::firewall) src: SocketAddr,
    /// Receiver.
    pub(in crate::firewall) dst: SocketAddr,
}

/// A TCP connection or an exchange of datagrams, as conntrack knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::firewall) struct Entry {
    /// As the one who connected sees it.
    pub(super) original: Tuple,
    /// As the answers are addressed; differs from the reverse of `original` where something is translated.
    pub(super) reply: Tuple,
    /// `enum tcp_conntrack` of the kernel's `uapi/linux/netfilter/nf_conntrack_tcp.h`.
    /// None for UDP.
    pub(super) state: Option<TcpState>,
    /// Something came back.
    pub(super) answered: bool,
    family: u8,
    /// The attributes that name the entry in a delete: its original tuple, zone and identity.
    name: Vec<u8>,
}

/// State of a TCP entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::firewall) struct TcpState(u8);

impl TcpState {
    /// Could one side still be waiting for the other? SYN_SENT (1) to LAST_ACK (6), and SYN_SENT2 (9); not TIME_WAIT (7)
    /// and CLOSE (8), whose sides know that it is over, and not NONE (0).
    pub(super) fn is_live(self) -> bool {
        matches!(self.0, 1..=6 | 9)
    }

    /// Do both sides know each other, and is it not over? SYN_RECV (2) to LAST_ACK (6).
    pub(super) fn is_standing(self) -> bool {
        matches!(self.0, 2..=6)
    }
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// An entry of TCP or UDP.
    Entry(Entry),
    /// Something we did not ask for: another protocol, an entry we cannot read.
    Other,
    /// The dump is over, or the request was carried out.
    Done,
    /// The dump must be asked again: the table changed under it.
    Interrupted,
    /// Refused, with the error number.
    Refused(i32),
}

/// Asks for all entries of both families.
pub(super) fn dump(sequence: u32) -> Vec<u8> {
    message(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0, &[])
}

/// Asks for the UDP entry whose answers go from here to there.
pub(super) fn lookup(sequence: u32, reply: Tuple) -> Vec<u8> {
    let (mut ip, mut proto) = (Vec::new(), Vec::new());
    let family = match (reply.src.ip(), reply.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            append(&mut ip, CTA_IP_V4_SRC, &src.octets());
            append(&mut ip, CTA_IP_V4_DST, &dst.octets());
            AF_INET
        }
        (src, dst) => {
            let v6 = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            append(&mut ip, CTA_IP_V6_SRC, &v6(src));
            append(&mut ip, CTA_IP_V6_DST, &v6(dst));
            AF_INET6
        }
    };
    append(&mut proto, CTA_PROTO_NUM, &[UDP]);
    append(&mut proto, CTA_PROTO_SRC_PORT, &reply.src.port().to_be_bytes());
    append(&mut proto, CTA_PROTO_DST_PORT, &reply.dst.port().to_be_bytes());
    let (mut tuple, mut attributes) = (Vec::new(), Vec::new());
    append(&mut tuple, NESTED | CTA_TUPLE_IP, &ip);
    append(&mut tuple, NESTED | CTA_TUPLE_PROTO, &proto);
    append(&mut attributes, NESTED | CTA_TUPLE_REPLY, &tuple);
    message(CT_GET, NLM_F_REQUEST | NLM_F_ACK, sequence, family, &attributes)
}

/// Asks for the end of exactly this entry: a newer one between the same addresses has another identity.
pub(super) fn delete(sequence: u32, entry: &Entry) -> Vec<u8> {
    message(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, entry.family, &entry.name)
}

fn message(kind: u16, flags: u16, sequence: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERIC + attributes.len()).expect("a few attributes of a few bytes");
    let mut message = Vec::with_capacity(HEADER + GENERIC + attributes.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes()); // to the kernel
    message.extend_from_slice(&[family, 0, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

/// The messages of one datagram that answer request `sequence`.
pub(super) fn answers(mut datagram: &[u8], sequence: u32) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(length) = u32_at(datagram, 0) {
        let length = length as usize;
        let Some(message) = datagram.get(..length).filter(|message| message.len() >= HEADER) else { break };
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        if u32_at(message, 8) == Some(sequence) {
            if u16_at(message, 6).is_some_and(|flags| flags & NLM_F_DUMP_INTR != 0) {
                answers.push(Answer::Interrupted);
            }
            answers.push(answer(message));
        }
    }
    answers
}

fn answer(message: &[u8]) -> Answer {
    let kind = u16_at(message, 4).unwrap_or(0);
    let code = || u32_at(message, HEADER).map(u32::cast_signed);
    match kind {
        // A dump that fails half way says so in its last message.
        NLMSG_DONE | NLMSG_ERROR => match code() {
            Some(0) => Answer::Done,
            None if kind == NLMSG_DONE => Answer::Done,
            Some(code) => Answer::Refused(code.wrapping_neg()),
            None => Answer::Other,
        },
        CT_NEW => entry(message).map_or(Answer::Other, Answer::Entry),
        _ => Answer::Other,
    }
}

fn entry(message: &[u8]) -> Option<Entry> {
    let family = *message.get(HEADER)?;
    let attributes = message.get(HEADER + GENERIC..)?;
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let state = match protocol(original)? {
        TCP => {
            let info = attribute(attribute(attributes, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
            Some(TcpState(*attribute(info, CTA_PROTOINFO_TCP_STATE)?.first()?))
        }
        UDP => None,
        _ => return None,
    };
    let status = attribute(attributes, CTA_STATUS).and_then(|status| status.try_into().ok());
    let answered = status.is_some_and(|status| u32::from_be_bytes(status) & SEEN_REPLY != 0);
    let mut name = Vec::new();
    append(&mut name, NESTED | CTA_TUPLE_ORIG, original);
    for kind in [CTA_ZONE, CTA_ID] {
        if let Some(value) = attribute(attributes, kind) {
            append(&mut name, kind, value);
        }
    }
    Some(Entry { original: tuple(original)?, reply: tuple(reply)?, state, answered, family, name })
}

fn protocol(tuple: &[u8]) -> Option<u8> {
    attribute(attribute(tuple, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)?.first().copied()
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let ip = attribute(attributes, CTA_TUPLE_IP)?;
    let proto = attribute(attributes, CTA_TUPLE_PROTO)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(value) = attribute(ip, v4) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into());
        }
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?).into())
    };
    let port = |kind: u16| Some(u16::from_be_bytes(attribute(proto, kind)?.try_into().ok()?));
    Some(Tuple {
        src: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        dst: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
    })
}

/// The value of the first attribute of this type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & ATTRIBUTE_TYPE;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(aligned(length)..)?;
    }
}

fn append(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("values come from attributes, whose length is a u16");
    to.extend_from_slice(&length.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(aligned(to.len()), 0);
}

fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One datagram of Linux 6.18: a redirected TCP connection over IPv6, a UDP one, a redirected TCP one over IPv4.
    /// Captured little-endian, as every Linux we ship for is.
    const DUMP: &str = concat!(
        // IPv6: [2001:db8:51::2]:40001 → [fd00::9]:443, redirected to [::1]:5400, established
        "040100000001020007000000b07500000a0000004c0001802c0001801400030020010db800510000000000000000000214000400",
        "fd0000000000000000000000000000091c0002800500010006000000060002009c4100000600030001bb00004c0002802c000180",
        "14000300000000000000000000000000000000011400040020010db80051000000000000000000021c0002800500010006000000",
        "060002001518000006000300",
        "9c41000008000300000001ae080008000000000008000c004e335dee08000b0000000001080007000006977f300004802c000180",
        "0500010003000000050002000a000000050003000a0000000600040023000000060005002300",
        "0000",
        // UDP
        "a40000000001020007000000b075000002000000340001801400018008000100c633640208000200c63364011c00028005000100",
        "1100000006000200c62700000600030000090000340002801400018008000100c633640108000200c63364021c00028005000100",
        "11000000060002000009000006000300c62700000800030000000188080008000000000008000c00432aa9a408000b0000000001",
        "080007000000001d",
        // IPv4: 198.51.100.2:40000 → 10.1.2.3:80, redirected to 127.0.0.1:5400, established
        "d40000000001020007000000b075000002000000340001801400018008000100c6336402080002000a0102031c00028005000100",
        "06000000060002009c40000006000300005000003400028014000180080001007f00000108000200c63364021c00028005000100",
        "060000000600020015180000060003009c40000008000300000001ae080008000000000008000c00246f7a0408000b0000000001",
        "080007000006977f300004802c0001800500010003000000050002000a000000050003000a000000060004002300000006000500",
        "23000000",
    );
    const DONE: &str = "140000000300020007000000b075000000000000";
    /// The answer to a delete without a name, request 8: EINVAL.
    const REFUSED: &str =
        "2c0000000200000008000000b0750000eaffffff180000000201050008000000000000000200000004000180";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn entries() -> Vec<Entry> {
        let answers = answers(&bytes(DUMP), 7);
        assert_eq!(answers.len(), 3);
        answers
            .into_iter()
            .filter_map(|answer| if let Answer::Entry(entry) = answer { Some(entry) } else { None })
            .collect()
    }

    fn tuple(src: &str, dst: &str) -> Tuple {
        Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() }
    }

    #[test]
    fn a_captured_dump_is_understood() {
        let [v6, udp, v4] = <[Entry; 3]>::try_from(entries()).unwrap();
        assert_eq!(v6.original, tuple("[2001:db8:51::2]:40001", "[fd00::9]:443"));
        assert_eq!(v6.reply, tuple("[::1]:5400", "[2001:db8:51::2]:40001"));
        assert_eq!(v4.original, tuple("198.51.100.2:40000", "10.1.2.3:80"));
        assert_eq!(v4.reply, tuple("127.0.0.1:5400", "198.51.100.2:40000"));
        assert_eq!((v6.state, v4.state), (Some(TcpState(3)), Some(TcpState(3))));
        assert_eq!(udp.original, tuple("198.51.100.2:50727", "198.51.100.1:9"));
        assert_eq!((udp.state, udp.translated_to()), (None, None));
        assert_eq!((v6.answered, udp.answered, v4.answered), (true, false, true));
        assert_eq!(v4.translated_to(), Some("127.0.0.1:5400".parse().unwrap()));
    }

    #[test]
    fn answers_to_others_are_not_ours() {
        assert_eq!(answers(&bytes(DUMP), 8), []);
        assert_eq!(answers(&bytes(DONE), 7), [Answer::Done]);
        assert_eq!(answers(&bytes(REFUSED), 8), [Answer::Refused(22)]);
    }

    #[test]
    fn a_dump_that_was_disturbed_says_so() {
        let mut done = bytes(DONE);
        done[6] |= u8::try_from(NLM_F_DUMP_INTR).unwrap();
        assert_eq!(answers(&done, 7), [Answer::Interrupted, Answer::Done]);
    }

    #[test]
    fn a_delete_names_the_tuple_and_the_identity() {
        let v4 = entries().remove(2);
        let expected = concat!(
            "5000000002010500090000000000000002000000",         // headers
            "340001801400018008000100c6336402080002000a010203", // original tuple
            "1c0002800500010006000000060002009c4000000600030000500000",
            "08000c00246f7a04", // identity
        );
        assert_eq!(delete(9, &v4), bytes(expected));
    }

    #[test]
    fn states_in_which_somebody_may_wait() {
        let live: Vec<u8> = (0..=12).filter(|state| TcpState(*state).is_live()).collect();
        assert_eq!(live, [1, 2, 3, 4, 5, 6, 9]);
        let standing: Vec<u8> = (0..=12).filter(|state| TcpState(*state).is_standing()).collect();
        assert_eq!(standing, [2, 3, 4, 5, 6]);
    }

    #[test]
    fn every_cut_of_a_dump_is_survived() {
        let whole = bytes(DUMP);
        for length in 0..whole.len() {
            assert!(answers(&whole[..length], 7).len() < 3);
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(datagram in proptest::collection::vec(any::<u8>(), 0..256)) {
            answers(&datagram, 7);
        }

        #[test]
        fn damaged_dumps_never_panic(damage in proptest::collection::vec((0..600usize, any::<u8>()), 1..8)) {
            let mut datagram = bytes(DUMP);
            for (at, byte) in damage {
                if let Some(place) = datagram.get_mut(at) {
                    *place = byte;
                }
            }
            answers(&datagram, 7);
        }
    }
}
