//! What calls came to lately: over the last so many calls, and over the last stretch of time. Both in fixed memory and
//! constant time.
//!
//! Only failures and slow calls are told of; successes are a number that the gate counts without a lock. So a call in
//! good times costs a window nothing, whatever its size.

use std::time::Duration;

use tokio::time::Instant;

/// Into how many parts a window of calls is cut. One of up to this many calls is exact; a longer one forgets this
/// share of itself at a time.
const CALL_BUCKETS: usize = 128;
/// Into how many parts a window of time is cut: 10 s each of the 300 s of document 002.
const TIME_BUCKETS: usize = 30;

/// What calls came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Calls that counted, good or bad.
    pub(super) calls: u64,
    /// Those that failed.
    pub(super) failed: u64,
    /// Those that were slow.
    pub(super) slow: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bad {
    failed: u32,
    slow: u32,
}

/// The last so many calls.
#[derive(Clone, Debug)]
pub(super) struct CallWindow {
    /// Calls in a bucket.
    width: u64,
    buckets: Box<[Bad]>,
    /// The number of the newest bucket: how many there were before it.
    head: u64,
    sums: Bad,
}

impl CallWindow {
    pub(super) fn new(calls: u32) -> Self {
        let calls = u64::from(calls.max(1));
        let width = calls.div_ceil(CALL_BUCKETS as u64);
        let buckets = vec![Bad::default(); usize::try_from(calls.div_ceil(width)).unwrap_or(CALL_BUCKETS)];
        Self { width, buckets: buckets.into(), head: 0, sums: Bad::default() }
    }

    /// A call ended badly, as the last of this many that counted since the window was cleared.
    pub(super) fn bad(&mut self, calls: u64, failed: bool) {
        self.advance(calls);
        let bucket = &mut self.buckets[index(self.head, self.buckets.len())];
        let (one, all) =
            if failed { (&mut bucket.failed, &mut self.sums.failed) } else { (&mut bucket.slow, &mut self.sums.slow) };
        *one += 1;
        *all += 1;
    }

    /// What the window shows when this many calls counted since it was cleared.
    pub(super) fn sums(&mut self, calls: u64) -> Sums {
        self.advance(calls);
        let forgotten = (self.head + 1).saturating_sub(self.buckets.len() as u64) * self.width;
        Sums {
            calls: calls.saturating_sub(forgotten),
            failed: u64::from(self.sums.failed),
            slow: u64::from(self.sums.slow),
        }
    }

    /// Goes on with what a window of another size showed at this call, as if it had come just now.
    pub(super) fn take_over(&mut self, seen: Sums, calls: u64) {
        self.advance(calls);
        let size = self.width * self.buckets.len() as u64;
        let scale = |count: u64| if seen.calls > size { count * size / seen.calls } else { count };
        let fit = |count: u64| u32::try_from(scale(count)).unwrap_or(u32::MAX);
        let bad = Bad { failed: fit(seen.failed), slow: fit(seen.slow) };
        let newest = index(self.head, self.buckets.len());
        (self.buckets[newest], self.sums) = (bad, bad);
    }

    pub(super) fn clear(&mut self) {
        self.buckets.fill(Bad::default());
        (self.head, self.sums) = (0, Bad::default());
    }

    fn advance(&mut self, calls: u64) {
        let newest = calls.saturating_sub(1) / self.width;
        let length = self.buckets.len();
        for passed in (self.head + 1..=newest).rev().take(length) {
            let bucket = std::mem::take(&mut self.buckets[index(passed, length)]);
            self.sums.failed -= bucket.failed;
            self.sums.slow -= bucket.slow;
        }
        self.head = self.head.max(newest);
    }
}

fn index(number: u64, length: usize) -> usize {
    usize::try_from(number % length as u64).unwrap_or(0)
}

/// The last stretch of time.
#[derive(Clone, Debug)]
pub(super) struct RollingWindow {
    width: Duration,
    buckets: [Sums; TIME_BUCKETS],
    /// The number of the newest bucket since `origin`.
    head: u64,
    origin: Instant,
    /// When successes were counted the last time, and how many there had been.
    counted: (Instant, u64),
}

impl RollingWindow {
    /// A window that begins now, when this many calls have succeeded.
    pub(super) fn new(length: Duration, successes: u64, now: Instant) -> Self {
        let width = (length / TIME_BUCKETS as u32).max(Duration::from_nanos(1));
        Self { width, buckets: [Sums::default(); TIME_BUCKETS], head: 0, origin: now, counted: (now, successes) }
    }

    /// This many calls have succeeded until now. Those since the last time are taken to have come evenly.
    pub(super) fn count(&mut self, successes: u64, now: Instant) {
        let (since, before) = self.counted;
        let first = self.number(since);
        self.advance(now);
        self.counted = (now.max(since), successes);
        let new = successes.saturating_sub(before);
        let buckets = self.head.saturating_sub(first) + 1;
        let share = new / buckets;
        let oldest = self.head.saturating_sub(TIME_BUCKETS as u64 - 1).max(first);
        for number in oldest..self.head {
            self.buckets[index(number, TIME_BUCKETS)].calls += share;
        }
        self.buckets[index(self.head, TIME_BUCKETS)].calls += new - share * (buckets - 1);
    }

    /// A call ended badly now. A slow one has succeeded, and is among the successes already or soon.
    pub(super) fn bad(&mut self, failed: bool, now: Instant) {
        self.advance(now);
        let bucket = &mut self.buckets[index(self.head, TIME_BUCKETS)];
        if failed {
            bucket.failed += 1;
            bucket.calls += 1;
        } else {
            bucket.slow += 1;
        }
    }

    /// What the window showed when it was last counted.
    pub(super) fn sums(&self) -> Sums {
        self.buckets.iter().fold(Sums::default(), |all, one| Sums {
            calls: all.calls + one.calls,
            failed: all.failed + one.failed,
            slow: all.slow + one.slow,
        })
    }

    /// Another length: what was seen is kept, cut into other parts.
    pub(super) fn resize(&mut self, length: Duration, now: Instant) {
        let resized = Self::new(length, self.counted.1, now);
        if resized.width != self.width {
            let sums = self.sums();
            *self = resized;
            self.buckets[0] = sums;
        }
    }

    fn advance(&mut self, now: Instant) {
        let newest = self.number(now);
        for passed in (self.head + 1..=newest).rev().take(TIME_BUCKETS) {
            self.buckets[index(passed, TIME_BUCKETS)] = Sums::default();
        }
        self.head = self.head.max(newest);
    }

    fn number(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.origin).as_nanos() / self.width.as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Call {
        Good,
        Slow,
        Failed,
    }

    fn calls() -> impl Strategy<Value = Vec<Call>> {
        let call = prop_oneof![5 => Just(Call::Good), 1 => Just(Call::Slow), 3 => Just(Call::Failed)];
        prop::collection::vec(call, 0..700)
    }

    proptest! {
        #[test]
        fn a_window_of_calls_shows_the_last_ones_to_within_a_part(size in 1_u32..400, calls in calls()) {
            let mut window = CallWindow::new(size);
            let mut all = VecDeque::new();
            for (before, call) in calls.into_iter().enumerate() {
                all.push_back(call);
                if call != Call::Good {
                    window.bad(before as u64 + 1, call == Call::Failed);
                }
                let seen = window.sums(before as u64 + 1);
                let size = u64::from(size);
                let part = size.div_ceil(CALL_BUCKETS as u64);
                let whole = (before as u64 + 1).min(size.div_ceil(part) * part);
                prop_assert!(seen.calls <= whole && seen.calls + part > whole, "{} of {}", seen.calls, whole);
                let last = all.iter().rev().take(seen.calls as usize);
                let (mut failed, mut slow) = (0, 0);
                last.for_each(|call| match call {
                    Call::Failed => failed += 1,
                    Call::Slow => slow += 1,
                    Call::Good => {}
                });
                prop_assert_eq!(seen, Sums { calls: seen.calls, failed, slow });
            }
        }

        #[test]
        fn a_window_of_time_shows_what_came_in_it_to_within_a_part(
            steps in prop::collection::vec((0_u64..40, prop_oneof![Just(Call::Good), Just(Call::Slow), Just(Call::Failed)]), 0..300)
        ) {
            let start = Instant::now();
            let mut window = RollingWindow::new(Duration::from_secs(300), 0, start);
            let (mut now, mut successes, mut all) = (0, 0, Vec::new());
            for (passes, call) in steps {
                // As a breaker that is awake does: it counts at every part at least.
                for _ in 0..passes {
                    now += 1;
                    window.count(successes, start + Duration::from_secs(now));
                }
                let at = start + Duration::from_secs(now);
                all.push((now, call));
                match call {
                    Call::Good => {}
                    call => window.bad(call == Call::Failed, at),
                }
                successes += u64::from(call != Call::Failed);
                window.count(successes, at);
                let first = (now / 10 + 1).saturating_sub(30) * 10;
                let inside: Vec<_> = all.iter().filter(|(at, _)| *at >= first).map(|(_, call)| *call).collect();
                let of = |wanted| inside.iter().filter(|call| **call == wanted).count() as u64;
                let expected = Sums { calls: inside.len() as u64, failed: of(Call::Failed), slow: of(Call::Slow) };
                prop_assert_eq!(window.sums(), expected);
            }
        }
    }

    #[test]
    fn successes_of_a_long_time_in_which_nobody_counted_are_taken_to_have_come_evenly() {
        let start = Instant::now();
        let mut window = RollingWindow::new(Duration::from_secs(300), 0, start);
        window.count(3_600, start + Duration::from_secs(3_600 - 1));
        assert_eq!(window.sums().calls, 300);
    }
}
