//! The helper through the real sudo and doas, with the rules that `kshuttle sudoers` prints, for a user without rights.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};

use super::helper::{Helper, command, plan};
use super::listener::Listener;
use super::scene;

/// `nobody`, who is in every Debian's passwd.
const USER: (&str, u32) = ("nobody", 65534);

/// Where only root can change it.
const HELPER: &str = "/run/kshuttle-helper";

/// Why the test of this name cannot run here.
pub(crate) fn missing(test: &str) -> Option<String> {
    let program = ["sudo", "doas"]
        .into_iter()
        .find(|name| test == format!("elevation::{name}_runs_only_the_helper"))?;
    let there = Path::new("/usr/bin").join(program).exists();
    (!there).then(|| {
        format!(
            "{program} is missing: apt-get install {}",
            if program == "doas" { "opendoas" } else { program }
        )
    })
}

/// In a scene with an `/etc` of its own.
fn scene(test: impl FnOnce() + Send) {
    scene::run(|| {
        fs::set_permissions("/run", fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(command().get_program(), HELPER).unwrap();
        fs::set_permissions(HELPER, fs::Permissions::from_mode(0o755)).unwrap();
        scene::output("cp", &["-a", "/etc", "/run/etc"]);
        mount(Some("/run/etc"), "/etc", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        test();
    });
}

/// Root's alone, as both programs want their files.
fn write(path: &str, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o440)).unwrap();
}

/// A command of the user's.
fn by_user(line: &[&str]) -> Command {
    let mut command = Command::new(line[0]);
    let (_, id) = USER;
    command.args(&line[1..]).uid(id).gid(id).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn redirects(line: &[&str]) {
    let listener = Listener::start();
    let mut helper = Helper::from_pipes(by_user(line).spawn().unwrap());
    helper.make_ready(&plan("a", &listener, &["10.0.0.0/8"], &[]));
    assert_eq!(helper.stop().failures, []);
    assert_eq!(scene::ruleset(), "");
}

fn is_refused(line: &[&str]) {
    let output = by_user(line).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{line:?}: {output:?}");
}

pub(crate) fn sudo_runs_only_the_helper() {
    scene(|| {
        let (user, _) = USER;
        let rule = format!(
            "Defaults!{HELPER} !requiretty, !noexec, env_reset, !env_keep, !env_check\n\
             {user} ALL=(root) NOPASSWD: NOSETENV: {HELPER} \"\"\n"
        );
        // What an administrator may have set, and what would let the user's environment in.
        let others = "Defaults requiretty, noexec, setenv, !env_reset\nDefaults env_keep += \"LD_PRELOAD\"\n";
        for before in ["", others] {
            write("/etc/sudoers", &format!("{before}{rule}"));
            redirects(&["sudo", "-n", HELPER]);
            is_refused(&["sudo", "-n", HELPER, "--help"]);
            is_refused(&["sudo", "-n", "/usr/bin/id"]);
            is_refused(&["sudo", "-n", "LD_PRELOAD=/tmp/x.so", HELPER]);
            is_refused(&["sudo", "-n", "-E", HELPER]);
        }
        write("/etc/sudoers", "");
        is_refused(&["sudo", "-n", HELPER]);
    });
}

pub(crate) fn doas_runs_only_the_helper() {
    scene(|| {
        let (user, _) = USER;
        write("/etc/doas.conf", &format!("permit nopass {user} as root cmd \"{HELPER}\" args\n"));
        redirects(&["doas", HELPER]);
        is_refused(&["doas", "-n", HELPER, "--help"]);
        is_refused(&["doas", "-n", "/usr/bin/id"]);
        write("/etc/doas.conf", "deny nobody\n");
        is_refused(&["doas", "-n", HELPER]);
    });
}
