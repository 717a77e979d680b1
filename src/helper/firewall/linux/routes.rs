//! Routes of our own to the included ranges of IPv6, for a machine that has none, or none with an address that answers come
//! back to: a connection without a route fails before the rules are asked, and the kernel delivers nothing from a link-local
//! address to ::1.
//!
//! They lead to a link of ours, which nothing ever arrives through: what goes there is redirected before. The link's far end is
//! held by a copy of the helper ([`holder`]), so link, address and routes end together, whoever is killed,
//! but not before the watchdog: connections that are being reset need the address.

use std::io;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use nix::net::if_::if_nametoindex;

use crate::error_chain;
use crate::firewall::program::{self, IP};
use crate::holder::{self, Holder, Life};
use crate::link::{named, number};

/// What every such link's name begins with.
const PREFIX: &str = "kip6";

/// Ours comes before another route to the very same range, which may have a link-local address only. 1 is the least that can
/// be said: 0 stands for the default, 1024.
const METRIC: u32 = 1;

/// Why there are no routes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No link.
    #[error(transparent)]
    Holder(#[from] holder::Error),
    /// No address on it.
    #[error("giving the link {0} an address failed")]
    Address(String, #[source] program::Error),
    /// `ip` refuses them.
    #[error("adding routes to the link {0} failed")]
    Add(String, #[source] program::Error),
    /// It stays.
    #[error("deleting the link {0} failed")]
    Delete(String, #[source] program::Error),
    /// The copy that holds it.
    #[error("ending the link's holder failed")]
    End(#[source] io::Error),
}

/// A link, and what leads to it.
#[derive(Debug)]
pub(super) struct Routes {
    link: String,
    address: Ipv6Addr,
    holder: Holder,
}

impl Routes {
    /// The link, which is down and changes nothing yet. A watchdog that is started from now on shares what it lives by.
    pub(super) fn start(table: &str) -> Result<Self, Error> {
        let link = named(PREFIX, table);
        let holder = Holder::start(&link, Life::OfWatchdog)?;
        Ok(Self { link, address: address(table), holder })
    }

    /// An address, and the routes; or nothing is left.
    pub(super) fn make(self, ranges: &[Ipv6Net]) -> Result<Self, Error> {
        match self.address().and_then(|()| self.add(ranges)) {
            Ok(()) => Ok(self),
            Err(error) => {
                let _ = self.end(); // the first failure is the one to report
                Err(error)
            }
        }
    }

    /// Routes to the new ranges instead, around this change of the rules: what is new is in force with its routes, or not at
    /// all.
    pub(super) fn follow(
        &self,
        old: &[Ipv6Net],
        new: &[Ipv6Net],
        change: impl FnOnce() -> Result<(), super::Error>,
    ) -> Result<(), super::Error> {
        let added = without(new, old);
        self.add(&added)?;
        let changed = change();
        match &changed {
            Ok(()) => self.delete(&without(old, new)),
            Err(_) => self.delete(&added),
        }
        changed
    }

    /// Takes the link away, and with it address and routes.
    pub(super) fn take_out(&self) -> Result<(), Error> {
        if !self.stands() {
            return Ok(());
        }
        match IP.run(&["link", "delete", "dev", &self.link], "") {
            Err(error) if self.stands() => Err(Error::Delete(self.link.clone(), error)),
            _ => Ok(()), // deleted by us, or by somebody else before
        }
    }

    /// The same, and ends the copy that holds it.
    pub(super) fn end(self) -> Result<(), Error> {
        let taken_out = self.take_out();
        self.holder.end().map_err(Error::End).and(taken_out)
    }

    fn address(&self) -> Result<(), Error> {
        let Self { link, address, .. } = self;
        // Not preferred: nobody takes it for what goes elsewhere as long as there is another one.
        let commands = format!(
            "link set {link} addrgenmode none\nlink set {link} up\n\
             address add {address}/128 dev {link} nodad preferred_lft 0\n"
        );
        let done = IP.run(&["-batch", "-"], &commands);
        done.map(drop).map_err(|error| Error::Address(link.clone(), error))
    }

    /// More routes: all or none.
    fn add(&self, ranges: &[Ipv6Net]) -> Result<(), Error> {
        if ranges.is_empty() {
            return Ok(());
        }
        let added = IP.run(&["-batch", "-"], &self.commands("add", ranges));
        added.map(drop).map_err(|error| {
            self.delete(ranges);
            Error::Add(self.link.clone(), error)
        })
    }

    /// Fewer routes. One that is not there was taken out by somebody else, or went with the link: no failure.
    fn delete(&self, ranges: &[Ipv6Net]) {
        if !ranges.is_empty() {
            let _ = IP.run(&["-force", "-batch", "-"], &self.commands("delete", ranges));
        }
    }

    fn stands(&self) -> bool {
        if_nametoindex(self.link.as_str()).is_ok()
    }

    fn commands(&self, verb: &str, ranges: &[Ipv6Net]) -> String {
        let Self { link, address, .. } = self;
        let route = |range| format!("route {verb} {range} dev {link} src {address} metric {METRIC}\n");
        ranges.iter().map(route).collect()
    }
}

/// They stand, or a sentence tells why not: without them the rules are still good for what this machine has a route to.
pub(super) fn noted(made: Option<Result<Routes, Error>>, notes: &mut Vec<String>) -> Option<Routes> {
    let note = |error| {
        notes.push(format!("there are no routes of our own to the ranges of IPv6: {}", error_chain(&error)))
    };
    made?.map_err(note).ok()
}

/// The ranges that only the first has.
fn without(ranges: &[Ipv6Net], others: &[Ipv6Net]) -> Vec<Ipv6Net> {
    ranges.iter().filter(|range| others.binary_search(range).is_err()).copied().collect()
}

/// The first address of a /48 of our own (RFC 4193 §3.1). It never leaves the machine, so its 40 bits need not be random; they have
/// to differ between sessions, and hardly meet what this machine has or sees.
fn address(table: &str) -> Ipv6Addr {
    Ipv6Addr::from((0xfd << 120) | (u128::from(number(table)) << 80) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_has_a_link_and_an_address_of_its_own() {
        assert_eq!(named(PREFIX, "kshuttle_4194304"), "kip64194304");
        assert_eq!(named(PREFIX, "kshuttle_abcdefghijklmnopqr").len(), 15);
        let [one, other] = ["kshuttle_4711", "kshuttle_4712"].map(address);
        assert_ne!(one, other);
        for address in [one, other] {
            let [first, .., last] = address.octets();
            assert_eq!((first, last), (0xfd, 1), "{address}");
            assert_eq!(address.segments()[3..7], [0; 4], "{address}");
        }
    }

    #[test]
    fn what_only_one_has() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let (old, new) = (nets(&["fd00::/64", "fd01::/64"]), nets(&["fd01::/64", "fd02::/64"]));
        assert_eq!(without(&new, &old), nets(&["fd02::/64"]));
        assert_eq!(without(&old, &new), nets(&["fd00::/64"]));
        assert_eq!(without(&old, &old), []);
    }
}
