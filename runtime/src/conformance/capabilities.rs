//! What a backend says that it can be asked for, and what it says that it cannot.

use super::Subject;
use super::ground::{Checked, Failure, Ground, delete, ensure, merge, record, records_alike, told, write};
use crate::backend::{BackendError, Capability, ErrorKind};
use crate::operation::{Direction, Hit, Search, Traversal};
use crate::record::{Properties, Record};

async fn capable(subject: &dyn Subject, of: Capability) -> Checked<Ground> {
    let ground = Ground::open(subject).await?;
    match ground.backend.capabilities().has(of) {
        true => Ok(ground),
        false => Err(Failure::Skipped("it does not say that it can")),
    }
}

fn hits(what: &str, result: Result<Vec<Hit>, BackendError>) -> Checked<Vec<Hit>> {
    result.map_err(|error| Failure::Broken(format!("{what} fails: {error}")))
}

fn keys(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.record.key.as_str()).collect()
}

/// The hits are these, in any order.
fn are(what: &str, found: &[Hit], expected: &[&str]) -> Checked {
    let (mut found, mut expected) = (keys(found), expected.to_vec());
    found.sort_unstable();
    expected.sort_unstable();
    ensure!(found == expected, "{what} finds {found:?} and not {expected:?}");
    Ok(())
}

pub(super) async fn find(subject: &dyn Subject) -> Checked {
    let ground = capable(subject, Capability::ExactMatch).await?;
    let person = |key: &str, name: &str, age: u32| Record::new(key).with("name", name).with("age", age);
    let tagged = person("c", "Ada", 36).with("tags", vec!["x", "y"]).with("it's", true);
    for (n, record) in (1..).zip([person("a", "Ada", 36), person("b", "Bob", 36), tagged.clone(), record("d", 1)]) {
        ground.put(n, &record).await?;
    }
    let find = async |filter: Properties, limit: usize| hits("a find", ground.backend.find(&filter, limit).await);
    let none = Properties::new;
    let adas = find(none().with("name", "Ada"), 10).await?;
    are("a find by a name", &adas, &["a", "c"])?;
    let hit = adas.iter().find(|hit| hit.record.key.as_str() == "c");
    let whole = hit.is_some_and(|hit| records_alike(&hit.record, &tagged) && hit.version.0 == 3);
    ensure!(whole, "a find does not give the whole record with its version");
    are("a find by two properties", &find(none().with("name", "Ada").with("age", 36), 10).await?, &["a", "c"])?;
    are("a find by two properties", &find(none().with("name", "Bob").with("age", 35), 10).await?, &[])?;
    are("a find by a number", &find(none().with("age", 36), 10).await?, &["a", "b", "c"])?;
    are("a find by a text like a number", &find(none().with("age", "36"), 10).await?, &[])?;
    are("a find by a list", &find(none().with("tags", vec!["x", "y"]), 10).await?, &["c"])?;
    are("a find by a part of a list", &find(none().with("tags", vec!["x"]), 10).await?, &[])?;
    are("a find by an odd name", &find(none().with("it's", true), 10).await?, &["c"])?;
    are("a find by what nobody has", &find(none().with("nothing", 1), 10).await?, &[])?;
    let limited = find(none().with("age", 36), 2).await?.len();
    ensure!(limited == 2, "a find of at most 2 of 3 gives {limited}");
    ground.told(&write(5, [delete("a"), merge("b", none().with("name", "Ada"))]), None).await?;
    are("a find after a delete and a merge", &find(none().with("name", "Ada"), 10).await?, &["b", "c"])
}

/// A point on the unit circle of the first two dimensions, by its angle: near is near in every metric.
fn point(dimension: usize, angle: f32) -> Vec<f32> {
    let mut point = vec![0.0; dimension.max(2)];
    point[0] = angle.cos();
    point[1] = angle.sin();
    point
}

pub(super) async fn search(subject: &dyn Subject) -> Checked {
    let ground = capable(subject, Capability::VectorSearch).await?;
    let dimension = subject.dimension();
    let at = |angle: f32| point(dimension, angle);
    let placed = |key: &str, angle: f32| record(key, 1).with_embedding(at(angle));
    let colours = [("far", 1.4, "red"), ("near", 0.1, "red"), ("between", 0.6, "blue"), ("here", 0.0, "blue")];
    for (n, (key, angle, colour)) in (1..).zip(colours) {
        ground.put(n, &placed(key, angle).with("colour", colour)).await?;
    }
    ground.put(5, &record("nowhere", 1)).await?;
    let search = async |search: Search| hits("a search", ground.backend.search(&search).await);
    let in_order = |what: &str, found: &[Hit], expected: &[&str]| {
        ensure!(keys(found) == expected, "{what} finds {:?} and not {expected:?}", keys(found));
        let ordered = found.windows(2).all(|pair| pair[0].score >= pair[1].score);
        ensure!(ordered, "{what} does not give its hits best first");
        Ok(())
    };
    let all = search(Search::near(at(0.0))).await?;
    in_order("a search near a point", &all, &["here", "near", "between", "far"])?;
    let near = placed("near", 0.1).with("colour", "red");
    let whole = all.get(1).is_some_and(|hit| records_alike(&hit.record, &near) && hit.version.0 == 2);
    ensure!(whole, "a search does not give the whole record with its version");
    in_order("a search for 2", &search(Search::near(at(1.4)).limit(2)).await?, &["far", "between"])?;
    let red = search(Search::near(at(0.0)).filter("colour", "red")).await?;
    in_order("a search with a filter", &red, &["near", "far"])?;
    let limited = search(Search::near(at(0.0)).filter("colour", "red").limit(1)).await?;
    in_order("a search with a filter for 1", &limited, &["near"])?;
    in_order("a search for what nobody is", &search(Search::near(at(0.0)).filter("colour", "no")).await?, &[])?;
    in_order("a search near a key", &search(Search::like("near").limit(2)).await?, &["here", "between"])?;
    for key in ["nowhere", "never"] {
        let found = ground.backend.search(&Search::like(key)).await;
        let permanent = found.as_ref().is_err_and(|error| error.kind == ErrorKind::Permanent);
        ensure!(permanent, "a search near a key without an embedding is told as {}", told(&found));
    }
    ground.told(&write(6, [delete("near"), merge("here", Properties::new().with("colour", "red"))]), None).await?;
    ground.put(7, &placed("far", 0.2).with("colour", "red")).await?;
    ground.put(8, &record("between", 8)).await?;
    in_order("a search after changes", &search(Search::near(at(0.0))).await?, &["here", "far"])?;
    in_order("a search after changes", &search(Search::near(at(0.0)).filter("colour", "blue")).await?, &[])
}

pub(super) async fn traverse(subject: &dyn Subject) -> Checked {
    let ground = capable(subject, Capability::GraphTraversal).await?;
    let related = |key: &str, to: &[(&str, &str)]| {
        to.iter().fold(record(key, 1), |record, (kind, to)| record.with_relation(*kind, *to))
    };
    let b = related("b", &[("x", "d"), ("x", "nobody")]);
    ground.put(1, &related("a", &[("x", "b"), ("y", "c"), ("x", "a")])).await?;
    ground.put(2, &b).await?;
    ground.put(3, &related("c", &[("odd `kind`", "e")])).await?;
    ground.put(4, &related("d", &[("x", "a")])).await?;
    ground.put(5, &related("e", &[])).await?;
    let walk = async |walk: Traversal| {
        let found = hits("a traversal", ground.backend.traverse(&walk).await)?;
        let nearest_first = found.windows(2).all(|pair| pair[0].score <= pair[1].score);
        ensure!(nearest_first, "a traversal does not give its hits nearest first");
        ensure!(found.iter().all(|hit| hit.via.is_some()), "a traversal does not say by which relation it came");
        Ok(found)
    };
    let steps = |found: &[Hit]| found.iter().map(|hit| hit.score as u32).collect::<Vec<_>>();
    are("one step", &walk(Traversal::from("a")).await?, &["b", "c"])?;
    let far = walk(Traversal::from("a").depth(5)).await?;
    are("a walk around a cycle", &far, &["b", "c", "d", "e"])?;
    ensure!(steps(&far) == [1, 1, 2, 2], "a walk counts the steps {:?} and not [1, 1, 2, 2]", steps(&far));
    let hit = far.iter().find(|hit| hit.record.key.as_str() == "b");
    let whole = hit.is_some_and(|hit| records_alike(&hit.record, &b) && hit.version.0 == 2);
    ensure!(whole, "a traversal does not give the whole record with its version");
    are("two steps", &walk(Traversal::from("b").depth(2)).await?, &["a", "d"])?;
    are("a walk along one kind", &walk(Traversal::from("a").depth(5).along("x")).await?, &["b", "d"])?;
    let both = walk(Traversal::from("a").depth(5).along("y").along("odd `kind`")).await?;
    are("a walk along two kinds", &both, &["c", "e"])?;
    are("a walk along no known kind", &walk(Traversal::from("a").along("z")).await?, &[])?;
    are("a walk back", &walk(Traversal::from("a").direction(Direction::Incoming)).await?, &["d"])?;
    are("a walk both ways", &walk(Traversal::from("a").direction(Direction::Both)).await?, &["b", "c", "d"])?;
    let first = walk(Traversal::from("a").depth(5).limit(2)).await?;
    are("a walk for the nearest 2", &first, &["b", "c"])?;
    are("a walk from nowhere", &walk(Traversal::from("never")).await?, &[])?;
    ground.told(&write(6, [delete("b"), merge("c", Properties::new().with("n", 2))]), None).await?;
    are("a walk after a delete and a merge", &walk(Traversal::from("a").depth(5)).await?, &["c", "e"])?;
    ground.put(7, &related("a", &[("y", "e")])).await?;
    are("a walk after relations were replaced", &walk(Traversal::from("a").depth(5)).await?, &["e"])?;
    ground.put(8, &related("b", &[("x", "c")])).await?;
    are("a walk from what came back", &walk(Traversal::from("b")).await?, &["c"])
}

pub(super) async fn missing(subject: &dyn Subject) -> Checked {
    let ground = Ground::open(subject).await?;
    ground.put(1, &record("a", 1)).await?;
    let can = ground.backend.capabilities();
    let mut answers = Vec::new();
    if !can.exact_match {
        answers.push(("find", ground.backend.find(&Properties::new().with("n", 1), 10).await));
    }
    if !can.vector_search {
        answers.push(("search", ground.backend.search(&Search::near(point(subject.dimension(), 0.0))).await));
    }
    if !can.graph_traversal {
        answers.push(("traverse", ground.backend.traverse(&Traversal::from("a")).await));
    }
    if answers.is_empty() {
        return Err(Failure::Skipped("there is nothing that it cannot do"));
    }
    for (what, answer) in answers {
        let permanent = answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Permanent);
        ensure!(permanent, "{what}, which it says that it cannot do, is told as {}", told(&answer));
    }
    Ok(())
}
