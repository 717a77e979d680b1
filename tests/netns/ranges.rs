//! Ranges that change while the rules stand, and whose connections they are.

use std::fs;
use std::process::{Command, Stdio};

use kshuttle_helper::protocol::{Bridge, Plan, Reply, Request, Who};
use nix::mount::{MsFlags, mount};

use super::helper::{Helper, plan};
use super::listener::Listener;
use super::neighbour::{ADDRESS4, Container, Neighbour};
use super::scene::{self, accept, begin_connect, connect_to, eventually, leaked, says};

pub(crate) fn update(helper: &mut Helper, include: &[&str], exclude: &[&str]) -> Option<Reply> {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    helper.say(&Request::Update { include: nets(include), exclude: nets(exclude) });
    helper.hear()
}

pub(crate) fn other_ranges_replace_the_first() {
    scene::run(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.1.0.0/16"], &[]));
        let mut application = connect_to("10.1.2.3:80");
        let mut stream = listener.next().1;
        let updated = update(&mut helper, &["10.2.0.0/16", "fd00::/8"], &["10.2.9.0/24"]);
        assert_eq!(updated, Some(Reply::Updated {}));
        for destination in ["10.2.2.3:80", "[fd00::9]:443"] {
            let _application = connect_to(destination);
            assert_eq!(listener.next().0.to_string(), destination);
        }
        assert_eq!(leaked(), 0);
        for (count, destination) in [(1, "10.1.2.3:80"), (2, "10.2.9.1:80")] {
            let _outside = begin_connect(0, destination);
            eventually("it left by wan0", || leaked() >= count);
        }
        // What was open goes on.
        says(&mut stream, &mut application);
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::ruleset(), "");
    });
}

pub(crate) fn what_stands_towards_a_new_range_goes_on() {
    scene::run(|| {
        let neighbour = Neighbour::move_in();
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.1.0.0/16"], &[]));
        let theirs = neighbour.listens(ADDRESS4);
        let mut ours = connect_to(&theirs.local_addr().unwrap().to_string());
        let mut accepted = accept(&theirs);
        assert_eq!(update(&mut helper, &["10.1.0.0/16", "10.96.0.0/16"], &[]), Some(Reply::Updated {}));
        says(&mut ours, &mut accepted);
        says(&mut accepted, &mut ours);
        let _new = connect_to("10.96.5.5:80");
        assert_eq!(listener.next().0.to_string(), "10.96.5.5:80");
        let report = helper.stop();
        assert_eq!((report.guard_dropped, report.failures), (0, vec![]));
    });
}

pub(crate) fn ranges_that_are_refused_leave_the_first() {
    scene::run(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.1.0.0/16"], &[]));
        for include in [&[][..], &["127.0.0.0/8"], &["224.0.0.0/4"]] {
            match update(&mut helper, include, &[]) {
                Some(Reply::Refused { message }) => assert!(message.contains("include: "), "{message}"),
                other => panic!("instead of refused: {other:?}"),
            }
        }
        let _application = connect_to("10.1.2.3:80");
        assert_eq!(listener.next().0.to_string(), "10.1.2.3:80");
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn single_ports_are_left_alone() {
    scene::run(|| {
        let listener = Listener::start();
        let exclude_ports = ["10.1.2.3:443", "[fd00::9]:443"].map(|host| host.parse().unwrap()).into();
        let plan = Plan { exclude_ports, ..plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &[]) };
        let helper = Helper::ready(&plan);
        for (count, destination) in [(1, "10.1.2.3:443"), (2, "[fd00::9]:443")] {
            let _outside = begin_connect(0, destination);
            eventually("it left by wan0", || leaked() >= count);
        }
        for destination in ["10.1.2.3:80", "10.1.2.4:443", "[fd00::9]:80"] {
            let _application = connect_to(destination);
            assert_eq!(listener.next().0.to_string(), destination);
        }
        assert_eq!((leaked(), helper.stop().failures), (2, vec![]));
    });
}

/// Connects from a process of this user and group, in this control group; whether it was redirected.
fn is_redirected(listener: &Listener, uid: u32, gid: u32, cgroup: Option<&str>) -> bool {
    let join = cgroup.map(|path| format!("echo 0 > {path}/cgroup.procs; ")).unwrap_or_default();
    // bash's own connect: nothing of this test runs as somebody else. It stays until it is killed.
    let connect = "exec 3<>/dev/tcp/10.1.2.3/80; read -u 3";
    let who = format!("exec setpriv --reuid {uid} --regid {gid} --clear-groups bash -c '{connect}'");
    let before = leaked();
    let mut command = Command::new("bash");
    let mut process = command.args(["-c", &(join + &who)]).stderr(Stdio::null()).spawn().unwrap();
    let mut redirected = false;
    eventually("it goes one way or the other", || {
        redirected = !listener.is_idle();
        redirected || leaked() > before
    });
    process.kill().unwrap();
    process.wait().unwrap();
    redirected
}

pub(crate) fn only_these_users_and_groups() {
    scene::run(|| {
        let listener = Listener::start();
        let who = Who { users: vec![65533, 65532], groups: vec![60001], ..Who::default() };
        let helper = Helper::ready(&Plan { who, ..plan("a", &listener, &["10.0.0.0/8"], &[]) });
        for (uid, gid, wanted) in
            [(65533, 60001, true), (65532, 60001, true), (65533, 60002, false), (0, 60001, false)]
        {
            assert_eq!(is_redirected(&listener, uid, gid, None), wanted, "{uid}:{gid}");
        }
        assert_eq!(helper.stop().guard_dropped, 0);
    });
}

/// A control group of this machine, removed however the test ends.
struct ControlGroup(String);

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Empty by then: every process in it was waited for.
        let _ = fs::remove_dir(format!("{}/in", self.0));
        let _ = fs::remove_dir(&self.0);
    }
}

pub(crate) fn only_this_control_group() {
    scene::run(|| {
        let folder = "/sys/fs/cgroup";
        mount(Some("cgroup2"), folder, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        let name = format!("kshuttle-netns-{}", std::process::id());
        let ours = ControlGroup(format!("{folder}/{name}"));
        fs::create_dir_all(format!("{}/in", ours.0)).unwrap();
        let listener = Listener::start();
        let who = Who { cgroups: vec![format!("{name}/in")], ..Who::default() };
        let helper = Helper::ready(&Plan { who, ..plan("a", &listener, &["10.0.0.0/8"], &[]) });
        assert!(is_redirected(&listener, 0, 0, Some(&format!("{}/in", ours.0))));
        assert!(!is_redirected(&listener, 0, 0, Some(&ours.0)));
        assert_eq!(helper.stop().guard_dropped, 0);
    });
}

pub(crate) fn containers_behind_a_bridge() {
    scene::run(|| {
        let container = Container::start();
        let listener = Listener::start();
        let bridged = Listener::at(["172.18.0.1", "fd77::1"]);
        let bridge = |address: &str, subnet: &str, listener: u16| Bridge {
            name: "br0".into(),
            address: address.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
            listener,
            datagrams: None,
        };
        let bridges = vec![
            bridge("172.18.0.1", "172.18.0.0/24", bridged.v4),
            bridge("fd77::1", "fd77::/64", bridged.v6),
        ];
        let before = scene::ruleset();
        let helper =
            Helper::ready(&Plan { bridges, ..plan("a", &listener, &["10.0.0.0/8", "fd00::/8"], &[]) });
        for destination in ["10.1.2.3:80", "[fd00::9]:443"] {
            let mut application = container.does(move || connect_to(destination));
            let (original, mut stream) = bridged.next();
            assert_eq!(original.to_string(), destination);
            says(&mut stream, &mut application);
        }
        // Who has another address there is not served, and passes as before.
        container.does(|| scene::ip("addr add 172.19.0.2/32 dev eth0"));
        scene::ip("route add 172.19.0.2/32 dev br0");
        let stranger = container.does(|| scene::begin_connect_from("172.19.0.2", "10.1.2.3:80"));
        eventually("it left by wan0", || leaked() >= 1);
        drop(stranger);
        assert!(bridged.is_idle() && listener.is_idle());
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::ruleset(), before);
    });
}
