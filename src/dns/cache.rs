//! Answers of the cluster, kept for as long as it says; of the system's own servers nothing is kept.

use std::collections::HashMap;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use tokio::time::Instant;

use super::message::Answer;

/// Answers kept; about 1 kB each.
const ANSWERS_MAX: usize = 4_096;

/// Names that are remembered as the cluster's.
const NAMES_MAX: usize = 4_096;

/// Longest time an answer is kept. Addresses in a cluster change more often than their TTL may say.
const TTL_MAX: u32 = 300;

/// Longest time "no such name" or "no such record" is kept: who has just made a Service wants to see it.
const NEGATIVE_TTL_MAX: u32 = 30;

/// How long a name is remembered as the cluster's without being asked for: longer than tunnels are away.
const NAME_KEPT: Duration = Duration::from_secs(3_600);

/// What an answer is to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// In full; compared without case.
    pub(super) name: Name,
    pub(super) kind: RecordType,
    pub(super) class: DNSClass,
    /// Whether DNSSEC records were wanted. EDNS alone makes no other answer: resolved asks for each absent name with and without.
    pub(super) dnssec: bool,
}

#[derive(Debug)]
struct Kept {
    answer: Answer,
    since: Instant,
    until: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Key, Kept>,
    names: HashMap<Name, Instant>,
}

impl Cache {
    /// The answer kept, its TTLs as they are now.
    pub(super) fn get(&self, key: &Key) -> Option<Answer> {
        let now = Instant::now();
        let kept = self.answers.get(key).filter(|kept| kept.until > now)?;
        let age = u32::try_from((now - kept.since).as_secs()).unwrap_or(u32::MAX);
        let mut answer = kept.answer.clone();
        let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    /// Keeps an answer, if it says for how long.
    pub(super) fn put(&mut self, key: Key, answer: &Answer) {
        let now = Instant::now();
        match answer.code {
            ResponseCode::NoError => {
                make_room(&mut self.names, NAMES_MAX, |known| *known);
                self.names.insert(key.name.clone(), now);
            }
            ResponseCode::NXDomain => drop(self.names.remove(&key.name)),
            _ => return,
        }
        let Some(ttl) = time_to_live(&key, answer).filter(|ttl| *ttl > 0) else { return };
        let mut answer = answer.clone();
        let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.min(ttl); // nobody below us keeps it for longer
        }
        make_room(&mut self.answers, ANSWERS_MAX, |kept| kept.until);
        let until = now + Duration::from_secs(ttl.into());
        self.answers.insert(key, Kept { answer, since: now, until });
    }

    /// Did the cluster say lately that it has this name?
    pub(super) fn knows(&self, name: &Name) -> bool {
        self.names.get(name).is_some_and(|known| known.elapsed() < NAME_KEPT)
    }
}

/// Drops the one that is over first, if there are too many.
fn make_room<K: Clone + Eq + std::hash::Hash, V>(
    all: &mut HashMap<K, V>,
    most: usize,
    end: impl Fn(&V) -> Instant,
) {
    if all.len() < most {
        return;
    }
    if let Some(first) = all.iter().min_by_key(|(_, value)| end(value)).map(|(key, _)| key.clone()) {
        all.remove(&first);
    }
}

/// Seconds: the least of the records (RFC 2181 §5.2); of "no such" what the SOA says (RFC 2308 §5), and nothing without one.
fn time_to_live(key: &Key, answer: &Answer) -> Option<u32> {
    let positive = answer.answers.iter().map(|record| record.ttl).min();
    let wanted = |kind: RecordType| kind == key.kind || key.kind == RecordType::ANY;
    if answer.code == ResponseCode::NoError
        && answer.answers.iter().any(|record| wanted(record.record_type()))
    {
        return positive.map(|ttl| ttl.min(TTL_MAX));
    }
    let negative = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })?;
    Some(positive.unwrap_or(u32::MAX).min(negative).min(NEGATIVE_TTL_MAX))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn key(text: &str, kind: RecordType) -> Key {
        Key { name: name(text), kind, class: DNSClass::IN, dnssec: false }
    }

    fn a(ttl: u32) -> Record {
        Record::from_rdata(name("x."), ttl, RData::A(A::new(10, 0, 0, 1)))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        Record::from_rdata(
            name("cluster.local."),
            ttl,
            RData::SOA(SOA::new(name("ns."), name("me."), 1, 1, 1, 1, minimum)),
        )
    }

    fn positive(ttls: &[u32]) -> Answer {
        Answer { answers: ttls.iter().map(|ttl| a(*ttl)).collect(), ..ResponseCode::NoError.into() }
    }

    fn negative(code: ResponseCode, soa: Record) -> Answer {
        Answer { authorities: vec![soa], ..code.into() }
    }

    async fn wait(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn times_count_down_to_the_least() {
        let mut cache = Cache::default();
        cache.put(key("X.cluster.local.", RecordType::A), &positive(&[30, 5]));
        let asked = key("x.CLUSTER.local.", RecordType::A);
        wait(3).await;
        let held = cache.get(&asked).unwrap();
        assert_eq!(held.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [2, 2]);
        wait(2).await;
        assert_eq!(cache.get(&asked), None);
        assert!(cache.knows(&asked.name), "it stays the cluster's");
        wait(3_600).await;
        assert!(!cache.knows(&asked.name));
    }

    #[tokio::test(start_paused = true)]
    async fn no_such_name_is_kept_for_as_long_as_its_zone_says() {
        let mut cache = Cache::default();
        let asked = key("x.", RecordType::A);
        for (ttl, minimum, kept) in [(60, 5, 5), (4, 30, 4), (3_600, 3_600, 30)] {
            for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
                cache.put(asked.clone(), &negative(code, soa(ttl, minimum)));
                wait(kept - 1).await;
                let held = cache.get(&asked).unwrap();
                assert_eq!((held.code, held.authorities[0].ttl), (code, 1), "{ttl} {minimum}");
                wait(1).await;
                assert_eq!(cache.get(&asked), None, "{ttl} {minimum}");
            }
        }
        let alias = Record::from_rdata(name("x."), 2, RData::CNAME(CNAME(name("y."))));
        let through = Answer { answers: vec![alias], ..negative(ResponseCode::NoError, soa(30, 30)) };
        cache.put(asked.clone(), &through);
        wait(2).await;
        assert_eq!(cache.get(&asked), None, "not for longer than the alias");
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_no_time_is_not_kept() {
        let mut cache = Cache::default();
        let asked = key("x.", RecordType::A);
        for answer in [
            positive(&[0]),
            ResponseCode::NXDomain.into(),
            ResponseCode::NoError.into(),
            negative(ResponseCode::ServFail, soa(30, 30)),
        ] {
            cache.put(asked.clone(), &answer);
            assert_eq!(cache.get(&asked), None, "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_gone_is_not_the_clusters_any_more() {
        let mut cache = Cache::default();
        cache.put(key("x.", RecordType::A), &positive(&[5]));
        assert!(cache.knows(&name("X.")));
        cache.put(key("x.", RecordType::AAAA), &negative(ResponseCode::NXDomain, soa(5, 5)));
        assert!(!cache.knows(&name("x.")));
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_and_dnssec_are_apart_and_the_number_is_bounded() {
        let mut cache = Cache::default();
        cache.put(key("x.", RecordType::A), &positive(&[5]));
        assert_eq!(cache.get(&key("x.", RecordType::AAAA)), None);
        assert_eq!(cache.get(&Key { dnssec: true, ..key("x.", RecordType::A) }), None);
        for number in 0..ANSWERS_MAX + 10 {
            cache.put(key(&format!("{number}."), RecordType::A), &positive(&[60]));
        }
        assert_eq!((cache.answers.len(), cache.names.len()), (ANSWERS_MAX, NAMES_MAX));
        assert_eq!(cache.get(&key("x.", RecordType::A)), None, "over first");
        assert!(cache.get(&key(&format!("{}.", ANSWERS_MAX), RecordType::A)).is_some());
    }
}
