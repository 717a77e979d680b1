//! `pfctl`: the arguments of every call, and what its answers say.
//!
//! It writes remarks to standard error when all went well ("No ALTQ support in kernel", a warning about `-f`), so only its exit
//! code and what is read back count. Never without `-a` and an anchor of ours when something is loaded or flushed: that
//! would replace the rules of Internet Sharing and of virtual machines. Never `-e` or `-d`: they ignore who else needs pf.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::rules::{NETS, NOT, Rules};

/// The program.
pub const PROGRAM: &str = "/sbin/pfctl";

/// The name with which the system's own rules call those of `com.apple/*`, ours among them.
const PARENT: &str = "\"com.apple/*\"";

/// Why the rules would not be asked, or are not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// The main rules are not those of `/etc/pf.conf`.
    #[error(
        "pf's main rules lack `{0}`: some program has replaced them; `sudo pfctl -f /etc/pf.conf` brings Apple's own back"
    )]
    Parent(String),
    /// `set skip on lo0`.
    #[error("pf's rules say `set skip on lo0`, as some VPNs do: nothing can be redirected then")]
    Skipped,
    /// pf is switched off.
    #[error("pf is switched off")]
    Off,
    /// A rule is not there, or not in its place.
    #[error("the rules read back lack `{0}`")]
    Rule(String),
    /// There are more rules than ours.
    #[error("the rules read back have {there} instead of {wanted} of this kind: {kind}")]
    Count {
        /// `translation` or `filter`.
        kind: &'static str,
        /// How many there are.
        there: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A table has other addresses.
    #[error("the table {0} read back has other addresses")]
    Table(&'static str),
}

fn arguments(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(ToString::to_string).collect()
}

/// Replaces what is in the anchor by the text on standard input; all or nothing.
pub fn load(anchor: &str) -> Vec<String> {
    arguments(&["-a", anchor, "-f", "-"])
}

/// Only looks whether the text on standard input could be loaded. Needs no rights.
pub fn check(anchor: &str) -> Vec<String> {
    arguments(&["-n", "-a", anchor, "-f", "-"])
}

/// The translating rules of an anchor, or the main ones.
pub fn translation(anchor: Option<&str>) -> Vec<String> {
    listing(anchor, "-sn")
}

/// The filtering rules of an anchor, or the main ones.
pub fn filter(anchor: Option<&str>) -> Vec<String> {
    listing(anchor, "-sr")
}

fn listing(anchor: Option<&str>, what: &str) -> Vec<String> {
    let anchor = anchor.iter().flat_map(|anchor| ["-a", anchor]);
    arguments(&anchor.chain([what]).collect::<Vec<_>>())
}

/// The addresses of a table of the anchor.
pub fn table(anchor: &str, table: &str) -> Vec<String> {
    arguments(&["-a", anchor, "-t", table, "-T", "show"])
}

/// The flags of lo0.
pub fn interface() -> Vec<String> {
    arguments(&["-s", "Interfaces", "-i", "lo0", "-v"])
}

/// Whether pf is on, and what it counted.
pub fn info() -> Vec<String> {
    arguments(&["-s", "info"])
}

/// Switches pf on for as long as somebody needs it; the answer has our [`token`].
pub fn enable() -> Vec<String> {
    arguments(&["-E"])
}

/// We do not need pf any more. The last who says so switches it off.
pub fn release(token: u64) -> Vec<String> {
    arguments(&["-X", &token.to_string()])
}

/// Everything out of the anchor: rules and tables. Connections stay translated.
pub fn flush(anchor: &str) -> Vec<String> {
    arguments(&["-a", anchor, "-F", "all"])
}

/// Ends the translation of connections to this subnet, from wherever.
pub fn kill_states(net: &Ipv4Net) -> Vec<String> {
    arguments(&["-k", "0.0.0.0/0", "-k", &net.to_string()])
}

/// The token in what [`enable`] wrote to standard error: `Token : 18446743522225391696`.
pub fn token(complaint: &str) -> Option<u64> {
    complaint.lines().find_map(|line| {
        let (name, number) = line.split_once(':')?;
        (name.trim() == "Token").then(|| number.trim().parse().ok())?
    })
}

/// Whether connections reach an anchor below `com.apple`: the main rules of both kinds must call it.
///
/// # Errors
/// The rule that is missing.
pub fn parents(translation: &str, filter: &str) -> Result<(), Lacking> {
    for (listing, kind) in [(translation, "rdr-anchor"), (filter, "anchor")] {
        let calls = |line: &str| line.split_whitespace().take(2).eq([kind, PARENT]);
        if !listing.lines().any(calls) {
            return Err(Lacking::Parent(format!("{kind} {PARENT}")));
        }
    }
    Ok(())
}

/// Whether packets on lo0 are looked at, from what [`interface`] printed.
///
/// # Errors
/// When they are not.
pub fn not_skipped(listing: &str) -> Result<(), Lacking> {
    let skipped = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("lo0") && words.any(|word| word.trim_matches(['(', ')', ',']) == "skip")
    };
    if listing.lines().any(skipped) { Err(Lacking::Skipped) } else { Ok(()) }
}

/// Whether pf is on, from what [`info`] printed.
///
/// # Errors
/// When it is not.
pub fn is_on(info: &str) -> Result<(), Lacking> {
    let on = |line: &str| line.split_whitespace().take(2).eq(["Status:", "Enabled"]);
    if info.lines().any(on) { Ok(()) } else { Err(Lacking::Off) }
}

/// Proof that the rules of both kinds stand in the anchor, and nothing else.
///
/// pfctl does not print a rule as it was written: it adds (`flags S/SA`) and calls ports by their names. So all words
/// up to a filter's port must be there, in this order.
///
/// # Errors
/// What is missing.
pub fn rules_stand(rules: &Rules, translation: &str, filter: &str) -> Result<(), Lacking> {
    for (kind, wanted, listing) in
        [("translation", &rules.translation, translation), ("filter", &rules.filter, filter)]
    {
        let there: Vec<&str> = listing.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        for (rule, line) in wanted.iter().zip(there.iter().map(Some).chain(std::iter::repeat(None))) {
            let mut there = line.into_iter().flat_map(|line| line.split_whitespace());
            let is_filter = kind == "filter";
            let mut words = rule.split_whitespace().take_while(|word| !is_filter || *word != "port");
            if !words.all(|word| there.any(|other| other == word)) {
                return Err(Lacking::Rule(rule.clone()));
            }
        }
        if there.len() != wanted.len() {
            return Err(Lacking::Count { kind, there: there.len(), wanted: wanted.len() });
        }
    }
    Ok(())
}

/// Proof that the tables have the addresses that were written; `show` asks for what [`table`] prints.
///
/// # Errors
/// What `show` says, and which table differs.
pub fn tables_stand<E: From<Lacking>>(
    rules: &Rules,
    mut show: impl FnMut(&'static str) -> Result<String, E>,
) -> Result<(), E> {
    for (name, wanted) in [(NETS, &rules.nets), (NOT, &rules.not)] {
        if wanted.is_empty() {
            continue;
        }
        // A whole address is printed without its length.
        let net = |line: &str| line.parse().ok().or_else(|| line.parse::<Ipv4Addr>().ok().map(Ipv4Net::from));
        let listing = show(name)?;
        let there: Option<Vec<Ipv4Net>> = listing.lines().map(|line| net(line.trim())).collect();
        let mut there = there.unwrap_or_default();
        there.sort_unstable();
        if there != *wanted {
            return Err(Lacking::Table(name).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
