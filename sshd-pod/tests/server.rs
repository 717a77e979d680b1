//! The server as a process of its own: what strangers get, what it writes down, what it needs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is a test")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kshuttle_sshd::login::USER;
use kshuttle_sshd::server::LOGIN_TIME;
use kshuttle_wire::flow::client::FlowClient;
use kshuttle_wire::link::Token;
use kshuttle_wire::link::hello::{Hello, MAGIC};
use kshuttle_wire::ssh::FLOWS_SUBSYSTEM;
use russh::client::{self, AuthResult, Handle};
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// For what should happen at once; only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

struct Sshd {
    child: Child,
    address: SocketAddr,
    key: Arc<PrivateKey>,
    said: Arc<Mutex<Vec<String>>>,
}

fn new_key() -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it hangs")
}

impl Sshd {
    /// `limit` is a line for the shell that starts it, such as `ulimit -n 100`.
    async fn start(limit: &str) -> Self {
        let key = new_key();
        let mut child = Command::new("sh")
            .args(["-c", &format!("{limit}\nexec \"$0\" serve"), env!("CARGO_BIN_EXE_kshuttle-sshd")])
            .env("KSHUTTLE_AUTHORIZED_KEY", key.public_key().to_openssh().unwrap())
            .env("KSHUTTLE_LISTEN_PORT", "0")
            .env_remove("KSHUTTLE_LOG")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = within(lines.next_line()).await.unwrap().expect("it says where it listens");
        let address = first.split("address=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let said = Arc::new(Mutex::new(vec![first]));
        let keep = said.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                keep.lock().unwrap().push(line);
            }
        });
        Self { child, address, key: Arc::new(key), said }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Keys exchanged, nobody logged in.
    async fn shake_hands(&self) -> Handle<Anybody> {
        within(client::connect(Arc::default(), self.address, Anybody)).await.unwrap()
    }

    async fn log_in(&self, user: &str, key: Arc<PrivateKey>) -> (Handle<Anybody>, AuthResult) {
        let mut handle = self.shake_hands().await;
        let key = PrivateKeyWithHashAlg::new(key, None);
        let result = within(handle.authenticate_publickey(user, key)).await.unwrap();
        (handle, result)
    }

    async fn session(&self) -> Handle<Anybody> {
        let (handle, result) = self.log_in(USER, self.key.clone()).await;
        assert!(result.success());
        handle
    }

    async fn flows(&self, session: &Handle<Anybody>) -> FlowClient {
        let channel = within(session.channel_open_session()).await.unwrap();
        channel.request_subsystem(false, FLOWS_SUBSYSTEM).await.unwrap();
        within(FlowClient::start(channel.into_stream())).await.unwrap()
    }

    /// Waits until it has written this down.
    async fn says(&self, words: &str) {
        let said = async {
            while !self.said.lock().unwrap().iter().any(|line| line.contains(words)) {
                tokio::time::sleep(Duration::from_millis(20)).await; // between two looks at its output
            }
        };
        let told = tokio::time::timeout(PATIENCE, said).await;
        assert!(told.is_ok(), "{words:?} is not in {:#?}", self.said.lock().unwrap());
    }

    /// A line of its `/proc/PID/status`, in kB.
    fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id().unwrap())).unwrap().count()
    }
}

/// A client that takes any host key.
struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// Says `words` and then nothing; how long it was listened to.
async fn cut_after(sshd: &Sshd, words: &[u8]) -> Duration {
    let began = Instant::now();
    let mut stream = sshd.dial().await;
    stream.write_all(words).await.unwrap();
    // A reset is an end as well.
    let _ = within(stream.read_to_end(&mut Vec::new())).await;
    began.elapsed()
}

#[tokio::test]
async fn who_does_not_log_in_is_cut() {
    let sshd = Sshd::start("").await;
    let mut new_link = bytes::BytesMut::new();
    Hello { versions: 1..=1, token: Token::generate().unwrap(), resume: false, attempt: 1, received: 0 }
        .encode(&mut new_link);
    let kinds: [(&str, Vec<u8>); 6] = [
        ("mute", vec![]),
        ("plain SSH that stops", b"SSH-2.0-x".to_vec()),
        ("plain SSH that waits", b"SSH-2.0-x\r\n".to_vec()),
        ("one byte of a link", MAGIC[..1].to_vec()),
        ("half of a link", MAGIC.to_vec()),
        ("a link in which nothing comes", new_link.to_vec()),
    ];
    let cuts = kinds.iter().map(async |(kind, words)| (*kind, cut_after(&sshd, words).await));
    let keys_only = async {
        let began = Instant::now();
        let handle = sshd.shake_hands().await;
        within(async {
            while !handle.is_closed() {
                tokio::time::sleep(Duration::from_millis(20)).await; // russh tells nobody
            }
        })
        .await;
        ("keys exchanged, no login", began.elapsed())
    };
    let (cuts, keys_only) = tokio::join!(futures_join(cuts), keys_only);
    for (kind, time) in cuts.into_iter().chain([keys_only]) {
        println!("{kind}: {:.1} s", time.as_secs_f32());
        // PATIENCE is what a hang takes; a busy machine may be late by less.
        assert!(time < LOGIN_TIME + Duration::from_secs(20), "{kind}: {time:?}");
    }
    assert!(LOGIN_TIME <= Duration::from_secs(10));
    // Who has logged in stays.
    let session = sshd.session().await;
    sshd.flows(&session).await;
}

async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = futures.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        all.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => {
                done.push(value);
                false
            }
            std::task::Poll::Pending => true,
        });
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

#[tokio::test]
async fn a_thousand_strangers_cost_little_and_keep_nobody_out() {
    let sshd = Sshd::start("").await;
    let before = sshd.memory("VmRSS");
    let mut strangers = Vec::new();
    for _ in 0..1000 {
        let mut stranger = sshd.dial().await;
        let _ = stranger.write_all(b"SSH-2.0-stranger\r\n").await;
        strangers.push(stranger);
    }
    // As far as strangers get: these have exchanged keys.
    let mut handles = Vec::new();
    for _ in 0..100 {
        handles.push(client::connect(Arc::default(), sshd.address, Anybody).await);
    }
    // May be turned away by chance, as any stranger; then it comes again.
    within(async {
        loop {
            let Ok(mut handle) = client::connect(Arc::default(), sshd.address, Anybody).await else {
                continue;
            };
            let key = PrivateKeyWithHashAlg::new(sshd.key.clone(), None);
            if handle.authenticate_publickey(USER, key).await.is_ok_and(|result| result.success()) {
                break;
            }
        }
    })
    .await;
    let (most, descriptors) = (sshd.memory("VmHWM"), sshd.descriptors());
    println!("{before} kB before, at most {most} kB with 1000 strangers, {descriptors} descriptors");
    assert!(most < 32 << 10, "{most} kB");
    assert!(descriptors < 200, "{descriptors}");
}

#[tokio::test]
async fn what_is_refused_is_written_down() {
    let sshd = Sshd::start("").await;
    let (_, result) = sshd.log_in("root\n\u{1b}[31m", sshd.key.clone()).await;
    assert!(!result.success());
    sshd.says(r#"refused: wrong user user="root\n\u{1b}[31m""#).await;
    let stranger = Arc::new(new_key());
    let (_, result) = sshd.log_in(USER, stranger.clone()).await;
    assert!(!result.success());
    let fingerprint = stranger.public_key().fingerprint(russh::keys::HashAlg::Sha256);
    sshd.says(&format!("refused: wrong key key={fingerprint}")).await;
    let mut handle = sshd.shake_hands().await;
    assert!(!within(handle.authenticate_password(USER, "x")).await.unwrap().success());
    sshd.says("refused: a password").await;

    let session = sshd.session().await;
    let channel = within(session.channel_open_session()).await.unwrap();
    channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    sshd.says("refused: a terminal").await;
    channel.request_shell(true).await.unwrap();
    sshd.says("refused: a shell").await;
    channel.exec(true, "id").await.unwrap();
    sshd.says("refused: a command").await;
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
    sshd.says("refused: X11").await;
    channel.agent_forward(true).await.unwrap();
    sshd.says("refused: the agent").await;
    channel.request_subsystem(true, "sftp").await.unwrap();
    sshd.says(r#"refused: a subsystem subsystem="sftp""#).await;
    assert!(within(session.channel_open_x11("127.0.0.1", 1)).await.is_err());
    assert!(within(session.channel_open_direct_streamlocal("/run/x.sock")).await.is_err());
    sshd.says("refused: a connection to a Unix socket").await;
    assert!(within(session.tcpip_forward("127.0.0.1", 0)).await.is_err());
    assert!(within(session.streamlocal_forward("/run/x.sock")).await.is_err());
    sshd.says("refused: listening in the cluster").await;
    // After all of that it still does what it is there for.
    sshd.flows(&session).await;
}

/// Echoes, for as many as come.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut all = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            all.spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_flows_fit() {
    let sshd = Sshd::start("").await;
    let target = echo().await.to_string();
    let mut sessions = Vec::new();
    let mut flows = Vec::new();
    for _ in 0..3 {
        let session = sshd.session().await;
        let client = sshd.flows(&session).await;
        for _ in 0..5000 / 3 + 1 {
            let mut flow = within(client.open(&target)).await.unwrap();
            within(flow.send.send(bytes::Bytes::from_static(b"hello"))).await.unwrap();
            flows.push(flow);
        }
        sessions.push(session);
    }
    for flow in &mut flows {
        within(flow.recv.opened()).await.unwrap();
        assert_eq!(within(flow.recv.data()).await.unwrap().as_deref(), Some(&b"hello"[..]));
    }
    let (most, descriptors) = (sshd.memory("VmHWM"), sshd.descriptors());
    println!("{} flows: at most {most} kB, {descriptors} descriptors", flows.len());
    assert!(descriptors > 5000);
    // What the pod's manifest grants, less the unpacked program, which is memory there.
    assert!(most < 192 << 10, "{most} kB");
}

#[tokio::test]
async fn without_descriptors_flows_are_refused_and_the_others_live() {
    let sshd = Sshd::start("ulimit -n 100").await;
    let target = echo().await.to_string();
    let session = sshd.session().await;
    let client = sshd.flows(&session).await;
    let mut first = within(client.open(&target)).await.unwrap();
    within(first.recv.opened()).await.unwrap();
    let (mut opened, mut refused) = (Vec::new(), 0);
    for _ in 0..200 {
        let mut flow = within(client.open(&target)).await.unwrap();
        match within(flow.recv.opened()).await {
            Ok(_) => opened.push(flow),
            Err(_) => refused += 1,
        }
    }
    println!("{} opened, {refused} refused", opened.len());
    assert!(opened.len() > 50 && refused > 50);
    within(first.send.send(bytes::Bytes::from_static(b"still"))).await.unwrap();
    assert_eq!(within(first.recv.data()).await.unwrap().as_deref(), Some(&b"still"[..]));
    drop(opened);
    // With room again there is room again.
    within(async {
        loop {
            let mut flow = client.open(&target).await.unwrap();
            if flow.recv.opened().await.is_ok() {
                break;
            }
        }
    })
    .await;
    std::io::stdout().flush().unwrap();
}
