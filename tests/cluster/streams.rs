//! Single port-forward streams over each way the API server knows, through the real API server, kubelet and container
//! runtime. `point N`: of the list in `docs/port-forward.md`.

use std::thread;
use std::time::Duration;

use kshuttle::cluster::client::{Options, connect};
use kshuttle::cluster::port_forward::{
    Dialer, PortForwardError, PortForwardStream, STREAM_MEMORY_MAX,
    Transport::{self, Auto, Spdy, V4, Websocket},
};
use kshuttle_test_support::http::sha256;
use kshuttle_test_support::kshuttle::{kubectl, program};
use kshuttle_test_support::line::{Direction, Quality};
use kshuttle_test_support::{pattern, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::runtime::idle;
use crate::scene::{
    OwnPod, Scene, ThroughLine, administrator, apply, bench_pod, block_on, drain, minor, typed, with_bench,
};

const MEBIBYTE: usize = 1 << 20;

/// What port 7001 repeats.
const PERIOD: usize = 256 << 10;

const HTTP: u16 = 8080;
const SOURCE: u16 = 7001;
const ECHO: u16 = 7003;
const SUM: u16 = 7004;
const RESET: u16 = 7005;
const NOBODY: u16 = 9999;

/// What the API server does not know is refused with its reason, and `auto` begins with the best of what it knows.
pub(crate) fn auto_takes_the_first_way_the_api_server_knows() {
    with_bench(async |scene| {
        let known = scene.ways();
        let probe = async |way| within(scene.dialer(way).probe(&scene.pod, ECHO)).await;
        for way in [Spdy, Websocket, V4] {
            match probe(way).await {
                Ok(took) => {
                    assert!(took == way && known.contains(&way), "{way} is not known to be understood")
                }
                Err(PortForwardError::Server { status, message, .. }) => {
                    println!("  {way}: {status} {message}");
                    assert!(!known.contains(&way), "{way} was refused: {status} {message}");
                }
                Err(other) => panic!("{way}: {other:?}"),
            }
        }
        assert_eq!(probe(Auto).await.unwrap(), known[0]);
    });
}

/// Point 2. No reply is waited for: a hundred streams are written to at once, and lose nothing of it.
pub(crate) fn bytes_sent_before_any_reply_arrive() {
    with_bench(async |scene| {
        for way in scene.ways() {
            for number in 0..100u32 {
                let mut stream = scene.open(way, ECHO).await;
                let mut back = [0; 4];
                stream.write_all(&number.to_be_bytes()).await.unwrap();
                within(stream.read_exact(&mut back)).await.unwrap();
                assert_eq!(u32::from_be_bytes(back), number, "{way}");
            }
        }
    });
}

/// Point 10. 64 MiB each way with checksums of the pod, and both ways at once compared byte by byte.
pub(crate) fn bytes_arrive_whole_both_ways() {
    with_bench(async |scene| {
        for way in scene.ways() {
            let block = pattern(MEBIBYTE);
            let mut up = scene.open(way, HTTP).await;
            let request = format!(
                "PUT /sink HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                64 * MEBIBYTE
            );
            up.write_all(request.as_bytes()).await.unwrap();
            for _ in 0..64 {
                within(up.write_all(&block)).await.unwrap();
            }
            let (answer, end) = drain(&mut up).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(end.is_ok() && answer.contains(&sha256(&block, 64)), "{way}: {end:?} {answer}");

            let mut down = scene.open(way, HTTP).await;
            down.write_all(b"GET /64M HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let (answer, end) = drain(&mut down).await;
            let body = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an HTTP head") + 4;
            let head = String::from_utf8_lossy(&answer[..body]);
            assert!(end.is_ok() && answer.len() - body == 64 * MEBIBYTE, "{way}: {end:?} {head}");
            assert!(head.contains(&sha256(&answer[body..], 1)), "{way}: {head}");

            let stream = scene.open(way, ECHO).await;
            echo_whole(stream, &pattern(16 * MEBIBYTE)).await;
        }
    });
}

/// Sends and receives at the same time.
async fn echo_whole(stream: PortForwardStream, bytes: &[u8]) {
    let (mut read, mut write) = split(stream);
    let mut back = vec![0; bytes.len()];
    let send = async {
        write.write_all(bytes).await.unwrap();
        write.flush().await.unwrap();
    };
    let ((), received) = within(async { tokio::join!(send, read.read_exact(&mut back)) }).await;
    received.unwrap();
    assert!(back == bytes, "something else came back");
}

pub(crate) fn a_hundred_connections_at_once() {
    with_bench(async |scene| {
        for way in scene.ways() {
            let dialer = scene.dialer(way);
            let mut tasks = JoinSet::new();
            for number in 0..100 {
                let (dialer, pod) = (dialer.clone(), scene.pod.clone());
                tasks.spawn(async move {
                    let stream = within(dialer.open(&pod, ECHO)).await.unwrap();
                    echo_whole(stream, &pattern(256 * 1024 + number)[number..]).await;
                });
            }
            tasks.join_all().await;
        }
    });
}

/// Point 13. The runtime's own words, not a clean end; the pod's other ports go on.
pub(crate) fn a_refused_port_is_told_in_the_runtimes_words() {
    with_bench(async |scene| {
        for way in scene.ways() {
            let mut beside = scene.open(way, ECHO).await;
            let mut stream = scene.open(way, NOBODY).await;
            let _ = stream.write_all(b"anybody?").await;
            let (bytes, end) = drain(&mut stream).await;
            let Err(PortForwardError::Refused { text }) = end else { panic!("{way}: {end:?}") };
            println!("  {way}: {text}");
            assert!(
                bytes.is_empty() && text.contains("connection refused") && text.contains("9999"),
                "{way}: {text}"
            );
            within(beside.write_all(b"!")).await.unwrap();
            assert_eq!(within(beside.read_u8()).await.unwrap(), b'!');
        }
    });
}

/// Point 11. What came before is kept.
pub(crate) fn a_reset_by_the_pod_is_a_reset() {
    with_bench(async |scene| {
        for way in scene.ways() {
            let mut stream = scene.open(way, RESET).await;
            stream.write_all(b"x").await.unwrap();
            let (bytes, end) = drain(&mut stream).await;
            println!("  {way}: {} bytes, then {end:?}", bytes.len());
            assert!(matches!(end, Err(PortForwardError::Reset { .. })), "{way}: {end:?}");
            assert!(bytes.len() <= 64);
        }
    });
}

/// Point 15: the pod's end, ours, both at once; there is no half-close, and that is not an error.
pub(crate) fn ends_are_clean_whoever_comes_first() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    with_bench(async |scene| {
        for way in scene.ways() {
            let mut theirs = scene.open(way, HTTP).await;
            theirs.write_all(REQUEST).await.unwrap();
            let (answer, end) = drain(&mut theirs).await;
            assert!(end.is_ok() && answer.ends_with(b"hello from bench\n"), "{way}: {end:?}");
            let error = theirs.write_all(b"late").await.unwrap_err();
            assert!(matches!(typed(&error), PortForwardError::Closed), "{way}: {error:?}");

            let mut ours = scene.open(way, ECHO).await;
            ours.write_all(b"x").await.unwrap();
            assert_eq!(within(ours.read_u8()).await.unwrap(), b'x');
            within(ours.shutdown()).await.unwrap();
            let (rest, end) = drain(&mut ours).await;
            assert!(end.is_ok() && rest.is_empty(), "{way}: {end:?} after {rest:?}");

            let mut both = scene.open(way, HTTP).await;
            both.write_all(REQUEST).await.unwrap();
            within(both.shutdown()).await.unwrap();
            let (answer, end) = drain(&mut both).await;
            // The runtime gives the pod a second for it, and this machine may be slow.
            assert!(
                end.is_ok() && (answer.is_empty() || answer.starts_with(b"HTTP/1.1 200")),
                "{way}: {end:?}"
            );

            let mut sum = scene.open(way, SUM).await;
            sum.write_all(b"all of it").await.unwrap();
            within(sum.shutdown()).await.unwrap();
            let (answer, end) = drain(&mut sum).await;
            println!("  {way}: {} bytes of the answer to our end, then {end:?}", answer.len());
            assert!(
                answer.len() < 10 * MEBIBYTE,
                "{way} has a half-close now: say so in docs/port-forward.md"
            );
            assert!(matches!(end, Ok(()) | Err(PortForwardError::Reset { .. })), "{way}: {end:?}");
        }
    });
}

/// Point 12. Told to go away in the middle of a download the runtime closes its side too, which it does not when it is just
/// left with unread data; and the next connection is none the worse.
pub(crate) fn left_downloads_leave_nothing_behind() {
    let pod = OwnPod::start("left-downloads");
    block_on(async {
        let scene = Scene { cluster: administrator().await, pod: pod.name.to_owned() };
        let before = resident();
        for way in scene.ways() {
            for _ in 0..20 {
                let mut stream = scene.open(way, SOURCE).await;
                within(stream.read_exact(&mut vec![0; MEBIBYTE])).await.unwrap();
                drop(stream);
                let mut next = scene.open(way, ECHO).await;
                next.write_all(b"x").await.unwrap();
                assert_eq!(within(next.read_u8()).await.unwrap(), b'x', "{way}");
            }
            pod.is_left_alone(SOURCE);
            pod.is_left_alone(ECHO);
        }
        let more = resident().saturating_sub(before);
        println!("  {} KiB more in memory", more / 1024);
        assert!(more < 64 * MEBIBYTE, "{more} bytes more in memory");
    });
}

/// Point 19: readers that pause, while the pod sends without end. What is read ahead is bounded, nothing is
/// lost, and the pongs that wait behind the data are not missed.
pub(crate) fn paused_readers_cost_bounded_memory_and_lose_nothing() {
    const EACH: usize = 20;
    /// Longer than silence is borne, and than the runtime's idle timer in CI.
    const PAUSE: Duration = Duration::from_secs(35);
    /// Beside the stream's own: TLS, HTTP, tasks.
    const BESIDE: usize = MEBIBYTE;
    with_bench(async |scene| {
        let before = resident();
        let mut streams = Vec::new();
        // The old protocol knows no pings: a pause is idleness to its timer, of hours in the world and of seconds in CI.
        let short = idle().is_some_and(|idle| idle < PAUSE);
        for way in scene.ways().into_iter().filter(|way| *way != V4 || !short) {
            for _ in 0..EACH {
                let mut stream = scene.open(way, SOURCE).await;
                within(stream.read_exact(&mut vec![0; MEBIBYTE])).await.unwrap();
                streams.push(stream);
            }
        }
        sleep(PAUSE).await;
        let each = resident().saturating_sub(before) / streams.len();
        println!("  {} KiB of memory each of {} paused streams", each / 1024, streams.len());
        assert!(each < STREAM_MEMORY_MAX + BESIDE, "{each} bytes each");
        let mut expected = vec![0; PERIOD];
        within(streams[0].read_exact(&mut expected)).await.unwrap();
        for mut stream in streams.into_iter().skip(1) {
            for _ in 0..8 * MEBIBYTE / PERIOD {
                let mut got = vec![0; PERIOD];
                within(stream.read_exact(&mut got))
                    .await
                    .unwrap_or_else(|e| panic!("{}: {e:?}", stream.transport()));
                assert!(got == expected, "{}: bytes were lost", stream.transport());
            }
        }
    });
}

/// Bytes of memory this process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Point 23. The way falls silent behind the 101, before the streams are confirmed (in v4 nothing is).
pub(crate) fn streams_that_are_never_confirmed_are_told() {
    thread::scope(|scope| {
        for transport in [Spdy, Websocket] {
            scope.spawn(move || never_confirmed(transport));
        }
    });
}

fn never_confirmed(transport: Transport) {
    let way = ThroughLine::start();
    way.runtime.block_on(async {
        let options = Options { kubeconfig: Some(way.kubeconfig.clone()), ..Options::default() };
        let scene = Scene { cluster: connect(&options).await.unwrap(), pod: bench_pod() };
        if !scene.ways().contains(&transport) {
            return;
        }
        // Long enough that the 101 is here and the confirmations cannot be.
        let late = Quality { delay: Duration::from_secs(4), ..Quality::default() };
        way.line.set(Direction::Down, late);
        let mut stream = scene.open(transport, ECHO).await;
        way.line.set(Direction::Down, Quality { stalled: true, ..late });
        let error = typed(&within(stream.read(&mut [0; 1])).await.unwrap_err());
        println!("  {transport}: {error}");
        let told = matches!(error, PortForwardError::StreamTimeout { after } if after.as_secs() == 30);
        assert!(told, "{transport}: {error:?}");
    });
}

pub(crate) fn a_pod_that_goes_ends_its_streams_and_is_not_found_then() {
    block_on(async {
        let pod = OwnPod::start("goes-away");
        let scene = Scene { cluster: administrator().await, pod: pod.name.to_owned() };
        let mut streams = Vec::new();
        for way in scene.ways() {
            let mut stream = scene.open(way, ECHO).await;
            stream.write_all(b"x").await.unwrap();
            assert_eq!(within(stream.read_u8()).await.unwrap(), b'x');
            streams.push((way, stream));
        }
        pod.delete();
        for (way, mut stream) in streams {
            let (rest, end) = drain(&mut stream).await;
            println!("  {way}: ended with {end:?}");
            assert!(rest.is_empty());
        }
        for way in scene.ways() {
            let error = within(scene.dialer(way).open(pod.name, ECHO)).await.unwrap_err();
            let PortForwardError::NotFound { message } = &error else { panic!("{way}: {error:?}") };
            assert!(message.contains(pod.name), "{way}: {message}");
        }
    });
}

/// A user who may do `verbs` to pods/portforward in the namespace `default`: a kubeconfig that impersonates them.
fn user(name: &str, verbs: &[&str]) -> tempfile::NamedTempFile {
    let group = "rbac.authorization.k8s.io";
    let metadata = serde_json::json!({"name": name, "namespace": "default"});
    apply(&serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": metadata, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": verbs},
        ]},
        {"apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": name}]},
    ]}));
    let config = kubectl(&["config", "view", "--raw", "--flatten", "--minify", "-o", "json"]);
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["users"][0]["user"]["as"] = name.into();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    file
}

/// The ways ask for different verbs, and `auto` finds the one that is permitted. From 1.35 on WebSocket needs both.
pub(crate) fn auto_falls_back_to_what_is_permitted() {
    with_bench(async |scene| {
        let minor = minor(&scene.cluster);
        let tunnel = scene.ways().contains(&Websocket);
        for (name, verbs, expected) in [
            ("may-both", &["get", "create"][..], Some(Spdy)),
            ("may-create", &["create"], Some(Spdy)),
            (
                "may-get",
                &["get"],
                [Some(Websocket), Some(V4), None][usize::from(!tunnel) + 2 * usize::from(minor >= 35)],
            ),
            ("may-nothing", &["delete"], None),
        ] {
            let file = user(name, verbs);
            let options = Options { kubeconfig: Some(file.path().into()), ..Options::default() };
            let cluster = connect(&options).await.unwrap();
            let dialer = Dialer::new(cluster.client().clone(), "default", Auto);
            // Twice: what was learnt is remembered, and must be right.
            for _ in 0..2 {
                match (within(dialer.open(&scene.pod, ECHO)).await, expected) {
                    (Ok(stream), Some(way)) => {
                        assert_eq!(stream.transport(), way, "{name}");
                        echo_whole(stream, b"permitted").await;
                    }
                    (Err(error), None) => {
                        println!("  {name}: {error}");
                        assert!(error.is_forbidden(), "{name}: {error:?}");
                    }
                    (got, expected) => panic!("{name}: expected {expected:?}, got {got:?}"),
                }
            }
        }
        command_without_the_right(&user("may-nothing", &["delete"]), &scene.pod);
    });
}

/// As the command tells it: exit code 4 and the rights to ask for.
fn command_without_the_right(kubeconfig: &tempfile::NamedTempFile, pod: &str) {
    let mut command = std::process::Command::new(program("kshuttle"));
    command.args(["port-forward", pod, ":7003", "--kubeconfig"]).arg(kubeconfig.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("hint: port-forward needs `get` and `create` on pods/portforward"), "{said}");
}
