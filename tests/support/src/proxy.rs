//! Proxies as companies have them, on a free port of loopback, and what they carried: HTTP `CONNECT` (RFC 9110 §9.3.6) and
//! SOCKS5 (RFC 1928), each also with a password (RFC 7617, RFC 1929). They serve until the test program ends.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What clients have to log in with, when they have to. As it stands in a URL, `%` sequences and all.
pub const LOGIN: &str = "jane:p%40ss";
const USER: &[u8] = b"jane";
const PASSWORD: &[u8] = b"p@ss";
/// The same in a header: base64 of `jane:p@ss`.
const BASIC: &str = "Basic amFuZTpwQHNz";

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    scheme: &'static str,
    login: bool,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    bytes: AtomicU64,
}

type Handshake = fn(&mut BufReader<TcpStream>, bool) -> io::Result<TcpStream>;

impl Proxy {
    /// `CONNECT` only, as for HTTPS; `login` asks for [`LOGIN`].
    ///
    /// # Panics
    /// When there is no port.
    pub fn http(login: bool) -> Self {
        Self::start("http", login, http_handshake)
    }

    /// SOCKS5; `login` asks for [`LOGIN`].
    ///
    /// # Panics
    /// When there is no port.
    pub fn socks5(login: bool) -> Self {
        Self::start("socks5", login, socks5_handshake)
    }

    fn start(scheme: &'static str, login: bool, handshake: Handshake) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let counts = Arc::<Counts>::default();
        let shared = counts.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counts = shared.clone();
                // What goes wrong with a connection is its client's to tell.
                thread::spawn(move || serve(client, handshake, login, &counts));
            }
        });
        Self { address, scheme, login, counts }
    }

    /// Its URL, with user and password if it wants them.
    pub fn url(&self) -> String {
        let login = if self.login { format!("{LOGIN}@") } else { String::new() };
        format!("{}://{login}{}", self.scheme, self.address)
    }

    /// Connections it made for clients.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Bytes it carried, both ways together.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

fn serve(client: TcpStream, handshake: Handshake, login: bool, counts: &Arc<Counts>) -> io::Result<()> {
    let mut client = BufReader::new(client);
    let server = handshake(&mut client, login)?;
    counts.connections.fetch_add(1, Ordering::Relaxed);
    let (to_client, from_server, back) = (client.get_ref().try_clone()?, server.try_clone()?, counts.clone());
    thread::spawn(move || copy(from_server, &to_client, &back));
    copy(client, &server, counts); // what the reader holds already goes first
    Ok(())
}

/// Until the end, which is passed on.
fn copy(mut from: impl Read, mut to: &TcpStream, counts: &Counts) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn http_handshake(client: &mut BufReader<TcpStream>, login: bool) -> io::Result<TcpStream> {
    let (mut target, mut authorized) = (None, !login);
    loop {
        let mut line = String::new();
        client.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => match (line.strip_prefix("CONNECT "), line.split_once(": ")) {
                (Some(rest), _) => target = rest.split(' ').next().map(str::to_owned),
                (_, Some((name, value))) if name.eq_ignore_ascii_case("proxy-authorization") => {
                    authorized |= value == BASIC;
                }
                _ => {}
            },
        }
    }
    if !authorized {
        client.get_mut().write_all(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        )?;
        return Err(ErrorKind::PermissionDenied.into());
    }
    let server = TcpStream::connect(target.ok_or(ErrorKind::InvalidData)?)?;
    client.get_mut().write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    Ok(server)
}

fn socks5_handshake(client: &mut BufReader<TcpStream>, login: bool) -> io::Result<TcpStream> {
    const NO_LOGIN: u8 = 0;
    const PASSWORD_LOGIN: u8 = 2;
    const NONE_ACCEPTABLE: u8 = 0xff;
    let [5, count] = bytes(client)? else { return Err(ErrorKind::InvalidData.into()) };
    let method = if login { PASSWORD_LOGIN } else { NO_LOGIN };
    if !take(client, count.into())?.contains(&method) {
        client.get_mut().write_all(&[5, NONE_ACCEPTABLE])?;
        return Err(ErrorKind::PermissionDenied.into());
    }
    client.get_mut().write_all(&[5, method])?;
    if login {
        let [1, length] = bytes(client)? else { return Err(ErrorKind::InvalidData.into()) };
        let user = take(client, length.into())?;
        let [length] = bytes(client)?;
        let good = user == USER && take(client, length.into())? == PASSWORD;
        client.get_mut().write_all(&[1, u8::from(!good)])?;
        if !good {
            return Err(ErrorKind::PermissionDenied.into());
        }
    }
    let [5, 1, 0, kind] = bytes(client)? else { return Err(ErrorKind::InvalidData.into()) };
    let host = match kind {
        1 => IpAddr::from(Ipv4Addr::from(bytes::<4>(client)?)).to_string(),
        4 => IpAddr::from(Ipv6Addr::from(bytes::<16>(client)?)).to_string(),
        _ => {
            let [length] = bytes(client)?;
            String::from_utf8_lossy(&take(client, length.into())?).into_owned()
        }
    };
    let server = TcpStream::connect((host.as_str(), u16::from_be_bytes(bytes(client)?)))?;
    client.get_mut().write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    Ok(server)
}

fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take(from: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
