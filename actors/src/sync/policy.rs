//! How many steps of a drain may run side by side. No clock, no I/O.

use std::time::Duration;

use crate::sync::SyncConfig;

/// The window of one lane: it opens with success, closes with failure, and makes room for users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainWindow {
    size: usize,
    most: usize,
    failures: u32,
}

impl DrainWindow {
    /// A window of one.
    #[must_use]
    pub fn new(config: &SyncConfig) -> Self {
        Self { size: 1, most: config.concurrency.max(1), failures: 0 }
    }

    /// A stretch of draining begins: with one step, whatever the last one had come to. Failures in a row go on
    /// counting.
    pub fn begin(&mut self) {
        self.size = 1;
    }

    /// How many steps may run while users have this many calls on the backend. Never none: the drain yields, but it
    /// does not starve.
    #[must_use]
    pub fn allows(&self, live: usize) -> usize {
        self.size.saturating_sub(live).max(1)
    }

    /// How many steps may go in one call, of a backend that takes this many. After a failure it is one, so that no step
    /// can keep others from arriving.
    #[must_use]
    pub fn batch(&self, most: usize) -> usize {
        self.size.min(most)
    }

    /// A step succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.size = (self.size + 1).min(self.most);
    }

    /// A step failed. Gives how long to wait before the next, for a number from 0 to 1 that is drawn at random.
    pub fn failed(&mut self, config: &SyncConfig, random: f64) -> Duration {
        self.size = 1;
        self.failures = self.failures.saturating_add(1);
        let doubled = config.backoff.saturating_mul(1_u32 << (self.failures - 1).min(20)).min(config.max_backoff);
        doubled.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_window_stays_within_its_bounds_and_a_failure_closes_it(
            steps in prop::collection::vec((any::<bool>(), 0..40_usize, 0.0..=1.0_f64), 0..200),
        ) {
            let config = SyncConfig::default();
            let mut window = DrainWindow::new(&config);
            prop_assert_eq!(window.allows(0), 1);
            for (success, live, random) in steps {
                if success {
                    let before = window.allows(0);
                    window.succeeded();
                    prop_assert!(window.batch(8) <= 8 && window.batch(8) >= window.batch(1));
                    prop_assert_eq!(window.allows(0), (before + 1).min(config.concurrency));
                } else {
                    let wait = window.failed(&config, random);
                    prop_assert!(wait >= config.backoff / 2 && wait <= config.max_backoff);
                    prop_assert_eq!((window.allows(0), window.batch(8)), (1, 1));
                }
                prop_assert!((1..=config.concurrency).contains(&window.allows(live)));
                if live == 0 {
                    window.begin();
                    prop_assert_eq!(window.allows(0), 1);
                }
                prop_assert!(window.allows(live) <= window.allows(0));
            }
        }
    }

    #[test]
    fn waits_double_with_failures_in_a_row_also_over_stretches_and_begin_anew_with_a_success() {
        let config = SyncConfig::default();
        let mut window = DrainWindow::new(&config);
        let wait = |window: &mut DrainWindow| {
            window.begin();
            window.failed(&config, 1.0)
        };
        let waits: Vec<Duration> = (0..10).map(|_| wait(&mut window)).collect();
        let expected = (0..10).map(|n| (config.backoff * (1 << n)).min(config.max_backoff));
        assert_eq!(waits, expected.collect::<Vec<_>>());
        window.succeeded();
        assert_eq!(wait(&mut window), config.backoff);
    }
}
