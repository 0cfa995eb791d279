//! The suite itself: what is right passes, and everything that is wrong is caught by the property that names it.

mod embedded;
mod flawed;

use std::collections::BTreeSet;

use super::{Property, Report, check};
use flawed::{Flaw, Flawed};

async fn broken_by(flaw: Option<Flaw>) -> (BTreeSet<Property>, Report) {
    let report = check(&Flawed::with(flaw)).await;
    (report.broken().map(|finding| finding.property).collect(), report)
}

#[tokio::test(start_paused = true)]
async fn a_backend_without_a_flaw_has_every_property() {
    let (broken, report) = broken_by(None).await;
    assert!(broken.is_empty(), "{report}");
    let skipped = report.findings.iter().filter(|finding| format!("{finding}").starts_with("skipped"));
    let skipped: Vec<_> = skipped.map(|finding| finding.property).collect();
    assert_eq!(skipped, [Property::MissingCapabilities], "{report}");
}

#[tokio::test(start_paused = true)]
async fn every_flaw_is_caught_by_the_property_that_names_it() {
    let mut missed = Vec::new();
    for (flaw, property) in Flaw::ALL {
        let (broken, _) = broken_by(Some(*flaw)).await;
        if !broken.contains(property) {
            missed.push(format!("{flaw:?} is caught by {broken:?} and not by {property:?}"));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[tokio::test(start_paused = true)]
async fn every_property_that_can_be_tried_here_has_a_flaw_that_breaks_it() {
    let caught: BTreeSet<_> = Flaw::ALL.iter().map(|(_, property)| *property).collect();
    let never: Vec<_> = Property::ALL.iter().filter(|property| !caught.contains(property)).collect();
    assert!(never.is_empty(), "nothing shows that these can fail: {never:?}");
}

#[tokio::test(start_paused = true)]
async fn a_seed_that_is_given_again_gives_the_same_finding() {
    let flawed = Flawed::with(Some(Flaw::NoFence));
    let (one, other) = (Property::RandomWrites.check(&flawed).await, Property::RandomWrites.check(&flawed).await);
    assert!(one.to_string().contains("seed 7") && one == other, "{one}\n{other}");
}
