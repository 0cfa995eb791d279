//! The adapter for Neo4j, on Neo4j and on ArcadeDB.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use seawall::backend::{Backend, ErrorKind, Fence, FencedWrite, Health, Stored};
use seawall::backends::{Neo4jBackend, Neo4jConfig};
use seawall::config::Secret;
use seawall::conformance::{self, OpenError, Outage, Subject, Supported};
use seawall::operation::{Change, Direction, OperationId, Traversal, Version};
use seawall::record::{Key, Properties, Record};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::commits::LossyCommits;
use crate::servers::arcadedb::ArcadeDb;
use crate::servers::neo4j::Neo4j;
use crate::servers::{Program, Server, free_port};

/// How long anything may take that has to come to an end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that the adapter can speak to.
trait Graph: Program + Default + Send + Sync + 'static {
    fn config() -> Neo4jConfig;

    /// Why it is not there.
    fn unreachable() -> Option<String> {
        None
    }
}

impl Graph for Neo4j {
    fn config() -> Neo4jConfig {
        Neo4jConfig {
            user: Self::USER.to_owned(),
            password: Some(Secret::new(Self::PASSWORD)),
            ..Neo4jConfig::default()
        }
    }

    fn unreachable() -> Option<String> {
        Self::unreachable()
    }
}

impl Graph for ArcadeDb {
    fn config() -> Neo4jConfig {
        Neo4jConfig {
            user: Self::USER.to_owned(),
            password: Some(Secret::new(Self::PASSWORD)),
            database: Some(Self::DATABASE.to_owned()),
            ..Neo4jConfig::default()
        }
    }
}

/// Starts one, where there is one.
async fn start<P: Graph>(program: P) -> Option<Server<P>> {
    if let Some(why) = P::unreachable() {
        eprintln!("{why}");
        return None;
    }
    Server::start(program).await
}

/// What differs is told by `change`; the label is one that nobody has used, so that nothing was ever written.
fn backend_at<P: Graph>(port: u16, change: impl FnOnce(&mut Neo4jConfig)) -> Neo4jBackend {
    static LABELS: AtomicU64 = AtomicU64::new(0);
    let mut config = Neo4jConfig {
        uri: format!("bolt://127.0.0.1:{port}"),
        label: format!("Record{}", LABELS.fetch_add(1, Ordering::Relaxed)),
        ..P::config()
    };
    change(&mut config);
    Neo4jBackend::new("graph", &config).expect("can be used")
}

fn write(version: u64, changes: impl IntoIterator<Item = Change>) -> FencedWrite {
    let changes = changes.into_iter().collect();
    FencedWrite { operation: OperationId::generate(), version: Version(version), fence: Fence::Write, changes }
}

fn put(version: u64, record: Record) -> FencedWrite {
    write(version, [Change::Put(record)])
}

/// Does this until it works, as a runtime would.
async fn eventually<T, E: std::fmt::Display>(mut work: impl AsyncFnMut() -> Result<T, E>) -> T {
    let tried = timeout(PATIENCE, async {
        loop {
            match work().await {
                Ok(done) => return done,
                Err(error) => eprintln!("not yet: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tried.await.expect("it works in the end")
}

async fn held(backend: &Neo4jBackend, key: &str) -> Option<Stored> {
    let keys = [Key::from(key)];
    eventually(async || backend.read(&keys).await).await.remove(0)
}

async fn record_of(backend: &Neo4jBackend, key: &str) -> Option<Record> {
    held(backend, key).await.and_then(|stored| stored.record)
}

/// A server with everything that can happen to it, each time under another label.
struct Store<P: Graph> {
    server: Mutex<Server<P>>,
    way: LossyCommits,
}

#[async_trait]
impl<P: Graph> Subject for Store<P> {
    async fn open(&self) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(Arc::new(backend_at::<P>(self.way.port(), |_| {})))
    }

    fn rejected(&self) -> Option<Change> {
        Some(Change::Put(Record::new("rejected").with_relation("to", "k".repeat(9_000))))
    }

    fn reads_at_one_instant(&self) -> bool {
        false
    }

    async fn begin(&self, outage: Outage) -> Supported {
        let mut server = self.server.lock().await;
        match outage {
            Outage::Refused => server.kill(),
            Outage::Hung => server.freeze().await,
            Outage::Reset => self.way.lose(true),
        }
        Supported::Yes
    }

    async fn end(&self, outage: Outage) {
        let mut server = self.server.lock().await;
        match outage {
            Outage::Refused => server.restart().await,
            Outage::Hung => server.thaw(),
            Outage::Reset => self.way.lose(false),
        }
    }
}

async fn conforms<P: Graph>() {
    let Some(server) = start(P::default()).await else { return };
    let way = LossyCommits::to(server.port()).await;
    let store = Store { server: Mutex::new(server), way };
    conformance::check(&store).await.assert();
    assert!(store.way.lost() > 0, "no reply got lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn neo4j_conforms() {
    conforms::<Neo4j>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arcadedb_conforms() {
    conforms::<ArcadeDb>().await;
}

/// What is checked on one server after another, so that each has to be started once.
async fn survives<P: Graph>() {
    let Some(mut server) = start(P::default()).await else { return };
    a_delete_is_swept_and_what_relates_to_it_stays::<P>(&server).await;
    names_are_data_whatever_they_look_like::<P>(&server).await;
    an_open_transaction_that_is_dropped_holds_nobody_up::<P>(&server).await;
    calls_that_are_dropped_leave_the_pool_usable::<P>(&server).await;
    a_wrong_password_says_what_to_do_and_is_not_shown::<P>(&server).await;
    a_server_that_is_killed_keeps_what_it_acknowledged::<P>(&mut server).await;
    a_server_of_an_older_state_is_told_apart_by_its_versions::<P>(&mut server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neo4j_keeps_records_through_what_happens_to_it() {
    survives::<Neo4j>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arcadedb_keeps_records_through_what_happens_to_it() {
    survives::<ArcadeDb>().await;
}

async fn a_delete_is_swept_and_what_relates_to_it_stays<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    let a = Record::new("a").with_relation("x", "b").with_relation("x", "nobody").with_relation("x", "b");
    backend.apply(&put(1, a.clone())).await.unwrap();
    backend.apply(&put(2, Record::new("b").with("n", 1))).await.unwrap();
    backend.apply(&write(3, [Change::Delete { key: "b".into() }, Change::Delete { key: "c".into() }])).await.unwrap();
    backend.apply(&write(4, [Change::Delete { key: "d".into() }])).await.unwrap();
    assert_eq!(backend.sweep(Version(4)).await.unwrap(), 2);
    assert_eq!((held(&backend, "b").await, held(&backend, "c").await), (None, None));
    assert_eq!(held(&backend, "d").await.unwrap().version, Version(4));
    assert_eq!(record_of(&backend, "a").await.unwrap(), a);
    assert_eq!(backend.sweep(Version(4)).await.unwrap(), 0);
    // Nothing of it is left: it can be written anew, and is found along the relation that was always there.
    backend.apply(&put(1, Record::new("b"))).await.unwrap();
    let walk = Traversal::from("b").direction(Direction::Incoming);
    let hits = backend.traverse(&walk).await.unwrap();
    assert_eq!(hits.iter().map(|hit| hit.record.key.as_str()).collect::<Vec<_>>(), ["a"]);
    let via = hits[0].via.clone().unwrap();
    assert_eq!((&*via.kind, via.to.as_str()), ("x", "b"));
}

async fn names_are_data_whatever_they_look_like<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    let hostile = [
        "`]->() DETACH DELETE n //",
        "\\u0060 OR true //",
        "') RETURN 1 //",
        "key",
        "_version",
        "_deleted",
        "@rid",
        "a\0b",
        "a b.c",
        "$rows",
        "$keys",
        "$frontier",
        "",
        "\u{202e}名前",
    ];
    let innocent = Record::new("innocent").with("n", 1);
    backend.apply(&put(1, innocent.clone())).await.unwrap();
    for (version, name) in (2..).zip(hostile) {
        let key = if name.is_empty() { "no name" } else { name };
        let record = Record::new(key).with(name, "value").with_relation(name, key).with_relation(name, "innocent");
        backend.apply(&put(version, record.clone())).await.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(record_of(&backend, key).await.as_ref(), Some(&record), "{name:?}");
        let found = backend.find(&Properties::new().with(name, "value"), 10).await.unwrap();
        assert_eq!(found.iter().map(|hit| &hit.record).collect::<Vec<_>>(), [&record], "{name:?}");
        let walked = backend.traverse(&Traversal::from(key).along(name)).await.unwrap();
        assert_eq!(walked.len(), 1, "{name:?}");
        assert_eq!(&*walked[0].via.clone().unwrap().kind, name);
        assert_eq!(record_of(&backend, "innocent").await.as_ref(), Some(&innocent), "{name:?}");
    }
}

async fn an_open_transaction_that_is_dropped_holds_nobody_up<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    backend.apply(&put(1, Record::new("a"))).await.unwrap();
    let transactions = backend.transactions().expect("has them");
    for version in 2..6 {
        drop(transactions.begin(&put(version, Record::new("a").with("n", version))).await.unwrap());
        // Not the connection of the one that was dropped: that one may not be the next that anybody is given.
        let next = put(version, Record::new("a").with("next", version));
        let applied = timeout(Duration::from_secs(10), eventually(async || backend.apply(&next).await)).await;
        applied.expect("nobody holds a lock");
        assert_eq!(record_of(&backend, "a").await.unwrap().properties.get("next"), Some(&version.into()));
    }
}

async fn calls_that_are_dropped_leave_the_pool_usable<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |config| {
        config.max_connections = 3;
        config.connect_timeout = Duration::from_secs(2);
    });
    backend.apply(&put(1, Record::new("a"))).await.unwrap();
    server.freeze().await;
    for version in 2..12 {
        let write = put(version, Record::new("a").with("n", version));
        let call = timeout(Duration::from_millis(100), backend.apply(&write)).await;
        assert!(!matches!(call, Ok(Ok(_))), "a frozen server acknowledges");
    }
    // Nobody waits for ever when nobody else sets a limit.
    let alone = timeout(PATIENCE, backend.probe()).await.expect("comes to an end").unwrap_err();
    assert_eq!(alone.kind, ErrorKind::Transient);
    server.thaw();
    eventually(async || backend.apply(&put(20, Record::new("a").with("n", 20))).await).await;
    // In the middle of whatever it does, at every length.
    for micros in (0..4_000).step_by(100) {
        let _ = timeout(Duration::from_micros(micros), backend.apply(&put(21, Record::new("b")))).await;
    }
    let calls = (0..9).map(|n| {
        let (backend, write) = (&backend, put(22, Record::new(format!("c{n}"))));
        async move { eventually(async || backend.apply(&write).await).await }
    });
    timeout(PATIENCE, join_all(calls)).await.expect("there are connections");
    // All in use, and who comes next is told so.
    let transactions = backend.transactions().expect("has them");
    let begin = |key: &'static str| async move { transactions.begin(&put(30, Record::new(key))).await };
    let open = join_all(["x", "y", "z"].map(begin)).await;
    let denied = backend.probe().await.unwrap_err();
    assert_eq!((denied.kind, denied.code.as_deref()), (ErrorKind::Refused, Some("no_connection")));
    drop(open);
    assert_eq!(backend.probe().await.unwrap(), Health::Healthy);
}

async fn a_wrong_password_says_what_to_do_and_is_not_shown<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |config| config.password = Some(Secret::new("hush")));
    let errors = [
        backend.probe().await.unwrap_err(),
        backend.apply(&put(1, Record::new("a"))).await.unwrap_err(),
        backend.read(&["a".into()]).await.unwrap_err(),
    ];
    for error in errors {
        // Not hopeless, for it can be put right; not alive, for servers lock out who tries again and again.
        assert_eq!(error.kind, ErrorKind::Transient);
        assert!(error.message.contains("`password`") && !error.message.contains("hush"), "{error}");
    }
    assert!(!format!("{backend:?}").contains("hush"));
}

async fn a_server_that_is_killed_keeps_what_it_acknowledged<P: Graph>(server: &mut Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    // Neo4j lets nobody in for some seconds after a wrong password.
    eventually(async || backend.probe().await).await;
    for version in 1..=50 {
        backend.apply(&put(version, Record::new(format!("k{version}")).with("n", version))).await.unwrap();
    }
    let transactions = backend.transactions().expect("has them");
    let open = transactions.begin(&put(60, Record::new("open"))).await.unwrap();
    let late = transactions.begin(&put(61, Record::new("k1").with("n", 61))).await.unwrap();
    server.kill();
    assert_eq!(open.commit().await.unwrap_err().kind, ErrorKind::Unknown);
    assert_eq!(late.rollback().await.unwrap_err().kind, ErrorKind::Transient);
    assert_eq!(backend.apply(&put(62, Record::new("dead"))).await.unwrap_err().kind, ErrorKind::Transient);
    server.restart().await;
    for version in 1..=50 {
        let record = record_of(&backend, &format!("k{version}")).await.unwrap();
        assert_eq!(record.properties.get("n"), Some(&version.into()));
    }
    assert_eq!((held(&backend, "open").await, held(&backend, "dead").await), (None, None));
    assert_eq!(backend.newest_version().await.unwrap(), Version(50));
}

async fn a_server_of_an_older_state_is_told_apart_by_its_versions<P: Graph>(server: &mut Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    backend.apply(&put(1, Record::new("a").with("n", 1))).await.unwrap();
    let old = server.snapshot().await;
    eventually(async || backend.apply(&put(2, Record::new("a").with("n", 2))).await).await;
    server.restore(&old).await;
    assert_eq!(held(&backend, "a").await.unwrap().version, Version(1));
    eventually(async || backend.apply(&put(2, Record::new("a").with("n", 2))).await).await;
    assert_eq!(held(&backend, "a").await.unwrap().version, Version(2));
}

async fn makes_keys_unique_late<P: Graph>(program: P) {
    if P::unreachable().is_some() {
        return;
    }
    let port = free_port();
    let backends: Vec<_> = (0..8).map(|_| backend_at::<P>(port, |config| config.label = "Late".to_owned())).collect();
    for backend in &backends {
        let error = backend.apply(&put(1, Record::new("a"))).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Transient);
    }
    let Some(_server) = Server::start_at(program, port).await else { return };
    let writes = (1..).zip(&backends).map(|(version, backend)| async move {
        let first = put(version, Record::new("a").with("n", 1));
        eventually(async || backend.apply(&first).await).await
    });
    join_all(writes).await;
    // Without the constraint, some of them would have made a node of their own.
    let found = backends[0].find(&Properties::new().with("n", 1), 10).await.unwrap();
    assert_eq!(found.iter().map(|hit| hit.version).collect::<Vec<_>>(), [Version(8)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn neo4j_makes_keys_unique_when_it_comes_later_than_the_backend() {
    makes_keys_unique_late(Neo4j::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arcadedb_makes_keys_unique_when_it_comes_later_than_the_backend() {
    makes_keys_unique_late(ArcadeDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neo4j_that_takes_no_writes_is_read_only_and_can_be_read() {
    let Some(mut writable) = start(Neo4j::default()).await else { return };
    let label = |config: &mut Neo4jConfig| config.label = "Kept".to_owned();
    let kept = Record::new("kept").with("n", 1);
    backend_at::<Neo4j>(writable.port(), label).apply(&put(1, kept.clone())).await.unwrap();
    // It makes no database of its own while it takes no writes.
    let data = writable.snapshot().await;
    drop(writable);
    let Some(mut server) = start(Neo4j::with(&["server.databases.default_to_read_only=true"])).await else { return };
    server.restore(&data).await;
    let backend = backend_at::<Neo4j>(server.port(), label);
    assert_eq!(backend.probe().await.unwrap(), Health::ReadOnly);
    assert_eq!(backend.apply(&put(2, Record::new("kept"))).await.unwrap_err().kind, ErrorKind::ReadOnly);
    assert_eq!(record_of(&backend, "kept").await, Some(kept));
    assert_eq!(backend.newest_version().await.unwrap(), Version(1));
}
