//! What needs no server.

use std::sync::Arc;
use std::time::Duration;

use neo4rs::{BoltList, BoltMap, BoltType, Row};
use proptest::prelude::*;
use seawall_actors::backend::{Backend, BackendError, ErrorKind, Fence, FencedWrite, Stored};
use seawall_actors::operation::{Change, Direction, OperationId, Traversal, Version};
use seawall_actors::record::{Key, Properties, Record};
use serde_json::{Value, json};

use super::node::{self, Plan};
use super::statements::Arrow;
use super::walk::{Walk, Way};
use super::{Neo4jBackend, Neo4jConfig};
use crate::config::{Config, Secret};

fn write(version: u64, fence: Fence, changes: impl IntoIterator<Item = Change>) -> FencedWrite {
    let changes = changes.into_iter().collect();
    FencedWrite { operation: OperationId::generate(), version: Version(version), fence, changes }
}

fn plan(changes: impl IntoIterator<Item = Change>) -> Result<Plan, BackendError> {
    Plan::of(&write(7, Fence::Write, changes))
}

/// The node of a record, and its relations, as a server would tell them.
fn told(record: &Record) -> Row {
    let plan = plan([Change::put(record.clone())]).expect("can be held");
    let node = plan.nodes[&record.key].clone();
    let relations = plan.relations(std::slice::from_ref(&record.key)).map_or_else(Vec::new, |rows| match rows {
        BoltType::List(rows) => rows.value,
        other => panic!("{other:?}"),
    });
    let relations = relations.into_iter().rev().map(|row| match row {
        BoltType::Map(row) => node::list(["position", "kind", "to"].map(|name| row.value[name].clone()).to_vec()),
        other => panic!("{other:?}"),
    });
    let column = |name: &str| node.value.get(name).cloned().unwrap_or(BoltType::Null(neo4rs::BoltNull));
    let columns = [
        ("key", column("key")),
        ("version", column("_version")),
        ("deleted", column("_deleted")),
        ("properties", column("_properties")),
        ("embedding", column("_embedding")),
        ("relations", node::list(relations.collect())),
    ];
    let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().map(|(name, value)| (name.into(), value)).unzip();
    Row::new(BoltList { value: names }, BoltList { value: values })
}

/// What Neo4j holds by its own name.
fn natives(record: &Record) -> BoltMap {
    let mut node = plan([Change::put(record.clone())]).expect("can be held").nodes[&record.key].clone();
    node.value.retain(|name, _| !name.value.starts_with('_') && name.value != "key");
    node
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".*", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_record_comes_back_from_its_node_as_it_was(
        properties in prop::collection::btree_map(".*", value(), 0..6),
        embedding in prop::option::of(prop::collection::vec(any::<f32>().prop_filter("equal", |x| !x.is_nan()), 0..6)),
        relations in prop::collection::vec((".*", ".{0,8}"), 0..6),
    ) {
        let mut record = Record::new("a").with_properties(Properties::from(properties.into_iter().collect::<serde_json::Map<_, _>>()));
        if let Some(embedding) = embedding {
            record = record.with_embedding(embedding);
        }
        for (kind, to) in relations {
            record = record.with_relation(kind, to);
        }
        let (key, stored) = node::stored(&told(&record)).unwrap();
        prop_assert_eq!(key, record.key.clone());
        prop_assert_eq!(stored, Stored { version: Version(7), record: Some(record) });
    }
}

#[test]
fn what_neo4j_can_hold_is_held_by_its_own_name() {
    let long = "x".repeat(node::INDEXED_BYTES + 1);
    let record = Record::new("a")
        .with("text", "t")
        .with("whole", 1)
        .with("half", 0.5)
        .with("flag", true)
        .with("list", json!(["a", "b"]))
        .with("null", Value::Null)
        .with("huge", u64::MAX)
        .with("object", json!({"a": 1}))
        .with("mixed", json!([1, "a"]))
        .with("mixed numbers", json!([1, 1.5]))
        .with("nested", json!([[1]]))
        .with("long", long)
        .with("key", "not ours")
        .with("_version", 99)
        .with("@rid", "#1:0")
        .with("nul\0", 1)
        .with("", 1);
    let mut names: Vec<_> = natives(&record).value.into_keys().map(|name| name.value).collect();
    names.sort();
    assert_eq!(names, ["flag", "half", "list", "text", "whole"]);
}

#[test]
fn a_merge_takes_away_what_neo4j_cannot_hold_any_more() {
    let changes = Properties::new().with("gone", Value::Null).with("object", json!({"a": 1})).with("n", 2);
    let plan = plan([Change::Merge { key: "a".into(), properties: changes }]).unwrap();
    let before = Properties::new().with("gone", 1).with("object", 1).with("n", 1).with("stays", 1);
    let BoltType::Map(row) = plan.merged(&"a".into(), before).unwrap() else { panic!("no map") };
    let node: BoltMap = match &row.value["properties"] {
        BoltType::Map(node) => node.clone(),
        other => panic!("{other:?}"),
    };
    let null = BoltType::Null(neo4rs::BoltNull);
    assert_eq!((&node.value["gone"], &node.value["object"]), (&null, &null));
    assert_eq!((&node.value["n"], &node.value["stays"]), (&BoltType::from(2_i64), &BoltType::from(1_i64)));
    assert_eq!(node.value["_deleted"], null);
    assert_eq!(node.value["_properties"], BoltType::from(r#"{"n":2,"object":{"a":1},"stays":1}"#));
}

#[test]
fn a_write_goes_over_lower_versions_and_a_compensation_over_its_own() {
    for (version, fence, over) in [
        (5, Fence::Write, 4),
        (5, Fence::Compensation, 5),
        (u64::MAX / 2, Fence::Write, i64::MAX - 1),
        (u64::MAX / 2, Fence::Compensation, i64::MAX),
        (0, Fence::Write, -1),
    ] {
        assert_eq!(Plan::of(&write(version, fence, [])).unwrap().over, over);
    }
    assert_eq!(Plan::of(&write(u64::MAX / 2 + 1, Fence::Write, [])).unwrap_err().kind, ErrorKind::Permanent);
}

#[test]
fn what_no_node_can_hold_is_refused_for_good() {
    let deep = |levels: usize| (0..levels).fold(Value::from(1), |inner, _| Value::from(vec![inner]));
    let long = "k".repeat(node::INDEXED_BYTES + 1);
    let refused = [
        (Change::put(Record::new("a").with("deep", deep(127))), "too_deep"),
        (Change::Merge { key: "a".into(), properties: Properties::new().with("deep", deep(127)) }, "too_deep"),
        (Change::put(Record::new(long.as_str())), "key_too_long"),
        (Change::put(Record::new("a").with_relation("x", long.as_str())), "key_too_long"),
        (Change::Delete { key: long.as_str().into() }, "key_too_long"),
    ];
    for (change, code) in refused {
        let error = plan([change]).unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Permanent, Some(code)));
    }
    // The deepest that is taken is read again.
    let record = Record::new("a").with("deep", deep(126));
    assert_eq!(node::stored(&told(&record)).unwrap().1.record, Some(record));
}

#[test]
fn a_name_that_could_end_its_quotes_is_not_spliced() {
    let hostile = ["a`b", "\\u0060", "a\nb", "key", "_version", "", "nul\0"];
    for name in hostile {
        assert_eq!(node::searchable(&Properties::new().with(name, 1)), [], "{name:?}");
    }
    let filter =
        Properties::new().with("first name", "x").with("größe", 1).with("list", json!([1])).with("null", Value::Null);
    let names: Vec<_> = node::searchable(&filter).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["first name", "größe"]);
}

// ----- a walk

fn way(place: usize, outgoing: bool, to: &str) -> Way {
    Way { place, outgoing, to: to.into(), kind: "x".to_owned() }
}

#[test]
fn a_walk_meets_each_record_once_and_stops_at_its_limit() {
    let traversal = Traversal::from("a").depth(3).limit(3).direction(Direction::Both);
    let mut walk = Walk::new(&traversal);
    assert_eq!(walk.arrow(), Arrow("-", "-"));
    let frontier = |walk: &mut Walk<'_>| walk.advance().map(|(frontier, _)| frontier.to_vec());
    assert_eq!(frontier(&mut walk), Some(vec![Key::from("a")]));
    assert!(walk.take(way(0, true, "b")) && walk.take(way(0, false, "b")) && walk.take(way(0, false, "c")));
    assert_eq!(frontier(&mut walk), Some(vec!["b".into(), "c".into()]));
    assert!(walk.take(way(0, false, "a")), "it has been there");
    assert!(!walk.take(way(1, false, "d")) && !walk.take(way(1, true, "e")), "three are enough");
    assert_eq!(frontier(&mut walk), None);
    let reached = walk.into_reached();
    let told: Vec<_> = reached.iter().map(|hit| (hit.key.as_str(), hit.step, hit.via.to.as_str())).collect();
    assert_eq!(told, [("b", 1, "b"), ("c", 1, "a"), ("d", 2, "c")]);
}

#[test]
fn a_walk_ends_where_nothing_leads_on_and_at_its_depth() {
    let traversal = Traversal { kinds: vec![Arc::from("x")], ..Traversal::from("a").depth(2) };
    let mut walk = Walk::new(&traversal);
    assert!(walk.advance().is_some());
    assert!(walk.advance().is_none(), "nothing was reached");
    let mut walk = Walk::new(&traversal);
    for to in ["b", "c"] {
        assert!(walk.advance().is_some());
        assert!(walk.take(way(0, true, to)));
    }
    assert!(walk.advance().is_none(), "two steps were asked for");
}

// ----- settings

#[test]
fn everything_that_is_wrong_with_the_settings_is_told_and_no_password() {
    let wrong = |uri: &str| {
        let config = Neo4jConfig {
            uri: uri.to_owned(),
            user: String::new(),
            password: Some(Secret::new("")),
            database: Some(String::new()),
            label: "Record {x: 1}) DETACH DELETE n //".to_owned(),
            max_connections: 0,
            connect_timeout: Duration::ZERO,
            tls_ca_file: Some("ca.pem".into()),
            tls_client_key: Some("key.pem".into()),
            ..Neo4jConfig::default()
        };
        let mut problems = Vec::new();
        config.problems("neo4j", &mut problems);
        problems
    };
    let found = wrong("bolt://neo4j:hush@localhost:7687");
    let paths: Vec<_> = found.iter().map(|problem| problem.path.as_str()).collect();
    let fields = [
        "uri",
        "user",
        "password",
        "database",
        "label",
        "max_connections",
        "tls_ca_file",
        "tls_client_key",
        "connect_timeout",
    ];
    assert_eq!(paths, fields.map(|field| format!("neo4j.{field}")));
    assert!(found.iter().all(|problem| !problem.to_string().contains("hush")));
    for uri in ["localhost:7687", "neo4j://localhost", "http://localhost", "bolt://", "bolt://a/b", "bolt://a b"] {
        assert_eq!(wrong(uri)[0].path, "neo4j.uri", "{uri}");
    }
    let error = Neo4jBackend::new("graph", &Neo4jConfig { uri: "bolt://a:hush@b".into(), ..Neo4jConfig::default() });
    let error = error.unwrap_err();
    assert!(error.kind == ErrorKind::Permanent && !error.to_string().contains("hush"), "{error}");
}

#[test]
fn a_backend_is_in_neo4j_where_the_configuration_says_where_that_is() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let text = "[backends.graph.neo4j]\nuri = 'bolt+s://graph.example'\nlabel = 'Note'\nconnect_timeout = '2s'";
    std::fs::write(file.path(), text).unwrap();
    let set = [("SEAWALL__BACKENDS__GRAPH__NEO4J__PASSWORD".to_owned(), "123456".to_owned())];
    let config = Config::load_with(Some(file.path()), set).unwrap();
    let graph = config.backends["graph"].neo4j.clone().unwrap();
    assert_eq!((graph.uri.as_str(), graph.label.as_str()), ("bolt+s://graph.example", "Note"));
    assert_eq!((graph.connect_timeout, graph.password.as_ref().unwrap().reveal()), (Duration::from_secs(2), "123456"));
    assert!(!format!("{config:?}").contains("123456"));
    let wrong = Config::from_toml("[backends.graph.neo4j]\nuri = ''\nmax_connections = 0\ncolour = 'red'").unwrap_err();
    let paths: Vec<_> = wrong.problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["colour", "max_connections", "uri"].map(|field| format!("backends.graph.neo4j.{field}")));
}

#[test]
fn settings_that_are_right_make_a_backend_that_asks_nothing() {
    for uri in ["bolt://localhost", "bolt://127.0.0.1:7687", "bolt://[::1]:7687", "bolt+s://graph.example:7687"] {
        let config = Neo4jConfig { uri: uri.to_owned(), password: Some(Secret::new("hush")), ..Neo4jConfig::default() };
        assert!(!format!("{config:?}").contains("hush"));
        let backend = Neo4jBackend::new("graph", &config).unwrap_or_else(|error| panic!("{uri}: {error}"));
        assert!(backend.capabilities().graph_traversal && backend.transactions().is_some());
        assert!(!format!("{backend:?}").contains("hush"));
    }
}

#[test]
fn a_file_of_certificates_that_holds_none_is_told() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for change in [
        |config: &mut Neo4jConfig, file: &std::path::Path| config.tls_ca_file = Some(file.to_owned()),
        |config: &mut Neo4jConfig, file: &std::path::Path| {
            config.tls_client_certificate = Some(file.to_owned());
            config.tls_client_key = Some(file.to_owned());
        },
    ] {
        let mut config = Neo4jConfig { uri: "bolt+s://localhost".to_owned(), ..Neo4jConfig::default() };
        change(&mut config, empty.path());
        assert_eq!(Neo4jBackend::new("graph", &config).unwrap_err().kind, ErrorKind::Permanent);
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("bolt://{}", listener.local_addr().unwrap());
    let config = Neo4jConfig { uri, connect_timeout: Duration::from_millis(50), ..Neo4jConfig::default() };
    let backend = Neo4jBackend::new("graph", &config).unwrap();
    for _ in 0..20 {
        let error = backend.probe().await.unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("connect_timeout")));
    }
    let dropped = tokio::time::timeout(Duration::from_millis(5), backend.read(&["a".into()])).await;
    assert!(dropped.is_err());
    drop(listener);
    assert_eq!(backend.probe().await.unwrap_err().kind, ErrorKind::Transient);
}
