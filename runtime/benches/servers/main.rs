//! What Seawall adds to a call to a real server: to Neo4j and to Qdrant, through a durable journal, against the same
//! client crates called directly with the same statements and requests.
//!
//! ```sh
//! tests/servers/install target/servers
//! SEAWALL_SERVERS=$PWD/target/servers cargo bench -p seawall --features neo4j,qdrant --bench servers   # minutes
//! SEAWALL_SERVERS=$PWD/target/servers cargo bench -p seawall --features neo4j,qdrant --bench servers -- --short
//! ```
//!
//! Both sides talk to the same two servers, which run beside them on the same machine and use most of it. So times say
//! little, and ratios are taken inside a round, in which both sides have their turn one after the other; the median of
//! them is what counts (`../ratios/measure.rs`).

mod by_hand;
#[path = "../ratios/measure.rs"]
#[expect(dead_code, reason = "that is for more than this")]
mod measure;
#[path = "../../../tests/servers/mod.rs"]
mod servers;
mod stage;
#[path = "../ratios/table.rs"]
#[expect(dead_code, reason = "that is for more than this")]
mod table;

use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use measure::{Effort, Spread, interleave, quantile, wall};
use stage::{Stage, work};
use table::{Aim, Row, Table, nanoseconds, short};

/// One call, of a caller and by its number; the callers have keys of their own.
type Call = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// What is measured: through Seawall and by hand.
struct Work {
    what: &'static str,
    against: &'static str,
    seawall: Call,
    by_hand: Call,
}

/// What a round measured of one side.
#[derive(Clone, Copy)]
struct Sample {
    /// In nanoseconds, as the next. Of the calls of all callers.
    p50: f64,
    p99: f64,
    per_second: f64,
}

fn main() {
    let effort = Effort { short: std::env::args().any(|argument| argument == "--short") };
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads need nothing else");
    let Some(stage) = tokio.block_on(Stage::set()) else { return };
    eprintln!("graph server: {}", stage.graph_server());
    let mut table = Table::new(effort.short);
    for work in work(&stage) {
        for callers in [1, 64] {
            rows(&tokio, effort, &work, callers).into_iter().for_each(|row| table.add(row));
        }
    }
    println!("{table}");
    tokio.block_on(stage.clear());
}

fn rows(tokio: &tokio::runtime::Runtime, effort: Effort, work: &Work, callers: u64) -> [Row; 3] {
    let calls = if callers == 1 { effort.pick(100, 5) } else { effort.pick(4, 1) };
    let (mut subject, mut reference) = (Vec::new(), Vec::new());
    let side = |call: &Call, samples: &mut Vec<Sample>| {
        let sample = tokio.block_on(round(Arc::clone(call), callers, calls));
        samples.push(sample);
        sample.p50
    };
    interleave(
        effort.pick(9, 2),
        [&mut || side(&work.seawall, &mut subject), &mut || side(&work.by_hand, &mut reference)],
    );
    let row = |what: &str, of: fn(&Sample) -> f64, shown: fn(f64) -> String| {
        // The first round was for warming up.
        let pairs = subject.iter().zip(&reference).skip(1);
        let ratio = Spread::of(pairs.map(|(subject, reference)| of(subject) / of(reference)));
        let median = |samples: &[Sample]| {
            let median = Spread::of(samples.iter().skip(1).map(of)).map_or(f64::NAN, |spread| spread.median);
            shown(median)
        };
        let medians = format!("{} / {}", median(&subject), median(&reference));
        let what = format!("{}, {callers} caller{}, {what}", work.what, if callers == 1 { "" } else { "s" });
        Row::ratio("", what, work.against, ratio, medians, Aim::Shown)
    };
    [
        row("p50", |sample| sample.p50, nanoseconds),
        row("p99", |sample| sample.p99, nanoseconds),
        row("throughput", |sample| sample.per_second, |rate| format!("{} in a second", short(rate))),
    ]
}

/// All callers make their calls, one after the other each.
async fn round(call: Call, callers: u64, calls: u64) -> Sample {
    let began = wall();
    let callers = (0..callers).map(|caller| {
        let call = Arc::clone(&call);
        tokio::spawn(async move {
            let mut waits = Vec::new();
            for _ in 0..calls {
                let began = wall();
                call(caller).await;
                waits.push(wall() - began);
            }
            waits
        })
    });
    let done = join_all(callers).await;
    let took = wall() - began;
    let mut waits: Vec<f64> = done.into_iter().flat_map(|waits| waits.expect("a caller does not panic")).collect();
    waits.iter_mut().for_each(|wait| *wait *= 1e9);
    waits.sort_by(f64::total_cmp);
    Sample { p50: quantile(&waits, 0.5), p99: quantile(&waits, 0.99), per_second: waits.len() as f64 / took }
}
