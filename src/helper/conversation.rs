//! One conversation with the user side, from hello to the end of input.
//!
//! States: *waiting* for the plan → *holding* the rules → over. Every way out of holding goes through the undo: `stop`,
//! end of input, SIGTERM, a frame we do not understand, rules that somebody took away.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use crate::error_chain;
use crate::firewall::{self, Firewall};
use crate::plan::{self, Plan};
use crate::protocol::{self, Frames, Reply, Request, UndoReport};

/// Most characters of a message in [`Reply::Failed`]: the answer must fit in a pipe that nobody reads.
const MOST_MESSAGE: usize = 4096;

/// Why a conversation ended badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The user side is not understood.
    #[error("the user side said something we do not understand")]
    Protocol(#[source] protocol::Error),
    /// A second plan.
    #[error("the user side sent a second plan")]
    SecondPlan,
    /// The plan is refused.
    #[error("the plan is refused")]
    Plan(#[source] plan::Error),
    /// The rules could not be put in.
    #[error(transparent)]
    Firewall(#[from] firewall::Error),
    /// The rules are gone.
    #[error("nft ended without us: the redirect rules are gone")]
    Lost,
    /// The pipes of the conversation fail.
    #[error("the conversation with the user side broke")]
    Talk(#[source] io::Error),
    /// Something is left behind.
    #[error("the undo is incomplete: {0}")]
    Undo(String),
}

impl Error {
    fn step(&self) -> &'static str {
        match self {
            Self::Protocol(_) | Self::SecondPlan | Self::Talk(_) => "protocol",
            Self::Plan(_) => "plan",
            Self::Firewall(error) => error.step(),
            Self::Lost => "lost",
            Self::Undo(_) => "undo",
        }
    }
}

/// What happened next.
enum Event {
    Said(Request),
    EndOfInput,
    Terminate,
    Lost,
}

/// Both directions, and the signal that ends them.
pub(crate) struct Conversation {
    terminate: PipeReader,
    frames: Frames,
}

impl Conversation {
    /// On standard input and output; `terminate` has something to read once SIGTERM came.
    pub(crate) fn new(terminate: PipeReader) -> Self {
        Self { terminate, frames: Frames::default() }
    }

    /// Holds it until it is over. An error was told to the user side already, if that still listens.
    pub(crate) fn hold(mut self) -> Result<(), Error> {
        let mut firewall = None;
        let ended = self.talk(&mut firewall);
        let report = firewall.map(Firewall::undo).unwrap_or_default();
        let undone = complete(&report);
        match ended {
            Ok(Some(Stop)) => {
                // If nobody listens, it is said on standard error, too.
                let _ = say(&Reply::Stopped { report });
                undone
            }
            Ok(None) => undone,
            Err(error) => {
                let mut message = error_chain(&error);
                if let Err(more) = undone {
                    message = format!("{message}; {more}");
                }
                let message = message.chars().take(MOST_MESSAGE).collect();
                let _ = say(&Reply::Failed { step: error.step().into(), message }); // the caller prints it
                Err(error)
            }
        }
    }

    fn talk(&mut self, firewall: &mut Option<Firewall>) -> Result<Option<Stop>, Error> {
        say(&Reply::Hello { protocol: protocol::VERSION, version: env!("CARGO_PKG_VERSION").into() })?;
        Firewall::permitted()?;
        loop {
            match self.next(firewall.as_ref())? {
                Event::Said(Request::Plan(_)) if firewall.is_some() => return Err(Error::SecondPlan),
                Event::Said(Request::Plan(said)) => {
                    let standing = Firewall::apply(Plan::check(said).map_err(Error::Plan)?)?;
                    let table = standing.table().to_owned();
                    *firewall = Some(standing);
                    say(&Reply::Ready { method: firewall::METHOD.into(), table })?;
                }
                Event::Said(Request::Stop {}) => return Ok(Some(Stop)),
                Event::EndOfInput | Event::Terminate => return Ok(None),
                Event::Lost => return Err(Error::Lost),
            }
        }
    }

    fn next(&mut self, firewall: Option<&Firewall>) -> Result<Event, Error> {
        let stdin = io::stdin();
        let input = stdin.as_fd(); // read without a buffer of the library's: what is not asked for stays in the pipe
        loop {
            if let Some(request) = self.frames.take().map_err(Error::Protocol)? {
                return Ok(Event::Said(request));
            }
            let [said, terminate, lost] = wait(input, self.terminate.as_fd(), firewall.map(Firewall::lost))?;
            if terminate {
                return Ok(Event::Terminate);
            }
            if lost {
                return Ok(Event::Lost);
            }
            if said {
                let mut bytes = [0; 16 * 1024];
                match read(input, &mut bytes) {
                    // A socket pair whose other end died with unread bytes says so by the reset.
                    Ok(0) | Err(Errno::ECONNRESET) => return Ok(Event::EndOfInput),
                    Ok(length) => self.frames.push(&bytes[..length]),
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(Error::Talk(error.into())),
                }
            }
        }
    }
}

/// The user side asked for the end and wants a report.
struct Stop;

/// Which of the three has something: the input, the signal, the end of the rules.
fn wait(input: BorrowedFd, terminate: BorrowedFd, lost: Option<BorrowedFd>) -> Result<[bool; 3], Error> {
    let mut fds = vec![PollFd::new(input, PollFlags::POLLIN), PollFd::new(terminate, PollFlags::POLLIN)];
    fds.extend(lost.map(|lost| PollFd::new(lost, PollFlags::empty()))); // hanging up is always told
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => Ok([0, 1, 2].map(|which| fds.get(which).is_some_and(|fd| fd.any().unwrap_or(true)))),
        Err(Errno::EINTR) => Ok([false; 3]),
        Err(error) => Err(Error::Talk(error.into())),
    }
}

fn say(reply: &Reply) -> Result<(), Error> {
    protocol::write(&mut io::stdout().lock(), reply).map_err(Error::Protocol)
}

fn complete(report: &UndoReport) -> Result<(), Error> {
    if report.failures.is_empty() {
        return Ok(());
    }
    let failures: Vec<String> =
        report.failures.iter().map(|failure| format!("{}: {}", failure.step, failure.message)).collect();
    Err(Error::Undo(failures.join("; ")))
}
