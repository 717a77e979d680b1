//! Name servers: two maps from an address to the port of who answers instead, and the rules that ask them.

use crate::plan::Plan;
use crate::protocol::NameServer;

/// The maps, with what is in them.
pub(super) fn maps(plan: &Plan) -> Vec<String> {
    let map = |family: u8| {
        let elements = elements(plan, family);
        let elements = if elements.is_empty() { elements } else { format!(" elements = {{ {elements} }};") };
        let table = plan.table();
        format!("add map inet {table} dns{family} {{ type ipv{family}_addr : inet_service;{elements} }}")
    };
    [4, 6].map(map).into()
}

/// The plan's name servers in place of those that stand.
pub(in crate::firewall) fn replace(plan: &Plan) -> Vec<String> {
    let table = plan.table();
    let mut commands = Vec::new();
    for family in [4, 6] {
        commands.push(format!("flush map inet {table} dns{family}"));
        let elements = elements(plan, family);
        if !elements.is_empty() {
            commands.push(format!("add element inet {table} dns{family} {{ {elements} }}"));
        }
    }
    commands
}

/// Queries to name servers; an address that is not in the map leaves its rule. Of TCP only what begins: a connection that
/// stood before goes on, also where conntrack takes its next packet for a new one.
pub(super) fn rules(plan: &Plan) -> Vec<String> {
    let mut rules = vec![exempt_rule(plan)];
    for (ip, family) in [("ip", 4), ("ip6", 6)] {
        for protocol in ["udp dport 53", "tcp dport 53 tcp flags & (syn | ack) == syn"] {
            rules.push(format!(
                "meta nfproto ipv{family} {protocol} redirect to :{ip} daddr map @dns{family}"
            ));
        }
    }
    rules
}

/// What was let past goes on. The last words of a TCP connection are sent for nobody: its socket was closed.
pub(super) fn guard_rules(plan: &Plan) -> Vec<String> {
    vec![exempt_rule(plan), "tcp dport 53 ct state established return".into()]
}

/// Our own queries to name servers, also to one in an included range, and those of sessions of lower rank.
fn exempt_rule(plan: &Plan) -> String {
    format!("{} return", exempt(plan.exempt()))
}

/// Entries outlive sockets, by 30 s and more, and only the first packet of one is asked for its translation. So a query of ours from
/// a port that a program has just used would be translated as that program's was, and come to us; and a program's from a port
/// of ours would go to the server. In a zone of their own the two never meet. Answers come in no zone, as everybody's, so only what
/// goes out has it.
pub(super) fn apart_rule(plan: &Plan) -> String {
    format!("{} ct original zone set {}", exempt(&[plan.own_group()]), plan.zone())
}

fn exempt(groups: &[u32]) -> String {
    let groups = groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("meta l4proto {{ tcp, udp }} th dport 53 meta skgid {{ {groups} }}")
}

fn elements(plan: &Plan, family: u8) -> String {
    let of_family = plan.name_servers().iter().filter(|server| server.address.is_ipv4() == (family == 4));
    let text = |NameServer { address, port }: &NameServer| format!("{address} : {port}");
    of_family.map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    #[test]
    fn other_name_servers() {
        let plan = protocol::Plan {
            session: "golden".into(),
            include: vec!["10.0.0.0/16".parse().unwrap()],
            listener_v4: Some(40001),
            ..protocol::Plan::default()
        };
        let server = |address: &str, port| NameServer { address: address.parse().unwrap(), port };
        let plan = Plan::check(plan).unwrap();
        let named = plan.with_names(&[server("198.51.100.53", 5301), server("127.0.0.53", 5302)]).unwrap();
        assert_eq!(
            replace(&named),
            [
                "flush map inet kshuttle_golden dns4",
                "add element inet kshuttle_golden dns4 { 127.0.0.53 : 5302, 198.51.100.53 : 5301 }",
                "flush map inet kshuttle_golden dns6",
            ]
        );
        let none = ["flush map inet kshuttle_golden dns4", "flush map inet kshuttle_golden dns6"];
        assert_eq!(replace(&named.with_names(&[]).unwrap()), none);
    }
}
