//! Flags about names.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::Output;
use crate::dns::Name;
use crate::dns::system::DNS;

/// Flags of the main job that are about names.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// How questions about names come to kshuttle
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    pub dns: NamesMethod,

    /// Leave names alone, as --dns none
    #[arg(long)]
    pub no_dns: bool,

    /// The cluster's domain, where its pods do not tell it
    #[arg(long, value_name = "DOMAIN", value_parser = domain)]
    pub cluster_domain: Option<Name>,

    /// The cluster's DNS servers, where its pods do not tell them
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,

    /// Names that end in one of these namespaces are the cluster's, also where the Internet has such a domain (dev, io, app)
    #[arg(long, value_name = "NAMESPACE,...", value_delimiter = ',')]
    pub mapped_namespaces: Vec<String>,

    /// Ask this server, through the cluster, about names in this zone, such as corp.example=10.1.0.53 (may be given more than
    /// once)
    #[arg(long, value_name = "ZONE=SERVER")]
    pub dns_zone: Vec<Zone>,

    /// Do not let systemd-resolved complete single words by the namespace: `hello` is then not found, `hello.NAMESPACE` is
    #[arg(long)]
    pub no_dns_search: bool,
}

impl NamesArgs {
    /// What the two flags say together.
    pub fn method(&self) -> NamesMethod {
        if self.no_dns { NamesMethod::None } else { self.dns }
    }

    /// `--mapped-namespaces`, each once.
    pub fn mapped(&self) -> BTreeSet<String> {
        self.mapped_namespaces.iter().map(|name| name.to_ascii_lowercase()).collect()
    }
}

/// How questions about names come to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NamesMethod {
    /// A link where systemd-resolved answers, else redirection of the name servers.
    Auto,
    /// By systemd-resolved, which is told on a network link of its own.
    Link,
    /// What is sent to the name servers in /etc/resolv.conf is redirected.
    Redirect,
    /// Not at all.
    None,
}

/// A zone and who is asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// The zone.
    pub name: Name,
    /// Its server.
    pub server: SocketAddr,
}

impl FromStr for Zone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not like corp.example=10.1.0.53 or corp.example=10.1.0.53:5353");
        let (name, server) = text.split_once('=').ok_or_else(wrong)?;
        let address = |server: &str| Some(SocketAddr::new(server.parse().ok()?, DNS));
        let server = server.parse().ok().or_else(|| address(server)).ok_or_else(wrong)?;
        Ok(Self { name: domain(name).map_err(|_| wrong())?, server })
    }
}

/// An absolute name that is not the root.
fn domain(text: &str) -> Result<Name, String> {
    let name = Name::from_utf8(text).map_err(|error| error.to_string())?;
    if name.is_root() || text.is_empty() {
        return Err("a domain like cluster.local".to_owned());
    }
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

/// Flags of `kshuttle dns`.
#[derive(Debug, Args)]
pub struct DnsArgs {
    /// The name, as a program would ask for it
    pub name: String,

    /// The type of records: A, AAAA, SRV, TXT, PTR, …
    #[arg(value_name = "TYPE", default_value = "A")]
    pub kind: String,

    /// Ask this session: the id of its process
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,

    /// For programs
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Output>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_and_their_servers() {
        for (text, name, server) in [
            ("corp.example=10.1.0.53", "corp.example.", "10.1.0.53:53"),
            ("Corp.Example.=10.1.0.53:5353", "corp.example.", "10.1.0.53:5353"),
            ("lan=fd00::1", "lan.", "[fd00::1]:53"),
            ("lan=[fd00::1]:54", "lan.", "[fd00::1]:54"),
        ] {
            let zone: Zone = text.parse().unwrap();
            assert_eq!(
                (zone.name.to_string(), zone.server.to_string()),
                (name.into(), server.into()),
                "{text}"
            );
        }
        for text in
            ["", "corp.example", "=10.1.0.53", ".=10.1.0.53", "corp=", "corp=server", "a..b=10.1.0.53"]
        {
            assert!(text.parse::<Zone>().is_err(), "{text:?}");
        }
    }
}
