//! State changes as they happen: a snapshot to start from, events that are numbered without gaps, and what happens
//! to a subscriber that does not keep up.
//!
//! ```sh
//! cargo run --release --example subscribe_events
//! ```

use std::error::Error;
use std::time::Duration;

use seawall::Runtime;
use seawall::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::event::{CAPACITY, EventKind, Subscription, Update};
use seawall::fallback::{DegradationLevel, Mode};
use tokio::time::timeout;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let runtime = Runtime::builder()
        .data_dir(dir.path())
        .backend(GraphBackend::in_memory(GraphConfig::default()))
        .backend(VectorBackend::in_memory(VectorConfig::default()))
        .start()
        .await?;
    let graph = runtime.control().breaker("graph")?;

    // A subscription starts with the state at that moment, so nothing falls between a question and a subscription.
    let mut events = runtime.subscribe();
    let mut known = events.start().clone();
    println!("at event {}: mode {}, level {}", known.sequence, known.mode.name(), known.level.name());

    // Something happens. Every event that is folded in keeps what is known up to date.
    graph.force_open("to have something to tell", None);
    while known.mode != Mode::QueueWrites {
        let Update::Event(event) = next(&mut events).await? else { return Err("nothing is missed so early".into()) };
        assert_eq!(event.sequence, known.sequence + 1, "numbers have no gaps");
        assert!(known.apply(&event));
        match &event.kind {
            EventKind::BreakerChanged { backend, from, to, cause, .. } => {
                println!("  {}: breaker of {backend} {from} → {to}, because {cause}", event.sequence);
            }
            EventKind::LevelChanged { from, to } => {
                println!("  {}: level {} → {}", event.sequence, from.name(), to.name());
            }
            EventKind::ModeChanged { from, to, .. } => {
                println!("  {}: mode {} → {}", event.sequence, from.name(), to.name());
            }
            EventKind::AccessChanged { backend, from, to } => {
                println!("  {}: access to {backend} {from:?} → {to:?}", event.sequence);
            }
            other => println!("  {}: {other:?}", event.sequence),
        }
    }
    assert_eq!(known.level, DegradationLevel::NoGraph);
    println!("at event {}: mode {}, level {}\n", known.sequence, known.mode.name(), known.level.name());

    // A subscriber that sleeps costs nobody anything: it misses the oldest events, and is told how many.
    let mut sleeper = runtime.subscribe();
    for _ in 0..CAPACITY {
        graph.lift();
        graph.force_open("once more", None);
    }
    let Update::Lagged { missed } = next(&mut sleeper).await? else { return Err("the sleeper missed events".into()) };
    assert!(missed >= CAPACITY as u64);
    // What it knew is out of date. A new subscription starts from what is true now.
    let mut sleeper = runtime.subscribe();
    println!("the sleeper missed {missed} events, and goes on from event {}", sleeper.start().sequence);
    assert!(sleeper.start().sequence > known.sequence + missed);

    // A subscription ends with the runtime, though somebody may still hold a handle.
    let _handle = runtime.handle();
    runtime.shutdown().await;
    let mut stopping = false;
    while let Some(update) = timeout(Duration::from_secs(5), sleeper.next()).await? {
        stopping |= matches!(update, Update::Event(event) if event.kind == EventKind::Stopping);
    }
    assert!(stopping);
    println!("told that the runtime is stopping, and then the subscription ended");
    Ok(())
}

async fn next(events: &mut Subscription) -> Result<Update, Box<dyn Error>> {
    timeout(Duration::from_secs(5), events.next()).await?.ok_or_else(|| "the runtime is gone".into())
}
