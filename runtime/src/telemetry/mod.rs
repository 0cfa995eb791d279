//! What a running Seawall shows of itself: metrics and logs.
//!
//! | source | becomes |
//! |---|---|
//! | [`Observe::observe`], sampled once per [`sample_interval`](MetricsConfig::sample_interval) and at every scrape | gauges, and counters of what the runtime counts itself |
//! | the [events](seawall_actors::event) | log lines (`tracing`), and counters of what happened |
//!
//! The metrics of a runtime that [listens](MetricsConfig::listen) are its own: two runtimes in a process do not
//! meet. One that does not listen hands them to the recorder that the service has installed, before the start of
//! the runtime, with the crate `metrics`; without one they cost nothing.

mod observation;
mod observer;
mod page;
mod registry;
mod series;
mod settings;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::Histogram;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use seawall_actors::backend::BackendName;
use seawall_actors::event::Subscription;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use observer::Observer;
use registry::Registry;
use series::Series;

pub use observation::{BackendObservation, Observation, Observe, QueueObservation, SagaObservation};
pub use settings::MetricsConfig;

/// Bounds of the buckets of durations, in seconds: from a call on loopback to the longest default deadline.
const BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The metrics and logs of a runtime. Dropping it ends them.
pub struct Telemetry {
    sampler: Sampler,
    address: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

/// Why the metrics cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The address cannot be listened at: it is in use, or not one of this machine.
    #[error("cannot serve metrics at {address} (`metrics.listen`): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

impl Telemetry {
    /// Starts to sample this source and to follow these events, and serves the page if the configuration says so.
    ///
    /// # Errors
    /// When the page cannot be served.
    pub async fn start(
        config: &MetricsConfig,
        source: Arc<dyn Observe>,
        events: Subscription,
    ) -> Result<Self, TelemetryError> {
        let recorder = config.listen.map(|_| Arc::new(builder().build_recorder()));
        let page = recorder.as_ref().map(|recorder| recorder.handle());
        let registry = Registry::new(recorder, config.runtime.as_deref());
        let series = Arc::new(Mutex::new(Series::new(registry.clone())));
        let sampler = Sampler { source, series, page };
        let mut tasks = JoinSet::new();
        let mut address = None;
        if let Some(wanted) = config.listen {
            let failed = |source| TelemetryError::Listen { address: wanted, source };
            let listener = TcpListener::bind(wanted).await.map_err(failed)?;
            address = Some(listener.local_addr().map_err(failed)?);
            let sampler = sampler.clone();
            tasks.spawn(page::serve(listener, Arc::new(move || sampler.render().unwrap_or_default())));
        }
        tasks.spawn(Observer::new(registry).follow(events));
        tasks.spawn(sampler.clone().run(config.sample_interval));
        Ok(Self { sampler, address, tasks })
    }

    /// Where the page is served, with the port that was chosen if port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The page as it is now; `None` when the runtime does not listen.
    #[must_use]
    pub fn render(&self) -> Option<String> {
        self.sampler.render()
    }

    /// Where the durations of probes of this backend are to be recorded, in seconds. Keep it: looking it up costs
    /// more than recording.
    pub fn probe_duration(&self, backend: &BackendName) -> Histogram {
        self.sampler.series.lock().unwrap_or_else(PoisonError::into_inner).probe_duration(backend)
    }

    /// Takes a last sample, for a recorder that outlives the runtime, and ends the tasks.
    pub async fn stop(mut self) {
        self.sampler.sample();
        self.tasks.shutdown().await;
    }
}

/// How a recorder of a runtime's own shows its metrics.
fn builder() -> PrometheusBuilder {
    let durations = Matcher::Suffix("_duration_seconds".to_owned());
    PrometheusBuilder::new().set_buckets_for_metric(durations, &BUCKETS).expect("the list of buckets is not empty")
}

#[derive(Clone)]
struct Sampler {
    source: Arc<dyn Observe>,
    series: Arc<Mutex<Series>>,
    page: Option<PrometheusHandle>,
}

impl Sampler {
    fn sample(&self) {
        let observation = self.source.observe();
        self.series.lock().unwrap_or_else(PoisonError::into_inner).record(&observation);
    }

    /// A sample and the page of it, with no other sample in between: exactly one state of each is 1.
    fn render(&self) -> Option<String> {
        let page = self.page.as_ref()?;
        let observation = self.source.observe();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.record(&observation);
        Some(page.render())
    }

    async fn run(self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.sample();
            // The recorder keeps every measured duration until somebody sums them up.
            if let Some(page) = &self.page {
                page.run_upkeep();
            }
        }
    }
}
