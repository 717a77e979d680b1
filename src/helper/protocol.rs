//! The words between the user's `kshuttle` and its root helper, and the frames they travel in.
//!
//! A frame is its length (`u32`, big-endian, without itself) and one JSON object with a `type`. Both sides refuse
//! what they do not know: another field, another type, a frame longer than [`MAX_FRAME`]. The order of the
//! conversation stands in the crate's documentation; what a plan may say is checked in [`crate::plan`].

mod field;
mod frames;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use frames::{Error, Frames, MAX_FRAME, write};

/// The conversation's version, said in [`Reply::Hello`]. The user side refuses any other: both programs are
/// installed together.
pub const VERSION: u32 = 3;

/// What the user side says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// The only plan of this conversation. Answered by [`Reply::Ready`] or [`Reply::Failed`].
    Plan(Plan),
    /// From now on these ranges instead. Answered by [`Reply::Updated`]; [`Reply::Refused`] leaves the old ones.
    Update {
        /// As [`Plan::include`].
        #[serde(deserialize_with = "field::include")]
        include: Vec<IpNet>,
        /// As [`Plan::exclude`].
        #[serde(default, deserialize_with = "field::exclude")]
        exclude: Vec<IpNet>,
    },
    /// Where did this sender of datagrams want to send them? Answered by [`Reply::Origin`].
    Origin {
        /// The sender, as the listener for datagrams sees it.
        from: SocketAddr,
        /// The listener's own address.
        at: SocketAddr,
    },
    /// systemd-resolved is to ask the stub about names. Makes the session's link or, said again, changes its settings, and
    /// makes it anew if somebody else took it away.
    /// Answered by [`Reply::Updated`]; after [`Reply::Refused`] there is no link, or its old settings stand, and the rules
    /// do in any case.
    Link(Link),
    /// From now on queries to port 53 of exactly these addresses come to us, over UDP and TCP; none if there is none.
    /// Whoever asks: [`Plan::who`] does not limit it, since programs have themselves asked by others (systemd-resolved,
    /// nscd, dnsmasq). Answered as [`Request::Update`] is.
    Names {
        /// At most [`crate::plan::MAX_NAME_SERVERS`].
        #[serde(deserialize_with = "field::servers")]
        servers: Vec<NameServer>,
    },
    /// Sockets whose packets to port 53 our rules do not touch, so that whoever answers the queries can ask the name
    /// servers themselves. Answered by [`Reply::Sockets`] or [`Reply::Refused`].
    Sockets {
        /// Of IPv6.
        v6: bool,
        /// For a TCP connection instead of datagrams.
        stream: bool,
        /// 1 to [`crate::plan::MAX_SOCKETS`].
        count: u8,
    },
    /// Undo now and answer [`Reply::Stopped`]. End of input does the same without an answer.
    Stop {},
}

/// What the helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Reply {
    /// First frame of every conversation.
    Hello {
        /// [`VERSION`] of the helper.
        protocol: u32,
        /// The helper's package version, for people.
        version: String,
    },
    /// The rules stand, and were read back.
    Ready {
        /// Who redirects: `nft` or `iptables`.
        method: String,
        /// The table's name in the family `inet`, or the name that iptables' chains begin with.
        table: String,
        /// What could not be had on this machine, a sentence each; empty almost everywhere.
        notes: Vec<String>,
        /// Seconds that the system remembers an exchange of datagrams without an answer, and one with answers.
        datagram_seconds: [u32; 2],
    },
    /// What was asked for stands.
    Updated {},
    /// What was asked for is not done; what stood before stands.
    Refused {
        /// Why, for people.
        message: String,
    },
    /// The answer to [`Request::Origin`].
    Origin {
        /// The sender that was asked about.
        from: SocketAddr,
        /// Where it wanted to send; none when the kernel does not know, or not any more.
        to: Option<SocketAddr>,
    },
    /// The answer to [`Request::Sockets`]: they travel with this frame (`SCM_RIGHTS`), not bound and not connected.
    Sockets {
        /// How many.
        count: u8,
    },
    /// Somebody else had taken rules of ours out; they stand again.
    Repaired {
        /// What was missing, for people.
        what: String,
    },
    /// Nothing (or nothing any more) is redirected. The helper ends after this.
    Failed {
        /// Which part failed: `privilege`, `protocol`, `plan`, `nft`, `iptables`, `leftovers`, `watchdog`, `standing`, `rules`, `verify`,
        /// `conntrack` or `lost`.
        step: String,
        /// The chain of causes in one line, for people.
        message: String,
    },
    /// The answer to [`Request::Stop`]; everything is undone, or `failures` says what is not.
    Stopped {
        /// What the undo saw.
        report: UndoReport,
    },
}

/// What is to be redirected, as data: the helper writes every command itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Names the table (`kshuttle_<session>`): 1 to [`crate::plan::MAX_SESSION`] of `a-z`, `0-9` and `-`. Two sessions of
    /// one machine must differ.
    #[serde(deserialize_with = "field::session")]
    pub session: String,
    /// Which of the system's ways.
    #[serde(default)]
    pub method: Method,
    /// Destinations to redirect, at most [`crate::plan::MAX_INCLUDE`].
    #[serde(deserialize_with = "field::include")]
    pub include: Vec<IpNet>,
    /// Destinations to leave alone although included, at most [`crate::plan::MAX_EXCLUDE`].
    #[serde(default, deserialize_with = "field::exclude")]
    pub exclude: Vec<IpNet>,
    /// Single ports of single hosts to leave alone, at most [`crate::plan::MAX_EXCLUDE_PORTS`].
    #[serde(default, deserialize_with = "field::exclude_ports", skip_serializing_if = "Vec::is_empty")]
    pub exclude_ports: Vec<SocketAddr>,
    /// Port on 127.0.0.1 that takes IPv4 connections; needed if `include` has an IPv4 subnet.
    #[serde(default, deserialize_with = "field::listener_v4")]
    pub listener_v4: Option<u16>,
    /// Port on ::1 that takes IPv6 connections; needed if `include` has an IPv6 subnet.
    #[serde(default, deserialize_with = "field::listener_v6")]
    pub listener_v6: Option<u16>,
    /// Port on 127.0.0.1 that takes datagrams of IPv4; without it they are not redirected.
    #[serde(default, deserialize_with = "field::datagrams_v4", skip_serializing_if = "Option::is_none")]
    pub datagrams_v4: Option<u16>,
    /// Port on ::1 that takes datagrams of IPv6; without it they are not redirected.
    #[serde(default, deserialize_with = "field::datagrams_v6", skip_serializing_if = "Option::is_none")]
    pub datagrams_v6: Option<u16>,
    /// Whose connections; of all on this machine if it says nothing.
    #[serde(default, skip_serializing_if = "Who::is_anybody")]
    pub who: Who,
    /// Bridges whose containers and virtual machines are redirected, too; at most [`crate::plan::MAX_BRIDGES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<Bridge>,
    /// Routes of our own to what is included of IPv6, where the machine has none or none with an address of its own. Then all
    /// of it is redirected: nothing excluded inside it, everybody's, datagrams, too, and no bridges. Where they cannot be
    /// made, a note says so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ipv6_routes: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// One of the system's ways to redirect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The best that works: nft, else iptables.
    #[default]
    Auto,
    /// nft only.
    Nft,
    /// iptables only.
    Iptables,
}

/// Whose connections are redirected: of those who match every list that is not empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Who {
    /// User ids of the processes; at most [`crate::plan::MAX_WHO`], as each list here.
    pub users: Vec<u32>,
    /// Group ids of the processes.
    pub groups: Vec<u32>,
    /// Control groups (version 2), as paths below their mount point: `user.slice/user-1000.slice`.
    pub cgroups: Vec<String>,
}

impl Who {
    /// Says nothing: everybody.
    pub fn is_anybody(&self) -> bool {
        *self == Self::default()
    }
}

/// A bridge of this machine, for one family. What comes in through it is redirected to a listener on the bridge's own
/// address: nothing else of this machine is in the bridge's view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// The interface's name.
    pub name: String,
    /// Its first address, where the kernel redirects to.
    pub address: IpAddr,
    /// Who is redirected: senders in this range.
    pub subnet: IpNet,
    /// Port on `address` that takes connections.
    pub listener: u16,
    /// Port on `address` that takes datagrams; without it they are not redirected.
    #[serde(default)]
    pub datagrams: Option<u16>,
}

/// Which names systemd-resolved asks the stub about, and where that is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The stub's port on 127.0.0.1, UDP and TCP; it has this one or the next, or both.
    #[serde(default, deserialize_with = "field::port_v4")]
    pub port_v4: Option<u16>,
    /// The stub's port on ::1, UDP and TCP.
    #[serde(default, deserialize_with = "field::port_v6")]
    pub port_v6: Option<u16>,
    /// It is asked about these names and those below: `cluster.local`, `96.10.in-addr.arpa`. At most
    /// [`crate::link::MAX_NAMES`] with those in `search`.
    #[serde(default, deserialize_with = "field::domains")]
    pub domains: Vec<String>,
    /// The same, and names of one part are completed by them.
    #[serde(default, deserialize_with = "field::search")]
    pub search: Vec<String>,
}

/// One that programs of this machine ask, and who answers instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameServer {
    /// Where they ask, at port 53.
    pub address: IpAddr,
    /// Who answers: this port on 127.0.0.1 or ::1, whichever is of the address' family.
    pub port: u16,
}

/// What the undo did and what it could not do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoReport {
    /// Milliseconds spent waiting for redirected connections to end and for queries to be answered.
    pub waited_ms: u64,
    /// Redirected connections that had not ended when the wait was over, which are cut off without a reset, and queries
    /// to name servers that had no answer.
    pub still_open: u64,
    /// Conntrack entries deleted.
    pub entries_deleted: u64,
    /// Packets that the guard chain dropped over the whole session: they were meant for the cluster and would have
    /// gone to the local network.
    pub guard_dropped: u64,
    /// Steps that failed, in order; empty means everything is as it was before.
    pub failures: Vec<StepFailure>,
}

/// One step of the undo that failed. The others were run all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepFailure {
    /// `link`, `holder`, `flush`, `wait`, `entries`, `counter`, `routes`, `table`, `nft` or `watchdog`.
    pub step: String,
    /// The chain of causes in one line.
    pub message: String,
}

#[cfg(test)]
mod tests;
