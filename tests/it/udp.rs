//! UDP flows through tunnels to the pod's real server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::pool::{DialError, Dialed, Pool, Route, Settings};
use kshuttle::tunnel::{Connect, ConnectError};
use kshuttle_test_support::net::{closed_udp_port, connection, echo, exchange, server, udp_echo};
use kshuttle_test_support::openssh::OpenSsh;
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::flow::client::OpenError;
use kshuttle_wire::flow::udp::DatagramFlow;
use kshuttle_wire::relay;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

fn route(address: std::net::SocketAddr, identity: Identity, user: &str, ours: bool) -> Route {
    let dial = move || {
        async move {
            let stream = TcpStream::connect(address).await.map_err(DialError::passing)?;
            stream.set_nodelay(true).unwrap();
            Ok(Dialed { stream: Box::new(stream), way: "loopback".into() })
        }
        .boxed()
    };
    Route {
        name: "pod".into(),
        dial: Arc::new(dial),
        identity,
        user: user.to_owned(),
        host_key: HostKey::default(),
        ours,
    }
}

/// A pod and the way to it.
async fn pod() -> (Sshd, Route) {
    let identity = Identity::generate().unwrap();
    let pod = Sshd::start(&identity.authorized_key().unwrap()).await;
    let route = route(pod.address, identity, "kshuttle", true);
    (pod, route)
}

async fn pool() -> (Sshd, Pool) {
    let (pod, route) = pod().await;
    let pool = Pool::start(Settings::default());
    pool.lead(Some(route));
    within(pool.first_up(Duration::from_secs(60))).await.unwrap();
    (pod, pool)
}

async fn next(flow: &mut DatagramFlow) -> Bytes {
    within(flow.recv.recv()).await.unwrap().unwrap()
}

/// Sends `count` datagrams of 1,400 bytes to an echo, 32 of them under way at once; each must come back, in turn.
async fn volley(mut flow: DatagramFlow, count: usize) {
    const UNDER_WAY: usize = 32;
    let datagram = |number: usize| {
        let mut datagram = pattern(1_400);
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        Bytes::from(datagram)
    };
    let mut sent = 0;
    for received in 0..count {
        while sent < count.min(received + UNDER_WAY) {
            flow.send.send(datagram(sent)).unwrap();
            sent += 1;
        }
        assert!(next(&mut flow).await == datagram(received), "number {received}");
    }
    assert_eq!((flow.send.dropped(), flow.recv.dropped()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_datagrams_and_none_is_lost() {
    let (_pod, pool) = pool().await;
    volley(pool.connect_udp(&udp_echo().await.into()).await.unwrap(), 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_flows_at_once_beside_a_transfer() {
    let (_pod, pool) = pool().await;
    let tcp = server(echo).await;
    let mut all = JoinSet::new();
    for _ in 0..4 {
        // One each: the buffer of one socket does not hold what all of them have under way.
        let udp = udp_echo().await;
        all.spawn(volley(pool.connect_udp(&udp.into()).await.unwrap(), 2_000));
    }
    let (application, accepted) = connection().await;
    let flow = pool.connect(&tcp.into()).await.unwrap();
    tokio::spawn(relay::relay(accepted, flow));
    all.spawn(exchange(application, 16 << 20));
    all.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_and_longest_datagrams() {
    let (_pod, pool) = pool().await;
    let mut flow = pool.connect_udp(&udp_echo().await.into()).await.unwrap();
    for length in [0, 65_507, 1, 0] {
        flow.send.send(pattern(length).into()).unwrap();
        assert!(next(&mut flow).await == pattern(length), "{length}");
    }
}

/// What an unconnected socket of the application would see: nothing. The flow goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_closed_is_silence() {
    let (_pod, pool) = pool().await;
    let closed = closed_udp_port().await;
    let mut flow = pool.connect_udp(&closed.into()).await.unwrap();
    let mut beside = pool.connect_udp(&udp_echo().await.into()).await.unwrap();
    for _ in 0..10 {
        flow.send.send("anybody?".into()).unwrap();
        beside.send.send("x".into()).unwrap();
        tokio::select! {
            ended = flow.recv.recv() => panic!("{ended:?}"),
            _ = next(&mut beside) => {}
        }
    }
    let socket = UdpSocket::bind(closed).await.unwrap();
    flow.send.send("now?".into()).unwrap();
    let (_, from) = within(socket.recv_from(&mut [0; 8])).await.unwrap();
    socket.send_to(b"yes", from).await.unwrap();
    assert_eq!(next(&mut flow).await, "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_nobody_reads_holds_back_nobody() {
    let (_pod, pool) = pool().await;
    let udp = udp_echo().await;
    let mut unread = Vec::new();
    for _ in 0..8 {
        let flow = pool.connect_udp(&udp.into()).await.unwrap();
        let fill = async {
            while flow.recv.dropped() == 0 {
                if flow.send.send(pattern(1_400).into()).is_err() {
                    tokio::task::yield_now().await;
                }
            }
        };
        within(fill).await;
        unread.push(flow);
    }
    let (application, accepted) = connection().await;
    let flow = pool.connect(&server(echo).await.into()).await.unwrap();
    tokio::spawn(relay::relay(accepted, flow));
    exchange(application, 16 << 20).await;
    volley(pool.connect_udp(&udp.into()).await.unwrap(), 1_000).await;
}

#[tokio::test]
async fn a_flow_waits_for_a_tunnel() {
    let (_pod, route) = pod().await;
    let echo = udp_echo().await.into();
    let pool = Pool::start(Settings::default());
    let mut asked = Box::pin(pool.connect_udp(&echo));
    assert!(futures::poll!(&mut asked).is_pending());
    pool.lead(Some(route));
    let mut flow = within(asked).await.unwrap();
    flow.send.send("x".into()).unwrap();
    assert_eq!(next(&mut flow).await, "x");
}

#[tokio::test]
async fn another_ssh_server_carries_no_udp_and_that_is_told() {
    let identity = Identity::generate().unwrap();
    let openssh = OpenSsh::start(&identity.authorized_key().unwrap(), "").await;
    let pool = Pool::start(Settings::default());
    pool.lead(Some(route(openssh.address, identity, &openssh.user, false)));
    within(pool.first_up(Duration::from_secs(60))).await.unwrap();
    let refused = within(pool.connect_udp(&udp_echo().await.into())).await;
    let Err(error) = refused else { panic!("opened") };
    assert!(matches!(error, ConnectError::Open(OpenError::OnlyTcp)), "{error}");
    assert!(error.to_string().contains("TCP only"), "{error}");
}
