//! Breaker states in Redis: on a real server, where `SEAWALL_SERVERS` says that there is one, and on none.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "breaker_states/conformance.rs"]
mod conformance;
#[path = "../../tests/servers/mod.rs"]
mod servers;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use conformance::record;
use seawall::backend::BackendName;
use seawall::backends::{GraphBackend, GraphConfig};
use seawall::breaker::{
    BreakerHandle, BreakerState, BreakerStateStore, CallOutcome, Purpose, SavedBreaker, StoreError, TransitionCause,
};
use seawall::config::{Config, RedisConfig, Secret};
use seawall::ledger::MemoryJournal;
use seawall::operation::Held;
use seawall::record::Record;
use seawall::{RedisStateStore, Runtime};
use servers::free_port;
use servers::redis::{Redis, RedisServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const KEY: &str = "circuit_breaker:graph:state";
const WAIT: Duration = Duration::from_secs(60);

fn graph() -> BackendName {
    "graph".into()
}

fn store(config: &RedisConfig) -> RedisStateStore {
    RedisStateStore::new(config, |_| WAIT).unwrap()
}

/// The configuration for a Redis on this port, with a patience that a busy machine does not outlast.
fn at(port: u16) -> RedisConfig {
    RedisConfig {
        enabled: true,
        host: "127.0.0.1".to_owned(),
        port,
        timeout: Duration::from_secs(4),
        ..RedisConfig::default()
    }
}

impl RedisServer {
    fn config(&self) -> RedisConfig {
        at(self.port())
    }

    /// Runs a command on it, past the store.
    async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(("127.0.0.1", self.port())).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.unwrap()
    }
}

fn failed<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Failed(why)) => why,
        other => panic!("{other:?}"),
    }
}

// ----- on a real server

#[tokio::test]
async fn redis_keeps_breaker_states_as_every_store_does() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    conformance::check(&store(&server.config())).await;
}

#[tokio::test]
async fn two_processes_that_race_leave_the_newest_record() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let stores = [store(&server.config()), store(&server.config())];
    for round in 0..20 {
        let [one, other] = &stores;
        let (graph, n) = (graph(), 2 * round + 1);
        let saved = tokio::join!(one.save(&graph, record(n)), other.save(&graph, record(n + 1)));
        assert_eq!(saved.1, Ok(()));
        assert_eq!(one.load(&graph).await, Ok(Some(record(n + 1))));
    }
}

#[tokio::test]
async fn one_connection_does_for_all_breakers() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let store = store(&server.config());
    for n in 1..=10 {
        for backend in ["graph", "vector"] {
            store.save(&backend.into(), record(n)).await.unwrap();
            store.load(&backend.into()).await.unwrap();
        }
    }
    let stats = server.command::<String>(&["INFO", "stats"]).await;
    // The other one asks.
    assert!(stats.contains("total_connections_received:2\r\n"), "{stats}");
}

#[tokio::test]
async fn keys_fields_and_lives_are_those_of_document_003() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let store = store(&server.config());
    let lives = async |n, state, manual: bool| {
        let manual = record(n).manual.filter(|_| manual).map(|mut manual| {
            manual.remaining = None;
            manual
        });
        store.save(&graph(), SavedBreaker { state, manual, ..record(n) }).await.unwrap();
        server.command::<i64>(&["TTL", KEY]).await
    };
    let (hour, day) = (3_540..=3_600, 86_340..=86_400);
    assert!(day.contains(&lives(1, BreakerState::Open, false).await));
    let object: serde_json::Value =
        serde_json::from_str(&server.command::<String>(&["GET", KEY]).await).expect("is JSON");
    assert_eq!(object["state"], "open");
    assert_eq!(object["failure_count"], 5);
    assert_eq!(object["half_open_attempts"], 2);
    assert!(object["opened_at"].as_f64().unwrap() > 1.7e9);
    assert!(hour.contains(&lives(2, BreakerState::HalfOpen, false).await));
    assert!(hour.contains(&lives(3, BreakerState::Closed, false).await));
    assert_eq!(lives(4, BreakerState::Closed, true).await, -1, "what a person has forced does not go by itself");
    assert!(hour.contains(&lives(5, BreakerState::Closed, false).await));
    assert_eq!(server.command::<Vec<String>>(&["KEYS", "*"]).await, [KEY]);
}

#[tokio::test]
async fn what_another_implementation_saved_is_read_and_replaced() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let store = store(&server.config());
    let example = r#"{"state": "OPEN", "failure_count": 5, "opened_at": 1698765432.0, "half_open_attempts": 0}"#;
    let () = server.command(&["SET", KEY, example]).await;
    let loaded = store.load(&graph()).await.unwrap().unwrap();
    assert_eq!((loaded.state, loaded.failure_count), (BreakerState::Open, 5));
    assert_eq!(loaded.remaining_wait, Duration::ZERO, "that was in 2023");
    assert_eq!(store.save(&graph(), record(1)).await, Ok(()));
    assert_eq!(store.load(&graph()).await, Ok(Some(record(1))));
}

#[tokio::test]
async fn what_nobody_can_read_is_told_and_written_over_but_not_what_is_no_record_at_all() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let store = store(&server.config());
    for (n, garbage) in (1..).zip(["", "{", "[]", "\"hush\"", "{\"format\":1,\"sequence\":99}"]) {
        let () = server.command(&["SET", KEY, garbage]).await;
        assert!(matches!(store.load(&graph()).await, Err(StoreError::Unreadable(_))), "{garbage}");
        assert_eq!(store.save(&graph(), record(n)).await, Ok(()), "{garbage}");
        assert_eq!(store.load(&graph()).await, Ok(Some(record(n))));
    }
    let () = server.command(&["DEL", KEY]).await;
    let () = server.command(&["RPUSH", KEY, "somebody else's"]).await;
    assert!(failed(store.load(&graph()).await).contains("WRONGTYPE"));
    assert!(failed(store.save(&graph(), record(9)).await).contains("WRONGTYPE"));
    assert_eq!(server.command::<String>(&["TYPE", KEY]).await, "list");
}

#[tokio::test]
async fn prefixes_and_databases_keep_services_apart() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let theirs = store(&RedisConfig { prefix: "orders".to_owned(), ..server.config() });
    let elsewhere = store(&RedisConfig { db: 1, ..server.config() });
    store(&server.config()).save(&graph(), record(1)).await.unwrap();
    assert_eq!(theirs.load(&graph()).await, Ok(None));
    assert_eq!(elsewhere.load(&graph()).await, Ok(None));
    theirs.save(&graph(), record(1)).await.unwrap();
    assert_eq!(server.command::<i64>(&["EXISTS", "orders:graph:state"]).await, 1);
}

#[tokio::test]
async fn a_password_opens_and_is_shown_by_no_error() {
    let Some(server) = RedisServer::start(Redis::with(&["--requirepass", "right-hush"])).await else { return };
    let with = |password: Option<&str>| store(&RedisConfig { password: password.map(Secret::new), ..server.config() });
    assert_eq!(with(Some("right-hush")).save(&graph(), record(1)).await, Ok(()));
    assert!(failed(with(None).load(&graph()).await).contains("NOAUTH"));
    let why = failed(with(Some("wrong-hush")).load(&graph()).await);
    assert!(!why.contains("hush"), "{why}");
}

#[tokio::test]
async fn a_server_that_was_killed_is_used_again_when_it_is_back() {
    let Some(mut server) = RedisServer::start(Redis::default()).await else { return };
    let store = store(&server.config());
    store.save(&graph(), record(1)).await.unwrap();
    // Between two commands, which the store does not even notice.
    server.restart().await;
    assert_eq!(store.save(&graph(), record(2)).await, Ok(()));
    server.kill();
    failed(store.load(&graph()).await);
    failed(store.save(&graph(), record(3)).await);
    server.restart().await;
    assert_eq!(store.load(&graph()).await, Ok(Some(record(2))));
    assert_eq!(store.save(&graph(), record(4)).await, Ok(()));
}

#[tokio::test]
async fn a_server_that_is_frozen_is_late_and_used_again_when_it_goes_on() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let hasty = store(&RedisConfig { timeout: Duration::from_millis(50), ..server.config() });
    let patient = store(&server.config());
    patient.save(&graph(), record(1)).await.unwrap();
    let _ = hasty.load(&graph()).await;
    server.freeze().await;
    for _ in 0..3 {
        assert!(matches!(hasty.load(&graph()).await, Err(StoreError::Late(_))));
    }
    server.thaw();
    assert_eq!(patient.load(&graph()).await, Ok(Some(record(1))));
}

// ----- on something that is no Redis

#[tokio::test]
async fn a_redis_that_refuses_is_told() {
    let store = store(&at(free_port()));
    assert!(failed(store.load(&graph()).await).contains("cannot be reached"));
    assert!(failed(store.save(&graph(), record(1)).await).contains("cannot be reached"));
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_never_answers_is_late_after_its_timeout() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let second = Duration::from_secs(1);
    let store = store(&RedisConfig { timeout: second, ..at(listener.local_addr().unwrap().port()) });
    for _ in 0..2 {
        let before = Instant::now();
        assert_eq!(store.load(&graph()).await, Err(StoreError::Late(second)));
        let waited = before.elapsed();
        assert!((1_000..1_010).contains(&waited.as_millis()), "{waited:?}");
    }
}

/// Answers everything with this.
async fn babble(listener: tokio::net::TcpListener, answer: &'static [u8]) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 1_024];
        while stream.read(&mut heard).await.is_ok_and(|read| read > 0) {
            if stream.write_all(answer).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn garbage_is_an_error_that_does_not_repeat_it_and_a_redis_in_its_place_is_used() {
    let answers: [&[u8]; 4] =
        [b"HTTP/1.1 400 hush\r\n\r\n", b"-HUSH hush hush\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n", &[0; 64]];
    for answer in answers {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let store = store(&at(port));
        let babbler = tokio::spawn(babble(listener, answer));
        for _ in 0..2 {
            for error in [store.load(&graph()).await.err(), store.save(&graph(), record(1)).await.err()] {
                let error = error.expect("garbage is no answer");
                assert!(!error.to_string().contains("hush"), "{error}");
            }
        }
        babbler.abort();
        let _ = babbler.await;
        let Some(_server) = RedisServer::start_at(Redis::default(), port).await else { continue };
        assert_eq!(store.save(&graph(), record(1)).await, Ok(()));
        assert_eq!(store.load(&graph()).await, Ok(Some(record(1))));
    }
}

// ----- the whole runtime

async fn runtime(redis: RedisConfig) -> Runtime {
    Runtime::builder()
        .config(Config { redis, ..Config::default() })
        .journal(Arc::new(MemoryJournal::new()), Vec::new())
        .backend(GraphBackend::in_memory(GraphConfig::default()))
        .start()
        .await
        .unwrap()
}

fn breaker(runtime: &Runtime) -> BreakerHandle {
    runtime.control().breaker("graph").unwrap()
}

fn open(breaker: &BreakerHandle) {
    while breaker.view().state != BreakerState::Open {
        breaker.gate().try_acquire_owned(Purpose::Live).unwrap().settle(CallOutcome::Failure);
    }
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} never comes"));
}

#[tokio::test]
async fn a_breaker_that_was_open_is_open_in_the_next_process_for_what_was_left_of_its_wait() {
    let Some(server) = RedisServer::start(Redis::default()).await else { return };
    let first = runtime(server.config()).await;
    open(&breaker(&first));
    until("the record", async || server.command::<i64>(&["EXISTS", KEY]).await == 1).await;
    drop(first);
    // Some of the wait is over, whatever the machine has been doing.
    let saved = store(&server.config()).load(&graph()).await.unwrap().unwrap();
    let rest = SavedBreaker { remaining_wait: WAIT / 2, sequence: saved.sequence + 1_000, ..saved };
    store(&server.config()).save(&graph(), rest).await.unwrap();

    let second = runtime(server.config()).await;
    let breaker = breaker(&second);
    until("the open breaker", async || breaker.view().state == BreakerState::Open).await;
    let left = breaker.snapshot().retry_after.unwrap();
    assert!(!left.is_zero() && left <= WAIT / 2, "{left:?}");
    let explained = breaker.explain();
    assert_eq!(explained.cause, Some(TransitionCause::Restored));
    assert_eq!(explained.history[0].cause, TransitionCause::ConsecutiveFailures(5));
    // And what it becomes here goes over what it was there.
    breaker.reset();
    until("the closed record", async || {
        store(&server.config()).load(&graph()).await.unwrap().unwrap().state == BreakerState::Closed
    })
    .await;
    second.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_never_answers_delays_neither_start_nor_call() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let before = Instant::now();
    let runtime = runtime(at(listener.local_addr().unwrap().port())).await;
    for n in 0..10 {
        let receipt = runtime.handle().store(Record::new(format!("key {n}"))).await.unwrap();
        assert_eq!(receipt.held, Held::Committed);
    }
    open(&breaker(&runtime));
    assert!(breaker(&runtime).gate().try_acquire(Purpose::Live).is_err());
    assert!(before.elapsed() < Duration::from_millis(100), "{:?}", before.elapsed());
    let before = Instant::now();
    assert!(runtime.shutdown().await.journal_closed);
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
}
