//! Where series come from: handles of a recorder, resolved once, and the two kinds of value that need more than one
//! handle or a memory.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::PrometheusRecorder;

const METADATA: Metadata<'static> = Metadata::new("seawall", Level::INFO, None);

/// Where series are registered.
#[derive(Clone)]
pub(super) struct Registry {
    /// A recorder of this runtime alone; else whichever the service has installed for the process.
    recorder: Option<Arc<PrometheusRecorder>>,
    labels: Vec<Label>,
}

impl Registry {
    pub(super) fn new(recorder: Option<Arc<PrometheusRecorder>>, runtime: Option<&str>) -> Self {
        let labels = runtime.map(|runtime| Label::new("runtime", runtime.to_owned()));
        Self { recorder, labels: labels.into_iter().collect() }
    }

    /// The same, with one label more on every series.
    pub(super) fn with(&self, name: &'static str, value: impl Into<metrics::SharedString>) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::new(name, value));
        Self { recorder: self.recorder.clone(), labels }
    }

    pub(super) fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.register(name, |recorder, key| {
            recorder.describe_counter(name.into(), None, help.into());
            recorder.register_counter(key, &METADATA)
        })
    }

    pub(super) fn total(&self, name: &'static str, help: &'static str) -> Total {
        Total { counter: self.counter(name, help), counted: 0 }
    }

    pub(super) fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.register(name, |recorder, key| {
            recorder.describe_gauge(name.into(), None, help.into());
            recorder.register_gauge(key, &METADATA)
        })
    }

    pub(super) fn histogram(&self, name: &'static str, help: &'static str) -> Histogram {
        self.register(name, |recorder, key| {
            recorder.describe_histogram(name.into(), None, help.into());
            recorder.register_histogram(key, &METADATA)
        })
    }

    fn register<T>(&self, name: &'static str, register: impl FnOnce(&dyn Recorder, &Key) -> T) -> T {
        let key = Key::from_parts(name, self.labels.clone());
        match &self.recorder {
            Some(recorder) => register(recorder.as_ref(), &key),
            None => metrics::with_recorder(|recorder| register(recorder, &key)),
        }
    }

    pub(super) fn one_hot<T: Copy + PartialEq>(
        &self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: &[(T, &'static str)],
    ) -> OneHot<T> {
        OneHot(values.iter().map(|(value, text)| (*value, self.with(label, *text).gauge(name, help))).collect())
    }
}

/// A counter that follows a number which counts from the start of the runtime.
///
/// It is moved by what has come since, not set to the number: a recorder of the service may outlive the runtime,
/// or serve two, and then counts on.
pub(super) struct Total {
    counter: Counter,
    counted: u64,
}

impl Total {
    pub(super) fn advance(&mut self, now: u64) {
        self.counter.increment(now.saturating_sub(self.counted));
        self.counted = self.counted.max(now);
    }
}

/// A state as one gauge per value, of which exactly one is 1.
pub(super) struct OneHot<T>(Vec<(T, Gauge)>);

impl<T: Copy + PartialEq> OneHot<T> {
    pub(super) fn set(&self, now: T) {
        for (value, gauge) in &self.0 {
            gauge.set(if *value == now { 1.0 } else { 0.0 });
        }
    }
}
