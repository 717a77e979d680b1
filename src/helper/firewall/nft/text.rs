//! The rules as text: a pure function of the plan and of the connections that stand. `fixtures/firewall/*.nft` shows whole examples.
//!
//! One command per line; [`Nft::run`](super::child::Nft::run) puts them on one line, which nft carries out as one
//! transaction. Four chains (two more, and one for datagrams, where the plan asks for them):
//!
//! * `capture` (nat, priority -110 or less: before the -100 of Docker, kube-proxy and firewalld, the first chain that
//!   translates a connection wins, and each session before those of lower [rank](Plan::rank)) sends new connections to the
//!   listener. A nat chain sees only the first packet of a connection; conntrack translates the rest.
//! * `keep` (nat) translates nothing. Its one rule holds conntrack, and being a nat chain it holds the kernel's
//!   translation hooks: with them, connections go on being translated after `capture` was flushed. Without them, the
//!   resets of the last connections would arrive from 127.0.0.1 and the applications would hang.
//! * `guard` (filter, priority 0: after the translation) drops what is still addressed to the cluster although it left
//!   the nat chains. That is: packets that conntrack calls invalid, since they are never translated; packets of an entry
//!   made before the rules stood; new connections between the flush of `capture` and the end of the table. Such a
//!   packet would go to whoever has that address in the local network.
//!
//! * `apart` (filter, priority -300: before conntrack) gives our own queries to name servers entries of their own ([`names`]).
//! * `pin` (filter) sets conntrack's timeouts of redirected datagrams, so that the user side knows how long an entry lives
//!   whatever the system's own timeouts are ([`UNREPLIED`], [`REPLIED`]).
//! * `bridged` (nat) and `bridge_guard` (filter) do for what comes in through bridges what `capture` and `guard` do for what
//!   this machine sends. Established connections pass the latter: they are from before, conntrack knew them.
//!
//! The order inside `capture`: name servers ([`names`]), which may be on this machine; its addresses are left alone, then the
//! excludes, then connections that stood before (the sets `standing4` and `standing6`), then includes are redirected.
//! `guard` asks the same and lets two more pass: answers of connections that came in from an included
//! address (`ct direction reply`), and what somebody else translated (`ct status dnat`: a published container port).
//!
//! Where conntrack was not at work before, it takes the next packet of a standing connection for a new one: only the sets
//! tell. A SYN takes its connection out of them, since this machine sends none while that stands. So whoever uses the
//! source port again is redirected, and not one of its packets passes for the old connection's.

pub(in crate::firewall) mod names;

use std::fmt::Display;

use super::super::conntrack::Tuple;
use super::super::standing;
use crate::plan::Plan;
use crate::protocol::{Bridge, Who};

/// The chain that is flushed first at the stop.
const CAPTURE: &str = "capture";
/// The chain that holds conntrack and the translation.
const KEEP: &str = "keep";
/// The chain that drops what was not translated.
const GUARD: &str = "guard";
/// The chain that sets timeouts.
const PIN: &str = "pin";
/// The chain that keeps our own queries apart.
const APART: &str = "apart";
/// [`CAPTURE`] for bridges.
const BRIDGED: &str = "bridged";
/// [`GUARD`] for bridges.
const BRIDGE_GUARD: &str = "bridge_guard";
/// The counter of packets that the guards dropped.
pub(super) const DROPPED: &str = "untranslated";

/// Seconds that conntrack keeps datagrams without an answer; the user side is told, and forgets them before.
pub(super) const UNREPLIED: u32 = 65;
/// Seconds that conntrack keeps datagrams with answers: RFC 4787 §4.3 asks for two minutes at least.
pub(super) const REPLIED: u32 = 185;

/// Where a chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: &'static str,
    pub(super) priority: i32,
}

/// Everything, in one transaction. `create`: a table of that name that is there already is an error, not ours. Without
/// `pinned`, conntrack's timeouts stay the system's, and our own queries are not kept apart.
pub(in crate::firewall) fn apply(plan: &Plan, standing: &[Tuple], pinned: bool) -> Vec<String> {
    let table = plan.table();
    let mut commands = vec![
        format!("create table inet {table} {{ flags owner; }}"),
        format!("add counter inet {table} {DROPPED}"),
        set(table, "include4", "ipv4_addr", &plan.include().v4),
        set(table, "include6", "ipv6_addr", &plan.include().v6),
        set(table, "exclude4", "ipv4_addr", &plan.exclude().v4),
        set(table, "exclude6", "ipv6_addr", &plan.exclude().v6),
        standing_set(table, 4, standing),
        standing_set(table, 6, standing),
    ];
    commands.extend(names::maps(plan));
    if pinned {
        commands.push(format!(
            "add chain inet {table} {APART} {{ type filter hook output priority -300; policy accept; }}"
        ));
        commands.push(format!("add rule inet {table} {APART} {}", names::apart_rule(plan)));
    }
    if pinned && redirects_datagrams(plan) {
        commands.extend([("udp4", "ip"), ("udp6", "ip6")].map(|(name, family)| {
            format!(
                "add ct timeout inet {table} {name} {{ protocol udp; l3proto {family}; \
                 policy = {{ unreplied : {UNREPLIED}, replied : {REPLIED} }}; }}"
            )
        }));
        commands.push(format!(
            "add chain inet {table} {PIN} {{ type filter hook output priority -150; policy accept; }}"
        ));
        commands.extend([("ip", 4), ("ip6", 6)].map(|(ip, family)| {
            format!("add rule inet {table} {PIN} {ip} daddr @include{family} meta l4proto udp ct timeout set \"udp{family}\"")
        }));
    }
    for Chain { name, kind, hook, priority } in chains(plan) {
        commands.push(format!(
            "add chain inet {table} {name} {{ type {kind} hook {hook} priority {priority}; policy accept; }}"
        ));
        commands
            .extend(rules(plan, name).into_iter().map(|rule| format!("add rule inet {table} {name} {rule}")));
    }
    commands
}

/// The plan's ranges in place of those that stand; these connections, too, are left alone.
pub(in crate::firewall) fn update(plan: &Plan, standing: &[Tuple]) -> Vec<String> {
    let table = plan.table();
    let mut commands = Vec::new();
    let mut replace = |name: &str, elements: String| {
        commands.push(format!("flush set inet {table} {name}"));
        if !elements.is_empty() {
            commands.push(format!("add element inet {table} {name} {{ {elements} }}"));
        }
    };
    replace("include4", listed(&plan.include().v4));
    replace("include6", listed(&plan.include().v6));
    replace("exclude4", listed(&plan.exclude().v4));
    replace("exclude6", listed(&plan.exclude().v6));
    for family in [4, 6] {
        let elements = tuples(family, standing);
        if !elements.is_empty() {
            commands.push(format!("add element inet {table} standing{family} {{ {elements} }}"));
        }
    }
    commands
}

/// New connections are not redirected any more; those that are stay translated.
pub(in crate::firewall) fn flush(plan: &Plan) -> Vec<String> {
    let chains = chains(plan).into_iter().filter(|chain| [CAPTURE, BRIDGED].contains(&chain.name));
    chains.map(|chain| format!("flush chain inet {} {}", plan.table(), chain.name)).collect()
}

/// The end of the table.
pub(in crate::firewall) fn delete(table: &str) -> String {
    format!("delete table inet {table}")
}

/// The chains of this plan, without [`APART`] and [`PIN`].
pub(super) fn chains(plan: &Plan) -> Vec<Chain> {
    let mut chains = vec![
        Chain { name: CAPTURE, kind: "nat", hook: "output", priority: -110 - plan.rank() },
        Chain { name: KEEP, kind: "nat", hook: "output", priority: -99 },
        Chain { name: GUARD, kind: "filter", hook: "output", priority: 0 },
    ];
    if !plan.bridges().is_empty() {
        chains.push(Chain { name: BRIDGED, kind: "nat", hook: "prerouting", priority: -110 });
        chains.push(Chain { name: BRIDGE_GUARD, kind: "filter", hook: "forward", priority: 0 });
    }
    chains
}

/// The rules of one chain, in order.
pub(super) fn rules(plan: &Plan, chain: &str) -> Vec<String> {
    let mut rules: Vec<String> = match chain {
        KEEP => return vec!["ct state established counter".into()],
        GUARD => vec!["ct direction reply return".into(), "ct status dnat return".into()],
        BRIDGE_GUARD => vec![
            "ct direction reply return".into(),
            "ct status dnat return".into(),
            "ct state established return".into(),
        ],
        _ => vec![],
    };
    match chain {
        CAPTURE => rules.extend(names::rules(plan)),
        GUARD => rules.extend(names::guard_rules(plan)),
        _ => {}
    }
    rules.extend(left_alone(plan));
    match chain {
        CAPTURE | GUARD => {
            rules.extend(standing_rules());
            rules.extend(own(plan, chain == CAPTURE));
        }
        _ => rules.extend(plan.bridges().iter().flat_map(|bridge| of_bridge(bridge, chain == BRIDGED))),
    }
    rules
}

fn redirects_datagrams(plan: &Plan) -> bool {
    [false, true].iter().any(|v6| plan.listeners(*v6).datagrams.is_some())
}

/// What no plan means, and what this one excludes.
fn left_alone(plan: &Plan) -> Vec<String> {
    let mut rules = vec![
        "fib daddr type { local, broadcast, multicast } return".to_owned(),
        "ip daddr 169.254.0.0/16 return".to_owned(),
        "ip6 daddr fe80::/10 return".to_owned(),
        "ip daddr @exclude4 return".to_owned(),
        "ip6 daddr @exclude6 return".to_owned(),
    ];
    for (ip, v6) in [("ip", false), ("ip6", true)] {
        let hosts = plan.exclude_ports().iter().filter(|host| host.is_ipv6() == v6);
        let hosts = hosts.map(|host| format!("{} . {}", host.ip(), host.port())).collect::<Vec<_>>();
        if !hosts.is_empty() {
            rules.push(format!(
                "meta l4proto {{ tcp, udp }} {ip} daddr . th dport {{ {} }} return",
                hosts.join(", ")
            ));
        }
    }
    rules
}

fn standing_rules() -> Vec<String> {
    let mut rules = Vec::new();
    for (set, ip) in [("standing4", "ip"), ("standing6", "ip6")] {
        let tuple = format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport");
        rules.push(format!("tcp flags & (syn | ack) == syn delete @{set} {{ {tuple} }}"));
        rules.push(format!("{tuple} @{set} return"));
    }
    rules
}

/// For what this machine sends: to the listeners, or, where that should have happened already, nowhere.
fn own(plan: &Plan, capture: bool) -> Vec<String> {
    let mut rules = Vec::new();
    for who in who(plan) {
        for (to, v6) in [("ip daddr @include4", false), ("ip6 daddr @include6", true)] {
            let listeners = plan.listeners(v6);
            if capture {
                for (protocol, port) in [("tcp", listeners.connections), ("udp", listeners.datagrams)] {
                    let rule =
                        |port| format!("{who}{to} meta l4proto {protocol} counter redirect to :{port}");
                    rules.extend(port.map(rule));
                }
            } else if listeners.connections.is_some() {
                let protocols = protocols(listeners.datagrams);
                rules.push(format!("{who}{to} meta l4proto {protocols} counter name {DROPPED} drop"));
            }
        }
    }
    rules
}

fn of_bridge(bridge: &Bridge, capture: bool) -> Vec<String> {
    let Bridge { name, subnet, listener, datagrams, .. } = bridge;
    let (ip, family) = if subnet.addr().is_ipv4() { ("ip", 4) } else { ("ip6", 6) };
    let from = format!("iifname \"{name}\" {ip} saddr {subnet} {ip} daddr @include{family}");
    if !capture {
        return vec![format!("{from} meta l4proto {} counter name {DROPPED} drop", protocols(*datagrams))];
    }
    let mut rules = vec![format!("{from} meta l4proto tcp counter redirect to :{listener}")];
    rules.extend(datagrams.map(|port| format!("{from} meta l4proto udp counter redirect to :{port}")));
    rules
}

fn protocols(datagrams: Option<u16>) -> &'static str {
    if datagrams.is_some() { "{ tcp, udp }" } else { "tcp" }
}

/// Whose packets: one condition, or one for each control group; each with a space at the end, or empty. Packets that no
/// process sent meet none that is not empty.
fn who(plan: &Plan) -> Vec<String> {
    let list = |ids: &[u32]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let Who { users, groups, cgroups } = plan.who();
    let mut ids = String::new();
    for (field, wanted) in [("skuid", users), ("skgid", groups)] {
        if !wanted.is_empty() {
            ids += &format!("meta {field} {{ {} }} ", list(wanted));
        }
    }
    if cgroups.is_empty() {
        return vec![ids];
    }
    let level = |path: &str| path.split('/').count();
    cgroups.iter().map(|path| format!("{ids}socket cgroupv2 level {} \"{path}\" ", level(path))).collect()
}

fn set(table: &str, name: &str, kind: &str, subnets: &[impl Display]) -> String {
    let elements = listed(subnets);
    let elements = if elements.is_empty() { elements } else { format!(" elements = {{ {elements} }};") };
    format!("add set inet {table} {name} {{ type {kind}; flags interval; auto-merge;{elements} }}")
}

/// Both ends of connections, as packets of this machine are addressed. `dynamic`: rules may delete from it.
fn standing_set(table: &str, family: u8, standing: &[Tuple]) -> String {
    let elements = tuples(family, standing);
    let elements = if elements.is_empty() { elements } else { format!(" elements = {{ {elements} }};") };
    let (kind, size) =
        (format!("ipv{family}_addr . inet_service . ipv{family}_addr . inet_service"), standing::MOST);
    format!("add set inet {table} standing{family} {{ type {kind}; flags dynamic; size {size};{elements} }}")
}

fn tuples(family: u8, standing: &[Tuple]) -> String {
    let of_family = standing.iter().filter(|tuple| tuple.dst.is_ipv4() == (family == 4));
    let text =
        |Tuple { src, dst }: &Tuple| format!("{} . {} . {} . {}", src.ip(), src.port(), dst.ip(), dst.port());
    of_family.map(text).collect::<Vec<_>>().join(", ")
}

fn listed(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
