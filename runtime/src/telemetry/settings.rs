//! Where the metrics go.

use std::net::SocketAddr;
use std::time::Duration;

use seawall_actors::config::{ConfigProblem, check_range};
use serde::{Deserialize, Serialize};

/// Where the metrics go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where the page for Prometheus is served, in plain HTTP and without a login: a loopback address, unless
    /// [`allow_remote`](Self::allow_remote). `None`, the default, serves nothing, and hands the metrics to the
    /// recorder that the service has installed with the crate `metrics`, if it has.
    pub listen: Option<SocketAddr>,
    /// Whether [`listen`](Self::listen) may be reachable from other machines. Default `false`.
    pub allow_remote: bool,
    /// How often the state is sampled. Default 1 s, range 100 ms to 1 min.
    #[serde(with = "seawall_actors::config::seconds")]
    pub sample_interval: Duration,
    /// A value for the label `runtime` of every metric, for a process that has several runtimes and one recorder.
    /// Default `None`: no such label.
    pub runtime: Option<String>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: None, allow_remote: false, sample_interval: Duration::from_secs(1), runtime: None }
    }
}

impl MetricsConfig {
    /// Adds everything that is wrong with these values, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        if let Some(address) = self.listen
            && !address.ip().is_loopback()
            && !self.allow_remote
        {
            let problem = format!(
                "{address} can be reached from other machines, and the page has no login; use a loopback address \
                 such as 127.0.0.1:9464, or set {path}.allow_remote = true"
            );
            problems.push(ConfigProblem::new(path, "listen", problem));
        }
        let range = Duration::from_millis(100)..=Duration::from_secs(60);
        check_range(path, "sample_interval", self.sample_interval, range, problems);
    }
}
