//! tower-resilience: its circuit breaker.

use ::tower_resilience_circuitbreaker::{
    CircuitBreaker, CircuitBreakerConfigBuilder, CircuitBreakerError, CircuitBreakerLayer, DefaultClassifier,
    FailureClassifier, SlidingWindowType,
};
use futures::FutureExt;
use tower::ServiceExt;
use tower::util::ServiceFn;

use crate::breaker::{Answer, Backend, Breaker, Call, Counts, Listener, Rule, Settings, Trouble, Why};

type Inner = ServiceFn<fn(Backend) -> Backend>;

/// A request is the call to the backend itself.
pub(crate) struct TowerResilience(CircuitBreaker<Inner, Judge>);

#[derive(Clone)]
struct Judge;

impl FailureClassifier<(), Trouble> for Judge {
    fn classify(&self, result: &Result<(), Trouble>) -> bool {
        *result == Err(Trouble::Failure)
    }
}

fn builder(Settings { wait, rule }: Settings) -> CircuitBreakerConfigBuilder<DefaultClassifier> {
    let builder = CircuitBreakerLayer::builder().wait_duration_in_open(wait).permitted_calls_in_half_open(1);
    match rule {
        // It has no ramp.
        Rule::Touchy | Rule::Ramp => builder.consecutive_failures(1),
        Rule::Patient => builder.consecutive_failures(3),
        Rule::LastFour => builder.failure_rate_threshold(0.5).sliding_window_size(4).minimum_number_of_calls(4),
        Rule::Window(window) => builder
            .failure_rate_threshold(0.5)
            .sliding_window_type(SlidingWindowType::TimeBased)
            .sliding_window_duration(window)
            .minimum_number_of_calls(3)
            .permitted_calls_in_half_open(3),
        Rule::Slow(slow) => builder
            .consecutive_failures(3)
            .sliding_window_size(4)
            .minimum_number_of_calls(4)
            .slow_call_duration_threshold(slow)
            .slow_call_rate_threshold(0.5),
    }
}

fn open(builder: CircuitBreakerConfigBuilder<DefaultClassifier>) -> TowerResilience {
    let layer = builder.failure_classifier_type(Judge).build().expect("the settings are in range");
    let inner: fn(Backend) -> Backend = |backend| backend;
    TowerResilience(layer.layer_fn(tower::service_fn(inner)))
}

impl Breaker for TowerResilience {
    const CRATE: &'static str = "tower-resilience-circuitbreaker";

    async fn new(settings: Settings) -> Result<Self, Why> {
        Ok(open(builder(settings)))
    }

    fn call(&self, backend: Backend) -> Call {
        self.0
            .clone()
            .oneshot(backend)
            .map(|result| match result {
                Ok(()) => Answer::Made(Ok(())),
                Err(CircuitBreakerError::Inner(trouble)) => Answer::Made(Err(trouble)),
                Err(CircuitBreakerError::OpenCircuit) => Answer::Refused { retry_after: None },
            })
            .boxed()
    }

    async fn heard(settings: Settings, listener: Listener) -> Result<Self, Why> {
        Ok(open(builder(settings).on_state_transition(move |_, _| listener())))
    }

    async fn measured(settings: Settings) -> Result<(Self, &'static str), Why> {
        Ok((Self::new(settings).await?, "circuitbreaker_state"))
    }

    async fn counts(&self) -> Result<Counts, Why> {
        let seen = self.0.metrics().await;
        Ok(Counts { succeeded: seen.success_count as u64, failed: seen.failure_count as u64, ..Counts::default() })
    }
}
