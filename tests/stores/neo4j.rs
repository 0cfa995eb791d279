//! The adapter for Neo4j, on Neo4j and on ArcadeDB.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use seawall::Runtime;
use seawall::backend::{Backend, ErrorKind, Fence, FencedWrite, Health, Stored};
use seawall::backends::{Neo4jBackend, Neo4jConfig};
use seawall::config::{Config, Secret};
use seawall::conformance::{self, OpenError, Outage, Subject, Supported};
use seawall::operation::{Change, Direction, Held, OperationId, Source, Traversal, Version};
use seawall::record::{Key, Properties, Record};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::servers::arcadedb::ArcadeDb;
use crate::servers::neo4j::Neo4j;
use crate::servers::proxy::{Passage, Protocol, Proxy};
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
    write(version, [Change::put(record)])
}

/// Does this until it works, as a runtime would.
async fn eventually<T, E: std::fmt::Display>(mut work: impl AsyncFnMut() -> Result<T, E>) -> T {
    let tried = timeout(PATIENCE, async {
        loop {
            match work().await {
                Ok(done) => return done,
                Err(error) => eprintln!("not yet: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
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
    way: Proxy,
}

#[async_trait]
impl<P: Graph> Subject for Store<P> {
    async fn open(&self) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(Arc::new(backend_at::<P>(self.way.port(), |_| {})))
    }

    fn rejected(&self) -> Option<Change> {
        Some(Change::put(Record::new("rejected").with_relation("to", "k".repeat(9_000))))
    }

    fn reads_at_one_instant(&self) -> bool {
        false
    }

    async fn begin(&self, outage: Outage) -> Supported {
        let mut server = self.server.lock().await;
        match outage {
            Outage::Refused => server.kill(),
            Outage::Hung => server.freeze().await,
            Outage::Reset => self.way.set(Passage::ResetOnReply),
        }
        Supported::Yes
    }

    async fn end(&self, outage: Outage) {
        let mut server = self.server.lock().await;
        match outage {
            Outage::Refused => server.restart().await,
            Outage::Hung => server.thaw(),
            Outage::Reset => self.way.set(Passage::Open),
        }
    }
}

async fn conforms<P: Graph>() {
    let Some(server) = start(P::default()).await else { return };
    let way = Proxy::speaking(Protocol::Bolt, server.port()).await;
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

/// Writers whose records relate to one another's, each time to others.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_related_records_wait_for_one_another_and_none_is_refused() {
    const WRITERS: u64 = 8;
    let Some(server) = start(Neo4j::default()).await else { return };
    let backend = Arc::new(backend_at::<Neo4j>(server.port(), |_| {}));
    backend.probe().await.expect("is well");
    let writers = (0..WRITERS).map(|writer| {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            let mut refused = Vec::new();
            for turn in 1..=30 {
                let key = |n: u64| format!("k{}", n % WRITERS);
                let related = [writer + turn, writer + 3 * turn + 1, writer + 5 * turn + 2];
                let record = related
                    .into_iter()
                    .fold(Record::new(key(writer)), |record, to| record.with_relation(format!("r{to}"), key(to)));
                if let Err(error) = backend.apply(&put(turn, record)).await {
                    refused.push(error.to_string());
                }
            }
            refused
        })
    });
    let refused: Vec<String> = join_all(writers).await.into_iter().flat_map(|writer| writer.expect("ends")).collect();
    assert!(refused.is_empty(), "{} of {} were refused: {refused:?}", refused.len(), 30 * WRITERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn arcadedb_keeps_records_through_what_happens_to_it() {
    survives::<ArcadeDb>().await;
}

async fn a_delete_is_swept_and_what_relates_to_it_stays<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    let a = Record::new("a").with_relation("x", "b").with_relation("x", "nobody").with_relation("x", "b");
    backend.apply(&put(1, a.clone())).await.expect("works");
    backend.apply(&put(2, Record::new("b").with("n", 1))).await.expect("works");
    backend
        .apply(&write(3, [Change::Delete { key: "b".into() }, Change::Delete { key: "c".into() }]))
        .await
        .expect("works");
    backend.apply(&write(4, [Change::Delete { key: "d".into() }])).await.expect("works");
    assert_eq!(backend.sweep(Version(4), 100).await.expect("works"), 2);
    assert_eq!((held(&backend, "b").await, held(&backend, "c").await), (None, None));
    assert_eq!(held(&backend, "d").await.expect("works").version, Version(4));
    assert_eq!(record_of(&backend, "a").await.expect("works"), a);
    assert_eq!(backend.sweep(Version(4), 100).await.expect("works"), 0);
    // Nothing of it is left: it can be written anew, and is found along the relation that was always there.
    backend.apply(&put(1, Record::new("b"))).await.expect("works");
    let walk = Traversal::from("b").direction(Direction::Incoming);
    let hits = backend.traverse(&walk).await.expect("works");
    assert_eq!(hits.iter().map(|hit| hit.record.key.as_str()).collect::<Vec<_>>(), ["a"]);
    let via = hits[0].via.clone().expect("is there");
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
    backend.apply(&put(1, innocent.clone())).await.expect("works");
    for (version, name) in (2..).zip(hostile) {
        let key = if name.is_empty() { "no name" } else { name };
        let record = Record::new(key).with(name, "value").with_relation(name, key).with_relation(name, "innocent");
        backend.apply(&put(version, record.clone())).await.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(record_of(&backend, key).await.as_ref(), Some(&record), "{name:?}");
        let found = backend.find(&Properties::new().with(name, "value"), 10).await.expect("works");
        assert_eq!(found.iter().map(|hit| &hit.record).collect::<Vec<_>>(), [&record], "{name:?}");
        let walked = backend.traverse(&Traversal::from(key).along(name)).await.expect("works");
        assert_eq!(walked.len(), 1, "{name:?}");
        assert_eq!(&*walked[0].via.clone().expect("is there").kind, name);
        assert_eq!(record_of(&backend, "innocent").await.as_ref(), Some(&innocent), "{name:?}");
    }
}

async fn an_open_transaction_that_is_dropped_holds_nobody_up<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    backend.apply(&put(1, Record::new("a"))).await.expect("works");
    let transactions = backend.transactions().expect("has them");
    for version in 2..6 {
        drop(transactions.begin(&put(version, Record::new("a").with("n", version))).await.expect("works"));
        // Not the connection of the one that was dropped: that one may not be the next that anybody is given.
        let next = put(version, Record::new("a").with("next", version));
        let applied = timeout(Duration::from_secs(10), eventually(async || backend.apply(&next).await)).await;
        applied.expect("nobody holds a lock");
        assert_eq!(record_of(&backend, "a").await.expect("works").properties.get("next"), Some(&version.into()));
    }
}

async fn calls_that_are_dropped_leave_the_pool_usable<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |config| {
        config.max_connections = 3;
        config.connect_timeout = Duration::from_secs(2);
    });
    backend.apply(&put(1, Record::new("a"))).await.expect("works");
    server.freeze().await;
    for version in 2..12 {
        let write = put(version, Record::new("a").with("n", version));
        let call = timeout(Duration::from_millis(100), backend.apply(&write)).await;
        assert!(!matches!(call, Ok(Ok(_))), "a frozen server acknowledges");
    }
    // Nobody waits for ever when nobody else sets a limit.
    let alone = timeout(PATIENCE, backend.probe()).await.expect("comes to an end").expect_err("fails");
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
    let denied = backend.probe().await.expect_err("fails");
    assert_eq!((denied.kind, denied.code.as_deref()), (ErrorKind::Refused, Some("no_connection")));
    drop(open);
    assert_eq!(backend.probe().await.expect("works"), Health::Healthy);
}

async fn a_wrong_password_says_what_to_do_and_is_not_shown<P: Graph>(server: &Server<P>) {
    let backend = backend_at::<P>(server.port(), |config| config.password = Some(Secret::new("hush")));
    let errors = [
        backend.probe().await.expect_err("fails"),
        backend.apply(&put(1, Record::new("a"))).await.expect_err("fails"),
        backend.read(&["a".into()]).await.expect_err("fails"),
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
        backend.apply(&put(version, Record::new(format!("k{version}")).with("n", version))).await.expect("works");
    }
    let transactions = backend.transactions().expect("has them");
    let open = transactions.begin(&put(60, Record::new("open"))).await.expect("works");
    let late = transactions.begin(&put(61, Record::new("k1").with("n", 61))).await.expect("works");
    server.kill();
    assert_eq!(open.commit().await.expect_err("fails").kind, ErrorKind::Unknown);
    assert_eq!(late.rollback().await.expect_err("fails").kind, ErrorKind::Transient);
    assert_eq!(backend.apply(&put(62, Record::new("dead"))).await.expect_err("fails").kind, ErrorKind::Transient);
    server.restart().await;
    for version in 1..=50 {
        let record = record_of(&backend, &format!("k{version}")).await.expect("works");
        assert_eq!(record.properties.get("n"), Some(&version.into()));
    }
    assert_eq!((held(&backend, "open").await, held(&backend, "dead").await), (None, None));
    assert_eq!(backend.newest_version().await.expect("works"), Version(50));
}

async fn a_server_of_an_older_state_is_told_apart_by_its_versions<P: Graph>(server: &mut Server<P>) {
    let backend = backend_at::<P>(server.port(), |_| {});
    backend.apply(&put(1, Record::new("a").with("n", 1))).await.expect("works");
    let old = server.snapshot().await;
    eventually(async || backend.apply(&put(2, Record::new("a").with("n", 2))).await).await;
    server.restore(&old).await;
    assert_eq!(held(&backend, "a").await.expect("works").version, Version(1));
    eventually(async || backend.apply(&put(2, Record::new("a").with("n", 2))).await).await;
    assert_eq!(held(&backend, "a").await.expect("works").version, Version(2));
}

async fn makes_keys_unique_late<P: Graph>(program: P) {
    if let Some(why) = P::unreachable() {
        eprintln!("{why}");
        return;
    }
    let port = free_port();
    let backends: Vec<_> = (0..8).map(|_| backend_at::<P>(port, |config| config.label = "Late".to_owned())).collect();
    for backend in &backends {
        let error = backend.apply(&put(1, Record::new("a"))).await.expect_err("fails");
        assert_eq!(error.kind, ErrorKind::Transient);
    }
    let Some(_server) = Server::start_at(program, port).await else { return };
    let writes = (1..).zip(&backends).map(|(version, backend)| async move {
        let first = put(version, Record::new("a").with("n", 1));
        eventually(async || backend.apply(&first).await).await
    });
    join_all(writes).await;
    // Without the constraint, some of them would have made a node of their own.
    let found = backends[0].find(&Properties::new().with("n", 1), 10).await.expect("works");
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
    backend_at::<Neo4j>(writable.port(), label).apply(&put(1, kept.clone())).await.expect("works");
    // It makes no database of its own while it takes no writes.
    let data = writable.snapshot().await;
    drop(writable);
    let Some(mut server) = start(Neo4j::with(&["server.databases.default_to_read_only=true"])).await else { return };
    server.restore(&data).await;
    let backend = backend_at::<Neo4j>(server.port(), label);
    assert_eq!(backend.probe().await.expect("works"), Health::ReadOnly);
    assert_eq!(backend.apply(&put(2, Record::new("kept"))).await.expect_err("fails").kind, ErrorKind::ReadOnly);
    assert_eq!(record_of(&backend, "kept").await, Some(kept));
    assert_eq!(backend.newest_version().await.expect("works"), Version(1));
}

/// Certificates that `openssl` makes: each signed by itself, for 127.0.0.1.
fn certificate(dir: &Path) {
    std::fs::create_dir_all(dir).expect("a directory");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "private.key", "-out", "public.crt"])
        .current_dir(dir)
        .output();
    assert!(made.expect("there is openssl").status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_connection_is_made_to_who_can_prove_its_name_and_to_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let (own, other) = (dir.path().join("own"), dir.path().join("other"));
    certificate(&own);
    certificate(&other);
    let base = format!("dbms.ssl.policy.bolt.base_directory={}", own.display());
    let settings = [
        "dbms.ssl.policy.bolt.enabled=true",
        "dbms.ssl.policy.bolt.client_auth=NONE",
        "server.bolt.tls_level=REQUIRED",
        &base,
    ];
    let Some(server) = start(Neo4j::with(&settings)).await else { return };
    let at = |uri: String, ca: Option<&Path>| {
        backend_at::<Neo4j>(server.port(), |config| {
            config.uri = uri;
            config.tls_ca_file = ca.map(|dir| dir.join("public.crt"));
        })
    };
    let address = format!("127.0.0.1:{}", server.port());
    let trusted = at(format!("bolt+s://{address}"), Some(&own));
    eventually(async || trusted.probe().await).await;
    trusted.apply(&put(1, Record::new("a"))).await.expect("works");
    assert!(record_of(&trusted, "a").await.is_some());
    assert_eq!(at(format!("bolt+ssc://{address}"), None).probe().await.expect("works"), Health::Healthy);
    let strangers = [
        at(format!("bolt+s://{address}"), Some(&other)),
        at(format!("bolt+s://{address}"), None),
        at(format!("bolt+s://localhost:{}", server.port()), Some(&own)),
        at(format!("bolt://{address}"), None),
    ];
    for stranger in strangers {
        assert_eq!(stranger.probe().await.expect_err("fails").kind, ErrorKind::Transient);
    }
}

/// A runtime that only the configuration has told of its store.
async fn queues_while_it_is_down<P: Graph>() {
    let Some(mut server) = start(P::default()).await else { return };
    let mut config = Config::default();
    let graph = Neo4jConfig { uri: format!("bolt://127.0.0.1:{}", server.port()), ..P::config() };
    let own = config.backends.entry("graph".to_owned()).or_default();
    own.neo4j = Some(graph.clone());
    own.breaker.reset_timeout = Duration::from_millis(200);
    own.breaker.open_wait_max = Duration::from_millis(200);
    own.breaker.gradual_recovery = false;
    server.kill();
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = Runtime::builder().config(config).data_dir(dir.path()).start().await.expect("starts without it");
    let handle = runtime.handle();
    // Until the breaker knows, a write is refused: there is nothing yet that would have it queued.
    let queued = async |n: u64| match handle.store(Record::new("a").with("n", n)).await {
        Ok(receipt) if receipt.held == (Held::Queued { owing: vec!["graph".into()] }) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually(async || queued(1).await).await;
    for n in 2..=20 {
        queued(n).await.expect("is queued");
    }
    let read = handle.retrieve("a").await.expect("is answered");
    assert_eq!((read.record.expect("is there").properties.get("n"), read.source), (Some(&20.into()), Source::Owed));
    server.restart().await;
    let reader = Neo4jBackend::new("reader", &graph).expect("can be used");
    timeout(PATIENCE, async {
        while record_of(&reader, "a").await.is_none_or(|record| record.properties.get("n") != Some(&20.into())) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("what is owed is given");
    let mut key = 0;
    let receipt = eventually(async || {
        // A key of its own each time: a write waits behind what its key owes.
        key += 1;
        match handle.store(Record::new(format!("b{key}")).with_relation("to", "a")).await {
            Ok(receipt) if receipt.held == Held::Committed => Ok(receipt),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let walk = Traversal::from(format!("b{key}"));
    let found = eventually(async || handle.traverse(walk.clone()).await).await;
    assert_eq!(found.hits.iter().map(|hit| hit.record.key.as_str()).collect::<Vec<_>>(), ["a"], "{receipt:?}");
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_queues_what_a_neo4j_that_is_down_cannot_take_and_gives_it_when_it_is_back() {
    queues_while_it_is_down::<Neo4j>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_queues_what_an_arcadedb_that_is_down_cannot_take_and_gives_it_when_it_is_back() {
    queues_while_it_is_down::<ArcadeDb>().await;
}
