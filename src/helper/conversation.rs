//! One conversation with the user side, from hello to the end of input.
//!
//! States: *waiting* for the plan → *holding* the rules → over. Every way out of holding goes through the undo: `stop`,
//! end of input, SIGTERM, a frame we do not understand, rules that somebody took away.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use crate::error_chain;
use crate::firewall::{self, Firewall, UpdateError};
use crate::link::Link;
use crate::plan::{self, Plan};
use crate::protocol::{self, Frames, Reply, Request, UndoReport};
use crate::sockets::{self, Passed};

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
    /// A question or an update before the plan.
    #[error("the user side sent no plan before")]
    NoPlan,
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
            Self::Protocol(_) | Self::SecondPlan | Self::NoPlan | Self::Talk(_) => "protocol",
            Self::Plan(_) => "plan",
            Self::Firewall(error) => error.step(),
            Self::Lost => "lost",
            Self::Undo(_) => "undo",
        }
    }
}

/// What happened next.
enum Event {
    Said(Box<Request>),
    EndOfInput,
    Terminate,
    Lost,
    /// Time to look after the rules.
    Look,
}

/// Both directions, and the signal that ends them.
pub(crate) struct Conversation {
    terminate: PipeReader,
    frames: Frames,
    /// When the rules were last looked after.
    looked: Instant,
    passed: Passed,
}

impl Conversation {
    /// On standard input and output; `terminate` has something to read once SIGTERM came.
    pub(crate) fn new(terminate: PipeReader) -> Self {
        Self { terminate, frames: Frames::default(), looked: Instant::now(), passed: Passed::default() }
    }

    /// Holds it until it is over. An error was told to the user side already, if that still listens.
    pub(crate) fn hold(mut self) -> Result<(), Error> {
        let (mut firewall, mut link) = (None, None);
        let ended = self.talk(&mut firewall, &mut link);
        // First, so that no more names are found that lead into the rules.
        let failures = link.map(Link::end).unwrap_or_default();
        let mut report = firewall.map(Firewall::undo).unwrap_or_default();
        report.failures.splice(0..0, failures);
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
                let message = shortened(&message);
                let _ = say(&Reply::Failed { step: error.step().into(), message }); // the caller prints it
                Err(error)
            }
        }
    }

    fn talk(
        &mut self,
        firewall: &mut Option<Firewall>,
        link: &mut Option<Link>,
    ) -> Result<Option<Stop>, Error> {
        say(&Reply::Hello { protocol: protocol::VERSION, version: env!("CARGO_PKG_VERSION").into() })?;
        Firewall::permitted()?;
        loop {
            let request = match self.next(firewall.as_ref())? {
                Event::Said(request) => *request,
                Event::Look => {
                    if let Some(what) = planned(firewall)?.mend()? {
                        say(&Reply::Repaired { what })?;
                    }
                    continue;
                }
                Event::EndOfInput | Event::Terminate => return Ok(None),
                Event::Lost => return Err(Error::Lost),
            };
            match request {
                Request::Plan(_) if firewall.is_some() => return Err(Error::SecondPlan),
                Request::Plan(said) => {
                    let standing = Firewall::apply(Plan::check(said).map_err(Error::Plan)?)?;
                    let ready = Reply::Ready {
                        method: standing.method().into(),
                        table: standing.table().into(),
                        notes: standing.notes().to_vec(),
                        datagram_seconds: standing.datagram_seconds(),
                    };
                    *firewall = Some(standing);
                    say(&ready)?;
                }
                Request::Update { include, exclude } => {
                    say(&changed(planned(firewall)?.update(&include, &exclude))?)?;
                }
                Request::Names { servers } => say(&changed(planned(firewall)?.names(&servers))?)?,
                Request::Sockets { v6, stream, count } => {
                    match self.passed.open(planned(firewall)?, v6, stream, count) {
                        Ok(sockets) => sockets::say(&sockets).map_err(Error::Protocol)?,
                        Err(error) => say(&refused(&error))?,
                    }
                }
                Request::Origin { from, at } => {
                    let to = planned(firewall)?.origin(from, at)?;
                    say(&Reply::Origin { from, to })?;
                }
                Request::Link(said) => {
                    say(&match Link::set(link, planned(firewall)?.table(), &said) {
                        Ok(()) => Reply::Updated {},
                        Err(error) => Reply::Refused { message: shortened(&error_chain(&error)) },
                    })?;
                }
                Request::Stop {} => return Ok(Some(Stop)),
            }
        }
    }

    fn next(&mut self, firewall: Option<&Firewall>) -> Result<Event, Error> {
        let stdin = io::stdin();
        let input = stdin.as_fd(); // read without a buffer of the library's: what is not asked for stays in the pipe
        loop {
            if let Some(request) = self.frames.take().map_err(Error::Protocol)? {
                return Ok(Event::Said(Box::new(request)));
            }
            let left = match firewall.and_then(Firewall::mend_every) {
                Some(every) => match (self.looked + every).checked_duration_since(Instant::now()) {
                    Some(left) => Some(left),
                    None => {
                        self.looked = Instant::now();
                        return Ok(Event::Look);
                    }
                },
                None => None,
            };
            let lost = firewall.and_then(Firewall::lost);
            let [said, terminate, lost] = wait(input, self.terminate.as_fd(), lost, left)?;
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

/// What only makes sense once there is a plan.
fn planned(firewall: &mut Option<Firewall>) -> Result<&mut Firewall, Error> {
    firewall.as_mut().ok_or(Error::NoPlan)
}

/// What to answer; an error where nobody can tell what stands.
fn changed(result: Result<(), UpdateError>) -> Result<Reply, Error> {
    match result {
        Ok(()) => Ok(Reply::Updated {}),
        Err(UpdateError::Broken(error)) => Err(error.into()),
        Err(error) => Ok(refused(&error)),
    }
}

fn refused(error: &(dyn std::error::Error + 'static)) -> Reply {
    Reply::Refused { message: shortened(&error_chain(error)) }
}

fn shortened(message: &str) -> String {
    message.chars().take(MOST_MESSAGE).collect()
}

/// The user side asked for the end and wants a report.
struct Stop;

/// Which of the three has something: the input, the signal, the end of the rules. None when the time is over.
fn wait(
    input: BorrowedFd,
    terminate: BorrowedFd,
    lost: Option<BorrowedFd>,
    most: Option<Duration>,
) -> Result<[bool; 3], Error> {
    let mut fds = vec![PollFd::new(input, PollFlags::POLLIN), PollFd::new(terminate, PollFlags::POLLIN)];
    fds.extend(lost.map(|lost| PollFd::new(lost, PollFlags::empty()))); // hanging up is always told
    // Rounded up: not again before the time has come.
    let most = most.map(|most| most + Duration::from_millis(1));
    let timeout =
        most.map_or(PollTimeout::NONE, |most| PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX));
    match poll(&mut fds, timeout) {
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
