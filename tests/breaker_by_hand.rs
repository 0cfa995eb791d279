//! What a person does to a breaker, and what the prober tells it, through a whole runtime.

mod support;

use std::time::Duration;

use seawall::backends::{Fault, Op};
use seawall::breaker::{BreakerConfig, BreakerState};
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::fallback::Mode;
use support::{Rig, record, refused, until};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_shadow_says_when_it_would_have_opened_and_opens_nothing() {
    let mut config = Config::default();
    let shadow = BreakerConfig { failure_threshold: 2, ..BreakerConfig::default() };
    config.breaker = BreakerConfig { failure_threshold: 1_000, shadow: Some(Box::new(shadow)), ..config.breaker };
    let rig = Rig::with(config).await;
    let mut events = rig.runtime().subscribe();
    rig.vector.set(Fault::Down);
    refused(rig.handle().store(record("a", 1)).await);
    refused(rig.handle().store(record("b", 1)).await);
    assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Closed);
    let would_open = async {
        loop {
            match events.next().await.expect("the runtime lives") {
                Update::Event(event) => match &event.kind {
                    EventKind::BreakerWouldOpen { backend, .. } => return backend.clone(),
                    _ => continue,
                },
                Update::Lagged { .. } => panic!("nothing is missed"),
            }
        }
    };
    let backend = tokio::time::timeout(60 * SECOND, would_open).await.expect("it is told");
    assert_eq!(backend, "vector".into());
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_only_measures_lets_every_call_through_and_counts_it() {
    let rig = Rig::start().await;
    rig.mode(Mode::Disabled).await;
    rig.breaker(&rig.vector).metrics_only("to see what it would do", None);
    rig.vector.set(Fault::Down);
    for n in 0..20 {
        refused(rig.handle().store(record("a", n)).await);
    }
    let seen = rig.breaker(&rig.vector).snapshot();
    assert_eq!((seen.state, seen.rejected), (BreakerState::MetricsOnly, 0));
    assert!(seen.failed >= 20, "{seen:?}");
    rig.vector.heal();
    rig.handle().store(record("a", 99)).await.expect("nothing stands in the way");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_is_configured_anew_in_place() {
    let rig = Rig::start().await;
    rig.mode(Mode::Disabled).await;
    let breaker = rig.breaker(&rig.vector);
    rig.vector.faults.next(Op::Apply, 1, Fault::Down);
    rig.handle().store(record("a", 1)).await.expect("it is tried again");
    let before = breaker.snapshot();
    let config = BreakerConfig { failure_threshold: 1, ..rig.runtime().config().breaker.clone() };
    breaker.reconfigure(config).expect("it can be so");
    assert_eq!((breaker.snapshot().failed, breaker.view().state), (before.failed, BreakerState::Closed));
    rig.vector.faults.next(Op::Apply, 1, Fault::Down);
    refused(rig.handle().store(record("a", 2)).await);
    assert_eq!(breaker.view().state, BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn what_the_prober_finds_makes_the_adaptive_rule_stricter() {
    let mut config = Config::default();
    config.breaker.adaptive = true;
    config.breaker.failure_threshold = 50;
    let rig = Rig::with(config).await;
    let explained = || rig.breaker(&rig.vector).explain();
    let threshold = || {
        let explanation = explained();
        let reading = explanation.rules.iter().find(|reading| reading.rule == "adaptive_failures");
        reading.expect("the rule is on").threshold
    };
    assert!(threshold() > 25.0);
    rig.vector.faults.set(Op::Probe, Fault::Down);
    let failed = || {
        let probes = rig.runtime().control().probes();
        probes.iter().find(|probe| probe.backend == "vector".into()).map_or(0, |probe| probe.consecutive_failures)
    };
    until("the probes raise their alarm", || failed() >= 5).await;
    // Those five alone would leave it far above.
    assert_eq!(threshold(), f64::from(rig.runtime().config().breaker.adaptive_minimum));
}
