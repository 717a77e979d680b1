//! Whose name is it? A pure function: what is known about the cluster, and a name, give the way it goes and why.
//!
//! Who comes first: the stub's own canary, then `--dns-zone`, then what is surely the cluster's, then what is the cluster's
//! if it says so, then the system's own servers.

mod public;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use hickory_proto::rr::{Name, RecordType};
use ipnet::IpNet;

pub use self::public::is_public;
use self::public::is_special;

/// Label below the cluster's domain, and below `svc` there, under which sessions have their check names.
pub const CANARY: &str = "kshuttle-check";

/// What is known about the cluster and the user's wishes; may change while the stub runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    /// The cluster's domain, mostly `cluster.local.`; absolute.
    pub domain: Name,
    /// The cluster's DNS servers, as pods reach them; tried in this order.
    pub servers: Vec<SocketAddr>,
    /// The user's namespace: single labels are looked for there.
    pub namespace: String,
    /// All namespaces; none where they cannot be listed.
    pub namespaces: Option<BTreeSet<String>>,
    /// `--mapped-namespaces`: the cluster's also where they are public top-level domains.
    pub mapped: BTreeSet<String>,
    /// What is redirected: their reverse zones are the cluster's.
    pub ranges: Vec<IpNet>,
    /// `--dns-zone`: these zones are asked at these servers, through the tunnel.
    pub extra: Vec<(Name, SocketAddr)>,
    /// The label below [`CANARY`] whose names the stub answers by itself: no other session of this machine has it, and where
    /// their stubs ask each other, each check question finds its own.
    pub check: String,
    /// Whether this machine reaches the cluster's IPv6 addresses. If not, its names have none.
    pub ipv6: bool,
}

/// Where a question goes, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Where.
    pub way: Way,
    /// Why.
    pub why: Why,
}

/// Where a question goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The stub answers by itself.
    Stub,
    /// The cluster is asked for this name, and its answer counts.
    Cluster(Name),
    /// The cluster is asked for this name; if it has no such name, the system's own servers are asked.
    Perhaps(Name),
    /// This server is asked, through the tunnel.
    Server(SocketAddr),
    /// The system's own servers are asked; the cluster never hears of it.
    Upstream,
}

/// Why it goes there: sentences for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Below [`CANARY`].
    Canary,
    /// The same, of nobody or of another session.
    OthersCanary,
    /// `--dns-zone`.
    Extra(Name),
    /// The cluster's domain.
    Domain(Name),
    /// The short form of it.
    Svc(Name),
    /// The reverse zone of this range.
    Reverse(IpNet),
    /// `--mapped-namespaces`.
    Mapped(String),
    /// Its last label is a namespace.
    Namespace(String),
    /// Its last label may be a namespace.
    PerhapsNamespace(String),
    /// Single label.
    Single(String),
    /// A public top-level domain, though it may be a namespace, too.
    Public(String),
    /// A name that the standards keep for other uses.
    Special(String),
    /// A question about a zone's own records, which no Service has.
    Apex,
    /// Longer than names can be, once completed.
    TooLong,
    /// None of the above.
    Other,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Canary => write!(f, "kshuttle answers its own check names by itself"),
            Self::OthersCanary => write!(f, "it is no check name of this session"),
            Self::Extra(zone) => write!(f, "--dns-zone names {zone}"),
            Self::Domain(domain) => write!(f, "{domain} is the cluster's domain"),
            Self::Svc(domain) => write!(f, "svc is short for svc.{domain}"),
            Self::Reverse(range) => write!(f, "its address is in the redirected range {range}"),
            Self::Mapped(ns) => write!(f, "{ns} is one of --mapped-namespaces"),
            Self::Namespace(ns) => {
                write!(f, "{ns} is a namespace of the cluster and no public top-level domain")
            }
            Self::PerhapsNamespace(ns) => {
                write!(f, "the cluster's namespaces cannot be listed, and {ns} may be one")
            }
            Self::Single(ns) => write!(f, "a single label may be a Service of the namespace {ns}"),
            Self::Public(tld) => {
                write!(
                    f,
                    "{tld} is a public top-level domain (--mapped-namespaces {tld} would make it the cluster's)"
                )
            }
            Self::Special(label) => write!(f, "{label} is kept for other uses than a namespace"),
            Self::Apex => write!(f, "it asks for the records of a zone, not of a Service"),
            Self::TooLong => write!(f, "completed by the cluster's domain it would be too long for a name"),
            Self::Other => write!(f, "it is in no zone of the cluster"),
        }
    }
}

impl Zones {
    /// Whose is `name`, if records of this `kind` are asked for?
    pub fn whose(&self, name: &Name, kind: RecordType) -> Verdict {
        let labels: Vec<String> = name.iter().map(lowercase).collect();
        if let Some(zone) = self.canary_zone(name) {
            let ours = zone.prepend_label(self.check.as_str()).is_ok_and(|ours| ours.zone_of(name));
            return if ours {
                Way::Stub.because(Why::Canary)
            } else {
                Way::Upstream.because(Why::OthersCanary)
            };
        }
        let extra = self.extra.iter().filter(|(zone, _)| zone.zone_of(name));
        if let Some((zone, server)) = extra.max_by_key(|(zone, _)| zone.num_labels()) {
            return Way::Server(*server).because(Why::Extra(zone.clone()));
        }
        if self.domain.zone_of(name) {
            return Way::Cluster(name.clone()).because(Why::Domain(self.domain.clone()));
        }
        let Some(last) = labels.last() else { return Way::Upstream.because(Why::Other) };
        if last == "svc" {
            let why = Why::Svc(self.domain.clone());
            return completed(Way::Cluster, name, Ok(self.domain.clone()), why);
        }
        if last == "arpa" {
            return self.reverse(name);
        }
        let svc = self.domain.prepend_label("svc");
        if labels.len() == 1 {
            return self.single(name, last, kind);
        }
        if self.mapped.contains(last) {
            return completed(Way::Cluster, name, svc, Why::Mapped(last.clone()));
        }
        let why = match &self.namespaces {
            Some(known) if !known.contains(last) => return Way::Upstream.because(Why::Other),
            Some(_) => Why::Namespace(last.clone()),
            None if !is_namespace(last) => return Way::Upstream.because(Why::Other),
            // A namespace may be called so, but then the cluster would hear of every name of the local network.
            None if is_special(last) => return Way::Upstream.because(Why::Special(last.clone())),
            None => Why::PerhapsNamespace(last.clone()),
        };
        if is_public(last) {
            return Way::Upstream.because(Why::Public(last.clone()));
        }
        completed(Way::Perhaps, name, svc, why)
    }

    /// `LABEL.NAMESPACE.svc.DOMAIN`. Also where the label is a public top-level domain: hosts have no such names (ICANN
    /// forbids them), and Services are called `shop` or `app`.
    fn single(&self, name: &Name, label: &str, kind: RecordType) -> Verdict {
        if label == "localhost" {
            return Way::Upstream.because(Why::Special(label.to_owned())); // RFC 6761 §6.3
        }
        // Validating resolvers ask so about top-level domains.
        if matches!(kind, RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY) {
            return Way::Upstream.because(Why::Apex);
        }
        let svc = self.domain.prepend_label("svc");
        let suffix = svc.and_then(|svc| svc.prepend_label(self.namespace.as_str()));
        completed(Way::Perhaps, name, suffix, Why::Single(self.namespace.clone()))
    }

    fn reverse(&self, name: &Name) -> Verdict {
        let net = name.parse_arpa_name().ok();
        match net.and_then(|net| self.ranges.iter().find(|range| range.contains(&net))) {
            Some(range) => Way::Cluster(name.clone()).because(Why::Reverse(*range)),
            None => Way::Upstream.because(Why::Other),
        }
    }

    /// `kshuttle-check` below the domain, below `svc` there, or below the short form of that, if the name is below it.
    fn canary_zone(&self, name: &Name) -> Option<Name> {
        let svc = self.domain.prepend_label("svc").ok();
        let short = Name::root().prepend_label("svc").ok();
        let zones = [Some(self.domain.clone()), svc, short].into_iter().flatten();
        zones.filter_map(|zone| zone.prepend_label(CANARY).ok()).find(|zone| zone.zone_of(name))
    }
}

impl Way {
    fn because(self, why: Why) -> Verdict {
        Verdict { way: self, why }
    }
}

/// `name` below `suffix`.
fn completed(
    way: impl Fn(Name) -> Way,
    name: &Name,
    suffix: Result<Name, hickory_proto::ProtoError>,
    why: Why,
) -> Verdict {
    match suffix.and_then(|suffix| name.clone().append_domain(&suffix)) {
        Ok(full) => way(full).because(why),
        Err(_) => Way::Upstream.because(Why::TooLong),
    }
}

/// Labels are bytes; what is no ASCII is no namespace anyway.
fn lowercase(label: &[u8]) -> String {
    String::from_utf8_lossy(label).to_ascii_lowercase()
}

/// Can a namespace be called so (RFC 1123 labels)? A number is rather a typo of an address.
fn is_namespace(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let number = label.chars().all(|c| c.is_ascii_digit());
    label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-') && !number
}

#[cfg(test)]
mod tests;
