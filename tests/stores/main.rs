//! The adapters on the servers that they are for, where `SEAWALL_SERVERS` says that there are any (see `servers`).

#[path = "../servers/mod.rs"]
mod servers;

mod handle;
mod neo4j;
mod qdrant;
mod redis_cache;
