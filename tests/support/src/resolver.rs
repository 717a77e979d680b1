//! A real systemd-resolved with a bus of its own, from packages that are only unpacked (`scripts/resolver-packages`).
//!
//! The calling thread, and what it starts from then on, moves into a mount namespace where the packages lie over `/usr` and
//! `/etc`, and with which all of it vanishes: it must be a thread of the test's own. Both programs run in its network namespace,
//! where `lo` is up.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kshuttle::{PATIENCE, eventually, output};

/// Names the folder with the packages.
const PACKAGES: &str = "KSHUTTLE_TEST_RESOLVER";

/// Users of both programs, where the packages were not installed: numbers that no package and no person gets.
const USERS: [(&str, u32); 2] = [("messagebus", 64_001), ("systemd-resolve", 64_002)];

/// Where both have their sockets, and resolved its state.
const STATE: [&str; 2] = ["/run/dbus", "/run/systemd"];

/// How the C library resolves names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// It asks resolved itself (nss-resolve).
    Resolve,
    /// It asks resolved's address in `/etc/resolv.conf` (nss-dns).
    Dns,
}

/// A running resolved. Dropped, it and its bus end.
pub struct Resolver {
    bus: Child,
    resolved: Option<Child>,
}

/// Why there can be none here.
pub fn missing() -> Option<String> {
    let has_packages = std::env::var_os(PACKAGES).is_some();
    (!has_packages).then(|| format!("needs {PACKAGES}=$(scripts/resolver-packages)"))
}

impl Resolver {
    /// Moves the calling thread, and starts both; resolved asks these servers.
    ///
    /// # Panics
    /// When something does not work.
    pub fn start(upstream: &[SocketAddr], library: Library) -> Self {
        lay_over();
        configure(upstream, library);
        let mut resolver = Self { bus: start_bus(), resolved: None };
        resolver.start_resolved();
        resolver
    }

    /// Starts resolved again with what it was told, after [`Resolver::stop`].
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_resolved(&mut self) {
        let mut command = Command::new("/usr/lib/systemd/systemd-resolved");
        // Else it tells about every change, and about every server that does not answer.
        command.env_clear().env("SYSTEMD_LOG_TARGET", "console").env("SYSTEMD_LOG_LEVEL", "err");
        self.resolved = Some(command.spawn().expect("systemd-resolved starts"));
        eventually("systemd-resolved answers", PATIENCE, || {
            let asked = Command::new("resolvectl").arg("dns").output().expect("resolvectl starts");
            asked.status.success().then_some(())
        });
    }

    /// Ends resolved in order; the bus stays.
    ///
    /// # Panics
    /// When it is not running.
    pub fn stop(&mut self) {
        let mut resolved = self.resolved.take().expect("it runs");
        send(&resolved, Signal::SIGTERM);
        resolved.wait().expect("our child");
    }

    /// Stops its process where it is (true), or lets it go on.
    ///
    /// # Panics
    /// When it is not running.
    pub fn hang(&self, is_hanging: bool) {
        let signal = if is_hanging { Signal::SIGSTOP } else { Signal::SIGCONT };
        send(self.resolved.as_ref().expect("it runs"), signal);
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for child in self.resolved.iter_mut().chain([&mut self.bus]) {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }
}

/// What it was told: servers and domains, for everything and by link, and what it keeps of that for its next start.
///
/// # Panics
/// When it does not answer.
pub fn told() -> String {
    let told = ["dns", "domain"].map(|verb| output(Command::new("resolvectl").arg(verb)));
    let kept = fs::read_dir("/run/systemd/resolve/netif").into_iter().flatten().filter_map(Result::ok);
    let mut kept: Vec<_> = kept.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect();
    kept.sort();
    format!("{}\n{}", told.join("\n"), kept.concat())
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, signal).expect("our child, not yet waited for");
}

/// Moves the calling thread to where the packages lie over `/usr` and `/etc`, and starts nothing.
///
/// # Panics
/// When something does not work.
pub fn lay_over() {
    let packages = PathBuf::from(std::env::var_os(PACKAGES).expect("the caller asked what is missing"));
    unshare(CloneFlags::CLONE_NEWNS).expect("root has mount namespaces");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    for folder in STATE {
        fs::create_dir_all(folder).expect("a folder in /run");
        tmpfs(folder);
    }
    // What is written into /etc is kept here; the folder is empty again for everybody else.
    let written = Path::new("/run/systemd/etc");
    let (upper, work) = (written.join("upper"), written.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder).expect("a folder in memory");
    }
    let packages = packages.display();
    overlay("/usr", &format!("lowerdir={packages}/usr:/usr"));
    let written = format!("upperdir={},workdir={}", upper.display(), work.display());
    overlay("/etc", &format!("lowerdir={packages}/etc:/etc,{written}"));
}

fn tmpfs(on: &str) {
    mount(Some("tmpfs"), on, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a tmpfs");
}

fn overlay(on: &str, options: &str) {
    let mounted = mount(Some("overlay"), on, Some("overlay"), MsFlags::empty(), Some(options));
    mounted.unwrap_or_else(|error| panic!("an overlay on {on} with {options}: {error}"));
}

fn configure(upstream: &[SocketAddr], library: Library) {
    for (name, id) in USERS {
        append_if_new("/etc/passwd", name, &format!("{name}:x:{id}:{id}::/:/usr/sbin/nologin\n"));
        append_if_new("/etc/group", name, &format!("{name}:x:{id}:\n"));
    }
    write("/etc/machine-id", "6b736875747474656b7368757474746c\n");
    let servers: Vec<String> = upstream.iter().map(ToString::to_string).collect();
    let quiet = "FallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\nDNSOverTLS=no\n";
    fs::create_dir_all("/etc/systemd").expect("a folder in memory");
    write("/etc/systemd/resolved.conf", &format!("[Resolve]\nDNS={}\n{quiet}", servers.join(" ")));
    let resolve = if library == Library::Resolve { "resolve [!UNAVAIL=return] " } else { "" };
    write("/etc/nsswitch.conf", &format!("passwd: files\ngroup: files\nhosts: files {resolve}dns\n"));
    fs::remove_file("/etc/resolv.conf").or_else(ignore_absence).expect("a file in memory");
    symlink("/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf").expect("a link in memory");
    fs::create_dir("/run/systemd/resolve").expect("a folder in memory");
    let id = |field: usize| -> Option<u32> {
        let users = fs::read_to_string("/etc/passwd").ok()?;
        let line = users.lines().find(|line| line.starts_with("systemd-resolve:"))?;
        line.split(':').nth(field)?.parse().ok()
    };
    chown("/run/systemd/resolve", id(2), id(3)).expect("root may");
}

/// A line for what this file does not name yet.
fn append_if_new(path: &str, name: &str, line: &str) {
    let text = fs::read_to_string(path).expect("every machine has users");
    if !text.lines().any(|line| line.starts_with(&format!("{name}:"))) {
        write(path, &format!("{text}{line}"));
    }
}

fn write(path: &str, text: &str) {
    fs::remove_file(path).or_else(ignore_absence).expect("a file in memory"); // it may be a link to somewhere else
    fs::write(path, text).expect("a file in memory");
}

fn ignore_absence(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Returns when it listens.
fn start_bus() -> Child {
    let mut command = Command::new("dbus-daemon");
    command.args([
        "--config-file=/usr/share/dbus-1/system.conf",
        "--nofork",
        "--nopidfile",
        "--print-address",
    ]);
    // Its warnings are about users of packages that are not there.
    let mut bus = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("dbus-daemon starts");
    let mut address = String::new();
    let mut said = BufReader::new(bus.stdout.take().expect("a pipe"));
    said.read_line(&mut address).expect("a pipe of ours");
    assert!(!address.is_empty(), "dbus-daemon ended");
    bus
}
