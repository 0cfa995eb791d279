//! Servers of a test's own: real ones, each on free loopback ports and on data in a temporary directory, that a test
//! kills, freezes, restarts and puts back to an older state.
//!
//! ```ignore
//! let Some(mut server) = Server::start(Redis::default()).await else { return };
//! server.kill();              // SIGKILL
//! server.restart().await;     // on the same data and the same ports
//! ```
//!
//! `tests/servers/install` installs them; the variable `SEAWALL_SERVERS` names the directory where. Without it a test
//! is skipped with a word about it; with it, a server that is missing or does not start is a failed test.
//!
//! A server dies with its [`Server`], and with the process of the test whatever becomes of that.
//!
//! Each server is a [`Program`] in a file beside this one, which uses nothing but std, tokio and tempfile: the tests
//! of more than one package include this room.

#![allow(dead_code, unreachable_pub, reason = "every test uses its part of this room")]

pub mod arcadedb;
pub mod neo4j;
mod nursery;
pub mod proxy;
pub mod qdrant;
pub mod redis;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Names the directory where servers were installed.
pub const VARIABLE: &str = "SEAWALL_SERVERS";
/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often it is looked whether it is there.
const LOOK: Duration = Duration::from_millis(5);
/// How many times a server is started that ends before it is there: its port may have been taken.
const TRIES: usize = 5;

/// How one kind of server is run.
pub trait Program {
    /// The directory of its installation below `SEAWALL_SERVERS`.
    const NAME: &'static str;
    /// On how many ports it listens.
    const PORTS: usize = 1;

    /// The command that runs it in the foreground. What it prints is kept. It must not fork away.
    fn command(&self, place: &Place) -> Command;

    /// Whether it answers. Asked again and again until it does. Must come to an end by itself.
    fn ready(&self, place: &Place) -> impl Future<Output = bool> + Send;
}

/// Where a server runs.
#[derive(Debug)]
pub struct Place {
    /// What was installed.
    pub installed: PathBuf,
    /// What it may fill with data. There when it starts; empty the first time.
    pub data: PathBuf,
    /// Where it has to listen, on 127.0.0.1.
    pub ports: Vec<u16>,
    /// What it has printed since it was started.
    pub log: PathBuf,
}

impl Place {
    /// What it has printed since it was started.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

/// A server that runs, or was killed and can be started again.
pub struct Server<P: Program> {
    program: P,
    place: Place,
    process: Option<Child>,
    _dir: TempDir,
}

/// A copy of a server's data, as it was at one instant.
pub struct Snapshot(TempDir);

impl<P: Program> Server<P> {
    /// Starts one and waits until it answers. `None`, with a word about it, where no servers were installed.
    pub async fn start(program: P) -> Option<Self> {
        Self::start_on(program, None).await
    }

    /// The same on this port, which is free.
    pub async fn start_at(program: P, port: u16) -> Option<Self> {
        Self::start_on(program, Some(port)).await
    }

    /// Starts one that was installed in this directory.
    pub async fn start_from(servers: &Path, program: P) -> Self {
        Self::start_there(servers, program, None).await
    }

    async fn start_on(program: P, port: Option<u16>) -> Option<Self> {
        let Some(servers) = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty()) else {
            eprintln!("skipped: {VARIABLE} does not say where tests/servers/install has put {}", P::NAME);
            return None;
        };
        Some(Self::start_there(Path::new(&servers), program, port).await)
    }

    async fn start_there(servers: &Path, program: P, port: Option<u16>) -> Self {
        let installed = servers.join(P::NAME);
        assert!(installed.is_dir(), "{} was not installed in {}", P::NAME, servers.display());
        let dir = tempfile::tempdir().expect("a directory");
        let (data, log) = (dir.path().join("data"), dir.path().join("log"));
        fs::create_dir(&data).expect("a directory for its data");
        let mut server =
            Self { program, place: Place { installed, data, ports: Vec::new(), log }, process: None, _dir: dir };
        for _ in 0..TRIES {
            server.place.ports = free_ports(P::PORTS);
            if let (Some(port), Some(first)) = (port, server.place.ports.first_mut()) {
                *first = port;
            }
            if server.run().await {
                return server;
            }
        }
        panic!("{} does not start; it printed:\n{}", P::NAME, server.place.printed());
    }

    /// Its first port.
    pub fn port(&self) -> u16 {
        self.place.ports[0]
    }

    /// Where it runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether its process runs (or is frozen).
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().expect("it can be asked").is_none())
    }

    /// Kills it with SIGKILL. Nothing happens to one that was killed before.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again on its data and its ports, after a kill if it runs.
    pub async fn restart(&mut self) {
        self.kill();
        for _ in 0..TRIES {
            if self.run().await {
                return;
            }
        }
        panic!("{} does not start again; it printed:\n{}", P::NAME, self.place.printed());
    }

    /// SIGSTOP: it holds its connections and answers nothing. It is frozen when this returns.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let stat = format!("/proc/{}/stat", self.id());
        let frozen = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "));
        while Path::new(&stat).exists() && !frozen() {
            sleep(LOOK).await;
        }
    }

    /// SIGCONT: it goes on where it was.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Sends it a signal: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.id().to_string()]).status();
        assert!(sent.expect("there is a kill").success());
    }

    /// Its data as they are at this instant: what a copy of its disk would have been, had it been killed now.
    pub async fn snapshot(&mut self) -> Snapshot {
        let running = self.is_running();
        if running {
            self.freeze().await;
        }
        let dir = tempfile::tempdir().expect("a directory");
        copy(&self.place.data, dir.path());
        if running {
            self.thaw();
        }
        Snapshot(dir)
    }

    /// Starts it again on older data, on its ports. What it was given since is lost.
    pub async fn restore(&mut self, snapshot: &Snapshot) {
        self.kill();
        fs::remove_dir_all(&self.place.data).expect("its data can be removed");
        fs::create_dir(&self.place.data).expect("a directory for its data");
        copy(snapshot.0.path(), &self.place.data);
        self.restart().await;
    }

    fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Runs it until it answers. `false` when it ended instead.
    async fn run(&mut self) -> bool {
        let command = self.program.command(&self.place);
        self.process = Some(nursery::spawn(command, &self.place.log));
        let started = Instant::now();
        while !self.program.ready(&self.place).await {
            if !self.is_running() {
                self.process = None;
                return false;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{} is not there after {PATIENCE:?}; it printed:\n{}",
                P::NAME,
                self.place.printed()
            );
            sleep(LOOK).await;
        }
        true
    }
}

impl<P: Program> Drop for Server<P> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether anybody listens on this port.
pub async fn listens(port: u16) -> bool {
    tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()
}

/// A port on which nobody listens.
pub fn free_port() -> u16 {
    free_ports(1)[0]
}

fn free_ports(count: usize) -> Vec<u16> {
    // All are held until each is known, or two of them might be the same.
    let held: Vec<_> =
        (0..count).map(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("binds")).collect();
    held.iter().map(|listener| listener.local_addr().expect("has an address").port()).collect()
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("can be read") {
        let entry = entry.expect("can be read");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("is known");
        if kind.is_dir() {
            fs::create_dir(&to).expect("a directory");
            copy(&from, &to);
        } else if kind.is_file() {
            fs::copy(&from, &to).expect("can be copied");
        }
    }
}
