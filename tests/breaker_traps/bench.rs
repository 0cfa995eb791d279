//! Calls as probes need them: out for as long as they like, and ended in every way there is.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;
use tokio::time::{Instant, sleep};

use crate::breaker::{Answer, Backend, Breaker, Call, Miss, Rule, Settings, Trouble};

/// How often a call is polled before it is taken for stuck: it waits for a lock of its own breaker at most.
const PATIENCE: usize = 10_000_000;

/// How a call ends. It can also be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Success,
    Failure,
    NotFound,
    Elsewhere,
    Panic,
}

/// Why a call is not out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// It was refused, with a word on when to come again or without.
    Away(Option<Duration>),
    /// It panicked in front of the backend.
    Panicked,
    /// It got no answer.
    Stuck,
}

/// A breaker on the bench.
pub(crate) struct Bench<B> {
    pub(crate) breaker: B,
    pub(crate) wait: Duration,
}

/// A call that was let through, and whose backend has not answered yet.
pub(crate) struct Held {
    call: Call,
    answer: oneshot::Sender<Ending>,
}

impl Held {
    /// Whether the caller got what the backend said.
    pub(crate) fn end(mut self, ending: Ending) -> bool {
        let _ = self.answer.send(ending);
        for _ in 0..PATIENCE {
            match poll(&mut self.call) {
                Ok(None) => std::thread::yield_now(),
                Ok(Some(answer)) => return matches!(answer, Answer::Made(_)),
                Err(Panicked) => return matches!(ending, Ending::Panic),
            }
        }
        false
    }
}

struct Panicked;

/// What the call says now. Not with tokio's budget: nothing here gives it back.
fn poll(call: &mut Call) -> Result<Option<Answer>, Panicked> {
    let poll = || tokio::task::unconstrained(call).now_or_never();
    catch_unwind(AssertUnwindSafe(poll)).map_err(|_| Panicked)
}

/// A backend that says that it is being asked, and then waits to be told what to answer.
fn backend(asked: Arc<AtomicBool>, answer: oneshot::Receiver<Ending>) -> Backend {
    Box::pin(async move {
        asked.store(true, Ordering::SeqCst);
        match answer.await {
            Ok(Ending::Success) => Ok(()),
            Ok(Ending::Failure) => Err(Trouble::Failure),
            Ok(Ending::NotFound) => Err(Trouble::NotFound),
            Ok(Ending::Elsewhere) => Err(Trouble::Elsewhere),
            // A panic that prints nothing.
            Ok(Ending::Panic) => resume_unwind(Box::new("a bug in a backend")),
            Err(oneshot::Canceled) => std::future::pending().await,
        }
    })
}

impl<B: Breaker> Bench<B> {
    pub(crate) async fn new(rule: Rule, wait: Duration) -> Result<Self, Miss> {
        Ok(Self::with(B::new(Settings { wait, rule }).await?, wait))
    }

    pub(crate) fn with(breaker: B, wait: Duration) -> Self {
        Self { breaker, wait }
    }

    /// Makes a call.
    pub(crate) fn start(&self) -> Result<Held, Turned> {
        self.start_within(PATIENCE)
    }

    /// Makes a call, which has to be answered within so many polls.
    pub(crate) fn start_within(&self, polls: usize) -> Result<Held, Turned> {
        let asked = Arc::new(AtomicBool::new(false));
        let (answer, answered) = oneshot::channel();
        let mut call = self.breaker.call(backend(Arc::clone(&asked), answered));
        for _ in 0..polls {
            match poll(&mut call) {
                Ok(None) if asked.load(Ordering::SeqCst) => return Ok(Held { call, answer }),
                Ok(None) => std::thread::yield_now(),
                Ok(Some(Answer::Refused { retry_after })) => return Err(Turned::Away(retry_after)),
                Ok(Some(Answer::Made(result))) => panic!("it made up an answer: {result:?}"),
                Err(Panicked) => return Err(Turned::Panicked),
            }
        }
        Err(Turned::Stuck)
    }

    /// Makes a call that ends so. Whether it was let through.
    pub(crate) fn run(&self, ending: Ending) -> bool {
        self.start().map(|held| held.end(ending)).is_ok()
    }

    /// Whether a call is let through now. It is dropped then.
    pub(crate) fn admits(&self) -> bool {
        self.start().is_ok()
    }

    /// So many calls that are out.
    pub(crate) fn hold(&self, calls: usize) -> Result<Vec<Held>, Miss> {
        (0..calls).map(|_| self.start().map_err(|turned| Miss::Fails(format!("{turned:?}")))).collect()
    }

    /// Lets calls fail until one is refused.
    pub(crate) async fn trip(&self) -> Result<(), Miss> {
        for attempt in 0..2_000 {
            if matches!(self.start().map(|held| held.end(Ending::Failure)), Err(Turned::Away(_))) {
                return Ok(());
            }
            // A time window may have to fill.
            if attempt > 20 {
                sleep(self.wait / 10).await;
            }
        }
        Err(Miss::fails("never opens"))
    }

    /// Waits until calls are let through again, and lets as many out as decide.
    pub(crate) async fn probes(&self) -> Result<Vec<Held>, Miss> {
        for _ in 0..100 {
            sleep(self.wait).await;
            if let Ok(first) = self.start() {
                let mut probes = vec![first];
                probes.extend(self.hold(B::JUDGED - 1)?);
                return Ok(probes);
            }
        }
        Err(Miss::fails("never half-open"))
    }

    /// Whether it is closed: it bears as many failures as would open it again from half-open, and one is not let
    /// through there while places are taken. Under [`Rule::Patient`] or a window; a breaker that was closed may be
    /// about to open afterwards.
    pub(crate) fn is_closed(&self) -> bool {
        (0..B::JUDGED).all(|_| self.run(Ending::Failure)) && self.admits()
    }

    /// Whether calls are let through, as it was seen. A no is a no; but a breaker that opened after `since` lets calls
    /// through again when its wait is over, so a yes has to come sooner than that.
    pub(crate) fn in_time(&self, since: Instant, yes: bool) -> Result<bool, Miss> {
        if yes && since.elapsed() >= self.wait { Err(Miss::Late) } else { Ok(yes) }
    }
}

/// Ends all of them so.
pub(crate) fn end_all(calls: Vec<Held>, ending: Ending) {
    for call in calls {
        call.end(ending);
    }
}
