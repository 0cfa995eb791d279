//! The probes: what is done to a breaker, and what has to come of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::{Instant, advance, sleep};

use crate::bench::{Bench, Ending, Held, Turned, end_all};
use crate::breaker::{Answer, Breaker, Counts, Listener, Miss, Probed, Rule, Settings, Trouble};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// What a probe works with.
pub(crate) struct Means {
    /// The open wait, unless the probe is about another.
    pub(crate) wait: Duration,
    /// What is shown by the crate `metrics`.
    pub(crate) page: PrometheusHandle,
}

/// Nothing worth telling but this.
fn verdict(passes: bool, otherwise: &str) -> Probed {
    if passes { Ok(String::new()) } else { Err(Miss::fails(otherwise)) }
}

pub(crate) async fn stale_failures<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
    let stale = bench.hold(3)?;
    bench.trip().await?;
    let probes = bench.probes().await?;
    let since = Instant::now();
    end_all(stale, Ending::Failure);
    end_all(probes, Ending::Success);
    let closed = bench.in_time(since, bench.is_closed())?;
    verdict(closed, "")
}

pub(crate) async fn stale_success<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
    let stale = bench.hold(B::JUDGED)?;
    bench.trip().await?;
    let probes = bench.probes().await?;
    end_all(stale, Ending::Success);
    let closed = bench.is_closed();
    drop(probes);
    verdict(!closed, "closes")
}

pub(crate) async fn stale_across_a_cycle<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Touchy, means.wait).await?;
    let stale = bench.hold(3)?;
    bench.trip().await?;
    end_all(bench.probes().await?, Ending::Success);
    let since = Instant::now();
    end_all(stale, Ending::Failure);
    let admits = bench.in_time(since, bench.admits())?;
    verdict(admits, "opens")
}

pub(crate) async fn hung_probe<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
    bench.trip().await?;
    let hung = bench.probes().await?;
    sleep(means.wait * 20).await;
    let admits = bench.admits();
    drop(hung);
    verdict(admits, "refuses for ever")
}

pub(crate) async fn late_probe<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
    bench.trip().await?;
    let late = bench.probes().await?;
    sleep(means.wait * 20).await;
    let Ok(next) = bench.hold(B::JUDGED) else { return Err(Miss::Cannot("no second probe is ever let through")) };
    let since = Instant::now();
    end_all(late, Ending::Failure);
    end_all(next, Ending::Success);
    let closed = bench.in_time(since, bench.is_closed())?;
    verdict(closed, "opens")
}

pub(crate) async fn dropped_probe<B: Breaker>(means: &Means) -> Probed {
    for then in [Ending::Success, Ending::Failure] {
        let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
        bench.trip().await?;
        // After the first poll.
        drop(bench.probes().await?);
        // Before it.
        drop(bench.breaker.call(std::future::pending().boxed()));
        // In the middle of a `select!`.
        tokio::select! {
            biased;
            _ = bench.breaker.call(std::future::pending().boxed()) => {}
            () = tokio::task::yield_now() => {}
        }
        let since = Instant::now();
        let Ok(probes) = bench.hold(B::JUDGED) else { return Err(Miss::fails("refuses")) };
        end_all(probes, then);
        let closed = bench.in_time(since, bench.is_closed())?;
        if closed != matches!(then, Ending::Success) {
            return Err(Miss::fails("a drop counts"));
        }
    }
    verdict(true, "")
}

pub(crate) async fn crowd_at_half_open<B: Breaker>(means: &Means) -> Probed {
    const THREADS: usize = 10;
    const EACH: usize = 10;
    let mut most = 0;
    for _ in 0..5 {
        let bench = Arc::new(Bench::<B>::new(Rule::Touchy, means.wait).await?);
        bench.trip().await?;
        sleep(means.wait * 2).await;
        let barrier = Arc::new(Barrier::new(THREADS));
        let threads = (0..THREADS).map(|_| {
            let (bench, barrier) = (Arc::clone(&bench), Arc::clone(&barrier));
            tokio::task::spawn_blocking(move || {
                barrier.wait();
                (0..EACH).filter_map(|_| bench.start().ok()).collect::<Vec<Held>>()
            })
        });
        let held = futures::future::try_join_all(threads).await.expect("no thread panics");
        most = held.iter().map(Vec::len).sum::<usize>().max(most);
    }
    if most == 1 { Ok(most.to_string()) } else { Err(Miss::fails(most)) }
}

/// What half-open has become after five calls that ended so: not closed, not open, and with a place to give.
async fn after_five<B: Breaker>(bench: &Bench<B>, mut call: impl FnMut()) -> Probed {
    bench.trip().await?;
    drop(bench.probes().await?);
    let since = Instant::now();
    (0..5).for_each(|_| call());
    let (admits, closed) = (bench.admits(), bench.is_closed());
    match (bench.in_time(since, admits)?, closed) {
        (true, false) => verdict(true, ""),
        (true, true) => Err(Miss::fails("closes")),
        (false, _) => Err(Miss::fails("refuses")),
    }
}

pub(crate) async fn inner_breaker_refuses<B: Breaker>(means: &Means) -> Probed {
    let outer = Bench::<B>::new(Rule::Patient, means.wait).await?;
    let inner = Bench::<B>::new(Rule::Touchy, HOUR).await?;
    inner.trip().await?;
    after_five(&outer, || {
        let inner = inner.breaker.call(std::future::pending().boxed()).map(|answer| match answer {
            Answer::Made(result) => result,
            Answer::Refused { .. } => Err(Trouble::Elsewhere),
        });
        let refused = outer.breaker.call(inner.boxed()).now_or_never();
        assert!(refused.is_some(), "the inner breaker refuses at once");
    })
    .await
}

pub(crate) async fn calls_that_do_not_count<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
    after_five(&bench, || {
        bench.run(Ending::Elsewhere);
    })
    .await
}

pub(crate) async fn nothing_but_misses<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
    bench.trip().await?;
    end_all(bench.probes().await?, Ending::NotFound);
    let since = Instant::now();
    for _ in 0..3 {
        bench.run(Ending::NotFound);
    }
    let closed = bench.in_time(since, bench.is_closed())?;
    verdict(closed, "stays half-open")
}

pub(crate) async fn long_success<B: Breaker>(_: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::LastFour, HOUR).await?;
    for _ in 0..10_000 {
        bench.run(Ending::Success);
    }
    let failures = (0..20_000).take_while(|_| bench.run(Ending::Failure)).count();
    if failures <= 4 { Ok(failures.to_string()) } else { Err(Miss::fails(failures)) }
}

pub(crate) async fn memory_of_a_window<B: Breaker>(_: &Means) -> Probed {
    const CALLS: usize = 10_000;
    const BEARABLE: i64 = 64 << 10;
    let bench = Bench::<B>::new(Rule::Window(HOUR), HOUR).await?;
    let calls = |calls: usize| (0..calls).filter(|_| bench.run(Ending::Success)).count();
    calls(CALLS / 100);
    let mut made = 0;
    let memory = allocation_counter::measure(|| made = calls(CALLS));
    assert_eq!(made, CALLS);
    verdict(memory.bytes_current <= BEARABLE, "grows")
}

pub(crate) async fn rare_probes<B: Breaker>(_: &Means) -> Probed {
    let window = B::SHORTEST_WINDOW;
    let bench = Bench::<B>::new(Rule::Window(window), window.min(Duration::from_millis(50))).await?;
    bench.trip().await?;
    for _ in 0..3 {
        sleep(window * 6 / 5).await;
        bench.run(Ending::Success);
    }
    if bench.is_closed() {
        return verdict(true, "");
    }
    sleep(window * 20).await;
    Err(Miss::fails(if bench.admits() { "stays half-open" } else { "refuses for ever" }))
}

pub(crate) async fn panicking_probe<B: Breaker>(means: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, means.wait).await?;
    bench.trip().await?;
    let probes = bench.probes().await?;
    let since = Instant::now();
    end_all(probes, Ending::Panic);
    let admits = bench.in_time(since, bench.admits())?;
    if admits {
        return Err(Miss::fails("stays half-open"));
    }
    sleep(means.wait * 2).await;
    verdict(bench.admits(), "its place is lost")
}

pub(crate) async fn nothing_but_panics<B: Breaker>(_: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, HOUR).await?;
    for _ in 0..64 {
        bench.run(Ending::Panic);
    }
    verdict(!bench.admits(), "stays closed")
}

pub(crate) async fn panicking_listener<B: Breaker>(means: &Means) -> Probed {
    let armed = Arc::new(OnceLock::new());
    let listener: Listener = {
        let armed = Arc::clone(&armed);
        Arc::new(move || {
            if armed.get().is_some() {
                std::panic::resume_unwind(Box::new("a bug in a listener"));
            }
        })
    };
    let bench = Bench::with(B::heard(Settings { wait: means.wait, rule: Rule::Patient }, listener).await?, means.wait);
    let _ = armed.set(());
    let mut heard_by_a_caller = false;
    loop {
        match bench.start() {
            Ok(held) => heard_by_a_caller |= !held.end(Ending::Failure),
            Err(Turned::Away(_)) => break,
            Err(Turned::Panicked | Turned::Stuck) => heard_by_a_caller = true,
        }
    }
    sleep(means.wait * 2).await;
    for _ in 0..B::JUDGED {
        match bench.start() {
            Ok(held) => heard_by_a_caller |= !held.end(Ending::Success),
            Err(turned) => heard_by_a_caller |= turned == Turned::Panicked,
        }
    }
    verdict(!heard_by_a_caller, "callers panic")
}

pub(crate) async fn listener_that_calls<B: Breaker>(means: &Means) -> Probed {
    let bench = Arc::new(OnceLock::<Bench<B>>::new());
    let (answered, stuck) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let listener: Listener = {
        let (bench, answered, stuck) = (Arc::clone(&bench), Arc::clone(&answered), Arc::clone(&stuck));
        Arc::new(move || {
            let Some(bench) = bench.get() else { return };
            let answer = bench.start_within(1_000).err();
            let count = if answer == Some(Turned::Stuck) { &stuck } else { &answered };
            count.fetch_add(1, Ordering::SeqCst);
        })
    };
    let breaker = B::heard(Settings { wait: means.wait, rule: Rule::Patient }, listener).await?;
    let bench = bench.get_or_init(|| Bench::with(breaker, means.wait));
    bench.trip().await?;
    // Somebody who listens from a task of their own gets to it now.
    sleep(means.wait / 4).await;
    let (answered, stuck) = (answered.load(Ordering::SeqCst), stuck.load(Ordering::SeqCst));
    assert!(answered + stuck > 0, "the listener was called");
    verdict(stuck == 0, "waits for itself")
}

pub(crate) async fn paused_time<B: Breaker>(_: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Touchy, HOUR).await?;
    bench.trip().await?;
    advance(HOUR - Duration::from_nanos(1)).await;
    let early = bench.admits();
    advance(Duration::from_nanos(1)).await;
    verdict(!early && bench.admits(), "stays open")
}

pub(crate) async fn restarts<B: Breaker>(_: &Means) -> Probed {
    let wait = SECOND * 60;
    let mut bench = Bench::with(B::saved(Settings { wait, rule: Rule::Touchy }).await?, wait);
    bench.trip().await?;
    let since = Instant::now();
    loop {
        sleep(SECOND * 10).await;
        bench = Bench::with(bench.breaker.next_process().await?, wait);
        match (bench.admits(), since.elapsed()) {
            (true, up) if up < wait => return Err(Miss::fails("forgets")),
            (true, up) => return Ok(format!("{} s", up.as_secs())),
            (false, up) if up > wait * 5 / 4 => return Err(Miss::fails("starts over")),
            (false, _) => {}
        }
    }
}

pub(crate) async fn state_gauge<B: Breaker>(means: &Means) -> Probed {
    let (breaker, gauge) = B::measured(Settings { wait: means.wait, rule: Rule::Patient }).await?;
    let bench = Bench::with(breaker, means.wait);
    let ones = || {
        let page = means.page.render();
        page.lines().filter(|line| line.starts_with(&format!("{gauge}{{")) && line.ends_with(" 1")).count()
    };
    let mut shown = Vec::new();
    bench.trip().await?;
    sleep(means.wait / 2).await;
    shown.push(ones());
    let probes = bench.probes().await?;
    sleep(means.wait / 2).await;
    shown.push(ones());
    end_all(probes, Ending::Success);
    sleep(means.wait / 2).await;
    shown.push(ones());
    match shown.iter().find(|ones| **ones != 1) {
        None => verdict(true, ""),
        Some(_) => Err(Miss::Fails(format!("{} at once", shown.iter().max().unwrap_or(&0)))),
    }
}

pub(crate) async fn every_call_counted<B: Breaker>(_: &Means) -> Probed {
    let bench = Bench::<B>::new(Rule::Patient, HOUR).await?;
    let mut out = Vec::new();
    for _ in 0..10 {
        for ending in [Ending::Success, Ending::Failure, Ending::Panic] {
            bench.run(ending);
        }
        drop(bench.hold(1)?);
        out.extend(bench.hold(1)?);
    }
    let Counts { succeeded, failed, cancelled, panicked, out: still_out } = bench.breaker.counts().await?;
    let counted = [succeeded, failed, cancelled, panicked, still_out].map(|count| count.min(10)).iter().sum::<u64>();
    let told = format!("{counted} of 50");
    if counted == 50 { Ok(told) } else { Err(Miss::Fails(told)) }
}

/// What becomes of a thousand calls to an open breaker.
async fn refusals<B: Breaker>() -> Result<Vec<Result<(), Turned>>, Miss> {
    let bench = Bench::<B>::new(Rule::Touchy, HOUR).await?;
    bench.trip().await?;
    Ok((0..1_000).map(|_| bench.start().map(drop)).collect())
}

pub(crate) async fn open_touches_nothing<B: Breaker>(_: &Means) -> Probed {
    let touched = refusals::<B>().await?.iter().filter(|call| call.is_ok()).count();
    if touched == 0 { Ok(touched.to_string()) } else { Err(Miss::fails(touched)) }
}

pub(crate) async fn refusal_says_when<B: Breaker>(_: &Means) -> Probed {
    let says = |call: &Result<(), Turned>| matches!(call, Err(Turned::Away(Some(retry_after))) if !retry_after.is_zero() && *retry_after <= HOUR);
    verdict(refusals::<B>().await?.iter().all(says), "")
}

pub(crate) async fn calls_after_recovery<B: Breaker>(means: &Means) -> Probed {
    const CALLS: usize = 1_000;
    let bench = Bench::<B>::new(Rule::Ramp, means.wait).await?;
    bench.trip().await?;
    end_all(bench.probes().await?, Ending::Success);
    let out: Vec<Held> = (0..CALLS).filter_map(|_| bench.start().ok()).collect();
    match out.len() {
        0 => Err(Miss::fails("refuses")),
        calls if calls <= CALLS / 10 => Ok(calls.to_string()),
        calls => Err(Miss::fails(calls)),
    }
}

pub(crate) async fn abandoned_calls<B: Breaker>(means: &Means) -> Probed {
    const CALLS: usize = 64;
    let bench = Bench::<B>::new(Rule::Slow(means.wait), HOUR).await?;
    let hung = bench.hold(CALLS)?;
    sleep(means.wait * 2).await;
    drop(hung);
    let opened = !bench.admits();
    verdict(opened, "unseen")
}
