//! A DNS server that answers as it is told, over UDP and TCP on one port, and remembers who asked for what. Messages are as in
//! RFC 1035 §4; names are written without the last dot and in lower case.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};

/// Address of IPv4.
pub const A: u16 = 1;
/// Name of an address.
pub const PTR: u16 = 12;
/// Address of IPv6.
pub const AAAA: u16 = 28;

/// Response codes.
pub mod code {
    /// The server cannot.
    pub const SERVFAIL: u8 = 2;
    /// There is no such name.
    pub const NXDOMAIN: u8 = 3;
}

/// Type of the record that says "I know EDNS" (RFC 6891 §6.1.2).
const OPT: u16 = 41;

/// Seconds that answers may be kept: none, so that nobody answers in the server's place.
const KEEP: u32 = 0;

/// Largest message over UDP that is taken.
const MOST_DATAGRAM: usize = 4096;

/// What somebody asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The name.
    pub name: String,
    /// Type of the record asked for.
    pub kind: u16,
    /// The asker.
    pub from: SocketAddr,
    /// Over TCP, not UDP.
    pub tcp: bool,
}

/// What a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An address.
    Address(IpAddr),
    /// A name (PTR).
    Name(String),
}

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => A,
            Self::Address(IpAddr::V6(_)) => AAAA,
            Self::Name(_) => PTR,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(address)) => Ipv4Addr::octets(address).to_vec(),
            Self::Address(IpAddr::V6(address)) => Ipv6Addr::octets(address).to_vec(),
            Self::Name(name) => encoded(name),
        }
    }
}

/// A running server; stops when dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

type Answer = dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync;

struct State {
    answer: Box<Answer>,
    seen: Mutex<Vec<Query>>,
    manners: Mutex<Manners>,
}

#[derive(Clone, Copy, Default)]
struct Manners {
    delay: Duration,
    is_silent: bool,
}

impl Server {
    /// Listens on this address (port 0: any) in the network namespace of the caller. `answer` makes the answer to a raw
    /// query; none is silence.
    ///
    /// # Panics
    /// When the address is not free, or no thread can be made.
    pub fn start(at: SocketAddr, answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (listener, socket) = bind(at);
        let address = listener.local_addr().expect("a bound socket");
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
        let state =
            Arc::new(State { answer: Box::new(answer), seen: Mutex::default(), manners: Mutex::default() });
        {
            let _entered = runtime.enter();
            let socket = UdpSocket::from_std(socket).expect("a socket of this runtime");
            let listener = TcpListener::from_std(listener).expect("a listener of this runtime");
            runtime.spawn(serve_datagrams(Arc::new(socket), state.clone()));
            runtime.spawn(serve_connections(listener, state.clone()));
        }
        Self { address, state, runtime: Some(runtime) }
    }

    /// The same with a table: a name that is not in it does not exist.
    ///
    /// # Panics
    /// As [`Server::start`], and when the table has what is no address or name.
    pub fn with_names(at: SocketAddr, table: &[(&str, &str)]) -> Self {
        let record = |text: &str| text.parse().map_or_else(|_| Record::Name(text.into()), Record::Address);
        let table: Vec<(String, Record)> =
            table.iter().map(|(name, text)| ((*name).into(), record(text))).collect();
        Self::start(at, move |query| {
            let (name, kind) = question(query)?;
            let records: Vec<Record> =
                table.iter().filter(|(known, _)| *known == name).map(|(_, record)| record.clone()).collect();
            Some(match records.is_empty() {
                true => failure(query, code::NXDOMAIN),
                false => {
                    let wanted: Vec<Record> =
                        records.into_iter().filter(|record| record.kind() == kind).collect();
                    answer(query, &wanted)
                }
            })
        })
    }

    /// Everything asked so far, in order.
    pub fn seen(&self) -> Vec<Query> {
        lock(&self.state.seen).clone()
    }

    /// Was this name asked for?
    pub fn has_seen(&self, name: &str) -> bool {
        lock(&self.state.seen).iter().any(|query| query.name == name)
    }

    /// From now on every answer waits so long.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.state.manners).delay = delay;
    }

    /// From now on nothing is answered, or everything again. What is asked is remembered all the same.
    pub fn set_silent(&self, is_silent: bool) {
        lock(&self.state.manners).is_silent = is_silent;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        match tokio::runtime::Handle::try_current() {
            // A test that is itself asynchronous may not wait here.
            Ok(_) => runtime.shutdown_background(),
            // The address is free again afterwards.
            Err(_) => runtime.shutdown_timeout(crate::kshuttle::PATIENCE),
        }
    }
}

impl State {
    async fn answer(&self, query: &[u8], from: SocketAddr, tcp: bool) -> Option<Vec<u8>> {
        let (name, kind) = question(query)?;
        lock(&self.seen).push(Query { name, kind, from, tcp });
        let manners = *lock(&self.manners);
        tokio::time::sleep(manners.delay).await;
        if manners.is_silent { None } else { (self.answer)(query) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while holding the lock")
}

/// One port for both; that of TCP may be somebody else's for UDP.
fn bind(at: SocketAddr) -> (std::net::TcpListener, std::net::UdpSocket) {
    let try_to_bind = || {
        let listener = std::net::TcpListener::bind(at)?;
        let socket = std::net::UdpSocket::bind(listener.local_addr()?)?;
        listener.set_nonblocking(true)?;
        socket.set_nonblocking(true)?;
        Ok((listener, socket))
    };
    let tries: Vec<std::io::Result<_>> = match at.port() {
        0 => (0..10).map(|_| try_to_bind()).collect(),
        _ => vec![try_to_bind()],
    };
    tries.into_iter().find_map(Result::ok).unwrap_or_else(|| panic!("{at} is not free"))
}

async fn serve_datagrams(socket: Arc<UdpSocket>, state: Arc<State>) {
    let mut bytes = [0; MOST_DATAGRAM];
    loop {
        // An error is the answer to an earlier datagram: its receiver is gone.
        let Ok((length, from)) = socket.recv_from(&mut bytes).await else { continue };
        let (query, socket, state) = (bytes[..length].to_vec(), socket.clone(), state.clone());
        tokio::spawn(async move {
            if let Some(answer) = state.answer(&query, from, false).await {
                let _ = socket.send_to(&answer, from).await; // the asker may be gone
            }
        });
    }
}

async fn serve_connections(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, from)) = listener.accept().await {
        tokio::spawn(serve_connection(stream, from, state.clone()));
    }
}

/// Each message has its length before it (RFC 1035 §4.2.2). Until the asker ends, or asks what is not answered.
async fn serve_connection(mut stream: TcpStream, from: SocketAddr, state: Arc<State>) -> Option<()> {
    loop {
        let length = stream.read_u16().await.ok()?;
        let mut query = vec![0; length.into()];
        stream.read_exact(&mut query).await.ok()?;
        let answer = match state.answer(&query, from, true).await {
            Some(answer) => answer,
            None => std::future::pending().await,
        };
        let length = u16::try_from(answer.len()).ok()?;
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.ok()?;
    }
}

/// Name and type of a message's first question; none if it has none.
pub fn question(message: &[u8]) -> Option<(String, u16)> {
    let (labels, rest) = labels(message.get(12..)?)?;
    let kind = u16::from_be_bytes(rest.get(..2)?.try_into().ok()?);
    Some((labels.join(".").to_lowercase(), kind))
}

/// A question asks for the name in full.
fn labels(mut rest: &[u8]) -> Option<(Vec<String>, &[u8])> {
    let mut labels = Vec::new();
    loop {
        let (&length, after) = rest.split_first()?;
        if length == 0 {
            return Some((labels, after));
        }
        let (label, after) = after.split_at_checked(length.into())?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        rest = after;
    }
}

/// A query for this name and type, as a resolver would send it, with EDNS if `edns`.
pub fn query(id: u16, name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]); // recursion desired; one question
    message.extend(encoded(name));
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    if edns {
        message.extend(opt());
    }
    message
}

/// An answer with these records; none is "the name exists, but has nothing of this type".
///
/// # Panics
/// When `query` has no question.
pub fn answer(query: &[u8], records: &[Record]) -> Vec<u8> {
    respond(query, 0, records)
}

/// An answer with this code.
///
/// # Panics
/// When `query` has no question.
pub fn failure(query: &[u8], code: u8) -> Vec<u8> {
    respond(query, code, &[])
}

fn respond(query: &[u8], code: u8, records: &[Record]) -> Vec<u8> {
    let (_, rest) = labels(&query[12..]).expect("a question");
    let question = &query[12..query.len() - rest.len() + 4];
    let has_opt = query[11] > 0; // the only record that queries carry
    let count = u8::try_from(records.len()).expect("few records");
    let mut message = query[..2].to_vec();
    // A response, recursion as desired and available.
    message.extend([0x80 | query[2] & 1, 0x80 | code, 0, 1, 0, count, 0, 0, 0, u8::from(has_opt)]);
    message.extend(question);
    for record in records {
        let data = record.data();
        message.extend([0xc0, 12]); // the question's name
        message.extend(record.kind().to_be_bytes());
        message.extend([0, 1]);
        message.extend(KEEP.to_be_bytes());
        message.extend(u16::try_from(data.len()).expect("a short record").to_be_bytes());
        message.extend(data);
    }
    if has_opt {
        message.extend(opt());
    }
    message
}

fn opt() -> Vec<u8> {
    let mut record = vec![0];
    record.extend(OPT.to_be_bytes());
    record.extend(u16::try_from(MOST_DATAGRAM).expect("a short message").to_be_bytes());
    record.extend([0; 6]);
    record
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::within;

    async fn ask(server: &Server, query: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(query, server.address).await.unwrap();
        let mut bytes = [0; MOST_DATAGRAM];
        let (length, _) = within(socket.recv_from(&mut bytes)).await.unwrap();
        bytes[..length].to_vec()
    }

    #[tokio::test]
    async fn answers_and_remembers_over_both() {
        let server = Server::with_names("127.0.0.1:0".parse().unwrap(), &[("a.test", "192.0.2.7")]);
        let asked = query(7, "A.test", A, true);
        let answer = ask(&server, &asked).await;
        assert_eq!(answer[..4], [0, 7, 0x81, 0x80]);
        assert!(answer.windows(6).any(|bytes| bytes == [0, 4, 192, 0, 2, 7]), "{answer:?}");

        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let length = u16::try_from(asked.len()).unwrap();
        stream.write_all(&[&length.to_be_bytes()[..], &asked].concat()).await.unwrap();
        let mut over_tcp = vec![0; within(stream.read_u16()).await.unwrap().into()];
        within(stream.read_exact(&mut over_tcp)).await.unwrap();
        assert_eq!(over_tcp, answer);

        let seen: Vec<_> =
            server.seen().into_iter().map(|query| (query.name, query.kind, query.tcp)).collect();
        assert_eq!(seen, [("a.test".to_owned(), A, false), ("a.test".to_owned(), A, true)]);
    }

    #[tokio::test]
    async fn a_name_without_the_type_exists_and_others_do_not() {
        let server = Server::with_names("127.0.0.1:0".parse().unwrap(), &[("a.test", "192.0.2.7")]);
        let other = ask(&server, &query(1, "a.test", AAAA, false)).await;
        assert_eq!((other[3] & 15, other[7]), (0, 0));
        let absent = ask(&server, &query(1, "b.test", A, false)).await;
        assert_eq!(absent[3] & 15, code::NXDOMAIN);
    }

    #[tokio::test]
    async fn silence_ends() {
        let server = Server::with_names("127.0.0.1:0".parse().unwrap(), &[]);
        server.set_silent(true);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query(1, "a.test", A, false), server.address).await.unwrap();
        within(async {
            while !server.has_seen("a.test") {
                tokio::task::yield_now().await;
            }
        })
        .await;
        server.set_silent(false);
        socket.send_to(&query(2, "a.test", A, false), server.address).await.unwrap();
        let mut bytes = [0; MOST_DATAGRAM];
        within(socket.recv_from(&mut bytes)).await.unwrap();
        assert_eq!(bytes[..2], [0, 2], "the first was not answered");
    }
}
