//! Load for a name server as a program, and a server without limits of its own to ask: `scripts/bench --names` uses both.
//!
//! ```text
//! kshuttle-ask --serve ADDRESS:PORT
//! kshuttle-ask --ask ADDRESS:PORT [--in-flight 1] [--seconds 2] [--names 1000 | --name NAME=ADDRESS]
//! ```
//!
//! The server knows the names n0.public.test, n1.public.test, …, answers UDP only, and prints `listening on ADDRESS:PORT`. Asking is
//! for that many of its names in turn, or for one that another server knows. Each of those in flight has a socket and a thread
//! of its own and asks the next question when the last is answered. Every answer is looked at; a wrong one or none is a failure.
//! Prints one line of JSON: questions answered per second, milliseconds, numbers.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program of the tests")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use kshuttle_test_support::dns::{A, Record, answer, code, failure, query, question};
use kshuttle_test_support::load::percentile;

/// Longest wait for an answer: as long as the C library waits (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);

/// Room for a message over UDP; ours are far below 512 bytes.
const MESSAGE_MAX: usize = 4_096;

/// Behind the number of each of the server's names.
const ZONE: &str = ".public.test";

/// Where their addresses begin: kept for measuring (RFC 2544), with room for every number.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// What is asked for.
enum Names {
    /// So many of the server's.
    Numbered(u16),
    /// One, with its address.
    One(String, Ipv4Addr),
}

impl Names {
    fn at(&self, turn: usize) -> (String, Ipv4Addr) {
        match self {
            Self::Numbered(count) => {
                let number = u16::try_from(turn % usize::from(*count)).unwrap_or_default(); // it is below a u16
                (format!("n{number}{ZONE}"), address(number))
            }
            Self::One(name, address) => (name.clone(), *address),
        }
    }
}

fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST.to_bits() + u32::from(number))
}

enum Task {
    Serve(SocketAddr),
    Ask { server: SocketAddr, names: Names, in_flight: usize, time: Duration },
}

fn main() -> ExitCode {
    let done = parse(std::env::args().skip(1)).and_then(|task| match task {
        Task::Serve(at) => serve(at).map_err(|error| format!("serve {at}: {error}")),
        Task::Ask { server, names, in_flight, time } => ask(server, &names, in_flight, time)
            .map(|seen| println!("{}", seen.json()))
            .map_err(|error| format!("ask {server}: {error}")),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kshuttle-ask: {error}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Task, String> {
    let (mut serve, mut ask, mut names) = (None, None, Names::Numbered(1_000));
    let (mut in_flight, mut time) = (1, Duration::from_secs(2));
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let wrong = || format!("{flag} {value}: not understood");
        match flag.as_str() {
            "--serve" => serve = Some(value.parse().map_err(|_| wrong())?),
            "--ask" => ask = Some(value.parse().map_err(|_| wrong())?),
            "--in-flight" => in_flight = value.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?,
            "--seconds" => time = value.parse().map(Duration::from_secs).map_err(|_| wrong())?,
            "--names" => {
                names = Names::Numbered(value.parse().ok().filter(|count| *count > 0).ok_or_else(wrong)?);
            }
            "--name" => {
                let (name, address) = value.split_once('=').ok_or_else(wrong)?;
                names = Names::One(name.to_lowercase(), address.parse().map_err(|_| wrong())?);
            }
            _ => return Err(format!("{flag} is not known")),
        }
    }
    match (serve, ask) {
        (Some(at), None) => Ok(Task::Serve(at)),
        (None, Some(server)) => Ok(Task::Ask { server, names, in_flight, time }),
        _ => Err("either --serve or --ask is needed".into()),
    }
}

/// One thread, without a queue of its own.
fn serve(at: SocketAddr) -> Result<(), io::Error> {
    let socket = UdpSocket::bind(at)?;
    println!("listening on {}", socket.local_addr()?);
    let mut bytes = [0; MESSAGE_MAX];
    loop {
        // An error is the answer to an earlier datagram: its receiver is gone.
        let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
        if let Some(said) = known(&bytes[..length]) {
            let _ = socket.send_to(&said, from); // the asker may be gone
        }
    }
}

/// The server's answer to a query.
fn known(query: &[u8]) -> Option<Vec<u8>> {
    let (name, kind) = question(query)?;
    let number = name.strip_suffix(ZONE).and_then(|first| first.strip_prefix('n')?.parse().ok());
    Some(match number {
        Some(number) if kind == A => answer(query, &[Record::Address(IpAddr::V4(address(number)))]),
        Some(_) => answer(query, &[]),
        None => failure(query, code::NXDOMAIN),
    })
}

/// What came of asking.
struct Seen {
    /// When each answer came, and what it took.
    answered: Vec<(Duration, Duration)>,
    failed: usize,
    /// From the first question to the last answer.
    time: Duration,
}

impl Seen {
    fn json(&self) -> String {
        let answered = self.answered.len();
        let time = |percent| percentile(&self.answered, percent).map_or("null".into(), |ms| ms.to_string());
        let each_second = answered as f64 / self.time.as_secs_f64();
        let (half, most, failed) = (time(50), time(99), self.failed);
        format!(
            r#"{{"per_second":{each_second},"p50_ms":{half},"p99_ms":{most},"answered":{answered},"failed":{failed}}}"#
        )
    }
}

/// Asks for `time`. The first question of each socket does not count: what it sets up on its way is not the look-up.
fn ask(server: SocketAddr, names: &Names, in_flight: usize, time: Duration) -> io::Result<Seen> {
    let together = Barrier::new(in_flight);
    let one = |number: usize| -> io::Result<Seen> {
        let asker = Asker::new(server);
        let mut turn = number;
        if let Ok(asker) = &asker {
            let (name, address) = names.at(turn);
            let _ = asker.ask(0, &name, address); // fails again below
        }
        together.wait(); // also without a socket: the others would wait for ever
        let asker = asker?;
        let start = Instant::now();
        let mut seen = Seen { answered: Vec::new(), failed: 0, time: Duration::ZERO };
        let mut id = 0_u16;
        while start.elapsed() < time {
            turn += in_flight;
            id = id.wrapping_add(1);
            let (name, address) = names.at(turn);
            let began = Instant::now();
            match asker.ask(id, &name, address) {
                Ok(()) => seen.answered.push((start.elapsed(), began.elapsed())),
                Err(_) => seen.failed += 1,
            }
        }
        seen.time = start.elapsed();
        Ok(seen)
    };
    thread::scope(|scope| {
        let askers: Vec<_> = (0..in_flight)
            .map(|number| {
                let one = &one;
                scope.spawn(move || one(number))
            })
            .collect();
        let mut all = Seen { answered: Vec::new(), failed: 0, time: Duration::ZERO };
        for asker in askers {
            let seen = asker.join().expect("no panic")?;
            all.answered.extend(seen.answered);
            all.failed += seen.failed;
            all.time = all.time.max(seen.time);
        }
        Ok(all)
    })
}

/// A socket for one question at a time.
struct Asker(UdpSocket);

impl Asker {
    fn new(server: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// An error where the answer is not this address, or does not come.
    fn ask(&self, id: u16, name: &str, address: Ipv4Addr) -> io::Result<()> {
        self.0.send(&query(id, name, A, false))?;
        let mut bytes = [0; MESSAGE_MAX];
        loop {
            let length = self.0.recv(&mut bytes)?;
            let said = &bytes[..length];
            if said.get(..2) != Some(&id.to_be_bytes()) {
                continue; // to an earlier question, whose time was over
            }
            return if is_answer(said, name, address) {
                Ok(())
            } else {
                Err(io::ErrorKind::InvalidData.into())
            };
        }
    }
}

/// Success, to this question, with a record that has this address.
fn is_answer(said: &[u8], name: &str, address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    said.get(3).is_some_and(|flags| flags & 0xf == 0)
        && question(said).is_some_and(|(asked, kind)| asked == name && kind == A)
        && said.windows(6).any(|record| record == [0, 4, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use kshuttle_test_support::dns::Server;

    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn every_question_is_answered_and_counted() {
        let server = Server::start(loopback(), known);
        let seen = ask(server.address, &Names::Numbered(3), 4, Duration::from_millis(50)).unwrap();
        assert_eq!(seen.failed, 0);
        assert_eq!(seen.answered.len() + 4, server.seen().len(), "and one more of each socket");
        let mut names: Vec<_> = server.seen().into_iter().map(|query| query.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names, ["n0.public.test", "n1.public.test", "n2.public.test"]);
    }

    #[test]
    fn a_wrong_answer_is_a_failure() {
        let server = Server::start(loopback(), known);
        let wrong = [
            Names::One("n1.public.test".into(), address(2)),
            Names::One("www.elsewhere.test".into(), address(1)), // NXDOMAIN
        ];
        for names in wrong {
            let seen = ask(server.address, &names, 1, Duration::from_millis(20)).unwrap();
            assert_eq!(seen.answered.len(), 0);
            assert!(seen.failed > 0);
        }
        let other_name = Server::start(loopback(), |asked| {
            Some(answer(
                &query(u16::from_be_bytes([asked[0], asked[1]]), "n2.public.test", A, false),
                &[Record::Address(IpAddr::V4(address(1)))],
            ))
        });
        let names = Names::One("n1.public.test".into(), address(1));
        let seen = ask(other_name.address, &names, 1, Duration::from_millis(20)).unwrap();
        assert_eq!((seen.answered.len(), seen.failed > 0), (0, true));
    }

    #[test]
    fn what_came_of_it_is_json() {
        let took = |ms| (Duration::ZERO, Duration::from_millis(ms));
        let seen = Seen { answered: vec![took(1), took(3)], failed: 1, time: Duration::from_secs(4) };
        let said = r#"{"per_second":0.5,"p50_ms":3,"p99_ms":3,"answered":2,"failed":1}"#;
        assert_eq!(seen.json(), said);
        let none = Seen { answered: vec![], failed: 1, time: Duration::from_secs(4) };
        assert!(none.json().contains(r#""p99_ms":null"#));
    }
}
