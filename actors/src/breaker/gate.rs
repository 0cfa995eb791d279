//! The door to a backend: asked without lock, clock, allocation or message while the breaker is closed.
//!
//! ```text
//! try_acquire ── word: closed ───────► admitted, one counter
//!            ├── word: half-open ────► policy, under its lock: exactly as many places as configured
//!            └── word: open ─ clock ─► refused, one counter; once the wait is over: policy
//!
//! settle ─────── success ─────────────► one counter
//!            └── everything else, and what is slow, old or holds a place ─► policy, under its lock
//! ```
//!
//! The policy hears how many calls there have been whenever it hears anything: no rule has to be asked for a call that
//! went well. Nor does anybody read a clock for it: see `ages` for how the age of a call is known all the same.
//!
//! Whoever makes the policy change its state also publishes the change, under the same lock: the word, the
//! event, the watch. So a breaker is open when the report of the last failure returns, events are in order and
//! without gaps, and none of it needs the actor to be alive. Nor does the end of an open wait: where no timer of the
//! actor is set, and for the last two milliseconds, a refused caller compares the clock with the alarm, and asks the
//! policy when it is due. (The bus and the watches wake tasks and call nobody back, so a subscriber may call the
//! breaker.)

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::BreakerState;
use super::ages::TICKS;
use super::lease::{Lease, OwnedLease, Purpose, Rejected};
use super::policy::{BreakerPolicy, Evidence, Grant, Heard, PROBE_GUESS, Settled};
use super::report::{BreakerSnapshot, BreakerView, Explanation, FailureKind, ratio};
use super::store::SavedBreaker;
use super::tally::{Rare, Tally, Totals};
use super::word::{Door, Published, Word};
use crate::backend::{BackendError, BackendName};
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

impl Core {
    fn awaits_record(&self) -> bool {
        self.awaits_record && self.policy.generation() == 0
    }
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

    /// The counters and times now.
    pub(super) fn snapshot(&self) -> BreakerSnapshot {
        let mut core = self.lock();
        let now = Instant::now();
        core.policy.hear(heard(&self.tally.totals()));
        core.policy.tick(now);
        self.publish(&mut core, now);
        let rolling = core.policy.rolling(now);
        let policy = &core.policy;
        let totals = self.tally.totals();
        let state = policy.state();
        let spent = |account| policy.history().spent(account, state, now);
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        BreakerSnapshot {
            name: self.name.clone(),
            state,
            generation: policy.generation(),
            total_requests: totals.admitted + totals.rejected,
            admitted: totals.admitted,
            successful: totals.successful,
            slow: totals.slow,
            failed: totals.failed,
            rejected: totals.rejected,
            throttled: totals.throttled,
            ignored: totals.ignored,
            cancelled: totals.cancelled,
            panicked: totals.panicked,
            expired: totals.expired,
            in_flight: totals.in_flight(),
            stale_results: totals.stale,
            state_transitions: policy.history().changes(),
            time_in_closed: spent(BreakerState::Closed),
            time_in_open: spent(BreakerState::Open),
            time_in_half_open: spent(BreakerState::HalfOpen),
            time_in_recovering: spent(BreakerState::Recovering),
            time_in_manual: spent(BreakerState::ForcedOpen),
            failure_rate: ratio(rolling.failed, rolling.calls).unwrap_or(0.0),
            slow_call_rate: ratio(rolling.slow, rolling.calls).unwrap_or(0.0),
            shadow_opened: policy.shadow_opened(),
            last_failure: age(core.last_failure),
            last_success: age(core.last_success),
            retry_after: policy.retry_after(now),
        }
    }

    /// Why the state is what it is.
    pub(super) fn explain(&self) -> Explanation {
        self.act(|policy, now| {
            policy.tick(now);
            policy.explain(self.name.clone(), now)
        })
    }

    /// When a call loses the place that it holds now.
    pub(super) fn deadline(&self, grant: Grant) -> Option<Instant> {
        self.lock().policy.deadline(grant)
    }

    /// A record for the store, newer than all before.
    pub(super) fn record(&self) -> SavedBreaker {
        let mut core = self.lock();
        core.sequence = core.sequence.saturating_add(1);
        core.policy.saved(core.sequence, Instant::now())
    }

    /// The store holds a record with this sequence. The next one will be newer.
    pub(super) fn follow(&self, sequence: u64) {
        let mut core = self.lock();
        core.sequence = core.sequence.max(sequence);
    }

    /// A record of an earlier process may come later.
    pub(super) fn await_record(&self) {
        self.lock().awaits_record = true;
    }

    /// Whether one may still come. A breaker that has changed its state knows better than any record.
    pub(super) fn awaits_record(&self) -> bool {
        self.lock().awaits_record()
    }

    /// Whether a call has succeeded in this process.
    pub(super) fn was_alive(&self) -> bool {
        self.tally.totals().successful > 0
    }

    /// No record comes any more: goes on where this one stops, if there is one and it is still awaited.
    pub(super) fn take_over(&self, saved: Option<SavedBreaker>) {
        let mut core = self.lock();
        let awaited = core.awaits_record();
        core.awaits_record = false;
        let Some(saved) = saved.filter(|_| awaited) else { return };
        let now = Instant::now();
        core.sequence = core.sequence.max(saved.sequence);
        core.loaded = saved.generation;
        core.policy.hear(heard(&self.tally.totals()));
        core.policy.take_over(saved, now);
        self.publish(&mut core, now);
    }

    /// Whether the store does not know the state, or a wait is running of which it should know what is left.
    pub(super) fn needs_saving(&self) -> bool {
        let core = self.lock();
        core.loaded != core.policy.generation() || core.policy.save_again_in().is_some()
    }

    /// How soon to save again, while a wait is running.
    pub(super) fn save_again_in(&self) -> Option<Duration> {
        self.lock().policy.save_again_in()
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

    /// A call succeeded. `slow`: the caller says that it took too long; else that is found out, from when it `called`.
    #[inline]
    pub(super) fn succeeded(&self, grant: Grant, slow: bool, called: Option<Instant>) {
        let old = self.published.tick().wrapping_sub(grant.tick) >= TICKS;
        if grant.place.is_none() && !slow && !old && called.is_none() {
            return self.count_success(grant);
        }
        let took = called.map(|at| at.elapsed());
        if grant.place.is_none() && !slow && took.is_some_and(|took| took < self.published.slow_call()) {
            return self.count_success(grant);
        }
        self.report(grant, took, if slow { Evidence::Slow } else { Evidence::Alive }, Counted::Success);
    }

    /// A call ended in an error.
    pub(super) fn failed(&self, grant: Grant, error: &BackendError, called: Option<Instant>) {
        let code = error.code.as_deref();
        if code.is_some() && self.lock().policy.excludes(error) {
            return self.ended(grant, Evidence::Nothing, Rare::Ignored);
        }
        if error.verdict().alive {
            return self.succeeded(grant, false, called);
        }
        let evidence = Evidence::Dead { kind: FailureKind::Error(error.kind), code };
        self.report(grant, None, evidence, Counted::Rare(Rare::Failed));
    }

    /// A caller stopped waiting.
    pub(super) fn given_up(&self, grant: Grant, called: Option<Instant>) {
        let took = called.map(|at| at.elapsed());
        self.report(grant, took, Evidence::Nothing, Counted::Rare(Rare::Cancelled));
    }

    /// A call ended in another way.
    pub(super) fn ended(&self, grant: Grant, evidence: Evidence<'_>, counted: Rare) {
        self.report(grant, None, evidence, Counted::Rare(counted));
    }

    /// Reports to the policy.
    #[cold]
    fn report(&self, grant: Grant, took: Option<Duration>, evidence: Evidence<'_>, counted: Counted) {
        let mut core = self.lock();
        let now = Instant::now();
        core.policy.hear(heard(&self.tally.totals()));
        let old = || core.policy.is_slow(took.unwrap_or_else(|| core.policy.age(grant, now)));
        let evidence = match (evidence, counted) {
            (Evidence::Alive, _) if old() => Evidence::Slow,
            (Evidence::Nothing, Counted::Rare(Rare::Cancelled)) if old() => {
                Evidence::Dead { kind: FailureKind::Abandoned, code: None }
            }
            (evidence, _) => evidence,
        };
        let settled = core.policy.settle(grant, evidence, now);
        // Counted under the lock, so that a snapshot shows a transition and the result that caused it together.
        match (settled, counted) {
            (Settled::Expired, _) => self.tally.add(Rare::Stale, 1),
            (Settled::Stale, Counted::Success) => self.count_stale_success(),
            (Settled::InTime, Counted::Success) => self.tally.successful(),
            (settled, Counted::Rare(rare)) => {
                self.tally.add(rare, 1);
                self.tally.add(Rare::Stale, u64::from(settled == Settled::Stale));
            }
        }
        if settled != Settled::Expired {
            self.tally.add(Rare::Slow, u64::from(evidence == Evidence::Slow));
            if let Evidence::Dead { .. } = evidence {
                core.last_failure = Some(now);
            }
        }
        self.publish(&mut core, now);
    }

    #[inline]
    fn count_success(&self, grant: Grant) {
        if self.published.word().generation() == grant.generation {
            self.tally.successful();
        } else {
            self.count_stale_success();
        }
    }

    /// A success that came after its generation is none of this one.
    fn count_stale_success(&self) {
        // First, so that it is never taken for one.
        self.tally.add(Rare::StaleSuccess, 1);
        self.tally.add(Rare::Stale, 1);
        self.tally.successful();
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

/// As what a call is counted.
#[derive(Clone, Copy, PartialEq)]
enum Counted {
    Success,
    Rare(Rare),
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
