//! Ranges that are there, and for a while those that were.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

/// How long a range is kept after it vanished. A pod may take 30 s to end and names are kept for 30 s by default; until then
/// programs connect to its address, and that must fail in the cluster and not go to the local network.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// What is there, and since when what is not.
#[derive(Debug, Default)]
pub(super) struct Fading {
    /// With the end of its grace, if it vanished.
    known: BTreeMap<IpNet, Option<Instant>>,
}

impl Fading {
    /// Takes in what is there now.
    pub(super) fn update(&mut self, live: &BTreeSet<IpNet>, now: Instant) {
        for (net, end) in &mut self.known {
            if !live.contains(net) {
                end.get_or_insert(now + GRACE);
            }
        }
        self.known.extend(live.iter().map(|net| (*net, None)));
        self.known.retain(|_, end| end.is_none_or(|end| now < end));
    }

    /// All that is there or was a moment ago.
    pub(super) fn all(&self) -> impl Iterator<Item = &IpNet> {
        self.known.keys()
    }

    /// When the next grace ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.known.values().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::subnets::tests::nets;

    #[test]
    fn what_vanished_stays_for_its_grace_and_what_comes_back_for_good() {
        let [a, b] = ["10.0.0.1/32", "10.0.0.2/32"];
        let live = |list: &[&str]| nets(list).into_iter().collect::<BTreeSet<_>>();
        let start = Instant::now();
        let mut fading = Fading::default();
        let mut after = |seconds: u64, list: &[&str]| {
            fading.update(&live(list), start + Duration::from_secs(seconds));
            (fading.all().copied().collect::<Vec<_>>(), fading.next_end().map(|end| (end - start).as_secs()))
        };
        assert_eq!(after(0, &[a, b]), (nets(&[a, b]), None));
        assert_eq!(after(10, &[a]), (nets(&[a, b]), Some(70)));
        assert_eq!(after(69, &[a]), (nets(&[a, b]), Some(70)), "later looks do not prolong it");
        assert_eq!(after(70, &[a]), (nets(&[a]), None));
        assert_eq!(after(80, &[b]), (nets(&[a, b]), Some(140)));
        assert_eq!(after(90, &[a, b]), (nets(&[a, b]), None), "it came back");
        assert_eq!(after(200, &[a, b]), (nets(&[a, b]), None));
    }
}
