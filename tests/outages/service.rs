//! A process with a runtime over the servers of a stage, that writes until it is killed.

use std::sync::Arc;
use std::time::Duration;

use seawall::Runtime;
use tokio::time::sleep;

use crate::load::{Load, Log};
use crate::stage::{Stage, Stores, config};
use crate::torture::writer::Job;
use crate::torture::{Process, Scene, Told};

/// Names the stores of a process that is to be a service.
const STORES: &str = "SEAWALL_OUTAGE_STORES";
/// What it says when writes are acknowledged.
pub(crate) const BUSY: &str = "busy";
/// What it says when so many writes are owed.
pub(crate) const OWING: &str = "owing";
pub(crate) const OWED: usize = 100;

/// Not a test of its own: the process that is killed.
#[test]
fn service_that_writes_until_it_is_killed() {
    let Some((job, stores)) = Job::of_this_process().zip(std::env::var(STORES).ok()) else { return };
    let stores = Stores::parse(&stores).expect("they are told");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(serve(job, stores));
}

/// Starts it over the servers of this stage.
pub(crate) fn start(stage: &Stage) -> Process {
    let job = Job { dir: stage.dir.path().to_owned(), scene: Scene::Load, seed: 0, first: 0 };
    let arguments = ["--exact", "service::service_that_writes_until_it_is_killed", "--nocapture", "--test-threads=1"];
    Process::start_with(&job, &arguments, |command| _ = command.env(STORES, stage.stores.to_text()))
}

async fn serve(job: Job, stores: Stores) {
    let log = Arc::new(Log::new(Told::default(), true));
    // A test harness has begun a line.
    log.say(String::new());
    let runtime = match Runtime::builder().config(config(&job.dir, &stores)).start().await {
        Ok(runtime) => runtime,
        Err(error) => return log.say(format!("x does not open: {error}")),
    };
    let _load = Load::start(&runtime.handle(), &log, 8, 0);
    while log.told().acknowledged() < OWED {
        sleep(Duration::from_millis(1)).await;
    }
    log.say(BUSY.to_owned());
    while runtime.handle().status().owed < OWED {
        sleep(Duration::from_millis(1)).await;
    }
    log.say(OWING.to_owned());
    std::future::pending::<()>().await;
}
