//! What one round trip's worth of acknowledgements says.

use super::path::Sample;

/// What one round trip's worth of acknowledgements said.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Offset whose acknowledgement ends the round.
    pub(super) end: u64,
    samples: u32,
    pub(super) queue_min: f64,
    queue_sum: f64,
    /// Smallest round trip without the queue of our direction.
    pub(super) effective: f64,
    /// Highest delivery rate.
    pub(super) rate: f64,
    /// A flow waited for the budget.
    pub(super) limited: bool,
}

impl Round {
    /// A round that ends with the acknowledgement of `end`.
    pub(super) fn until(end: u64) -> Self {
        Self { end, ..Self::default() }
    }

    pub(super) fn add(&mut self, sample: &Sample) {
        let effective = sample.rtt - sample.queue;
        if self.samples == 0 {
            (self.queue_min, self.effective) = (sample.queue, effective);
        }
        self.queue_min = self.queue_min.min(sample.queue);
        self.effective = self.effective.min(effective);
        self.queue_sum += sample.queue;
        self.samples += 1;
        self.rate = self.rate.max(sample.rate.unwrap_or_default());
    }

    /// Mean queue in seconds; only after a sample.
    pub(super) fn queue_mean(&self) -> f64 {
        self.queue_sum / f64::from(self.samples)
    }
}
