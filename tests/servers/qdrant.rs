//! The engine of Qdrant behind its gRPC protocol (`qdrant_server.py`), with everything it acknowledged in its log.

use std::path::PathBuf;
use std::process::Command;

use super::{Place, Program, Server};

/// How it is run.
#[derive(Default)]
pub struct Qdrant {
    /// The key that callers have to know.
    pub api_key: Option<String>,
    /// The files of the certificate and of the key with which it encrypts.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// A Qdrant of a test's own.
pub type QdrantServer = Server<Qdrant>;

impl Program for Qdrant {
    const NAME: &'static str = "qdrant";

    fn command(&self, place: &Place) -> Command {
        let mut command = Command::new(place.installed.join("venv/bin/python"));
        command.arg(place.installed.join("qdrant_server.py")).arg(&place.data).arg(place.ports[0].to_string());
        if let Some(key) = &self.api_key {
            command.args(["--api-key", key]);
        }
        if let Some((certificate, key)) = &self.tls {
            command.arg("--tls").arg(certificate).arg(key);
        }
        command
    }

    async fn ready(&self, place: &Place) -> bool {
        place.printed().lines().any(|line| line == "ready")
    }
}
