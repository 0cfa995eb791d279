//! The collection: made where there is none, and checked before anything is done with it.

use std::collections::HashMap;
use std::error::Error;

use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    CollectionInfo, CollectionStatus, CreateCollection, CreateFieldIndexCollection, Distance, FieldType,
    GetCollectionInfoRequest, HealthCheckRequest, VectorParams, VectorParamsMap, VectorsConfig, WriteOrdering,
    WriteOrderingType,
};
use seawall_actors::backend::{BackendError, Health};
use tonic::{Code, Status};

use super::client::Client;
use super::error::{completed, judge};
use super::point::{ATTEMPT, DELETED, TERMS, VERSION_HIGH, VERSION_LOW};
use super::settings::QdrantConfig;
use crate::backends::Metric;

/// The first version that has conditional updates: an older one does not see the condition, and writes.
const OLDEST: (u32, u32) = (1, 16);

/// The payload fields in conditions, and what they are. All of them: a server may forbid conditions on others.
const INDEXES: [(&str, FieldType); 5] = [
    (VERSION_HIGH, FieldType::Integer),
    (VERSION_LOW, FieldType::Integer),
    (ATTEMPT, FieldType::Uuid),
    (DELETED, FieldType::Bool),
    (TERMS, FieldType::Keyword),
];

/// Makes the collection and its indexes where they are missing.
///
/// # Errors
/// With the code `old_server` or `unfit_collection` when it cannot be used as it is. Both are transient: nothing that
/// is owed is lost for it, and all of it goes through when a person has put it right.
pub(super) async fn prepare(client: &Client, config: &QdrantConfig) -> Result<(), BackendError> {
    let server = client.server().health_check(HealthCheckRequest {}).await.map_err(|status| judge(&status))?;
    check_server(&server.into_inner().version)?;
    let found = match info(client, config).await {
        Ok(found) => found,
        Err(status) if status.source().is_none() && status.code() == Code::NotFound => {
            let made = client.collections().create(wanted(config)).await;
            // Another may have been faster, which shows when it is looked for again.
            match (info(client, config).await, made) {
                (Ok(found), _) => found,
                (Err(_), Err(status)) | (Err(status), Ok(_)) => return Err(judge(&status)),
            }
        }
        Err(status) => return Err(judge(&status)),
    };
    check(&found, config)?;
    for (field, kind) in INDEXES {
        if !found.payload_schema.contains_key(field) {
            index(client, config, field, kind).await?;
        }
    }
    Ok(())
}

/// How the collection is.
pub(super) async fn probe(client: &Client, config: &QdrantConfig) -> Result<Health, BackendError> {
    let found = info(client, config).await.map_err(|status| judge(&status))?;
    health(found.status())
}

async fn info(client: &Client, config: &QdrantConfig) -> Result<CollectionInfo, Status> {
    let request = GetCollectionInfoRequest { collection_name: config.collection.clone() };
    let answer = client.collections().get(request).await?.into_inner();
    answer.result.ok_or_else(|| Status::unknown("no collection in the answer"))
}

async fn index(client: &Client, config: &QdrantConfig, field: &str, kind: FieldType) -> Result<(), BackendError> {
    let request = CreateFieldIndexCollection {
        collection_name: config.collection.clone(),
        wait: Some(true),
        field_name: field.to_owned(),
        field_type: Some(kind.into()),
        ordering: Some(strong()),
        ..CreateFieldIndexCollection::default()
    };
    let answer = client.points().create_field_index(request).await.map_err(|status| judge(&status))?;
    completed(answer.into_inner().result)
}

/// Through the one leader of a shard, so that all writes of a key are in one order.
pub(super) fn strong() -> WriteOrdering {
    WriteOrdering { r#type: WriteOrderingType::Strong.into() }
}

/// What the status of a collection says about reads and writes.
///
/// Yellow is one that is being optimized, grey one that will be: both work. Red is one whose shard or optimizer has
/// failed, for the lack of memory or disk for the most part: it still answers, and what it is given may stay undone.
pub(super) fn health(status: CollectionStatus) -> Result<Health, BackendError> {
    match status {
        CollectionStatus::Green | CollectionStatus::Yellow | CollectionStatus::Grey => Ok(Health::Healthy),
        CollectionStatus::Red => Ok(Health::ReadOnly),
        CollectionStatus::UnknownCollectionStatus => {
            Err(BackendError::transient("Qdrant does not say how the collection is").with_code("unknown_status"))
        }
    }
}

fn wanted(config: &QdrantConfig) -> CreateCollection {
    let params = VectorParams {
        size: config.dimension as u64,
        distance: distance(config.distance).into(),
        ..VectorParams::default()
    };
    let map = HashMap::from([(config.vector.clone(), params)]);
    let vectors = VectorsConfig { config: Some(Config::ParamsMap(VectorParamsMap { map })) };
    CreateCollection {
        collection_name: config.collection.clone(),
        vectors_config: Some(vectors),
        ..CreateCollection::default()
    }
}

fn distance(metric: Metric) -> Distance {
    match metric {
        Metric::Cosine => Distance::Cosine,
        Metric::Dot => Distance::Dot,
        Metric::Euclidean => Distance::Euclid,
    }
}

/// Whether a server of this version knows conditional updates.
pub(super) fn check_server(version: &str) -> Result<(), BackendError> {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    if version.is_some_and(|version| version >= OLDEST) {
        return Ok(());
    }
    let (major, minor) = OLDEST;
    let message = format!("Qdrant has no conditional updates before {major}.{minor}; update the server");
    Err(BackendError::transient(message).with_code("old_server"))
}

/// Whether records of this configuration go into this collection.
pub(super) fn check(found: &CollectionInfo, config: &QdrantConfig) -> Result<(), BackendError> {
    let params = found.config.as_ref().and_then(|config| config.params.as_ref());
    let vectors = params.and_then(|params| params.vectors_config.as_ref()?.config.as_ref());
    let vector = match vectors {
        Some(Config::ParamsMap(map)) => map.map.get(&config.vector),
        Some(Config::Params(_)) | None => None,
    };
    let name = &config.vector;
    let wrong = match vector {
        None => format!("it has no vector that is called `{name}`"),
        Some(vector) if vector.multivector_config.is_some() => {
            format!("its vector `{name}` is many vectors a point")
        }
        Some(vector) if vector.size != config.dimension as u64 => {
            let wanted = config.dimension;
            format!("its vector `{name}` has {} dimensions, and `dimension` is {wanted}", vector.size)
        }
        Some(vector) if vector.distance() != distance(config.distance) => {
            let (has, wanted) = (vector.distance().as_str_name(), distance(config.distance).as_str_name());
            format!("its vector `{name}` is compared by {has}, and `distance` is {wanted}")
        }
        Some(_) => return Ok(()),
    };
    let collection = &config.collection;
    let message =
        format!("the collection `{collection}` cannot be used: {wrong}; name another, or set it as this one has it");
    Err(BackendError::transient(message).with_code("unfit_collection"))
}
