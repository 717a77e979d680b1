//! What breaks on the way in the middle of transfers. Connections of the main job and of `socks` go on as if nothing had been;
//! those of `port-forward`, which has no pod of ours, are told, nothing hangs, and nothing cut short ends as if it were complete.
//! Afterwards the box is well again. The times that are printed are those in `docs/port-forward.md`.

mod transfer;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

use kshuttle_test_support::http::connect;
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually, kubectl, output};
use kshuttle_test_support::operator::Broken;

use self::transfer::{Ending, Transfer, WORKS, Work, assert_reset, join, spawn, tell};
use crate::reach::{RANGES, bench};
use crate::socks::listener;

const TRANSPORTS: [&str; 2] = ["websocket", "spdy"];

/// What a forward says of a connection that ended in order.
const CLOSED: &str = "closed";

/// A `kshuttle port-forward` for one transfer, so that what it says is about that transfer.
struct Forward {
    transport: &'static str,
    work: Work,
    kshuttle: Kshuttle,
    address: SocketAddr,
}

impl Forward {
    fn start(transport: &'static str, work: Work) -> Self {
        let port = format!(":{}", work.port());
        let kshuttle = Kshuttle::start(&[
            "port-forward",
            "svc/bench",
            &port,
            "--address",
            "127.0.0.1",
            "--transport",
            transport,
            "-vv",
        ]);
        let address = kshuttle.forwarded(1)[0];
        Self { transport, work, kshuttle, address }
    }

    fn what(&self) -> String {
        format!("port-forward over {}, {:?}", self.transport, self.work)
    }

    fn transfer(&self) -> Transfer {
        Transfer::start(self.work, connect(self.address).unwrap())
    }

    /// One more connection, until its first answer.
    fn newcomer(&self) -> Ending {
        let (work, address) = (self.work, self.address);
        spawn(move || work.begin(&mut connect(address)?))
    }

    /// What it says about the end of its transfer: a warning, or with `-vv` a line about each connection. So many others'
    /// end in order.
    fn reason(&self, others: usize) -> String {
        eventually("the end of the connection is told", PATIENCE, || {
            let said = self.kshuttle.said();
            let of_error =
                said.lines().find_map(|line| Some(line.split_once("connection to pod ")?.1.to_owned()));
            of_error.or_else(|| (said.matches(": closed ").count() > others).then(|| CLOSED.to_owned()))
        })
    }

    /// New connections find their way again.
    fn assert_goes_on(&self) {
        eventually("a new connection works", PATIENCE, || {
            let mut socket = connect(self.address).unwrap();
            self.work.begin(&mut socket).ok()
        });
    }
}

fn forwards() -> Vec<Forward> {
    let of = |transport| WORKS.map(|work| Forward::start(transport, work));
    TRANSPORTS.into_iter().flat_map(of).collect()
}

/// A session with transfers: the main job over one transport, SOCKS over the other.
struct Session {
    what: &'static str,
    kshuttle: Kshuttle,
    connect: Box<dyn Fn(Work) -> io::Result<TcpStream>>,
    transfers: Vec<Transfer>,
}

fn sessions() -> Vec<Session> {
    let redirect = Kshuttle::start(&[&RANGES[..], &["-vv", "--transport", "websocket"]].concat());
    let socks = Kshuttle::start(&["socks", "--listen", "127.0.0.1:0", "-vv", "--transport", "spdy"]);
    let proxy = listener(&socks).parse().unwrap();
    vec![
        Session::start("kshuttle over websocket", redirect, |work| connect(bench(work.port()))),
        Session::start("kshuttle socks over spdy", socks, move |work| {
            connect_through(proxy, bench(work.port()))
        }),
    ]
}

/// SOCKS5 (RFC 1928) without a password.
fn connect_through(proxy: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    let mut socket = connect(proxy)?;
    socket.write_all(&[5, 1, 0])?;
    socket.read_exact(&mut [0; 2])?;
    let request = [&[5, 1, 0, 1][..], &to.ip().octets(), &to.port().to_be_bytes()].concat();
    socket.write_all(&request)?;
    let mut answer = [0; 10];
    socket.read_exact(&mut answer)?;
    if answer[1] != 0 {
        return Err(io::Error::other(format!("SOCKS5 reply code {}", answer[1])));
    }
    Ok(socket)
}

/// Until everything answers that the tests use: API server, kubelet, runtime, the pods.
fn wait_until_well() {
    let works = |arguments: &str| {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--request-timeout=5s").args(arguments.split(' '));
        kubectl.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    eventually("the box is well again", PATIENCE, || {
        let all = [
            "get --raw /readyz",
            "wait --for=condition=Ready node --all --timeout=5s",
            "rollout status deployment hello --timeout=5s",
            "rollout status deployment bench --timeout=5s",
            "exec deploy/hello -- true",
        ];
        all.into_iter().all(works).then_some(())
    });
}

/// What becomes of a connection that is made when the fault is there already.
#[derive(Clone, Copy)]
enum Newcomer {
    /// The fault passes by itself, and then it is served.
    Waits,
    /// The fault lasts, and it is reset.
    IsReset,
}

/// Runs transfers every way, breaks something (until what `break_it` returns is dropped), and sees to it that those of
/// `port-forward` are told, for one of these reasons, and those of sessions go on.
fn suffer<T>(fault: &str, reasons: &[&str], newcomer: Newcomer, break_it: impl FnOnce() -> T) {
    wait_until_well();
    let (forwards, mut sessions) = (forwards(), sessions());
    let transfers: Vec<_> = forwards.iter().map(Forward::transfer).collect();
    println!("    {fault}:");
    let since = Instant::now();
    let broken = break_it();
    let newcomers: Vec<_> = forwards.iter().filter(|forward| matches!(forward.work, Work::Idle)).collect();
    let newcomers: Vec<_> =
        newcomers.into_iter().map(|forward| (forward.transport, forward.newcomer())).collect();
    for (forward, transfer) in forwards.iter().zip(transfers) {
        let (what, result) = (forward.what(), transfer.end(since));
        let newcomers = usize::from(matches!(forward.work, Work::Idle));
        let reason = forward.reason(newcomers);
        tell(&what, &result, &reason);
        assert_reset(&what, &result);
        assert!(reasons.iter().any(|expected| reason.contains(expected)), "{what}: {reason}");
    }
    for (transport, connection) in newcomers {
        let (what, result) = (format!("new connection over {transport}"), join(connection, since));
        tell(&what, &result, "(an end is its first answer)");
        match newcomer {
            Newcomer::Waits => result.1.expect("served"),
            Newcomer::IsReset => assert_reset(&what, &result),
        }
    }
    drop(broken);
    let mended = Instant::now();
    for session in &mut sessions {
        session.assert_goes_on(mended);
    }
    wait_until_well();
    for forward in &forwards {
        forward.assert_goes_on();
    }
}

impl Session {
    fn start(
        what: &'static str,
        kshuttle: Kshuttle,
        connect: impl Fn(Work) -> io::Result<TcpStream> + 'static,
    ) -> Self {
        let transfers = WORKS.map(|work| Transfer::start(work, connect(work).unwrap())).into();
        Self { what, kshuttle, connect: Box::new(connect), transfers }
    }

    /// No transfer noticed anything.
    fn assert_goes_on(&mut self, since: Instant) {
        for transfer in &mut self.transfers {
            let what = format!("{}, {:?} goes on", self.what, transfer.work);
            transfer.assert_goes_on(&what);
            println!("    {what} {:.2} s after all was well", since.elapsed().as_secs_f64());
        }
    }

    /// All transfers are reset, and new ones find another pod.
    fn assert_finds_another_pod(&mut self, since: Instant) {
        for transfer in self.transfers.drain(..) {
            let (what, result) = (format!("{}, {:?}", self.what, transfer.work), transfer.end(since));
            tell(&what, &result, "");
            assert_reset(&what, &result);
        }
        Work::Idle.begin(&mut (self.connect)(Work::Idle).unwrap()).unwrap();
        println!("    {} has another pod after {:.2} s", self.what, since.elapsed().as_secs_f64());
        assert!(self.kshuttle.said().contains("another pod"), "{}", self.kshuttle.said());
    }
}

const LOST: [&str; 1] = ["lost the connection to the API server"];
const SILENT: [&str; 1] = ["no sign of life from the node for 30 s"];

pub(crate) fn the_api_server_is_killed() {
    suffer("kube-apiserver killed and restarted", &LOST, Newcomer::Waits, || {
        Broken::killed("apiserver").mend()
    });
}

pub(crate) fn the_container_runtime_is_killed() {
    suffer("containerd killed and restarted", &LOST, Newcomer::Waits, || Broken::killed("containerd").mend());
}

pub(crate) fn the_kubelet_is_killed() {
    suffer("kubelet killed and restarted", &LOST, Newcomer::Waits, || Broken::killed("kubelet").mend());
}

pub(crate) fn the_api_server_hangs() {
    suffer("kube-apiserver stopped", &SILENT, Newcomer::IsReset, || Broken::paused("apiserver"));
}

pub(crate) fn the_network_swallows_everything() {
    suffer("no packet passes", &SILENT, Newcomer::IsReset, Silence::start);
}

/// No packet passes between the laptop and the node, and nobody is told. Dropping it lets them pass again.
struct Silence;

impl Silence {
    fn start() -> Self {
        // Where packets leave, not where they are made: those of applications are redirected in between, and one of them that
        // was lost would come again only when its sender has waited as long as the silence took.
        let rules = "table inet test_silence {
            chain in { type filter hook prerouting priority -300; iifname eth0 drop; }
            chain out { type filter hook postrouting priority 300; oifname eth0 drop; }
        }";
        output(Command::new("nft").arg(rules));
        Self
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        output(Command::new("nft").args(["delete", "table", "inet", "test_silence"]));
    }
}

pub(crate) fn the_pod_is_deleted() {
    delete(&["--wait=false"]);
}

pub(crate) fn the_pod_is_deleted_by_force() {
    delete(&["--wait=false", "--force", "--grace-period=0"]);
}

/// The sessions' own pods, then the one that is forwarded to. Its process is killed and its kernel ends the connections: with a
/// FIN where the process had read everything, with a reset elsewhere. A client inside the cluster sees just that.
fn delete(flags: &[&str]) {
    wait_until_well();
    let (forwards, mut sessions) = (forwards(), sessions());
    let transfers: Vec<_> = forwards.iter().map(Forward::transfer).collect();
    println!("    kubectl delete pod {}:", flags.join(" "));
    let since = Instant::now();
    for session in &sessions {
        kubectl(&[&["delete", "pod", &session.kshuttle.pod()], flags].concat());
    }
    for session in &mut sessions {
        session.assert_finds_another_pod(since);
    }
    let since = Instant::now();
    kubectl(&[&["delete", "pod", "-l", "app=bench"], flags].concat());
    for (forward, transfer) in forwards.iter().zip(transfers) {
        let (what, result) = (forward.what(), transfer.end(since));
        let reason = forward.reason(0);
        tell(&what, &result, &reason);
        if matches!(forward.work, Work::Upload) || reason != CLOSED {
            assert_reset(&what, &result);
            let pods = ["connection reset by the pod", "the pod is gone"];
            assert!(pods.iter().any(|expected| reason.contains(expected)), "{what}: {reason}");
        } else {
            result.1.unwrap();
        }
    }
    wait_until_well();
    for forward in &forwards {
        forward.assert_goes_on();
    }
}
