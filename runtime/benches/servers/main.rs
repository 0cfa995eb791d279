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
//! them is what counts (`../ratios/measure.rs`). A throughput is a ratio of times too: 1.2 x is a sixth less.

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
use table::{Aim, Row, Table, both};

/// One call, of a caller and by its number; the callers have keys of their own.
type Call = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// What is measured: through Seawall and by hand.
struct Work {
    what: &'static str,
    against: &'static str,
    seawall: Call,
    by_hand: Call,
}

/// What a round measured of one side, in nanoseconds.
#[derive(Clone, Copy)]
struct Sample {
    p50: f64,
    p99: f64,
    /// The time of all calls, for each of them.
    each: f64,
}

fn main() {
    let short = std::env::args().any(|argument| argument == "--short");
    let effort = Effort { short };
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads need nothing else");
    let Some(stage) = tokio.block_on(Stage::set()) else { return };
    eprintln!("graph server: {}", stage.graph_server());
    let mut table = Table::new(short);
    for work in work(&stage) {
        for callers in [1, 64] {
            rows(&tokio, effort, &work, callers).into_iter().for_each(|row| table.add(row));
        }
    }
    println!("{table}");
    tokio.block_on(stage.clear());
}

fn rows(tokio: &tokio::runtime::Runtime, effort: Effort, work: &Work, callers: u64) -> [Row; 3] {
    let calls = if callers == 1 { effort.pick(50, 5) } else { effort.pick(8, 1) };
    let (mut subject, mut reference) = (Vec::new(), Vec::new());
    let side = |call: &Call, samples: &mut Vec<Sample>| {
        let sample = tokio.block_on(round(Arc::clone(call), callers, calls));
        samples.push(sample);
        sample.each
    };
    interleave(
        effort.pick(15, 2),
        [&mut || side(&work.seawall, &mut subject), &mut || side(&work.by_hand, &mut reference)],
    );
    // The first round was for warming up.
    let pairs = || subject.iter().zip(&reference).skip(1);
    let row = |of: fn(&Sample) -> f64, what: &str| {
        let ratio = Spread::of(pairs().map(|(subject, reference)| of(subject) / of(reference)));
        let median =
            |samples: &[Sample]| Spread::of(samples.iter().skip(1).map(of)).map_or(f64::NAN, |spread| spread.median);
        let medians = both(median(&subject), median(&reference));
        let (plural, against) = (if callers == 1 { "" } else { "s" }, work.against);
        Row::ratio("", format!("{}, {callers} caller{plural}, {what}", work.what), against, ratio, medians, Aim::Shown)
    };
    [row(|s| s.p50, "p50"), row(|s| s.p99, "p99"), row(|s| s.each, "time for each of all")]
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
    let each = (wall() - began) * 1e9;
    let mut waits: Vec<f64> = done.into_iter().flat_map(|waits| waits.expect("a caller does not panic")).collect();
    waits.iter_mut().for_each(|wait| *wait *= 1e9);
    waits.sort_by(f64::total_cmp);
    Sample { p50: quantile(&waits, 0.5), p99: quantile(&waits, 0.99), each: each / waits.len() as f64 }
}
