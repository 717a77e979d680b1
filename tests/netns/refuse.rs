//! What the helper does not do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use kshuttle_helper::protocol::{Reply, Request};
use nix::pty::openpty;

use super::helper::{Helper, command, plan};
use super::listener::Listener;
use super::scene;

fn assert_failed(mut helper: Helper, step: &str, says: &str) {
    match helper.hear() {
        Some(Reply::Failed { step: failed, message }) => {
            assert_eq!(failed, step, "{message}");
            assert!(message.contains(says), "{message}");
        }
        other => panic!("instead of failed: {other:?}"),
    }
    let (code, said) = helper.wait();
    assert_eq!(code, Some(1));
    assert!(said.contains(says), "{said}");
}

pub(crate) fn a_bad_plan_is_refused_by_its_field() {
    scene::run(|| {
        let good = r#""session":"a","include":["10.0.0.0/8"],"exclude":[],"listener_v4":1,"listener_v6":1"#;
        for (step, wrong, right, says) in [
            ("plan", r#""session":"a b""#, r#""session":"a""#, "session: "),
            ("plan", r#""include":[]"#, r#""include":["10.0.0.0/8"]"#, "include: "),
            ("plan", r#""include":["127.0.0.0/8"]"#, r#""include":["10.0.0.0/8"]"#, "include: "),
            ("plan", r#""listener_v4":null"#, r#""listener_v4":1"#, "listener_v4: "),
            (
                "protocol",
                r#""include":["10.0.0.0/8; flush ruleset"]"#,
                r#""include":["10.0.0.0/8"]"#,
                "include: ",
            ),
            ("protocol", r#""exclude":7"#, r#""exclude":[]"#, "exclude: "),
            ("protocol", r#""listener_v6":65536"#, r#""listener_v6":1"#, "listener_v6: "),
            ("protocol", r#""command":"sh""#, r#""exclude":[]"#, "unknown field `command`"),
        ] {
            let plan = good.replace(right, wrong);
            assert_ne!(plan, good);
            let mut helper = Helper::start();
            helper.say_raw(&format!(r#"{{"type":"plan",{plan}}}"#));
            assert_failed(helper, step, says);
        }
        assert_eq!(scene::ruleset(), "");
    });
}

pub(crate) fn a_second_plan_ends_it() {
    scene::run(|| {
        let listener = Listener::start();
        let plan = plan("a", &listener, &["10.0.0.0/8"], &[]);
        let mut helper = Helper::ready(&plan);
        helper.say(&Request::Plan(plan));
        assert_failed(helper, "protocol", "second plan");
        assert_eq!(scene::ruleset(), "");
    });
}

pub(crate) fn what_is_not_understood_ends_it() {
    scene::run(|| {
        let listener = Listener::start();
        let mut helper = Helper::ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        helper.say_raw(r#"{"type":"run","command":"sh"}"#);
        assert_failed(helper, "protocol", "unknown variant `run`");
        assert_eq!(scene::ruleset(), "");
    });
}

/// Values that no field may have, as JSON.
const HOSTILE: &[&str] = &[
    r#""; flush ruleset""#,
    r#""10.0.0.0/8; flush ruleset""#,
    r#""10.0.0.0/8\nflush ruleset""#,
    r#""a\" accept; flush ruleset; \"""#,
    r#""a\nCOMMIT\n*filter\n-F""#,
    r#""\"""#,
    r#""$(reboot)""#,
    r#""../../etc/passwd""#,
    r#""\u0000""#,
    r#""ä""#,
    "-1",
    "4294967296",
    "18446744073709551616",
    "1e999",
    "0.5",
    "true",
    r#"{"a":[]}"#,
    r#"["; flush ruleset"]"#,
    r#"[{"a":0}]"#,
    r#"[[[["#,
];

/// Plans with one hole each.
const HOLES: &[&str] = &[
    r#"{"type":@}"#,
    r#"{"type":"plan","session":@,"include":["10.0.0.0/8"],"listener_v4":1}"#,
    r#"{"type":"plan","session":"a","include":@,"listener_v4":1}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8",@],"listener_v4":1}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":@}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"listener_v4":@}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"datagrams_v4":@}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"exclude":@}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"exclude_ports":[@]}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"method":@}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"command":@}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"who":{"users":[@]}}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"who":{"cgroups":[@]}}"#,
    r#"{"type":"plan","session":"a","include":["10.0.0.0/8"],"listener_v4":1,"bridges":[{"name":@,"address":"172.17.0.1","subnet":"172.17.0.0/16","listener":1}]}"#,
    r#"{"type":"update","include":[@]}"#,
    r#"{"type":"origin","from":@,"at":"127.0.0.1:1"}"#,
    r#"{"type":"link","port_v4":@,"domains":["svc"]}"#,
    r#"{"type":"link","port_v4":1,"domains":[@],"search":[]}"#,
    r#"{"type":"link","port_v4":1,"domains":[],"search":@}"#,
    r#"{"type":"names","servers":[@]}"#,
    r#"{"type":"names","servers":[{"address":@,"port":1}]}"#,
    r#"{"type":"names","servers":[{"address":"127.0.0.53","port":@}]}"#,
    r#"{"type":"sockets","v6":false,"stream":false,"count":@}"#,
];

pub(crate) fn hostile_conversations_end_without_a_trace() {
    scene::run(|| {
        scene::nft("add table inet others; add chain inet others out");
        let before = scene::ruleset();
        for hole in HOLES {
            for value in HOSTILE {
                let mut helper = Helper::start();
                helper.say_raw(&hole.replace('@', value));
                match helper.hear() {
                    Some(Reply::Failed { step, .. }) => {
                        assert!(["protocol", "plan"].contains(&&*step), "{step}")
                    }
                    other => panic!("{hole} with {value}: instead of failed: {other:?}"),
                }
                assert_eq!(helper.wait().0, Some(1));
            }
            assert_eq!(scene::ruleset(), before);
        }
        // Deeper than any stack.
        for deep in ["[".repeat(100_000), r#"{"type":"#.repeat(10_000)] {
            let mut helper = Helper::start();
            helper.say_raw(&deep);
            assert_failed(helper, "protocol", "a frame is not understood");
        }
        assert_eq!(scene::ruleset(), before);
    });
}

pub(crate) fn the_same_session_twice_is_refused() {
    scene::run(|| {
        let listener = Listener::start();
        let plan = plan("a", &listener, &["10.0.0.0/8"], &[]);
        let first = Helper::ready(&plan);
        let mut second = Helper::start();
        second.say(&Request::Plan(plan));
        assert_failed(second, "rules", "nft refused");
        assert_eq!(first.stop().failures, []);
    });
}

pub(crate) fn without_root_it_says_so() {
    scene::run(|| {
        // The build's folder may not be open to others.
        let folder = std::env::temp_dir().join(format!("kshuttle-helper-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let copy = folder.join("kshuttle-helper");
        fs::copy(command().get_program(), &copy).unwrap();
        let mut command = Command::new(&copy);
        command.uid(65534).gid(65534).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        fs::remove_dir_all(&folder).unwrap();
        assert_failed(Helper::from_pipes(child.unwrap()), "privilege", "sudo");
    });
}

pub(crate) fn a_terminal_is_refused() {
    let terminal = openpty(None, None).unwrap();
    let refused = command().stdin(terminal.slave).output().unwrap();
    assert_eq!((refused.status.code(), refused.stdout), (Some(2), vec![]));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("started by kshuttle"), "{said}");
}

pub(crate) fn what_is_no_conversation_is_refused() {
    let nothing = || Stdio::from(fs::File::open("/dev/null").unwrap());
    for (input, output) in [(nothing(), Stdio::piped()), (Stdio::piped(), nothing())] {
        let refused = command().stdin(input).stdout(output).stderr(Stdio::piped()).spawn().unwrap();
        let refused = refused.wait_with_output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(2) && said.contains("started by kshuttle"), "{said}");
    }
}

pub(crate) fn a_set_uid_bit_is_refused() {
    scene::run(|| {
        // `/run` is this scene's own, and minds the bit.
        let copy = "/run/kshuttle-helper";
        fs::copy(command().get_program(), copy).unwrap();
        fs::set_permissions("/run", fs::Permissions::from_mode(0o755)).unwrap();
        for bit in [0o4000, 0o2000] {
            fs::set_permissions(copy, fs::Permissions::from_mode(0o755 | bit)).unwrap();
            let mut command = Command::new(copy);
            command.uid(65534).gid(65534).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let refused = command.spawn().unwrap().wait_with_output().unwrap();
            let said = String::from_utf8(refused.stderr).unwrap();
            assert!(said.contains("must not be set-uid"), "{said}");
            assert_eq!((refused.status.code(), refused.stdout), (Some(2), vec![]));
        }
    });
}

pub(crate) fn the_environment_says_nothing() {
    scene::run(|| {
        let mut command = command();
        for name in
            ["PATH", "HOME", "TMPDIR", "LC_ALL", "LANG", "RUST_BACKTRACE", "NFT_DEBUG", "XTABLES_LIBDIR"]
        {
            command.env(name, "/nonexistent");
        }
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut helper = Helper::from_pipes(child);
        let listener = Listener::start();
        helper.make_ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
        // The kernel shows what a program was started with; its child shows what is handed on.
        let environment = fs::read_to_string(format!("/proc/{}/environ", helper.child("nft"))).unwrap();
        assert_eq!(environment, "HOME=/nonexistent\0");
        assert_eq!(helper.stop().failures, []);
    });
}

pub(crate) fn version_and_help() {
    let run = |option: &str| command().arg(option).output().unwrap();
    let version = run("--version");
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        concat!("kshuttle-helper ", env!("CARGO_PKG_VERSION"), "\n")
    );
    assert!(run("--help").status.success());
    assert_eq!(run("--other").status.code(), Some(2));
}
