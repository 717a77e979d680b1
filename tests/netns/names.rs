//! Name servers: queries come to us, each server's to a port of its own; whoever asks notices neither the beginning nor the end.

use kshuttle_helper::plan::MAX_NAME_SERVERS;
use kshuttle_helper::protocol::{Method, NameServer, Plan, Reply, Request};
use nix::sys::signal::Signal;

use super::answers::{Answers, SERVERS, answered, asks, connected, real, servers};
use super::helper::{Helper, plan};
use super::iptables::with_each;
use super::listener::Listener;
use super::scene::{self, accept, connect_to, eventually, says};

pub(crate) fn named(helper: &mut Helper, servers: &[NameServer]) {
    helper.say(&Request::Names { servers: servers.to_vec() });
    assert_eq!(helper.hear(), Some(Reply::Updated {}));
}

/// A helper that redirects `include`, datagrams, too, to nobody who answers, and these name servers.
pub(crate) fn ready(method: Method, include: &[&str], servers: &[NameServer]) -> Helper {
    let mut helper = Helper::start_over_socket_pair();
    let datagrams = Some(9);
    let plan = plan("a", &Listener::start(), include, &[]);
    helper.make_ready(&Plan { method, datagrams_v4: datagrams, datagrams_v6: datagrams, ..plan });
    named(&mut helper, servers);
    helper
}

pub(crate) const ELSEWHERE: &[&str] = &["10.0.0.0/8", "fd00::/8"];

/// Wherever the server is: in the local network, or a forwarder on this machine.
fn each_has_its_own(method: Method) {
    let neighbour = servers();
    let local = [("127.0.0.1", Answers::at("127.0.0.1", 53)), ("::1", Answers::at("::1", 53))];
    let before = scene::state();
    let captured = ["198.51.100.53", "2001:db8:51::53", "127.0.0.1", "127.0.0.53", "::1"];
    let (stubs, names): (Vec<_>, Vec<_>) = captured.iter().map(|server| Answers::stub(server)).unzip();
    let helper = ready(method, ELSEWHERE, &names);
    for (server, stub) in captured.iter().zip(&stubs) {
        answered(server, 53, stub);
    }
    // Another server, and another port of a server that is ours.
    answered("198.51.100.54", 53, &real(&neighbour, "198.51.100.54"));
    answered("198.51.100.53", 5353, &neighbour.does(|| Answers::at("198.51.100.53", 5353)));
    let report = helper.stop();
    assert_eq!((report.guard_dropped, report.still_open, report.failures), (0, 0, vec![]));
    for (server, real) in &local {
        answered(server, 53, real);
    }
    answered("198.51.100.53", 53, &real(&neighbour, "198.51.100.53"));
    assert_eq!(scene::state(), before);
}

pub(crate) fn each_server_has_a_port_of_its_own() {
    scene::run(|| each_has_its_own(Method::Nft));
}

/// Programs keep sockets for long: they are answered by us at once, and by the server again at once.
fn connected_ones_follow(method: Method, end: impl Fn(Helper)) {
    let neighbour = servers();
    let server = "198.51.100.53";
    let real = real(&neighbour, server);
    let local = Answers::at("127.0.0.1", 53);
    let before = scene::state();
    let programs = [(connected(server), &real), (connected("127.0.0.1"), &local)];
    for (program, real) in &programs {
        asks(program, real);
    }
    let (stubs, names): (Vec<_>, Vec<_>) = [server, "127.0.0.1"].map(Answers::stub).into_iter().unzip();
    let helper = ready(method, ELSEWHERE, &names);
    for ((program, _), stub) in programs.iter().zip(&stubs) {
        asks(program, stub);
        asks(program, stub);
    }
    end(helper);
    assert_eq!(scene::state(), before);
    drop(stubs);
    for (program, real) in &programs {
        asks(program, real);
    }
}

fn stop(helper: Helper) {
    assert_eq!(helper.stop().failures, []);
}

fn terminate(mut helper: Helper) {
    helper.signal(Signal::SIGTERM);
    assert_eq!(helper.wait(), (Some(0), String::new()));
}

fn kill(mut helper: Helper) {
    helper.signal(Signal::SIGKILL);
    assert_eq!(helper.wait(), (None, String::new()), "the watchdog is through");
    eventually("the table is gone", || !scene::ruleset().contains("kshuttle"));
}

pub(crate) fn who_was_connected_follows_at_once() {
    for end in [stop, terminate, kill] {
        for foreign in [false, true] {
            scene::run(|| {
                if foreign {
                    scene::foreign_nat_table(); // conntrack remembers what was asked before, and after
                }
                connected_ones_follow(Method::Nft, end);
            });
        }
    }
}

pub(crate) fn tcp_connections_that_stand_go_on() {
    for foreign in [false, true] {
        scene::run(|| {
            if foreign {
                scene::foreign_nat_table();
            }
            let neighbour = servers();
            let server = "198.51.100.53";
            let real = real(&neighbour, server);
            let mut first = (connect_to("198.51.100.53:53"), accept(&real.tcp));
            let ((stub, name), (later, other)) = (Answers::stub(server), Answers::stub(server));
            let mut helper = ready(Method::Nft, ELSEWHERE, &[name]);
            says(&mut first.0, &mut first.1);
            says(&mut first.1, &mut first.0);
            let mut second = (connect_to("198.51.100.53:53"), accept(&stub.tcp));
            named(&mut helper, &[other]);
            let mut third = (connect_to("198.51.100.53:53"), accept(&later.tcp));
            named(&mut helper, &[]);
            for (program, answering) in [&mut first, &mut second, &mut third] {
                says(program, answering);
                says(answering, program);
            }
            // What we answered ends before the rules do, with a word that the program hears.
            for (mut program, answering) in [second, third] {
                drop(answering);
                assert_eq!(scene::read_end(&mut program).unwrap(), 0);
            }
            let report = helper.stop();
            assert_eq!((report.still_open, report.guard_dropped, report.failures), (0, 0, vec![]));
            says(&mut first.0, &mut first.1);
            says(&mut first.1, &mut first.0);
        });
    }
}

/// The helper ends by this while our stub still looks for the answer.
fn in_flight(end: fn(&mut Helper), asks_and_hears: impl Fn(&Answers, &mut dyn FnMut()) + Sync) {
    scene::run(|| {
        let neighbour = servers();
        let real = real(&neighbour, SERVERS[0]);
        let (stub, name) = Answers::stub(SERVERS[0]);
        let mut helper = ready(Method::Nft, ELSEWHERE, &[name]);
        asks_and_hears(&stub, &mut || {
            end(&mut helper);
            eventually("the redirect is flushed", || !scene::ruleset().contains("redirect to"));
            // Who asks now is answered by the server, and the helper waits for our answer: much longer than the undo takes.
            for _ in 0..20 {
                asks(&connected(SERVERS[0]), &real);
                assert!(scene::ruleset().contains("kshuttle"), "the table stands");
            }
        });
        match helper.hear() {
            Some(Reply::Stopped { report }) => assert_eq!((report.still_open, report.failures), (0, vec![])),
            None => {} // it was killed
            other => panic!("instead of stopped: {other:?}"),
        }
        helper.wait();
        eventually("the table is gone", || scene::ruleset().is_empty());
    });
}

pub(crate) fn a_query_in_flight_is_answered() {
    let stop = |helper: &mut Helper| helper.say(&Request::Stop {});
    let kill = |helper: &mut Helper| helper.signal(Signal::SIGKILL);
    for end in [stop as fn(&mut Helper), kill] {
        in_flight(end, |stub, meanwhile| {
            let program = connected(SERVERS[0]);
            program.send(b"query").unwrap();
            let (_, from) = stub.udp.recv_from(&mut [0; 64]).unwrap();
            meanwhile();
            stub.udp.send_to(b"answer", from).unwrap();
            assert_eq!(program.recv(&mut [0; 64]).unwrap(), 6);
        });
        in_flight(end, |stub, meanwhile| {
            let mut program = connect_to("198.51.100.53:53");
            let mut answering = accept(&stub.tcp);
            says(&mut program, &mut answering);
            meanwhile();
            says(&mut answering, &mut program);
        });
    }
}

pub(crate) fn other_servers_replace_the_first() {
    scene::run(|| {
        let neighbour = servers();
        let [first, second, third] = SERVERS;
        let reals = SERVERS.map(|server| real(&neighbour, server));
        let ((one, name_one), (two, name_two)) = (Answers::stub(first), Answers::stub(second));
        let ((moved, name_moved), (three, name_three)) = (Answers::stub(first), Answers::stub(third));
        let mut helper = ready(Method::Nft, ELSEWHERE, &[name_one, name_two]);
        let programs = SERVERS.map(connected);
        let asked = |by: [&Answers; 3]| {
            for (program, by) in programs.iter().zip(by) {
                asks(program, by);
            }
        };
        asked([&one, &two, &reals[2]]);
        named(&mut helper, &[name_moved, name_three]);
        asked([&moved, &reals[1], &three]);
        let ranges = Request::Update { include: vec!["10.1.0.0/16".parse().unwrap()], exclude: vec![] };
        helper.say(&ranges);
        assert_eq!(helper.hear(), Some(Reply::Updated {}));
        asked([&moved, &reals[1], &three]);
        named(&mut helper, &[]);
        asked([&reals[0], &reals[1], &reals[2]]);
        assert_eq!(helper.stop().failures, []);
        assert_eq!(scene::ruleset(), "");
    });
}

pub(crate) fn servers_that_are_refused_leave_the_first() {
    scene::run(|| {
        let (stub, name) = Answers::stub("127.0.0.53");
        let mut helper = ready(Method::Nft, ELSEWHERE, &[name]);
        let server = |address: &str, port| NameServer { address: address.parse().unwrap(), port };
        let many = (0..=MAX_NAME_SERVERS).map(|host| server(&format!("10.0.0.{host}"), 5)).collect();
        for servers in [many, vec![server("0.0.0.0", 5)], vec![server("10.0.0.2", 0)]] {
            helper.say(&Request::Names { servers });
            match helper.hear() {
                Some(Reply::Refused { message }) => assert!(message.contains("servers: "), "{message}"),
                other => panic!("instead of refused: {other:?}"),
            }
        }
        answered("127.0.0.53", 53, &stub);
        let most: Vec<_> =
            (0..16).map(|host| server(&format!("fd00:1234:5678:9abc:def0::{host}"), 5)).collect();
        named(&mut helper, &most);
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn a_foreign_flush_changes_nothing() {
    scene::run(|| {
        let (stub, name) = Answers::stub("127.0.0.53");
        let helper = ready(Method::Nft, ELSEWHERE, &[name]);
        scene::nft("flush ruleset");
        answered("127.0.0.53", 53, &stub);
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn by_iptables_they_go_where_they_should() {
    with_each(|| each_has_its_own(Method::Iptables));
}

pub(crate) fn by_iptables_who_was_connected_follows_at_once() {
    for end in [stop, kill] {
        with_each(move || connected_ones_follow(Method::Iptables, end));
    }
}

pub(crate) fn by_iptables_a_foreign_flush_is_mended() {
    with_each(|| {
        let (stub, name) = Answers::stub("127.0.0.1");
        let local = Answers::at("127.0.0.1", 53);
        let program = connected("127.0.0.1");
        let mut helper = ready(Method::Iptables, ELSEWHERE, &[name]);
        asks(&program, &stub);
        scene::output("iptables", &["-t", "nat", "-F"]);
        // What is asked meanwhile goes past us, but not for longer.
        let meanwhile = connected("127.0.0.1");
        asks(&meanwhile, &local);
        match helper.hear() {
            Some(Reply::Repaired { what }) => assert!(what.contains("kshuttle_a"), "{what}"),
            other => panic!("instead of repaired: {other:?}"),
        }
        asks(&program, &stub);
        asks(&meanwhile, &stub);
        assert_eq!(helper.stop().failures, []);
    });
}
