mod crash;
mod deadline;
mod effects;
mod foreign;
mod undone;

use std::time::Duration;

use crate::call::CallConfig;
use crate::plane::rehearsal::{Rig, Scripted, Settings};
use crate::saga::{Durability, SagaConfig};

const SECOND: Duration = Duration::from_secs(1);

/// Two stores and other settings of sagas.
async fn rig(saga: SagaConfig) -> Rig {
    let settings = Settings { saga, ..Settings::default() };
    Rig::with(settings, |log| vec![Scripted::new("graph", log), Scripted::new("vector", log)]).await
}

/// Two stores that are called in another way.
async fn called(call: CallConfig) -> Rig {
    let settings = Settings { call, ..Settings::default() };
    Rig::with(settings, |log| vec![Scripted::new("graph", log), Scripted::new("vector", log)]).await
}

async fn overlapped() -> Rig {
    rig(SagaConfig { durability: Durability::Overlapped, ..SagaConfig::default() }).await
}

/// Where in the log this is.
fn place(log: &[String], what: &str) -> usize {
    log.iter().position(|line| line == what).unwrap_or_else(|| panic!("`{what}` is not in {log:?}"))
}
