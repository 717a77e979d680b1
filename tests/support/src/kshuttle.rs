//! The product itself as a process, and the machine it changes.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for anything that happens by itself; a test fails then.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Time for what was printed before the end to be read.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Asks `is_so` until it is, and fails the test with `what` if it does not come to be.
///
/// # Panics
/// When it does not happen within `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut is_so: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = is_so() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20)); // between two looks at the system, which tells nobody
    }
}

/// A program of the build under test; its folder is `KSHUTTLE_TEST_PROGRAMS`.
///
/// # Panics
/// When the variable is not set.
pub fn program(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("KSHUTTLE_TEST_PROGRAMS").expect("KSHUTTLE_TEST_PROGRAMS is set"))
        .join(name)
}

/// A running `kshuttle`. Dropping it stops it.
pub struct Kshuttle {
    child: Child,
    said: Lines,
    printed: Lines,
    readers: Vec<JoinHandle<()>>,
}

type Lines = Arc<Mutex<Vec<String>>>;

/// Collects lines until the end.
fn collect(from: impl Read + Send + 'static) -> (Lines, JoinHandle<()>) {
    let said = Lines::default();
    let lines = said.clone();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            lines.lock().expect("no panic while holding the lock").push(line);
        }
    });
    (said, reader)
}

impl Kshuttle {
    /// Starts `kshuttle` with these arguments and waits until it says that it is ready.
    ///
    /// # Panics
    /// When it ends or does not get ready.
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(program("kshuttle"));
        command.args(arguments).args(context());
        Self::start_as(command)
    }

    /// The same with a command of the caller's, such as one that changes the user.
    ///
    /// # Panics
    /// When it ends or does not get ready.
    pub fn start_as(command: Command) -> Self {
        let mut this = Self::spawn(command);
        eventually("kshuttle is ready", PATIENCE, || {
            if let Some(status) = this.child.try_wait().expect("wait for a child") {
                panic!("kshuttle ended with {status}:\n{}", this.said());
            }
            this.said().contains("ready in").then_some(())
        });
        this
    }

    /// Starts without waiting for anything.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let (said, errors) = collect(child.stderr.take().expect("stderr is piped"));
        let (printed, output) = collect(child.stdout.take().expect("stdout is piped"));
        Self { child, said, printed, readers: vec![errors, output] }
    }

    /// Everything it has said so far.
    ///
    /// # Panics
    /// Never in practice.
    pub fn said(&self) -> String {
        self.said.lock().expect("no panic while holding the lock").join("\n")
    }

    /// Everything it has printed so far on standard output.
    ///
    /// # Panics
    /// Never in practice.
    pub fn printed(&self) -> String {
        self.printed.lock().expect("no panic while holding the lock").join("\n")
    }

    /// The local addresses of `port-forward`, `count` of them, in the order they were printed on standard output.
    ///
    /// # Panics
    /// When they are not printed.
    pub fn forwarded(&self, count: usize) -> Vec<SocketAddr> {
        eventually("all addresses are printed", PATIENCE, || {
            let printed = self.printed.lock().expect("no panic while holding the lock").clone();
            (printed.len() >= count).then_some(printed)
        })
        .iter()
        .map(|line| {
            let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(" -> ").next());
            address
                .and_then(|address| address.parse().ok())
                .unwrap_or_else(|| panic!("not an address: {line}"))
        })
        .collect()
    }

    /// The word before ` is running`: its pod's name.
    ///
    /// # Panics
    /// When it has not said so.
    pub fn pod(&self) -> String {
        let said = self.said();
        let line = said.lines().find(|line| line.contains(" is running")).expect("a line about the pod");
        line.split_whitespace().nth(1).expect("the pod's name").to_owned()
    }

    /// Its process id; with a command in front, that one's.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process ids are small"))
    }

    /// Sends a signal to it alone.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the process is there");
    }

    /// For whoever has to find out why something stands still.
    fn print_status(&self) {
        let mut status = Command::new(program("kshuttle"));
        // It has bounds of its own. A session of another user, or one that is not asked, says nothing.
        if let Ok(output) = status.args(["status", "-o", "json", &self.pid().to_string()]).output() {
            eprintln!("--- how it stands:\n{}", String::from_utf8_lossy(&output.stdout));
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        let status =
            eventually("kshuttle ends", PATIENCE, || self.child.try_wait().expect("wait for a child"));
        // Its last words may still be in the pipe, which a helper that lives on keeps open.
        let deadline = Instant::now() + LAST_WORDS;
        while Instant::now() < deadline && !self.readers.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        status
    }

    /// Signals and waits.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }
}

impl Drop for Kshuttle {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if std::thread::panicking() {
                self.print_status();
            }
            self.signal(Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(15);
            while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- kshuttle said:\n{}\n---", self.said());
        }
    }
}

/// Standard output of a command that must succeed.
///
/// # Panics
/// When it fails.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `kubectl` with the test's kubeconfig and context.
///
/// # Panics
/// When it fails.
pub fn kubectl(arguments: &[&str]) -> String {
    output(Command::new("kubectl").args(arguments).args(context()))
}

/// `--context` and its name, if the tests are to use another than the current one.
pub fn context() -> Vec<String> {
    std::env::var("KSHUTTLE_TEST_CONTEXT")
        .into_iter()
        .flat_map(|name| ["--context".to_owned(), name])
        .collect()
}

/// Ids of all processes whose command line contains `part`.
pub fn processes(part: &str) -> Vec<Pid> {
    let me = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let id = entry.file_name().into_string().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (id != me && line.contains(part)).then(|| id.parse().ok().map(Pid::from_raw))?
        })
        .collect()
}

/// Packets that left over the dead end of this namespace: what was not redirected.
pub struct LeakMeter {
    before: u64,
}

impl LeakMeter {
    /// Counts from now.
    pub fn start() -> Self {
        Self { before: Self::total() }
    }

    /// Packets since the start.
    pub fn leaked(&self) -> u64 {
        Self::total() - self.before
    }

    fn total() -> u64 {
        let path = "/sys/class/net/wan0/statistics/tx_packets";
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| {
            panic!("{path} cannot be read: the test does not run in the laptop's namespace");
        })
    }
}
