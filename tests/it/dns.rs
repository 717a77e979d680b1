//! DNS: a stub between clients, the pod's real server with a cluster's DNS behind it, and servers outside.

mod cluster;
mod outside;
mod scene;

use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use kshuttle::dns::{Transport, Upstream};
use kshuttle_test_support::net::{closed_port, closed_udp_port, server, swallow};
use kshuttle_test_support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::cluster::Cluster;
use self::outside::{Outside, strange};
use self::scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_cluster_in_all_their_forms() {
    let (cluster, outside) = (Cluster::start().await, Outside::start().await);
    let scene = scene(vec![cluster.address], Upstream::Server(outside.address)).await;
    for asked in [
        "hello.default.svc.cluster.local.",
        "Hello.default.SVC.Cluster.local.",
        "hello.default.svc.",
        "hello.default.",
        "hello.",
    ] {
        assert_eq!(scene.told(asked, RecordType::A).await, found(&[&format!("{asked} A 10.96.0.7")]));
        // There is an IPv6 address, but not for this machine.
        let none = scene.ask(asked, RecordType::AAAA).await;
        assert_eq!((none.metadata.response_code, texts(&none)), found(&[]), "{asked}");
        let zone = none.authorities[0].name.clone();
        assert!(zone.zone_of(&name(asked)) && !zone.is_root(), "{zone} of {asked}");
    }
    scene.zones.send_modify(|zones| zones.ipv6 = true);
    assert_eq!(scene.told("hello.default.", RecordType::AAAA).await, found(&["hello.default. AAAA fd00::7"]));
    let srv = "_http._tcp.hello.default.svc.";
    let expected = format!("{srv} SRV 0 100 80 hello.default.svc.cluster.local.");
    assert_eq!(scene.told(srv, RecordType::SRV).await, found(&[&expected]));
    let ptr = "7.0.96.10.in-addr.arpa.";
    let expected = format!("{ptr} PTR hello.default.svc.cluster.local.");
    assert_eq!(scene.told(ptr, RecordType::PTR).await, found(&[&expected]));
    let alias = scene.told("alias.default.", RecordType::A).await;
    assert_eq!(alias, found(&["alias.default. CNAME db.example.com.", "db.example.com. A 192.0.2.7"]));

    let absent = scene.ask("www.example.com.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(absent.authorities[0].name, name("cluster.local."));
    assert_eq!(outside.asked(), 0, "nobody outside hears of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_the_cluster_has_not_are_asked_outside() {
    let (cluster, outside) = (Cluster::start().await, Outside::start().await);
    let scene = scene(vec![cluster.address], Upstream::Server(outside.address)).await;
    for (number, asked) in
        ["nope.default.", "nope.", "www.example.com.", "hello.dev."].into_iter().enumerate()
    {
        let bytes = query(asked, RecordType::A, None).to_vec().unwrap();
        assert_eq!(by_udp(scene.udp, &bytes).await, strange(&bytes), "{asked}");
        assert_eq!(by_tcp(scene.tcp, &bytes).await, strange(&bytes), "{asked}");
        assert_eq!(outside.asked(), 2 * (number + 1));
    }
    assert_eq!(cluster.asked(), 1, "once about two names for the same, and never about what is public");

    // In --mapped-namespaces the cluster has the last word.
    scene.zones.send_modify(|zones| zones.mapped.extend(["dev".to_owned()]));
    assert_eq!(scene.told("hello.dev.", RecordType::A).await, found(&["hello.dev. A 10.96.0.8"]));
    assert_eq!(scene.told("nope.dev.", RecordType::A).await.0, ResponseCode::NXDomain);
    assert_eq!(outside.asked(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extra_zone_is_asked_at_its_server() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let scene = scene(vec![cluster.address], nowhere()).await;
    scene.zones.send_modify(|zones| zones.extra.push((name("example.com."), other.address)));
    assert_eq!(scene.told("DB.example.com.", RecordType::A).await, found(&["DB.example.com. A 192.0.2.7"]));
    assert_eq!((cluster.asked(), other.asked()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_come_whole_by_tcp() {
    let cluster = Cluster::start().await;
    let scene = scene(vec![cluster.address], nowhere()).await;
    for (size, most) in [(None, 512), (Some(4_096), 1_232)] {
        let bytes = query("big.default.", RecordType::TXT, size).to_vec().unwrap();
        let cut = by_udp(scene.udp, &bytes).await;
        assert!(cut.len() <= most, "{}", cut.len());
        assert!(Message::from_vec(&cut).unwrap().metadata.truncation);
        let whole = Message::from_vec(&by_tcp(scene.tcp, &bytes).await).unwrap();
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, cluster::BIG));
    }
    assert_eq!(cluster.asked(), 1, "one answer for all of them");
}

/// As the stub is the only one that looks at them, nobody may see a difference.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_names_outside_whatever_the_tunnel_does() {
    const CLIENTS: usize = 16;
    let (cluster, outside) = (Cluster::start().await, Outside::start().await);
    let scene = Arc::new(scene(vec![cluster.address], Upstream::Server(outside.address)).await);
    let look_up = |phase: usize| {
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let scene = scene.clone();
            clients.spawn(async move {
                for number in 0..10_000 / 3 / CLIENTS + 1 {
                    let text = format!("n{number}.c{client}.p{phase}.example.com.");
                    let bytes = query(&text, RecordType::from(1 + number as u16 % 300), Some(4_096))
                        .to_vec()
                        .unwrap();
                    let answer = match number % 8 {
                        0 => by_tcp(scene.tcp, &bytes).await,
                        _ => by_udp(scene.udp, &bytes).await,
                    };
                    assert!(answer == strange(&bytes), "{text}");
                }
            });
        }
        clients.join_all()
    };
    // Names of the cluster are asked for all the time.
    let cluster_names = scene.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let asking = tokio::spawn(async move {
        let ask = async {
            for number in 0.. {
                let asked = query(&format!("x{number}.default.svc.cluster.local."), RecordType::A, None);
                by_udp(cluster_names.udp, &asked.to_vec().unwrap()).await;
            }
        };
        tokio::select! { () = ask => {}, _ = stopped => {} }
    });
    look_up(0).await;
    let resetting = look_up(1);
    drop(scene.sshd.lock().unwrap().take()); // its connections end with it
    resetting.await;
    scene.up.send_replace(false);
    look_up(2).await;
    drop(stop);
    asking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_share_a_connection_and_are_answered_in_any_order() {
    const TOGETHER: usize = 50;
    let cluster = Cluster::holding(TOGETHER).await;
    let scene = scene(vec![cluster.address], nowhere()).await;
    let mut stream = TcpStream::connect(scene.tcp).await.unwrap();
    let mut clients = JoinSet::new();
    for number in 0..TOGETHER {
        let udp = scene.udp;
        clients.spawn(async move {
            let asked = query(&format!("n{number}.default.svc.cluster.local."), RecordType::A, None);
            let answer = Message::from_vec(&by_udp(udp, &asked.to_vec().unwrap()).await).unwrap();
            assert_eq!(answer.queries, asked.queries);
            assert_eq!(answer.answers[0].data.to_string(), format!("10.97.0.{number}"));
        });
    }
    clients.join_all().await;
    assert_eq!(cluster.connections(), 1);

    // A client may do the same: both are answered on its one connection.
    let ids = [7, 8].map(|id| {
        let mut asked = query(&format!("n{id}.default.svc.cluster.local."), RecordType::A, None);
        asked.metadata.id = id;
        asked.to_vec().unwrap()
    });
    for asked in &ids {
        send(&mut stream, asked).await;
    }
    stream.shutdown().await.unwrap(); // it still wants the answers
    let mut got = [receive(&mut stream).await[1], receive(&mut stream).await[1]];
    got.sort_unstable();
    assert_eq!(got, [7, 8]);
    assert_eq!(within(stream.read(&mut [0])).await.unwrap(), 0, "the connection ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_among_questions_costs_no_answer() {
    let cluster = Cluster::hanging_up_after(3).await;
    let scene = scene(vec![cluster.address], nowhere()).await;
    for number in 0..20 {
        let asked = format!("n{number}.default.svc.cluster.local.");
        assert_eq!(scene.told(&asked, RecordType::A).await, found(&[&format!("{asked} A 10.97.0.{number}")]));
    }
    assert!(cluster.connections() > 5, "{}", cluster.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_is_asked_when_one_is_gone_or_silent() {
    let cluster = Cluster::start().await;
    let silent = server(swallow).await;
    let scene = scene(vec![closed_port().await, silent, cluster.address], nowhere()).await;
    assert_eq!(scene.told("hello.default.", RecordType::A).await, found(&["hello.default. A 10.96.0.7"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tunnel_what_is_known_counts() {
    let (cluster, outside) = (Cluster::start().await, Outside::start().await);
    let scene = scene(vec![cluster.address], Upstream::Server(outside.address)).await;
    assert_eq!(scene.told("hello.default.", RecordType::A).await, found(&["hello.default. A 10.96.0.7"]));
    scene.up.send_replace(false);
    assert_eq!(scene.told("hello.default.", RecordType::A).await, found(&["hello.default. A 10.96.0.7"]));
    assert_eq!(
        scene.told("hello.default.", RecordType::TXT).await.0,
        ResponseCode::ServFail,
        "it is the cluster's"
    );
    assert_eq!(scene.told("x.default.svc.", RecordType::A).await.0, ResponseCode::ServFail);
    assert_eq!(outside.asked(), 0);
    let unknown = query("other.default.", RecordType::A, None).to_vec().unwrap();
    assert_eq!(by_udp(scene.udp, &unknown).await, strange(&unknown), "nobody said that it is the cluster's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_outside() {
    let outside = Outside::hostile().await;
    let scene = scene(Vec::new(), Upstream::Server(outside.address)).await;
    for number in 0..20 {
        let bytes = query(&format!("n{number}.example.com."), RecordType::A, None).to_vec().unwrap();
        assert_eq!(by_udp(scene.udp, &bytes).await, strange(&bytes));
        assert_eq!(by_tcp(scene.tcp, &bytes).await, strange(&bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_outside_is_asked_when_one_refuses_or_is_gone() {
    let (outside, refusing) = (Outside::start().await, Outside::refusing().await);
    let gone = closed_udp_port().await;
    let servers = watch::Sender::new(vec![gone, refusing.address, outside.address]);
    let scene = scene(Vec::new(), Upstream::Servers(servers.subscribe())).await;
    let bytes = query("www.example.com.", RecordType::A, None).to_vec().unwrap();
    assert_eq!(by_udp(scene.udp, &bytes).await, strange(&bytes));
    assert_eq!(by_tcp(scene.tcp, &bytes).await, strange(&bytes));
    servers.send_replace(vec![refusing.address, gone]);
    let refused = Message::from_vec(&by_udp(scene.udp, &bytes).await).unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused, "nobody knew better");
}

/// As if a redirect took our own questions, too.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_questions_are_refused_when_they_come_back() {
    let scene = scene(Vec::new(), nowhere()).await;
    let mut looped = scene.stub.looped();
    for (transport, at) in [(Transport::Udp, scene.udp), (Transport::Tcp, scene.tcp)] {
        let (udp, tcp, _serving) = front(&scene.stub, Upstream::Server(at)).await;
        let bytes = query("www.example.com.", RecordType::A, None).to_vec().unwrap();
        let answer = match transport {
            Transport::Udp => by_udp(udp, &bytes).await,
            Transport::Tcp => by_tcp(tcp, &bytes).await,
        };
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::Refused);
        within(looped.changed()).await.unwrap();
    }
    assert_eq!(*looped.borrow(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_questions_are_seen_with_their_way() {
    let scene = scene(Vec::new(), nowhere()).await;
    let mut canaries = scene.stub.canaries();
    let bytes = query("A1.me.kshuttle-check.svc.cluster.local.", RecordType::A, None).to_vec().unwrap();
    by_udp(scene.udp, &bytes).await;
    by_tcp(scene.tcp, &bytes).await;
    for (transport, at) in [(Transport::Udp, scene.udp), (Transport::Tcp, scene.tcp)] {
        let canary = within(canaries.recv()).await.unwrap();
        assert_eq!((canary.nonce.as_str(), canary.transport, canary.at), ("a1", transport, at));
    }
    within(scene.stub.quiet()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations() {
    let (cluster, outside) = (Cluster::start().await, Outside::start().await);
    let scene = scene(vec![cluster.address], Upstream::Server(outside.address)).await;
    let explain = async |name| scene.stub.explain(name, "A", &scene.upstream).await.unwrap();
    let told = explain("hello.default").await;
    assert_eq!((told.ours, told.held, told.code.as_str()), (true, false, "No Error"));
    assert_eq!(told.asked, "the cluster for hello.default.svc.cluster.local.");
    assert!(
        told.records[0].starts_with("hello.default. ") && told.records[0].ends_with(" 10.96.0.7"),
        "{told:?}"
    );
    assert!(explain("hello.default").await.held);
    let told = explain("hello.dev").await;
    assert!(!told.ours && told.why.contains("public top-level domain"), "{told:?}");
    assert_eq!(told.asked, format!("{}, a server of this machine's own", outside.address));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_question_gets_no_answer() {
    let scene = scene(Vec::new(), nowhere()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(scene.udp).await.unwrap();
    let mut response = query("www.example.com.", RecordType::A, None);
    response.metadata.message_type = hickory_proto::op::MessageType::Response;
    for silent in [Vec::new(), vec![0; 11], response.to_vec().unwrap()] {
        socket.send(&silent).await.unwrap();
    }
    socket.send(&[7; 2].into_iter().chain([0; 10]).collect::<Vec<_>>()).await.unwrap(); // a query without a question
    let mut answer = [0; 512];
    let length = within(socket.recv(&mut answer)).await.unwrap();
    let answer = Message::from_vec(&answer[..length]).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x0707, ResponseCode::FormErr));
}
