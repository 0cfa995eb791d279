//! Exactly one answer.

use ractor::RpcReplyPort;
use tokio::sync::oneshot;

use crate::error::Refusal;

/// Where the answer to one request goes. If it is dropped unsent, by a panic or a cancelled task, it sends the
/// answer that is true then.
pub(super) struct Answer<T: Send + 'static> {
    port: Option<Port<T>>,
    otherwise: Refusal,
}

pub(super) enum Port<T: Send + 'static> {
    Ractor(RpcReplyPort<Result<T, Refusal>>),
    Caller(oneshot::Sender<Result<T, Refusal>>),
}

impl<T: Send + 'static> Answer<T> {
    /// An answer through this port; `otherwise` if nobody gives one.
    pub(super) fn new(port: Port<T>, otherwise: Refusal) -> Self {
        Self { port: Some(port), otherwise }
    }

    /// Gives it. A caller that no longer waits is none of our business.
    pub(super) fn give(mut self, answer: Result<T, Refusal>) {
        self.send(answer);
    }

    fn send(&mut self, answer: Result<T, Refusal>) {
        match self.port.take() {
            Some(Port::Ractor(port)) => {
                let _ = port.send(answer);
            }
            Some(Port::Caller(sender)) => {
                let _ = sender.send(answer);
            }
            None => {}
        }
    }
}

impl<T: Send + 'static> Drop for Answer<T> {
    fn drop(&mut self) {
        if self.port.is_some() {
            let otherwise = self.otherwise.clone();
            self.send(Err(otherwise));
        }
    }
}
