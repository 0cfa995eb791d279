//! The decision: facts and the time go in, the plan comes out. No clock, no I/O, no runtime.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Access, BackendFacts, DegradationLevel, FallbackConfig, Mode, ModeCause, Plan, Profile};
use crate::backend::{BackendName, Health};
use crate::breaker::BreakerState;
use crate::journal::JournalHealth;

/// The longest reason that is kept of a mode set by hand, in bytes: it goes into events, logs and refusals.
pub const REASON_BYTES: usize = 512;

/// What the policy hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A breaker is in this state.
    BreakerChanged {
        /// Whose.
        backend: BackendName,
        /// The state.
        state: BreakerState,
    },
    /// A probe found this.
    ProbeReported {
        /// At which backend.
        backend: BackendName,
        /// What.
        health: Health,
    },
    /// A backend refused a write as [`ErrorKind::ReadOnly`](crate::backend::ErrorKind::ReadOnly).
    WriteRefused {
        /// Which.
        backend: BackendName,
    },
    /// A backend that was said to take no writes took one.
    WriteAccepted {
        /// Which.
        backend: BackendName,
    },
    /// The journal is in this state.
    JournalChanged(JournalHealth),
    /// A mode is set by hand, in place of the one that was set by hand before, if there was one.
    SetMode {
        /// Which mode.
        mode: Mode,
        /// Why; cut to [`REASON_BYTES`].
        reason: String,
        /// For how long. `None`, or longer than the clock reaches: until it is lifted.
        expires_in: Option<Duration>,
    },
    /// The mode that was set by hand is lifted.
    ClearMode,
    /// Time has passed.
    Tick,
}

/// The policy; see the [module](super) for its rules.
#[derive(Debug)]
pub struct FallbackPolicy {
    config: FallbackConfig,
    profile: Profile,
    backends: Vec<Watched>,
    journal: JournalHealth,
    manual: Option<Manual>,
    /// The level that the policy's mode follows: the present one, or after a recovery the one that was.
    settled: DegradationLevel,
    /// Since when level 0 holds while `settled` is another.
    normal_since: Option<Instant>,
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Watched {
    facts: BackendFacts,
    breaker: BreakerState,
    read_only: bool,
}

#[derive(Debug)]
struct Manual {
    mode: Mode,
    reason: String,
    expires_in: Option<Duration>,
    until: Option<Instant>,
}

impl Watched {
    /// A breaker that is half-open or recovering gives no access: it lets some calls through, which is no promise to
    /// anybody. What the level says is lost comes back when the breaker closes.
    fn access(&self) -> Access {
        match (self.breaker.admits_freely(), self.read_only) {
            (false, _) => Access::None,
            (true, true) => Access::ReadOnly,
            (true, false) => Access::ReadWrite,
        }
    }
}

impl FallbackPolicy {
    /// A policy for these backends. The breaker of one that is given with access [`None`](Access::None) counts as
    /// open and every other as closed, until told otherwise; one with access [`ReadOnly`](Access::ReadOnly) counts
    /// as such until a probe or a write says better.
    #[must_use]
    pub fn new(config: FallbackConfig, backends: Vec<BackendFacts>) -> Self {
        let profile = config.profile.unwrap_or_else(|| Profile::of(&backends));
        let backends = backends
            .into_iter()
            .map(|facts| Watched {
                breaker: if facts.access == Access::None { BreakerState::Open } else { BreakerState::Closed },
                read_only: facts.access == Access::ReadOnly,
                facts,
            })
            .collect();
        let plan = Arc::new(Plan {
            epoch: 1,
            mode: config.mode_when_normal,
            cause: ModeCause::Policy(DegradationLevel::Normal),
            manual: None,
            manual_until: None,
            level: DegradationLevel::Normal,
            profile,
            journal: JournalHealth::Healthy,
            backends: Vec::new(),
        });
        let mut policy = Self {
            config,
            profile,
            backends,
            journal: JournalHealth::Healthy,
            manual: None,
            settled: DegradationLevel::Normal,
            normal_since: None,
            plan,
        };
        policy.refresh_access();
        policy.settled = policy.level();
        // The first plan is the first: nobody was admitted under another.
        policy.plan = Arc::new(Plan { epoch: 1, ..policy.next_plan() });
        policy
    }

    /// Takes an input at this time. Gives the plan if that changed it.
    pub fn step(&mut self, now: Instant, input: Input) -> Option<Arc<Plan>> {
        match input {
            Input::BreakerChanged { backend, state } => self.on_backend(&backend, |b| b.breaker = state),
            Input::ProbeReported { backend, health } => {
                self.on_backend(&backend, |b| b.read_only = health == Health::ReadOnly);
            }
            Input::WriteRefused { backend } => self.on_backend(&backend, |b| b.read_only = true),
            Input::WriteAccepted { backend } => self.on_backend(&backend, |b| b.read_only = false),
            Input::JournalChanged(health) => self.journal = health,
            Input::SetMode { mode, reason, expires_in } => {
                let until = expires_in.and_then(|after| now.checked_add(after));
                self.manual = Some(Manual { mode, reason: cut(reason), expires_in, until });
            }
            Input::ClearMode => self.manual = None,
            Input::Tick => {}
        }
        self.refresh_access();
        self.settle(now);
        self.plan_if_changed()
    }

    /// The plan that holds.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// When the plan changes though nothing happens: a [`Input::Tick`] is due then.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let recovered = self.normal_since.and_then(|since| since.checked_add(self.config.recover_after));
        [self.plan.manual_until, recovered].into_iter().flatten().min()
    }

    fn on_backend(&mut self, name: &BackendName, change: impl FnOnce(&mut Watched)) {
        if let Some(backend) = self.backends.iter_mut().find(|b| b.facts.name == *name) {
            change(backend);
        }
    }

    fn refresh_access(&mut self) {
        for backend in &mut self.backends {
            backend.facts.access = backend.access();
        }
    }

    fn settle(&mut self, now: Instant) {
        if self.manual.as_ref().and_then(|manual| manual.until).is_some_and(|until| now >= until) {
            self.manual = None;
        }
        let level = self.level();
        if level != DegradationLevel::Normal || self.settled == DegradationLevel::Normal {
            (self.settled, self.normal_since) = (level, None);
            return;
        }
        let since = *self.normal_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.config.recover_after {
            (self.settled, self.normal_since) = (level, None);
        }
    }

    fn level(&self) -> DegradationLevel {
        DegradationLevel::of(&self.facts())
    }

    fn facts(&self) -> Vec<BackendFacts> {
        self.backends.iter().map(|b| b.facts.clone()).collect()
    }

    fn plan_if_changed(&mut self) -> Option<Arc<Plan>> {
        let next = self.next_plan();
        if next == *self.plan {
            return None;
        }
        self.plan = Arc::new(next);
        Some(Arc::clone(&self.plan))
    }

    fn next_plan(&self) -> Plan {
        let (mode, cause) = self.mode();
        let backends = self.facts();
        Plan {
            epoch: self.plan.epoch + u64::from(mode != self.plan.mode),
            mode,
            cause,
            manual: self.manual.as_ref().map(|manual| manual.mode),
            manual_until: self.manual.as_ref().and_then(|manual| manual.until),
            level: DegradationLevel::of(&backends),
            profile: self.profile,
            journal: self.journal,
            backends,
        }
    }

    /// By hand before by policy; and neither may promise a durability that there is not.
    fn mode(&self) -> (Mode, ModeCause) {
        let journal_down = self.journal != JournalHealth::Healthy;
        let unavailable = || (self.config.journal_unavailable.mode(), ModeCause::JournalUnavailable);
        if let Some(manual) = &self.manual {
            if journal_down && manual.mode.keeps_durably() {
                return unavailable();
            }
            let cause = ModeCause::Manual { reason: manual.reason.clone(), expires_in: manual.expires_in };
            return (manual.mode, cause);
        }
        let mode = self.config.mode_at(self.settled);
        // `DISABLED` keeps nothing for later, but a write to several backends needs its intent to be durable.
        if journal_down && (mode.keeps_durably() || mode == Mode::Disabled) {
            return unavailable();
        }
        (mode, ModeCause::Policy(self.settled))
    }
}

fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES));
    reason
}
