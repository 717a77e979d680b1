//! What an application does while something breaks, and how it learns of it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kshuttle_test_support::kshuttle::{PATIENCE, eventually};

/// What an application is in the middle of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Download,
    Upload,
    Idle,
}

pub(super) const WORKS: [Work; 3] = [Work::Download, Work::Upload, Work::Idle];

impl Work {
    /// The bench server's port for it.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Download => 7001,
            Self::Upload => 7002,
            Self::Idle => 7003,
        }
    }

    /// Begins it: something went to the pod and, where it answers, came back.
    pub(super) fn begin(self, socket: &mut TcpStream) -> io::Result<()> {
        match self {
            Self::Download => socket.read_exact(&mut [0; 65536]),
            Self::Upload => {
                socket.write_all(&u64::MAX.to_be_bytes())?; // so much is announced
                let block = vec![0; 1 << 20];
                // The sink does not answer; so much does not fit into the buffers on the way.
                (0..64).try_for_each(|_| socket.write_all(&block))
            }
            Self::Idle => {
                socket.write_all(b"x")?;
                socket.read_exact(&mut [0; 1])
            }
        }
    }

    /// Goes on until it ends; silence is an error of its own kind.
    fn go_on(self, mut socket: TcpStream, moved: &AtomicU64) -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = match self {
                Self::Upload => socket.write(&buffer)?,
                Self::Download | Self::Idle => socket.read(&mut buffer)?,
            };
            if length == 0 {
                return Ok(());
            }
            moved.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

/// Something that will end, and when it did.
pub(super) type Ending = JoinHandle<(Instant, io::Result<()>)>;

pub(super) fn spawn(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Ending {
    thread::spawn(|| {
        let result = work();
        (Instant::now(), result)
    })
}

/// How it ended, and how long after `since`.
pub(super) fn join(ending: Ending, since: Instant) -> (Duration, io::Result<()>) {
    let (at, result) = ending.join().unwrap();
    (at.saturating_duration_since(since), result)
}

/// A transfer that runs.
pub(super) struct Transfer {
    pub(super) work: Work,
    ending: Ending,
    /// Bytes since it began.
    moved: Arc<AtomicU64>,
    socket: TcpStream,
}

impl Transfer {
    pub(super) fn start(work: Work, mut socket: TcpStream) -> Self {
        work.begin(&mut socket).unwrap();
        let moved = Arc::<AtomicU64>::default();
        let counter = moved.clone();
        let own = socket.try_clone().unwrap();
        Self { work, moved, ending: spawn(move || work.go_on(own, &counter)), socket }
    }

    /// It has not ended, and bytes move.
    pub(super) fn assert_goes_on(&mut self, what: &str) {
        let before = self.moved.load(Ordering::Relaxed);
        if matches!(self.work, Work::Idle) {
            self.socket.write_all(b"x").unwrap();
        }
        eventually(what, PATIENCE, || {
            assert!(!self.ending.is_finished(), "{what}: it ended");
            (self.moved.load(Ordering::Relaxed) > before).then_some(())
        });
    }

    pub(super) fn end(self, since: Instant) -> (Duration, io::Result<()>) {
        join(self.ending, since)
    }
}

/// A line of the table.
pub(super) fn tell(what: &str, (after, result): &(Duration, io::Result<()>), reason: &str) {
    let end = result.as_ref().map_or_else(|error| error.to_string(), |()| "end".to_owned());
    println!("    {what}: {end} after {:.2} s: {reason}", after.as_secs_f64());
}

pub(super) fn assert_reset(what: &str, (_, result): &(Duration, io::Result<()>)) {
    match result {
        Ok(()) => panic!("{what}: a clean end: an application would take half for the whole"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}"),
    }
}
