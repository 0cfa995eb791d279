//! The latency of stores before, during and after the outage of one of two backends, as a plot.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use seawall::backends::{Fault, Faults, FaultyBackend, Ops};
use seawall::operation::Held;
use seawall::record::Record;

use crate::measure::{Effort, Spread, wall};
use crate::stage::{Remote, current_thread, roomy, start, until};
use crate::table::{Aim, Row, both};

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    let third = effort.pick(3.0, 0.7);
    let dots = current_thread().block_on(live_through(third));
    let plotted = crate::results().and_then(|dir| std::fs::write(dir.join("outage.svg"), plot(&dots, third)));
    plotted.expect("the directory of results takes files");
    let median = |part: usize| {
        let within = dots.iter().filter(|dot| (dot.at / third) as usize == part).map(|dot| dot.took * 1e9);
        Spread::of(within).map_or(f64::NAN, |all| all.median)
    };
    let failed = dots.iter().filter(|dot| matches!(dot.end, End::Refused)).count();
    let row = |number, what: &str, part| {
        let ratio = Spread::of([median(part) / median(0)]);
        Row::ratio(number, what, "before", ratio, both(median(part), median(0)), Aim::Shown)
    };
    vec![
        row("15a", "median store while one of two backends hangs", 1),
        row("15b", "median store after it is back", 2),
        Row::plain("15c", format!("refused of {} stores", dots.len()), failed as f64, "stores", Aim::Shown),
    ]
}

#[derive(Clone, Copy)]
enum End {
    Committed,
    Queued,
    Refused,
}

/// One store.
struct Dot {
    at: f64,
    took: f64,
    end: End,
}

/// A caller every five milliseconds, through three thirds: well, hung, well again.
async fn live_through(third: f64) -> Vec<Dot> {
    let mut config = roomy();
    config.call.timeout = Duration::from_millis(100);
    config.breaker.recovery_step = Duration::from_millis(300);
    config.breaker.reset_timeout = Duration::from_millis(300);
    let faults = Faults::new();
    let graph = Arc::new(FaultyBackend::around(Remote::new("graph"), &faults));
    let runtime = start(vec![graph, Remote::new("vector")], config).await;
    let mut callers = Vec::new();
    let began = wall();
    let (mut hung, mut well) = (false, false);
    let mut beat = tokio::time::interval(Duration::from_millis(5));
    for n in 0.. {
        beat.tick().await;
        let at = wall() - began;
        if at >= third && !hung {
            hung = true;
            faults.set(Ops::ALL, Fault::Hung);
        }
        if at >= 2.0 * third && !well {
            well = true;
            faults.heal(Ops::ALL);
        }
        if at >= 3.0 * third {
            break;
        }
        let handle = runtime.handle();
        callers.push(tokio::spawn(async move {
            let stored = handle.store(Record::new(format!("key-{n}")).with("n", n)).await;
            let end = match stored {
                Ok(receipt) if receipt.held == Held::Committed => End::Committed,
                Ok(_) => End::Queued,
                Err(_) => End::Refused,
            };
            Dot { at, took: wall() - began - at, end }
        }));
    }
    let mut dots = Vec::with_capacity(callers.len());
    for caller in callers {
        dots.push(caller.await.expect("a caller does not panic"));
    }
    until("nothing is owed", || runtime.handle().status().owed == 0).await;
    dots
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;

/// Time from left to right, latency upwards by powers of ten from 10 µs to 10 s.
fn plot(dots: &[Dot], third: f64) -> String {
    let x = |at: f64| LEFT + at / (3.0 * third) * WIDTH;
    let y = |took: f64| TOP + HEIGHT * (1.0 - (took.max(1e-5).log10() + 5.0) / 6.0);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='1000' height='430' font-family='sans-serif' font-size='13'>\
         <rect width='1000' height='430' fill='white'/>\
         <text x='{LEFT}' y='24' font-size='16'>Latency of a store while one of two backends hangs</text>\
         <rect x='{}' y='{TOP}' width='{}' height='{HEIGHT}' fill='#f6dddd'/>\
         <text x='{}' y='{}'>seconds</text>",
        x(third),
        x(2.0 * third) - x(third),
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 40.0,
    );
    for (took, label) in [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
        .into_iter()
        .zip(["10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s"])
    {
        let (y, right) = (y(took), LEFT + WIDTH);
        let _ = write!(svg, "<line x1='{LEFT}' x2='{right}' y1='{y}' y2='{y}' stroke='#ddd'/>");
        let _ = write!(svg, "<text x='{}' y='{}' text-anchor='end'>{label}</text>", LEFT - 8.0, y + 4.0);
    }
    for part in 0..=3 {
        let at = f64::from(part) * third;
        let _ = write!(svg, "<text x='{}' y='{}' text-anchor='middle'>{at:.1}</text>", x(at), TOP + HEIGHT + 20.0);
    }
    for (n, (colour, label)) in
        [("#2166ac", "in both backends"), ("#e08214", "queued"), ("#b2182b", "refused")].into_iter().enumerate()
    {
        let at = LEFT + 520.0 + 140.0 * n as f64;
        let _ = write!(
            svg,
            "<circle cx='{at}' cy='20' r='4' fill='{colour}'/><text x='{}' y='24'>{label}</text>",
            at + 8.0
        );
    }
    for Dot { at, took, end } in dots {
        let colour = match end {
            End::Committed => "#2166ac",
            End::Queued => "#e08214",
            End::Refused => "#b2182b",
        };
        let _ = write!(svg, "<circle cx='{:.1}' cy='{:.1}' r='2' fill='{colour}'/>", x(*at), y(*took));
    }
    svg + "</svg>\n"
}
