//! That what is sent arrives: whole, both ways, many at once.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;

use kshuttle_test_support::http::{connect, get, put, sha256};
use kshuttle_test_support::kshuttle::Kshuttle;
use kshuttle_test_support::pattern;

use crate::reach::{RANGES, bench};

pub(crate) fn a_gibibyte_each_way_arrives_whole() {
    let _kshuttle = Kshuttle::start(&RANGES);
    let down = get(bench(8080), "/1024M").unwrap();
    assert_eq!((down.length, Some(down.sha256)), (1 << 30, down.announced));
    let block = pattern(1 << 20);
    let up = put(bench(8080), "/sink", &block, 1024).unwrap();
    assert_eq!(up.text.trim(), format!("{} {}", sha256(&block, 1024), 1 << 30));
}

pub(crate) fn two_hundred_connections_at_once() {
    let _kshuttle = Kshuttle::start(&RANGES);
    // All are open before the first one is used.
    let mut open: Vec<_> = (0..200).map(|_| connect(bench(7003)).unwrap()).collect();
    for (i, socket) in open.iter_mut().enumerate() {
        socket.write_all(&(i as u64).to_be_bytes()).unwrap();
    }
    for (i, socket) in open.iter_mut().enumerate() {
        let mut answer = [0; 8];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(u64::from_be_bytes(answer), i as u64);
    }
}

pub(crate) fn half_close_is_kept() {
    const LENGTH: usize = 10 << 20;
    let _kshuttle = Kshuttle::start(&RANGES);
    let mut socket = connect(bench(7004)).unwrap();
    let question = pattern(LENGTH);
    socket.write_all(&question).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let line = format!("{LENGTH} {}\n", sha256(&question, 1));
    assert_eq!(String::from_utf8_lossy(&answer[..line.len()]), line);
    let fixed = get(bench(8080), "/10M").unwrap();
    assert_eq!(sha256(&answer[line.len()..], 1), fixed.sha256);
}

pub(crate) fn the_pods_reset_arrives_as_a_reset() {
    let _kshuttle = Kshuttle::start(&RANGES);
    let mut socket = connect(bench(7005)).unwrap();
    socket.write_all(b"x").unwrap();
    let mut got = Vec::new();
    let error = socket.read_to_end(&mut got).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "after {} bytes", got.len());
}

pub(crate) fn an_application_that_never_reads_holds_back_nobody() {
    let _kshuttle = Kshuttle::start(&RANGES);
    let mut stuck = connect(bench(7001)).unwrap();
    stuck.read_exact(&mut [0; 1]).unwrap(); // it flows, and from here on nobody reads
    let others: Vec<_> = (0..50).map(|_| thread::spawn(|| get(bench(8080), "/8M").unwrap())).collect();
    for other in others {
        let answer = other.join().unwrap();
        assert_eq!(Some(answer.sha256), answer.announced);
    }
}
