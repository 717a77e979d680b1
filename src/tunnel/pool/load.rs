//! How much each tunnel has to carry, to choose one for a new flow.

use kshuttle_wire::flow::MAX_FLOWS;

/// In-flight bytes that make a difference between tunnels; below, the number of flows decides.
const LOAD_STEP: u64 = 64 << 10;

/// Flows from which on a session counts as full: a flow that has ended here is one of the pod's for a moment longer.
const FULL: usize = MAX_FLOWS - 50;

/// How much a session has to carry; the least is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    full: bool,
    steps: u64,
    flows: usize,
}

impl Load {
    pub(super) fn of(in_flight: u64, flows: usize) -> Self {
        Self { full: flows >= FULL, steps: in_flight / LOAD_STEP, flows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_before_flows_and_a_full_one_is_the_last_choice() {
        let order = [
            Load::of(0, 10),
            Load::of(LOAD_STEP - 1, 11),
            Load::of(LOAD_STEP, 0),
            Load::of(9 * LOAD_STEP, FULL - 1),
            Load::of(0, FULL),
            Load::of(0, MAX_FLOWS),
        ];
        assert!(order.is_sorted());
    }
}
