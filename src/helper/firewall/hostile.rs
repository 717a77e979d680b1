//! A million messages of a user side that means ill: none makes the helper panic, and none brings anything into the texts of
//! nft or iptables but what their builders write.
//!
//! The messages are deterministic: objects with every field of the protocol, in which values are replaced by hostile ones,
//! fields are repeated, left out or made up, and bytes are flipped. Lines of the texts are reduced to a form, names and numbers to one
//! letter each, and the forms are compared with a list that was written by hand ([`forms`]).

#![cfg(test)]

mod forms;
mod messages;

use super::conntrack::Tuple;
use super::{iptables, nft};
use crate::plan::Plan;
use crate::protocol::{self, Frames, Request};
use forms::Forms;
use messages::Messages;

const MESSAGES: usize = 1_000_000;

/// Threads that share them; each has a seed of its own.
const THREADS: usize = 4;

/// What one thread met.
#[derive(Debug, Default)]
struct Met {
    refused: usize,
    incomplete: usize,
    plans: usize,
    updates: usize,
    names: usize,
}

#[test]
fn nothing_hostile_gets_into_a_rule() {
    let met: Vec<Met> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|seed| scope.spawn(move || run(seed as u64))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |count: fn(&Met) -> usize| met.iter().map(count).sum::<usize>();
    let (refused, plans, updates) = (sum(|met| met.refused), sum(|met| met.plans), sum(|met| met.updates));
    let (names, other) = (sum(|met| met.names), sum(|met| met.incomplete));
    assert!(refused + plans + updates + names + other >= MESSAGES, "{met:?}");
    // Both halves are worth something: refusals, and plans that pass with texts to look at.
    assert!(refused > MESSAGES / 3 && plans > MESSAGES / 20 && updates > MESSAGES / 100, "{met:?}");
    assert!(names > MESSAGES / 200, "{met:?}");
}

fn run(seed: u64) -> Met {
    let (mut messages, mut forms, mut met) = (Messages::new(seed), Forms::default(), Met::default());
    let base = base();
    for _ in 0..MESSAGES / THREADS {
        let mut frames = Frames::default();
        frames.push(&messages.next());
        match frames.take::<Request>() {
            Ok(Some(Request::Plan(said))) => match Plan::check(said) {
                Ok(plan) => {
                    met.plans += 1;
                    look_at(&plan, &mut forms);
                }
                Err(_) => met.refused += 1,
            },
            Ok(Some(Request::Update { include, exclude })) => match base.with_ranges(&include, &exclude) {
                Ok(plan) => {
                    met.updates += 1;
                    nft::text::update(&plan, &standing()).iter().for_each(|line| forms.nft(line));
                }
                Err(_) => met.refused += 1,
            },
            Ok(Some(Request::Names { servers })) => match base.with_names(&servers) {
                Ok(plan) => {
                    met.names += 1;
                    nft::text::names::replace(&plan).iter().for_each(|line| forms.nft(line));
                    look_at(&plan, &mut forms);
                }
                Err(_) => met.refused += 1,
            },
            Err(_) => met.refused += 1,
            Ok(_) => met.incomplete += 1,
        }
    }
    met
}

/// Every text that is made of a plan.
fn look_at(plan: &Plan, forms: &mut Forms) {
    let apply = nft::text::apply(plan, &standing(), true);
    let others = [nft::text::delete(plan.table())];
    apply.iter().chain(&nft::text::flush(plan)).chain(&others).for_each(|line| forms.nft(line));
    for v6 in [false, true] {
        iptables::text::apply(plan, v6, &standing(), true, "")
            .split_terminator('\n')
            .for_each(|line| forms.iptables(line));
    }
    iptables::text::release(plan).split_terminator('\n').for_each(|line| forms.iptables(line));
}

/// The plan that updates meet.
fn base() -> Plan {
    let said = protocol::Plan {
        session: "base".into(),
        include: vec!["10.0.0.0/8".parse().unwrap()],
        listener_v4: Some(1),
        listener_v6: Some(1),
        ..protocol::Plan::default()
    };
    Plan::check(said).unwrap()
}

fn standing() -> [Tuple; 2] {
    let tuple = |src: &str, dst: &str| Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() };
    [tuple("198.51.100.2:22", "10.0.5.5:40000"), tuple("[2001:db8::2]:22", "[fd00::9]:40000")]
}

#[test]
fn a_smuggled_word_has_no_form() {
    let forms = Forms::default();
    for line in [
        "add table inet kshuttle_a; flush ruleset",
        "delete table inet kshuttle_a\nflush ruleset",
        "delete table inet kshuttle_A",
        "delete table inet  kshuttle_a",
        "flush ruleset",
        "add element inet kshuttle_a include4 { 10.0.0.0/8, flush }",
        "add element inet kshuttle_a include4 { 10.0.0.0/8, +5 }",
        "add element inet kshuttle_a dns4 { 10.0.0.1 : 5, 10.0.0.2 : flush }",
    ] {
        assert!(!forms.is_nft(line), "{line}");
    }
    for line in
        ["-A OUTPUT -j ACCEPT", "-A kshuttle_aB -s 10.0.0.0/8 -i -j -d 10.0.0.0/8 -p tcp -j DROP", "*mangle"]
    {
        assert!(!forms.is_iptables(line), "{line}");
    }
    assert!(forms.is_nft("delete table inet kshuttle_a") && forms.is_iptables("COMMIT"));
}
