//! Who the processes are: the data path has no rights, the helper alone is root.

use std::process::Command;

use kshuttle_test_support::http::get;
use kshuttle_test_support::kshuttle::{Kshuttle, output, processes, program};
use nix::unistd::Pid;

use crate::reach::{RANGES, bench};

/// The ordinary user of the laptop, who may sudo.
const USER: &str = "dev";

/// The lines of `/proc/PID/status` that start with `name`, without it.
fn status(pid: Pid, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The process with the cluster's credentials and the data path; not the helper, not sudo.
fn data_path() -> Pid {
    let kshuttle = program("kshuttle");
    let all = processes(&kshuttle.to_string_lossy());
    let exe =
        |pid: &&Pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok() == kshuttle.canonicalize().ok();
    let found: Vec<_> = all.iter().filter(exe).collect();
    assert_eq!(found.len(), 1, "{all:?}");
    *found[0]
}

/// Every thread of it: rights belong to threads.
fn assert_powerless(pid: Pid) {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = Pid::from_raw(thread.unwrap().file_name().to_string_lossy().parse().unwrap());
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(thread, set), "0000000000000000", "{set}");
        }
        assert_eq!(status(thread, "NoNewPrivs"), "1");
    }
}

fn assert_is_user(pid: Pid) {
    let id = |what: &str| output(Command::new("id").args([what, USER]));
    let four = |id: &str| [id; 4].join(" ");
    assert_eq!(status(pid, "Uid"), four(&id("-u")));
    assert_eq!(status(pid, "Gid"), four(&id("-g")));
    let mut groups: Vec<_> = status(pid, "Groups").split(' ').map(str::to_owned).collect();
    let mut expected: Vec<_> = id("-G").split(' ').map(str::to_owned).collect();
    groups.sort();
    expected.sort();
    assert_eq!(groups, expected, "supplementary groups too");
}

fn assert_works() {
    assert_eq!(get(bench(8080), "/").unwrap().text, "hello from bench\n");
}

pub(crate) fn as_root_it_keeps_no_capability() {
    let kshuttle = Kshuttle::start(&RANGES);
    assert!(kshuttle.said().contains("as root, without any capability"), "{}", kshuttle.said());
    assert_eq!(status(data_path(), "Uid"), "0 0 0 0");
    assert_powerless(data_path());
    assert_works();
}

pub(crate) fn through_sudo_it_becomes_the_user_again() {
    let mut command = Command::new("runuser");
    command
        .args(["-u", USER, "--", "sudo", "--preserve-env=KUBECONFIG"])
        .arg(program("kshuttle"))
        .args(RANGES);
    let kshuttle = Kshuttle::start_as(command);
    assert!(kshuttle.said().contains("running as dev"), "{}", kshuttle.said());
    assert_is_user(data_path());
    assert_powerless(data_path());
    assert_works();
}

pub(crate) fn a_user_runs_only_the_helper_as_root() {
    let mut command = Command::new("runuser");
    command.args(["-u", USER, "--"]).arg(program("kshuttle")).args(RANGES);
    let kshuttle = Kshuttle::start_as(command);
    let first = kshuttle.said().lines().next().unwrap_or_default().to_owned();
    assert!(first.contains("sudo"), "said before a password could be asked for: {first}");
    assert_is_user(data_path());
    assert_powerless(data_path());
    assert_works();
}
