//! A redis-server of a test's own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use seawall::config::RedisConfig;
use tempfile::TempDir;

/// Names the redis-server to run. Without it the tests with a server are skipped.
const VARIABLE: &str = "SEAWALL_REDIS_SERVER";
/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);

/// A redis-server on a free port, with everything it acknowledged on disk. It dies with this.
pub(crate) struct Server {
    pub(crate) port: u16,
    binary: String,
    dir: TempDir,
    options: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// Starts one; `None`, with a word about it, where there is none to start.
    pub(crate) async fn start(options: &[&str]) -> Option<Self> {
        let Ok(binary) = std::env::var(VARIABLE) else {
            eprintln!("skipped: {VARIABLE} does not name a redis-server");
            return None;
        };
        let options = options.iter().map(ToString::to_string).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = Self { port: 0, binary, dir, options, process: None };
        // A free port can be taken by somebody else before the server has it.
        for _ in 0..10 {
            server.port = free_port();
            if server.run().await {
                return Some(server);
            }
        }
        panic!("{VARIABLE}: the server does not start; its log: {}", server.log());
    }

    /// The same on this port, which is free.
    pub(crate) async fn start_at(port: u16) -> Option<Self> {
        let mut server = Self::start(&[]).await?;
        server.kill();
        server.port = port;
        assert!(server.run().await, "{}", server.log());
        Some(server)
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again, on what it had acknowledged.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        assert!(self.run().await, "{}", self.log());
    }

    /// Sends it a signal: STOP, CONT.
    pub(crate) fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs");
        let sent = Command::new("kill").args([&format!("-{signal}"), &process.id().to_string()]).status();
        assert!(sent.expect("there is a kill").success());
    }

    pub(crate) fn config(&self) -> RedisConfig {
        at(self.port)
    }

    /// Runs a command on it, past the store.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(("127.0.0.1", self.port)).expect("an address");
        let mut connection = client.get_multiplexed_async_connection().await.expect("connects");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.expect("answers")
    }

    async fn run(&mut self) -> bool {
        let log = self.dir.path().join("log");
        let process = Command::new(&self.binary)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"])
            .arg("--dir")
            .arg(self.dir.path())
            .arg("--logfile")
            .arg(log)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.unwrap_or_else(|error| panic!("{VARIABLE}={}: {error}", self.binary)));
        let running = tokio::time::timeout(PATIENCE, async {
            while !self.log().contains("Ready to accept connections") {
                let process = self.process.as_mut().expect("it was started");
                if process.try_wait().expect("it can be asked").is_some() {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            std::fs::remove_file(self.dir.path().join("log")).expect("the next run has a log of its own");
            true
        });
        let running = running.await.unwrap_or(false);
        if !running {
            self.kill();
        }
        running
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The configuration for a Redis on this port, with a patience that a busy machine does not outlast.
pub(crate) fn at(port: u16) -> RedisConfig {
    RedisConfig {
        enabled: true,
        host: "127.0.0.1".to_owned(),
        port,
        timeout: Duration::from_secs(4),
        ..RedisConfig::default()
    }
}

/// A port on which nobody listens.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("binds");
    listener.local_addr().expect("has an address").port()
}
