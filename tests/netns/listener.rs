//! A stand-in for the user side's listeners: takes redirected connections and asks the kernel where they wanted to go.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::scene::PATIENCE;

/// Listens on 127.0.0.1 and ::1 of this namespace until the namespace is gone.
pub(crate) struct Listener {
    /// Port on 127.0.0.1.
    pub(crate) v4: u16,
    /// Port on ::1.
    pub(crate) v6: u16,
    arrived: Receiver<(SocketAddr, TcpStream)>,
}

impl Listener {
    pub(crate) fn start() -> Self {
        Self::at(["127.0.0.1", "::1"])
    }

    /// Listens on these addresses, one of IPv4 and one of IPv6, instead.
    pub(crate) fn at(addresses: [&str; 2]) -> Self {
        let (sender, arrived) = channel();
        let listeners = addresses.map(|address| TcpListener::bind((address, 0)).unwrap());
        let [v4, v6] = [0, 1].map(|which: usize| listeners[which].local_addr().unwrap().port());
        for listener in listeners {
            let sender = sender.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    // A peer may have reset the connection already; then nobody wants to know.
                    let Ok(destination) = original_destination(&stream) else { continue };
                    if sender.send((destination, stream)).is_err() {
                        return;
                    }
                }
            });
        }
        Self { v4, v6, arrived }
    }

    /// The next redirected connection, and where it wanted to go.
    pub(crate) fn next(&self) -> (SocketAddr, TcpStream) {
        self.arrived.recv_timeout(PATIENCE).expect("a redirected connection")
    }

    /// Nobody came.
    pub(crate) fn is_idle(&self) -> bool {
        self.arrived.recv_timeout(Duration::ZERO).is_err()
    }
}

/// Ends the connection with a reset, as the user side does when the helper is gone.
pub(crate) fn reset(stream: TcpStream) {
    setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    Ok(if stream.local_addr()?.is_ipv4() {
        let raw = getsockopt(stream, sockopt::OriginalDst)?;
        (Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr)), u16::from_be(raw.sin_port)).into()
    } else {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
        (Ipv6Addr::from(raw.sin6_addr.s6_addr), u16::from_be(raw.sin6_port)).into()
    })
}
