//! Programs that ask name servers, and whoever answers them.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use kshuttle_helper::protocol::NameServer;

use super::neighbour::Neighbour;
use super::scene::{self, PATIENCE, accept, connect_to, says};

/// Somebody who answers queries, over UDP and TCP at one port: a name server, or one of our stubs.
pub(crate) struct Answers {
    /// For datagrams.
    pub(crate) udp: UdpSocket,
    /// For connections.
    pub(crate) tcp: TcpListener,
}

impl Answers {
    pub(crate) fn at(address: &str, port: u16) -> Self {
        let tcp = TcpListener::bind((address, port)).unwrap();
        let udp = UdpSocket::bind((address, tcp.local_addr().unwrap().port())).unwrap();
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { udp, tcp }
    }

    /// One of ours.
    pub(crate) fn stub(server: &str) -> (Self, NameServer) {
        let address = if server.contains(':') { "::1" } else { "127.0.0.1" };
        let stub = Self::at(address, 0);
        let port = stub.tcp.local_addr().unwrap().port();
        (stub, NameServer { address: server.parse().unwrap(), port })
    }

    /// The next query arrives here and is answered; where it came from.
    pub(crate) fn answer(&self) -> SocketAddr {
        let (length, from) = self.udp.recv_from(&mut [0; 64]).unwrap();
        assert_eq!(length, 5);
        self.udp.send_to(b"answer", from).unwrap();
        from
    }
}

/// Name servers in the local network, beside the neighbour's own addresses.
pub(crate) const SERVERS: [&str; 3] = ["198.51.100.53", "198.51.100.54", "2001:db8:51::53"];

/// A neighbour who is also [`SERVERS`].
pub(crate) fn servers() -> Neighbour {
    let neighbour = Neighbour::move_in();
    neighbour.does(|| {
        scene::ip("addr add 198.51.100.53/32 dev wan1");
        scene::ip("addr add 198.51.100.54/32 dev wan1");
        scene::ip("addr add 2001:db8:51::53/128 dev wan1 nodad");
    });
    for server in SERVERS {
        scene::ip(&format!("neigh add {server} lladdr 02:00:00:00:00:01 dev wan0 nud permanent"));
    }
    neighbour
}

pub(crate) fn real(neighbour: &Neighbour, address: &'static str) -> Answers {
    neighbour.does(move || Answers::at(address, 53))
}

/// A program that asks.
fn program(server: &str) -> UdpSocket {
    let any = if server.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(crate) fn at(server: &str, port: u16) -> SocketAddr {
    SocketAddr::new(server.parse().unwrap(), port)
}

/// Connected, as a resolver's often is.
pub(crate) fn connected(server: &str) -> UdpSocket {
    let program = program(server);
    program.connect(at(server, 53)).unwrap();
    program
}

/// Its next query, and who answers it.
pub(crate) fn asks(program: &UdpSocket, who: &Answers) -> SocketAddr {
    program.send(b"query").unwrap();
    let from = who.answer();
    assert_eq!(program.recv(&mut [0; 64]).unwrap(), 6);
    from
}

/// Queries to this server and port are answered there, over UDP and TCP, and the program sees only the server.
pub(crate) fn answered(server: &str, port: u16, by: &Answers) {
    let program = program(server);
    program.send_to(b"query", at(server, port)).unwrap();
    by.answer();
    let (length, sender) = program.recv_from(&mut [0; 64]).unwrap();
    assert_eq!((length, sender), (6, at(server, port)), "what the program sees");
    let mut program = connect_to(&at(server, port).to_string());
    let mut answering = accept(&by.tcp);
    says(&mut program, &mut answering);
    says(&mut answering, &mut program);
}
