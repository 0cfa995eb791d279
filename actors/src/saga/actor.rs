//! The saga coordinator: what no caller waits for any more.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::plane::DataPlane;
use crate::sync::{Lanes, SyncArguments, SyncConfig, SyncMessage};

/// Compensations on one backend that run side by side.
const CONCURRENCY: usize = 4;

/// The actor: one lane of compensations per backend, retried until they are done or parked.
#[derive(Clone, Copy, Debug, Default)]
pub struct SagaCoordinator;

/// What every incarnation is started with.
#[derive(Clone)]
pub struct SagaArguments(SyncArguments);

impl SagaArguments {
    /// For a coordinator over these stores.
    #[must_use]
    pub fn new(plane: Arc<DataPlane>) -> Self {
        let lanes = SyncConfig { concurrency: CONCURRENCY, ..SyncConfig::default() };
        Self(SyncArguments::new(plane, Arc::new(lanes), true))
    }
}

impl Actor for SagaCoordinator {
    type Msg = SyncMessage;
    type State = Lanes;
    type Arguments = SagaArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SyncMessage>,
        SagaArguments(arguments): SagaArguments,
    ) -> Result<Lanes, ActorProcessingErr> {
        Ok(Lanes::start(arguments, &myself))
    }

    async fn handle(
        &self,
        myself: ActorRef<SyncMessage>,
        message: SyncMessage,
        lanes: &mut Lanes,
    ) -> Result<(), ActorProcessingErr> {
        lanes.hear(message, &myself);
        Ok(())
    }
}
