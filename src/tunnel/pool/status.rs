//! What a tunnel says about itself.

use std::fmt;
use std::time::Duration;

use kshuttle_wire::link;
use kshuttle_wire::pacing::Figures;

/// What is known about one tunnel.
#[derive(Debug, Clone)]
pub struct TunnelStatus {
    /// Its number, from 1.
    pub number: usize,
    /// Whether new flows may use it now.
    pub up: bool,
    /// What its byte stream is made of, e.g. `websocket`.
    pub way: String,
    /// Losses of the byte stream that no flow noticed.
    pub survived: u64,
    /// Flows in it.
    pub flows: usize,
    /// For how long there has been no byte stream.
    pub down_for: Option<Duration>,
    /// Why the last attempt or byte stream failed.
    pub last_error: Option<String>,
    /// What the link says about itself, if there is one.
    pub link: Option<link::Status>,
    /// What was learned about the path.
    pub pacing: Option<Figures>,
}

impl fmt::Display for TunnelStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tunnel {}: ", self.number)?;
        match self.down_for {
            Some(down) => write!(f, "down for {:.1} s", down.as_secs_f64())?,
            None if self.up => write!(f, "up over {}", self.way)?,
            None => write!(f, "not up yet")?,
        }
        write!(f, ", {} connections", self.flows)?;
        if let Some(link) = &self.link {
            let rtt = link.rtt.unwrap_or_default().as_secs_f64() * 1e3;
            write!(f, ", round trip {rtt:.1} ms, {} kB in flight", link.in_flight / 1000)?;
            write!(f, ", {} kB kept", link.replay_buffer / 1000)?;
        }
        if let Some(path) = &self.pacing {
            write!(f, ", {:.1} MB/s, budget {} kB", path.rate / 1e6, path.budget / 1000)?;
        }
        write!(f, ", {} losses survived", self.survived)?;
        match &self.last_error {
            Some(error) => write!(f, ", last error: {error}"),
            None => Ok(()),
        }
    }
}
