//! Without a network: time stands still.

use std::io;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use kshuttle_wire::flow::Flow;
use kshuttle_wire::flow::udp::DatagramFlow;
use proptest::prelude::*;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::answer::Arrival;
use super::*;
use crate::addr::Target;
use crate::tunnel::ConnectError;

/// A tunnel that never answers, and sockets that never come.
#[derive(Clone)]
struct Never;

impl Connect for Never {
    async fn connect(&self, _: &Target) -> Result<Flow, ConnectError> {
        std::future::pending().await
    }

    async fn connect_udp(&self, _: &Target) -> Result<DatagramFlow, ConnectError> {
        std::future::pending().await
    }
}

impl Sockets for Never {
    type Udp = Box<UdpSocket>;

    async fn udp(&self, _: SocketAddr) -> io::Result<Box<UdpSocket>> {
        std::future::pending().await
    }

    async fn tcp(&self, _: SocketAddr) -> io::Result<TcpStream> {
        std::future::pending().await
    }
}

/// A tunnel that must not be used.
#[derive(Clone)]
struct Untouched;

impl Connect for Untouched {
    async fn connect(&self, target: &Target) -> Result<Flow, ConnectError> {
        panic!("asked for {target}")
    }

    async fn connect_udp(&self, target: &Target) -> Result<DatagramFlow, ConnectError> {
        panic!("asked for {target}")
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn zones() -> Zones {
    Zones {
        domain: name("cluster.local."),
        servers: vec!["10.96.0.10:53".parse().unwrap()],
        namespace: "default".into(),
        namespaces: Some(["default".to_owned()].into()),
        mapped: Default::default(),
        ranges: Vec::new(),
        extra: Vec::new(),
        check: "me".into(),
        ipv6: false,
    }
}

fn stub<C: Connect>(tunnel: C, up: bool) -> Stub<C, Never> {
    let (up, zones) = (watch::Sender::new(up).subscribe(), watch::Sender::new(zones()).subscribe());
    Stub::new(Settings { tunnel, up, zones, sockets: Never })
}

fn query(text: &str) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(name(text), RecordType::A));
    message
}

async fn ask<C: Connect>(stub: &Stub<C, Never>, query: &[u8], upstream: &Upstream) -> Option<Message> {
    let loopback = "127.0.0.1:1".parse().unwrap();
    let arrival = Arrival { transport: Transport::Udp, from: loopback, at: loopback };
    let answer = stub.answer(query, &arrival, upstream).await;
    answer.map(|answer| Message::from_vec(&answer).unwrap())
}

/// Code of the answer, and how long it took.
async fn code<C: Connect>(
    stub: &Stub<C, Never>,
    query: &Message,
    upstream: &Upstream,
) -> (ResponseCode, Duration) {
    let started = Instant::now();
    let answer = ask(stub, &query.to_vec().unwrap(), upstream).await.unwrap();
    (answer.metadata.response_code, started.elapsed())
}

fn silent() -> Upstream {
    Upstream::Server("192.0.2.1:53".parse().unwrap())
}

fn none() -> Upstream {
    Upstream::Servers(watch::Sender::new(Vec::new()).subscribe())
}

#[tokio::test(start_paused = true)]
async fn everything_is_answered_in_time() {
    let stub = stub(Never, true);
    for (asked, upstream, limit) in [
        ("hello.default.svc.cluster.local.", silent(), LIMIT),
        ("hello.default.", silent(), LIMIT),
        ("hello.default.", none(), Duration::from_millis(1_400)),
        ("www.example.com.", silent(), LIMIT),
        ("www.example.com.", none(), Duration::ZERO),
    ] {
        let (code, took) = code(&stub, &query(asked), &upstream).await;
        assert_eq!(code, ResponseCode::ServFail, "{asked}");
        assert!(took <= limit + Duration::from_millis(2), "{asked} {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_tunnel_nobody_waits_for_it() {
    let stub = stub(Untouched, false);
    for asked in ["hello.default.svc.cluster.local.", "hello.default.svc.", "hello.default.", "hello."] {
        let (code, took) = code(&stub, &query(asked), &none()).await;
        assert_eq!((code, took), (ResponseCode::ServFail, Duration::ZERO), "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_names_never_touch_the_tunnel() {
    let stub = stub(Untouched, true);
    for asked in ["www.example.com.", "x.dev.", "localhost.", "."] {
        assert_eq!(code(&stub, &query(asked), &none()).await.0, ResponseCode::ServFail, "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_servers_ask_each_other_is_not_for_the_cluster() {
    let stub = stub(Untouched, true);
    let mut update = query("x.cluster.local.");
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&stub, &update, &none()).await.0, ResponseCode::NotImp);
    let mut transfer = query("x.cluster.local.");
    transfer.queries[0].set_query_type(RecordType::AXFR);
    assert_eq!(code(&stub, &transfer, &none()).await.0, ResponseCode::Refused);
    let mut chaos = query("x.cluster.local.");
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    assert_eq!(code(&stub, &chaos, &none()).await.0, ResponseCode::ServFail, "of the system's own server");
    let mut cut = query("x.cluster.local.").to_vec().unwrap();
    cut[11] = 1; // an additional record that is not there
    let answer = ask(&stub, &cut, &none()).await.unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

#[tokio::test(start_paused = true)]
async fn check_names_need_nobody() {
    let stub = stub(Untouched, false);
    let mut canaries = stub.canaries();
    let answer =
        ask(&stub, &query("N7.me.kshuttle-check.svc.cluster.local.").to_vec().unwrap(), &none()).await;
    let record = answer.unwrap().answers[0].clone();
    assert_eq!((record.data.to_string(), record.ttl), ("192.0.2.53".into(), 0));
    let canary = canaries.recv().await.unwrap();
    assert_eq!((canary.nonce.as_str(), canary.transport), ("n7", Transport::Udp));
}

#[tokio::test(start_paused = true)]
async fn explanations_survive_the_control_socket() {
    let stub = stub(Untouched, false);
    let told = stub.explain("7.me.kshuttle-check.cluster.local", "a", &none()).await.unwrap();
    assert_eq!((told.kind.as_str(), told.code.as_str(), told.ours), ("A", "No Error", false));
    assert!(told.records[0].ends_with("192.0.2.53"), "{told:?}");
    let text = serde_json::to_string(&told).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), told);
    let told = stub.explain("hello.default", "AAAA", &none()).await.unwrap();
    assert_eq!(told.code, "Server Failure");
    assert!(told.why.starts_with("default is a namespace"), "{told:?}");
    assert_eq!(stub.explain("a..b", "A", &none()).await, Err(ExplainError::Name));
    assert_eq!(stub.explain("a", "nonsense", &none()).await, Err(ExplainError::Kind));
}

/// Counts who is asked; nobody answers.
struct Counting(Arc<Mutex<Vec<SocketAddr>>>);

impl Sockets for Counting {
    type Udp = Box<UdpSocket>;

    async fn udp(&self, server: SocketAddr) -> io::Result<Box<UdpSocket>> {
        self.0.lock().unwrap().push(server);
        std::future::pending().await
    }

    async fn tcp(&self, server: SocketAddr) -> io::Result<TcpStream> {
        self.0.lock().unwrap().push(server);
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

#[tokio::test(start_paused = true)]
async fn all_servers_are_asked_in_time_and_one_alone_twice() {
    let server = |number: u16| SocketAddr::from(([192, 0, 2, 1], number));
    let asked = Arc::<Mutex<Vec<_>>>::default();
    let relay = Relay::new(Counting(asked.clone()));
    let bytes = query("www.example.com.").to_vec().unwrap();
    let head = message::Head::read(&bytes).unwrap();
    for (transport, servers, expected) in [
        (Transport::Udp, vec![1], vec![1, 1]),
        (Transport::Tcp, vec![1], vec![1]),
        (Transport::Udp, vec![1, 2, 3], vec![1, 2, 3]),
        (Transport::Tcp, vec![1, 2], vec![1, 2]),
        (Transport::Udp, (1..10).collect(), (1..7).collect()),
        (Transport::Udp, vec![], vec![]),
    ] {
        asked.lock().unwrap().clear();
        let servers: Vec<_> = servers.into_iter().map(server).collect();
        let answer = tokio::time::timeout(LIMIT, relay.ask(&bytes, &head, transport, &servers)).await;
        assert!(!matches!(answer, Ok(Ok(_))));
        let expected: Vec<_> = expected.into_iter().map(server).collect();
        assert_eq!(*asked.lock().unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_are_let_go_and_make_room() {
    let stub = stub(Untouched, false);
    let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let connections = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = connections.local_addr().unwrap();
    let all_but_one = stub.0.clients.acquire_many(CLIENTS_MAX as u32 - 1).await.unwrap();
    let clients = async {
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut next = TcpStream::connect(address).await.unwrap();
        framed::write(&mut next, &query("7.me.kshuttle-check.svc.").to_vec().unwrap()).await.unwrap();
        assert_eq!(framed::read(&mut silent).await.unwrap(), None);
        assert!(framed::read(&mut next).await.unwrap().is_some());
    };
    tokio::select! {
        () = stub.serve(Front { datagrams, connections, upstream: none() }) => {}
        () = clients => {}
    }
    drop(all_but_one);
}

/// The same as many at once, but without a race.
#[tokio::test]
async fn a_question_too_many_fails_at_once() {
    let stub = stub(Untouched, false);
    let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let connections = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(datagrams.local_addr().unwrap()).await.unwrap();
    let asked = query("7.me.kshuttle-check.cluster.local.").to_vec().unwrap();
    let ask = async || {
        client.send(&asked).await.unwrap();
        let mut answer = [0; 512];
        let length = client.recv(&mut answer).await.unwrap();
        Message::from_vec(&answer[..length]).unwrap().metadata.response_code
    };
    let questions = async {
        let all = stub.0.room.acquire_many(UNDER_WAY_MAX as u32).await.unwrap();
        assert_eq!(ask().await, ResponseCode::ServFail);
        drop(all);
        assert_eq!(ask().await, ResponseCode::NoError);
        stub.quiet().await;
    };
    tokio::select! {
        () = stub.serve(Front { datagrams, connections, upstream: none() }) => {}
        () = questions => {}
    }
}

proptest! {
    #[test]
    fn no_query_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..40_usize, by: u8) {
        let mut damaged = query("hello.default.svc.cluster.local.").to_vec().unwrap();
        let at = at % damaged.len();
        damaged[at] ^= by;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let stub = stub(Never, true);
            for bytes in [&bytes, &damaged] {
                ask(&stub, bytes, &none()).await;
            }
        });
    }
}
