//! A stub in front of a tunnel to the pod's real server, and its clients.

use std::net::SocketAddr;
use std::sync::Mutex;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use kshuttle::dns::zone::Zones;
use kshuttle::dns::{Front, Ordinary, Settings, Stub, Upstream};
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::ssh::Session;
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// A stub with one front.
pub(super) struct Scene {
    pub(super) sshd: Mutex<Option<Sshd>>,
    pub(super) stub: Stub<Session, Ordinary>,
    pub(super) up: watch::Sender<bool>,
    pub(super) zones: watch::Sender<Zones>,
    pub(super) upstream: Upstream,
    pub(super) udp: SocketAddr,
    pub(super) tcp: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

pub(super) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

pub(super) async fn front(
    stub: &Stub<Session, Ordinary>,
    upstream: Upstream,
) -> (SocketAddr, SocketAddr, AbortOnDropHandle<()>) {
    let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let connections = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (udp, tcp) = (datagrams.local_addr().unwrap(), connections.local_addr().unwrap());
    let stub = stub.clone();
    let serving = tokio::spawn(async move { stub.serve(Front { datagrams, connections, upstream }).await });
    (udp, tcp, AbortOnDropHandle::new(serving))
}

pub(super) async fn scene(servers: Vec<SocketAddr>, upstream: Upstream) -> Scene {
    let identity = Identity::generate().unwrap();
    let sshd = Sshd::start(&identity.authorized_key().unwrap()).await;
    let tunnel = Session::start(sshd.dial().await, &identity, &HostKey::default()).await.unwrap();
    let (up, zones) = (
        watch::Sender::new(true),
        watch::Sender::new(Zones {
            domain: name("cluster.local."),
            servers,
            namespace: "default".into(),
            namespaces: Some(["default".to_owned(), "dev".to_owned()].into()),
            mapped: Default::default(),
            ranges: vec!["10.96.0.0/12".parse().unwrap()],
            extra: Vec::new(),
            check: "me".into(),
            ipv6: false,
        }),
    );
    let settings = Settings { tunnel, up: up.subscribe(), zones: zones.subscribe(), sockets: Ordinary };
    let stub = Stub::new(settings);
    let (udp, tcp, serving) = front(&stub, upstream.clone()).await;
    Scene { sshd: Mutex::new(Some(sshd)), stub, up, zones, upstream, udp, tcp, _serving: serving }
}

pub(super) fn nowhere() -> Upstream {
    Upstream::Servers(watch::Sender::new(Vec::new()).subscribe())
}

pub(super) fn query(text: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message
}

pub(super) async fn by_udp(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query).await.unwrap();
    let mut answer = vec![0; 65_535];
    let length = within(socket.recv(&mut answer)).await.unwrap();
    answer.truncate(length);
    answer
}

pub(super) async fn send(stream: &mut TcpStream, query: &[u8]) {
    let length = u16::try_from(query.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await.unwrap();
}

pub(super) async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = vec![0; within(stream.read_u16()).await.unwrap().into()];
    within(stream.read_exact(&mut answer)).await.unwrap();
    answer
}

pub(super) async fn by_tcp(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    send(&mut stream, query).await;
    receive(&mut stream).await
}

impl Scene {
    /// Asks by both ways; the answers must say the same.
    pub(super) async fn ask(&self, text: &str, kind: RecordType) -> Message {
        let asked = query(text, kind, Some(1_232));
        let bytes = asked.to_vec().unwrap();
        let [udp, tcp] = [by_udp(self.udp, &bytes).await, by_tcp(self.tcp, &bytes).await]
            .map(|answer| Message::from_vec(&answer).unwrap());
        assert_eq!(udp.metadata, tcp.metadata, "{text}");
        assert_eq!(texts(&udp), texts(&tcp), "{text}");
        assert_eq!((udp.metadata.id, &udp.queries), (asked.metadata.id, &asked.queries), "{text}");
        udp
    }

    /// Code and records without their TTLs.
    pub(super) async fn told(&self, text: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let answer = self.ask(text, kind).await;
        (answer.metadata.response_code, texts(&answer))
    }
}

pub(super) fn texts(message: &Message) -> Vec<String> {
    let text = |record: &Record| format!("{} {} {}", record.name, record.record_type(), record.data);
    message.answers.iter().map(text).collect()
}

pub(super) fn found(texts: &[&str]) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, texts.iter().map(|text| (*text).to_owned()).collect())
}
