//! Qdrant: its engine behind its own protocol, killed, frozen, late and too small.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use seawall::backend::{Applied, Backend, BackendError, ErrorKind, Fence, FencedWrite, Health, Stored};
use seawall::backends::{Metric, QdrantBackend, QdrantConfig};
use seawall::config::Secret;
use seawall::conformance::{self, Judgement, OpenError, Outage, Property, Subject, Supported};
use seawall::operation::{Change, OperationId, Search, Version};
use seawall::record::{Key, Properties, Record};
use serde_json::json;
use tokio::sync::Mutex;

use crate::servers::proxy::{Passage, Protocol, Proxy};
use crate::servers::qdrant::{Qdrant, QdrantServer};

const HUSH: &str = "hush-hush";
const DIMENSION: usize = 3;
/// How many writers race.
const WRITERS: u64 = 16;
/// How long a call may take that will never be answered.
const SHORT: Duration = Duration::from_millis(500);

fn config(port: u16) -> QdrantConfig {
    QdrantConfig {
        url: format!("http://127.0.0.1:{port}"),
        dimension: DIMENSION,
        // A busy machine is slow.
        timeout: Duration::from_secs(60),
        ..QdrantConfig::default()
    }
}

fn on(port: u16) -> QdrantBackend {
    QdrantBackend::new("vector", &config(port)).expect("the settings are good")
}

fn write(version: u64, fence: Fence, changes: impl Into<Arc<[Change]>>) -> FencedWrite {
    FencedWrite { operation: OperationId::generate(), version: Version(version), fence, changes: changes.into() }
}

async fn put(backend: &QdrantBackend, version: u64, record: Record) -> Result<Applied, BackendError> {
    backend.apply(&write(version, Fence::Write, [Change::put(record)])).await
}

async fn delete(backend: &QdrantBackend, version: u64, key: &str) -> Result<Applied, BackendError> {
    backend.apply(&write(version, Fence::Write, [Change::Delete { key: key.into() }])).await
}

async fn read(backend: &QdrantBackend, key: &str) -> Option<Stored> {
    backend.read(&[Key::from(key)]).await.expect("is read").remove(0)
}

fn at(key: &str, embedding: [f32; DIMENSION]) -> Record {
    Record::new(key).with_embedding(embedding.to_vec())
}

fn keys(hits: &[seawall::operation::Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.record.key.as_str()).collect()
}

/// A server, and a collection on it for every backend.
struct Collections {
    server: Mutex<QdrantServer>,
    /// What stands between, for replies that are lost. Without it a dead server is one that nobody can connect to.
    proxy: Option<Proxy>,
    opened: AtomicU32,
}

impl Collections {
    async fn on(server: QdrantServer, behind_proxy: bool) -> Self {
        let proxy = if behind_proxy { Some(Proxy::speaking(Protocol::Grpc, server.port()).await) } else { None };
        Self { server: Mutex::new(server), proxy, opened: AtomicU32::new(0) }
    }
}

#[async_trait]
impl Subject for Collections {
    async fn open(&self) -> Result<Arc<dyn Backend>, OpenError> {
        let port = match &self.proxy {
            Some(proxy) => proxy.port(),
            None => self.server.lock().await.port(),
        };
        let n = self.opened.fetch_add(1, Ordering::Relaxed);
        let config = QdrantConfig { collection: format!("c{n}"), ..config(port) };
        Ok(Arc::new(QdrantBackend::new("vector", &config)?))
    }

    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn rejected(&self) -> Option<Change> {
        Some(Change::put(Record::new("rejected").with_embedding(vec![1.0; DIMENSION + 1])))
    }

    fn reads_at_one_instant(&self) -> bool {
        false
    }

    async fn begin(&self, outage: Outage) -> Supported {
        match (outage, &self.proxy) {
            (Outage::Refused, None) => self.server.lock().await.kill(),
            (Outage::Hung, None) => self.server.lock().await.freeze().await,
            (Outage::Reset, Some(proxy)) => proxy.set(Passage::ResetOnReply),
            (Outage::Reset, None) | (Outage::Refused | Outage::Hung, Some(_)) => return Supported::No,
        }
        Supported::Yes
    }

    async fn end(&self, outage: Outage) {
        match (outage, &self.proxy) {
            (Outage::Refused, _) => self.server.lock().await.restart().await,
            (Outage::Hung, _) => self.server.lock().await.thaw(),
            (Outage::Reset, proxy) => proxy.iter().for_each(|proxy| proxy.set(Passage::Open)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_in_qdrant_conforms() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let report = conformance::check(&Collections::on(server, false).await).await;
    eprintln!("{report}");
    report.assert();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_lost_is_an_unknown_outcome() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let finding = Property::LostReplies.check(&Collections::on(server, true).await).await;
    assert_eq!(finding.judgement, Judgement::Holds, "{finding}");
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill() {
    let Some(mut server) = QdrantServer::start(Qdrant::default()).await else { return };
    let store = on(server.port());
    for n in 1..=50 {
        put(&store, n, at(&format!("r{n}"), [n as f32, 1.0, 0.5]).with("n", n)).await.expect("is stored");
    }
    delete(&store, 51, "r7").await.expect("is deleted");
    server.restart().await;
    for n in (1..=50).filter(|n| *n != 7) {
        let held = read(&store, &format!("r{n}")).await.expect("is there");
        let record = held.record.expect("a record");
        assert_eq!((held.version, record.properties.get("n")), (Version(n), Some(&json!(n))));
        assert_eq!(record.embedding, Some(vec![n as f32, 1.0, 0.5].into()), "to the last bit");
    }
    assert_eq!(read(&store, "r7").await, Some(Stored { version: Version(51), record: None }));
    assert_eq!(store.newest_version().await.expect("answers"), Version(51));
}

#[tokio::test]
async fn a_killed_server_was_not_reached_and_a_frozen_one_may_have_done_it() {
    let Some(mut server) = QdrantServer::start(Qdrant::default()).await else { return };
    let store = on(server.port());
    put(&store, 1, at("a", [1.0, 0.0, 0.0])).await.expect("is stored");
    let hasty = QdrantConfig { timeout: SHORT, connect_timeout: SHORT, ..config(server.port()) };
    let hasty = QdrantBackend::new("vector", &hasty).expect("the settings are good");
    hasty.check().await.expect("answers");

    server.freeze().await;
    let error = put(&hasty, 2, at("a", [0.0, 1.0, 0.0])).await.expect_err("is frozen");
    assert_eq!(error.kind, ErrorKind::Unknown, "{error}");
    assert_eq!(hasty.probe().await.expect_err("is frozen").kind, ErrorKind::Unknown);
    server.thaw();
    // On the same connections.
    put(&store, 3, at("a", [0.0, 0.0, 1.0])).await.expect("is stored");
    assert_eq!(read(&store, "a").await.expect("is there").version, Version(3));

    server.kill();
    // What was in the connection when it broke is not known to have been sent or not; then there is none.
    let mut error = put(&store, 4, at("a", [1.0, 1.0, 1.0])).await.expect_err("is dead");
    if error.kind == ErrorKind::Unknown {
        error = put(&store, 4, at("a", [1.0, 1.0, 1.0])).await.expect_err("is dead");
    }
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("unreachable")), "{error}");
    assert_eq!(store.probe().await.expect_err("is dead").kind, ErrorKind::Transient);
    server.restart().await;
    put(&store, 4, at("a", [1.0, 1.0, 1.0])).await.expect("is stored");
    assert_eq!(store.probe().await.expect("is there again"), Health::Healthy);
}

#[tokio::test]
async fn a_server_that_comes_late_is_found_and_given_a_collection() {
    let Some(mut server) = QdrantServer::start(Qdrant::default()).await else { return };
    server.kill();
    let store = on(server.port());
    let error = put(&store, 1, Record::new("a")).await.expect_err("nobody is there");
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("unreachable")), "{error}");
    assert!(error.message.contains("refused"), "{error}");
    server.restart().await;
    put(&store, 1, Record::new("a")).await.expect("is stored");
    assert_eq!(read(&store, "a").await.expect("is there").version, Version(1));
}

#[tokio::test]
async fn a_collection_of_another_shape_is_refused_with_what_to_do() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    on(server.port()).check().await.expect("is made");
    let others = [
        (QdrantConfig { dimension: 4, ..config(server.port()) }, "has 3 dimensions, and `dimension` is 4"),
        (QdrantConfig { distance: Metric::Dot, ..config(server.port()) }, "compared by Cosine, and `distance` is Dot"),
        (QdrantConfig { vector: "other".to_owned(), ..config(server.port()) }, "no vector that is called `other`"),
    ];
    for (other, why) in others {
        let other = QdrantBackend::new("vector", &other).expect("the settings are good");
        for error in [other.check().await.expect_err("does not fit"), other.probe().await.expect_err("does not fit")] {
            assert_eq!(error.code.as_deref(), Some("unfit_collection"), "{error}");
            assert!(error.message.contains(why), "{error}");
        }
        // Nothing that is owed to it is given up.
        assert_eq!(put(&other, 1, Record::new("a")).await.expect_err("does not fit").kind, ErrorKind::Transient);
    }
    let wrong = put(&on(server.port()), 1, Record::new("a").with_embedding(vec![1.0; 4])).await.expect_err("is wrong");
    assert_eq!((wrong.kind, wrong.code.as_deref()), (ErrorKind::Permanent, Some("wrong_dimension")), "{wrong}");
}

#[tokio::test]
async fn a_collection_that_has_gone_is_not_made_again_behind_anybody_s_back() {
    let Some(mut server) = QdrantServer::start(Qdrant::default()).await else { return };
    let empty = server.snapshot().await;
    let store = on(server.port());
    put(&store, 1, Record::new("a")).await.expect("is stored");
    let kept = server.snapshot().await;
    server.restore(&empty).await;
    for error in [
        put(&store, 2, Record::new("a")).await.expect_err("is gone"),
        store.read(&["a".into()]).await.expect_err("is gone"),
        store.probe().await.expect_err("is gone"),
    ] {
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("collection_missing")), "{error}");
    }
    server.restore(&kept).await;
    assert_eq!(read(&store, "a").await.expect("is there").version, Version(1));
}

#[tokio::test]
async fn a_key_opens_and_is_shown_nowhere() {
    let server = Qdrant { api_key: Some(HUSH.to_owned()), ..Qdrant::default() };
    let Some(server) = QdrantServer::start(server).await else { return };
    let mut shown = Vec::new();
    for key in [None, Some("another")] {
        let config = QdrantConfig { api_key: key.map(Secret::new), ..config(server.port()) };
        let store = QdrantBackend::new("vector", &config).expect("the settings are good");
        let error = store.check().await.expect_err("has no right");
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("unauthenticated")), "{error}");
        shown.push(format!("{error} {error:?}"));
    }
    let config = QdrantConfig { api_key: Some(Secret::new(HUSH)), ..config(server.port()) };
    let store = QdrantBackend::new("vector", &config).expect("the settings are good");
    put(&store, 1, Record::new("a")).await.expect("has the right");
    shown.push(format!("{store:?} {config:?} {}", serde_json::to_string(&config).expect("is written")));
    drop(server);
    let error = store.probe().await.expect_err("is gone");
    shown.push(format!("{error} {error:?}"));
    for shown in shown {
        assert!(!shown.contains(HUSH) && !shown.contains("another"), "{shown}");
    }
}

#[tokio::test]
async fn writers_that_race_leave_the_newest_and_lose_no_merge() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let store = Arc::new(on(server.port()));
    store.check().await.expect("answers");
    // Versions in any order: the highest is left, and who lost is told by whom.
    let writers = (1..=WRITERS).map(|version| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { (version, put(&store, version, Record::new("a").with("n", version)).await) })
    });
    for writer in writers.collect::<Vec<_>>() {
        let (version, applied) = writer.await.expect("does not panic");
        let over = applied.expect("is applied, or superseded").superseded_by;
        assert!(over.is_none_or(|over| over.0 > version && over.0 <= WRITERS), "{version} is superseded by {over:?}");
    }
    let held = read(&store, "a").await.expect("is there");
    assert_eq!(
        (held.version, held.record.expect("a record").properties.get("n")),
        (Version(WRITERS), Some(&json!(WRITERS)))
    );

    // Merges: one that was applied is in what is left, though another one has been applied since.
    let merges = (1..=WRITERS).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let properties = Properties::new().with(format!("p{n}"), n);
            let change = Change::Merge { key: "a".into(), properties };
            (n, store.apply(&write(WRITERS + n, Fence::Write, [change])).await)
        })
    });
    let (mut applied, mut overtaken) = (vec!["n".to_owned()], Vec::new());
    for merge in merges.collect::<Vec<_>>() {
        match merge.await.expect("does not panic") {
            (n, Ok(Applied { superseded_by: None })) => applied.push(format!("p{n}")),
            // Before it was written, or after it and before it was looked at.
            (n, Ok(Applied { superseded_by: Some(_) })) => overtaken.push(format!("p{n}")),
            (_, Err(error)) => assert_eq!(error.code.as_deref(), Some("contended"), "{error}"),
        }
    }
    let held = read(&store, "a").await.expect("is there").record.expect("a record");
    assert!(applied.iter().all(|name| held.properties.get(name).is_some()), "{applied:?} are lost");
    let there = held
        .properties
        .iter()
        .all(|(name, _)| [&applied, &overtaken].iter().any(|them| them.iter().any(|it| it == name)));
    assert!(there, "what was refused is there");
}

#[tokio::test]
async fn a_write_that_lands_after_its_compensation_changes_nothing() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let store = on(server.port());
    put(&store, 1, at("a", [1.0, 0.0, 0.0])).await.expect("is stored");
    let before = read(&store, "a").await;
    let late: [Change; 2] = [Change::put(at("a", [0.0, 1.0, 0.0])), Change::put(Record::new("new"))];
    let taken_back: [Change; 2] = [Change::put(at("a", [1.0, 0.0, 0.0])), Change::Delete { key: "new".into() }];
    for _ in 0..2 {
        // And again: it is idempotent.
        let applied = store.apply(&write(2, Fence::Compensation, taken_back.clone())).await.expect("is taken back");
        assert_eq!(applied.superseded_by, None);
    }
    let applied = store.apply(&write(2, Fence::Write, late)).await.expect("is superseded");
    assert_eq!(applied.superseded_by, Some(Version(2)));
    let record = before.and_then(|before| before.record);
    assert_eq!(read(&store, "a").await, Some(Stored { version: Version(2), record }));
    assert_eq!(read(&store, "new").await, Some(Stored { version: Version(2), record: None }));
}

#[tokio::test]
async fn searches_find_what_lies_near_and_has_the_properties_and_nothing_else() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let store = on(server.port());
    let odd = json!({"a.b\"[]": [1, {"deep": null}]});
    let records = [
        at("east", [1.0, 0.0, 0.0]).with("colour", "red").with("n", 1),
        at("north", [0.0, 1.0, 0.0]).with("colour", "red").with("n", 1.0),
        at("between", [1.0, 1.0, 0.0]).with("colour", json!(["red", "blue"])).with("n", json!(null)),
        Record::new("nowhere").with("colour", "red").with("odd \"name\".[]", odd.clone()),
    ];
    let changes: Vec<Change> = records.into_iter().map(Change::put).collect();
    store.apply(&write(1, Fence::Write, changes)).await.expect("is stored");
    put(&store, 2, at("gone", [1.0, 0.1, 0.0]).with("colour", "red")).await.expect("is stored");
    delete(&store, 3, "gone").await.expect("is deleted");

    let near = Search::near(vec![1.0, 0.2, 0.0]);
    let hits = store.search(&near).await.expect("answers");
    assert_eq!(keys(&hits), ["east", "between", "north"]);
    assert!(hits[0].score > 0.9 && hits[0].version == Version(1));
    assert_eq!(keys(&store.search(&near.clone().limit(1)).await.expect("answers")), ["east"]);
    assert!(store.search(&near.clone().limit(0)).await.expect("answers").is_empty());
    // Equal is what is equal: a text is no list that has it, 1 is no 1.0.
    assert_eq!(keys(&store.search(&near.clone().filter("colour", "red")).await.expect("answers")), ["east", "north"]);
    assert_eq!(keys(&store.search(&near.clone().filter("n", 1)).await.expect("answers")), ["east"]);
    assert_eq!(keys(&store.search(&Search::like("east")).await.expect("answers")), ["between", "north"]);
    for (missing, code) in [("nowhere", "no_embedding"), ("gone", "no_embedding"), ("never", "no_embedding")] {
        let error = store.search(&Search::like(missing)).await.expect_err("lies nowhere");
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Permanent, Some(code)), "{missing}");
    }

    let found = async |name: &str, value: serde_json::Value| {
        let mut hits = store.find(&Properties::new().with(name, value), 10).await.expect("answers");
        hits.sort_by(|a, b| a.record.key.cmp(&b.record.key));
        keys(&hits).join(" ")
    };
    assert_eq!(found("colour", json!("red")).await, "east north nowhere");
    assert_eq!(found("colour", json!(["red", "blue"])).await, "between");
    assert_eq!(found("n", json!(1.0)).await, "north");
    assert_eq!(found("n", json!(null)).await, "between");
    assert_eq!(found("odd \"name\".[]", odd).await, "nowhere");
    assert_eq!(found("odd", json!(null)).await, "");
    assert_eq!(store.find(&Properties::new(), 2).await.expect("answers").len(), 2);
}

#[tokio::test]
async fn an_embedding_that_a_write_leaves_out_is_found_no_more() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let euclidean = QdrantConfig { distance: Metric::Euclidean, ..config(server.port()) };
    let store = QdrantBackend::new("vector", &euclidean).expect("the settings are good");
    put(&store, 1, at("a", [0.0, 3.0, 4.0])).await.expect("is stored");
    put(&store, 2, at("b", [0.0, 0.0, 1.0])).await.expect("is stored");
    let near = Search::near(vec![0.0; DIMENSION]);
    let hits = store.search(&near).await.expect("answers");
    let found: Vec<(&str, f32)> = hits.iter().map(|hit| (hit.record.key.as_str(), hit.score)).collect();
    assert_eq!(found, [("b", -1.0), ("a", -5.0)], "nearer is higher");
    // A merge keeps it, a record without one does not.
    let merge = Change::Merge { key: "a".into(), properties: Properties::new().with("n", 1) };
    store.apply(&write(3, Fence::Write, [merge])).await.expect("is merged");
    put(&store, 4, Record::new("b")).await.expect("is stored");
    assert_eq!(keys(&store.search(&near).await.expect("answers")), ["a"]);
}

#[tokio::test]
async fn old_tombstones_are_swept_and_the_newest_version_never_is() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let store = on(server.port());
    assert_eq!(store.newest_version().await.expect("answers"), Version(0));
    assert_eq!(store.sweep(Version(9), 100).await.expect("answers"), 0);
    put(&store, 1, Record::new("kept")).await.expect("is stored");
    for (version, key) in [(2, "a"), (3, "b"), (4, "c")] {
        delete(&store, version, key).await.expect("is deleted");
    }
    assert_eq!(store.sweep(Version(3), 100).await.expect("is swept"), 1);
    assert_eq!((read(&store, "a").await, read(&store, "b").await.is_some()), (None, true));
    assert_eq!(store.sweep(Version(99), 100).await.expect("is swept"), 1);
    assert_eq!(store.sweep(Version(99), 100).await.expect("is swept"), 0);
    assert!(read(&store, "kept").await.is_some());
    assert_eq!(store.newest_version().await.expect("answers"), Version(4));
}

#[tokio::test]
async fn a_broken_collection_is_read_and_not_written() {
    let Some(server) = QdrantServer::start(Qdrant::default()).await else { return };
    let store = on(server.port());
    for (status, health) in [("Yellow", Health::Healthy), ("Grey", Health::Healthy), ("Red", Health::ReadOnly)] {
        std::fs::write(server.place().data.join("FAULT"), status).expect("is written");
        assert_eq!(store.probe().await.expect("answers"), health, "{status}");
    }
}

#[tokio::test]
async fn a_connection_that_is_encrypted_needs_a_server_that_proves_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| dir.path().join(name));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("skipped: there is no openssl to make a certificate with");
        return;
    }
    let tls = Qdrant { tls: Some((certificate.clone(), key)), ..Qdrant::default() };
    let Some(server) = QdrantServer::start(tls).await else { return };
    let url = format!("https://localhost:{}", server.port());
    let trusting = QdrantConfig { url: url.clone(), tls_ca_file: Some(certificate.clone()), ..config(0) };
    let store = QdrantBackend::new("vector", &trusting).expect("the settings are good");
    put(&store, 1, Record::new("a")).await.expect("is stored");
    let elsewhere = format!("https://127.0.0.1:{}", server.port());
    let doubtful = QdrantConfig { url: elsewhere, ..trusting.clone() };
    let untrusting = QdrantConfig { tls_ca_file: None, ..trusting };
    // Where the system trusts nobody at all, the second cannot even be made.
    for store in [&doubtful, &untrusting].into_iter().filter_map(|config| QdrantBackend::new("vector", config).ok()) {
        let error = store.check().await.expect_err("is not trusted");
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("unreachable")), "{error}");
        assert!(error.message.contains("certificate"), "{error}");
    }
}
