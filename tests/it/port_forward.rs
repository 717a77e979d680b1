//! The port-forward's handshake against a scripted HTTP server on loopback: requests byte by byte, fallback, errors.
//! What happens after the upgrade is tested next to the code, over in-memory pipes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod api;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kshuttle::cluster::port_forward::{Dialer, PortForwardError, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use self::api::{Answer, CHANNELS, TUNNEL, api, header, http, spdy_head, status, websocket_head};

#[tokio::test]
async fn the_websocket_request_and_bytes_behind_the_101() {
    let mut api = api(Transport::Websocket, [Answer::Upgrade]).await;
    assert_eq!(api.run().await.unwrap(), (Transport::Websocket, b"hello".to_vec()));
    let head = api.requests.recv().await.unwrap();
    assert!(head.starts_with("GET /api/v1/namespaces/ns/pods/pod/portforward HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", TUNNEL),
    ] {
        assert_eq!(header(&head, name), value, "{name}");
    }
    assert_eq!(header(&head, "sec-websocket-key").len(), 24);
    assert_eq!(header(&head, "sec-websocket-extensions"), "", "compression must not be offered");
}

#[tokio::test]
async fn the_spdy_request() {
    let mut api = api(Transport::Auto, [Answer::Upgrade]).await;
    assert_eq!(api.run().await.unwrap(), (Transport::Spdy, b"hello".to_vec()));
    let head = api.requests.recv().await.unwrap();
    assert!(head.starts_with("POST /api/v1/namespaces/ns/pods/pod/portforward HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "SPDY/3.1"),
        ("content-length", "0"),
        ("x-stream-protocol-version", "portforward.k8s.io"),
    ] {
        assert_eq!(header(&head, name), value, "{name}");
    }
}

#[tokio::test]
async fn the_request_of_the_old_protocol() {
    let mut api = api(Transport::V4, [Answer::Upgrade]).await;
    assert_eq!(api.run().await.unwrap(), (Transport::V4, b"hello".to_vec()));
    let head = api.requests.recv().await.unwrap();
    let line = "GET /api/v1/namespaces/ns/pods/pod/portforward?ports=8000 HTTP/1.1\r\n";
    assert!(head.starts_with(line), "{head}");
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", CHANNELS),
    ] {
        assert_eq!(header(&head, name), value, "{name}");
    }
}

#[tokio::test]
async fn answers_in_any_spelling_and_split() {
    let spellings = [
        (Transport::Websocket, websocket_head()),
        (
            Transport::Websocket,
            websocket_head().replace("Connection: Upgrade", "connection: keep-alive, upgrade"),
        ),
        (Transport::Websocket, websocket_head().replace("Upgrade: websocket", "UPGRADE: WebSocket")),
        (Transport::Spdy, spdy_head()),
        (Transport::Spdy, spdy_head().replace("SPDY/3.1", "spdy/3.1")),
        (Transport::Spdy, spdy_head().replace("X-Stream-Protocol-Version: portforward.k8s.io\r\n", "")),
    ];
    for (transport, head) in spellings {
        for by_byte in [false, true] {
            let api = api(transport, [Answer::Head { head: head.clone(), by_byte }]).await;
            let (_, bytes) = api.run().await.unwrap_or_else(|error| panic!("{error:?} for {head}"));
            assert_eq!(bytes, b"hello");
        }
    }
}

#[tokio::test]
async fn wrong_upgrades_are_refused() {
    let websocket = websocket_head();
    let cases = [
        (Transport::Websocket, websocket.replace("ACCEPT", "c3VyZWx5IG5vdCByaWdodA==")),
        (Transport::Websocket, websocket.replace(TUNNEL, "v4.channel.k8s.io")),
        (Transport::Websocket, websocket.replace(&format!("Sec-WebSocket-Protocol: {TUNNEL}\r\n"), "")),
        (Transport::Websocket, websocket.replace("Upgrade: websocket", "Upgrade: h2c")),
        (Transport::V4, websocket_head()),
        (Transport::Spdy, spdy_head().replace("portforward.k8s.io", "v4.channel.k8s.io")),
        (Transport::Spdy, spdy_head().replace("SPDY/3.1", "websocket")),
    ];
    for (transport, head) in cases {
        let answer = Answer::Head { head: head.clone(), by_byte: false };
        let error = api(transport, [answer.clone()]).await.run().await.unwrap_err();
        assert!(matches!(error, PortForwardError::BadUpgrade(_)), "{error:?} for {head}");
        if transport == Transport::Spdy {
            let mut api = api(Transport::Auto, [answer, Answer::Upgrade]).await;
            assert_eq!(api.run().await.unwrap().0, Transport::Websocket);
            assert_eq!(api.asked(), ["POST", "GET"]);
        }
    }
}

#[tokio::test]
async fn a_refused_spdy_falls_back_once_and_the_way_is_remembered() {
    let answers = [
        status("400 Bad Request", "BadRequest", "Upgrade request required"),
        status("403 Forbidden", "Forbidden", "cannot create resource pods/portforward"),
        http("403 Forbidden", "", ""),
        http("404 Not Found", "", "404 page not found"),
        http("405 Method Not Allowed", "", ""),
        status("500 Internal Server Error", "InternalError", "error dialing backend"),
        http("501 Not Implemented", "", ""),
        http("502 Bad Gateway", "Content-Type: text/html\r\n", "<html><h1>502 Bad Gateway</h1></html>"),
        http("503 Service Unavailable", "", "upstream connect error"),
        http("504 Gateway Timeout", "", ""),
        http("200 OK", "", "welcome"),
        http("301 Moved Permanently", "Location: https://login.example/\r\n", ""),
        Answer::Cut,
        Answer::SilentFor(Duration::from_secs(6)),
    ];
    for answer in answers {
        let mut api = api(Transport::Auto, [answer, Answer::Upgrade, Answer::Upgrade]).await;
        assert_eq!(api.run().await.unwrap(), (Transport::Websocket, b"hello".to_vec()));
        assert_eq!(api.asked(), ["POST", "GET"]);
        assert_eq!(api.dialer.clone().open("pod", 1).await.unwrap().transport(), Transport::Websocket);
        assert_eq!(api.asked(), ["GET"], "the way that failed is not tried again");
    }
}

#[tokio::test]
async fn a_remembered_way_that_stops_working_is_left() {
    let answers = [http("500 Oops", "", ""), Answer::Upgrade, http("501 Gone", "", ""), Answer::Upgrade];
    let mut api = api(Transport::Auto, answers).await;
    assert_eq!(api.run().await.unwrap().0, Transport::Websocket);
    assert_eq!(api.run().await.unwrap().0, Transport::Spdy);
    assert_eq!(api.asked(), ["POST", "GET", "GET", "POST"]);
}

#[tokio::test]
async fn answers_that_would_be_the_same_are_not_asked_for_twice() {
    let one = async |answer| {
        let mut api = api(Transport::Auto, [answer]).await;
        let error = api.run().await.unwrap_err();
        assert_eq!(api.asked(), ["POST"]);
        error
    };
    let error = one(status("401 Unauthorized", "Unauthorized", "Unauthorized")).await;
    assert!(matches!(error, PortForwardError::Unauthorized { .. }), "{error:?}");
    let error = one(status("404 Not Found", "NotFound", "pods x not found")).await;
    assert_eq!(error.to_string(), "pods x not found");
    assert!(matches!(error, PortForwardError::NotFound { .. }), "{error:?}");
    let error =
        one(http("429 Too Many Requests", "Retry-After: 60\r\n", "too many requests in flight")).await;
    assert!(
        matches!(error, PortForwardError::TooManyRequests { retry_after: Some(after), .. } if after.as_secs() == 60),
        "{error:?}"
    );
    for code in ["503 Service Unavailable", "504 Gateway Timeout"] {
        let error = one(status(code, "ServiceUnavailable", "later")).await;
        assert!(matches!(error, PortForwardError::Server { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn both_refusals_are_kept() {
    let answers = [
        status("403 Forbidden", "Forbidden", "cannot create"),
        status("403 Forbidden", "Forbidden", "cannot get"),
    ];
    let mut api = api(Transport::Auto, answers).await;
    let error = api.run().await.unwrap_err();
    assert_eq!(api.asked(), ["POST", "GET"]);
    let text = error.to_string();
    let PortForwardError::Refusals { way: Transport::Spdy, error: spdy, others } = error else {
        panic!("{error:?}")
    };
    assert!(text.contains("over websocket (not permitted") && text.contains("cannot get"), "{text}");
    let [(Transport::Websocket, websocket)] = &others[..] else { panic!("{others:?}") };
    let parts = |error: &PortForwardError| match error {
        PortForwardError::Forbidden { message, verb } => (message.clone(), *verb),
        other => panic!("{other:?}"),
    };
    assert_eq!(parts(&spdy), ("cannot create".to_owned(), "create"));
    assert_eq!(parts(websocket), ("cannot get".to_owned(), "get"));
}

/// An old API server behind a proxy that does not let SPDY through.
#[tokio::test]
async fn the_old_protocol_is_the_third_way_and_remembered() {
    let kubelet = || http("400 Bad Request", "", "query parameter \"port\" is required");
    let proxies = [
        http("502 Bad Gateway", "Content-Type: text/html\r\n", "<h1>502 Bad Gateway</h1>"),
        http("501 Not Implemented", "", ""),
        http("403 Forbidden", "", "upgrade_failed"),
        status("403 Forbidden", "Forbidden", "cannot create resource pods/portforward"),
        Answer::Cut,
    ];
    for proxy in proxies {
        let mut api = api(Transport::Auto, [proxy, kubelet(), Answer::Upgrade, Answer::Upgrade]).await;
        assert_eq!(api.run().await.unwrap(), (Transport::V4, b"hello".to_vec()));
        assert_eq!(api.asked(), ["POST", "GET", "GET v4"]);
        assert_eq!(api.run().await.unwrap().0, Transport::V4);
        assert_eq!(api.asked(), ["GET v4"]);
    }
    let api = api(Transport::Auto, [kubelet(), kubelet(), http("501 No", "", "")]).await;
    let error = api.run().await.unwrap_err();
    let PortForwardError::Refusals { way: Transport::Spdy, others, .. } = error else { panic!("{error:?}") };
    let ways: Vec<_> = others.iter().map(|(way, _)| *way).collect();
    assert_eq!(ways, [Transport::Websocket, Transport::V4]);
}

/// What Kubernetes itself says to one kind of WebSocket it would say to the other.
#[tokio::test]
async fn the_old_protocol_is_not_tried_against_the_clusters_word() {
    let last_words = [
        status("403 Forbidden", "Forbidden", "cannot get"),
        status("500 Oops", "InternalError", "error dialing backend"),
        status("401 Unauthorized", "Unauthorized", "Unauthorized"),
        status("404 Not Found", "NotFound", "pods x not found"),
        http("429 Too Many Requests", "", ""),
        http("503 Service Unavailable", "", ""),
    ];
    for websocket in last_words {
        let mut api = api(Transport::Auto, [http("501 Not Implemented", "", ""), websocket]).await;
        api.run().await.unwrap_err();
        assert_eq!(api.asked(), ["POST", "GET"]);
    }
}

#[tokio::test]
async fn forced_ways_do_not_fall_back() {
    for (transport, method) in
        [(Transport::Websocket, "GET"), (Transport::Spdy, "POST"), (Transport::V4, "GET v4")]
    {
        let mut api = api(transport, [http("400 Bad Request", "", "no")]).await;
        let error = api.run().await.unwrap_err();
        assert!(
            matches!(&error, PortForwardError::Server { status: 400, message, .. } if message == "no"),
            "{error:?}"
        );
        assert_eq!(api.asked(), [method]);
    }
}

#[tokio::test]
async fn pages_and_long_answers_are_shortened() {
    let page = format!("<html><title>Sign in</title>{}</html>", "<p>please</p>".repeat(10_000));
    let error = api(Transport::Spdy, [http("502 Bad Gateway", "Content-Type: text/html\r\n", &page)])
        .await
        .run()
        .await;
    let Err(PortForwardError::Proxy { status: 502, text }) = error else { panic!("{error:?}") };
    assert!(text.starts_with("Sign in please") && text.len() < 300, "{text}");

    let error = api(Transport::Spdy, [http("500 Oops", "", &"long ".repeat(200_000))]).await.run().await;
    let Err(PortForwardError::Server { message, .. }) = error else { panic!("{error:?}") };
    assert!(message.len() <= 64 * 1024);

    let huge = format!("X-Huge: {}\r\n", "h".repeat(1024 * 1024));
    let error = api(Transport::Spdy, [http("500 Oops", &huge, "")]).await.run().await;
    assert!(matches!(error, Err(PortForwardError::Dial(_))), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_not_a_reason_to_try_the_other_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let dialer = Dialer::new(kube::Client::try_from(config).unwrap(), "ns", Transport::Auto);
    let error = dialer.open("pod", 1).await.unwrap_err();
    assert!(matches!(error, PortForwardError::Dial(_)), "{error:?}");
}

/// TLS that fails says nothing about the way: garbage, an alert (handshake_failure), and a cut in the middle.
#[tokio::test]
async fn a_failed_tls_handshake_is_not_a_reason_to_try_the_other_way() {
    let answers: [&[u8]; 3] = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28", b""];
    for answer in answers {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                *count.lock().unwrap() += 1;
                let hello = socket.read_u8().await.unwrap();
                assert_eq!(hello, 0x16, "a TLS handshake record");
                socket.write_all(answer).await.unwrap();
                let _ = socket.shutdown().await;
                while socket.read_u8().await.is_ok() {}
            }
        });
        let mut config = kube::Config::new(format!("https://{address}").parse().unwrap());
        config.default_retry = false;
        config.proxy_url = None;
        config.root_cert = Some(Vec::new()); // it never comes to certificates
        let dialer = Dialer::new(kube::Client::try_from(config).unwrap(), "ns", Transport::Auto);
        let error = dialer.open("pod", 1).await.unwrap_err();
        assert!(matches!(error, PortForwardError::Dial(_)), "{error:?}");
        assert_eq!(*connections.lock().unwrap(), 1, "after {answer:02x?}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let mut api =
        api(Transport::Auto, [6, 25].map(|seconds| Answer::SilentFor(Duration::from_secs(seconds)))).await;
    let begin = std::time::Instant::now();
    let error = api.run().await.unwrap_err();
    assert!(matches!(error, PortForwardError::Timeout { .. }), "{error:?}");
    assert_eq!(api.asked(), ["POST", "GET"]);
    assert!(begin.elapsed() < Duration::from_secs(20), "the turned clock was used");
}

#[test]
fn transports_by_name() {
    for name in ["auto", "websocket", "spdy", "v4"] {
        assert_eq!(name.parse::<Transport>().unwrap().to_string(), name);
    }
    assert!("quic".parse::<Transport>().is_err());
}
