use super::{EVERYTHING, GRAPH, NOTHING, VECTOR, best_effort, required, stores};
use crate::backend::Capability::{ExactMatch, GraphTraversal, VectorSearch};
use crate::fallback::Access::{None, ReadOnly, ReadWrite};
use crate::fallback::{DegradationLevel as Level, FallbackConfig, FallbackPolicy, Profile};

#[test]
fn a_graph_and_a_vector_store_have_the_four_levels_of_document_000() {
    for (graph, vector, level, number) in [
        (ReadWrite, ReadWrite, Level::Normal, 0),
        (None, ReadWrite, Level::NoGraph, 1),
        (ReadWrite, None, Level::NoVector, 2),
        (None, None, Level::InMemory, 3),
        (None, ReadOnly, Level::NoGraph, 1),
        (ReadOnly, None, Level::NoVector, 2),
        (ReadOnly, ReadWrite, Level::Reduced, 1),
        (ReadWrite, ReadOnly, Level::Reduced, 1),
        (ReadOnly, ReadOnly, Level::ReadOnly, 1),
    ] {
        let facts = stores(graph, vector);
        assert_eq!(Profile::of(&facts), Profile::Stores);
        assert_eq!(Level::of(&facts), level, "graph {graph:?}, vector {vector:?}");
        assert_eq!(level.number(Profile::Stores), number, "{level:?}");
    }
    assert!(!Level::NoGraph.offers(GraphTraversal) && Level::NoGraph.offers(VectorSearch));
    assert!(!Level::NoVector.offers(VectorSearch) && Level::NoVector.offers(GraphTraversal));
    assert!(Level::NoVector.offers(ExactMatch));
    assert!([ExactMatch, GraphTraversal, VectorSearch].iter().all(|c| !Level::InMemory.offers(*c)));
}

#[test]
fn an_embedded_engine_has_the_three_levels_of_document_001() {
    for capabilities in [EVERYTHING, NOTHING] {
        for (access, level, number) in
            [(ReadWrite, Level::Normal, 0), (ReadOnly, Level::ReadOnly, 1), (None, Level::InMemory, 2)]
        {
            let facts = [required("engine", capabilities, access)];
            assert_eq!(Profile::of(&facts), Profile::Engine);
            assert_eq!(Level::of(&facts), level);
            assert_eq!(level.number(Profile::Engine), number);
        }
    }
}

#[test]
fn a_best_effort_backend_never_changes_the_level() {
    for access in [ReadWrite, ReadOnly, None] {
        for (graph, vector) in [(ReadWrite, ReadWrite), (None, ReadWrite), (ReadOnly, None), (None, None)] {
            let without = stores(graph, vector);
            let mut with = without.clone();
            with.push(best_effort("copy", EVERYTHING, access));
            assert_eq!(Level::of(&with), Level::of(&without));
            assert_eq!(Profile::of(&with), Profile::of(&without));
        }
        assert_eq!(Level::of(&[best_effort("cache", NOTHING, access)]), Level::Normal);
    }
}

#[test]
fn a_capability_that_another_backend_offers_too_is_not_lost() {
    let two_graphs = |first| [required("a", GRAPH, first), required("b", GRAPH, ReadWrite)];
    assert_eq!(Level::of(&two_graphs(None)), Level::Reduced);
    // Nobody had vector search: it is not lost either.
    assert_eq!(Level::of(&[required("a", GRAPH, ReadWrite), required("b", NOTHING, None)]), Level::Reduced);
}

#[test]
fn a_further_store_that_still_answers_is_not_called_in_memory() {
    let facts = [required("graph", GRAPH, None), required("vector", VECTOR, None), required("kv", NOTHING, ReadWrite)];
    let level = Level::of(&facts);
    assert_eq!((level, level.number(Profile::Stores)), (Level::NoSearch, 2));
    assert!(!level.offers(GraphTraversal) && !level.offers(VectorSearch));
}

#[test]
fn a_profile_can_be_chosen_by_hand() {
    let config = FallbackConfig { profile: Some(Profile::Stores), ..FallbackConfig::default() };
    let policy = FallbackPolicy::new(config, vec![required("engine", EVERYTHING, ReadWrite)]);
    assert_eq!(policy.plan().profile, Profile::Stores);
}

#[test]
fn every_level_has_a_name_that_its_serialization_shares() {
    for level in Level::ALL {
        assert_eq!(serde_json::to_value(level).unwrap(), level.name());
        let words = level.words();
        assert!(!words.title.is_empty() && !words.offers.is_empty() && !words.limits.is_empty());
        for profile in [Profile::Stores, Profile::Engine] {
            assert_eq!(level.number(profile) == 0, level == Level::Normal);
        }
    }
}
