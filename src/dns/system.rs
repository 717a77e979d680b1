//! What this machine asks without us: `/etc/resolv.conf` (resolv.conf(5)), and what systemd-resolved asks where it stands in
//! front. Read as glibc reads it where that matters, and more generously elsewhere: no server is lost.

mod parse;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

pub use self::parse::{DNS, Parsed, resolv_conf};

/// What programs read.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What systemd-resolved asks by itself.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// systemd-resolved listens on both, whatever it asks (systemd-resolved.service(8)).
const RESOLVED: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// Of a longer file the rest is not read; the longest search lists have some kilobytes.
const FILE_MAX: u64 = 64 << 10;

/// How often [`Watch`] looks.
const LOOK: Duration = Duration::from_secs(1);

/// What the system says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The servers that programs ask, in their order; all of them, also where the C library uses three. Never empty.
    pub servers: Vec<SocketAddr>,
    /// The servers to ask in their place: the same ones or, where these are systemd-resolved, what that one asks. So
    /// resolved, which may be made to ask us, is not asked by us. May be empty.
    pub upstream: Vec<SocketAddr>,
    /// What is appended to names with few dots.
    pub search: Vec<String>,
    /// Names with fewer dots are few-dotted.
    pub ndots: u8,
}

impl System {
    /// Reads it now; files that are not there, or are something else, are as empty.
    pub fn read() -> Self {
        Files::system().read()
    }
}

/// Every server that programs or systemd-resolved are set up to ask, whichever of them is in front.
pub fn name_servers() -> BTreeSet<SocketAddr> {
    let files = Files::system();
    let both = [files.resolv_conf, files.behind_resolved];
    both.iter().flat_map(|path| parse::resolv_conf(&content(path)).servers).collect()
}

/// Sees changes.
///
/// It looks at the files once per second. The kernel's notices are of little use here: one on the file follows a symlink and
/// ends with the first rename, one on the folders misses bind mounts, and all of it differs between systems. Two small files
/// cost some 50 µs.
#[derive(Debug)]
pub struct Watch {
    files: Files,
    seen: System,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// Sees what changes from now on.
    pub fn new() -> Self {
        Self::of(Files::system())
    }

    fn of(files: Files) -> Self {
        Self { seen: files.read(), files }
    }

    /// What was seen last.
    pub fn seen(&self) -> &System {
        &self.seen
    }

    /// Waits until the system says something else than [`seen`](Self::seen), and returns it. Whatever way the files changed:
    /// it is what they say that counts. May be dropped at any time without missing a change.
    pub async fn changed(&mut self) -> &System {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let now = self.files.read();
            if now != self.seen {
                self.seen = now;
                return &self.seen;
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Files {
    resolv_conf: PathBuf,
    behind_resolved: PathBuf,
}

impl Files {
    fn system() -> Self {
        Self { resolv_conf: RESOLV_CONF.into(), behind_resolved: BEHIND_RESOLVED.into() }
    }

    fn read(&self) -> System {
        let parsed = parse::resolv_conf(&content(&self.resolv_conf));
        let mut servers = parsed.servers;
        if servers.is_empty() {
            servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), parse::DNS)); // as glibc
        }
        let mut upstream = servers.clone();
        if servers.iter().any(is_resolved) {
            upstream.extend(parse::resolv_conf(&content(&self.behind_resolved)).servers);
        }
        upstream.retain(|server| !is_resolved(server));
        let mut once = BTreeSet::new();
        upstream.retain(|server| once.insert(*server));
        System { servers, upstream, search: parsed.search, ndots: parsed.ndots }
    }
}

fn is_resolved(server: &SocketAddr) -> bool {
    matches!(server.ip(), IpAddr::V4(ip) if RESOLVED.contains(&ip))
}

fn content(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    // A pipe or a device in its place would make us wait.
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && let Ok(file) = File::open(path)
    {
        let _ = file.take(FILE_MAX).read_to_end(&mut content); // what was read counts
    }
    content
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Scene {
        folder: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn files(&self) -> Files {
            Files { resolv_conf: self.path("resolv.conf"), behind_resolved: self.path("behind") }
        }
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn who_stands_behind_resolved_is_asked_in_its_place() {
        let scene = Scene::new();
        scene.write("resolv.conf", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n");
        scene.write("behind", "nameserver 198.51.100.53\nnameserver 127.0.0.53\nnameserver 198.51.100.53\n");
        let System { servers, upstream, search, ndots } = scene.files().read();
        assert_eq!(servers, addresses(&["127.0.0.53:53"]));
        assert_eq!(upstream, addresses(&["198.51.100.53:53"]));
        assert_eq!((search, ndots), (vec!["corp.example".to_owned()], 1));
        scene.write("resolv.conf", "nameserver 198.51.100.1\n");
        assert_eq!(scene.files().read().upstream, addresses(&["198.51.100.1:53"]), "it is not in front");
        fs::remove_file(scene.path("behind")).unwrap();
        scene.write("resolv.conf", "nameserver 127.0.0.54\nnameserver 198.51.100.2");
        assert_eq!(scene.files().read().upstream, addresses(&["198.51.100.2:53"]));
    }

    #[test]
    fn without_a_file_it_is_this_machine() {
        let scene = Scene::new();
        let nothing = scene.files().read();
        assert_eq!(nothing.servers, addresses(&["127.0.0.1:53"]));
        fs::create_dir(scene.path("resolv.conf")).unwrap();
        assert_eq!(scene.files().read(), nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn every_way_to_change_is_seen() {
        let scene = Scene::new();
        scene.write("one", "nameserver 192.0.2.1\n");
        scene.write("two", "nameserver 192.0.2.2\n");
        symlink("one", scene.path("resolv.conf")).unwrap();
        let mut watch = Watch::of(scene.files());
        let mut expect = async |change: &dyn Fn(), servers: &[&str]| {
            change();
            assert_eq!(watch.changed().await.servers, addresses(servers));
        };
        expect(&|| scene.write("one", "nameserver 192.0.2.3\n"), &["192.0.2.3:53"]).await; // in place
        let renamed = || {
            scene.write("three", "nameserver 192.0.2.4\n");
            fs::rename(scene.path("three"), scene.path("one")).unwrap();
        };
        expect(&renamed, &["192.0.2.4:53"]).await;
        let retargeted = || {
            symlink("two", scene.path("link")).unwrap();
            fs::rename(scene.path("link"), scene.path("resolv.conf")).unwrap();
        };
        expect(&retargeted, &["192.0.2.2:53"]).await;
        expect(&|| fs::remove_file(scene.path("resolv.conf")).unwrap(), &["127.0.0.1:53"]).await;
        scene.write("resolv.conf", "# nothing new\n");
        let unchanged = tokio::time::timeout(Duration::from_secs(10), watch.changed());
        assert!(unchanged.await.is_err(), "it says the same");
    }
}
