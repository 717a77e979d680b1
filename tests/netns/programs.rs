//! What runs as root: the helper is traced through whole sessions, and every program that is executed is looked at.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use kshuttle_helper::protocol::{Method, NameServer, Plan, Reply, Request};
use kshuttle_test_support::resolver::Library;
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::datagrams::bind;
use super::helper::{Helper, plan};
use super::link_scene;
use super::listener::Listener;
use super::ranges::update;
use super::scene;

/// Follows a process and all it makes, until none of them is left; the programs that were executed.
fn follow(pid: Pid) -> JoinHandle<BTreeSet<PathBuf>> {
    let (attached, waits) = mpsc::channel();
    // A thread of its own: who attaches is who must wait.
    let follower = thread::spawn(move || {
        let options = Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACEEXIT;
        ptrace::seize(pid, options).unwrap();
        attached.send(()).unwrap();
        let mut executed = BTreeSet::new();
        // Ends are not waited for: they belong to the parents. At its exit each is let go.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitid(Id::All, flags) {
                Ok(WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXIT)) => {
                    gone(ptrace::detach(pid, None))
                }
                Ok(WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC)) => {
                    executed.insert(fs::read_link(format!("/proc/{pid}/exe")).unwrap());
                    gone(ptrace::cont(pid, None));
                }
                // No event: a signal on its way.
                Ok(WaitStatus::PtraceEvent(pid, signal, 0)) => gone(ptrace::cont(pid, signal)),
                Ok(WaitStatus::PtraceEvent(pid, ..)) => gone(ptrace::cont(pid, None)),
                Err(Errno::ECHILD) => return executed,
                other => panic!("{other:?}"),
            }
        }
    });
    waits.recv().unwrap();
    follower
}

/// SIGKILL may have been faster.
fn gone(result: nix::Result<()>) {
    assert!(matches!(result, Ok(()) | Err(Errno::ESRCH)), "{result:?}");
}

/// Only these may run, and the first of them must have.
fn assert_only(executed: &BTreeSet<PathBuf>, programs: &[&str]) {
    let names: BTreeSet<&str> =
        executed.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let places = ["/usr/sbin", "/sbin", "/usr/bin"].map(Path::new);
    assert!(executed.iter().all(|path| places.contains(&path.parent().unwrap())), "{executed:?}");
    assert!(names.contains(programs[0]), "{names:?}");
    assert!(names.iter().all(|name| programs.contains(name)), "{names:?}");
}

/// A session with an update, name servers and sockets; `end` ends it.
fn session(method: Method, end: impl FnOnce(Helper)) -> BTreeSet<PathBuf> {
    let listener = Listener::start();
    let mut helper = Helper::start_over_socket_pair();
    let follower = follow(helper.pid());
    helper.make_ready(&Plan { method, ..plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &[]) });
    helper.say(&Request::Update { include: vec!["10.1.0.0/16".parse().unwrap()], exclude: vec![] });
    assert_eq!(helper.hear(), Some(Reply::Updated {}));
    let server = NameServer { address: "127.0.0.53".parse().unwrap(), port: listener.v4 };
    drop(helper.sockets(false, false, 4));
    // Once it answers again, it has closed its own.
    helper.say(&Request::Names { servers: vec![server] });
    assert_eq!(helper.hear(), Some(Reply::Updated {}));
    only_local_sockets(&helper, helper.pid());
    only_local_sockets(&helper, helper.child("kshuttle-helper"));
    end(helper);
    follower.join().unwrap()
}

/// The same with a link that is changed.
fn session_with_link(end: impl FnOnce(Helper)) -> BTreeSet<PathBuf> {
    let scene = link_scene::Scene::start(Library::Resolve);
    let mut helper = Helper::start();
    let follower = follow(helper.pid());
    helper.make_ready(&plan("a", &scene.listener, &["10.0.0.0/8"], &[]));
    for domain in ["svc", "cluster.local"] {
        link_scene::set(&mut helper, &scene.link(&[domain], &[]));
    }
    let copies = helper.children("kshuttle-helper");
    assert_eq!(copies.len(), 2, "the watchdog and the link's holder");
    copies.into_iter().for_each(|copy| only_local_sockets(&helper, copy));
    end(helper);
    follower.join().unwrap()
}

/// One with routes, of which one is exchanged.
fn session_with_routes(end: impl FnOnce(Helper)) -> BTreeSet<PathBuf> {
    let (listener, datagrams) = (Listener::start(), bind("[::1]:0"));
    let mut helper = Helper::start();
    let follower = follow(helper.pid());
    let datagrams_v6 = Some(datagrams.local_addr().unwrap().port());
    let plan = plan("a", &listener, &["fd00:10:96::/112"], &[]);
    helper.make_ready(&Plan { datagrams_v6, ipv6_routes: true, ..plan });
    assert_eq!(update(&mut helper, &["fd00:10:97::/112"], &[]), Some(Reply::Updated {}));
    let copies = helper.children("kshuttle-helper");
    assert_eq!(copies.len(), 2, "the watchdog and the link's holder");
    copies.into_iter().for_each(|copy| only_local_sockets(&helper, copy));
    end(helper);
    follower.join().unwrap()
}

/// Every socket of this process of the helper's is one of netlink or of Unix, and of the helper's network namespace.
fn only_local_sockets(helper: &Helper, pid: Pid) {
    let mut local = BTreeSet::new();
    for (table, column) in [("netlink", 9), ("unix", 6)] {
        let text = fs::read_to_string(format!("/proc/{}/net/{table}", helper.pid())).unwrap();
        let inodes = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(column));
        local.extend(inodes.map(|inode| format!("socket:[{inode}]")));
    }
    let mut sockets = 0;
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let what = fs::read_link(fd.unwrap().path()).unwrap().to_string_lossy().into_owned();
        if what.starts_with("socket:") {
            sockets += 1;
            assert!(local.contains(&what), "{what} is neither netlink nor Unix");
        }
    }
    assert!(sockets > 0, "conntrack's and the watchdog's are sockets");
}

fn stop(helper: Helper) {
    assert_eq!(helper.stop().failures, []);
}

/// The watchdog undoes it.
fn kill(mut helper: Helper) {
    helper.signal(Signal::SIGKILL);
    helper.wait();
}

const OF_IPTABLES: &[&str] = &["xtables-nft-multi", "xtables-legacy-multi"];

pub(crate) fn by_nft_only_listed_programs_run() {
    for end in [stop, kill] {
        scene::run(|| {
            let executed = session(Method::Nft, end);
            // iptables' programs look for what dead sessions left.
            assert_only(&executed, &[&["nft"], OF_IPTABLES].concat());
            assert_eq!(scene::ruleset(), "");
        });
    }
}

pub(crate) fn by_iptables_only_listed_programs_run() {
    for end in [stop, kill] {
        scene::run(|| {
            let executed = session(Method::Iptables, end);
            let used = executed.iter().next().unwrap().file_name().unwrap().to_str().unwrap();
            assert!(OF_IPTABLES.contains(&used), "{executed:?}");
            assert_only(&executed, &[used]);
            assert!(!scene::output("iptables-save", &[]).contains("kshuttle"));
        });
    }
}

pub(crate) fn with_a_link_only_listed_programs_run() {
    for end in [stop, kill] {
        scene::run(|| {
            let executed = session_with_link(end);
            assert_only(&executed, &[&["resolvectl", "ip", "nft"], OF_IPTABLES].concat());
        });
    }
}

pub(crate) fn with_routes_only_listed_programs_run() {
    for end in [stop, kill] {
        scene::run(|| {
            let before = scene::state();
            let executed = session_with_routes(end);
            assert_only(&executed, &[&["ip", "nft"], OF_IPTABLES].concat());
            scene::eventually("it is as before", || scene::state() == before);
        });
    }
}
