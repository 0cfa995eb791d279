//! What a store costs where there is more of something: row 14.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use seawall::backend::Backend;
use seawall::fallback::Access;
use seawall::record::Record;
use seawall::{Handle, Runtime};

use crate::measure::{Effort, Rounds, interleave, per_task_call};
use crate::stage::{Noop, current_thread, records, roomy, start, store_all, until};
use crate::table::{Aim, Row, both};

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    let mut rows = backends(effort);
    rows.extend(owed(effort));
    rows
}

/// Every write goes to every backend, so the cost is taken per backend.
fn backends(effort: Effort) -> Vec<Row> {
    let tokio = current_thread();
    let [ten, hundred, thousand] = [10, 100, 1_000].map(|count| {
        let backends: Vec<Arc<dyn Backend>> = (0..count).map(|n| Noop::shared(&format!("backend-{n}"))).collect();
        tokio.block_on(start(backends, roomy()))
    });
    let calls = effort.pick(2_000, 1_000);
    let per_backend = |runtime: &Runtime, count: u64| {
        let calls = calls / count;
        per_task_call(&tokio, calls * count, store_all(runtime.handle(), records(calls)))
    };
    let rounds = interleave(
        effort.rounds(),
        [&mut || per_backend(&ten, 10), &mut || per_backend(&hundred, 100), &mut || per_backend(&thousand, 1_000)],
    );
    let row = |number, count: &str, variant| {
        let what = format!("store to {count} backends, for each of them");
        against_first(&rounds, number, what, "to 10 backends, for each", variant)
    };
    vec![row("14a", "100", 1), row("14b", "1 000", 2)]
}

fn against_first(rounds: &Rounds, number: &'static str, what: String, against: &str, variant: usize) -> Row {
    let medians = both(rounds.median(variant), rounds.median(0));
    Row::ratio(number, what, against, rounds.ratio(variant, 0), medians, Aim::AtMost(1.25))
}

/// A runtime of which one backend owes this many writes, each to another key.
async fn owing(count: u64) -> Runtime {
    let runtime = start(Noop::two(), roomy()).await;
    let control = runtime.control();
    control.breaker("graph").expect("it is there").force_open("to have something owed", None);
    let lost = || control.fallback().backends.iter().any(|(_, access)| *access == Access::None);
    until("the level follows the breaker", lost).await;
    let handle = runtime.handle();
    let stores = (0..count).map(|n| {
        let handle = handle.clone();
        async move { handle.store(Record::new(format!("owed-{n}")).with("n", n)).await.expect("is queued") }
    });
    stream::iter(stores).buffer_unordered(64).for_each(|_| std::future::ready(())).await;
    assert_eq!(runtime.handle().status().owed as u64, count);
    runtime
}

async fn read_all(handle: Handle, calls: u64) {
    for n in 0..calls {
        let read = handle.retrieve(format!("owed-{n}")).await.expect("is read");
        assert!(read.record.is_some());
    }
}

fn owed(effort: Effort) -> Vec<Row> {
    let tokio = current_thread();
    let (few, some, many) = effort.pick((1_000, 100_000, 1_000_000), (1_000, 10_000, 50_000));
    let [one, two, three] = [few, some, many].map(|count| tokio.block_on(owing(count)));
    // So few that what is measured does not itself become a queue.
    let calls = 50;
    let store = |runtime: &Runtime| per_task_call(&tokio, calls, store_all(runtime.handle(), records(calls)));
    let read = |runtime: &Runtime| per_task_call(&tokio, calls, read_all(runtime.handle(), calls));
    let stores = interleave(effort.rounds(), [&mut || store(&one), &mut || store(&two), &mut || store(&three)]);
    let reads = interleave(effort.rounds(), [&mut || read(&one), &mut || read(&two), &mut || read(&three)]);
    let row = |number, rounds: &Rounds, what: &str, count: u64, variant| {
        let what = format!("{what} with {count} other keys owed");
        against_first(rounds, number, what, &format!("with {few}"), variant)
    };
    vec![
        row("14c", &stores, "store that is queued", some, 1),
        row("14d", &stores, "store that is queued", many, 2),
        row("14e", &reads, "read of an owed key", some, 1),
        row("14f", &reads, "read of an owed key", many, 2),
    ]
}
