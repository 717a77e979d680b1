//! Laptops without IPv6, or with link-local addresses only: by routes of our own they reach what is included all the same, and
//! keep nothing of them.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use kshuttle_helper::protocol::{Method, NameServer, Plan, Reply, Request};
use nix::sys::signal::Signal;

use super::datagrams::{bind, origin};
use super::helper::{Helper, plan};
use super::listener::{Listener, reset};
use super::ranges::update;
use super::scene::{self, begin_connect, connect_to, eventually, leaked, output, says};
use super::undo::{assert_was_reset, wait_for_the_flush};

const RANGES: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];
const INSIDE: &str = "[fd00:10:96::9]:443";
/// The link of the session `a`.
const LINK: &str = "kip6a";

/// Takes away what the scene has of IPv6.
fn without_ipv6() {
    scene::ip("-6 route del default");
    scene::ip("-6 addr del 2001:db8:51::2/64 dev wan0");
}

/// The same, but the router is known by its link-local address, as after its advertisement.
fn with_link_local_only() {
    without_ipv6();
    scene::ip("-6 addr add fe80::2/64 dev wan0 nodad");
    scene::ip("-6 neigh add fe80::1 lladdr 02:00:00:00:00:01 dev wan0 nud permanent");
    scene::ip("-6 route add default via fe80::1 dev wan0");
    // The kernel adds it a little later than the address; a test that looks before would take it for the helper's.
    eventually("the address has a route", || {
        output("ip", &["-6", "route", "show", "table", "local"]).contains("fe80::2")
    });
}

/// Once on each of these laptops.
fn on_each(test: impl Fn() + Send + Sync) {
    for laptop in [without_ipv6, with_link_local_only] {
        scene::run(|| {
            laptop();
            test();
        });
    }
}

/// Listeners for both, and a plan with routes.
struct User {
    listener: Listener,
    datagrams: [UdpSocket; 2],
}

impl User {
    fn start() -> Self {
        Self { listener: Listener::start(), datagrams: [bind("127.0.0.1:0"), bind("[::1]:0")] }
    }

    fn plan(&self, session: &str, include: &[&str]) -> Plan {
        let [datagrams_v4, datagrams_v6] =
            [0, 1].map(|which: usize| Some(self.datagrams[which].local_addr().unwrap().port()));
        let plan = plan(session, &self.listener, include, &[]);
        Plan { datagrams_v4, datagrams_v6, ipv6_routes: true, ..plan }
    }

    fn helper(&self) -> Helper {
        let mut helper = Helper::start();
        assert_eq!(helper.make_ready(&self.plan("a", &RANGES)), [""; 0]);
        helper
    }

    /// A redirected connection: the application's end and ours.
    fn open(&self, to: &str) -> (TcpStream, TcpStream) {
        let application = connect_to(to);
        let (destination, stream) = self.listener.next();
        assert_eq!(destination.to_string(), to);
        (application, stream)
    }

    fn assert_connections_arrive(&self, to: &str) {
        let (mut application, mut stream) = self.open(to);
        says(&mut application, &mut stream);
        says(&mut stream, &mut application);
        reset(stream);
        assert_was_reset(application);
    }

    fn assert_datagrams_arrive(&self, helper: &mut Helper, to: &str) {
        let (application, to): (_, SocketAddr) = (bind("[::]:0"), to.parse().unwrap());
        application.send_to(b"question", to).unwrap();
        let ours = &self.datagrams[1];
        let (length, from) = ours.recv_from(&mut [0; 64]).unwrap();
        assert_eq!((length, origin(helper, from, ours)), (8, Some(to)));
        ours.send_to(b"answer", from).unwrap();
        let (length, sender) = application.recv_from(&mut [0; 64]).unwrap();
        assert_eq!((length, sender), (6, to));
    }
}

fn has_no_way(to: &str) -> bool {
    let error = TcpStream::connect(to).unwrap_err();
    error.kind() == ErrorKind::NetworkUnreachable
}

fn routes() -> String {
    output("ip", &["-6", "route", "show", "dev", LINK])
}

fn has_link() -> bool {
    output("ip", &["link"]).contains(LINK)
}

pub(crate) fn connections_and_datagrams_arrive() {
    on_each(|| {
        let (before, sent) = (scene::state(), leaked());
        let user = User::start();
        let mut helper = user.helper();
        user.assert_connections_arrive(INSIDE);
        user.assert_connections_arrive("10.96.0.9:443");
        user.assert_datagrams_arrive(&mut helper, "[fd00:10:96::a]:53");
        let report = helper.stop();
        assert_eq!((report.guard_dropped, report.failures, leaked()), (0, vec![], sent));
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn by_iptables_they_arrive_as_well() {
    on_each(|| {
        let (user, sent) = (User::start(), leaked());
        let mut helper = Helper::ready(&Plan { method: Method::Iptables, ..user.plan("a", &RANGES) });
        user.assert_connections_arrive(INSIDE);
        user.assert_datagrams_arrive(&mut helper, INSIDE);
        assert_eq!((helper.stop().failures, leaked(), has_link()), (vec![], sent, false));
    });
}

pub(crate) fn without_being_asked_for_there_are_none() {
    scene::run(|| {
        without_ipv6();
        let user = User::start();
        let helper = Helper::ready(&Plan { ipv6_routes: false, ..user.plan("a", &RANGES) });
        assert!(has_no_way(INSIDE) && !has_link());
        assert_eq!(helper.stop().failures, []);
    });
}

/// A machine with addresses of its own uses them elsewhere, and ours towards what is included only.
pub(crate) fn our_address_is_for_what_is_included() {
    scene::run(|| {
        let (user, before) = (User::start(), scene::state());
        let helper = user.helper();
        let source = |to: &str| {
            let socket = bind("[::]:0");
            socket.connect(to).unwrap();
            socket.local_addr().unwrap().ip().to_string()
        };
        assert_eq!(source("[fd00:10:97::9]:53"), scene::WAN6);
        assert!(source("[fd00:10:96::9]:53").starts_with("fd"));
        // Nor does it take the place of the only other one.
        scene::ip("-6 addr add 2001:db8:52::2/128 dev lo nodad");
        scene::ip("-6 addr del 2001:db8:51::2/64 dev wan0");
        assert_eq!(source("[fd00:10:97::9]:53"), "2001:db8:52::2");
        scene::ip("-6 addr del 2001:db8:52::2/128 dev lo");
        scene::ip("-6 addr add 2001:db8:51::2/64 dev wan0 nodad");
        user.assert_connections_arrive(INSIDE);
        assert_eq!((helper.stop().failures, leaked()), (vec![], 0));
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn two_sessions_have_a_link_each() {
    on_each(|| {
        let (before, users) = (scene::state(), [User::start(), User::start()]);
        let first = users[0].helper();
        let other = "[fd00:10:97::9]:443";
        let second = Helper::ready(&users[1].plan("b", &["fd00:10:97::/112"]));
        users[0].assert_connections_arrive(INSIDE);
        users[1].assert_connections_arrive(other);
        assert_eq!(first.stop().failures, []);
        users[1].assert_connections_arrive(other);
        assert_eq!(second.stop().failures, []);
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn other_ranges_have_other_routes() {
    scene::run(|| {
        without_ipv6();
        let (before, user) = (scene::state(), User::start());
        let mut helper = user.helper();
        let stays = "10.96.0.0/12";
        let updated = update(&mut helper, &[stays, "fd00:10:97::/112", "fd00:10:98::7/128"], &[]);
        assert_eq!(updated, Some(Reply::Updated {}));
        for to in ["[fd00:10:97::9]:443", "[fd00:10:98::7]:443"] {
            user.assert_connections_arrive(to);
        }
        assert!(has_no_way(INSIDE) && !routes().contains("fd00:10:96::"), "{}", routes());
        // What is refused changes nothing.
        let standing = scene::state();
        for (include, exclude) in [(RANGES[1], "fd00:10:96::1/128"), ("127.0.0.0/8", "10.0.0.1/32")] {
            let refused = update(&mut helper, &[include], &[exclude]);
            assert!(matches!(refused, Some(Reply::Refused { .. })), "{refused:?}");
        }
        assert_eq!(scene::state(), standing);
        assert_eq!(update(&mut helper, &[stays], &[]), Some(Reply::Updated {}));
        assert!(!routes().contains("fd00:"), "{}", routes());
        assert_eq!((helper.stop().failures, leaked()), (vec![], 0));
        assert_eq!(scene::state(), before);
    });
}

/// Somebody deletes the link: what needs it is refused, the rules stand.
pub(crate) fn a_link_that_is_gone_is_told_with_the_next_range() {
    scene::run(|| {
        without_ipv6();
        let (before, user) = (scene::state(), User::start());
        let mut helper = user.helper();
        scene::ip(&format!("link delete {LINK}"));
        match update(&mut helper, &["10.96.0.0/12", "fd00:10:97::/112"], &[]) {
            Some(Reply::Refused { message }) => {
                assert!(message.starts_with("adding routes to the link kip6a failed: "), "{message}")
            }
            other => panic!("instead of refused: {other:?}"),
        }
        assert_eq!(update(&mut helper, &["10.97.0.0/16"], &[]), Some(Reply::Updated {}));
        user.assert_connections_arrive("10.97.0.9:443");
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::state(), before);
    });
}

pub(crate) fn where_they_cannot_be_made_the_rules_stand() {
    scene::run(|| {
        without_ipv6();
        let user = User::start();
        let noted = |helper: &mut Helper, why: &str| {
            let notes = helper.make_ready(&user.plan("a", &RANGES));
            assert!(notes.len() == 1 && notes[0].contains(why), "{notes:?}");
            user.assert_connections_arrive("10.96.0.9:443");
            let updated = update(helper, &["10.97.0.0/16", "fd00:10:97::/112"], &[]);
            assert_eq!(updated, Some(Reply::Updated {}));
        };
        // All of root's rights but CAP_SYS_ADMIN, as in a container.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"]);
        let before = scene::state();
        let mut helper = Helper::start_by(command);
        noted(&mut helper, "needs CAP_SYS_ADMIN");
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::state(), before);
        // Links without IPv6.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let before = scene::state();
        let mut helper = Helper::start();
        noted(&mut helper, "giving the link kip6a an address failed");
        assert!(!has_link());
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::state(), before);
        // A link of that name, which is not ours.
        scene::ip(&format!("link add {LINK} type veth peer name foreign"));
        let before = scene::state();
        let mut helper = Helper::start();
        noted(&mut helper, "File exists");
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::state(), before);
    });
}

/// Ends the helper in some way with a connection that is reset before or meanwhile.
fn leaves_nothing(end: impl Fn(&mut Helper, TcpStream, TcpStream) + Send + Sync) {
    on_each(|| {
        scene::foreign_nat_table();
        let (before, sent, user) = (scene::state(), leaked(), User::start());
        let mut helper = user.helper();
        // There is another watchdog from then on.
        let server = NameServer { address: "127.0.0.53".parse().unwrap(), port: user.listener.v4 };
        helper.say(&Request::Names { servers: vec![server] });
        assert_eq!(helper.hear(), Some(Reply::Updated {}));
        let (application, stream) = user.open(INSIDE);
        end(&mut helper, application, stream);
        eventually("it is as before", || scene::state() == before);
        assert_eq!(leaked(), sent);
    });
}

pub(crate) fn end_of_input_leaves_nothing() {
    leaves_nothing(|helper, application, stream| {
        helper.hang_up();
        wait_for_the_flush();
        reset(stream);
        assert_was_reset(application);
        assert_eq!(helper.wait(), (Some(0), String::new()));
        assert!(!has_link());
    });
}

pub(crate) fn sigterm_leaves_nothing() {
    leaves_nothing(|helper, application, stream| {
        helper.signal(Signal::SIGTERM);
        wait_for_the_flush();
        reset(stream);
        assert_was_reset(application);
        assert_eq!(helper.wait(), (Some(0), String::new()));
        assert!(!has_link());
    });
}

/// The reset goes to the address of the link, which therefore outlives the helper until the watchdog is through.
pub(crate) fn sigkill_is_undone_by_the_watchdog() {
    leaves_nothing(|helper, application, stream| {
        helper.signal(Signal::SIGKILL);
        helper.wait_for_silence();
        wait_for_the_flush();
        assert!(has_link());
        reset(stream);
        assert_was_reset(application);
        assert_eq!(helper.wait(), (None, String::new()));
    });
}

pub(crate) fn sigkill_of_all_is_undone_by_the_kernel() {
    leaves_nothing(|helper, application, stream| {
        reset(stream); // nobody could afterwards
        assert_was_reset(application);
        let copies = helper.children("kshuttle-helper");
        assert_eq!(copies.len(), 2, "the watchdog and the link's holder");
        helper.kill_with(&copies);
    });
}

/// The holder is left, and nobody for whom it could hold the link.
pub(crate) fn sigkill_of_both_is_undone_by_the_kernel() {
    leaves_nothing(|helper, application, stream| {
        reset(stream); // nobody could afterwards
        assert_was_reset(application);
        let watchdog = *helper.children("kshuttle-helper").last().unwrap();
        helper.kill_with(&[watchdog]);
    });
}

pub(crate) fn nothing_leaks_while_the_undo_waits() {
    on_each(|| {
        let (sent, user) = (leaked(), User::start());
        let mut helper = user.helper();
        let (_application, _stream) = user.open(INSIDE); // nobody ends it: the undo waits as long as it may
        helper.say(&Request::Stop {});
        wait_for_the_flush();
        let pending: Vec<_> = (0..10).map(|_| begin_connect(0, "[fd00:10:96::a]:443")).collect();
        drop(pending);
        let Some(Reply::Stopped { report }) = helper.hear() else { panic!("no report") };
        assert_eq!((report.still_open, report.failures.as_slice()), (1, [].as_slice()));
        assert!(report.guard_dropped >= 10, "{report:?}");
        assert_eq!(leaked(), sent);
        assert!(!has_link());
    });
}
