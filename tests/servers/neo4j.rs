//! A Neo4j Community that asks for a password.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Place, Program, Server, VARIABLE};

/// How it is run.
#[derive(Default)]
pub struct Neo4j {
    /// More lines for its `neo4j.conf`.
    pub settings: Vec<String>,
}

/// A Neo4j of a test's own.
pub type Neo4jServer = Server<Neo4j>;

impl Neo4j {
    pub const USER: &str = "neo4j";
    /// It is not Neo4j that keeps this one secret: `tests/servers/install.d/neo4j` has it too.
    pub const PASSWORD: &str = "playwithdata";

    pub fn with(settings: &[&str]) -> Self {
        Self { settings: settings.iter().map(ToString::to_string).collect() }
    }

    /// Why there is none, where Maven Central could not be reached when it was to be installed.
    pub fn unreachable() -> Option<String> {
        let servers = std::env::var_os(VARIABLE)?;
        fs::read_to_string(Path::new(&servers).join(Self::NAME).join("UNREACHABLE")).ok()
    }
}

impl Program for Neo4j {
    const NAME: &'static str = "neo4j";

    fn command(&self, place: &Place) -> Command {
        let home = &place.data;
        let conf = home.join("conf");
        let auth = home.join("data/dbms/auth.ini");
        if !auth.exists() {
            fs::create_dir_all(auth.parent().expect("a parent")).expect("a directory for its password");
            fs::copy(place.installed.join("auth.ini"), &auth).expect("its password");
        }
        fs::create_dir_all(&conf).expect("a directory for its settings");
        fs::write(conf.join("neo4j.conf"), self.settings(place.ports[0])).expect("its settings");
        let mut command = Command::new("java");
        command
            .args(["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            // What its own launcher opens to it.
            .args(
                ["java.nio", "java.io", "sun.nio.ch"]
                    .map(|package| format!("--add-opens=java.base/{package}=ALL-UNNAMED")),
            )
            .arg("-cp")
            .arg(place.installed.join("lib").join("*"))
            .args(["org.neo4j.server.CommunityEntryPoint", "--console-mode"])
            .arg(format!("--home-dir={}", home.display()))
            .arg(format!("--config-dir={}", conf.display()));
        command
    }

    async fn ready(&self, place: &Place) -> bool {
        place.printed().lines().any(|line| line.ends_with("INFO  Started."))
    }
}

impl Neo4j {
    fn settings(&self, port: u16) -> String {
        let own = [
            "server.default_listen_address=127.0.0.1",
            "server.bolt.enabled=true",
            "server.http.enabled=false",
            "server.https.enabled=false",
            "server.memory.pagecache.size=64m",
            // Its logs of transactions are 256 MB each at the start.
            "db.tx_log.preallocate=false",
            "dbms.usage_report.enabled=false",
        ];
        let lines = own.into_iter().map(str::to_owned).chain([format!("server.bolt.listen_address=127.0.0.1:{port}")]);
        lines.chain(self.settings.iter().cloned()).map(|line| line + "\n").collect()
    }
}
