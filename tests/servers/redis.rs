//! A redis-server that has everything it acknowledged on disk.

use std::path::PathBuf;
use std::process::Command;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Place, Program, Server};

/// How it is run.
#[derive(Default)]
pub struct Redis {
    /// More of its own options: `--requirepass`, `hush`.
    pub options: Vec<String>,
    /// Where `cert.pem` and `key.pem` are, for one that speaks TLS alone.
    pub tls: Option<PathBuf>,
}

/// A redis-server of a test's own.
pub type RedisServer = Server<Redis>;

impl Redis {
    pub fn with(options: &[&str]) -> Self {
        Self { options: options.iter().map(ToString::to_string).collect(), ..Self::default() }
    }
}

impl RedisServer {
    /// Says this to it and gives the first line of what it answers, such as `+OK`.
    pub async fn say(&self, words: &str) -> String {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", self.port())).await.expect("connects"));
        stream.write_all(format!("{words}\r\n").as_bytes()).await.expect("writes");
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("answers");
        line.trim_end().to_owned()
    }
}

impl Program for Redis {
    const NAME: &'static str = "redis";

    fn command(&self, place: &Place) -> Command {
        let mut command = Command::new(place.installed.join("redis-server"));
        let port = place.ports[0].to_string();
        match &self.tls {
            None => command.args(["--port", &port]),
            Some(dir) => command
                .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no", "--tls-cert-file"])
                .arg(dir.join("cert.pem"))
                .arg("--tls-key-file")
                .arg(dir.join("key.pem")),
        };
        command
            .args(["--bind", "127.0.0.1", "--save", ""])
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
