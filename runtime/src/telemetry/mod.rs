//! What a running Seawall shows of itself: metrics and logs.

mod settings;

pub use settings::MetricsConfig;
