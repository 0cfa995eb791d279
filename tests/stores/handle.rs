//! The servers themselves: that a test can do to them what it says it does.

use std::time::Duration;

use tokio::time::timeout;

use crate::servers::listens;
use crate::servers::redis::{Redis, RedisServer};

#[tokio::test]
async fn a_server_is_killed_restarted_frozen_and_put_back_to_what_it_was() {
    let Some(mut server) = RedisServer::start(Redis::default()).await else { return };
    assert_eq!(server.say("SET n 1").await, "+OK");
    server.kill();
    assert!(!server.is_running() && !listens(server.port()).await);
    server.restart().await;
    assert_eq!(server.say("INCR n").await, ":2");

    let old = server.snapshot().await;
    assert_eq!(server.say("INCR n").await, ":3");
    server.freeze().await;
    let answer = timeout(Duration::from_millis(50), server.say("INCR n")).await;
    assert!(answer.is_err(), "a frozen server answers {answer:?}");
    server.thaw();
    assert_eq!(server.say("PING").await, "+PONG");
    server.restore(&old).await;
    assert_eq!(server.say("INCR n").await, ":3");

    let port = server.port();
    drop(server);
    assert!(!listens(port).await);
}
