//! What a library has to be able to do to be put to the probes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

/// Why a library cannot be asked something.
pub(crate) type Why = &'static str;

/// What a probe found: what it measured, if that is worth telling.
pub(crate) type Probed = Result<String, Miss>;

/// How else a probe can end.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The breaker is in the trap.
    Fails(String),
    /// The library has nothing to ask this with.
    Cannot(Why),
    /// The machine took so long that the verdict may be its own.
    Late,
}

impl From<Why> for Miss {
    fn from(why: Why) -> Self {
        Self::Cannot(why)
    }
}

impl Miss {
    pub(crate) fn fails(what: impl ToString) -> Self {
        Self::Fails(what.to_string())
    }
}

/// A call to a backend that has not been made yet.
pub(crate) type Backend = BoxFuture<'static, Result<(), Trouble>>;

/// What a call can end in, apart from success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The backend failed.
    Failure,
    /// The backend answered in time that it does not have what was asked for.
    NotFound,
    /// It says nothing about the backend: somebody else refused.
    Elsewhere,
}

/// A call through a breaker.
pub(crate) type Call = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What a caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The breaker let it through; this is what the backend said.
    Made(Result<(), Trouble>),
    /// The breaker refused it, and says when to come again if it can.
    Refused { retry_after: Option<Duration> },
}

/// Called at every change of the state.
pub(crate) type Listener = Arc<dyn Fn() + Send + Sync>;

/// How a breaker is set up, as near as its library can come to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How long it stays open.
    pub(crate) wait: Duration,
    pub(crate) rule: Rule,
}

/// What opens it. In half-open one place, and one result decides, if nothing else is said.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// The first failure.
    Touchy,
    /// The third failure in a row.
    Patient,
    /// Half of the last four calls.
    LastFour,
    /// Half of the calls of this long. Three places in half-open, and three successes close it.
    Window(Duration),
    /// Calls that take longer than this, as well as the third failure in a row.
    Slow(Duration),
    /// The first failure. Then load comes back little by little, where the library can do that.
    Ramp,
}

/// What a library counts of the calls that it let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) panicked: u64,
    pub(crate) out: u64,
}

/// A breaker of some library.
pub(crate) trait Breaker: Send + Sync + Sized + 'static {
    /// The name of its crate.
    const CRATE: &'static str;
    /// Whether it lives in tokio's time, which a test can pause.
    const IN_TOKIO_TIME: bool = false;
    /// How few results in half-open it can be told to decide on.
    const JUDGED: usize = 1;
    /// How short a time window can be.
    const SHORTEST_WINDOW: Duration = Duration::from_millis(50);

    async fn new(settings: Settings) -> Result<Self, Why>;

    /// Guards a call. Nothing happens before it is polled.
    fn call(&self, backend: Backend) -> Call;

    /// With somebody who listens.
    async fn heard(settings: Settings, listener: Listener) -> Result<Self, Why>;

    /// With its state shown by the crate `metrics`, in the gauge of this name.
    async fn measured(settings: Settings) -> Result<(Self, &'static str), Why>;

    /// What it counts.
    async fn counts(&self) -> Result<Counts, Why>;

    /// With its state kept for the next process.
    async fn saved(_: Settings) -> Result<Self, Why> {
        Err("it saves no state")
    }

    /// What the next process has, after this one was killed.
    async fn next_process(self) -> Result<Self, Why> {
        Err("it saves no state")
    }

    /// A backend goes away and comes back while nobody calls it.
    async fn heals_alone() -> Probed {
        Err(Miss::Cannot("it probes nothing by itself"))
    }

    /// A backend comes back that owes a lot, while it is used.
    async fn recovery_storm() -> Probed {
        Err(Miss::Cannot("it has no queue"))
    }
}
