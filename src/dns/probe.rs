//! Asking a name server as a program does: to see who answers.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpStream, UdpSocket};

use super::message::Head;
use super::{Transport, framed};

/// Largest answer that is taken: one address.
const LONGEST: usize = 1_500;

/// Asks once for the IPv4 address of `name` and waits for the answer, for ever. An answer is one whatever it says, but for
/// SERVFAIL and REFUSED, by which a server tells that it has none.
///
/// # Errors
/// When `server` cannot be reached or has no answer.
pub async fn ask(server: SocketAddr, name: &Name, transport: Transport) -> io::Result<()> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), RecordType::A));
    let query = message.to_vec().map_err(io::Error::other)?;
    let head = Head::read(&query).map_err(|_| io::ErrorKind::InvalidInput)?;
    let answer = match transport {
        Transport::Udp => by_udp(server, &query, &head).await?,
        Transport::Tcp => by_tcp(server, &query, &head).await?,
    };
    match Message::from_vec(&answer).map_err(io::Error::other)?.metadata.response_code {
        code @ (ResponseCode::ServFail | ResponseCode::Refused) => Err(io::Error::other(code.to_string())),
        _ => Ok(()),
    }
}

async fn by_udp(server: SocketAddr, query: &[u8], head: &Head) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    loop {
        let mut answer = vec![0; LONGEST];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        if head.is_answered_by(&answer) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8], head: &Head) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    framed::write(&mut stream, query).await?;
    loop {
        let answer = framed::read(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if head.is_answered_by(&answer) {
            return Ok(answer);
        }
    }
}
