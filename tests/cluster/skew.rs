//! People and pods of different versions: a client of today with an older pod, an older client with a pod of today, and both in
//! one namespace. The older programs are from `scripts/older`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, context, eventually, output, program};
use nix::sys::signal::Signal;

use crate::life::pods;
use crate::reach::{RANGES, bench};
use crate::scene::Namespace;
use crate::socks::fetches;

const LENGTH: &str = "/48M";

/// Renewals of the byte streams meanwhile: each goes on with what was under way.
const RENEWALS: usize = 6;

/// Where the older programs are, if they are.
pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os("KSHUTTLE_TEST_OLDER").map(PathBuf::from)
}

fn older() -> PathBuf {
    folder().expect("main() looks whether it is there").join("kshuttle")
}

/// A client with a pod of this image: transfers and idle connections survive that the byte streams are replaced.
fn carries(client: PathBuf, image: &str) {
    let mut command = Command::new(client);
    command.args(RANGES).args(["--image", image, "--tunnel-lifetime", "1s", "-vv"]).args(context());
    let mut kshuttle = Kshuttle::start_as(command);
    let mut idle = connect(bench(7003)).unwrap();
    eventually("byte streams were renewed", PATIENCE, || {
        let answer = get(bench(8080), LENGTH).unwrap();
        assert_eq!(Some(answer.sha256), answer.announced);
        (kshuttle.said().matches("byte stream renewed").count() >= RENEWALS).then_some(())
    });
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0; 1]).unwrap();
    let status = kshuttle.stop(Signal::SIGTERM);
    assert_eq!(status.code(), Some(143), "{}", kshuttle.said());
}

pub(crate) fn a_client_of_today_works_with_an_older_pod() {
    carries(program("kshuttle"), "localhost/kshuttle-sshd:older");
}

pub(crate) fn an_older_client_works_with_a_pod_of_today() {
    carries(older(), &std::env::var("KSHUTTLE_TEST_IMAGE").expect("scripts/test names the image"));
}

fn start(client: PathBuf, space: &Namespace) -> Kshuttle {
    let mut command = Command::new(client);
    command.args(["socks", "--listen", "127.0.0.1:0", "-n", &space.name]).args(context());
    Kshuttle::start_as(command)
}

pub(crate) fn two_versions_in_one_namespace_do_not_disturb_each_other() {
    let space = Namespace::new("skew");
    let mut before = start(older(), &space);
    let mut after = start(program("kshuttle"), &space);
    fetches(&before);
    fetches(&after);
    let programs = space.ours("configmap").lines().count();
    // Neither takes the other's pod or program for a left-over, or for its own to go on with. Of a killed session of the older
    // one nothing is known, since it noted less: its pod goes when it is idle.
    let mut cleanup = Command::new(program("kshuttle"));
    output(cleanup.args(["cleanup", "--yes", "-n", &space.name]).args(context()));
    assert_eq!(space.ours("configmap").lines().count(), programs);
    assert_eq!(pods(&space).len(), 2);
    before.stop(Signal::SIGKILL);
    let mut third = start(program("kshuttle"), &space);
    assert_ne!(third.pod(), before.pod());
    assert_eq!(pods(&space).len(), 3);
    after.stop(Signal::SIGKILL);
    let fourth = start(older(), &space);
    assert_ne!(fourth.pod(), after.pod());
    fetches(&fourth);
    fetches(&third);
    third.stop(Signal::SIGTERM);
    fetches(&fourth);
}
