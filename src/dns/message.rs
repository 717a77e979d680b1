//! Messages: as much of a query as is needed to know whose it is, and the answers we make ourselves.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::Transport;

/// Largest answer over UDP without EDNS (RFC 1035 §4.2.1).
const PLAIN_MAX: u16 = 512;

/// Largest answer of ours over UDP: no IP fragment on any usual path (the DNS flag day of 2020).
const UDP_MAX: u16 = 1_232;

/// For how long nobody need ask again after "no such record" of ours, in seconds: as CoreDNS says.
const NEGATIVE_TTL: u32 = 5;

/// What the canary's names have for an address: TEST-NET-1 (RFC 5737), which leads nowhere.
const CANARY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// The part of a query that decides its way. The rest may be of kinds that only its server understands.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) metadata: Metadata,
    pub(super) question: Query,
}

/// Why a message has no such part.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// No header, or not a query: answering could start a ping-pong.
    Silence,
    /// Its header can be read: it gets FORMERR.
    Form(Metadata),
}

impl Head {
    pub(super) fn read(query: &[u8]) -> Result<Self, Unreadable> {
        let mut decoder = BinDecoder::new(query);
        let header = Header::read(&mut decoder).map_err(|_| Unreadable::Silence)?;
        if header.metadata.message_type == MessageType::Response {
            return Err(Unreadable::Silence);
        }
        // More than one question has no meaning anybody agrees on (RFC 9619).
        let question = Some(()).filter(|()| header.counts.queries == 1);
        let question = question.and_then(|()| Query::read(&mut decoder).ok());
        let Some(question) = question else { return Err(Unreadable::Form(header.metadata)) };
        Ok(Self { metadata: header.metadata, question })
    }

    /// Is `answer` one to this query, as far as can be seen? Servers that do not understand a query may leave out its question.
    pub(super) fn is_answered_by(&self, answer: &[u8]) -> bool {
        let mut decoder = BinDecoder::new(answer);
        let Ok(Header { metadata, counts }) = Header::read(&mut decoder) else { return false };
        if metadata.message_type != MessageType::Response || metadata.id != self.metadata.id {
            return false;
        }
        match counts.queries {
            0 => metadata.response_code != ResponseCode::NoError,
            1 => Query::read(&mut decoder).is_ok_and(|question| question == self.question),
            _ => false,
        }
    }
}

/// What an answer says, without whom it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) authoritative: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl From<ResponseCode> for Answer {
    fn from(code: ResponseCode) -> Self {
        let none = Vec::new;
        Self { code, authoritative: false, answers: none(), authorities: none(), additionals: none() }
    }
}

impl From<Message> for Answer {
    fn from(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            authoritative: message.metadata.authoritative,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        }
    }
}

impl Answer {
    /// Of the canary.
    pub(super) fn canary(name: &Name, kind: RecordType, domain: &Name) -> Self {
        let mut answer = Self { authoritative: true, ..ResponseCode::NoError.into() };
        if matches!(kind, RecordType::A | RecordType::ANY) {
            answer.answers.push(Record::from_rdata(name.clone(), 0, RData::A(A(CANARY_ADDRESS))));
        } else {
            answer.authorities.extend(soa(domain, 0));
        }
        answer
    }

    /// Takes the IPv6 addresses away: an address that cannot be reached is worse than none.
    pub(super) fn without_ipv6(&mut self, kind: RecordType, domain: &Name) {
        self.answers.retain(|record| record.record_type() != RecordType::AAAA);
        let has_soa = self.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
        if kind == RecordType::AAAA && self.code == ResponseCode::NoError && !has_soa {
            self.authorities.extend(soa(domain, NEGATIVE_TTL));
        }
    }

    /// Tells it under the name that was asked, where the cluster was asked for `full`.
    ///
    /// The records get the asked name as their owner; there is no CNAME from it to the full one. Everybody takes that: glibc,
    /// musl, Go, resolved and Java all follow a CNAME in ordinary look-ups, but small clients and JNDI look only for records of
    /// the name they asked for, and resolved asks again for a CNAME's target whose address is missing (AAAA, mostly).
    pub(super) fn renamed(&mut self, full: &Name, asked: &Name) {
        let sections = [&mut self.answers, &mut self.authorities, &mut self.additionals];
        for record in sections.into_iter().flatten() {
            if record.name == *full {
                record.name = asked.clone();
            }
        }
        // Who keeps "no such record" wants the zone to be above the name (RFC 2308 §5).
        for record in &mut self.authorities {
            let above = |name| record.name.zone_of(name);
            if record.record_type() == RecordType::SOA && above(full) && !above(asked) {
                record.name = asked.trim_to(1);
            }
        }
    }
}

/// `DOMAIN SOA`, as CoreDNS makes it up.
fn soa(domain: &Name, ttl: u32) -> Option<Record> {
    let server = domain.prepend_label("dns").and_then(|name| name.prepend_label("ns")).ok()?;
    let person = domain.prepend_label("hostmaster").ok()?;
    let soa = SOA::new(server, person, 1, 7_200, 1_800, 86_400, ttl);
    Some(Record::from_rdata(domain.clone(), ttl, RData::SOA(soa)))
}

/// What a client says about itself in EDNS (RFC 6891).
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) edns: Option<Edns>,
}

impl Client {
    /// Reads the whole query; none if it is malformed.
    pub(super) fn read(query: &[u8]) -> Option<Self> {
        Some(Self { edns: Message::from_vec(query).ok()?.edns })
    }

    pub(super) fn wants_dnssec(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// Speaks a later EDNS than there is.
    pub(super) fn is_too_new(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.version() > 0)
    }
}

/// The bytes of an answer of ours.
pub(super) fn encode(
    metadata: &Metadata,
    question: Option<&Query>,
    client: Option<&Client>,
    answer: Answer,
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata = Metadata::response_from_request(metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = answer.code;
    message.metadata.authoritative = answer.authoritative;
    message.add_queries(question.cloned());
    message.answers = answer.answers;
    message.authorities = answer.authorities;
    message.additionals = answer.additionals;
    let theirs = client.and_then(|client| client.edns.as_ref());
    message.edns = theirs.map(|theirs| {
        let mut ours = Edns::new();
        ours.set_max_payload(UDP_MAX).set_dnssec_ok(theirs.flags().dnssec_ok);
        ours
    });
    let longest = match (transport, theirs) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_MAX,
        (Transport::Udp, Some(theirs)) => theirs.max_payload().clamp(PLAIN_MAX, UDP_MAX),
    };
    shortened(message, longest.into())
}

/// Leaves out what is too much. Addresses that fit stay: musl before 1.2.4 never comes again by TCP.
fn shortened(mut message: Message, longest: usize) -> Option<Vec<u8>> {
    loop {
        // Fails where it is longer than any message can be.
        let bytes = message.to_vec().ok().filter(|bytes| bytes.len() <= longest);
        if bytes.is_some() {
            return bytes;
        }
        if !message.additionals.is_empty() {
            message.additionals.clear(); // nobody has to be told (RFC 2181 §9)
            continue;
        }
        message.metadata.truncation = true;
        if !message.authorities.is_empty() {
            message.authorities.clear();
        } else if !message.answers.is_empty() {
            message.answers.truncate(message.answers.len() * 3 / 4);
        } else {
            return None;
        }
    }
}

/// An answer that says only that there is none.
pub(super) fn failure(query: &[u8], code: ResponseCode, transport: Transport) -> Option<Vec<u8>> {
    match Head::read(query) {
        Ok(Head { metadata, question }) => {
            let client = Client::read(query);
            encode(&metadata, Some(&question), client.as_ref(), code.into(), transport)
        }
        Err(Unreadable::Form(metadata)) => encode(&metadata, None, None, code.into(), transport),
        Err(Unreadable::Silence) => None,
    }
}

/// A question of ours.
pub(super) fn question(id: u16, question: Query, dnssec: bool) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(question);
    if dnssec {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX).set_dnssec_ok(true);
        message.set_edns(edns);
    }
    message
}

#[cfg(test)]
mod tests;
