//! A write that one of two stores cannot take: what the other store did is taken back, and the operation id tells
//! what became of it.
//!
//! ```sh
//! cargo run --release --example saga_compensation
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use seawall::backend::{Backend, ErrorKind};
use seawall::backends::{Fault, Faults, FaultyBackend, GraphBackend, GraphConfig, Op, VectorBackend, VectorConfig};
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::operation::{Held, Outcome, Write};
use seawall::record::{Key, Record};
use seawall::{Refusal, Runtime};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    // `Arc`s, so that this program can look into the stores behind Seawall's back.
    let graph = Arc::new(GraphBackend::in_memory(GraphConfig::default()));
    let faults = Faults::new();
    let vector = FaultyBackend::new(VectorBackend::in_memory(VectorConfig::default()), &faults);
    let mut config = Config::default();
    config.call.retry.backoff = Duration::from_millis(5); // default 50 ms; the example is short
    let runtime = Runtime::builder()
        .config(config)
        .data_dir(dir.path())
        .shared_backend(Arc::clone(&graph) as Arc<dyn Backend>)
        .backend(vector)
        .start()
        .await?;
    let handle = runtime.handle();
    let mut events = runtime.subscribe();

    handle.store(Record::new("ship").with("cargo", "grain")).await?;
    println!("stored: the ship carries {}", cargo(&graph).await?);

    // 1. The vector store rejects the next write for what it is: trying again would not help.
    faults.next(Op::Apply, 1, Fault::Error(ErrorKind::Permanent));
    let write = Write::store(Record::new("ship").with("cargo", "coal"));
    let operation = write.operation;
    let refusal = handle.write(write).await.expect_err("one store rejects it");
    println!("\nrefused: {refusal}");
    assert!(matches!(refusal, Refusal::Rejected { .. }));

    // The graph store had coal for a moment. It has grain again: the way back was in the journal before the write.
    assert_eq!(cargo(&graph).await?, "grain");
    println!("the graph store is as it was: the ship carries grain");
    let outcome = handle.outcome(operation);
    println!("outcome of {operation}: {outcome:?}");
    assert!(matches!(outcome, Outcome::RolledBack(_)));

    // Two events say the same to whoever listens.
    let mut seen = Vec::new();
    while let Some(Update::Event(event)) = events.try_next() {
        match &event.kind {
            EventKind::SagaCompensating { operation, cause, .. } => seen.push((*operation, cause.to_string())),
            EventKind::SagaRolledBack { operation, .. } => seen.push((*operation, "everywhere".to_owned())),
            _ => {}
        }
    }
    println!("events: compensating because of {}, rolled back {}", seen[0].1, seen[1].1);
    assert_eq!(seen, [(operation, "vector".to_owned()), (operation, "everywhere".to_owned())]);

    // 2. The vector store loses connections: the saga tries again (3 times), and rolls back when that does not help.
    faults.next(Op::Apply, 4, Fault::Error(ErrorKind::Transient));
    let write = Write::store(Record::new("ship").with("cargo", "timber"));
    let operation = write.operation;
    let refusal = handle.write(write.clone()).await.expect_err("the store fails four times");
    println!("\nrefused: {refusal}");
    assert!(matches!(refusal, Refusal::RolledBack { .. }));
    assert_eq!(cargo(&graph).await?, "grain");

    // Nothing of it is left, so the same write may be sent again under the same id.
    let receipt = handle.write(write).await?;
    println!("sent again under the same id: {:?}", receipt.held);
    assert_eq!((receipt.operation, receipt.held), (operation, Held::Committed));
    assert_eq!(handle.outcome(operation), Outcome::Committed(receipt.version));
    assert_eq!(cargo(&graph).await?, "timber");
    println!("both stores have it: the ship carries timber");

    runtime.shutdown().await;
    Ok(())
}

/// What the graph store itself says.
async fn cargo(graph: &GraphBackend) -> Result<String, Box<dyn Error>> {
    let stored = graph.read(&[Key::new("ship")]).await?.pop().flatten();
    let record = stored.and_then(|stored| stored.record).ok_or("there is no ship")?;
    Ok(record.properties.get("cargo").and_then(|cargo| cargo.as_str()).unwrap_or("nothing").to_owned())
}
