//! The rules as text: a pure function of the plan and of the connections that stand. `fixtures/firewall/*.nft` shows whole examples.
//!
//! One command per line; [`Nft::run`](super::child::Nft::run) puts them on one line, which nft carries out as one
//! transaction. Three chains:
//!
//! * `capture` (nat, priority -110: before the -100 of Docker, kube-proxy and firewalld, the first chain that
//!   translates a connection wins) sends new connections to the listener. A nat chain sees only the first packet of
//!   a connection; conntrack translates the rest.
//! * `keep` (nat) translates nothing. Its one rule holds conntrack, and being a nat chain it holds the kernel's
//!   translation hooks: with them, connections go on being translated after `capture` was flushed. Without them, the
//!   resets of the last connections would arrive from 127.0.0.1 and the applications would hang.
//! * `guard` (filter, priority 0: after the translation) drops what is still addressed to the cluster although it left
//!   the nat chains. That is: packets that conntrack calls invalid, since they are never translated; packets of an entry
//!   made before the rules stood; new connections between the flush of `capture` and the end of the table. Such a
//!   packet would go to whoever has that address in the local network.
//!
//! The order inside `capture`: addresses of this machine are left alone, then the excludes, then the connections that
//! stood before (the sets `standing4` and `standing6`), then includes are redirected.
//! `guard` asks the same and lets two more pass: answers of connections that came in from an included
//! address (`ct direction reply`), and what somebody else translated (`ct status dnat`: a published container port).
//!
//! Where conntrack was not at work before, it takes the next packet of a standing connection for a new one: only the sets
//! tell. A SYN takes its connection out of them, since this machine sends none while that stands. So whoever uses the
//! source port again is redirected, and not one of its packets passes for the old connection's.

use std::fmt::Display;

use super::super::conntrack::Tuple;
use super::super::standing;
use crate::plan::{Plan, Ranges};

/// The chain that is flushed first at the stop.
pub(super) const CAPTURE: &str = "capture";
/// The chain that holds conntrack and the translation.
pub(super) const KEEP: &str = "keep";
/// The chain that drops what was not translated.
pub(super) const GUARD: &str = "guard";
/// The counter of packets that [`GUARD`] dropped.
pub(super) const DROPPED: &str = "untranslated";

/// Everything, in one transaction. `create`: a table of that name that is there already is an error, not ours.
pub(super) fn apply(plan: &Plan, standing: &[Tuple]) -> Vec<String> {
    let table = plan.table();
    let mut commands = vec![
        format!("create table inet {table} {{ flags owner; }}"),
        format!("add counter inet {table} {DROPPED}"),
        set(table, "include4", "ipv4_addr", &plan.include().v4),
        set(table, "include6", "ipv6_addr", &plan.include().v6),
        set(table, "exclude4", "ipv4_addr", &plan.exclude().v4),
        set(table, "exclude6", "ipv6_addr", &plan.exclude().v6),
        standing_set(table, "standing4", "ipv4_addr", standing.iter().filter(|tuple| tuple.dst.is_ipv4())),
        standing_set(table, "standing6", "ipv6_addr", standing.iter().filter(|tuple| tuple.dst.is_ipv6())),
    ];
    for (chain, kind, priority) in chains() {
        commands.push(format!(
            "add chain inet {table} {chain} {{ type {kind} hook output priority {priority}; policy accept; }}"
        ));
        commands.extend(
            rules(plan, chain).into_iter().map(|rule| format!("add rule inet {table} {chain} {rule}")),
        );
    }
    commands
}

/// New connections are not redirected any more; those that are stay translated.
pub(super) fn flush(table: &str) -> String {
    format!("flush chain inet {table} {CAPTURE}")
}

/// The end of the table.
pub(super) fn delete(table: &str) -> String {
    format!("delete table inet {table}")
}

/// Name, type and priority of the chains; all hang in `output`: connections of this machine, not of its containers.
pub(super) fn chains() -> [(&'static str, &'static str, i32); 3] {
    [(CAPTURE, "nat", -110), (KEEP, "nat", -99), (GUARD, "filter", 0)]
}

/// The rules of one chain, in order.
pub(super) fn rules(plan: &Plan, chain: &str) -> Vec<String> {
    let left_alone =
        ["fib daddr type local return", "ip daddr @exclude4 return", "ip6 daddr @exclude6 return"];
    let mut rules: Vec<String> = match chain {
        CAPTURE => left_alone.map(String::from).to_vec(),
        KEEP => return vec!["ct state established counter".into()],
        _ => ["ct direction reply return", "ct status dnat return"]
            .into_iter()
            .chain(left_alone)
            .map(String::from)
            .collect(),
    };
    let verdict = |port: u16| match chain {
        CAPTURE => format!("counter redirect to :{port}"),
        _ => format!("counter name {DROPPED} drop"),
    };
    for (set, ip) in [("standing4", "ip"), ("standing6", "ip6")] {
        let tuple = format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport");
        rules.push(format!("tcp flags & (syn | ack) == syn delete @{set} {{ {tuple} }}"));
        rules.push(format!("{tuple} @{set} return"));
    }
    let Ranges { v4, v6 } = plan.include();
    if let (Some(port), false) = (plan.listener_v4(), v4.is_empty()) {
        rules.push(format!("ip daddr @include4 meta l4proto tcp {}", verdict(port)));
    }
    if let (Some(port), false) = (plan.listener_v6(), v6.is_empty()) {
        rules.push(format!("ip6 daddr @include6 meta l4proto tcp {}", verdict(port)));
    }
    rules
}

fn set(table: &str, name: &str, kind: &str, subnets: &[impl Display]) -> String {
    let elements = elements(subnets.iter().map(ToString::to_string));
    format!("add set inet {table} {name} {{ type {kind}; flags interval; auto-merge;{elements} }}")
}

/// Both ends of connections, as packets of this machine are addressed. `dynamic`: rules may delete from it.
fn standing_set<'a>(
    table: &str,
    name: &str,
    kind: &str,
    connections: impl Iterator<Item = &'a Tuple>,
) -> String {
    let elements =
        elements(connections.map(|Tuple { src, dst }| {
            format!("{} . {} . {} . {}", src.ip(), src.port(), dst.ip(), dst.port())
        }));
    let (kind, size) = (format!("{kind} . inet_service . {kind} . inet_service"), standing::MOST);
    format!("add set inet {table} {name} {{ type {kind}; flags dynamic; size {size};{elements} }}")
}

fn elements(elements: impl Iterator<Item = String>) -> String {
    let elements = elements.collect::<Vec<_>>().join(", ");
    if elements.is_empty() { elements } else { format!(" elements = {{ {elements} }};") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    fn text(include: &[&str], exclude: &[&str], listeners: [Option<u16>; 2], standing: &[Tuple]) -> String {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let plan = protocol::Plan {
            session: "golden".into(),
            include: nets(include),
            exclude: nets(exclude),
            listener_v4: listeners[0],
            listener_v6: listeners[1],
        };
        apply(&Plan::check(plan).unwrap(), standing).join("\n") + "\n"
    }

    #[test]
    fn both_families() {
        let tuple = |src: &str, dst: &str| Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() };
        let text = text(
            &["10.96.0.0/12", "10.244.0.0/16", "fd00:10:96::/112"],
            &["10.96.0.1/32", "192.0.2.10/32", "fd00:10:96::1/128"],
            [Some(40001), Some(40002)],
            &[
                tuple("198.51.100.2:22", "10.96.5.5:40000"),
                tuple("198.51.100.2:40001", "10.96.5.6:443"),
                tuple("[2001:db8:51::2]:22", "[fd00:10:96::5]:40002"),
            ],
        );
        assert_eq!(text, include_str!("../../../../fixtures/firewall/both-families.nft"));
    }

    #[test]
    fn only_ipv4() {
        let text = text(&["10.0.0.0/16"], &[], [Some(40001), Some(40002)], &[]);
        assert_eq!(text, include_str!("../../../../fixtures/firewall/only-ipv4.nft"));
    }

    #[test]
    fn the_end() {
        assert_eq!(flush("kshuttle_golden"), "flush chain inet kshuttle_golden capture");
        assert_eq!(delete("kshuttle_golden"), "delete table inet kshuttle_golden");
    }
}
