//! recloser.

use ::recloser::{AsyncRecloser, Error, Recloser as Builder};
use futures::FutureExt;

use crate::breaker::{Answer, Backend, Breaker, Call, Counts, Listener, Rule, Settings, Trouble, Why};

/// Its windows are rings, which it judges from the first result on that finds them full.
pub(crate) struct Recloser(AsyncRecloser);

impl Breaker for Recloser {
    const CRATE: &'static str = "recloser";
    /// The shortest ring has one place, so the second result is judged.
    const JUDGED: usize = 2;

    async fn new(Settings { wait, rule }: Settings) -> Result<Self, Why> {
        let ring = match rule {
            // It has no ramp.
            Rule::Touchy | Rule::Ramp => 1,
            // It knows no slow calls.
            Rule::Patient | Rule::Slow(_) => 3,
            Rule::LastFour => 4,
            Rule::Window(_) => return Err("it has no time window"),
        };
        let rate = if let Rule::LastFour = rule { 0.5 } else { 1.0 };
        let builder = Builder::custom().closed_len(ring).error_rate_closed(rate);
        let builder = builder.half_open_len(1).error_rate_half_open(0.5).open_wait(wait);
        Ok(Self(builder.build().into()))
    }

    fn call(&self, backend: Backend) -> Call {
        let counts = |trouble: &Trouble| *trouble == Trouble::Failure;
        self.0
            .call_with(counts, backend)
            .map(|result| match result {
                Ok(()) => Answer::Made(Ok(())),
                Err(Error::Inner(trouble)) => Answer::Made(Err(trouble)),
                Err(Error::Rejected) => Answer::Refused { retry_after: None },
            })
            .boxed()
    }

    async fn heard(_: Settings, _: Listener) -> Result<Self, Why> {
        Err("it has no listeners, only log lines")
    }

    async fn measured(_: Settings) -> Result<(Self, &'static str), Why> {
        Err("it has no metrics")
    }

    async fn counts(&self) -> Result<Counts, Why> {
        Err("it shows no counters")
    }
}
