//! The rules as `iptables-restore` reads them: pure functions of the plan, the connections that stand, and what
//! `iptables-save` shows. `fixtures/firewall/*.iptables` shows whole examples.
//!
//! What each chain is for stands in [`super::super::nft::text`]; here they are:
//!
//! | chain | table | hangs in | does |
//! |---|---|---|---|
//! | `kshuttle_N` | nat | OUTPUT, first | redirects queries to name servers; what is left alone returns; the rest goes to `kshuttle_NI`, if it is whose it should be |
//! | `kshuttle_NI` | nat | | redirects included ranges |
//! | `kshuttle_NB` | nat | PREROUTING, first | redirects what comes in through bridges |
//! | the same three | filter | OUTPUT, FORWARD, first | the guard: drops what nat should have redirected |
//! | `kshuttle_N` | raw | OUTPUT, first | keeps our own queries to name servers apart, where the kernel can |
//!
//! A connection that stood before is one rule for its packets that are no SYN. `nat` is asked for the first packet of
//! a connection only; the filter's rule holds conntrack while `nat` is being emptied.

use std::fmt::Write as _;

use super::super::conntrack::Tuple;
use crate::plan::Plan;
use crate::protocol::{NameServer, Who};

/// The tables, in the order in which they are written.
const TABLES: [&str; 3] = [RAW, "nat", "filter"];

/// The one that is asked before conntrack. Not every kernel has it, with `xt_CT` to do something there.
const RAW: &str = "raw";

/// What every name of ours begins with.
const PREFIX: &str = "kshuttle_";

/// What is appended to a name for its chains: capitals, which no session has in its name.
const SUFFIXES: [&str; 3] = ["", "B", "I"];

/// All of it, in place of what `saved` shows of it. Without `apart`, our own queries are not kept apart.
pub(in crate::firewall) fn apply(
    plan: &Plan,
    v6: bool,
    standing: &[Tuple],
    apart: bool,
    saved: &str,
) -> String {
    let mut text = String::new();
    for table in tables(apart) {
        let _ = writeln!(text, "*{table}");
        // Declaring a chain empties it.
        for suffix in suffixes(table) {
            let _ = writeln!(text, ":{}{suffix} - [0:0]", plan.table());
        }
        for rule in rules(plan, v6, table, standing) {
            let _ = writeln!(text, "-A {rule}");
        }
        for jump in jumps(plan, table) {
            // Where it is already, it goes first: somebody may have put theirs before it.
            if has_rule(saved, table, &jump) {
                let _ = writeln!(text, "-D {jump}");
            }
            let (chain, rest) = jump.split_once(' ').unwrap_or_default();
            let _ = writeln!(text, "-I {chain} 1 {rest}");
        }
        text += "COMMIT\n";
    }
    text
}

/// New connections are not redirected any more; those that are stay translated.
pub(in crate::firewall) fn release(plan: &Plan) -> String {
    let mut text = "*nat\n".to_owned();
    for suffix in ["", "B"] {
        let _ = writeln!(text, ":{}{suffix} - [0:0]", plan.table());
    }
    text + "COMMIT\n"
}

/// Takes out what `saved` shows of this name; empty if that is nothing.
pub(super) fn removal(saved: &str, name: &str) -> String {
    let mut text = String::new();
    for table in TABLES {
        let lines = of_table(saved, table);
        let chains: Vec<String> = suffixes(table).iter().map(|suffix| format!("{name}{suffix}")).collect();
        let there = |chain: &&String| lines.iter().any(|line| line.starts_with(&format!(":{chain} ")));
        let jumps = lines.iter().filter_map(|line| rule_of(line)).filter(|rule| {
            let target = rule.rsplit_once("-j ").map(|(_, target)| target);
            let own = chains.iter().any(|chain| rule.starts_with(&format!("{chain} ")));
            !own && chains.iter().any(|chain| target == Some(chain))
        });
        let mut commands: Vec<String> = jumps.map(|jump| format!("-D {jump}")).collect();
        let present: Vec<&String> = chains.iter().filter(there).collect();
        commands.extend(present.iter().map(|chain| format!("-F {chain}")));
        commands.extend(present.iter().map(|chain| format!("-X {chain}")));
        if !commands.is_empty() {
            let _ = writeln!(text, "*{table}\n{}\nCOMMIT", commands.join("\n"));
        }
    }
    text
}

/// The names of which `saved` shows chains.
pub(super) fn names(saved: &str) -> Vec<String> {
    let name = |line: &str| {
        let chain = line.strip_prefix(':')?.split(' ').next()?;
        let name = chain.trim_end_matches(|letter: char| letter.is_ascii_uppercase());
        (name.len() > PREFIX.len() && name.starts_with(PREFIX)).then(|| name.to_owned())
    };
    let mut names: Vec<String> = saved.lines().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// What of it `saved` does not show, for people.
pub(super) fn lacking(plan: &Plan, v6: bool, standing: &[Tuple], apart: bool, saved: &str) -> Option<String> {
    for table in tables(apart) {
        let lines = of_table(saved, table);
        if let Some(jump) = jumps(plan, table).into_iter().find(|jump| !has_rule(saved, table, jump)) {
            return Some(format!("{table}: {jump}"));
        }
        let ours = |line: &&&str| rule_of(line).is_some_and(|rule| rule.starts_with(plan.table()));
        let (there, wanted) = (lines.iter().filter(ours).count(), rules(plan, v6, table, standing).len());
        if there != wanted {
            return Some(format!("{table}: rules in {}: {there} instead of {wanted}", plan.table()));
        }
    }
    None
}

/// Packets that the guard of this name dropped.
pub(super) fn dropped(name: &str, saved: &str) -> u64 {
    let packets = |line: &&str| {
        let rule = rule_of(line)?;
        if !rule.starts_with(name) || !rule.ends_with("-j DROP") {
            return None;
        }
        line.strip_prefix('[')?.split_once(':')?.0.parse::<u64>().ok()
    };
    of_table(saved, "filter").iter().filter_map(packets).sum()
}

fn tables(apart: bool) -> impl Iterator<Item = &'static str> {
    TABLES.into_iter().filter(move |table| apart || *table != RAW)
}

fn suffixes(table: &str) -> &'static [&'static str] {
    if table == RAW { &SUFFIXES[..1] } else { &SUFFIXES }
}

/// The rules that lead to our chains, each with the chain of the system first.
fn jumps(plan: &Plan, table: &str) -> Vec<String> {
    let name = plan.table();
    let mut jumps = vec![format!("OUTPUT -j {name}")];
    if !plan.bridges().is_empty() && table != RAW {
        let hook = if table == "nat" { "PREROUTING" } else { "FORWARD" };
        jumps.push(format!("{hook} -j {name}B"));
    }
    jumps
}

/// The rules of our chains in this table, each with its chain first.
fn rules(plan: &Plan, v6: bool, table: &str, standing: &[Tuple]) -> Vec<String> {
    let name = plan.table();
    if table == RAW {
        let zone = plan.zone();
        let apart = |protocol: &str| {
            let exempt = exempt(plan.own_group(), protocol);
            format!("{name} {exempt} -j CT --zone-orig {zone}")
        };
        return ["tcp", "udp"].map(apart).into();
    }
    let nat = table == "nat";
    let left_alone = left_alone(plan, v6);
    let mut own = Vec::new();
    let mut bridged = Vec::new();
    if !nat {
        for rules in [&mut own, &mut bridged] {
            rules.push("-m conntrack --ctdir REPLY -j RETURN".to_owned());
            rules.push("-m conntrack --ctstate DNAT -j RETURN".to_owned());
        }
        bridged.push("-m conntrack --ctstate ESTABLISHED -j RETURN".to_owned());
    }
    own.extend(name_rules(plan, v6, nat));
    own.extend(left_alone.iter().cloned());
    bridged.extend(left_alone);
    own.extend(standing.iter().filter(|tuple| tuple.dst.is_ipv6() == v6).map(|Tuple { src, dst }| {
        format!(
            "-s {} -d {} -p tcp -m tcp --sport {} --dport {} ! --tcp-flags SYN,ACK SYN -j RETURN",
            src.ip(),
            dst.ip(),
            src.port(),
            dst.port()
        )
    }));
    own.extend(who(plan).into_iter().map(|who| format!("{who}-j {name}I")));
    let listeners = plan.listeners(v6);
    let included = included(plan, v6);
    let mut redirected = Vec::new();
    if let Some(port) = listeners.connections {
        redirected.extend(verdicts("", &included, nat, port, listeners.datagrams));
    }
    for bridge in plan.bridges().iter().filter(|bridge| bridge.subnet.addr().is_ipv6() == v6) {
        let from = format!("-s {} -i {} ", bridge.subnet, bridge.name);
        bridged.extend(verdicts(&from, &included, nat, bridge.listener, bridge.datagrams));
    }
    let chains = [(own, ""), (redirected, "I"), (bridged, "B")];
    let in_chain = |(rules, suffix): (Vec<String>, &'static str)| {
        rules.into_iter().map(move |rule| format!("{name}{suffix} {rule}"))
    };
    let wanted = chains.into_iter().filter(|(_, suffix)| *suffix != "B" || !plan.bridges().is_empty());
    wanted.flat_map(in_chain).collect()
}

/// Queries to name servers, our own left alone. What each rule is for stands beside nft's.
fn name_rules(plan: &Plan, v6: bool, nat: bool) -> Vec<String> {
    let let_past =
        |group: &u32| ["tcp", "udp"].map(|protocol| format!("{} -j RETURN", exempt(*group, protocol)));
    let mut rules: Vec<String> = plan.exempt().iter().flat_map(let_past).collect();
    if !nat {
        rules.push("-p tcp -m tcp --dport 53 -m conntrack --ctstate ESTABLISHED -j RETURN".to_owned());
        return rules;
    }
    for NameServer { address, port } in plan.name_servers().iter().filter(|one| one.address.is_ipv6() == v6) {
        for queries in ["tcp -m tcp --dport 53 --tcp-flags SYN,ACK SYN", "udp -m udp --dport 53"] {
            rules.push(format!("-d {address} -p {queries} -j REDIRECT --to-ports {port}"));
        }
    }
    rules
}

/// Queries by sockets of this group.
fn exempt(group: u32, protocol: &str) -> String {
    format!("-p {protocol} -m {protocol} --dport 53 -m owner --gid-owner {group}")
}

fn included(plan: &Plan, v6: bool) -> Vec<String> {
    let ranges = plan.include();
    if v6 { texts(&ranges.v6) } else { texts(&ranges.v4) }
}

fn texts(items: &[impl ToString]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// To the listener; in the guard, nowhere.
fn verdicts(from: &str, to: &[String], nat: bool, tcp: u16, udp: Option<u16>) -> Vec<String> {
    let protocols = [("tcp", Some(tcp)), ("udp", udp)];
    let rule = |(net, (protocol, port)): (&String, (&str, Option<u16>))| {
        let verdict =
            if nat { format!("REDIRECT --to-ports {}", port?) } else { port.map(|_| "DROP".to_owned())? };
        Some(format!("{from}-d {net} -p {protocol} -j {verdict}"))
    };
    to.iter().flat_map(|net| protocols.map(|protocol| (net, protocol))).filter_map(rule).collect()
}

/// What no plan means, and what this one excludes.
fn left_alone(plan: &Plan, v6: bool) -> Vec<String> {
    let kinds: &[&str] = if v6 { &["LOCAL", "MULTICAST"] } else { &["LOCAL", "BROADCAST", "MULTICAST"] };
    let mut rules: Vec<String> =
        kinds.iter().map(|kind| format!("-m addrtype --dst-type {kind} -j RETURN")).collect();
    let link_local = if v6 { "fe80::/10" } else { "169.254.0.0/16" };
    let ranges = plan.exclude();
    let excluded = if v6 { texts(&ranges.v6) } else { texts(&ranges.v4) };
    rules.extend(
        std::iter::once(link_local.to_owned()).chain(excluded).map(|net| format!("-d {net} -j RETURN")),
    );
    for host in plan.exclude_ports().iter().filter(|host| host.is_ipv6() == v6) {
        for protocol in ["tcp", "udp"] {
            let (ip, port) = (host.ip(), host.port());
            rules.push(format!("-d {ip} -p {protocol} -m {protocol} --dport {port} -j RETURN"));
        }
    }
    rules
}

/// Whose packets: a condition for each combination, with a space at the end, or one that is empty.
fn who(plan: &Plan) -> Vec<String> {
    let Who { users, groups, cgroups } = plan.who();
    let mut conditions = vec![String::new()];
    let mut and = |more: Vec<String>| {
        if !more.is_empty() {
            conditions = conditions
                .iter()
                .flat_map(|one| more.iter().map(move |more| format!("{one}{more} ")))
                .collect();
        }
    };
    and(users.iter().map(|id| format!("-m owner --uid-owner {id}")).collect());
    and(groups.iter().map(|id| format!("-m owner --gid-owner {id}")).collect());
    and(cgroups.iter().map(|path| format!("-m cgroup --path \"{path}\"")).collect());
    conditions
}

/// The lines of a table.
fn of_table<'a>(saved: &'a str, table: &str) -> Vec<&'a str> {
    let head = format!("*{table}");
    saved.lines().skip_while(|line| *line != head).skip(1).take_while(|line| !line.starts_with('*')).collect()
}

/// `[1:60] -A CHAIN …`, or without the counters.
fn rule_of(line: &str) -> Option<&str> {
    let line = match line.strip_prefix('[') {
        Some(rest) => rest.split_once("] ")?.1,
        None => line,
    };
    line.strip_prefix("-A ")
}

fn has_rule(saved: &str, table: &str, rule: &str) -> bool {
    of_table(saved, table).iter().any(|line| rule_of(line) == Some(rule))
}

#[cfg(test)]
mod tests;
