//! The user side of one conversation with a real helper.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use kshuttle_helper::protocol::{self, Frames, Method, Plan, Reply, Request, UndoReport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::listener::Listener;
use super::scene::PATIENCE;

/// A running helper. Dropped, it is killed if the test did not end it.
pub(crate) struct Helper {
    child: Child,
    input: Option<fs::File>,
    output: fs::File,
    frames: Frames,
    stderr: ChildStderr,
}

/// A plan for this session that redirects `include` to the listener.
pub(crate) fn plan(session: &str, listener: &Listener, include: &[&str], exclude: &[&str]) -> Plan {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Plan {
        session: session.into(),
        include: nets(include),
        exclude: nets(exclude),
        listener_v4: Some(listener.v4),
        listener_v6: Some(listener.v6),
        ..Plan::default()
    }
}

/// A command that runs the helper.
pub(crate) fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kshuttle-helper"))
}

impl Helper {
    /// Starts one over two pipes and hears its hello.
    pub(crate) fn start() -> Self {
        Self::start_as(command())
    }

    /// The same by a command that ends by becoming the program of its last argument.
    pub(crate) fn start_by(mut starter: Command) -> Self {
        starter.arg(command().get_program());
        Self::start_as(starter)
    }

    fn start_as(mut command: Command) -> Self {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::from_pipes(pipes.spawn().unwrap())
    }

    /// Talks to a helper that was started with three pipes.
    pub(crate) fn from_pipes(mut child: Child) -> Self {
        let input = OwnedFd::from(child.stdin.take().unwrap());
        let output = OwnedFd::from(child.stdout.take().unwrap());
        Self::greet(child, input, output)
    }

    /// Starts one over a single socket pair.
    pub(crate) fn start_over_socket_pair() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = command();
        command
            .stdin(OwnedFd::from(theirs.try_clone().unwrap()))
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        drop(command); // it holds their end
        Self::greet(child, ours.try_clone().unwrap().into(), ours.into())
    }

    fn greet(mut child: Child, input: OwnedFd, output: OwnedFd) -> Self {
        let stderr = child.stderr.take().unwrap();
        let (input, output) = (Some(fs::File::from(input)), fs::File::from(output));
        let mut helper = Self { child, input, output, frames: Frames::default(), stderr };
        match helper.hear() {
            Some(Reply::Hello { protocol: protocol::VERSION, .. }) => helper,
            other => panic!("instead of hello: {other:?}"),
        }
    }

    /// Starts one and has this plan carried out.
    pub(crate) fn ready(plan: &Plan) -> Self {
        let mut helper = Self::start();
        helper.make_ready(plan);
        helper
    }

    /// Has this plan carried out.
    pub(crate) fn make_ready(&mut self, plan: &Plan) -> Vec<String> {
        self.say(&Request::Plan(plan.clone()));
        match self.hear() {
            Some(Reply::Ready { method, table, notes, .. }) => {
                let method_wanted = if plan.method == Method::Iptables { "iptables" } else { "nft" };
                assert_eq!((&*method, table), (method_wanted, format!("kshuttle_{}", plan.session)));
                notes
            }
            other => panic!("instead of ready: {other:?}"),
        }
    }

    pub(crate) fn say(&mut self, request: &Request) {
        protocol::write(self.input.as_mut().unwrap(), request).unwrap();
    }

    pub(crate) fn say_raw(&mut self, frame: &str) {
        let length = u32::try_from(frame.len()).unwrap();
        self.input.as_mut().unwrap().write_all(&[&length.to_be_bytes(), frame.as_bytes()].concat()).unwrap();
    }

    /// The next reply; none at the end.
    pub(crate) fn hear(&mut self) -> Option<Reply> {
        self.hear_after(PATIENCE)
    }

    /// The same, where the helper itself waits long.
    pub(crate) fn hear_after(&mut self, patience: Duration) -> Option<Reply> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(reply) = self.frames.take().unwrap() {
                return Some(reply);
            }
            wait_readable(&self.output, deadline);
            let mut bytes = [0; 4096];
            match self.output.read(&mut bytes).unwrap_or(0) {
                0 => return None,
                length => self.frames.push(&bytes[..length]),
            }
        }
    }

    /// Asks for this many sockets; they come with the answer.
    pub(crate) fn sockets(&mut self, v6: bool, stream: bool, count: u8) -> Vec<OwnedFd> {
        self.say(&Request::Sockets { v6, stream, count });
        wait_readable(&self.output, Instant::now() + PATIENCE);
        let (mut bytes, mut space) = ([0; 4096], [MaybeUninit::uninit(); 1024]);
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(&self.output, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        let mut sockets = Vec::new();
        for message in ancillary.drain() {
            let RecvAncillaryMessage::ScmRights(files) = message else { panic!("something else came along") };
            sockets.extend(files);
        }
        self.frames.push(&bytes[..length]);
        assert_eq!(self.hear(), Some(Reply::Sockets { count }));
        assert_eq!(sockets.len(), usize::from(count));
        sockets
    }

    /// Asks for the end and hears the report.
    pub(crate) fn stop(mut self) -> UndoReport {
        self.say(&Request::Stop {});
        let report = match self.hear() {
            Some(Reply::Stopped { report }) => report,
            other => panic!("instead of stopped: {other:?}"),
        };
        assert_eq!(self.wait(), (Some(0), String::new()));
        report
    }

    /// Ends its input.
    pub(crate) fn hang_up(&mut self) {
        if let Some(input) = self.input.take() {
            // A socket pair has one end for both directions; a pipe knows no such call.
            let _ = nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&input),
                nix::sys::socket::Shutdown::Write,
            );
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Kills it together with these children of it. All are stopped before, so that none acts in between.
    pub(crate) fn kill_with(&mut self, children: &[Pid]) {
        let all = [&[self.pid()], children].concat();
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            all.iter().for_each(|process| kill(*process, signal).unwrap());
        }
        assert_eq!(self.wait(), (None, String::new()));
    }

    /// Waits until the helper and its watchdog are gone: exit code (none after a signal), words on standard error.
    pub(crate) fn wait(&mut self) -> (Option<i32>, String) {
        let (deadline, mut said) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            wait_readable(&self.stderr, deadline);
            let mut bytes = [0; 4096];
            match self.stderr.read(&mut bytes).unwrap() {
                0 => break,
                length => said.extend_from_slice(&bytes[..length]),
            }
        }
        (self.child.wait().unwrap().code(), String::from_utf8(said).unwrap())
    }

    /// Waits until the helper itself has closed its output; its watchdog may still be at work.
    pub(crate) fn wait_for_silence(&mut self) {
        assert_eq!(self.hear(), None);
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// The child of the helper with this name, the first if it has several: `nft` or `kshuttle-helper`.
    pub(crate) fn child(&self, name: &str) -> Pid {
        let children = self.children(name);
        *children.first().unwrap_or_else(|| panic!("the helper has no child {name}"))
    }

    /// All of this name, in the order of their numbers.
    pub(crate) fn children(&self, name: &str) -> Vec<Pid> {
        let children = fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (comm, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            let parent: i32 = rest.split_whitespace().nth(1)?.parse().ok()?;
            (parent == self.pid().as_raw() && name.starts_with(comm)).then(|| Pid::from_raw(pid))
        });
        let mut children: Vec<Pid> = children.collect();
        children.sort();
        children
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.hang_up();
        let _ = self.child.kill(); // its watchdog clears up
        let _ = self.child.wait();
    }
}

fn wait_readable(file: &impl AsFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
    assert!(ready > 0, "the helper says nothing for {} s", PATIENCE.as_secs());
}
