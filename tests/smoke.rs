//! The main path, once.

use std::sync::Arc;
use std::time::Duration;

use seawall::backends::{Fault, Faults, FaultyBackend, GraphBackend, GraphConfig, Ops, VectorBackend, VectorConfig};
use seawall::ledger::MemoryJournal;
use seawall::operation::{Held, Source};
use seawall::record::Record;
use seawall::{Request, Runtime};

#[tokio::test(start_paused = true)]
async fn a_write_goes_to_both_stores_and_survives_an_outage_of_one() {
    let faults = Faults::new();
    let graph = FaultyBackend::new(GraphBackend::in_memory(GraphConfig::default()), &faults);
    let runtime = Runtime::builder()
        .backend(graph)
        .backend(VectorBackend::in_memory(VectorConfig::default()))
        .journal(Arc::new(MemoryJournal::new()), Vec::new())
        .start()
        .await
        .expect("starts");
    let handle = runtime.handle();
    let receipt = handle.store(Record::new("a").with("n", 1)).await.expect("is stored");
    assert_eq!(receipt.held, Held::Committed);

    faults.set(Ops::ALL, Fault::Down);
    let mut queued = None;
    for n in 0..20 {
        if let Ok(receipt) = handle.store(Record::new("a").with("n", n)).await {
            queued = Some((n, receipt));
            break;
        }
    }
    let (n, receipt) = queued.expect("the breaker opens, and then writes are queued");
    assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
    let read = handle.retrieve("a").await.expect("is read");
    assert_eq!(read.source, Source::Owed);
    assert_eq!(read.record.expect("is there").properties.get("n"), Some(&n.into()));

    faults.heal(Ops::ALL);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(handle.status().owed, 0);
    let read =
        ractor::call_t!(runtime.gateway(), Request::Retrieve, 5_000, "a".into()).expect("a reply").expect("read");
    assert_eq!(read.source, Source::Backend("graph".into()));
    assert_eq!(read.record.expect("is there").properties.get("n"), Some(&n.into()));
    let report = runtime.shutdown().await;
    assert_eq!(report.owed, 0);
    assert!(report.killed.is_empty(), "{report:?}");
}
