//! What a store gives back.

use serde_json::{Value, json};

use super::Subject;
use super::ground::{Checked, Failure, Ground, compensation, delete, ensure, record, write};
use crate::backend::Health;
use crate::operation::{Change, Version};
use crate::record::{Key, Properties, Record};

pub(super) async fn read_order(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    ground.holds_nothing("a", "before any write").await?;
    for n in 1..=4 {
        ground.put(n, &record(&format!("k{n}"), n)).await?;
    }
    ground.delete(5, "k2").await?;
    let keys: Vec<Key> = ["k4", "never", "k1", "k2", "k3", "k1"].map(Key::from).into();
    let held = ground.read(&keys).await?;
    let versions: Vec<_> = held.iter().map(|held| held.as_ref().map(|held| held.version.0)).collect();
    let expected = [Some(4), None, Some(1), Some(5), Some(3), Some(1)];
    ensure!(versions == expected, "a read of {keys:?} gives versions {versions:?} and not {expected:?}");
    let deleted = held[3].as_ref().is_some_and(|held| held.record.is_none());
    ensure!(deleted, "a read of a deleted key gives a record");
    ground.read(&[]).await?;
    Ok(())
}

/// Properties whose names and values stores have been known to bend.
fn odd_properties() -> Vec<(&'static str, Value)> {
    let names =
        ["", " ", "a.b", "$set", "`tick`", "it's", "\"quoted\"", "back\\slash", "ключ", "キー", "🦀", "{}", "[0]"];
    // Names that an adapter may have given to something of its own.
    let taken =
        ["key", "id", "_id", "version", "_version", "_seawall", "properties", "embedding", "relations", "v", "n"];
    let mut odd: Vec<_> = names.into_iter().chain(taken).map(|name| (name, json!(name))).collect();
    odd.extend([
        ("null", Value::Null),
        ("true", json!(true)),
        ("false", json!(false)),
        ("zero", json!(0)),
        ("one", json!(1)),
        ("one as a float", json!(1.0)),
        ("minus zero", json!(-0.0)),
        ("u64", json!(u64::MAX)),
        ("i64", json!(i64::MIN)),
        ("above i64", json!(i64::MAX as u64 + 1)),
        ("beyond a float", json!((1_u64 << 53) + 1)),
        ("f64 max", json!(f64::MAX)),
        ("f64 min", json!(f64::MIN)),
        ("f64 least", json!(f64::MIN_POSITIVE)),
        ("f64 subnormal", json!(5e-324)),
        ("f64 sum", json!(0.1 + 0.2)),
        ("f64 third", json!(1.0 / 3.0)),
        ("f64 digits", json!(123_456_789.123_456_78)),
        ("empty text", json!("")),
        ("empty list", json!([])),
        ("empty object", json!({})),
        ("nulls", json!([null, {"a": null}])),
        ("mixed", json!([1, 1.5, "1", true, [], {}, [[[]]]])),
        ("nested", json!({"a": {"b": [{"c": {"d": [1, {"e": "f"}]}}]}, "": {"": ""}})),
        ("text", json!("line\nline\r\n\ttab \u{0001} \u{feff} \u{2028} ẞ a\u{0301} 👩‍👩‍👧‍👦 \u{10ffff}")),
        ("looks like json", json!("{\"a\": 1}")),
        ("looks like a number", json!("1e5")),
        ("looks like a date", json!("2024-02-30T25:61:00Z")),
        ("looks like cypher", json!("' OR 1=1 MATCH (n) DETACH DELETE n //")),
    ]);
    odd
}

pub(super) async fn fidelity(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    // One property at a time says which one was bent; all together, whether they get in each other's way.
    let mut all = Record::new("all");
    for (n, (name, value)) in (1..).zip(odd_properties()) {
        let one = Record::new(format!("one {n}")).with(name, value.clone());
        ground.put(n, &one).await?;
        ground.holds(n, &one, &format!("after a property {name:?}")).await?;
        all.properties.set(name, value);
    }
    ground.put(1, &all).await?;
    ground.holds(1, &all, "after all odd properties at once").await?;

    let empty = Record::new("empty");
    ground.put(1, &empty).await?;
    ground.holds(1, &empty, "after a record of nothing").await?;

    let odd = [-0.0, 1e-40, 0.1, -12_345.678, 16_777_217.0, f32::MIN_POSITIVE, 1.0 / 3.0, -1.0];
    let embedding: Vec<f32> = odd.into_iter().cycle().skip(1).take(subject.dimension()).collect();
    let related = Record::new("related")
        .with_embedding(embedding)
        .with_relation("z", "nobody")
        .with_relation("a", "empty")
        .with_relation("z", "related")
        .with_relation("a", "all")
        .with_relation("odd `kind` with 'quotes'", "odd \"key\" {}:/\\ ключ 🦀")
        .with_relation("KNOWS", "all")
        .with_relation("knows", "all");
    ground.put(1, &related).await?;
    ground.holds(1, &related, "after an embedding and relations").await?;
    let replaced = Record::new("related").with_relation("a", "all");
    ground.put(2, &replaced).await?;
    ground.holds(2, &replaced, "after they were replaced").await?;

    let long = "k".repeat(512);
    let keys = ["odd \"key\" {}:/\\ ключ 🦀", " ", "\n", "a:b", "a", "A", "*", "%00", "../..", "'", long.as_str()];
    for (n, key) in (1..).zip(keys) {
        ground.put(1, &record(key, n)).await?;
    }
    for (n, key) in (1..).zip(keys) {
        ground.holds(1, &record(key, n), "after a write to an odd key").await?;
    }
    Ok(())
}

pub(super) async fn large(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let text: String = ('a'..='z').chain("äßЖ水🦀".chars()).cycle().take(1 << 20).collect();
    let large = Record::new("large").with("text", text);
    ground.put(1, &large).await?;
    ground.holds(1, &large, "after a megabyte of text").await?;
    let properties = (0..200).fold(Properties::new(), |all, n| all.with(format!("p{n}"), n));
    let wide = Record::new("wide").with_properties(properties);
    let wide = (0..200).fold(wide, |record, n| record.with_relation("to", format!("r{n}")));
    ground.put(1, &wide).await?;
    ground.holds(1, &wide, "after 200 properties and relations").await
}

pub(super) async fn newest_version(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    let newest = async |expected: u64, when: &str| {
        let newest = ground.backend.newest_version().await;
        let newest = newest.map_err(|error| Failure::Broken(format!("newest_version fails: {error}")))?;
        ensure!(newest == Version(expected), "{when} the newest version is {newest} and not v{expected}");
        Ok(())
    };
    newest(0, "in an empty store").await?;
    ground.put(7, &record("a", 7)).await?;
    ground.put(3, &record("b", 3)).await?;
    newest(7, "after writes of 7 and 3").await?;
    ground.apply(&write(5, [Change::put(record("a", 5))])).await?;
    newest(7, "after a write that came late").await?;
    ground.delete(9, "a").await?;
    newest(9, "after a delete of 9").await?;
    ground.apply(&compensation(12, [delete("b")])).await?;
    newest(12, "after a compensation of 12").await?;
    let large = (1 << 53) + 1;
    ground.put(large, &record("c", 1)).await?;
    newest(large, "after a version that no float holds").await
}

pub(super) async fn probe(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    for when in ["an empty store", "a store with a record", "a store that was probed before"] {
        let probed = ground.backend.probe().await;
        let healthy = matches!(probed, Ok(Health::Healthy));
        ensure!(healthy, "a probe of {when} says {probed:?}");
        ground.apply(&write(1, [Change::put(record("a", 1))])).await?;
    }
    // A probe leaves nothing that a read, or a search, could find.
    ground.holds(1, &record("a", 1), "after probes").await
}
