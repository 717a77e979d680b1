use proptest::prelude::*;

use super::*;
use crate::macos::rules;

const ANCHOR: &str = "com.apple/kshuttle.golden-1";

/// As pfctl's source prints rules (`pfctl_parser.c`); not captured on a Mac.
const TRANSLATION: &str = include_str!("../../../../fixtures/firewall/excludes.translation");
const FILTER: &str = include_str!("../../../../fixtures/firewall/excludes.filter");

fn rules() -> Rules {
    let plan = rules::tests::plan(&["10.96.0.0/12"], &["10.96.0.1/32"], 40001).unwrap();
    Rules::new(&plan, &[Ipv4Addr::LOCALHOST]).unwrap()
}

#[test]
fn every_call_is_as_written() {
    let net = "10.96.0.0/12".parse().unwrap();
    for (arguments, expected) in [
        (load(ANCHOR), "-a com.apple/kshuttle.golden-1 -f -"),
        (check(ANCHOR), "-n -a com.apple/kshuttle.golden-1 -f -"),
        (translation(None), "-sn"),
        (translation(Some(ANCHOR)), "-a com.apple/kshuttle.golden-1 -sn"),
        (filter(None), "-sr"),
        (filter(Some(ANCHOR)), "-a com.apple/kshuttle.golden-1 -sr"),
        (table(ANCHOR, NETS), "-a com.apple/kshuttle.golden-1 -t kshuttle_nets -T show"),
        (interface(), "-s Interfaces -i lo0 -v"),
        (info(), "-s info"),
        (enable(), "-E"),
        (release(18_446_743_522_225_391_696), "-X 18446743522225391696"),
        (flush(ANCHOR), "-a com.apple/kshuttle.golden-1 -F all"),
        (kill_states(&net), "-k 0.0.0.0/0 -k 10.96.0.0/12"),
    ] {
        assert_eq!(arguments.join(" "), expected);
    }
}

/// Who loads or flushes without an anchor takes away the rules of others.
#[test]
fn what_changes_rules_names_our_anchor() {
    for arguments in [load(ANCHOR), flush(ANCHOR)] {
        assert_eq!(arguments[..2], ["-a", ANCHOR]);
    }
}

#[test]
fn the_token_is_found_among_remarks() {
    let said = "No ALTQ support in kernel\nALTQ related functions disabled\npf enabled\nToken : 18446743522225391696\n";
    assert_eq!(token(said), Some(18_446_743_522_225_391_696));
    for said in ["", "pf enabled\n", "Token : x", "Token : -1", "Tokens : 5", "Token 5"] {
        assert_eq!(token(said), None, "{said}");
    }
}

#[test]
fn both_parents_are_needed() {
    let nat = "nat-anchor \"com.apple/*\" all\nrdr-anchor \"com.apple/*\" all\n";
    let main = "scrub-anchor \"com.apple/*\" all fragment reassemble\nanchor \"com.apple/*\" all\n";
    parents(nat, main).unwrap();
    let lacking = parents("nat-anchor \"com.apple/*\" all\n", main).unwrap_err();
    assert_eq!(lacking, Lacking::Parent("rdr-anchor \"com.apple/*\"".into()));
    let sharing = "anchor \"com.apple.internet-sharing/*\" all\n";
    assert_eq!(parents(nat, sharing), Err(Lacking::Parent("anchor \"com.apple/*\"".into())));
}

#[test]
fn a_skipped_interface_is_told() {
    let counters = "\tCleared:     Sun Nov 22 01:00:00 2026\n\tIn4/Pass:    [ Packets: 0  Bytes: 0 ]\n";
    not_skipped(&format!("lo0\n{counters}")).unwrap();
    assert_eq!(not_skipped(&format!("lo0 (skip)\n{counters}")), Err(Lacking::Skipped));
    not_skipped("lo1 (skip)\nlo0\n").unwrap();
}

#[test]
fn pf_is_on_or_off() {
    is_on("Status: Enabled for 0 days 00:00:12           Debug: Urgent\n").unwrap();
    assert_eq!(is_on("Status: Disabled for 0 days 00:00:12           Debug: Urgent\n"), Err(Lacking::Off));
    assert_eq!(is_on(""), Err(Lacking::Off));
}

#[test]
fn rules_as_pfctl_prints_them_stand() {
    rules_stand(&rules(), TRANSLATION, FILTER).unwrap();
}

#[test]
fn whatever_lacks_is_named() {
    for (part, instead, rule) in [
        ("no rdr on lo0", "no rdr on en0", "no rdr on lo0 inet proto tcp from any to <kshuttle_not>"),
        (
            "port 40001",
            "port 40002",
            "rdr on lo0 inet proto tcp from any to <kshuttle_nets> -> 127.0.0.1 port 40001",
        ),
        (
            "quick on ! lo0 route-to lo0",
            "quick on ! lo0",
            "pass out quick on ! lo0 route-to lo0 inet proto tcp from any to <kshuttle_nets> keep state",
        ),
        (
            "reply-to lo0 ",
            "",
            "pass in quick on lo0 reply-to lo0 inet proto tcp from any to 127.0.0.1 port 40001 keep state",
        ),
    ] {
        let (translation, filter) = (TRANSLATION.replace(part, instead), FILTER.replace(part, instead));
        assert_ne!((translation.as_str(), filter.as_str()), (TRANSLATION, FILTER), "{part}");
        assert_eq!(rules_stand(&rules(), &translation, &filter), Err(Lacking::Rule(rule.into())));
    }
    let flushed = rules_stand(&rules(), "", "").unwrap_err();
    assert!(matches!(flushed, Lacking::Rule(_)), "{flushed}");
    let more = format!("{FILTER}pass out all\n");
    let lacking = rules_stand(&rules(), TRANSLATION, &more).unwrap_err();
    assert_eq!(lacking, Lacking::Count { kind: "filter", there: 5, wanted: 4 });
    let reversed: Vec<&str> = FILTER.lines().rev().collect();
    assert!(rules_stand(&rules(), TRANSLATION, &reversed.join("\n")).is_err(), "the order counts");
}

#[test]
fn tables_have_what_was_written() {
    let show = |nets: &'static str, not: &'static str| {
        tables_stand::<Lacking>(&rules(), |table| Ok(if table == NETS { nets } else { not }.to_owned()))
    };
    show("   10.96.0.0/12\n", "   10.96.0.1\n").unwrap();
    assert_eq!(show("   10.96.0.0/13\n", "   10.96.0.1\n"), Err(Lacking::Table(NETS)));
    assert_eq!(show("   10.96.0.0/12\n", ""), Err(Lacking::Table(NOT)));
    assert_eq!(show("pfctl: Table does not exist.\n", ""), Err(Lacking::Table(NETS)));
}

proptest! {
    #[test]
    fn hostile_text_never_panics(text in "(?s)(.|Token : [0-9]{0,25}|rdr-anchor|anchor|lo0 |\\(skip\\)|Status: |\n| ){0,40}") {
        let _ = token(&text);
        let _ = parents(&text, &text);
        let _ = not_skipped(&text);
        let _ = is_on(&text);
        prop_assert!(rules_stand(&rules(), &text, &text).is_err());
        prop_assert!(tables_stand::<Lacking>(&rules(), |_| Ok(text.clone())).is_err());
    }
}
