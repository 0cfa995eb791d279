use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    CollectionConfig, CollectionInfo, CollectionParams, CollectionStatus, Condition, Distance, Filter, Match,
    MultiVectorConfig, PointId, Range, VectorParams, VectorParamsMap, VectorsConfig,
};
use seawall_actors::backend::{ErrorKind, Fence, FencedWrite, Health, Role, Stored};
use seawall_actors::operation::{Change, OperationId, Version};
use seawall_actors::record::{Key, Properties, Record};
use serde_json::json;

use super::collection::{check, check_server, health};
use super::point::{self, Author, Head, Over};
use super::*;
use crate::backends::records::matches;
use crate::config::{Config as Settings, Secret};

fn config() -> QdrantConfig {
    QdrantConfig { dimension: 3, ..QdrantConfig::default() }
}

fn write(version: u64, fence: Fence, changes: impl Into<Arc<[Change]>>) -> FencedWrite {
    FencedWrite { operation: OperationId::generate(), version: Version(version), fence, changes: changes.into() }
}

fn encoded(key: &Key, record: Option<&Record>) -> qdrant_client::qdrant::PointStruct {
    let author = Author { operation: OperationId::generate(), version: Version(7), attempt: "attempt" };
    point::encode(key, record, &author, "embedding").expect("is written")
}

/// Values as JSON has them, and as a search may ask for them.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<u64>().prop_map(|n| json!(n)),
        (-2..3_i64).prop_map(|n| json!(n)),
        prop_oneof![Just(0.0), Just(-0.0), Just(1.0), any::<f64>()].prop_map(|n| json!(n)),
        "[a-c\"\\\\ .\\[\\]:é]{0,4}".prop_map(|text| json!(text)),
        "[ab]{120,140}".prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(serde_json::Value::from),
            prop::collection::btree_map("[a-c]{0,2}", inner, 0..3)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn properties() -> impl Strategy<Value = Properties> {
    let names = "[a-c\".\\[]{0,2}";
    prop::collection::btree_map(names, value(), 0..4)
        .prop_map(|map| Properties::from(map.into_iter().collect::<serde_json::Map<_, _>>()))
}

fn record() -> impl Strategy<Value = Record> {
    let embedding = prop::option::of(prop::array::uniform3(any::<f32>().prop_filter("finite", |x| x.is_finite())));
    let relations = prop::collection::vec(("[a-c]{1,2}", "[a-c]{1,2}"), 0..3);
    (".{1,8}", properties(), embedding, relations).prop_map(|(key, properties, embedding, relations)| {
        let mut record = Record::new(key).with_properties(properties);
        record.embedding = embedding.map(|components| components.to_vec().into());
        relations.into_iter().fold(record, |record, (kind, to)| record.with_relation(kind, to))
    })
}

/// The terms that a search for these properties asks for.
fn asked(filter: &Properties) -> Vec<String> {
    let filter = point::filter(filter, None).expect("is written");
    let text = |condition: Condition| match condition.condition_one_of {
        Some(ConditionOneOf::Field(field)) => match field.r#match.and_then(|found| found.match_value) {
            Some(MatchValue::Keyword(text)) => text,
            other => panic!("not the whole text, but {other:?}"),
        },
        other => panic!("no field, but {other:?}"),
    };
    filter.must.into_iter().map(text).collect()
}

fn terms(record: &Record) -> Vec<String> {
    let point = encoded(&record.key, Some(record));
    let values = point.payload[point::TERMS].as_list().expect("a list").to_vec();
    values.iter().map(|value| value.as_str().expect("a text").clone()).collect()
}

proptest! {
    #[test]
    fn a_record_comes_back_as_it_was(record in record()) {
        let point = encoded(&record.key, Some(&record));
        let (key, head, stored) = point::decode(&point.payload).expect("is read");
        prop_assert_eq!(&key, &record.key);
        prop_assert_eq!(head, Head { version: Version(7), attempt: "attempt".to_owned() });
        // Bit for bit: equal floats may differ by the sign of a zero.
        let bits = |record: &Record| {
            record.embedding.as_ref().map(|e| e.as_slice().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        };
        let back = stored.record.expect("a record");
        prop_assert_eq!(bits(&back), bits(&record));
        prop_assert_eq!(serde_json::to_string(&back).ok(), serde_json::to_string(&record).ok());
    }

    #[test]
    fn a_search_finds_what_equals_and_nothing_else(record in record(), mut filter in properties(), own in any::<u8>()) {
        // Half of the time some properties are the record's own.
        for (n, (name, value)) in record.properties.iter().enumerate() {
            if own & (1 << n) != 0 {
                filter.set(name, value.clone());
            }
        }
        let terms = terms(&record);
        let found = asked(&filter).iter().all(|term| terms.contains(term));
        prop_assert_eq!(found, matches(&record, &filter));
    }
}

#[test]
fn a_tombstone_has_the_version_and_nothing_of_the_record() {
    let point = encoded(&"a".into(), None);
    let (key, _, stored) = point::decode(&point.payload).expect("is read");
    assert_eq!((key, stored), ("a".into(), Stored { version: Version(7), record: None }));
    assert!(!point.payload.contains_key(point::RECORD) && !point.payload.contains_key(point::TERMS));
}

#[test]
fn a_point_that_somebody_else_wrote_is_told_as_that() {
    let whole = encoded(&"a".into(), Some(&Record::new("a").with_embedding(vec![1.0])));
    let spoilt = [
        (point::KEY, None),
        (point::VERSION_LOW, Some("7".into())),
        (point::VERSION_HIGH, Some((-1).into())),
        (point::VERSION_HIGH, Some((1 << 32).into())),
        (point::ATTEMPT, None),
        (point::RECORD, None),
        (point::RECORD, Some("{".into())),
        (point::EMBEDDING, Some("AAA=".into())),
        (point::EMBEDDING, Some(1.into())),
    ];
    for (field, value) in spoilt {
        let mut payload = whole.payload.clone();
        match value {
            Some(value) => payload.insert(field.to_owned(), value),
            None => payload.remove(field),
        };
        let error = point::decode(&payload).expect_err(field);
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Permanent, Some("foreign_point")), "{field}");
    }
}

#[test]
fn keys_have_points_of_their_own() {
    let ids: Vec<_> = ["a", "b", "A", "", "a "].map(|key| point::id(&key.into())).into();
    assert!(ids.iter().enumerate().all(|(n, id)| !ids[..n].contains(id)));
    // What was stored by an earlier version is found by a later one.
    assert_eq!(point::id(&"a".into()), "55705fb6-c361-5a13-9754-180229884e73".into());
}

/// A point as a condition sees it: id, version, attempt.
type Seen<'a> = (&'a PointId, u64, &'a str);

/// Whether Qdrant takes the point for one that this filter is about.
fn holds(filter: &Filter, point: Seen<'_>) -> bool {
    let any = filter.should.is_empty() || filter.should.iter().any(|condition| holds_one(condition, point));
    let all = filter.must.iter().all(|condition| holds_one(condition, point));
    any && all && !filter.must_not.iter().any(|condition| holds_one(condition, point))
}

fn holds_one(condition: &Condition, point: Seen<'_>) -> bool {
    let (id, version, attempt) = point;
    match condition.condition_one_of.as_ref().expect("a condition") {
        ConditionOneOf::Filter(filter) => holds(filter, point),
        ConditionOneOf::HasId(ids) => ids.has_id.contains(id),
        ConditionOneOf::Field(field) => {
            let number = match field.key.as_str() {
                point::VERSION_HIGH => version >> 32,
                point::VERSION_LOW => version & 0xffff_ffff,
                point::ATTEMPT => return field.r#match == Some(MatchValue::Keyword(attempt.to_owned()).into()),
                other => panic!("a condition on {other}"),
            };
            let matched = |wanted: &Match| *wanted == MatchValue::Integer(number.cast_signed()).into();
            let within = |range: &Range| {
                let number = number as f64;
                range.lt.is_none_or(|bound| number < bound) && range.lte.is_none_or(|bound| number <= bound)
            };
            field.r#match.as_ref().is_none_or(matched) && field.range.as_ref().is_none_or(within)
        }
        other => panic!("a condition that is {other:?}"),
    }
}

/// Versions that are hard to tell apart.
fn version() -> impl Strategy<Value = u64> {
    let near = |n: u64| (0..3_u64).prop_map(move |d| n.wrapping_add(d).wrapping_sub(1));
    prop_oneof![near(1), near(1 << 32), near(1 << 33), near(1 << 53), near(1 << 63), near(u64::MAX), any::<u64>()]
}

proptest! {
    #[test]
    fn the_condition_of_a_write_is_its_fence(version in version(), held in version(), near in -1..2_i64, back in any::<bool>()) {
        let fence = if back { Fence::Compensation } else { Fence::Write };
        let write = write(version, fence, []);
        let id = point::id(&"a".into());
        let condition = point::condition(&[(&write, &[(id.clone(), Over::Fence)])]);
        for held in [held, version.saturating_add_signed(near)] {
            prop_assert_eq!(holds(&condition, (&id, held, "")), write.passes(Version(held)), "{} over {}", version, held);
        }
    }

    #[test]
    fn a_version_comes_back_as_it_was(version in version()) {
        let author = Author { operation: OperationId::generate(), version: Version(version), attempt: "" };
        let point = point::encode(&"a".into(), None, &author, "embedding").expect("is written");
        let (_, head) = point::decode_head(&point.payload).expect("is read");
        prop_assert_eq!(head.version, Version(version));
    }
}

#[test]
fn a_merge_goes_over_what_it_was_merged_with_and_over_nothing_else() {
    let [a, b, c] = ["a", "b", "c"].map(|key| point::id(&key.into()));
    let over =
        [(a.clone(), Over::Seen(Some("seen".to_owned()))), (b.clone(), Over::Seen(None)), (c.clone(), Over::Fence)];
    let write = write(5, Fence::Write, []);
    // The condition speaks of the points that are sent, and no others are.
    for sent in [&over[..], &over[..2], &over[1..], &over[1..2]] {
        let condition = point::condition(&[(&write, sent)]);
        let held = |id: &PointId, version, attempt| {
            sent.iter().any(|(other, _)| other == id).then(|| holds(&condition, (id, version, attempt)))
        };
        assert!(held(&a, 3, "seen").is_none_or(|over| over));
        assert!(held(&c, 3, "seen").is_none_or(|over| over));
        // What was read as not being there is not written over, whatever is there now.
        for (id, version, attempt) in [(&a, 3, "other"), (&a, 0, ""), (&b, 0, ""), (&b, 3, "seen"), (&c, 5, "seen")] {
            assert!(held(id, version, attempt).is_none_or(|over| !over), "{version} {attempt}");
        }
    }
}

#[test]
fn what_no_collection_takes_is_refused_before_it_is_sent() {
    let deep = (0..121).fold(json!(1), |inner, _| json!([inner]));
    let not_finite = Record::new("a").with_embedding(vec![1.0, f32::NAN, 0.0]);
    let cases = [
        (Change::put(Record::new("a").with_embedding(vec![1.0; 4])), "wrong_dimension"),
        (Change::put(Record::new("a").with_embedding(vec![])), "wrong_dimension"),
        (Change::put(not_finite), "not_finite"),
        (Change::put(Record::new("a").with("deep", deep.clone())), "too_deep"),
        (Change::Merge { key: "a".into(), properties: Properties::new().with("deep", deep.clone()) }, "too_deep"),
    ];
    for (change, code) in cases {
        let error = fence::admit(&write(1, Fence::Write, [change]), 3).expect_err(code);
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Permanent, Some(code)));
    }
    // As deep as is taken, and it is read again.
    let deepest = Record::new("a").with("deep", deep[0].clone());
    fence::admit(&write(1, Fence::Write, [Change::put(deepest.clone())]), 3).expect("is taken");
    let (_, _, stored) = point::decode(&encoded(&"a".into(), Some(&deepest)).payload).expect("is read");
    assert_eq!(stored.record, Some(deepest));
}

fn collection(config: Option<Config>) -> CollectionInfo {
    let vectors_config = Some(VectorsConfig { config });
    let params = Some(CollectionParams { vectors_config, ..CollectionParams::default() });
    CollectionInfo { config: Some(CollectionConfig { params, ..CollectionConfig::default() }), ..Default::default() }
}

#[test]
fn only_a_collection_of_the_same_shape_is_used() {
    let params = |size, distance: Distance| VectorParams { size, distance: distance.into(), ..VectorParams::default() };
    let named = |name: &str, params| {
        Some(Config::ParamsMap(VectorParamsMap { map: HashMap::from([(name.to_owned(), params)]) }))
    };
    let good = params(3, Distance::Cosine);
    check(&collection(named("embedding", good)), &config()).expect("fits");
    let many = VectorParams { multivector_config: Some(MultiVectorConfig::default()), ..good };
    for (unfit, why) in [
        (None, "has no vector that is called `embedding`"),
        (Some(Config::Params(good)), "has no vector that is called `embedding`"),
        (named("other", good), "has no vector that is called `embedding`"),
        (named("embedding", params(4, Distance::Cosine)), "has 4 dimensions, and `dimension` is 3"),
        (named("embedding", params(3, Distance::Euclid)), "is compared by Euclid, and `distance` is Cosine"),
        (named("embedding", many), "is many vectors a point"),
    ] {
        let error = check(&collection(unfit), &config()).expect_err(why);
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("unfit_collection")));
        assert!(error.message.contains(why), "{error}");
    }
}

#[test]
fn a_server_without_conditional_updates_is_not_used() {
    for good in ["1.16.0", "v1.20.3", "1.16", "2.0.0-rc1"] {
        check_server(good).expect(good);
    }
    for old in ["1.15.9", "0.99.0", "", "new"] {
        assert_eq!(check_server(old).expect_err(old).code.as_deref(), Some("old_server"), "{old}");
    }
}

#[test]
fn a_collection_that_is_being_optimized_is_well() {
    for (status, expected) in [
        (CollectionStatus::Green, Some(Health::Healthy)),
        (CollectionStatus::Yellow, Some(Health::Healthy)),
        (CollectionStatus::Grey, Some(Health::Healthy)),
        (CollectionStatus::Red, Some(Health::ReadOnly)),
        (CollectionStatus::UnknownCollectionStatus, None),
    ] {
        assert_eq!(health(status).ok(), expected, "{status:?}");
    }
}

#[test]
fn the_configuration_describes_it_and_everything_wrong_is_told() {
    let text = "[backends.vector.qdrant]\nurl = 'https://qdrant:6334'\napi_key = 'hush-hush'\ndimension = 384\n\
                distance = 'dot'\nrole = 'BestEffort'\ntimeout = '3s'";
    let settings = Settings::from_toml(text).expect("can be used").backends["vector"].qdrant.clone();
    let expected = QdrantConfig {
        url: "https://qdrant:6334".to_owned(),
        api_key: Some(Secret::new("hush-hush")),
        dimension: 384,
        distance: Metric::Dot,
        role: Role::BestEffort,
        timeout: Duration::from_secs(3),
        ..QdrantConfig::default()
    };
    assert_eq!(settings, Some(expected));

    let problems = |text: &str| {
        let found = Settings::from_toml(&format!("[backends.vector.qdrant]\n{text}")).expect_err(text).problems;
        let paths = found.into_iter().map(|found| found.path.replace("backends.vector.qdrant.", ""));
        paths.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(problems(""), "dimension");
    let all = "dimension = 65537\nurl = 'localhost:6334'\napi_key = ''\ntls_ca_file = 'ca'\ncollection = 'a/b'\n\
               vector = ''\ntimeout = '1ms'\nconnect_timeout = '1m'\ncolour = 'red'";
    let expected = "api_key collection colour connect_timeout dimension timeout tls_ca_file url vector";
    assert_eq!(problems(all), expected);
    for url in ["", "qdrant", "ftp://qdrant:1", "http://qdrant", "https://me:hush@qdrant:6334", "http://:6334"] {
        assert_eq!(problems(&format!("dimension = 3\nurl = '{url}'")), "url", "{url}");
    }
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_refused_at_once_and_a_server_is_not_asked() {
    QdrantBackend::new("vector", &config()).expect("nobody is asked");
    let missing = QdrantConfig {
        url: "https://localhost:6334".to_owned(),
        tls_ca_file: Some("/nowhere/ca.pem".into()),
        ..config()
    };
    for unusable in [QdrantConfig::default(), missing] {
        let error = QdrantBackend::new("vector", &unusable).expect_err("cannot be used");
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Permanent, Some("settings")), "{error}");
    }
}
