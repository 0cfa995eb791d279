//! ArcadeDB, which speaks Bolt 4.4 and the Cypher of Neo4j, and locks nothing: who commits second is refused.

use std::fs;
use std::process::Command;

use super::{Place, Program, Server, listens};

/// How it is run.
#[derive(Default)]
pub struct ArcadeDb;

/// An ArcadeDB of a test's own.
pub type ArcadeDbServer = Server<ArcadeDb>;

impl ArcadeDb {
    pub const USER: &str = "root";
    pub const PASSWORD: &str = "playwithdata";
    /// The database that it makes when it starts.
    pub const DATABASE: &str = "neo4j";
}

impl Program for ArcadeDb {
    const NAME: &'static str = "arcadedb";
    /// Bolt, and HTTP, which it insists on.
    const PORTS: usize = 2;

    fn command(&self, place: &Place) -> Command {
        for dir in ["databases", "config", "log"] {
            fs::create_dir_all(place.data.join(dir)).expect("a directory of its own");
        }
        let mut command = Command::new(place.installed.join("jre/bin/java"));
        command.current_dir(&place.data).args(["-Xmx512m", "-XX:+UseSerialGC"]);
        let settings = [
            ("server.rootPath", place.data.display().to_string()),
            ("server.rootPassword", Self::PASSWORD.to_owned()),
            ("server.defaultDatabases", format!("{}[{}]", Self::DATABASE, Self::USER)),
            ("server.plugins", "Bolt:com.arcadedb.bolt.BoltProtocolPlugin".to_owned()),
            ("bolt.host", "127.0.0.1".to_owned()),
            ("bolt.port", place.ports[0].to_string()),
            ("server.httpIncomingHost", "127.0.0.1".to_owned()),
            ("server.httpIncomingPort", place.ports[1].to_string()),
        ];
        command.args(settings.map(|(name, value)| format!("-Darcadedb.{name}={value}")));
        command.arg("-cp").arg(place.installed.join("jars").join("*")).arg("com.arcadedb.server.ArcadeDBServer");
        command
    }

    async fn ready(&self, place: &Place) -> bool {
        place.printed().contains("ArcadeDB Server started") && listens(place.ports[0]).await
    }
}
