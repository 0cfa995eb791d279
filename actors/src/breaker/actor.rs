//! The actor of a breaker: its timer, its savings, and its ear for messages.

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::cell::BreakerCell;
use super::gate::Gate;
use super::handle::BreakerHandle;
use super::message::BreakerMessage;

/// The actor. Everything that matters is in its [`BreakerCell`], so it can be killed at any moment.
pub struct BreakerActor;

/// What an incarnation is started with.
pub struct BreakerArguments {
    /// The breaker.
    pub cell: BreakerCell,
}

/// What is private to an incarnation. Dropping it ends both tasks.
pub struct State {
    breaker: BreakerHandle,
    _timer: AbortOnDropHandle<()>,
    _savings: AbortOnDropHandle<()>,
}

impl Actor for BreakerActor {
    type Msg = BreakerMessage;
    type State = State;
    type Arguments = BreakerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        BreakerArguments { cell }: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let breaker = cell.handle();
        let timer = tokio::spawn(follow_alarm(BreakerHandle::clone(&breaker), myself));
        let savings = tokio::spawn(cell.keep_saved());
        Ok(State { breaker, _timer: AbortOnDropHandle::new(timer), _savings: AbortOnDropHandle::new(savings) })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        State { breaker, .. }: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            BreakerMessage::Control(control) => breaker.control(control),
            BreakerMessage::Reconfigure(config, port) => reply(port, breaker.reconfigure(*config)),
            BreakerMessage::Snapshot(port) => reply(port, breaker.snapshot()),
            BreakerMessage::Explain(port) => reply(port, breaker.explain()),
            // What is due depends on the time alone, so a late or stale timer does no harm.
            BreakerMessage::WaitElapsed(_) => breaker.gate().act(|policy, now| policy.tick(now)),
        }
        Ok(())
    }
}

/// Tells the actor when a wait is over. A restarted actor finds its wait here again.
async fn follow_alarm(breaker: BreakerHandle, actor: ActorRef<BreakerMessage>) {
    let gate: &Gate = breaker.gate();
    let mut alarm = gate.alarm();
    loop {
        let at: Option<Instant> = *alarm.borrow_and_update();
        let elapsed = async {
            match at {
                Some(at) => gate.watch_alarm(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = alarm.changed() => if changed.is_err() { return },
            () = elapsed => {
                if actor.cast(BreakerMessage::WaitElapsed(gate.view().generation)).is_err() {
                    return;
                }
                // What the actor does about it changes the alarm.
                if alarm.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Whoever asked may have gone.
fn reply<T: Send + 'static>(port: RpcReplyPort<T>, answer: T) {
    let _ = port.send(answer);
}
