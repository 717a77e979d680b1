use hickory_proto::rr::rdata::{AAAA, TXT};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(edns: Option<Edns>) -> Vec<u8> {
    let mut message = question(7, Query::query(name("Hello.Default."), RecordType::TXT), false);
    message.edns = edns;
    message.to_vec().unwrap()
}

fn edns(size: u16) -> Option<Edns> {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    Some(edns)
}

/// `count` records of about 100 bytes.
fn texts(count: usize) -> Answer {
    let text = || RData::TXT(TXT::new(vec!["x".repeat(80)]));
    let record = || Record::from_rdata(name("Hello.Default."), 5, text());
    Answer { answers: (0..count).map(|_| record()).collect(), ..ResponseCode::NoError.into() }
}

fn answered(query: &[u8], answer: Answer, transport: Transport) -> (usize, Message) {
    let head = Head::read(query).unwrap();
    let client = Client::read(query);
    let bytes = encode(&head.metadata, Some(&head.question), client.as_ref(), answer, transport).unwrap();
    (bytes.len(), Message::from_vec(&bytes).unwrap())
}

#[test]
fn answers_fit_their_clients() {
    for (size, most) in [(None, 512), (edns(4_096), 1_232), (edns(800), 800), (edns(0), 512)] {
        let (length, message) = answered(&query(size.clone()), texts(40), Transport::Udp);
        assert!(message.metadata.truncation && length <= most, "{length} of {most}");
        assert!(!message.answers.is_empty(), "who does not come again has something");
        let (_, message) = answered(&query(size), texts(40), Transport::Tcp);
        assert!(!message.metadata.truncation);
        assert_eq!(message.answers.len(), 40);
    }
    let mut answer = texts(4);
    answer.additionals = texts(10).answers;
    let (_, message) = answered(&query(None), answer, Transport::Udp);
    assert!(!message.metadata.truncation, "additional records are left out without a word");
    assert_eq!((message.answers.len(), message.additionals.len()), (4, 0));
}

#[test]
fn edns_is_answered_by_edns() {
    for (edns, has) in [(None, false), (edns(1_232), true)] {
        let query = query(edns);
        assert_eq!(answered(&query, texts(1), Transport::Udp).1.edns.is_some(), has);
        let failure = failure(&query, ResponseCode::ServFail, Transport::Udp).unwrap();
        let failure = Message::from_vec(&failure).unwrap();
        assert_eq!(failure.edns.is_some(), has);
        assert_eq!((failure.metadata.id, failure.metadata.response_code), (7, ResponseCode::ServFail));
        assert_eq!(failure.queries.len(), 1);
        assert!(failure.metadata.recursion_desired && failure.metadata.recursion_available);
    }
}

#[test]
fn what_cannot_be_read() {
    let query = query(None);
    assert!(matches!(Head::read(&query[..11]), Err(Unreadable::Silence)));
    assert!(matches!(Head::read(&query[..12]), Err(Unreadable::Form(_))));
    assert!(matches!(Head::read(&query[..20]), Err(Unreadable::Form(_))));
    for count in [0, 2] {
        let mut several = query.clone();
        several[5] = count;
        assert!(matches!(Head::read(&several), Err(Unreadable::Form(_))));
    }
    let mut response = query.clone();
    response[2] |= 0x80;
    assert!(matches!(Head::read(&response), Err(Unreadable::Silence)));
    assert_eq!(failure(&response, ResponseCode::FormErr, Transport::Udp), None);
    let form = failure(&query[..20], ResponseCode::FormErr, Transport::Udp).unwrap();
    let form = Message::from_vec(&form).unwrap();
    assert_eq!((form.metadata.id, form.queries.len()), (7, 0));
}

#[test]
fn only_answers_to_the_question_count() {
    let query = query(None);
    let head = Head::read(&query).unwrap();
    let answer = failure(&query, ResponseCode::NXDomain, Transport::Udp).unwrap();
    assert!(head.is_answered_by(&answer));
    assert!(!head.is_answered_by(&query), "a query");
    assert!(!head.is_answered_by(&answer[..20]));
    let changed = |at: usize, by: u8| {
        let mut changed = answer.clone();
        changed[at] ^= by;
        changed
    };
    assert!(!head.is_answered_by(&changed(1, 1)), "another ID");
    assert!(head.is_answered_by(&changed(13, 0x20)), "the same name");
    assert!(!head.is_answered_by(&changed(13, 1)), "another name");
    assert!(!head.is_answered_by(&changed(answer.len() - 3, 1)), "another type");
    let mut bare = answer[..12].to_vec();
    bare[5] = 0;
    assert!(head.is_answered_by(&bare), "an error of a server that understood nothing");
    bare[3] &= 0xf0;
    assert!(!head.is_answered_by(&bare));
}

#[test]
fn the_answer_is_to_the_name_that_was_asked() {
    let (full, asked) = (name("hello.default.svc.cluster.local."), name("Hello.Default."));
    let mut answer = Answer::from(ResponseCode::NoError);
    answer.answers.push(Record::from_rdata(full.to_lowercase(), 5, RData::A(A::new(10, 0, 0, 1))));
    answer.answers.push(Record::from_rdata(name("other."), 5, RData::A(A::new(10, 0, 0, 2))));
    answer.authorities.extend(soa(&name("cluster.local."), 5));
    answer.renamed(&full, &asked);
    let owner = |record: &Record| record.name.to_ascii();
    assert_eq!(answer.answers.iter().map(owner).collect::<Vec<_>>(), ["Hello.Default.", "other."]);
    assert_eq!(owner(&answer.authorities[0]), "Default.");
    // An alias that ends in another zone.
    let mut elsewhere =
        Answer { authorities: soa(&name("example.com."), 5).into_iter().collect(), ..answer.clone() };
    elsewhere.renamed(&full, &asked);
    assert_eq!(owner(&elsewhere.authorities[0]), "example.com.");
    let mut whole = Answer { authorities: soa(&name("cluster.local."), 5).into_iter().collect(), ..answer };
    whole.renamed(&full, &full);
    assert_eq!(owner(&whole.authorities[0]), "cluster.local.");
}

#[test]
fn without_ipv6_there_is_no_such_record_but_the_name() {
    let domain = name("cluster.local.");
    let address = Record::from_rdata(name("x."), 5, RData::AAAA(AAAA::new(0xfd, 0, 0, 0, 0, 0, 0, 1)));
    let mut answer = Answer { answers: vec![address], ..ResponseCode::NoError.into() };
    answer.without_ipv6(RecordType::AAAA, &domain);
    assert!(answer.answers.is_empty());
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    let before = answer.clone();
    answer.without_ipv6(RecordType::AAAA, &domain);
    assert_eq!(answer, before, "one SOA is enough");
    let mut absent = Answer::from(ResponseCode::NXDomain);
    absent.without_ipv6(RecordType::AAAA, &domain);
    assert_eq!(absent, ResponseCode::NXDomain.into());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), mut damaged in Just(query(edns(1_232))), at in 0..60_usize, by: u8) {
        let at = at % damaged.len();
        damaged[at] ^= by;
        for bytes in [&bytes, &damaged] {
            let _ = (Client::read(bytes), failure(bytes, ResponseCode::ServFail, Transport::Udp));
            if let Ok(head) = Head::read(bytes) {
                head.is_answered_by(bytes);
            }
        }
    }
}
