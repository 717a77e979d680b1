//! Flags of the main job. The only ones that read something: files of ranges, when they are asked for them.

use std::path::PathBuf;
use std::{fs, io};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use kshuttle_helper::protocol::Method;

use super::{Elevate, NamesArgs, PodArgs};
use crate::addr::{Exclude, Subnet};

/// Flags of redirecting.
#[derive(Debug, Args)]
pub struct RedirectArgs {
    /// Ranges to redirect into the cluster; without any, those of its Services and pods
    #[arg(value_name = "SUBNET")]
    pub subnets: Vec<Subnet>,

    /// Redirect the ranges in this file, too: one a line, `#` begins a comment; `-` is standard input
    #[arg(short = 'f', long, value_name = "FILE", visible_alias = "subnets")]
    pub subnets_file: Vec<PathBuf>,

    /// Leave this alone, even inside a SUBNET: a range, an address, or ADDRESS:PORT (may be given more than once)
    #[arg(short = 'x', long, value_name = "SUBNET|ADDRESS:PORT")]
    pub exclude: Vec<Exclude>,

    /// Redirect only addresses that Services, endpoints and pods have now (inside the SUBNETs, if there are any), and follow
    /// their changes: beside a VPN with the same ranges, or a second cluster
    #[arg(long)]
    pub narrow: bool,

    /// How to redirect; with none, no rules are made and root is not needed: the port to redirect to is printed
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    pub redirect: RedirectMethod,

    /// What makes the helper root, if kshuttle is not root itself
    #[arg(long, value_name = "PROGRAM", default_value = "auto")]
    pub elevate: Elevate,

    /// Leave UDP alone
    #[arg(long)]
    pub no_udp: bool,

    /// Redirect only what this user's processes send: a name or a number (may be given more than once)
    #[arg(long, value_name = "USER")]
    pub user: Vec<String>,

    /// Redirect only what processes of this group send: a name or a number (may be given more than once)
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,

    /// Redirect only what processes in this control group send: its path below /sys/fs/cgroup (may be given more than once)
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,

    /// Redirect containers and virtual machines behind these bridges, too, such as docker0
    #[arg(long, value_name = "INTERFACE,...", value_delimiter = ',')]
    pub listen_bridge: Vec<String>,

    /// Make routes to the ranges of IPv6, for as long as kshuttle runs: for a machine without IPv6, or with link-local addresses only.
    /// What goes there and is neither TCP nor UDP is lost
    #[arg(long, conflicts_with_all = ["no_udp", "user", "group", "cgroup", "listen_bridge"])]
    pub ipv6_routes: bool,

    /// Names.
    #[command(flatten)]
    pub names: NamesArgs,

    /// The pod the traffic goes through.
    #[command(flatten)]
    pub pod: PodArgs,
}

impl RedirectArgs {
    /// The ranges named, in the line and in files.
    ///
    /// # Errors
    /// When a file cannot be read, or has something else in it.
    pub fn ranges(&self) -> Result<Vec<IpNet>, SubnetsFileError> {
        let mut ranges: Vec<IpNet> = self.subnets.iter().map(|subnet| subnet.0).collect();
        for path in &self.subnets_file {
            let text = if path.as_os_str() == "-" {
                io::read_to_string(io::stdin())
            } else {
                fs::read_to_string(path)
            };
            let text = text.map_err(|source| SubnetsFileError::Read { path: path.clone(), source })?;
            ranges.extend(in_file(&text).map_err(|(line, word)| SubnetsFileError::Line {
                path: path.clone(),
                line,
                word,
            })?);
        }
        Ok(ranges)
    }

    /// Whether the helper makes routes of IPv6; without rules there is none.
    pub fn makes_ipv6_routes(&self) -> bool {
        self.ipv6_routes && self.redirect != RedirectMethod::None
    }
}

/// Why a file of ranges is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SubnetsFileError {
    /// It cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// A line with something else.
    #[error("{}:{line}: {word:?} is not an address or a range like 10.96.0.0/12", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is there.
        word: String,
    },
}

/// The ranges, or the first line with something else and its word.
fn in_file(text: &str) -> Result<Vec<IpNet>, (usize, String)> {
    let mut ranges = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words = line.split('#').next().unwrap_or_default().split_whitespace();
        for word in words {
            let subnet: Subnet = word.parse().map_err(|_| (number + 1, word.to_owned()))?;
            ranges.push(subnet.0);
        }
    }
    Ok(ranges)
}

/// How to redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RedirectMethod {
    /// The best that works.
    Auto,
    /// nft only.
    Nft,
    /// iptables only.
    Iptables,
    /// No rules.
    None,
}

impl RedirectMethod {
    /// The helper's word for it.
    pub fn of_helper(self) -> Method {
        match self {
            Self::Nft => Method::Nft,
            Self::Iptables => Method::Iptables,
            Self::Auto | Self::None => Method::Auto,
        }
    }
}
