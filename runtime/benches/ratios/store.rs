//! Storing through the gateway: rows 5 and 6.

use std::sync::Arc;

use allocation_counter::measure;
use futures::future::join;
use ractor::ActorRef;
use seawall::backend::{Backend, Fence, FencedWrite};
use seawall::operation::{Change, OperationId, Version, Write};
use seawall::record::Record;
use seawall::{Request, Runtime};

use crate::measure::{Effort, interleave, per_task_call, per_task_wait, spawned};
use crate::stage::{Echo, Noop, Remote, current_thread, records, roomy, start, store_all};
use crate::table::{Aim, Row, both};

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    let mut rows = in_memory(effort);
    rows.push(allocations());
    rows.extend(remote(effort));
    rows
}

async fn ask_all(gateway: ActorRef<Request>, records: Vec<Record>) {
    for record in records {
        let write = Write::store(record);
        ractor::call!(gateway, Request::Store, write).expect("it answers").expect("is stored");
    }
}

fn in_memory(effort: Effort) -> Vec<Row> {
    let calls = effort.pick(5_000, 1_000);
    let tokio = current_thread();
    let runtime = tokio.block_on(start(Noop::two(), roomy()));
    let echo = tokio.block_on(Echo::start());
    let (handle, gateway) = (runtime.handle(), runtime.gateway());
    let rounds = interleave(
        effort.rounds(),
        [
            &mut || per_task_call(&tokio, calls, store_all(handle.clone(), records(calls))),
            &mut || per_task_call(&tokio, calls, ask_all(gateway.clone(), records(calls))),
            &mut || per_task_call(&tokio, calls, Echo::call(echo.clone(), calls)),
        ],
    );
    let row = |number, what, variant| {
        let medians = both(rounds.median(variant), rounds.median(2));
        Row::ratio(number, what, "one ractor `call!`", rounds.ratio(variant, 2), medians, Aim::AtMost(3.0))
    };
    vec![
        row("5a", "store to two backends that do nothing, journal in memory, by the handle", 0),
        row("5b", "the same by the actor ref", 1),
    ]
}

fn allocations() -> Row {
    const CALLS: u64 = 1_000;
    let tokio = current_thread();
    let runtime = tokio.block_on(start(Noop::two(), roomy()));
    let handle = runtime.handle();
    // Tables that grow have grown.
    spawned(&tokio, store_all(handle.clone(), records(20 * CALLS)));
    let input = records(CALLS);
    let counted = measure(|| spawned(&tokio, store_all(handle, input)));
    let per_store = counted.count_total as f64 / CALLS as f64;
    Row::plain("5c", "allocations of such a store", per_store, "allocations", Aim::AtMost(5.0))
}

/// A write to two backends by hand, as a service without Seawall would do it.
async fn write_directly(backends: Arc<[Arc<Remote>; 2]>, records: Vec<Record>, read_first: bool) {
    let [graph, vector] = &*backends;
    for (n, record) in records.into_iter().enumerate() {
        let keys = [record.key.clone()];
        if read_first {
            let images = join(graph.read(&keys), vector.read(&keys)).await;
            assert!(images.0.is_ok() && images.1.is_ok());
        }
        let write = FencedWrite {
            operation: OperationId::generate(),
            version: Version(n as u64 + 1),
            fence: Fence::Write,
            changes: [Change::put(record)].into(),
        };
        let written = join(graph.apply(&write), vector.apply(&write)).await;
        assert!(written.0.is_ok() && written.1.is_ok());
    }
}

fn remote(effort: Effort) -> Vec<Row> {
    let calls = effort.pick(100, 20);
    let tokio = current_thread();
    let backends = Arc::new(["graph", "vector"].map(Remote::new));
    let shared = |count: usize| backends.iter().take(count).map(|backend| Arc::clone(backend) as _).collect();
    let both_stores: Runtime = tokio.block_on(start(shared(2), roomy()));
    let one_store: Runtime = tokio.block_on(start(shared(1), roomy()));
    let nanoseconds = |seconds: f64| {
        backends.iter().for_each(|backend| drop(backend.take_applied()));
        seconds * 1e9
    };
    let stored = |runtime: &Runtime| per_task_wait(&tokio, calls, store_all(runtime.handle(), records(calls)));
    let direct = |read| per_task_wait(&tokio, calls, write_directly(Arc::clone(&backends), records(calls), read));
    let alone = || {
        let backends = Arc::clone(&backends);
        per_task_wait(&tokio, calls, async move {
            for _ in 0..calls {
                backends[0].call().await;
            }
        })
    };
    let rounds = interleave(
        effort.rounds(),
        [
            &mut || nanoseconds(stored(&both_stores)),
            &mut || nanoseconds(direct(false)),
            &mut || nanoseconds(direct(true)),
            &mut || nanoseconds(stored(&one_store)),
            &mut || nanoseconds(alone()),
        ],
    );
    let row = |number, what, against, subject, reference| {
        let medians = both(rounds.median(subject), rounds.median(reference));
        Row::ratio(number, what, against, rounds.ratio(subject, reference), medians, Aim::AtMost(1.05))
    };
    let what = "store to two backends of 1 ms, wall";
    vec![
        row("6a", what, "the two writes side by side", 0, 1),
        row("6b", what, "the same calls: two reads for the way back, then two writes", 0, 2),
        row("6c", "store to one backend of 1 ms, wall", "the write", 3, 4),
    ]
}
