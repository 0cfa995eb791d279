//! The door to a backend: asked without lock, clock, allocation or message while the breaker is closed.
//!
//! ```text
//! try_acquire ── word: closed ───────► admitted, one counter
//!            ├── half-open, recovering ─► policy, under its lock: exactly as many places as configured
//!            └── word: open ─────────► refused, one counter; once the wait is over: policy
//!
//! settle ─────── success ─────────────► one counter
//!            └── everything else, and what is slow, old or holds a place ─► policy, under its lock
//! ```
//!
//! The policy hears how many calls there have been whenever it hears anything: no rule has to be asked for a call that
//! went well. Nor does the gate read a clock for it: see `ages` for how the age of a call is known all the same. (Who
//! says when the backend was called, as a `Store` does because it has just looked, is told exactly and pays for it.)
//!
//! Whoever makes the policy change its state also publishes the change, under the same lock: the word, the
//! event, the watch. So a breaker is open when the report of the last failure returns, events are in order and
//! without gaps, and none of it needs the actor to be alive. Nor does the end of an open wait: where no timer of the
//! actor is set, and for the last two milliseconds, a refused caller compares the clock with the alarm, and asks the
//! policy when it is due. (The bus and the watches wake tasks and call nobody back, so a subscriber may call the
//! breaker.)

mod records;
mod results;
mod views;

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::BreakerState;
use super::lease::{Lease, OwnedLease, Purpose, Rejected};
use super::policy::{BreakerPolicy, Grant, Heard, PROBE_GUESS};
use super::report::BreakerView;
use super::tally::{Rare, Tally, Totals};
use super::word::{Door, Published, Word};
use crate::backend::BackendName;
use crate::event::{EventBus, EventKind};
use crate::threads::{Mutex, MutexGuard};

/// How many refusals of a thread there are between two looks at the clock, while a timer is set.
const LOOK_EVERY: u64 = 64;
/// How long before an alarm callers begin to look at the clock by themselves: a timer may be late by a millisecond.
const LEAD: Duration = Duration::from_millis(2);

/// The admission to one backend, shared by all who call it.
pub struct Gate {
    published: Published,
    tally: Tally,
    origin: Instant,
    name: BackendName,
    core: Mutex<Core>,
    bus: Arc<EventBus>,
    view: watch::Sender<BreakerView>,
    alarm: watch::Sender<Option<Instant>>,
}

struct Core {
    policy: BreakerPolicy,
    /// Of the last record for the store.
    sequence: u64,
    /// The generation that the store had at the start.
    loaded: u64,
    /// Whether what the store has is still to come.
    awaits_record: bool,
    last_failure: Option<Instant>,
    last_success: Option<Instant>,
    /// How many successes there were when `last_success` was set.
    successes: u64,
}

impl Gate {
    /// A gate over this policy. `sequence` and `loaded` (its generation) are of the record that it was restored from.
    pub(super) fn new(
        name: BackendName,
        policy: BreakerPolicy,
        bus: Arc<EventBus>,
        sequence: u64,
        loaded: u64,
        now: Instant,
    ) -> Self {
        let view = BreakerView { state: policy.state(), generation: policy.generation() };
        let gate = Self {
            published: Published::new(word(&policy)),
            tally: Tally::default(),
            origin: now,
            name,
            core: Mutex::new(Core {
                policy,
                sequence,
                loaded,
                awaits_record: false,
                last_failure: None,
                last_success: None,
                successes: 0,
            }),
            bus,
            view: watch::Sender::new(view),
            alarm: watch::Sender::new(None),
        };
        gate.act(|_, _| ());
        gate
    }

    /// Whose gate it is.
    #[must_use]
    pub fn name(&self) -> &BackendName {
        &self.name
    }

    /// Asks for admission of one call.
    ///
    /// # Errors
    /// [`Rejected`] when the breaker does not let it through; the backend must not be touched then.
    #[inline]
    pub fn try_acquire(&self, purpose: Purpose) -> Result<Lease<&Self>, Rejected> {
        let (grant, counted) = self.admit(purpose)?;
        Ok(Lease::new(self, grant, counted))
    }

    /// Like [`try_acquire`](Self::try_acquire), with a lease that holds the gate. Costs one more reference
    /// count, which threads contend for.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_owned(self: &Arc<Self>, purpose: Purpose) -> Result<OwnedLease, Rejected> {
        let (grant, counted) = self.admit(purpose)?;
        Ok(Lease::new(Arc::clone(self), grant, counted))
    }

    /// Whether a call would be refused now, but for what time may have changed.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.published.word().door() == Door::Shut
    }

    /// Refuses a call that was not made yet, if it would be refused. Counts it then, and changes nothing else.
    #[must_use]
    pub fn try_refuse(&self) -> Option<Rejected> {
        let word = self.published.word();
        (word.door() == Door::Shut).then(|| self.refuse(word)).flatten()
    }

    /// The state and the generation now, in one load.
    #[must_use]
    pub fn view(&self) -> BreakerView {
        let word = self.published.word();
        BreakerView { state: word.state(), generation: word.generation() }
    }

    /// Tells of every change of the view; whoever is slow sees the newest.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BreakerView> {
        self.view.subscribe()
    }

    /// Lets the policy do or decide something, and publishes what came of it.
    pub(super) fn act<R>(&self, decide: impl FnOnce(&mut BreakerPolicy, Instant) -> R) -> R {
        let mut core = self.lock();
        let now = Instant::now();
        core.policy.hear(heard(&self.tally.totals()));
        let result = decide(&mut core.policy, now);
        self.publish(&mut core, now);
        result
    }

    /// Spares callers the clock until shortly before this alarm, as long as it is polled: a timer is set.
    pub(super) async fn watch_alarm(&self, at: Instant) {
        struct Watch<'a>(&'a Published);
        impl Drop for Watch<'_> {
            fn drop(&mut self) {
                self.0.watch(u64::MAX);
            }
        }
        if let Some(early) = at.checked_sub(LEAD).filter(|early| *early > Instant::now()) {
            let _watch = Watch(&self.published);
            self.published.watch(self.nanos(at));
            sleep_until(early).await;
        }
        sleep_until(at).await;
    }

    /// When time alone changes something; a timer follows it.
    pub(super) fn alarm(&self) -> watch::Receiver<Option<Instant>> {
        self.alarm.subscribe()
    }

    /// Whether a call is admitted, and whether it is counted.
    #[inline]
    fn admit(&self, purpose: Purpose) -> Result<(Grant, bool), Rejected> {
        let word = self.published.word();
        if word.is_free() {
            self.tally.admitted();
            return Ok((Grant { generation: word.generation(), tick: self.published.tick(), place: None }, true));
        }
        self.negotiate(word, purpose)
    }

    fn negotiate(&self, word: Word, purpose: Purpose) -> Result<(Grant, bool), Rejected> {
        match word.door() {
            Door::Open => Ok((Grant { generation: word.generation(), tick: 0, place: None }, false)),
            Door::Guarded => self.ask(purpose),
            Door::Shut => self.knock(word, purpose),
        }
    }

    /// Refuses a call, unless the alarm is due.
    fn knock(&self, word: Word, purpose: Purpose) -> Result<(Grant, bool), Rejected> {
        match self.refuse(word) {
            Some(rejected) => Err(rejected),
            None => self.ask(purpose),
        }
    }

    /// Refuses a call as long as this word holds and its alarm is not due. Nobody reads the clock for that while a timer
    /// is set for it; but now and then somebody does, for a timer can be late.
    #[inline]
    fn refuse(&self, word: Word) -> Option<Rejected> {
        let alarm = self.published.alarm();
        let looks = !self.published.is_watched(alarm) || self.tally.rejected_here().is_multiple_of(LOOK_EVERY);
        // An alarm of another word must not hold anybody off: somebody has just made room.
        if looks && self.nanos(Instant::now()) >= alarm || self.published.word() != word {
            return None;
        }
        self.tally.rejected();
        let until = (alarm != u64::MAX).then(|| self.origin + Duration::from_nanos(alarm));
        let at_most = match (until, word.state()) {
            (_, BreakerState::HalfOpen) => PROBE_GUESS,
            (None, _) => self.published.patience(),
            (Some(_), _) => Duration::MAX,
        };
        Some(Rejected::new(word.state(), until, at_most))
    }

    /// Asks the policy.
    #[cold]
    fn ask(&self, purpose: Purpose) -> Result<(Grant, bool), Rejected> {
        self.act(|policy, now| {
            let grant = policy.admit(purpose, now);
            let state = policy.state();
            match grant {
                Some(grant) if state == BreakerState::Disabled => Ok((grant, false)),
                Some(grant) => {
                    self.tally.admitted();
                    Ok((grant, true))
                }
                None => {
                    self.tally.rejected();
                    if state == BreakerState::Recovering {
                        self.tally.add(Rare::Throttled, 1);
                    }
                    Err(Rejected::new(state, None, policy.retry_after(now).unwrap_or_default()))
                }
            }
        })
    }

    /// Tells everybody what the policy has become. The word first: who hears of an open breaker and calls at
    /// once is refused.
    fn publish(&self, core: &mut Core, now: Instant) {
        let successes = self.tally.totals().successful;
        if successes != core.successes {
            (core.successes, core.last_success) = (successes, Some(now));
        }
        let effects = core.policy.take_effects();
        if effects.expired > 0 {
            self.tally.add(Rare::Expired, effects.expired);
        }
        for (cause, why) in effects.would_open {
            self.bus.publish(EventKind::BreakerWouldOpen { backend: self.name.clone(), cause, why });
        }
        let policy = &core.policy;
        let alarm = policy.wake_at();
        self.published.publish_tick(policy.tick_number(), policy.slow_call(), policy.patience());
        self.published.publish(word(policy), alarm.map_or(u64::MAX, |at| self.nanos(at)));
        for transition in effects.transitions {
            self.bus.breaker(&self.name, transition.to, transition.cause, transition.generation);
        }
        let view = BreakerView { state: policy.state(), generation: policy.generation() };
        self.view.send_if_modified(|shown| std::mem::replace(shown, view) != view);
        self.alarm.send_if_modified(|shown| std::mem::replace(shown, alarm) != alarm);
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("name", &self.name).field("view", &self.view()).finish_non_exhaustive()
    }
}

fn word(policy: &BreakerPolicy) -> Word {
    Word::new(policy.state(), policy.generation(), policy.is_guarded())
}

fn heard(totals: &Totals) -> Heard {
    Heard {
        admitted: totals.admitted,
        successes: totals.successful.saturating_sub(totals.stale_successes),
        in_flight: totals.in_flight(),
    }
}
