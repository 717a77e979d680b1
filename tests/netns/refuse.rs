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
