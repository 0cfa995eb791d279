//! The actor behind the ref that users hold.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::answer::Port;
use super::{Door, Request};

/// The gateway: hands every request to the [`Door`]. Nothing in it can fail, and nothing waits in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gateway;

impl Actor for Gateway {
    type Msg = Request;
    type State = Arc<Door>;
    type Arguments = Arc<Door>;

    async fn pre_start(&self, _: ActorRef<Request>, door: Arc<Door>) -> Result<Arc<Door>, ActorProcessingErr> {
        Ok(door)
    }

    async fn handle(
        &self,
        _: ActorRef<Request>,
        request: Request,
        door: &mut Arc<Door>,
    ) -> Result<(), ActorProcessingErr> {
        match request {
            Request::Store(write, reply) => door.hand_over(door.write(write), reply),
            Request::Retrieve(key, reply) => door.hand_over(door.retrieve(key), reply),
            Request::Search(search, reply) => door.hand_over(door.search(search), reply),
            Request::Traverse(traversal, reply) => door.hand_over(door.traverse(traversal), reply),
            Request::RetryDeadLetter(operation, backend, reply) => {
                door.retry_dead_letter(operation, backend, Port::Ractor(reply));
            }
            Request::DiscardDeadLetter(operation, reply) => door.discard_dead_letter(operation, Port::Ractor(reply)),
            // A caller that no longer waits is none of our business.
            Request::Outcome(operation, reply) => drop(reply.send(door.outcome(operation))),
            Request::Status(reply) => drop(reply.send(door.status())),
            Request::DeadLetters(reply) => drop(reply.send(door.dead_letters())),
        }
        Ok(())
    }
}
