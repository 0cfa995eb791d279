//! The five fallback modes, one after another, while one of two stores is down: what becomes of a write, and where
//! a read is answered from.
//!
//! ```sh
//! cargo run --release --example five_modes
//! ```
//!
//! Left alone, Seawall chooses the mode by itself: `DISABLED` while all is well, `QUEUE_WRITES` below that (see
//! `Config::fallback`). Here each is set by hand.

use std::error::Error;
use std::time::Duration;

use seawall::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::fallback::Mode;
use seawall::operation::{Held, Source};
use seawall::record::Record;
use seawall::{Refusal, Runtime};
use tokio::time::{sleep, timeout};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let runtime = Runtime::builder()
        .data_dir(dir.path())
        .backend(GraphBackend::in_memory(GraphConfig::default()))
        .backend(VectorBackend::in_memory(VectorConfig::default()))
        .start()
        .await?;
    let (handle, control) = (runtime.handle(), runtime.control());

    // All is well: the mode is DISABLED, which means that no fallback is needed.
    assert_eq!(handle.status().mode, Mode::Disabled);
    let receipt = handle.store(Record::new("gull").with("wings", 2)).await?;
    assert_eq!(receipt.held, Held::Committed);
    println!("both stores are up, mode disabled: a write is {:?}\n", receipt.held);

    // An outage. (A breaker that is forced open refuses every call, as one that opened by itself does.)
    control.breaker("graph")?.force_open("to show the modes", None);
    wait_until(|| handle.status().mode == Mode::QueueWrites).await;
    println!("the graph store is down; by itself Seawall is now in mode {}\n", handle.status().mode.name());
    println!("{:<15}{:<43}{:<20}read of an older record", "mode", "write", "read of that");

    for mode in Mode::ALL {
        control.set_mode(mode, "to show it", None).await?;
        let written = handle.store(Record::new(mode.name()).with("written", true)).await;
        let write = match &written {
            Ok(receipt) => format!("{:?}", receipt.held),
            Err(refusal) => format!("refused: {}", first_words(refusal)),
        };
        let read = handle.retrieve(mode.name()).await?;
        let older = handle.retrieve("gull").await?;
        let own = if read.record.is_some() { place(&read.source) } else { "nothing there".to_owned() };
        println!("{:<15}{write:<43}{own:<20}{}", mode.name(), place(&older.source));

        let graph = || vec!["graph".into()];
        match mode {
            // Through to every store, or not at all.
            Mode::Disabled => assert!(matches!(written, Err(Refusal::Unavailable { .. }))),
            Mode::ReadOnly => assert!(matches!(written, Err(Refusal::ReadOnly { .. }))),
            // The vector store has it; the graph store gets it if this process lives that long.
            Mode::MemoryOnly => assert_eq!(written?.held, Held::Volatile { owing: graph() }),
            // No store is touched: both owe it, and it survives a restart.
            Mode::LocalStorage => {
                assert_eq!(written?.held, Held::Queued { owing: vec!["graph".into(), "vector".into()] });
                assert!(matches!(older.source, Source::Cache { .. }));
            }
            // The vector store has it; the graph store owes it durably.
            Mode::QueueWrites => assert_eq!(written?.held, Held::Queued { owing: graph() }),
        }
        // Whatever was acknowledged is read, and nothing else.
        let refused = matches!(mode, Mode::Disabled | Mode::ReadOnly);
        assert_eq!(read.record.is_none(), refused);
        assert!(refused || read.source == Source::Owed);
        assert_eq!(older.record, Some(Record::new("gull").with("wings", 2)));
    }

    // The outage is over: Seawall chooses the mode again, and the stores get what they owe.
    control.breaker("graph")?.lift();
    control.clear_mode().await?;
    wait_until(|| handle.status().mode == Mode::Disabled && handle.status().owed == 0).await;
    for mode in [Mode::MemoryOnly, Mode::LocalStorage, Mode::QueueWrites] {
        let read = handle.retrieve(mode.name()).await?;
        assert_eq!(read.source, Source::Backend("graph".into()));
        assert!(read.record.is_some());
    }
    println!("\nthe graph store is back, mode {}: it has been given what it owed", handle.status().mode.name());
    runtime.shutdown().await;
    Ok(())
}

fn place(source: &Source) -> String {
    match source {
        Source::Backend(name) => format!("the {name} store"),
        Source::Owed => "owed writes".to_owned(),
        Source::Cache { age } => format!("the cache, {} ms old", age.as_millis()),
    }
}

fn first_words(refusal: &Refusal) -> String {
    refusal.to_string().split(':').next().unwrap_or_default().to_owned()
}

async fn wait_until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), wait).await.expect("it comes within seconds");
}
