//! Seawall.

use std::sync::Arc;
use std::time::Duration;

use ::seawall::backends::Fault;
use ::seawall::breaker::{
    BreakerActor, BreakerArguments, BreakerCell, BreakerConfig, BreakerHandle, BreakerMessage, BreakerState,
    BreakerStateStore, CallOutcome, MemoryStateStore, Purpose,
};
use ::seawall::event::{EventBus, Update};
use ::seawall::telemetry::{BackendObservation, MetricsConfig, Observation, Observe, Telemetry};
use futures::FutureExt;
use ractor::{Actor, ActorRef};
use tokio::time::Instant;

use crate::breaker::{Answer, Backend, Breaker, Call, Counts, Listener, Miss, Probed, Rule, Settings, Trouble, Why};
use crate::storm;
use crate::support::{Rig, until};

const NAME: &str = "graph";

/// A breaker, with what a row needs around it.
pub(crate) struct Seawall {
    cell: BreakerCell,
    bus: Arc<EventBus>,
    config: BreakerConfig,
    /// It brings the ticks, and saves.
    actor: ActorRef<BreakerMessage>,
    /// Of a breaker that is saved.
    store: Option<Arc<MemoryStateStore>>,
    /// Of a breaker that is measured.
    _telemetry: Option<Telemetry>,
}

/// The rules as Seawall has them: the one place that knows its settings.
fn settings(Settings { wait, rule }: Settings) -> BreakerConfig {
    let touchy = BreakerConfig {
        failure_threshold: 1,
        success_threshold: 1,
        reset_timeout: wait,
        half_open_lease: (wait * 5).min(Duration::from_secs(3_600)),
        gradual_recovery: false,
        ..BreakerConfig::default()
    };
    let by_rate = BreakerConfig { failure_threshold: 10_000, failure_rate: Some(0.5), ..touchy.clone() };
    match rule {
        Rule::Touchy => touchy,
        Rule::Patient => BreakerConfig { failure_threshold: 3, ..touchy },
        Rule::LastFour => BreakerConfig { window_calls: 4, minimum_calls: 4, ..by_rate },
        Rule::Window(time) => BreakerConfig { success_threshold: 3, rolling_window: time, minimum_calls: 3, ..by_rate },
        Rule::Ramp => BreakerConfig { gradual_recovery: true, ..touchy },
        Rule::Slow(time) => BreakerConfig { failure_threshold: 3, slow_call: time, ..touchy },
    }
}

impl Seawall {
    async fn open(config: BreakerConfig, store: Option<Arc<MemoryStateStore>>) -> Self {
        let bus = Arc::new(EventBus::new());
        let states = store.clone().map(|store| store as Arc<dyn BreakerStateStore>);
        let cell = BreakerCell::open(NAME.into(), config.clone(), Arc::clone(&bus), states).await;
        let arguments = BreakerArguments { cell: cell.clone() };
        let (actor, _) = Actor::spawn(None, BreakerActor, arguments).await.expect("the actor starts");
        Self { cell, bus, config, actor, store, _telemetry: None }
    }
}

impl Breaker for Seawall {
    const CRATE: &'static str = "seawall";
    const IN_TOKIO_TIME: bool = true;

    async fn new(asked: Settings) -> Result<Self, Why> {
        Ok(Self::open(settings(asked), None).await)
    }

    fn call(&self, backend: Backend) -> Call {
        let gate = Arc::clone(self.cell.handle().gate());
        let call = async move {
            let lease = match gate.try_acquire_owned(Purpose::Live) {
                Ok(lease) => lease,
                Err(refused) => return Answer::Refused { retry_after: Some(refused.retry_after()) },
            };
            let result = backend.await;
            lease.settle(match result {
                Ok(()) => CallOutcome::Success,
                Err(Trouble::Failure) => CallOutcome::Failure,
                Err(Trouble::NotFound) => CallOutcome::Refused,
                Err(Trouble::Elsewhere) => CallOutcome::Ignored,
            });
            Answer::Made(result)
        };
        call.boxed()
    }

    async fn heard(asked: Settings, listener: Listener) -> Result<Self, Why> {
        let breaker = Self::new(asked).await?;
        let mut events = breaker.bus.subscribe();
        tokio::spawn(async move {
            while let Some(Update::Event(_)) = events.next().await {
                listener();
            }
        });
        Ok(breaker)
    }

    async fn measured(asked: Settings) -> Result<(Self, &'static str), Why> {
        let mut breaker = Self::new(asked).await?;
        let config = MetricsConfig { sample_interval: asked.wait / 10, ..MetricsConfig::default() };
        let source = Arc::new(Shown(breaker.cell.handle()));
        let telemetry = Telemetry::start(&config, source, breaker.bus.subscribe()).await;
        breaker._telemetry = Some(telemetry.expect("it listens nowhere"));
        Ok((breaker, "seawall_breaker_state"))
    }

    async fn counts(&self) -> Result<Counts, Why> {
        let seen = self.cell.handle().snapshot();
        Ok(Counts {
            succeeded: seen.successful,
            failed: seen.failed,
            cancelled: seen.cancelled,
            panicked: seen.panicked,
            out: seen.in_flight,
        })
    }

    async fn saved(asked: Settings) -> Result<Self, Why> {
        Ok(Self::open(settings(asked), Some(Arc::default())).await)
    }

    async fn next_process(self) -> Result<Self, Why> {
        let (actor, store) = (self.actor, self.store.ok_or("it was not to be saved")?);
        let _ = actor.kill_and_wait(None).await;
        Ok(Self::open(self.config, Some(store)).await)
    }

    async fn heals_alone() -> Probed {
        let rig = Rig::start().await;
        let state = || rig.breaker(&rig.vector).view().state;
        rig.vector.set(Fault::Down);
        until("the breaker opens", || state() == BreakerState::Open).await;
        rig.vector.heal();
        let healed = Instant::now();
        until("the breaker closes", || state() == BreakerState::Closed).await;
        let config = rig.runtime().config();
        let bearable = config.breaker.reset_timeout + config.health.interval * 4;
        if healed.elapsed() <= bearable { Ok(String::new()) } else { Err(Miss::fails("takes long")) }
    }

    async fn recovery_storm() -> Probed {
        storm::weather().await
    }
}

/// What telemetry shows of a runtime that has this breaker.
struct Shown(BreakerHandle);

impl Observe for Shown {
    fn observe(&self) -> Observation {
        let breaker = self.0.snapshot();
        let backend =
            BackendObservation { breaker, owed: 0, drained: 0, probes: 0, failed_probes: 0, calls: Default::default() };
        Observation { backends: vec![backend], ..Observation::default() }
    }
}
