//! Tunnels that survive what happens to their byte streams.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use kshuttle::addr::Target;
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::pool::{DialError, Dialed, HOLD, Pool, Route, Settings};
use kshuttle::tunnel::ssh::ResolverFileError;
use kshuttle::tunnel::{Connect, ConnectError};
use kshuttle_test_support::line::{Direction, Line, Quality};
use kshuttle_test_support::net::{connection, echo, exchange, greet_and_hold, ping, server, udp_echo};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::within;
use kshuttle_wire::link::hello::HelloError;
use kshuttle_wire::relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A pod, a bad line to it, and a pool of tunnels over the line.
struct Scene {
    identity: Identity,
    _pod: Sshd,
    line: Line,
    pool: Pool,
    dials: Arc<AtomicUsize>,
    /// The API server is not there: no new byte stream.
    unreachable: Arc<AtomicBool>,
}

impl Scene {
    async fn start(settings: Settings) -> Self {
        let identity = Identity::generate().unwrap();
        let pod = Sshd::start(&identity.authorized_key().unwrap()).await;
        let line = Line::start(pod.address, 7).await;
        let pool = Pool::start(settings);
        let scene =
            Self { identity, _pod: pod, line, pool, dials: Arc::default(), unreachable: Arc::default() };
        scene.pool.lead(Some(scene.route()));
        within(scene.pool.first_up(Duration::from_secs(60))).await.unwrap();
        scene
    }

    fn route(&self) -> Route {
        let (address, dials, unreachable) = (self.line.address, self.dials.clone(), self.unreachable.clone());
        let dial = move || {
            let (dials, unreachable) = (dials.clone(), unreachable.clone());
            async move {
                dials.fetch_add(1, Ordering::Relaxed);
                if unreachable.load(Ordering::Relaxed) {
                    return Err(DialError::passing("nobody is there"));
                }
                let stream = TcpStream::connect(address).await.map_err(DialError::passing)?;
                stream.set_nodelay(true).unwrap();
                Ok(Dialed { stream: Box::new(stream), way: "loopback".into() })
            }
            .boxed()
        };
        Route {
            name: "pod".into(),
            dial: Arc::new(dial),
            identity: self.identity.clone(),
            user: "kshuttle".into(),
            host_key: HostKey::default(),
            ours: true,
        }
    }

    /// An application's socket, relayed through the pool to `target`.
    async fn application(&self, target: impl Into<Target>) -> TcpStream {
        let (application, accepted) = connection().await;
        relay::arm(&accepted);
        let (pool, target) = (self.pool.clone(), target.into());
        tokio::spawn(async move {
            if let Ok(flow) = pool.connect(&target).await {
                let _ = relay::relay(accepted, flow).await;
            }
        });
        application
    }

    fn survived(&self) -> u64 {
        self.pool.status().iter().map(|tunnel| tunnel.survived).sum()
    }

    /// Waits until `condition` holds.
    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(wait).await;
    }
}

/// A tunnel without its link would look up, and no connection would ever be given to it.
#[tokio::test]
async fn whether_a_tunnel_is_up_and_the_pods_resolver_file_are_told() {
    let scene = Scene::start(Settings { tunnels: 1, ..Settings::default() }).await;
    let mut up = scene.pool.is_up();
    within(up.wait_for(|up| *up)).await.unwrap();
    // The pod is this very process.
    let here = std::fs::read("/etc/resolv.conf").unwrap();
    assert_eq!(within(scene.pool.resolver_file()).await.unwrap(), here);
    scene.unreachable.store(true, Ordering::Relaxed);
    scene.line.reset_all();
    within(up.wait_for(|up| !*up)).await.unwrap();
    assert!(matches!(scene.pool.resolver_file().await, Err(ResolverFileError::NoTunnel)));
    scene.unreachable.store(false, Ordering::Relaxed);
    within(up.wait_for(|up| *up)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_leads_to_a_pod_never_takes_a_new_tunnel_s_link_away() {
    for pod in 0..10 {
        let scene = Scene::start(Settings { tunnels: 1, ..Settings::default() }).await;
        // A pod keeps sixteen links, those of routes before for a while.
        for round in 0..12 {
            scene.pool.lead(Some(scene.route()));
            within(scene.pool.first_up(Duration::from_secs(60))).await.unwrap();
            assert!(scene.pool.status()[0].link.is_some(), "pod {pod}, round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_do_not_notice_that_their_byte_streams_are_reset() {
    let scene = Scene::start(Settings::default()).await;
    let target = server(echo).await;
    let mut transfers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        transfers.spawn(exchange(scene.application(target).await, 16 << 20));
    }
    // A reset after every 8 MiB or so that went through.
    let faults = async {
        let mut next = 8 << 20;
        loop {
            scene.until(|scene| scene.line.carried() > next).await;
            scene.line.reset_all();
            next += 8 << 20;
        }
    };
    tokio::select! {
        () = faults => {}
        results = transfers.join_all() => assert_eq!(results.len(), 4),
    }
    assert!(scene.survived() >= 10, "{:?}", scene.pool.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_do_not_notice_either() {
    let scene = Scene::start(Settings::default()).await;
    let mut flow = scene.pool.connect_udp(&udp_echo().await.into()).await.unwrap();
    for number in 0..200u8 {
        flow.send.send(vec![number; 1_400].into()).unwrap();
        if number % 20 == 0 {
            scene.line.reset_all();
        }
        assert_eq!(within(flow.recv.recv()).await.unwrap().unwrap(), vec![number; 1_400]);
    }
    assert!(scene.survived() >= 5, "{:?}", scene.pool.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_flow_outlives_an_outage_and_new_ones_wait_for_its_end() {
    let scene = Scene::start(Settings::default()).await;
    let target = server(echo).await;
    let mut idle = scene.application(target).await;
    ping(&mut idle).await;
    scene.unreachable.store(true, Ordering::Relaxed);
    scene.line.reset_all();
    scene.until(|scene| scene.pool.status().iter().all(|tunnel| !tunnel.up)).await;
    let mut new = scene.application(target).await;
    new.write_all(b"x").await.unwrap();
    let dials = scene.dials.load(Ordering::Relaxed);
    scene.until(|scene| scene.dials.load(Ordering::Relaxed) > dials + 2).await;
    assert!(new.try_read(&mut [0; 1]).is_err(), "there is no way yet");
    scene.unreachable.store(false, Ordering::Relaxed);
    within(new.read_exact(&mut [0; 1])).await.unwrap();
    ping(&mut idle).await;
}

#[tokio::test]
async fn an_outage_is_logged_with_its_length() {
    let log = Arc::<Mutex<Vec<u8>>>::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || Log(writer.clone())).finish();
    // Of this thread, on which everything of this test runs.
    let _logging = tracing::subscriber::set_default(subscriber);
    let scene = Scene::start(Settings { tunnels: 1, ..Settings::default() }).await;
    scene.unreachable.store(true, Ordering::Relaxed);
    scene.line.reset_all();
    let down = |scene: &Scene| scene.pool.status()[0].down_for;
    scene.until(|scene| down(scene).is_some_and(|down| down > Duration::from_secs(1))).await;
    let status = scene.pool.status()[0].clone();
    assert!(!status.up && status.last_error.as_deref() == Some("nobody is there"), "{status}");
    scene.unreachable.store(false, Ordering::Relaxed);
    scene.until(|scene| scene.pool.status()[0].up).await;
    assert_eq!(down(&scene), None);
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    let line = log.lines().find(|line| line.contains("byte stream back after")).expect(&log);
    let length = line.split("after ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(line.contains("INFO") && length.is_some_and(|ms| ms >= 1000), "{line}");
}

struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_path_is_found_and_left() {
    let scene = Scene::start(Settings { tunnels: 1, ..Settings::default() }).await;
    let mut idle = scene.application(server(echo).await).await;
    ping(&mut idle).await;
    scene.line.black_hole_all();
    ping(&mut idle).await; // `within` bounds it; the link's own bound is tested without a clock
    assert_eq!(scene.survived(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_that_is_long_under_way_loses_nothing() {
    let scene = Scene::start(Settings { tunnels: 1, ..Settings::default() }).await;
    let mut idle = scene.application(server(echo).await).await;
    ping(&mut idle).await;
    scene.line.set(Direction::Up, Quality { stalled: true, ..Quality::default() });
    scene.line.reset_all();
    // The pod waits no longer and speaks first, as SSH servers do.
    let is_plain = |error: &String| error.contains(&HelloError::Ssh.to_string());
    scene.until(|scene| scene.pool.status()[0].last_error.as_ref().is_some_and(is_plain)).await;
    scene.line.set(Direction::Up, Quality::default());
    ping(&mut idle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn byte_streams_are_renewed_before_others_cut_them() {
    let scene =
        Scene::start(Settings { tunnels: 1, lifetime: Duration::from_millis(50), ..Settings::default() })
            .await;
    let mut idle = scene.application(server(echo).await).await;
    ping(&mut idle).await;
    let dials = scene.dials.load(Ordering::Relaxed);
    scene.until(|scene| scene.dials.load(Ordering::Relaxed) >= dials + 5).await;
    ping(&mut idle).await;
    assert_eq!(scene.survived(), 0, "a renewal is no loss");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pod_resets_the_flows_of_the_old_one_at_once() {
    let scene = Scene::start(Settings::default()).await;
    let mut old = scene.application(server(greet_and_hold).await).await;
    within(old.read_exact(&mut [0; 5])).await.unwrap();
    scene.pool.lead(None);
    let error = within(old.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut new = scene.application(server(echo).await).await;
    scene.pool.lead(Some(scene.route()));
    ping(&mut new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_forgot_the_session_gets_a_new_one() {
    let scene = Scene::start(Settings { tunnels: 1, ..Settings::default() }).await;
    let mut old = scene.application(server(greet_and_hold).await).await;
    within(old.read_exact(&mut [0; 5])).await.unwrap();
    // The container was restarted: the same way leads to a server that remembers nothing.
    let restarted = Sshd::start(&scene.identity.authorized_key().unwrap()).await;
    scene.line.lead(restarted.address);
    scene.line.reset_all();
    let error = within(old.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_wrong_with_the_route_before_is_forgotten() {
    let scene = Scene::start(Settings::default()).await;
    let gone = || async { Err(DialError::lasting("the pod is gone")) }.boxed();
    scene.pool.lead(Some(Route { dial: Arc::new(gone), ..scene.route() }));
    let error = within(scene.pool.first_up(Duration::from_secs(60))).await.unwrap_err();
    assert!(error.lasting);
    scene.pool.lead(Some(scene.route()));
    within(scene.pool.first_up(Duration::from_secs(60))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_are_spread_over_the_tunnels() {
    let scene = Scene::start(Settings::default()).await;
    scene.until(|scene| scene.pool.status().iter().all(|tunnel| tunnel.up)).await;
    let target = server(echo).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut application = scene.application(target).await;
        ping(&mut application).await;
        open.push(application);
    }
    let flows: Vec<usize> = scene.pool.status().iter().map(|tunnel| tunnel.flows).collect();
    assert_eq!(flows, [4, 4]);
}

#[tokio::test(start_paused = true)]
async fn without_a_tunnel_a_connection_is_held_for_a_while() {
    let pool = Pool::start(Settings::default());
    let start = tokio::time::Instant::now();
    let target = "10.96.0.1:80".parse::<std::net::SocketAddr>().unwrap();
    let refused = pool.connect(&target.into()).await;
    assert!(matches!(refused, Err(ConnectError::NoTunnel)));
    assert_eq!(start.elapsed(), HOLD);
    let refused = pool.connect_udp(&target.into()).await;
    assert!(matches!(refused, Err(ConnectError::NoTunnel)));
    assert_eq!(start.elapsed(), 2 * HOLD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_carries_in_one_direction_only_is_left() {
    let scene = Scene::start(Settings { tunnels: 1, ..Settings::default() }).await;
    let mut idle = scene.application(server(echo).await).await;
    ping(&mut idle).await;
    scene.line.set(Direction::Down, Quality { stalled: true, ..Quality::default() });
    idle.write_all(b"x").await.unwrap();
    scene.until(|scene| scene.pool.status().iter().all(|tunnel| !tunnel.up)).await;
    scene.line.set(Direction::Down, Quality::default());
    within(idle.read_exact(&mut [0; 1])).await.unwrap();
}
