//! The servers themselves: that a test can do to them what it says it does.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::servers::listens;
use crate::servers::redis::{Redis, RedisServer};

/// Says this to it and gives the first line of what it answers.
async fn say(server: &RedisServer, words: &str) -> String {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", server.port())).await.expect("connects"));
    stream.write_all(format!("{words}\r\n").as_bytes()).await.expect("writes");
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("answers");
    line.trim_end().to_owned()
}

#[tokio::test]
async fn a_server_is_killed_restarted_frozen_and_put_back_to_what_it_was() {
    let Some(mut server) = RedisServer::start(Redis::default()).await else { return };
    assert_eq!(say(&server, "SET n 1").await, "+OK");
    server.kill();
    assert!(!server.is_running() && !listens(server.port()).await);
    server.restart().await;
    assert_eq!(say(&server, "INCR n").await, ":2");

    let old = server.snapshot().await;
    assert_eq!(say(&server, "INCR n").await, ":3");
    server.freeze().await;
    let answer = timeout(Duration::from_millis(50), say(&server, "INCR n")).await;
    assert!(answer.is_err(), "a frozen server answers {answer:?}");
    server.thaw();
    assert_eq!(say(&server, "PING").await, "+PONG");
    server.restore(&old).await;
    assert_eq!(say(&server, "INCR n").await, ":3");

    let port = server.port();
    drop(server);
    assert!(!listens(port).await);
}
