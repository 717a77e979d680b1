//! Tunnels through a real OpenSSH server: each flow a channel of a plain session.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use kshuttle::addr::Target;
use kshuttle::tunnel::Connect;
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::pool::{DialError, Dialed, Pool, Route, Settings};
use kshuttle::tunnel::ssh::SessionError;
use kshuttle_test_support::net::{
    closed_port, connection, echo, exchange, flood, greet_and_hold, ping, server,
};
use kshuttle_test_support::openssh::OpenSsh;
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::{pattern, within};
use kshuttle_wire::flow::ConnectError;
use kshuttle_wire::flow::channel::UNREAD_MAX;
use kshuttle_wire::relay;
use russh::keys::PublicKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const ONE: Settings = Settings { tunnels: 1, ..SETTINGS };
const SETTINGS: Settings = Settings {
    tunnels: kshuttle::tunnel::pool::TUNNELS,
    lifetime: kshuttle::tunnel::pool::LIFETIME,
    pacing: kshuttle::tunnel::pool::PACING,
};

struct Scene {
    openssh: OpenSsh,
    pool: Pool,
    route: Route,
    dials: Arc<AtomicUsize>,
}

impl Scene {
    async fn start(settings: Settings, configuration: &str) -> Self {
        let identity = Identity::generate().unwrap();
        let openssh = OpenSsh::start(&identity.authorized_key().unwrap(), configuration).await;
        let dials = Arc::<AtomicUsize>::default();
        let (address, count) = (openssh.address, dials.clone());
        let dial = move || {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let stream = TcpStream::connect(address).await.map_err(DialError::passing)?;
                Ok(Dialed { stream: Box::new(stream), way: "loopback".into() })
            }
            .boxed()
        };
        let route = Route {
            name: "pod".into(),
            dial: Arc::new(dial),
            identity,
            user: openssh.user.clone(),
            host_key: HostKey::default(),
            ours: false,
        };
        let pool = Pool::start(settings);
        pool.lead(Some(route.clone()));
        let way = within(pool.first_up(Duration::from_secs(60))).await.unwrap();
        assert!(way.contains("OpenSSH"), "{way}");
        Self { openssh, pool, route, dials }
    }

    /// An application's socket, relayed through the pool to `target`.
    async fn application(&self, target: impl Into<Target>) -> TcpStream {
        application(&self.pool, target.into()).await
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(wait).await;
    }
}

async fn application(pool: &Pool, target: Target) -> TcpStream {
    let (application, accepted) = connection().await;
    relay::arm(&accepted);
    let pool = pool.clone();
    tokio::spawn(async move {
        if let Ok(flow) = pool.connect(&target).await {
            let _ = relay::relay(accepted, flow).await;
        }
    });
    application
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_travel_both_ways_at_once_in_many_channels() {
    let scene = Scene::start(SETTINGS, "").await;
    let target = server(echo).await;
    let mut transfers = JoinSet::new();
    for _ in 0..8 {
        transfers.spawn(exchange(scene.application(target).await, 8 << 20));
    }
    transfers.join_all().await;
    let status = scene.pool.status();
    assert!(status.iter().all(|tunnel| tunnel.link.is_none()), "{status:?}");
}

#[tokio::test]
async fn its_shell_tells_the_pods_resolver_file() {
    let scene = Scene::start(ONE, "").await;
    let here = std::fs::read("/etc/resolv.conf").unwrap();
    assert_eq!(within(scene.pool.resolver_file()).await.unwrap(), here);
    // Without a shell nobody is kept waiting.
    let scene = Scene::start(ONE, "ForceCommand /bin/false\n").await;
    assert!(within(scene.pool.resolver_file()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_renewals_of_keys_disturb_nobody() {
    let scene = Scene::start(ONE, "RekeyLimit 1M").await;
    let target = server(echo).await;
    let mut transfers = JoinSet::new();
    for _ in 0..4 {
        transfers.spawn(exchange(scene.application(target).await, 8 << 20));
    }
    transfers.join_all().await;
    assert_eq!(scene.openssh.connections(), 1);
    let renewals = scene.openssh.log().matches("SSH2_MSG_KEXINIT sent").count();
    assert!(renewals > 10, "{renewals}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_does_not_read_is_reset_and_stalls_nobody() {
    let scene = Scene::start(ONE, "").await;
    let mut stuck = scene.application(server(flood).await).await;
    let target = server(echo).await;
    let mut beside = scene.application(target).await;
    ping(&mut beside).await;
    // Until it is reset, and afterwards.
    while scene.pool.status()[0].flows > 1 {
        ping(&mut beside).await;
        exchange(scene.application(target).await, 1 << 20).await;
    }
    ping(&mut beside).await;
    // What the kernel took before may still be read; after that there is no clean end.
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    let error = loop {
        match within(stuck.read(&mut buffer)).await {
            Ok(0) => panic!("a clean end after {read} bytes"),
            Ok(count) => read += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(scene.openssh.connections(), 1, "the session went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_pauses_gets_everything() {
    const LENGTH: usize = UNREAD_MAX / 2;
    let scene = Scene::start(ONE, "").await;
    let mut paused = scene.application(server(echo).await).await;
    paused.write_all(&pattern(LENGTH)).await.unwrap();
    paused.shutdown().await.unwrap();
    // Others are served meanwhile.
    exchange(scene.application(server(echo).await).await, 4 << 20).await;
    let mut got = Vec::new();
    within(paused.read_to_end(&mut got)).await.unwrap();
    assert!(got == pattern(LENGTH));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_a_reset_whatever_was_going_on() {
    let scene = Scene::start(ONE, "").await;
    let (floods, greets, swallows) =
        (server(flood).await, server(greet_and_hold).await, server(swallow).await);
    let mut download = scene.application(floods).await;
    let mut idle = scene.application(greets).await;
    let mut closed = scene.application(greets).await;
    let mut upload = scene.application(swallows).await;
    for socket in [&mut download, &mut idle, &mut closed] {
        within(socket.read_exact(&mut [0; 5])).await.unwrap();
    }
    closed.shutdown().await.unwrap();
    // Until the way is full: one that waits for room learns of it, too.
    let mut sent = 0;
    while let Ok(Ok(count)) =
        tokio::time::timeout(Duration::from_millis(300), upload.write(&[7; 64 << 10])).await
    {
        sent += count;
    }
    assert!(sent > 1 << 20, "{sent}");
    scene.openssh.kill();
    for socket in [&mut download, &mut idle, &mut closed, &mut upload] {
        let mut buffer = vec![0; 1 << 20];
        let error = loop {
            match within(socket.read(&mut buffer)).await {
                Ok(0) => panic!("a clean end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    // New connections go on with the next session.
    exchange(scene.application(server(echo).await).await, 1 << 10).await;
}

/// Takes nothing.
async fn swallow(socket: TcpStream) {
    std::future::pending::<()>().await;
    drop(socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_many_connections_another_session_takes_the_place_and_flows_stay() {
    let scene = Scene::start(ONE, "LogLevel QUIET").await;
    let target = server(echo).await;
    let mut idle = scene.application(target).await;
    ping(&mut idle).await;
    for _ in 0..150 {
        let mut some = JoinSet::new();
        for _ in 0..16 {
            some.spawn(exchange(scene.application(target).await, 100));
        }
        some.join_all().await;
    }
    ping(&mut idle).await;
    assert_eq!(scene.openssh.connections(), 2, "2,401 connections");
    assert_eq!(scene.dials.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_sessions_are_replaced_and_flows_stay() {
    let scene = Scene::start(Settings { lifetime: Duration::from_millis(100), ..ONE }, "").await;
    let target = server(echo).await;
    let mut idle = scene.application(target).await;
    ping(&mut idle).await;
    scene.until(|scene| scene.openssh.connections() >= 4).await;
    ping(&mut idle).await;
    exchange(scene.application(target).await, 1 << 10).await;
    assert_eq!(scene.pool.status()[0].last_error, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_at_once_than_a_session_holds() {
    let scene = Scene::start(ONE, "LogLevel QUIET").await;
    let target = server(echo).await;
    let mut open = Vec::new();
    for _ in 0..600 {
        let mut application = scene.application(target).await;
        ping(&mut application).await;
        open.push(application);
    }
    for application in &mut open {
        ping(application).await;
    }
    assert_eq!(scene.openssh.connections(), 2);
    assert_eq!(scene.pool.status()[0].flows, 600);
    drop(open);
    scene.until(|scene| scene.pool.status()[0].flows == 0).await;
}

#[tokio::test]
async fn failed_connects_are_told() {
    let scene = Scene::start(ONE, "PermitOpen 127.0.0.1:*").await;
    for (target, prohibited) in
        [(Target::from(closed_port().await), false), (Target::Name("no-such-name.invalid".into(), 80), true)]
    {
        let mut flow = scene.pool.connect(&target).await.unwrap();
        let error = within(flow.recv.opened()).await.unwrap_err();
        let as_expected = if prohibited {
            matches!(error, ConnectError::Prohibited)
        } else {
            matches!(error, ConnectError::Failed)
        };
        assert!(as_expected, "{target}: {error:?}");
    }
}

#[tokio::test]
async fn another_pod_resets_the_flows_of_the_old_one_at_once() {
    let scene = Scene::start(SETTINGS, "").await;
    let mut old = scene.application(server(greet_and_hold).await).await;
    within(old.read_exact(&mut [0; 5])).await.unwrap();
    scene.pool.lead(None);
    let error = within(old.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut new = scene.application(server(echo).await).await;
    scene.pool.lead(Some(scene.route.clone()));
    ping(&mut new).await;
}

#[tokio::test]
async fn only_the_known_host_key_will_do() {
    let scene = Scene::start(SETTINGS, "").await;
    let lead = async |host_key| {
        scene.pool.lead(Some(Route { host_key, ..scene.route.clone() }));
        within(scene.pool.first_up(Duration::from_secs(60))).await
    };
    lead(HostKey::known(scene.openssh.host_key.clone())).await.unwrap();
    let other = PublicKey::from_openssh(&Identity::generate().unwrap().authorized_key().unwrap()).unwrap();
    let error = lead(HostKey::known(other)).await.unwrap_err();
    assert!(matches!(error.cause.downcast_ref(), Some(SessionError::HostKey)), "{error:?}");
    let error = within(scene.pool.lost()).await;
    assert!(error.lasting, "{error:?}");
}

#[tokio::test]
async fn another_key_does_not_come_in() {
    let scene = Scene::start(ONE, "").await;
    scene.pool.lead(Some(Route { identity: Identity::generate().unwrap(), ..scene.route.clone() }));
    let error = within(scene.pool.first_up(Duration::from_secs(60))).await.unwrap_err();
    assert!(matches!(error.cause.downcast_ref(), Some(SessionError::KeyRefused)), "{error:?}");
}

#[tokio::test]
async fn a_server_that_was_taken_for_ours_gets_plain_ssh() {
    let scene = Scene::start(ONE, "").await;
    scene.pool.lead(Some(Route { ours: true, ..scene.route.clone() }));
    let way = within(scene.pool.first_up(Duration::from_secs(60))).await.unwrap();
    assert!(way.contains("OpenSSH"), "{way}");
    exchange(scene.application(server(echo).await).await, 1 << 10).await;
}

#[tokio::test]
async fn our_own_server_gets_a_link_though_it_was_not_known_to_be_ours() {
    let scene = Scene::start(ONE, "").await;
    let sshd = Sshd::start(&scene.route.identity.authorized_key().unwrap()).await;
    let address = sshd.address;
    let dial = move || {
        async move {
            let stream = TcpStream::connect(address).await.map_err(DialError::passing)?;
            Ok(Dialed { stream: Box::new(stream), way: "loopback".into() })
        }
        .boxed()
    };
    let host_key = HostKey::default();
    scene.pool.lead(Some(Route { dial: Arc::new(dial), host_key, ..scene.route.clone() }));
    assert_eq!(within(scene.pool.first_up(Duration::from_secs(60))).await.unwrap(), "loopback");
    assert!(scene.pool.status()[0].link.is_some());
    exchange(scene.application(server(echo).await).await, 1 << 20).await;
}
