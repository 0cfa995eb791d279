//! How often a whole write, and a whole read, ask for memory.

use std::hint::black_box;
use std::sync::Arc;

use allocation_counter::{AllocationInfo, measure};
use seawall::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::ledger::MemoryJournal;
use seawall::record::Record;
use seawall::{Handle, Runtime};

const CALLS: u64 = 500;
/// Half as many again as were measured, 54 and 13. More than that is a change to look at.
const PER_STORE: u64 = 81;
const PER_RETRIEVE: u64 = 20;

fn record(number: u64) -> Record {
    Record::new(format!("key-{number}")).with("n", number).with_embedding(vec![0.5; 8])
}

fn told(what: &str, AllocationInfo { count_total, bytes_total, .. }: AllocationInfo) -> u64 {
    let (count, bytes) = (count_total / CALLS, bytes_total / CALLS);
    println!("a {what} allocates {count} times, {bytes} bytes");
    count
}

async fn start() -> (Runtime, Handle) {
    let runtime = Runtime::builder()
        .backend(GraphBackend::in_memory(GraphConfig::default()))
        .backend(VectorBackend::in_memory(VectorConfig::default()))
        .journal(Arc::new(MemoryJournal::default()), Vec::new())
        .start()
        .await
        .expect("the runtime starts");
    let handle = runtime.handle();
    (runtime, handle)
}

#[test]
fn a_store_and_a_retrieve_allocate_a_bounded_number_of_times() {
    // One thread, so that all of it is counted.
    let tokio =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    let (_runtime, handle) = tokio.block_on(start());
    let store = |number| tokio.block_on(handle.store(record(number))).expect("is stored");
    // Tables that grow have grown.
    (0..CALLS).for_each(|number| drop(store(number)));
    let inputs = measure(|| (0..CALLS).for_each(|number| drop(black_box(record(number)))));
    let stores = measure(|| (0..CALLS).for_each(|number| drop(store(number))));
    let reads = measure(|| {
        for number in 0..CALLS {
            let read = tokio.block_on(handle.retrieve(format!("key-{number}"))).expect("is read");
            assert!(read.record.is_some());
        }
    });
    let per_store = told("store", stores) - told("record to store", inputs);
    let per_retrieve = told("retrieve", reads);
    assert!(per_store <= PER_STORE && per_retrieve <= PER_RETRIEVE, "{per_store} and {per_retrieve}");
}
