//! How many calls may be made again. No clock, no I/O.
//!
//! A backend that fails gets more calls than one that works, from everybody who tries again: up to four times as
//! many, just when it can bear least. The budget bounds that for all callers together, whatever each of them may do:
//! in any stretch of time there are no more retries than what the bucket holds, the tenth of the calls, and one for
//! each second.

use tokio::time::Instant;

use super::BudgetConfig;

/// The bucket of one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryBudget {
    config: BudgetConfig,
    tokens: f64,
    /// What has been paid in so far: calls that were made, and time.
    calls: u64,
    at: Instant,
}

impl RetryBudget {
    /// A full bucket.
    #[must_use]
    pub fn new(config: BudgetConfig, now: Instant) -> Self {
        Self { tokens: f64::from(config.capacity), config, calls: 0, at: now }
    }

    /// Whether there is a token, when so many calls that were no retries have been made since the start.
    ///
    /// What calls bring is paid in here and not with each of them: between two retries that makes no difference, and
    /// it keeps the lock out of calls that succeed.
    pub fn has_token(&mut self, calls: u64, now: Instant) -> bool {
        let capacity = f64::from(self.config.capacity);
        #[expect(clippy::cast_precision_loss, reason = "a bucket is full long before a count is too large for a float")]
        let made = calls.saturating_sub(self.calls) as f64;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let paid = made * self.config.per_call + passed * self.config.per_second;
        self.tokens = (self.tokens + paid).min(capacity);
        self.calls = self.calls.max(calls);
        self.at = self.at.max(now);
        self.tokens >= 1.0
    }

    /// Takes the token that [`has_token`](Self::has_token) has found.
    pub fn take_token(&mut self) {
        debug_assert!(self.tokens >= 1.0, "nobody takes what is not there");
        self.tokens = (self.tokens - 1.0).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// What happens to a bucket.
    #[derive(Clone, Debug)]
    enum Event {
        Calls(u64),
        Time(Duration),
        Retry,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => (0..50_u64).prop_map(Event::Calls),
            1 => (0..5_000_u64).prop_map(|ms| Event::Time(Duration::from_millis(ms))),
            4 => Just(Event::Retry),
        ]
    }

    fn any_config() -> impl Strategy<Value = BudgetConfig> {
        (0..20_u32, 0.0..=2.0_f64, 0.0..=5.0_f64).prop_map(|(capacity, per_call, per_second)| BudgetConfig {
            capacity,
            per_call,
            per_second,
        })
    }

    /// The plain model: everything is paid in when it happens.
    struct Model {
        config: BudgetConfig,
        tokens: f64,
    }

    impl Model {
        fn pay(&mut self, tokens: f64) {
            self.tokens = (self.tokens + tokens).min(f64::from(self.config.capacity));
        }
    }

    proptest! {
        #[test]
        fn it_gives_what_a_bucket_would_into_which_each_call_pays_at_once(
            config in any_config(),
            events in prop::collection::vec(any_event(), 0..200),
        ) {
            let (mut now, mut calls) = (Instant::now(), 0);
            let mut budget = RetryBudget::new(config.clone(), now);
            let mut model = Model { tokens: f64::from(config.capacity), config };
            for event in events {
                match event {
                    Event::Calls(more) => {
                        calls += more;
                        (0..more).for_each(|_| model.pay(model.config.per_call));
                    }
                    Event::Time(time) => {
                        now += time;
                        model.pay(time.as_secs_f64() * model.config.per_second);
                    }
                    Event::Retry => {
                        let has = budget.has_token(calls, now);
                        // Sums of fractions differ in their last digits.
                        if (model.tokens - 1.0).abs() > 1e-6 {
                            prop_assert_eq!(has, model.tokens >= 1.0, "{:?} {}", budget, model.tokens);
                        }
                        if has {
                            budget.take_token();
                            model.tokens -= 1.0;
                        }
                    }
                }
            }
        }

        #[test]
        fn in_any_stretch_there_are_no_more_retries_than_the_bucket_holds_and_is_paid(
            config in any_config(),
            events in prop::collection::vec(any_event(), 0..200),
            start in 0..200_usize,
        ) {
            let begin = Instant::now();
            let (mut now, mut calls) = (begin, 0);
            let mut budget = RetryBudget::new(config.clone(), now);
            let (mut retries, mut since) = (0, (begin, 0));
            for (at, event) in events.into_iter().enumerate() {
                if at == start {
                    (retries, since) = (0, (now, calls));
                }
                match event {
                    Event::Calls(more) => calls += more,
                    Event::Time(time) => now += time,
                    Event::Retry if budget.has_token(calls, now) => {
                        budget.take_token();
                        retries += 1;
                    }
                    Event::Retry => {}
                }
            }
            // What was called before the stretch may be paid in within it, but only up to what the bucket holds.
            let paid = (calls - since.1) as f64 * config.per_call
                + now.duration_since(since.0).as_secs_f64() * config.per_second;
            let most = f64::from(config.capacity) + paid;
            prop_assert!(f64::from(retries) <= most + 1e-6, "{retries} retries, {most} tokens");
        }

        #[test]
        fn whatever_it_is_told_it_never_holds_more_than_its_capacity_nor_less_than_nothing(
            config in any_config(),
            tellings in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 0..50),
        ) {
            let now = Instant::now();
            let mut budget = RetryBudget::new(config.clone(), now);
            for (calls, ms, take) in tellings {
                // Out of order too: threads look at counter and clock before they have the lock.
                if budget.has_token(calls, now + Duration::from_millis(ms.into())) && take {
                    budget.take_token();
                }
                prop_assert!((0.0..=f64::from(config.capacity)).contains(&budget.tokens), "{budget:?}");
            }
        }
    }

    #[test]
    fn a_long_outage_costs_a_tenth_more_calls_and_not_four_times_as_many() {
        let now = Instant::now();
        let config = BudgetConfig { per_second: 0.0, ..BudgetConfig::default() };
        let mut budget = RetryBudget::new(config, now);
        let mut retries = 0;
        for calls in 1..=10_000 {
            for _ in 0..3 {
                if budget.has_token(calls, now) {
                    budget.take_token();
                    retries += 1;
                }
            }
        }
        assert!((1_005..=1_010).contains(&retries), "{retries}");
    }

    #[test]
    fn a_backend_that_is_hardly_called_has_retries_again_after_a_while() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(BudgetConfig::default(), now);
        while budget.has_token(1, now) {
            budget.take_token();
        }
        assert!(!budget.has_token(1, now + Duration::from_millis(800)));
        assert!(budget.has_token(1, now + Duration::from_millis(1_100)));
    }
}
