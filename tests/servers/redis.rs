//! A redis-server that has everything it acknowledged on disk.

use std::process::Command;

use super::{Place, Program, Server};

/// How it is run.
#[derive(Default)]
pub struct Redis {
    /// More of its own options: `--requirepass`, `hush`.
    pub options: Vec<String>,
}

/// A redis-server of a test's own.
pub type RedisServer = Server<Redis>;

impl Redis {
    pub fn with(options: &[&str]) -> Self {
        Self { options: options.iter().map(ToString::to_string).collect() }
    }
}

impl Program for Redis {
    const NAME: &'static str = "redis";

    fn command(&self, place: &Place) -> Command {
        let mut command = Command::new(place.installed.join("redis-server"));
        command
            .args(["--port", &place.ports[0].to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"])
            .arg("--dir")
            .arg(&place.data)
            .args(&self.options);
        command
    }

    async fn ready(&self, place: &Place) -> bool {
        place.printed().contains("Ready to accept connections")
    }
}
