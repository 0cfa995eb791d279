//! The saga coordinator: what no caller waits for any more.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::plane::DataPlane;
use crate::saga::SagaConfig;
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
    pub fn new(plane: Arc<DataPlane>, config: &SagaConfig) -> Self {
        let lanes = SyncConfig {
            concurrency: CONCURRENCY,
            step_timeout: config.step_timeout,
            backoff: config.backoff.max(Duration::from_millis(1)),
            max_backoff: config.max_backoff,
            ..SyncConfig::default()
        };
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
