mod actor;
mod cache;
mod level;
mod policy;

use super::{Access, BackendFacts};
use crate::backend::{Capabilities, Role};

pub(super) const GRAPH: Capabilities = Capabilities { vector_search: false, graph_traversal: true, exact_match: true };
pub(super) const VECTOR: Capabilities =
    Capabilities { vector_search: true, graph_traversal: false, exact_match: false };
pub(super) const NOTHING: Capabilities =
    Capabilities { vector_search: false, graph_traversal: false, exact_match: false };
pub(super) const EVERYTHING: Capabilities =
    Capabilities { vector_search: true, graph_traversal: true, exact_match: true };

pub(super) fn required(name: &'static str, capabilities: Capabilities, access: Access) -> BackendFacts {
    BackendFacts { name: name.into(), role: Role::Required, capabilities, access }
}

pub(super) fn best_effort(name: &'static str, capabilities: Capabilities, access: Access) -> BackendFacts {
    BackendFacts { name: name.into(), role: Role::BestEffort, capabilities, access }
}

/// The two stores of document 000.
pub(super) fn stores(graph: Access, vector: Access) -> Vec<BackendFacts> {
    vec![required("graph", GRAPH, graph), required("vector", VECTOR, vector)]
}
