//! What a write may go over, and what it leaves.

use super::Subject;
use super::ground::{
    Checked, Failure, Ground, compensation as back, delete, ensure, merge, record, same, told, until, write as live,
};
use crate::backend::{ErrorKind, FencedWrite, Stored};
use crate::operation::{Change, Version};
use crate::record::{Properties, Record};

fn put(key: &str, n: u64) -> Change {
    Change::put(record(key, n))
}

pub(super) async fn write(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    ground.put(5, &record("a", 5)).await?;
    ground.holds(5, &record("a", 5), "after a write").await?;
    for (version, change) in
        [(3, put("a", 3)), (4, delete("a")), (1, merge("a", Properties::new().with("n", 1))), (5, put("a", 55))]
    {
        ground.told(&live(version, [change]), Some(5)).await?;
        ground.holds(5, &record("a", 5), &format!("after one of version {version} came late")).await?;
    }
    ground.put(6, &record("a", 6)).await?;
    ground.holds(6, &record("a", 6), "after a newer write").await?;
    ground.put(1, &record("b", 1)).await?;
    ground.holds(1, &record("b", 1), "after an old write to another key").await?;
    // Beyond what a float counts, and to the last one that stores without unsigned numbers have.
    for version in [1 << 53, (1 << 53) + 1, (1 << 63) - 2] {
        let key = format!("k{version}");
        ground.put(version, &record(&key, 1)).await?;
        ground.told(&live(version - 1, [put(&key, 2)]), Some(version)).await?;
        ground.holds(version, &record(&key, 1), "after one of the version below").await?;
        ground.put(version + 1, &record(&key, 3)).await?;
        ground.holds(version + 1, &record(&key, 3), "after one of the version above").await?;
    }
    Ok(())
}

pub(super) async fn compensation(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    ground.put(3, &record("a", 3)).await?;
    ground.put(5, &record("a", 5)).await?;
    ground.told(&back(5, [put("a", 3)]), None).await?;
    ground.holds(5, &record("a", 3), "after a compensation").await?;
    ground.told(&live(5, [put("a", 5)]), Some(5)).await?;
    ground.holds(5, &record("a", 3), "after the write came again that was taken back").await?;
    ground.put(7, &record("a", 7)).await?;
    for change in [put("a", 3), delete("a")] {
        ground.told(&back(5, [change]), Some(7)).await?;
        ground.holds(7, &record("a", 7), "after a compensation of something older").await?;
    }
    ground.delete(9, "a").await?;
    ground.told(&back(8, [put("a", 8)]), Some(9)).await?;
    ground.holds_delete(9, "a", "after a compensation of something older").await
}

pub(super) async fn early_compensation(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    ground.told(&back(5, [delete("a")]), None).await?;
    ground.told(&live(5, [put("a", 5)]), Some(5)).await?;
    ground.holds_delete(5, "a", "after a write came that was taken back before").await?;
    ground.put(2, &record("b", 2)).await?;
    ground.told(&back(5, [put("b", 2)]), None).await?;
    ground.told(&live(5, [put("b", 5)]), Some(5)).await?;
    ground.holds(5, &record("b", 2), "after a write came that was taken back before").await?;
    ground.put(6, &record("a", 6)).await?;
    ground.holds(6, &record("a", 6), "after a newer write").await
}

pub(super) async fn idempotence(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let writes: [FencedWrite; 5] = [
        live(1, [put("a", 1), put("b", 1)]),
        live(2, [merge("a", Properties::new().with("n", 2).with("m", 2))]),
        live(3, [delete("b")]),
        live(4, [merge("a", Properties::new().with("m", serde_json::Value::Null))]),
        back(5, [put("b", 1)]),
    ];
    for write in &writes {
        ground.told(write, None).await?;
    }
    let after = |when: &str| {
        let when = format!("after {when}");
        let ground = &ground;
        async move {
            ground.holds(4, &record("a", 2), &when).await?;
            ground.holds(5, &record("b", 1), &when).await
        }
    };
    after("five writes").await?;
    for again in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [4, 4, 0, 0, 2]] {
        for n in again {
            ground.apply(&writes[n]).await?;
        }
        after("the same writes again").await?;
    }
    Ok(())
}

pub(super) async fn tombstones(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    ground.put(1, &record("a", 1).with("old", true)).await?;
    ground.delete(5, "a").await?;
    ground.holds_delete(5, "a", "after a delete").await?;
    for (version, change) in [(3, put("a", 3)), (4, merge("a", Properties::new().with("n", 4))), (5, put("a", 5))] {
        ground.told(&live(version, [change]), Some(5)).await?;
        ground.holds_delete(5, "a", "after an older write came late").await?;
    }
    ground.delete(7, "a").await?;
    ground.holds_delete(7, "a", "after another delete").await?;
    ground.delete(4, "never").await?;
    ground.holds_delete(4, "never", "after a delete of what was never written").await?;
    ground.told(&live(3, [put("never", 3)]), Some(4)).await?;
    ground.holds_delete(4, "never", "after an older write came late").await?;
    ground.told(&live(8, [merge("a", Properties::new().with("n", 8))]), None).await?;
    ground.holds(8, &record("a", 8), "after a merge into what was deleted").await?;
    ground.put(5, &record("never", 5)).await?;
    ground.holds(5, &record("never", 5), "after a newer write").await
}

pub(super) async fn sweep(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    for (version, key) in (1..).zip(["live", "old", "old too", "new"]) {
        ground.put(version, &record(key, version)).await?;
    }
    for (version, key) in [(5, "old"), (6, "old too"), (7, "new"), (8, "newest")] {
        ground.delete(version, key).await?;
    }
    let mut swept = Vec::new();
    loop {
        let some = ground.backend.sweep(Version(7), 1).await;
        match some.map_err(|error| Failure::Broken(format!("a sweep fails: {error}")))? {
            0 => break,
            some => swept.push(some),
        }
        ensure!(swept.len() <= 2, "sweeps of 2 deletes go on to forget some: {swept:?}");
    }
    if swept.is_empty() {
        return Err(Failure::Skipped("it never forgets a delete by itself"));
    }
    let all: usize = swept.iter().sum();
    ensure!(all == 2, "a sweep of 2 deletes tells of {all}");
    ground.holds(1, &record("live", 1), "after a sweep").await?;
    ground.holds_nothing("old", "after a sweep").await?;
    ground.holds_nothing("old too", "after a sweep").await?;
    ground.holds_delete(7, "new", "after a sweep of what is older").await?;
    ground.holds_delete(8, "newest", "after a sweep of what is older").await?;
    ground.put(4, &record("old", 4)).await?;
    ground.holds(4, &record("old", 4), "when it was written after a sweep").await?;
    ground.delete(9, "old").await?;
    ground
        .backend
        .sweep(Version(100), 100)
        .await
        .map_err(|error| Failure::Broken(format!("a sweep fails: {error}")))?;
    let newest = ground.backend.newest_version().await;
    let newest = newest.map_err(|error| Failure::Broken(format!("the newest version fails: {error}")))?;
    ensure!(newest == Version(9), "after a sweep of everything the newest version is {newest}, and was v9");
    Ok(())
}

pub(super) async fn several(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    for (version, key) in [(1, "put"), (2, "merged"), (3, "deleted"), (4, "restored"), (9, "newer")] {
        ground.put(version, &record(key, version)).await?;
    }
    let with = |n: u64| Properties::new().with("n", n);
    let writes = [
        live(5, [put("put", 5), put("new", 5)]),
        live(6, [merge("merged", with(6)), merge("created", with(6))]),
        live(7, [delete("deleted")]),
        back(4, [put("restored", 40)]),
        live(8, [put("newer", 8)]),
        live(10, [merge("newest", with(10))]),
    ];
    let answers = ground.backend.apply_batch(&writes).await;
    let answers = answers.map_err(|error| Failure::Broken(format!("several writes fail: {error}")))?;
    ensure!(answers.len() == writes.len(), "{} writes have {} answers", writes.len(), answers.len());
    for (write, answer) in writes.iter().zip(answers) {
        let told = answer.map_err(|error| Failure::Broken(format!("{} among others fails: {error}", write.version)))?;
        let expected = (write.version == Version(8)).then_some(Version(9));
        let told = told.superseded_by;
        ensure!(told == expected, "{} among others is superseded by {told:?}, not by {expected:?}", write.version);
    }
    let when = "after several writes in one call";
    let held = [(5, "put", 5), (5, "new", 5), (6, "merged", 6), (4, "restored", 40), (9, "newer", 9)];
    for (version, key, n) in held {
        ground.holds(version, &record(key, n), when).await?;
    }
    ground.holds_delete(7, "deleted", when).await?;
    if !ground.copy {
        ground.holds(6, &record("created", 6), when).await?;
        ground.holds(10, &record("newest", 10), when).await?;
    }
    let Some(rejected) = subject.rejected() else { return Ok(()) };
    let key = rejected.key().clone();
    ground.put(10, &record("at", 10).with_embedding(vec![1.0; subject.dimension()])).await?;
    let writes = [live(11, [put("put", 11)]), live(12, [rejected]), live(13, [delete("new")])];
    let answers = ground.backend.apply_batch(&writes).await;
    let answers = answers.map_err(|error| Failure::Broken(format!("with one that is rejected all fail: {error}")))?;
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(|error| error.kind)).collect();
    let expected = [None, Some(ErrorKind::Permanent), None];
    ensure!(kinds == expected, "with one in the middle that is rejected, the answers are {kinds:?}");
    ground.holds(11, &record("put", 11), "beside one that was rejected").await?;
    ground.holds_delete(13, "new", "beside one that was rejected").await?;
    ground.holds_nothing(key.as_str(), "when it was rejected among others").await
}

pub(super) async fn pre_images(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let before = record("a", 1).with("list", vec![1, 2]).with_relation("knows", "b").with_relation("knows", "c");
    let dimension = u16::try_from(subject.dimension()).unwrap_or(u16::MAX);
    let embedding: Vec<f32> = (0..dimension).map(|n| 1.0 + f32::from(n)).collect();
    let before = before.with_embedding(embedding);
    ground.put(1, &before).await?;
    ground.delete(2, "gone").await?;
    let keys = ["a".into(), "gone".into(), "new".into()];
    for (version, change) in (10..).step_by(10).zip([
        put as fn(&str, u64) -> Change,
        |key, n| merge(key, Properties::new().with("n", n).with("added", n).with("list", serde_json::Value::Null)),
        |key, _| delete(key),
    ]) {
        let seen = ground.read(&keys).await?;
        let changes: Vec<_> = keys.iter().map(|key| change(key.as_str(), version)).collect();
        ground.told(&live(version, changes), None).await?;
        let restore: Vec<_> = keys.iter().zip(&seen).map(|(key, seen)| restores(key.as_str(), seen.as_ref())).collect();
        ground.told(&back(version, restore), None).await?;
        let expected = [Some(&before), None, None];
        for ((key, held), record) in keys.iter().zip(ground.read(&keys).await?).zip(expected) {
            let expected = Stored { version: Version(version), record: record.cloned() };
            same(key, held.as_ref(), Some(&expected), "after a write was taken back")?;
        }
    }
    Ok(())
}

/// What makes a key what it was.
fn restores(key: &str, seen: Option<&Stored>) -> Change {
    match seen.and_then(|stored| stored.record.clone()) {
        Some(record) => Change::put(record),
        None => delete(key),
    }
}

pub(super) async fn merges(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let dimension = u16::try_from(subject.dimension()).unwrap_or(u16::MAX);
    let embedding: Vec<f32> = (0..dimension).map(|n| 0.5 - f32::from(n)).collect();
    let whole = |record: Record| record.with_embedding(embedding.clone()).with_relation("knows", "b");
    let nested = serde_json::json!({"x": 1, "y": {"z": 2}});
    ground.put(1, &whole(record("a", 1).with("keep", "me").with("drop", 1).with("nested", nested))).await?;
    let changes = Properties::new()
        .with("n", 2)
        .with("new", vec!["x"])
        .with("drop", serde_json::Value::Null)
        .with("never there", serde_json::Value::Null)
        .with("nested", serde_json::json!({"y": null}));
    ground.told(&live(2, [merge("a", changes)]), None).await?;
    let nested = serde_json::json!({"y": null});
    let merged = whole(record("a", 2).with("keep", "me").with("new", vec!["x"]).with("nested", nested));
    ground.holds(2, &merged, "after a merge").await?;
    ground.told(&live(3, [merge("a", Properties::new())]), None).await?;
    ground.holds(3, &merged, "after a merge of nothing").await?;
    let create = live(1, [merge("created", Properties::new().with("n", 1).with("gone", serde_json::Value::Null))]);
    ground.told(&create, None).await?;
    // A copy cannot know whether there was something that it never held.
    match ground.copy {
        true => ground.holds_nothing("created", "after a merge into what the copy does not hold").await,
        false => ground.holds(1, &record("created", 1), "after a merge into nothing").await,
    }
}

pub(super) async fn batches(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    ground.put(9, &record("fenced", 9)).await?;
    ground.put(1, &record("merged", 1)).await?;
    ground.put(1, &record("deleted", 1)).await?;
    let properties = Properties::new().with("n", 5);
    let changes = [put("fenced", 5), put("put", 5), merge("merged", properties), delete("deleted")];
    ground.told(&live(5, changes), Some(9)).await?;
    ground.holds(9, &record("fenced", 9), "after a batch that is older").await?;
    ground.holds(5, &record("put", 5), "after a batch").await?;
    ground.holds(5, &record("merged", 5), "after a batch").await?;
    ground.holds_delete(5, "deleted", "after a batch").await?;
    // As many as a runtime drains at once.
    let many: Vec<_> = (0..100).map(|n| put(&format!("many {n}"), n)).collect();
    ground.told(&live(6, many), None).await?;
    for n in 0..100 {
        ground.holds(6, &record(&format!("many {n}"), n), "after a batch of 100").await?;
    }
    Ok(())
}

pub(super) async fn rejection(subject: &dyn Subject) -> Checked {
    let Some(rejected) = subject.rejected() else { return Err(Failure::Skipped("nothing is said to be rejected")) };
    let ground = Ground::open(subject).await?;
    let point = vec![1.0; subject.dimension()];
    let before = record("a", 1).with_embedding(point);
    ground.put(1, &before).await?;
    let batches = [
        vec![rejected.clone()],
        vec![put("a", 2), rejected.clone(), put("b", 2)],
        vec![rejected.clone(), put("a", 2), put("b", 2)],
        vec![put("a", 2), put("b", 2), rejected],
    ];
    for batch in batches {
        let applied = ground.backend.apply(&live(2, batch)).await;
        let permanent = applied.as_ref().is_err_and(|error| error.kind == ErrorKind::Permanent);
        ensure!(permanent, "what is to be rejected as permanent is told as {}", told(&applied));
        ground.holds(1, &before, "after a batch was rejected").await?;
        ground.holds_nothing("b", "after a batch was rejected").await?;
        ground.holds_nothing("rejected", "after it was rejected").await?;
    }
    Ok(())
}

pub(super) async fn transactions(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let Some(transactions) = ground.backend.transactions() else {
        return Err(Failure::Skipped("it has no native transactions"));
    };
    let failed = |what: &'static str| move |error| Failure::Broken(format!("{what} fails: {error}"));
    ground.put(1, &record("a", 1)).await?;

    drop(transactions.begin(&live(5, [put("a", 5), put("b", 5)])).await.map_err(failed("begin"))?);
    // Its end may come after its drop; the next write waits for it.
    ground.told(&live(4, [put("c", 4)]), None).await?;
    until("the end of a dropped transaction", || async {
        let held = ground.backend.read(&["a".into(), "b".into()]).await.map_err(|error| error.to_string())?;
        let versions: Vec<_> = held.iter().map(|held| held.as_ref().map_or(0, |held| held.version.0)).collect();
        if versions == [1, 0] { Ok(()) } else { Err(format!("versions {versions:?} instead of [1, 0]")) }
    })
    .await?;

    let rolled_back = transactions.begin(&live(6, [put("a", 6)])).await.map_err(failed("begin"))?;
    rolled_back.rollback().await.map_err(failed("rollback"))?;
    ground.holds(1, &record("a", 1), "after a rollback").await?;

    let committed = transactions.begin(&live(7, [put("a", 7), put("b", 7)])).await.map_err(failed("begin"))?;
    let applied = committed.commit().await.map_err(failed("commit"))?;
    ensure!(applied.superseded_by.is_none(), "a commit is told to be superseded by {:?}", applied.superseded_by);
    ground.holds(7, &record("a", 7), "after a commit").await?;
    ground.holds(7, &record("b", 7), "after a commit").await?;

    let late = transactions.begin(&live(3, [put("a", 3)])).await.map_err(failed("begin"))?;
    let applied = late.commit().await.map_err(failed("commit"))?;
    let told = applied.superseded_by;
    ensure!(told == Some(Version(7)), "a transaction that came late is told to be superseded by {told:?}");
    ground.holds(7, &record("a", 7), "after a transaction that came late").await
}
