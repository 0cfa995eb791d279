use std::time::Duration;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::time::Instant;

use super::{NOTHING, best_effort, stores};
use crate::backend::{BackendName, Capability, Health};
use crate::breaker::BreakerState;
use crate::fallback::{
    Access, DegradationLevel as Level, FallbackConfig, FallbackPolicy, Input, JournalFallback, JournalWatch, LegRule,
    Mode, ModeCause, REASON_BYTES, ReadRule, WriteRule,
};
use crate::journal::{JournalHealth, JournalProgress};
use crate::models;

const SECOND: Duration = Duration::from_secs(1);
const JOURNALS: [JournalHealth; 3] = [JournalHealth::Healthy, JournalHealth::Failed, JournalHealth::Stalled];
const STATES: [BreakerState; 6] = [
    BreakerState::Closed,
    BreakerState::Open,
    BreakerState::HalfOpen,
    BreakerState::ForcedOpen,
    BreakerState::ForcedClosed,
    BreakerState::Disabled,
];

fn policy(config: FallbackConfig) -> FallbackPolicy {
    let mut backends = stores(Access::ReadWrite, Access::ReadWrite);
    backends.push(best_effort("copy", NOTHING, Access::ReadWrite));
    FallbackPolicy::new(config, backends)
}

fn breaker(backend: &'static str, state: BreakerState) -> Input {
    Input::BreakerChanged { backend: backend.into(), state }
}

fn set(mode: Mode, expires_in: Option<Duration>) -> Input {
    Input::SetMode { mode, reason: "maintenance".into(), expires_in }
}

#[test]
fn the_policy_queues_writes_as_soon_as_a_required_backend_is_lost_and_stops_when_it_is_back() {
    let now = Instant::now();
    let mut policy = policy(FallbackConfig::default());
    assert_eq!(policy.plan().mode, Mode::Disabled);
    let plan = policy.step(now, breaker("graph", BreakerState::Open)).expect("the plan changes");
    assert_eq!((plan.mode, plan.level, plan.level_number()), (Mode::QueueWrites, Level::NoGraph, 1));
    assert_eq!(plan.cause, ModeCause::Policy(Level::NoGraph));
    assert_eq!(policy.step(now, breaker("graph", BreakerState::HalfOpen)), None, "half-open is still lost");
    let plan = policy.step(now, breaker("graph", BreakerState::Closed)).expect("the plan changes");
    assert_eq!((plan.mode, plan.level), (Mode::Disabled, Level::Normal));
}

#[test]
fn a_best_effort_backend_that_is_lost_changes_its_access_and_no_mode() {
    let mut policy = policy(FallbackConfig::default());
    let plan = policy.step(Instant::now(), breaker("copy", BreakerState::Open)).expect("the plan changes");
    assert_eq!((plan.mode, plan.level), (Mode::Disabled, Level::Normal));
    assert_eq!(plan.access(&"copy".into()), Access::None);
}

#[test]
fn a_backend_that_nobody_knows_changes_nothing() {
    let mut policy = policy(FallbackConfig::default());
    assert_eq!(policy.step(Instant::now(), breaker("elsewhere", BreakerState::Open)), None);
    assert_eq!(policy.plan().access(&"elsewhere".into()), Access::None);
}

#[test]
fn every_mode_can_follow_every_other_and_only_those_that_keep_durably_give_way_to_a_broken_journal() {
    let now = Instant::now();
    for fallback in [JournalFallback::ReadOnly, JournalFallback::MemoryOnly] {
        for (from, to, journal) in triples(Mode::ALL, Mode::ALL, JOURNALS) {
            let config = FallbackConfig { journal_unavailable: fallback, ..FallbackConfig::default() };
            let mut policy = policy(config);
            let _ = policy.step(now, set(from, None));
            let _ = policy.step(now, Input::JournalChanged(journal));
            let before = policy.plan().clone();
            let _ = policy.step(now, set(to, None));
            let plan = policy.plan();
            let gives_way = journal != JournalHealth::Healthy && matches!(to, Mode::QueueWrites | Mode::LocalStorage);
            assert_eq!(plan.mode, if gives_way { fallback.mode() } else { to }, "{from:?} to {to:?}, {journal:?}");
            assert_eq!(plan.cause == ModeCause::JournalUnavailable, gives_way);
            assert_eq!(plan.manual, Some(to));
            assert_eq!(plan.epoch - before.epoch, u64::from(plan.mode != before.mode));
            // What an earlier mode has left is drained, and read, in every mode.
            assert_eq!(plan.may_drain(), plan.mode != Mode::LocalStorage);
        }
    }
}

fn triples<A: Copy, B: Copy, C: Copy, const L: usize, const M: usize, const N: usize>(
    a: [A; L],
    b: [B; M],
    c: [C; N],
) -> impl Iterator<Item = (A, B, C)> {
    a.into_iter().flat_map(move |a| b.into_iter().flat_map(move |b| c.into_iter().map(move |c| (a, b, c))))
}

#[test]
fn the_rules_of_a_plan_are_those_of_the_table() {
    let now = Instant::now();
    let mut policy = policy(FallbackConfig::default());
    for (mode, write, legs, read) in [
        (Mode::Disabled, WriteRule::Through, LegRule::Try, (true, false)),
        (Mode::MemoryOnly, WriteRule::Memory, LegRule::Try, (true, true)),
        (Mode::LocalStorage, WriteRule::Local, LegRule::Owe, (false, true)),
        (Mode::QueueWrites, WriteRule::Queue, LegRule::Try, (true, true)),
    ] {
        let _ = policy.step(now, set(mode, None));
        let plan = policy.plan();
        assert_eq!(plan.write_rule(), write);
        assert_eq!(plan.leg_rule(&"graph".into()), legs);
        assert_eq!(plan.read_rule(), ReadRule { backends: read.0, cache: read.1 });
    }
    let _ = policy.step(now, set(Mode::ReadOnly, None));
    let plan = policy.plan();
    assert!(matches!(plan.write_rule(), WriteRule::Refused { reason } if reason.contains("maintenance")));
    assert_eq!(plan.read_rule(), ReadRule { backends: true, cache: true });
}

#[test]
fn a_backend_that_takes_no_writes_is_owed_its_legs_and_an_open_breaker_is_left_to_its_gate() {
    let now = Instant::now();
    let mut policy = policy(FallbackConfig::default());
    let _ = policy.step(now, Input::WriteRefused { backend: "graph".into() });
    let _ = policy.step(now, Input::WriteRefused { backend: "copy".into() });
    let _ = policy.step(now, breaker("vector", BreakerState::Open));
    let plan = policy.plan();
    assert_eq!(plan.leg_rule(&"graph".into()), LegRule::Owe);
    assert_eq!(plan.leg_rule(&"vector".into()), LegRule::Try);
    assert_eq!(plan.leg_rule(&"copy".into()), LegRule::Try, "best-effort backends owe nothing");
    assert!(plan.offers(Capability::GraphTraversal) && !plan.offers(Capability::VectorSearch));
    assert!(plan.supports(Capability::VectorSearch));
    let order: Vec<_> = plan.readers().map(|b| b.name.as_str()).collect();
    assert_eq!(order, ["graph", "copy", "vector"]);
}

#[test]
fn a_read_only_backend_recovers_by_a_good_probe_or_by_a_write_that_it_takes() {
    let now = Instant::now();
    let graph = || BackendName::from("graph");
    for good in
        [Input::ProbeReported { backend: graph(), health: Health::Healthy }, Input::WriteAccepted { backend: graph() }]
    {
        for bad in [
            Input::ProbeReported { backend: graph(), health: Health::ReadOnly },
            Input::WriteRefused { backend: graph() },
        ] {
            let mut policy = policy(FallbackConfig::default());
            let plan = policy.step(now, bad).expect("the plan changes");
            assert_eq!((plan.access(&graph()), plan.level), (Access::ReadOnly, Level::Reduced));
            let plan = policy.step(now, good.clone()).expect("the plan changes");
            assert_eq!((plan.access(&graph()), plan.level), (Access::ReadWrite, Level::Normal));
        }
    }
}

#[test]
fn a_mode_set_by_hand_ends_at_its_end_and_not_before() {
    let start = Instant::now();
    let mut policy = policy(FallbackConfig::default());
    let _ = policy.step(start, set(Mode::LocalStorage, Some(60 * SECOND)));
    assert_eq!(policy.next_deadline(), Some(start + 60 * SECOND));
    assert_eq!(policy.step(start + 59 * SECOND, Input::Tick), None);
    let plan = policy.step(start + 60 * SECOND, Input::Tick).expect("the plan changes");
    assert_eq!((plan.mode, plan.manual, plan.manual_until), (Mode::Disabled, None, None));
    assert_eq!(policy.next_deadline(), None);
}

#[test]
fn an_end_beyond_the_clock_is_no_end_and_an_end_at_once_has_ended() {
    let now = Instant::now();
    let mut policy = policy(FallbackConfig::default());
    let _ = policy.step(now, set(Mode::ReadOnly, Some(Duration::MAX)));
    assert_eq!((policy.plan().mode, policy.plan().manual_until), (Mode::ReadOnly, None));
    let _ = policy.step(now, set(Mode::ReadOnly, Some(Duration::ZERO)));
    assert_eq!((policy.plan().mode, policy.plan().manual), (Mode::Disabled, None));
}

#[test]
fn the_reason_of_a_mode_is_bounded() {
    let mut policy = policy(FallbackConfig::default());
    let reason = "ü".repeat(REASON_BYTES);
    let _ = policy.step(Instant::now(), Input::SetMode { mode: Mode::ReadOnly, reason, expires_in: None });
    let ModeCause::Manual { reason, .. } = &policy.plan().cause else { panic!("set by hand") };
    assert_eq!(reason.len(), REASON_BYTES);
}

#[test]
fn a_recovery_has_to_last_before_the_mode_goes_back() {
    let start = Instant::now();
    let mut policy = policy(FallbackConfig { recover_after: 10 * SECOND, ..FallbackConfig::default() });
    let _ = policy.step(start, breaker("graph", BreakerState::Open));
    let _ = policy.step(start + SECOND, breaker("graph", BreakerState::Closed));
    assert_eq!((policy.plan().level, policy.plan().mode), (Level::Normal, Mode::QueueWrites));
    assert_eq!(policy.next_deadline(), Some(start + 11 * SECOND));
    let _ = policy.step(start + 5 * SECOND, breaker("graph", BreakerState::Open));
    let _ = policy.step(start + 6 * SECOND, breaker("graph", BreakerState::Closed));
    assert_eq!(policy.step(start + 15 * SECOND, Input::Tick), None, "the wait begins anew");
    let plan = policy.step(start + 16 * SECOND, Input::Tick).expect("the plan changes");
    assert_eq!((plan.mode, plan.cause.clone()), (Mode::Disabled, ModeCause::Policy(Level::Normal)));
}

#[test]
fn single_levels_can_have_modes_of_their_own() {
    let config: FallbackConfig = serde_json::from_value(serde_json::json!({
        "mode": "memory_only",
        "levels": { "in_memory": "local_storage" },
        "recover_after": "2s",
    }))
    .unwrap();
    assert_eq!(config.mode_when_degraded, Mode::MemoryOnly);
    assert_eq!(config.mode_at(Level::InMemory), Mode::LocalStorage);
    assert_eq!(config.mode_at(Level::NoGraph), Mode::MemoryOnly);
    assert_eq!(config.recover_after, 2 * SECOND);
    assert!(serde_json::from_value::<FallbackConfig>(serde_json::json!({ "modus": "disabled" })).is_err());
}

#[test]
fn all_problems_of_a_configuration_are_told_at_once() {
    let mut none = Vec::new();
    FallbackConfig::default().problems("fallback", &mut none);
    assert_eq!(none, []);

    let mut config = FallbackConfig {
        levels: [(Level::Normal, Mode::ReadOnly)].into(),
        journal_stall: Duration::ZERO,
        recover_after: Duration::MAX,
        ..FallbackConfig::default()
    };
    config.cache.max_size = 0;
    config.cache.max_bytes = 0;
    config.cache.ttl = Duration::MAX;
    let mut problems = Vec::new();
    config.problems("fallback", &mut problems);
    let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "fallback.levels.normal",
            "fallback.journal_stall",
            "fallback.recover_after",
            "fallback.cache.max_size",
            "fallback.cache.max_bytes",
            "fallback.cache.ttl",
            "fallback.cache.tombstone_ttl",
        ]
    );
}

#[test]
fn a_journal_is_stalled_when_it_answers_nothing_for_too_long_and_not_when_it_is_slow_or_idle() {
    let start = Instant::now();
    let mut watch = JournalWatch::new(8 * SECOND);
    let progress = |submitted, answered| JournalProgress { submitted, answered, ..JournalProgress::default() };
    let mut at = |second: u64, progress| watch.observe(start + Duration::from_secs(second), progress);
    for second in 0..60 {
        assert_eq!(at(second, progress(5, 5)), JournalHealth::Healthy, "idle");
    }
    for second in 60..120 {
        assert_eq!(at(second, progress(1_000, 5 + (second - 60) / 7)), JournalHealth::Healthy, "slow");
    }
    for second in 120..128 {
        assert_eq!(at(second, progress(1_000, 20)), JournalHealth::Healthy, "not for long yet");
    }
    assert_eq!(at(128, progress(1_001, 20)), JournalHealth::Stalled);
    assert_eq!(at(200, progress(1_001, 20)), JournalHealth::Stalled);
    assert_eq!(at(201, progress(1_001, 21)), JournalHealth::Healthy);
    let failed = JournalProgress { failed: true, ..progress(1_001, 1_001) };
    assert_eq!(at(202, failed), JournalHealth::Failed);
    assert_eq!(at(203, progress(1_001, 1_001)), JournalHealth::Healthy, "reopened");
}

#[test]
fn a_process_that_was_stopped_does_not_blame_its_journal() {
    let start = Instant::now();
    let mut watch = JournalWatch::new(8 * SECOND);
    let waiting = JournalProgress { submitted: 1, answered: 0, ..JournalProgress::default() };
    assert_eq!(watch.observe(start, waiting), JournalHealth::Healthy);
    assert_eq!(watch.observe(start + 3_600 * SECOND, waiting), JournalHealth::Healthy);
}

/// The rules, as plainly as they can be said: from the whole history, each time anew.
#[derive(Clone, Debug)]
struct Model {
    now: u64,
    recover_after: u64,
    states: [BreakerState; 3],
    read_only: [bool; 3],
    journal: JournalHealth,
    manual: Option<(Mode, Option<u64>)>,
    history: Vec<(u64, Level)>,
}

const NAMES: [&str; 3] = ["graph", "vector", "copy"];

impl Model {
    fn new(recover_after: u64) -> Self {
        Self {
            now: 0,
            recover_after,
            states: [BreakerState::Closed; 3],
            read_only: [false; 3],
            journal: JournalHealth::Healthy,
            manual: None,
            history: vec![(0, Level::Normal)],
        }
    }

    fn hear(&mut self, action: &Action) {
        let now = self.now;
        match *action {
            Action::Breaker(backend, state) => self.states[backend] = STATES[state],
            Action::ReadOnly(backend, read_only, _) => self.read_only[backend] = read_only,
            Action::Journal(health) => self.journal = JOURNALS[health],
            Action::Set(mode, expires_in) => self.manual = Some((Mode::ALL[mode], expires_in.map(|after| now + after))),
            Action::Clear => self.manual = None,
            Action::Tick => {}
        }
        if self.manual.is_some_and(|(_, until)| until.is_some_and(|until| until <= now)) {
            self.manual = None;
        }
        self.history.push((now, self.level()));
    }

    fn access(&self, backend: usize) -> Access {
        match self.states[backend] {
            BreakerState::Open | BreakerState::HalfOpen | BreakerState::ForcedOpen => Access::None,
            _ if self.read_only[backend] => Access::ReadOnly,
            _ => Access::ReadWrite,
        }
    }

    fn level(&self) -> Level {
        match (self.access(0), self.access(1)) {
            (Access::ReadWrite, Access::ReadWrite) => Level::Normal,
            (Access::None, Access::None) => Level::InMemory,
            (Access::None, _) => Level::NoGraph,
            (_, Access::None) => Level::NoVector,
            (Access::ReadOnly, Access::ReadOnly) => Level::ReadOnly,
            _ => Level::Reduced,
        }
    }

    /// The level that the policy follows.
    fn settled(&self) -> Level {
        let (now, level) = *self.history.last().expect("something was heard");
        let bad = self.history.iter().rposition(|(_, level)| *level != Level::Normal);
        match bad {
            Some(bad) if level == Level::Normal && now - self.history[bad + 1].0 < self.recover_after => {
                self.history[bad].1
            }
            _ => level,
        }
    }

    fn mode(&self) -> Mode {
        let healthy = self.journal == JournalHealth::Healthy;
        match self.manual {
            Some((Mode::QueueWrites | Mode::LocalStorage, _)) if !healthy => Mode::ReadOnly,
            Some((mode, _)) => mode,
            None if !healthy => Mode::ReadOnly,
            None if self.settled() == Level::Normal => Mode::Disabled,
            None => Mode::QueueWrites,
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Breaker(usize, usize),
    /// Which backend, whether it is read-only, and whether a probe found that (else a write).
    ReadOnly(usize, bool, bool),
    Journal(usize),
    Set(usize, Option<u64>),
    Clear,
    Tick,
}

impl Action {
    fn input(&self) -> Input {
        match *self {
            Self::Breaker(backend, state) => breaker(NAMES[backend], STATES[state]),
            Self::ReadOnly(backend, read_only, probe) => {
                let backend = NAMES[backend].into();
                match (probe, read_only) {
                    (true, true) => Input::ProbeReported { backend, health: Health::ReadOnly },
                    (true, false) => Input::ProbeReported { backend, health: Health::Healthy },
                    (false, true) => Input::WriteRefused { backend },
                    (false, false) => Input::WriteAccepted { backend },
                }
            }
            Self::Journal(health) => Input::JournalChanged(JOURNALS[health]),
            Self::Set(mode, expires_in) => set(Mode::ALL[mode], expires_in.map(Duration::from_secs)),
            Self::Clear => Input::ClearMode,
            Self::Tick => Input::Tick,
        }
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    /// What is heard, and how many seconds after the last.
    type Transition = (u64, Action);

    fn init_state() -> BoxedStrategy<Self> {
        (0..15_u64).prop_map(Self::new).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<(u64, Action)> {
        let action = prop_oneof![
            4 => (0..3_usize, 0..STATES.len()).prop_map(|(b, s)| Action::Breaker(b, s)),
            2 => (0..3_usize, any::<bool>(), any::<bool>()).prop_map(|(b, r, p)| Action::ReadOnly(b, r, p)),
            2 => (0..3_usize).prop_map(Action::Journal),
            3 => (0..5_usize, proptest::option::of(0..20_u64)).prop_map(|(m, e)| Action::Set(m, e)),
            1 => Just(Action::Clear),
            2 => Just(Action::Tick),
        ];
        (0..8_u64, action).boxed()
    }

    fn apply(mut model: Self, (pause, action): &(u64, Action)) -> Self {
        model.now += pause;
        model.hear(action);
        model
    }
}

/// The policy against the rules.
struct Manager {
    start: Instant,
    policy: FallbackPolicy,
}

impl StateMachineTest for Manager {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(model: &Model) -> Self {
        let recover_after = Duration::from_secs(model.recover_after);
        let policy = policy(FallbackConfig { recover_after, ..FallbackConfig::default() });
        Self { start: Instant::now(), policy }
    }

    fn apply(mut manager: Self, model: &Model, (_, action): (u64, Action)) -> Self {
        let last = manager.policy.plan().clone();
        let changed = manager.policy.step(manager.start + Duration::from_secs(model.now), action.input());
        let plan = manager.policy.plan();
        // A plan is told if and only if it changed, and its epoch counts the modes.
        assert_eq!(changed.is_some(), *plan != last);
        assert_eq!(plan.epoch, last.epoch + u64::from(plan.mode != last.mode));
        manager
    }

    fn check_invariants(manager: &Self, model: &Model) {
        let plan = manager.policy.plan();
        assert_eq!(plan.mode, model.mode());
        assert_eq!(plan.level, model.level());
        assert_eq!(plan.journal, model.journal);
        assert_eq!(plan.manual, model.manual.map(|(mode, _)| mode));
        for (backend, name) in NAMES.iter().enumerate() {
            assert_eq!(plan.access(&BackendName::from(*name)), model.access(backend));
        }
        // What is promised durably is kept in a journal that takes writes.
        assert!(plan.journal == JournalHealth::Healthy || !plan.mode.keeps_durably());
        // Nothing that is due is overdue.
        let now = manager.start + Duration::from_secs(model.now);
        assert!(manager.policy.next_deadline().is_none_or(|due| due > now));
    }
}

prop_state_machine! {
    #![proptest_config(models::cases(400))]

    #[test]
    fn the_policy_does_what_the_plain_rules_say(sequential 1..60 => Manager);
}
