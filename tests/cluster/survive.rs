//! Connections that outlive what carries them.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use kshuttle_test_support::http::{connect, get};
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually, output};
use kshuttle_test_support::line::Line;

use crate::reach::{RANGES, bench};

/// Downloads at the same time, and how long each is.
const DOWNLOADS: usize = 10;
const LENGTH: &str = "/48M";

/// The connection to the API server is reset after this many bytes, again and again.
const RESET_AFTER: u64 = 24 << 20;

/// A bad line to the API server, and a kubeconfig that leads through it.
struct ThroughLine {
    line: Line,
    kubeconfig: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl ThroughLine {
    fn start() -> Self {
        let config = output(Command::new("kubectl").args(["config", "view", "--raw", "--minify"]));
        let server = config.lines().find_map(|line| line.trim().strip_prefix("server: https://")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let line = runtime.block_on(Line::start(server.trim_end_matches('/').parse().unwrap(), 1));
        let (host, _) = server.rsplit_once(':').unwrap();
        let through = format!("server: https://{}\n    tls-server-name: {host}", line.address);
        let folder = PathBuf::from(std::env::var_os("KSHUTTLE_TEST_PROGRAMS").unwrap());
        let kubeconfig = folder.join(format!("kubeconfig-{}", std::process::id()));
        fs::write(&kubeconfig, config.replace(&format!("server: https://{server}"), &through)).unwrap();
        Self { line, kubeconfig, runtime }
    }
}

impl Drop for ThroughLine {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.kubeconfig);
        let _entered = self.runtime.enter(); // the line's tasks end in their runtime
    }
}

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
