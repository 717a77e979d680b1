//! UDP flows to real sockets, over HTTP/2 in an in-memory stream: what an application sees, and ends of other versions.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use bytes::Bytes;
use http::{Method, Request, Version};
use kshuttle_test_support::net::{closed_udp_port, echo, server as target, udp_echo};
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::flow::client::{FlowClient, OpenError};
use kshuttle_wire::flow::udp::{DatagramFlow, Unsent, capsule};
use kshuttle_wire::flow::{ConnectError, MAX_FLOWS, server};
use tokio::io::DuplexStream;
use tokio::net::UdpSocket;

fn stream() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(256 << 10)
}

async fn session() -> FlowClient {
    let (near, far) = stream();
    tokio::spawn(server::serve(far));
    FlowClient::start(near).await.unwrap()
}

async fn open(client: &FlowClient, target: std::net::SocketAddr) -> DatagramFlow {
    client.open_udp(&target.ip().to_string(), target.port()).await.unwrap()
}

/// The next datagram, or the end.
async fn next(flow: &mut DatagramFlow) -> Option<Bytes> {
    within(flow.recv.recv()).await.unwrap()
}

async fn all_closed(client: &FlowClient) {
    while client.open_flows() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn datagrams_of_any_length_keep_their_bounds() {
    let client = session().await;
    let mut flow = open(&client, udp_echo().await).await;
    // 65,507 bytes are the longest that IPv4 carries.
    for length in [0, 1, 62, 63, 1_400, 16_382, 16_383, 65_507, 0] {
        flow.send.send(pattern(length).into()).unwrap();
        assert_eq!(next(&mut flow).await.unwrap(), pattern(length), "{length}");
    }
    assert_eq!(flow.send.send(vec![7; capsule::MAX_PAYLOAD + 1].into()), Err(Unsent::TooLong));
}

#[tokio::test]
async fn names_and_ipv6_are_targets() {
    let client = session().await;
    // Either may be the first address of the name.
    let four = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = four.local_addr().unwrap().port();
    let six = UdpSocket::bind(("::1", port)).await.unwrap();
    let named = client.open_udp("localhost", port).await.unwrap();
    named.send.send("to a name".into()).unwrap();
    let (mut got, mut got_six) = ([0; 9], [0; 9]);
    let received = async {
        tokio::select! {
            received = four.recv_from(&mut got) => received,
            received = six.recv_from(&mut got_six) => received,
        }
    };
    assert_eq!(within(received).await.unwrap().0, 9);

    let mut flow = open(&client, six.local_addr().unwrap()).await;
    flow.send.send("to an address".into()).unwrap();
    let (_, from) = within(six.recv_from(&mut got)).await.unwrap();
    six.send_to(b"and back", from).await.unwrap();
    assert_eq!(next(&mut flow).await.unwrap(), "and back");

    let mut unknown = client.open_udp("no-such-name.invalid", 53).await.unwrap();
    assert!(matches!(within(unknown.recv.recv()).await, Err(ConnectError::UnknownName)));
    for (host, port) in [("", 53), ("127.0.0.1", 0)] {
        assert!(matches!(client.open_udp(host, port).await, Err(OpenError::Target(_))));
    }
}

#[tokio::test]
async fn why_the_pod_has_no_socket_is_told_with_its_errno() {
    let client = session().await;
    // Without permission to broadcast, which nobody asks for, connect(2) fails with EACCES.
    let mut flow = client.open_udp("255.255.255.255", 53).await.unwrap();
    let _ = flow.send.send("early".into());
    let error = within(flow.recv.recv()).await.unwrap_err();
    assert_eq!(error.errno(), Some(13), "{error:?}");
    assert_eq!(next(&mut flow).await, None, "told once");
    assert_eq!(flow.send.send("late".into()), Err(Unsent::Ended));
}

/// An ICMP error is not the end: the target may come back, and then even the first datagram must reach it.
#[tokio::test]
async fn a_target_that_is_not_there_may_come_back() {
    let client = session().await;
    let closed = closed_udp_port().await;
    let mut flow = open(&client, closed).await;
    for _ in 0..3 {
        flow.send.send("nobody".into()).unwrap();
    }
    // Through the same session, so that what was sent before has been dealt with.
    let mut other = open(&client, udp_echo().await).await;
    other.send.send("x".into()).unwrap();
    assert_eq!(next(&mut other).await.unwrap(), "x");

    let socket = UdpSocket::bind(closed).await.unwrap();
    flow.send.send("somebody".into()).unwrap();
    let mut got = [0; 9];
    let length = loop {
        let (length, from) = within(socket.recv_from(&mut got)).await.unwrap();
        socket.send_to(b"here", from).await.unwrap();
        if &got[..length] == b"somebody" {
            break length;
        }
    };
    assert_eq!(length, 8);
    assert_eq!(next(&mut flow).await.unwrap(), "here");
}

#[tokio::test]
async fn what_was_sent_last_arrives_though_its_sender_is_gone() {
    let client = session().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let flow = open(&client, socket.local_addr().unwrap()).await;
    flow.send.send("farewell".into()).unwrap();
    drop(flow);
    let mut got = [0; 9];
    let (length, from) = within(socket.recv_from(&mut got)).await.unwrap();
    assert_eq!(&got[..length], b"farewell");
    // And then the pod's socket goes: the port refuses.
    socket.connect(from).await.unwrap();
    let refused = async {
        while socket.send(b"still there?").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within(refused).await;
    within(all_closed(&client)).await;
}

#[tokio::test]
async fn the_end_of_a_receiver_that_lost_interest_is_no_end_of_the_flow() {
    let client = session().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let DatagramFlow { send, recv } = open(&client, socket.local_addr().unwrap()).await;
    drop(recv);
    let mut got = [0; 9];
    for _ in 0..10 {
        send.send("one way".into()).unwrap();
        let (_, from) = within(socket.recv_from(&mut got)).await.unwrap();
        socket.send_to(b"nobody reads this", from).await.unwrap();
    }
}

/// Neither windows nor queues of the session are theirs.
#[tokio::test]
async fn flows_nobody_reads_hold_back_nobody() {
    let client = session().await;
    let echoing = udp_echo().await;
    let mut stuck = Vec::new();
    for length in [1, 1_400, 60_000] {
        let flow = open(&client, echoing).await;
        while flow.recv.dropped() == 0 {
            if flow.send.send(vec![7; length].into()).is_err() {
                tokio::task::yield_now().await;
            }
        }
        stuck.push(flow);
    }
    let mut datagrams = open(&client, echoing).await;
    let mut connection = client.open(&target(echo).await.to_string()).await.unwrap();
    for _ in 0..100 {
        stuck.iter().for_each(|flow| _ = flow.send.send(vec![7; 1_400].into()));
        connection.send.send("ping".into()).await.unwrap();
        let answer = within(connection.recv.data()).await.unwrap().unwrap();
        connection.recv.release(answer.len());
        datagrams.send.send("ping".into()).unwrap();
        assert_eq!(next(&mut datagrams).await.unwrap(), "ping");
    }
    // What waits is bounded.
    for mut flow in stuck {
        let mut bytes = 0;
        while let Ok(datagram) = tokio::time::timeout(std::time::Duration::ZERO, flow.recv.recv()).await {
            bytes += datagram.unwrap().unwrap().len();
            assert!(bytes <= 2 << 20);
        }
    }
}

/// As questions to a name server are: one flow each. More of them than may be open at once.
#[tokio::test]
async fn thousands_of_short_flows_leave_nothing_behind() {
    let client = session().await;
    let echo = udp_echo().await;
    for _ in 0..MAX_FLOWS + 1_000 {
        let mut flow = open(&client, echo).await;
        flow.send.send("question".into()).unwrap();
        assert_eq!(next(&mut flow).await.unwrap(), "question");
    }
    within(all_closed(&client)).await;
}

/// The bound is that of all flows together.
#[tokio::test]
async fn more_flows_than_the_pod_may_hold_are_refused() {
    let client = session().await;
    let hold = target(|_socket| std::future::pending()).await.to_string();
    let mut open_flows = Vec::new();
    for _ in 0..MAX_FLOWS {
        let mut flow = client.open(&hold).await.unwrap();
        flow.recv.opened().await.unwrap();
        open_flows.push(flow);
    }
    let mut flow = open(&client, udp_echo().await).await;
    assert!(matches!(within(flow.recv.recv()).await, Err(ConnectError::TooMany)));
}

#[tokio::test]
async fn the_end_of_the_session_is_an_error() {
    let (near, far) = stream();
    let serving = tokio::spawn(server::serve(far));
    let client = FlowClient::start(near).await.unwrap();
    let mut flow = open(&client, udp_echo().await).await;
    flow.send.send("x".into()).unwrap();
    assert_eq!(next(&mut flow).await.unwrap(), "x");
    serving.abort();
    assert!(matches!(within(flow.recv.recv()).await, Err(ConnectError::Session(_))));
    assert!(within(client.open_udp("127.0.0.1", 53)).await.is_err());
}

#[tokio::test]
async fn an_older_server_carries_no_datagrams_and_that_is_told() {
    let (near, far) = stream();
    tokio::spawn(async move {
        // As the server was before it knew of UDP: no SETTINGS_ENABLE_CONNECT_PROTOCOL.
        let mut connection: h2::server::Connection<_, Bytes> = h2::server::handshake(far).await.unwrap();
        let mut held = Vec::new();
        while let Some(Ok(flow)) = connection.accept().await {
            held.push(flow);
        }
    });
    let client = FlowClient::start(near).await.unwrap();
    for _ in 0..2 {
        let refused = within(client.open_udp("127.0.0.1", 53)).await;
        let Err(error) = refused else { panic!("opened") };
        assert!(matches!(error, OpenError::NoDatagrams), "{error}");
    }
    client.open("127.0.0.1:53").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
    let (near, _far) = stream();
    let client = FlowClient::start(near).await.unwrap();
    assert!(matches!(client.open_udp("127.0.0.1", 53).await, Err(OpenError::NoSettings)));
}

/// The settings of today's server, and a client that knows nothing of them.
#[tokio::test]
async fn an_older_client_does_not_notice_the_new_setting() {
    let (near, far) = stream();
    tokio::spawn(server::serve(far));
    let (requests, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let mut requests = requests.ready().await.unwrap();
    for _ in 0..2 {
        let request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2);
        let request = request.uri(target(echo).await.to_string()).body(()).unwrap();
        let (response, mut send) = requests.send_request(request, false).unwrap();
        send.send_data(Bytes::from("ping"), false).unwrap();
        let mut body = within(response).await.unwrap().into_body();
        assert_eq!(within(body.data()).await.unwrap().unwrap(), "ping");
    }
    assert!(requests.is_extended_connect_protocol_enabled());
}

/// Extended CONNECTs that are not for UDP, or to nowhere.
#[tokio::test]
async fn other_protocols_are_refused() {
    let (near, far) = stream();
    tokio::spawn(server::serve(far));
    let (requests, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let mut requests = requests.ready().await.unwrap();
    while !requests.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    for (protocol, path) in
        [("websocket", "/"), ("connect-udp", "/"), ("connect-udp", "/.well-known/masque/udp/a/0/")]
    {
        let request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2);
        let request = request.extension(h2::ext::Protocol::from(protocol));
        let request = request.uri(format!("https://pod{path}")).body(()).unwrap();
        let (response, _send) = requests.send_request(request, false).unwrap();
        let response = within(response).await.unwrap();
        assert_eq!(response.status(), 400, "{protocol} {path}");
        assert_eq!(response.headers()["proxy-status"], "kshuttle; error=http_request_error");
    }
}
