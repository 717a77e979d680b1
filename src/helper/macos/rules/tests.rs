use proptest::prelude::*;
use serde::Serialize;

use super::*;
use crate::plan;

/// As the user side would say it.
pub(in crate::macos) fn plan<N: Serialize>(
    include: &[N],
    exclude: &[N],
    port: u16,
) -> Result<Plan, plan::Error> {
    let said = serde_json::json!({
        "session": "golden-1", "include": include, "exclude": exclude, "listener_v4": port, "listener_v6": 40002
    });
    Plan::check(serde_json::from_value(said).unwrap())
}

#[test]
fn one_range() {
    let rules = Rules::new(&plan(&["10.0.0.0/16"], &[], 40001).unwrap(), &[]).unwrap();
    assert_eq!(rules.anchor, "com.apple/kshuttle.golden-1");
    assert_eq!(rules.text(), include_str!("../../../../fixtures/firewall/one-range.pf"));
}

#[test]
fn excludes_and_own_addresses() {
    let plan = plan(
        &["10.96.0.0/12", "10.244.0.0/16", "192.168.5.0/24"],
        &["10.96.0.1/32", "10.244.128.0/17", "192.0.2.10/32", "192.168.0.0/16", "fd00::/8"],
        40001,
    )
    .unwrap();
    let local = ["127.0.0.1", "10.244.7.7", "198.51.100.3"].map(|text| text.parse().unwrap());
    let rules = Rules::new(&plan, &local).unwrap();
    assert_eq!(rules.text(), include_str!("../../../../fixtures/firewall/excludes-and-own-addresses.pf"));
}

#[test]
fn what_pf_cannot_do_is_refused() {
    let subnet = "fd00::/8".parse().unwrap();
    assert_eq!(
        Rules::new(&plan(&["10.0.0.0/8", "fd00::/8"], &[], 1).unwrap(), &[]),
        Err(Refused::Ipv6(subnet))
    );
    assert_eq!(Rules::new(&plan(&["10.1.0.0/16"], &["10.0.0.0/8"], 1).unwrap(), &[]), Err(Refused::Nothing));
}

proptest! {
    /// pf's own order, and what must hold for every rule whatever the plan is.
    #[test]
    fn every_text_is_in_order_and_scoped(
        include in proptest::collection::vec((any::<u32>(), 1_u8..=32), 1..8),
        exclude in proptest::collection::vec((any::<u32>(), 1_u8..=32), 0..8),
        local in proptest::collection::vec(any::<u32>(), 0..4),
        port in 1_u16..,
    ) {
        let texts = |nets: &[(u32, u8)]| -> Vec<String> {
            nets.iter().map(|(ip, length)| format!("{}/{length}", Ipv4Addr::from(*ip))).collect()
        };
        // Loopback and multicast are refused before.
        let Ok(plan) = self::plan(&texts(&include), &texts(&exclude), port) else { return Ok(()) };
        let local: Vec<Ipv4Addr> = local.into_iter().map(Ipv4Addr::from).collect();
        let Ok(rules) = Rules::new(&plan, &local) else { return Ok(()) };
        let text = rules.text();
        let section = |line: &str| match line.split(' ').next().unwrap() {
            "table" => 0,
            "no" | "rdr" => 1,
            "pass" => 2,
            other => panic!("{other}"),
        };
        let sections: Vec<_> = text.lines().map(section).collect();
        prop_assert!(sections.is_sorted(), "{text}");
        for line in text.lines().filter(|line| section(line) > 0) {
            let scoped = [format!(" to <{NETS}>"), format!(" to <{NOT}>"), format!(" to 127.0.0.1 port {port} ")];
            prop_assert!(scoped.iter().any(|to| line.contains(to)), "{line}");
            prop_assert!(line.contains(" inet proto tcp "), "{line}");
            prop_assert!(section(line) == 1 || line.contains(" quick "), "{line}");
        }
        // `no rdr` must be asked before `rdr`, and leaving alone before turning round.
        prop_assert_eq!(text.contains("no rdr"), !rules.not.is_empty());
        for address in include.iter().chain(&exclude).map(|(ip, _)| Ipv4Addr::from(*ip)).chain(local.clone()) {
            let wanted = plan.include().contains(address.into())
                && !plan.exclude().contains(address.into())
                && !local.contains(&address);
            let is_in = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
            prop_assert_eq!(wanted, is_in(&rules.nets) && !is_in(&rules.not), "{}", address);
        }
    }
}
