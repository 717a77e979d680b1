//! Connections that outlive what carries them.

use std::io::{Read, Write};
use std::thread;

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually};

use crate::reach::{RANGES, bench};
use crate::scene::ThroughLine;

/// Downloads at the same time, and how long each is.
const DOWNLOADS: usize = 10;
const LENGTH: &str = "/48M";

/// The connection to the API server is reset after this many bytes, again and again.
const RESET_AFTER: u64 = 24 << 20;

pub(crate) fn flows_do_not_notice_resets_of_the_connection() {
    let way = ThroughLine::start();
    let flags = ["--kubeconfig", way.kubeconfig.to_str().unwrap(), "-vv"];
    let kshuttle = Kshuttle::start(&[&RANGES[..], &flags].concat());
    let mut idle = connect(bench(7003)).unwrap();
    let downloads: Vec<_> =
        (0..DOWNLOADS).map(|_| thread::spawn(|| get(bench(8080), LENGTH).unwrap())).collect();
    let (mut next, mut resets) = (RESET_AFTER, 0);
    eventually("the downloads are complete", 3 * PATIENCE, || {
        if way.line.carried() > next {
            resets += way.line.reset_all();
            next = way.line.carried() + RESET_AFTER;
        }
        downloads.iter().all(|download| download.is_finished()).then_some(())
    });
    for download in downloads {
        let answer = download.join().unwrap();
        assert_eq!(Some(answer.sha256), answer.announced);
    }
    println!("    {resets} connections were reset");
    assert!(resets > 10, "{resets}: {}", kshuttle.said());
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0; 1]).unwrap();
}

pub(crate) fn flows_do_not_notice_that_connections_are_renewed() {
    let kshuttle = Kshuttle::start(&[&RANGES[..], &["--tunnel-lifetime", "1s", "-vv"]].concat());
    let mut idle = connect(bench(7003)).unwrap();
    let mut busy = connect(bench(7001)).unwrap();
    let mut buffer = vec![0; 1 << 20];
    eventually("connections were renewed", PATIENCE, || {
        busy.read_exact(&mut buffer).unwrap();
        (kshuttle.said().matches("byte stream renewed").count() >= 6).then_some(())
    });
    busy.read_exact(&mut buffer).unwrap();
    idle.write_all(b"x").unwrap();
    idle.read_exact(&mut [0; 1]).unwrap();
}
