//! What the adapters send, sent by hand: neo4rs and qdrant-client, and nothing around them.

use std::collections::HashMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use neo4rs::{BoltList, BoltMap, BoltType, ConfigBuilder, Graph, query};
use qdrant_client::qdrant::points_client::PointsClient;
use qdrant_client::qdrant::{
    Condition, Filter, GetPoints, NamedVectors, PointId, PointStruct, Range, RetrievedPoint, UpsertPoints, Value,
    Vector, Vectors, WriteOrdering, WriteOrderingType,
};
use seawall::backends::{Neo4jConfig, QdrantConfig};
use seawall::record::Record;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

/// A server that is called directly. Whatever fails ends the measurement.
pub(crate) trait ByHand: Clone + Send + Sync + 'static {
    fn store(&self, record: &Record, version: u64) -> impl Future<Output = ()> + Send;

    fn read(&self, key: &str) -> impl Future<Output = ()> + Send;
}

#[derive(Clone)]
pub(crate) struct InNeo4j {
    graph: Graph,
    put: String,
    read: String,
}

impl InNeo4j {
    /// With as many connections as Seawall has.
    pub(crate) fn open(config: &Neo4jConfig) -> Self {
        let password = config.password.as_ref().map_or("", |password| password.reveal());
        let mut builder = ConfigBuilder::new()
            .uri(&config.uri)
            .user(&config.user)
            .password(password)
            .max_connections(config.max_connections);
        if let Some(database) = &config.database {
            builder = builder.db(database.as_str());
        }
        let graph = Graph::connect(builder.build().expect("the settings are good")).expect("connects to nothing yet");
        let label = &config.label;
        let put = format!(
            "UNWIND $rows AS row MERGE (n:{label} {{key: row.key}}) SET n._lock = true \
             WITH n, row WHERE coalesce(n._version, 0) <= $over SET n = row.properties \
             WITH n OPTIONAL MATCH (n)-[r:RELATES]->() DELETE r RETURN DISTINCT n.key AS key"
        );
        let read = format!(
            "UNWIND $keys AS key MATCH (n:{label}) WHERE n.key = key AND n._version IS NOT NULL \
             RETURN n.key AS key, n._version AS version, n._deleted AS deleted, n._properties AS properties, \
             n._embedding AS embedding, [(n)-[r:RELATES]->(t) | [r.position, r.kind, t.key]] AS relations"
        );
        Self { graph, put, read }
    }
}

impl ByHand for InNeo4j {
    async fn store(&self, record: &Record, version: u64) {
        let version = i64::try_from(version).expect("a small number");
        let mut node = BoltMap::default();
        let mut set = |name: &str, value: BoltType| node.put(name.into(), value);
        set("key", record.key.as_str().into());
        set("_version", version.into());
        set("_lock", true.into());
        set("_properties", serde_json::to_string(&record.properties).expect("is JSON").into());
        for (name, value) in record.properties.iter() {
            match (value.as_str(), value.as_i64()) {
                (Some(text), _) => set(name, text.into()),
                (_, Some(number)) => set(name, number.into()),
                _ => {}
            }
        }
        let embedding = record.embedding.as_ref().map_or(&[][..], |embedding| embedding.as_slice());
        set("_embedding", list(embedding.iter().map(|component| f64::from(*component).into()).collect()));
        let mut row = BoltMap::default();
        row.put("key".into(), record.key.as_str().into());
        row.put("properties".into(), BoltType::Map(node));
        let rows = list(vec![BoltType::Map(row)]);
        // Another caller of this key may be ahead; then nothing is written, and that is what is asked for.
        let statement = query(&self.put).param("rows", rows).param("over", version - 1);
        let mut transaction = self.graph.start_txn().await.expect("begins");
        let mut found = transaction.execute(statement).await.expect("is run");
        while found.next(transaction.handle()).await.expect("answers").is_some() {}
        transaction.commit().await.expect("is committed");
    }

    async fn read(&self, key: &str) {
        let mut transaction = self.graph.start_txn().await.expect("begins");
        let statement = query(&self.read).param("keys", list(vec![key.into()]));
        let mut found = transaction.execute(statement).await.expect("is run");
        while let Some(row) = found.next(transaction.handle()).await.expect("answers") {
            let _: Vec<f64> = row.get("embedding").expect("an embedding");
            let text: String = row.get("properties").expect("properties");
            let _: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
        }
        transaction.rollback().await.expect("ends");
    }
}

fn list(value: Vec<BoltType>) -> BoltType {
    BoltType::List(BoltList { value })
}

#[derive(Clone)]
pub(crate) struct InQdrant {
    points: PointsClient<Channel>,
    collection: String,
    vector: String,
}

impl InQdrant {
    pub(crate) async fn open(config: &QdrantConfig) -> Self {
        let endpoint = Endpoint::from_shared(config.url.clone()).expect("is a URL");
        let channel = endpoint.connect().await.expect("somebody listens");
        Self {
            points: PointsClient::new(channel),
            collection: config.collection.clone(),
            vector: config.vector.clone(),
        }
    }

    async fn get(&self, key: &str, fields: &[&str]) -> Vec<RetrievedPoint> {
        let request = GetPoints {
            collection_name: self.collection.clone(),
            ids: vec![id(key)],
            with_payload: Some(fields.to_vec().into()),
            ..GetPoints::default()
        };
        self.points.clone().get(request).await.expect("answers").into_inner().result
    }
}

impl ByHand for InQdrant {
    async fn store(&self, record: &Record, version: u64) {
        let (low, attempt) = (i64::try_from(version).expect("a small number"), Uuid::now_v7().to_string());
        let terms: Vec<Value> =
            record.properties.iter().map(|(name, value)| Value::from(format!("\"{name}\":{value}"))).collect();
        let embedding = record.embedding.as_ref().map_or(&[][..], |embedding| embedding.as_slice());
        let bytes: Vec<u8> = embedding.iter().flat_map(|component| component.to_le_bytes()).collect();
        let payload: HashMap<String, Value> = [
            ("_key", Value::from(record.key.as_str())),
            ("_version_high", 0.into()),
            ("_version_low", low.into()),
            ("_attempt", attempt.clone().into()),
            ("_operation", attempt.into()),
            ("_record", serde_json::to_string(&record.properties).expect("is JSON").into()),
            ("_embedding", BASE64_STANDARD.encode(bytes).into()),
            ("_terms", terms.into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let vectors = HashMap::from([(self.vector.clone(), Vector::from(embedding))]);
        let vectors: Vectors = NamedVectors { vectors }.into();
        let request = UpsertPoints {
            collection_name: self.collection.clone(),
            wait: Some(true),
            points: vec![PointStruct { id: Some(id(record.key.as_str())), payload, vectors: Some(vectors) }],
            ordering: Some(WriteOrdering { r#type: WriteOrderingType::Strong.into() }),
            update_filter: Some(older(low as f64)),
            timeout: Some(5),
            ..UpsertPoints::default()
        };
        self.points.clone().upsert(request).await.expect("is taken");
        self.get(record.key.as_str(), &["_key", "_version_high", "_version_low", "_attempt"]).await;
    }

    async fn read(&self, key: &str) {
        let whole = ["_key", "_version_high", "_version_low", "_attempt", "_deleted", "_record", "_embedding"];
        for point in self.get(key, &whole).await {
            let text = |field: &str| point.payload.get(field).and_then(|value| value.as_str()).expect("a text");
            let _: serde_json::Value = serde_json::from_str(text("_record")).expect("is JSON");
            BASE64_STANDARD.decode(text("_embedding")).expect("is base64");
        }
    }
}

/// Points that this version goes over.
fn older(low: f64) -> Filter {
    let below = |limit| Range { lt: Some(limit), ..Range::default() };
    let same = Filter::must([Condition::matches("_version_high", 0), Condition::range("_version_low", below(low))]);
    let fence = Filter::should([Condition::range("_version_high", below(0.0)), same.into()]);
    Filter::must([fence.into()])
}

fn id(key: &str) -> PointId {
    PointId::from(Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes()).to_string())
}
