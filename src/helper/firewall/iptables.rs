//! iptables, where nft cannot be used: chains of our own in the tables `raw`, `nat` and `filter` of both families, which any
//! other program may flush, so that they are looked after ([`Backend::mend`]), and which outlive us, so that a record in
//! `/run` says whose they are ([`leftovers`]).
//!
//! `iptables-restore` carries a table out in one step. The texts are in [`text`].

mod leftovers;
pub(super) mod text;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::backend::{Backend, Error};
use super::conntrack::Tuple;
use super::program::{self, IP6TABLES_RESTORE, IP6TABLES_SAVE, IPTABLES_RESTORE, IPTABLES_SAVE, Program};
use crate::error_chain;
use crate::plan::Plan;

use leftovers::Record;
pub(super) use leftovers::sweep;

/// How often the rules are looked after: a flush by somebody else opens the way to the local network for so long.
/// A look costs two short processes.
const MEND_EVERY: Duration = Duration::from_secs(2);

/// Most connections that stand and are left alone: each is a rule that every new connection passes.
const MOST_STANDING: usize = 512;

/// Arguments of `iptables-restore`: other people's rules stay, and a lock that somebody else holds is waited for, 5 s.
const RESTORE: [&str; 2] = ["--noflush", "--wait=5"];

/// A family's programs.
#[derive(Debug, Clone, Copy)]
struct Family {
    v6: bool,
    /// Whether our own queries to name servers are kept apart.
    apart: bool,
    save: Program,
    restore: Program,
}

/// IPv4 and IPv6.
const FAMILIES: [Family; 2] = [
    Family { v6: false, apart: true, save: IPTABLES_SAVE, restore: IPTABLES_RESTORE },
    Family { v6: true, apart: true, save: IP6TABLES_SAVE, restore: IP6TABLES_RESTORE },
];

impl Family {
    fn saved(self) -> Result<String, program::Error> {
        self.save.run(&["-c"], "")
    }

    fn restore(self, text: &str) -> Result<(), Error> {
        self.restore.run(&RESTORE, text).map(drop).map_err(Error::Rules)
    }

    /// Takes out everything of this name, whatever there is of it.
    fn take_out(self, name: &str) -> Result<(), Error> {
        let saved = self.saved().map_err(Error::ReadBack)?;
        let removal = text::removal(&saved, name);
        if removal.is_empty() { Ok(()) } else { self.restore(&removal) }
    }
}

/// Chains of ours.
#[derive(Debug)]
pub(super) struct Iptables {
    /// Those that can redirect here.
    families: Vec<Family>,
    record: Record,
    /// Connections that are left alone; their rules come back when ours are mended.
    standing: Vec<Tuple>,
}

impl Iptables {
    /// Looks whether it is there; makes nothing yet but the record.
    pub(super) fn start(plan: &Plan) -> Result<Self, Error> {
        for family in FAMILIES.iter().filter(|family| !family.v6) {
            let saved = family.saved().map_err(|error| Error::Start("iptables", error))?;
            if text::names(&saved).iter().any(|name| name == plan.table()) {
                return Err(Error::Exists);
            }
        }
        let record = Record::write(plan.table()).map_err(Error::Record)?;
        Ok(Self { families: FAMILIES.to_vec(), record, standing: Vec::new() })
    }

    /// The whole of one family, in place of what there is of it.
    fn replace(&self, family: Family, plan: &Plan) -> Result<(), Error> {
        let saved = family.saved().map_err(Error::ReadBack)?;
        family.restore(&text::apply(plan, family.v6, &self.standing, family.apart, &saved))
    }
}

impl Backend for Iptables {
    fn method(&self) -> &'static str {
        "iptables"
    }

    fn put_in(&mut self, plan: &Plan, standing: &[Tuple]) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        if standing.len() > MOST_STANDING {
            return Err(Error::TooManyStanding(MOST_STANDING));
        }
        self.standing = standing.to_vec();
        let mut families = Vec::new();
        for mut family in std::mem::take(&mut self.families) {
            let mut replaced = self.replace(family, plan);
            if replaced.is_err() {
                // Perhaps only for what kernels may lack (CONFIG_IP_NF_RAW, CONFIG_NETFILTER_XT_TARGET_CT).
                family.apart = false;
                replaced = self.replace(family, plan);
            }
            match replaced {
                Ok(()) => families.push(family),
                Err(error) if family.v6 => {
                    let _ = family.take_out(plan.table()); // one of the tables may have been made
                    if plan.listeners(true).connections.is_some() {
                        notes.push(format!("IPv6 is not redirected: {}", error_chain(&error)));
                    }
                }
                Err(error) => {
                    let _ = family.take_out(plan.table()); // the error before is the one to tell
                    return Err(error);
                }
            }
        }
        self.families = families;
        Ok(notes)
    }

    fn verify(&mut self, plan: &Plan) -> Result<(), Error> {
        for family in &self.families {
            let saved = family.saved().map_err(Error::ReadBack)?;
            if let Some(lacking) = text::lacking(plan, family.v6, &self.standing, family.apart, &saved) {
                return Err(Error::Lacking(lacking));
            }
        }
        Ok(())
    }

    fn update(&mut self, plan: &Plan, standing: &[Tuple]) -> Result<(), Error> {
        if self.standing.len() + standing.len() > MOST_STANDING {
            return Err(Error::TooManyStanding(MOST_STANDING));
        }
        self.standing.extend_from_slice(standing);
        self.names(plan) // all of the rules, too
    }

    fn names(&mut self, plan: &Plan) -> Result<(), Error> {
        for family in &self.families {
            self.replace(*family, plan)?;
        }
        Ok(())
    }

    fn release(&mut self, plan: &Plan) -> Result<(), Error> {
        let released = self.families.iter().map(|family| family.restore(&text::release(plan)));
        released.collect::<Result<(), _>>()
    }

    fn dropped(&mut self, plan: &Plan) -> Result<u64, Error> {
        let mut dropped = 0;
        for family in &self.families {
            dropped += text::dropped(plan.table(), &family.saved().map_err(Error::ReadBack)?);
        }
        Ok(dropped)
    }

    fn take_out(&mut self, plan: &Plan) -> Result<(), Error> {
        let taken: Vec<_> = self.families.iter().map(|family| family.take_out(plan.table())).collect();
        taken.into_iter().collect::<Result<(), _>>()?;
        self.record.remove().map_err(Error::Record)
    }

    fn end(self: Box<Self>) -> Result<(), Error> {
        self.record.remove().map_err(Error::Record)
    }

    fn datagram_seconds(&self) -> Option<[u32; 2]> {
        None // iptables cannot set them
    }

    fn lost(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn mend_every(&self) -> Option<Duration> {
        Some(MEND_EVERY)
    }

    fn mend(&mut self, plan: &Plan) -> Result<Option<String>, Error> {
        let mut missing = Vec::new();
        for family in &self.families {
            let saved = family.saved().map_err(Error::ReadBack)?;
            if let Some(lacking) = text::lacking(plan, family.v6, &self.standing, family.apart, &saved) {
                self.replace(*family, plan)?;
                missing.push(lacking);
            }
        }
        Ok((!missing.is_empty()).then(|| missing.join(", ")))
    }
}
