//! How long calls have been out, without a clock at their admission.
//!
//! Time is cut into ticks, a quarter of `slow_call` each. A call takes the number of the tick with it, and the
//! breaker remembers when each of the last ticks began and how many calls had been admitted by then. From that
//! follows what is certain: a call is at least as old as the tick after its own, and of the calls that are out, those
//! which can not have been admitted since an earlier tick are older than it. What is not certain is not said: neither
//! a timer that is late nor a process that was stopped for a while makes a call older than it is.
//!
//! While nobody calls there are no ticks: the breaker sleeps, and the next admission wakes it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::policy::Heard;

/// Ticks in the longest that a call should take.
pub(super) const TICKS: u32 = 4;
/// Ticks that are remembered: enough to look back over that time from within a tick.
const REMEMBERED: usize = TICKS as usize + 2;

#[derive(Clone, Copy, Debug)]
struct Tick {
    began: Instant,
    admitted: u64,
}

/// The ticks of one breaker.
#[derive(Clone, Debug)]
pub(super) struct Ages {
    limit: Duration,
    /// The number of the newest tick.
    number: u32,
    /// The newest ticks, oldest first; never empty.
    ticks: VecDeque<Tick>,
    awake: bool,
    /// Calls of earlier generations that were out when this one began.
    others: u64,
}

impl Ages {
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        // All there will ever be: no admission allocates.
        let mut ticks = VecDeque::with_capacity(REMEMBERED);
        ticks.push_back(Tick { began: now, admitted: 0 });
        Self { limit, number: 0, ticks, awake: false, others: 0 }
    }

    /// The number that a call takes with it.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether the next admission has to [wake](Self::wake) it.
    pub(super) fn asleep(&self) -> bool {
        !self.awake
    }

    /// When the next tick is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let newest = self.ticks.back()?;
        self.awake.then(|| newest.began + (self.limit / TICKS).max(Duration::from_millis(1)))
    }

    /// Begins a tick, if one is due; falls asleep when nothing happened in the last one.
    pub(super) fn tick(&mut self, heard: Heard, now: Instant) {
        if self.due().is_none_or(|due| now < due) {
            return;
        }
        let idle = self.ticks.back().is_some_and(|tick| tick.admitted == heard.admitted) && heard.in_flight == 0;
        self.awake = !idle;
        self.begin(heard, now);
    }

    /// A call is about to be admitted.
    pub(super) fn wake(&mut self, heard: Heard, now: Instant) {
        if !self.awake {
            self.awake = true;
            self.begin(heard, now);
        }
    }

    /// A new generation: the calls that are out are none of its own.
    pub(super) fn clear(&mut self, heard: Heard, now: Instant) {
        self.others = heard.in_flight;
        self.ticks.clear();
        self.awake = false;
        self.begin(heard, now);
    }

    pub(super) fn reconfigure(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// How long a call that took this number with it has been out, at least.
    pub(super) fn age(&self, number: u32, now: Instant) -> Duration {
        let since = self.number.wrapping_sub(number) as usize;
        if since == 0 {
            return Duration::ZERO;
        }
        // The tick after its own, or the oldest that is remembered.
        let after = self.ticks.len().saturating_sub(since);
        self.ticks.get(after).map_or(Duration::ZERO, |tick| now.saturating_duration_since(tick.began))
    }

    /// Calls that have been out for longer than a call should take: so many, or more.
    pub(super) fn overdue(&self, heard: Heard, now: Instant) -> u64 {
        let old = |tick: &&Tick| now.saturating_duration_since(tick.began) >= self.limit;
        let Some(tick) = self.ticks.iter().rev().find(old) else { return 0 };
        let since = heard.admitted.saturating_sub(tick.admitted);
        heard.in_flight.saturating_sub(self.others).saturating_sub(since)
    }

    fn begin(&mut self, heard: Heard, now: Instant) {
        self.number = self.number.wrapping_add(1);
        if self.ticks.len() == REMEMBERED {
            self.ticks.pop_front();
        }
        self.ticks.push_back(Tick { began: now, admitted: heard.admitted });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Admit,
        End(usize),
        /// Time passes, and the timer comes or not.
        Pass(u64, bool),
    }

    proptest! {
        /// Against the true age of every call.
        #[test]
        fn no_call_is_said_to_be_older_than_it_is_and_with_a_timer_in_time_old_calls_are_found(
            steps in prop::collection::vec(
                prop_oneof![
                    4 => Just(Step::Admit),
                    2 => (0_usize..8).prop_map(Step::End),
                    4 => (0_u64..60, any::<bool>()).prop_map(|(ms, timely)| Step::Pass(ms, timely)),
                ],
                0..200,
            ),
            punctual in any::<bool>(),
        ) {
            let limit = Duration::from_millis(100);
            let start = Instant::now();
            let (mut ages, mut now) = (Ages::new(limit, start), start);
            let (mut calls, mut admitted) = (Vec::<(Instant, u32)>::new(), 0);
            for step in steps {
                let heard = |calls: &Vec<_>, admitted| Heard { admitted, successes: 0, in_flight: calls.len() as u64 };
                match step {
                    Step::Admit => {
                        ages.wake(heard(&calls, admitted), now);
                        calls.push((now, ages.number()));
                        admitted += 1;
                    }
                    Step::End(at) => if at < calls.len() { calls.remove(at); },
                    Step::Pass(ms, _) if punctual => for _ in 0..ms {
                        now += Duration::from_millis(1);
                        ages.tick(heard(&calls, admitted), now);
                    },
                    Step::Pass(ms, timely) => {
                        now += Duration::from_millis(ms);
                        if timely { ages.tick(heard(&calls, admitted), now); }
                    }
                }
                let old = |limit| calls.iter().filter(|(at, _)| now - *at >= limit).count() as u64;
                for (at, number) in &calls {
                    let told = ages.age(*number, now);
                    prop_assert!(told <= now - *at, "{told:?}");
                    if punctual {
                        prop_assert!(told >= limit || now - *at < limit * 5 / 4 + Duration::from_millis(1));
                    }
                }
                let overdue = ages.overdue(heard(&calls, admitted), now);
                prop_assert!(overdue <= old(limit));
                // Exact when nobody came back since: that is what a backend that hangs looks like.
                let ended = admitted - calls.len() as u64;
                if punctual && ended == 0 {
                    prop_assert!(overdue >= old(limit * 5 / 4 + Duration::from_millis(1)), "{overdue}");
                }
            }
        }
    }
}
