//! A place in the tree: empty while its actor is restarted, and the one way to talk to an actor inside.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ractor::{ActorRef, Message, RpcReplyPort};
use tokio::sync::oneshot;

/// Where an actor of this message type stands, whichever incarnation that is.
///
/// A ractor ref never heals, and a call to an actor that dies at that moment can hang for ever. So nobody in
/// Seawall keeps a ref: they keep the slot, and every call through it ends by reply, death or deadline.
pub struct Slot<M>(Arc<ArcSwapOption<ActorRef<M>>>);

impl<M> Clone for Slot<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Default for Slot<M> {
    fn default() -> Self {
        Self(Arc::new(ArcSwapOption::empty()))
    }
}

/// Why a call through a [`Slot`] has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No actor stood there: surely nothing was done.
    #[error("the actor is being restarted")]
    Vacant,
    /// The actor died before it replied: it may have done the work. Also when it had given the reply port to a
    /// task that lives on: nobody can tell that from a port that is lost.
    #[error("the actor died before it replied")]
    Died,
    /// No reply came in time: the work may still be done.
    #[error("the actor did not reply in time")]
    Late,
}

impl<M: Message> Slot<M> {
    /// Puts an actor here.
    pub fn fill(&self, actor: ActorRef<M>) {
        self.0.store(Some(Arc::new(actor)));
    }

    /// Empties the place.
    pub fn clear(&self) {
        self.0.store(None);
    }

    /// Whether an actor stands here.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.0.load().is_some()
    }

    /// The actor that stands here now, for stopping it.
    #[must_use]
    pub fn get(&self) -> Option<ActorRef<M>> {
        self.0.load().as_deref().cloned()
    }

    /// Sends a message; gives it back when nobody stands here. A message that was taken can still die with its
    /// actor.
    ///
    /// # Errors
    /// The message, which was surely not handled.
    pub fn cast(&self, message: M) -> Result<(), M> {
        let guard = self.0.load();
        let Some(actor) = guard.as_deref() else { return Err(message) };
        match actor.send_message(message) {
            Err(ractor::MessagingErr::SendErr(message)) => Err(message),
            _ => Ok(()),
        }
    }

    /// Sends a message and waits for its reply, at most this long.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<R: Send + 'static>(
        &self,
        timeout: Duration,
        message: impl FnOnce(RpcReplyPort<R>) -> M,
    ) -> Result<R, CallError> {
        let Some(actor) = self.get() else { return Err(CallError::Vacant) };
        let (reply, mut replied) = oneshot::channel();
        if actor.send_message(message(reply.into())).is_err() {
            return Err(CallError::Vacant);
        }
        let cell = actor.get_cell();
        // The mailbox of a dead actor lives on while somebody holds its ref, and our reply port with it.
        drop(actor);
        tokio::select! {
            biased;
            reply = &mut replied => reply.map_err(|_| CallError::Died),
            _ = cell.wait(None) => replied.try_recv().map_err(|_| CallError::Died),
            () = tokio::time::sleep(timeout) => Err(CallError::Late),
        }
    }
}
