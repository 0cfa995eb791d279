//! Memory, as counted by the allocator: row 13.

use std::sync::Arc;
use std::task::{Context, Waker};

use allocation_counter::{AllocationInfo, measure};
use futures::FutureExt as _;
use seawall::Runtime;
use seawall::backend::Backend;
use seawall::backends::{Fault, Faults, FaultyBackend, Ops};
use seawall::breaker::{BreakerCell, BreakerConfig};
use seawall::event::EventBus;

use crate::measure::Effort;
use crate::queue;
use crate::stage::{Noop, current_thread, records, roomy, start};
use crate::table::{Aim, Row};

/// Of how many things the memory is counted.
const COUNT: u64 = 1_000;

pub(crate) fn rows(_: Effort) -> Vec<Row> {
    let tokio = current_thread();
    let mut kept = None;
    let idle = measure(|| kept = Some(tokio.block_on(start(Noop::two(), roomy()))));
    let runtime: Runtime = kept.take().expect("it was started");
    let names: Vec<Arc<dyn Backend>> = (0..COUNT).map(|n| Noop::shared(&format!("backend-{n}"))).collect();
    let with_many = measure(|| kept = Some(tokio.block_on(start(names, roomy()))));
    drop(kept);
    let each = |all: f64| all / COUNT as f64;
    let backend = (bytes(with_many) - bytes(idle)) / (COUNT - 2) as f64;
    let plain = |number, what: &str, value, unit, aim| Row::plain(number, what, value, unit, aim);
    vec![
        plain("13a", "memory of an idle runtime with two backends", bytes(idle) / 1_048_576.0, "MiB", Aim::AtMost(2.0)),
        plain(
            "13b",
            "of one with a durable journal, as the system counts it",
            queue::idle() / 1_048_576.0,
            "MiB",
            Aim::Shown,
        ),
        plain("13c", "of a breaker: gate, policy, counters", each(breakers()), "bytes", Aim::Shown),
        plain("13d", "of a backend in a runtime: breaker, its actor, lanes, probes", backend, "bytes", Aim::Shown),
        plain("13e", "of a store in flight, with the future of its caller", each(in_flight()), "bytes", Aim::Shown),
        plain("13f", "of a subscriber", each(subscribers(&runtime)), "bytes", Aim::Shown),
    ]
}

/// What is still held.
fn bytes(counted: AllocationInfo) -> f64 {
    counted.bytes_current as f64
}

fn breakers() -> f64 {
    let bus = Arc::new(EventBus::new());
    let mut cells = Vec::with_capacity(COUNT as usize);
    let counted = measure(|| {
        cells.extend((0..COUNT).map(|_| {
            let cell = BreakerCell::open("graph".into(), BreakerConfig::default(), Arc::clone(&bus), None);
            cell.now_or_never().expect("without a store there is nothing to wait for")
        }));
    });
    bytes(counted)
}

/// Each waits for its backends.
fn in_flight() -> f64 {
    let tokio = current_thread();
    let faults = Faults::new();
    faults.set(Ops::ALL, Fault::Hung);
    let hung = |name: &str| Arc::new(FaultyBackend::around(Noop::alone(name), &faults)) as Arc<dyn Backend>;
    let mut config = roomy();
    config.call.max_concurrent = COUNT as usize;
    let runtime = tokio.block_on(start(["graph", "vector"].map(hung).into(), config));
    let handle = runtime.handle();
    let records = records(COUNT);
    let mut stores = Vec::with_capacity(COUNT as usize);
    let counted = measure(|| {
        let _entered = tokio.enter();
        for record in records {
            let mut store = Box::pin(handle.store(record));
            assert!(store.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
            stores.push(store);
        }
        // Every store goes as far as it can.
        tokio.block_on(async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        });
    });
    assert_eq!(handle.status().in_flight, COUNT as usize, "they are in flight");
    bytes(counted)
}

/// With the subscription itself, which its owner keeps wherever that is.
fn subscribers(runtime: &Runtime) -> f64 {
    let mut all = Vec::with_capacity(COUNT as usize);
    let counted = measure(|| all.extend((0..COUNT).map(|_| runtime.subscribe())));
    bytes(counted) + size_of_val(all.as_slice()) as f64
}
