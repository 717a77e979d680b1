//! nft: one table of our own, which the kernel ties to a living child.
//!
//! The rules are in [`text`]; the child and what it says in [`child`].

mod child;
pub(super) mod text;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::backend::{Backend, Error};
use super::conntrack::Tuple;
use super::program;
use crate::plan::Plan;
use text::Chain;

/// Does this machine lack something that another way of redirecting may not need?
pub(super) fn is_lack(error: &Error) -> bool {
    match error {
        Error::Start(..) => true,
        // A table that is there already is a session with our name, not a lack.
        Error::Rules(program::Error::Refused(_, said)) => !is_there_already(said),
        _ => false,
    }
}

/// Of another session with our name: not ours to add to, since it has an owner.
fn is_there_already(said: &str) -> bool {
    ["File exists", "Operation not permitted"].iter().any(|why| said.contains(why))
}

/// Our table.
#[derive(Debug)]
pub(super) struct Nft {
    /// The child that owns it.
    child: child::Nft,
    /// The timeouts of datagrams are ours.
    pinned: bool,
}

impl Nft {
    /// Starts the child; makes nothing yet.
    pub(super) fn start(plan: &Plan) -> Result<Self, Error> {
        let child = child::Nft::start(plan.table()).map_err(|error| Error::Start("nft", error))?;
        Ok(Self { child, pinned: true })
    }

    fn run(&mut self, commands: &[String]) -> Result<(), Error> {
        self.child.run(commands).map_err(Error::Rules)
    }
}

impl Backend for Nft {
    fn method(&self) -> &'static str {
        "nft"
    }

    fn put_in(&mut self, plan: &Plan, standing: &[Tuple]) -> Result<Vec<String>, Error> {
        match self.run(&text::apply(plan, standing, true)) {
            Ok(()) => Ok(Vec::new()),
            Err(Error::Rules(program::Error::Refused(_, said))) if !is_there_already(&said) => {
                // Perhaps only for what kernels may lack (CONFIG_NF_CT_NETLINK_TIMEOUT, CONFIG_NF_CONNTRACK_ZONES).
                self.run(&text::apply(plan, standing, false))?;
                self.pinned = false;
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    fn verify(&mut self, plan: &Plan) -> Result<(), Error> {
        let listing = child::Nft::list(&["table", "inet", plan.table()]).map_err(Error::ReadBack)?;
        verify(&listing, plan)
    }

    fn update(&mut self, plan: &Plan, standing: &[Tuple]) -> Result<(), Error> {
        self.run(&text::update(plan, standing))
    }

    fn names(&mut self, plan: &Plan) -> Result<(), Error> {
        self.run(&text::names::replace(plan))
    }

    fn release(&mut self, plan: &Plan) -> Result<(), Error> {
        self.run(&text::flush(plan))
    }

    fn dropped(&mut self, plan: &Plan) -> Result<u64, Error> {
        let listing =
            child::Nft::list(&["counter", "inet", plan.table(), text::DROPPED]).map_err(Error::ReadBack)?;
        let packets = listing.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        let count = packets.and_then(|count| count.parse().ok());
        count.ok_or(Error::ReadBack(program::Error::Refused("nft", listing)))
    }

    fn take_out(&mut self, plan: &Plan) -> Result<(), Error> {
        self.run(&[text::delete(plan.table())])
    }

    fn end(self: Box<Self>) -> Result<(), Error> {
        self.child.end(true).map_err(|error| Error::End("nft", error))
    }

    fn datagram_seconds(&self) -> Option<[u32; 2]> {
        self.pinned.then_some([text::UNREPLIED, text::REPLIED])
    }

    fn lost(&self) -> Option<BorrowedFd<'_>> {
        Some(self.child.ending())
    }

    fn mend_every(&self) -> Option<Duration> {
        None // the table is ours alone: `nft flush ruleset` passes it by
    }

    fn mend(&mut self, _: &Plan) -> Result<Option<String>, Error> {
        Ok(None)
    }
}

/// Every chain at its hook with as many rules as we wrote, the owner, full sets, and as many name servers. Not the words of each rule: they
/// differ between versions of nft. Nor what is in the sets of standing connections: it may have become less already.
fn verify(listing: &str, plan: &Plan) -> Result<(), Error> {
    let lacking = |what: String| Err(Error::Lacking(what));
    let lines: Vec<&str> = listing.lines().map(str::trim).collect();
    let block = |head: &str| -> Option<Vec<&str>> {
        let start = lines.iter().position(|line| *line == format!("{head} {{"))? + 1;
        Some(lines[start..].iter().copied().take_while(|line| *line != "}").collect())
    };
    if !lines.contains(&"flags owner") {
        return lacking("the owner".into());
    }
    for Chain { name, kind, hook, priority } in text::chains(plan) {
        let block = block(&format!("chain {name}")).unwrap_or_default();
        let hook = format!("type {kind} hook {hook} priority {priority};");
        if !block.first().is_some_and(|line| line.starts_with(&hook)) {
            return lacking(format!("the chain {name} ({hook})"));
        }
        let (there, wanted) = (block.len() - 1, text::rules(plan, name).len());
        if there != wanted {
            return lacking(format!("rules in the chain {name}: {there} instead of {wanted}"));
        }
    }
    for (set, empty) in [
        ("include4", plan.include().v4.is_empty()),
        ("include6", plan.include().v6.is_empty()),
        ("exclude4", plan.exclude().v4.is_empty()),
        ("exclude6", plan.exclude().v6.is_empty()),
    ] {
        let full =
            block(&format!("set {set}")).unwrap_or_default().iter().any(|line| line.starts_with("elements"));
        if full == empty {
            return lacking(format!("the subnets of the set {set}"));
        }
    }
    for (map, v6) in [("dns4", false), ("dns6", true)] {
        let text = block(&format!("map {map}")).unwrap_or_default().concat();
        let there = text.split_once("elements = {").map_or(0, |(_, elements)| elements.split(',').count());
        let wanted = plan.name_servers().iter().filter(|server| server.address.is_ipv6() == v6).count();
        if there != wanted {
            return lacking(format!("name servers in the map {map}: {there} instead of {wanted}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    /// `nft -n list table` of nft 1.0.6, after `only-ipv4.nft` was carried out.
    const LISTING: &str = include_str!("../../../fixtures/firewall/only-ipv4.listing");

    fn plan() -> Plan {
        let include = vec!["10.0.0.0/16".parse().unwrap()];
        let said = protocol::Plan {
            session: "golden".into(),
            include,
            listener_v4: Some(40001),
            ..protocol::Plan::default()
        };
        Plan::check(said).unwrap()
    }

    #[test]
    fn a_captured_listing_is_complete() {
        verify(LISTING, &plan()).unwrap();
    }

    #[test]
    fn name_servers_are_counted() {
        let server = |host: u8| crate::protocol::NameServer { address: [198, 51, 100, host].into(), port: 5 };
        let plan = plan().with_names(&[1, 2, 3].map(server)).unwrap();
        let map = "map dns4 {\n\t\ttype ipv4_addr : inet_service\n";
        // As nft 1.0.6 breaks the line.
        let three = "\t\telements = { 198.51.100.1 : 5, 198.51.100.2 : 5,\n\t\t\t     198.51.100.3 : 5 }\n";
        let listing = LISTING.replace(map, &format!("{map}{three}"));
        verify(&listing, &plan).unwrap();
        let two = listing.replace("5,\n\t\t\t     198.51.100.3 : ", "");
        assert_eq!(
            verify(&two, &plan).unwrap_err().to_string(),
            "the rules read back lack name servers in the map dns4: 2 instead of 3"
        );
        assert!(verify(LISTING, &plan).is_err());
    }

    #[test]
    fn whatever_lacks_is_named() {
        for (part, instead, lacking) in [
            ("flags owner", "", "the owner"),
            ("chain guard {", "chain other {", "the chain guard (type filter hook output priority 0;)"),
            ("priority -110", "priority -100", "the chain capture (type nat hook output priority -110;)"),
            ("ct state", "}\nct state", "rules in the chain keep: 0 instead of 1"),
            ("ct status", "ct status\nct status", "rules in the chain guard: 15 instead of 14"),
            ("elements", "", "the subnets of the set include4"),
        ] {
            let listing = LISTING.replacen(part, instead, 1);
            assert_ne!(listing, LISTING, "{part} is in the listing");
            assert_eq!(
                verify(&listing, &plan()).unwrap_err().to_string(),
                format!("the rules read back lack {lacking}")
            );
        }
    }
}
