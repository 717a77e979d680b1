//! A cluster's DNS: by TCP, as little as the tests need of CoreDNS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use kshuttle_test_support::net::server;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::scene::{name, send};

/// Records of `big.default`.
pub(super) const BIG: usize = 60;

/// What of it is like no CoreDNS.
#[derive(Clone, Copy)]
struct Habits {
    /// Collects so many questions of its first connection, then answers the last one first.
    holds: usize,
    /// Ends each connection with this question, which has no answer.
    hangs_up_after: usize,
}

#[derive(Default)]
struct Counts {
    asked: AtomicUsize,
    connections: AtomicUsize,
}

/// A running server.
pub(super) struct Cluster {
    pub(super) address: SocketAddr,
    counts: Arc<Counts>,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        Self::with(Habits { holds: 1, hangs_up_after: usize::MAX }).await
    }

    pub(super) async fn holding(holds: usize) -> Self {
        Self::with(Habits { holds, hangs_up_after: usize::MAX }).await
    }

    pub(super) async fn hanging_up_after(hangs_up_after: usize) -> Self {
        Self::with(Habits { holds: 1, hangs_up_after }).await
    }

    async fn with(habits: Habits) -> Self {
        let counts = Arc::<Counts>::default();
        let counted = counts.clone();
        let address = server(move |stream| serve(stream, habits, counted.clone())).await;
        Self { address, counts }
    }

    /// Questions so far.
    pub(super) fn asked(&self) -> usize {
        self.counts.asked.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub(super) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, habits: Habits, counts: Arc<Counts>) {
    counts.connections.fetch_add(1, Ordering::Relaxed);
    let (mut held, mut holds) = (Vec::new(), habits.holds);
    for number in 1.. {
        let Ok(length) = stream.read_u16().await else { return };
        let mut query = vec![0; length.into()];
        if stream.read_exact(&mut query).await.is_err() || number == habits.hangs_up_after {
            return;
        }
        counts.asked.fetch_add(1, Ordering::Relaxed);
        held.push(answer(&Message::from_vec(&query).unwrap()));
        if held.len() >= holds {
            holds = 1;
            while let Some(answer) = held.pop() {
                send(&mut stream, &answer.to_vec().unwrap()).await;
            }
        }
    }
}

fn answer(query: &Message) -> Message {
    let question = &query.queries[0];
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.authoritative = true;
    answer.add_query(question.clone());
    match records(&question.name) {
        Some(records) => {
            let wanted = |data: &RData| {
                data.record_type() == question.query_type || data.record_type() == RecordType::CNAME
            };
            for data in records.into_iter().filter(wanted) {
                let alias = matches!(data, RData::CNAME(_));
                answer.add_answer(Record::from_rdata(question.name.clone(), 30, data));
                if alias {
                    let address = RData::A(A::new(192, 0, 2, 7));
                    answer.add_answer(Record::from_rdata(name("db.example.com."), 30, address));
                }
            }
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    if answer.answers.is_empty() {
        let soa =
            SOA::new(name("ns.dns.cluster.local."), name("me.cluster.local."), 1, 7_200, 1_800, 86_400, 30);
        answer.add_authority(Record::from_rdata(name("cluster.local."), 30, RData::SOA(soa)));
    }
    answer
}

/// All that the name has; none where there is no such name.
fn records(asked: &Name) -> Option<Vec<RData>> {
    let asked = asked.to_lowercase().to_ascii();
    let hello = || name("hello.default.svc.cluster.local.");
    let records = match asked.as_str() {
        "hello.default.svc.cluster.local." => {
            vec![RData::A(A::new(10, 96, 0, 7)), RData::AAAA(AAAA::new(0xfd00, 0, 0, 0, 0, 0, 0, 7))]
        }
        "hello.dev.svc.cluster.local." => vec![RData::A(A::new(10, 96, 0, 8))],
        "_http._tcp.hello.default.svc.cluster.local." => vec![RData::SRV(SRV::new(0, 100, 80, hello()))],
        "7.0.96.10.in-addr.arpa." => vec![RData::PTR(PTR(hello()))],
        "alias.default.svc.cluster.local." => vec![RData::CNAME(CNAME(name("db.example.com.")))],
        "big.default.svc.cluster.local." => {
            (0..BIG).map(|number| RData::TXT(TXT::new(vec![format!("{number:0100}")]))).collect()
        }
        "db.example.com." => vec![RData::A(A::new(192, 0, 2, 7))],
        numbered => {
            let number = numbered.strip_prefix('n')?.strip_suffix(".default.svc.cluster.local.")?;
            vec![RData::A(A::new(10, 97, 0, number.parse().ok()?))]
        }
    };
    Some(records)
}
