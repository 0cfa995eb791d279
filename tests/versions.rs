//! Versions are never given out twice, over crashes too: a store takes a write of a version that it holds for a
//! repetition, and does nothing.

mod support;

use std::sync::Arc;

use seawall::backend::{Fence, FencedWrite};
use seawall::operation::{Change, OperationId, Version};
use seawall::record::Key;
use seawall::{Refusal, Runtime};
use support::{Disk, Site, n, record};

async fn start(site: &Site, disk: &Arc<Disk>) -> Runtime {
    Runtime::builder()
        .shared_backend(Arc::clone(&site.backend) as _)
        .journal(Arc::clone(disk) as _, disk.records())
        .start()
        .await
        .expect("the runtime starts")
}

/// Something else wrote to the store, under a version that no runtime has come to.
async fn write_from_elsewhere(site: &Site, key: &str, version: Version) {
    let changes = Arc::from([Change::put(record(key, 0))]);
    let write = FencedWrite { operation: OperationId::generate(), version, fence: Fence::Write, changes };
    site.backend.inner().apply(&write).await.expect("the store is well");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_with_one_store_that_crashes_beyond_its_reservation_gives_out_no_version_twice() {
    let (site, disk) = (Site::graph(), Arc::new(Disk::default()));
    let runtime = start(&site, &disk).await;
    let first = runtime.handle().store(record("a", 1)).await.expect("is stored").version;

    // Far beyond what the start has reserved, without the million writes that lead there.
    write_from_elsewhere(&site, "a", Version(first.0 + (1 << 40))).await;
    let refused = runtime.handle().store(record("a", 2)).await.expect_err("it is behind the store");
    assert!(!matches!(refused, Refusal::Unknown { .. }), "{refused}");
    let beyond = runtime.handle().store(record("a", 3)).await.expect("is stored").version;
    let acknowledged = runtime.handle().store(record("b", 4)).await.expect("is stored").version;
    assert!(first.0 + (1 << 40) < beyond.0 && beyond < acknowledged);
    disk.cut();
    drop(runtime);

    let disk = Arc::new(Disk::holding(disk.records()));
    let runtime = start(&site, &disk).await;
    for (key, number) in [("a", 5), ("b", 6), ("a", 7), ("b", 8)] {
        if let Ok(receipt) = runtime.handle().store(record(key, number)).await {
            let stored = site.stored(&Key::new(key)).await.expect("it is there");
            assert_eq!(
                (n(stored.record), stored.version),
                (Some(number), receipt.version),
                "an acknowledged write is lost"
            );
            assert!(receipt.version > acknowledged, "{} was given out before", receipt.version);
        }
    }
    let version = runtime.handle().store(record("c", 9)).await.expect("is stored").version;
    assert!(version > acknowledged, "{version} was given out before");
}
