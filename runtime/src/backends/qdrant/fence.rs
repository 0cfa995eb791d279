//! Writing under the fence: what is sent, and what the points that are read back say of it.

use std::collections::HashMap;

use qdrant_client::qdrant::{Filter, PointId, PointStruct, UpsertPoints};
use seawall_actors::backend::{Applied, BackendError, Fence, FencedWrite, Stored};
use seawall_actors::operation::{Change, Version};
use seawall_actors::record::{Key, Record};
use uuid::Uuid;

use super::error::{completed, judge};
use super::point::{self, Author, Head, Over};
use super::{QdrantBackend, collection, server_timeout};
use crate::backends::records::{admit_nesting, after};
use crate::backends::vector::check_embedding;

/// How often a merge is begun anew because somebody else was faster.
const ROUNDS: usize = 8;
/// How deep a property may nest: the JSON of a record has two levels more, and is read to 127.
const NESTING: usize = 120;

/// One write of a request, and how far it is.
struct Part<'a> {
    write: &'a FencedWrite,
    left: Vec<&'a Change>,
    applied: Applied,
    failed: Option<BackendError>,
}

impl<'a> Part<'a> {
    fn of(write: &'a FencedWrite) -> Self {
        Self { write, left: write.changes.iter().collect(), applied: Applied::default(), failed: None }
    }

    fn is_open(&self) -> bool {
        self.failed.is_none() && !self.left.is_empty()
    }

    /// A round of it failed. What was done in an earlier one is done, whatever becomes of this one.
    fn fail(&mut self, error: &BackendError) {
        let partly = self.left.len() < self.write.changes.len();
        self.failed = Some(if partly { unconfirmed(error) } else { error.clone() });
    }

    fn end(self) -> Result<Applied, BackendError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.left.is_empty() => Ok(self.applied),
            None => Err(contended(self.write)),
        }
    }
}

impl QdrantBackend {
    /// Applies writes of which no two are about the same key. Gives an answer for each, in their order.
    pub(super) async fn apply_fenced(&self, writes: &[&FencedWrite]) -> Vec<Result<Applied, BackendError>> {
        let mut parts: Vec<Part<'_>> = writes.iter().map(|write| Part::of(write)).collect();
        for _ in 0..ROUNDS {
            let mut open: Vec<&mut Part<'_>> = parts.iter_mut().filter(|part| part.is_open()).collect();
            if open.is_empty() {
                break;
            }
            if let Err(error) = self.send(&mut open).await {
                open.into_iter().filter(|part| part.is_open()).for_each(|part| part.fail(&error));
            }
        }
        parts.into_iter().map(Part::end).collect()
    }

    /// Sends what is left of some writes in one request, and leaves what somebody else was faster with.
    ///
    /// # Errors
    /// What became of all that is left.
    async fn send(&self, parts: &mut [&mut Part<'_>]) -> Result<(), BackendError> {
        let left = parts.iter().flat_map(|part| part.left.iter());
        let merged: Vec<&Key> = left.filter(|change| !change.is_full()).map(|change| change.key()).collect();
        let before = self.held(&merged).await?;
        let attempt = Uuid::now_v7().to_string();
        let mut points = Vec::new();
        let mut rounds = Vec::with_capacity(parts.len());
        for part in &mut *parts {
            let planned = Round::plan(part.write, &part.left, &before, &attempt, &self.config.vector);
            rounds.push(planned.map_err(|error| part.fail(&error)).ok().map(|mut round| {
                points.append(&mut round.points);
                round
            }));
        }
        let sent: Vec<(&FencedWrite, &[(PointId, Over)])> = parts
            .iter()
            .zip(&rounds)
            .filter_map(|(part, round)| Some((part.write, &round.as_ref()?.over[..])))
            .filter(|(_, over)| !over.is_empty())
            .collect();
        let mut there = HashMap::new();
        if !points.is_empty() {
            self.upsert(points, point::condition(&sent)).await?;
            let written = rounds.iter().flatten().flat_map(|round| &round.written);
            let keys: Vec<&Key> = written.map(|change| change.key()).collect();
            there = self.heads(&keys).await?;
        }
        for (part, round) in parts.iter_mut().zip(rounds) {
            let Some(round) = round else { continue };
            part.applied.superseded_by = part.applied.superseded_by.max(round.superseded_by);
            part.left.clear();
            for change in round.written {
                match judge_write(part.write, change, &attempt, there.get(change.key())) {
                    Written::Done => {}
                    Written::Superseded(held) => {
                        part.applied.superseded_by = part.applied.superseded_by.max(Some(held));
                    }
                    Written::Outrun => part.left.push(change),
                    Written::Lost => part.failed = Some(lost()),
                }
            }
        }
        Ok(())
    }

    async fn upsert(&self, points: Vec<PointStruct>, condition: Filter) -> Result<(), BackendError> {
        let request = UpsertPoints {
            collection_name: self.config.collection.clone(),
            wait: Some(true),
            points,
            ordering: Some(collection::strong()),
            update_filter: Some(condition),
            timeout: Some(server_timeout(self.config.timeout)),
            ..UpsertPoints::default()
        };
        let answer = self.client.points().upsert(request).await.map_err(|status| judge(&status))?;
        completed(answer.into_inner().result)
    }

    /// Whose write the points of these keys are. An error here says nothing of the write that was done before.
    async fn heads(&self, keys: &[&Key]) -> Result<HashMap<Key, Head>, BackendError> {
        let found = self.get(keys, point::head()).await.map_err(|error| unconfirmed(&error))?;
        found.iter().map(|found| point::decode_head(&found.payload)).collect()
    }
}

/// Whether the store can take these changes at all.
///
/// # Errors
/// Permanent.
pub(super) fn admit(write: &FencedWrite, dimension: usize) -> Result<(), BackendError> {
    for change in write.changes.iter() {
        let merged;
        let record = match change {
            Change::Put(record) => record,
            Change::Merge { key, properties } => {
                merged = Record::new(key.clone()).with_properties(properties.clone());
                &merged
            }
            Change::Delete { .. } => continue,
        };
        admit_nesting(record, NESTING)?;
        if let Some(embedding) = &record.embedding {
            check_embedding(embedding, Some(dimension))?;
        }
    }
    Ok(())
}

/// What is sent in one request.
struct Round<'a> {
    points: Vec<PointStruct>,
    over: Vec<(PointId, Over)>,
    written: Vec<&'a Change>,
    /// What stands in the way of merges that are not sent.
    superseded_by: Option<Version>,
}

impl<'a> Round<'a> {
    /// Full changes go by the fence, and the server decides. Merges go over what they were merged with.
    fn plan(
        write: &FencedWrite,
        changes: &[&'a Change],
        before: &HashMap<Key, (Head, Stored)>,
        attempt: &str,
        vector: &str,
    ) -> Result<Self, BackendError> {
        let mut round = Self { points: Vec::new(), over: Vec::new(), written: Vec::new(), superseded_by: None };
        let author = Author { operation: write.operation, version: write.version, attempt };
        for &change in changes {
            let key = change.key();
            let held = before.get(key);
            let over = match held {
                _ if change.is_full() => Over::Fence,
                Some((head, _)) if !write.passes(head.version) => {
                    round.superseded_by = round.superseded_by.max(Some(head.version));
                    continue;
                }
                Some((head, _)) => Over::Seen(Some(head.attempt.clone())),
                None => Over::Seen(None),
            };
            let after = after(change, held.map(|(_, stored)| stored));
            round.points.push(point::encode(key, after.as_ref(), &author, vector)?);
            round.over.push((point::id(key), over));
            round.written.push(change);
        }
        Ok(round)
    }
}

/// What became of one change.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Done,
    Superseded(Version),
    /// Somebody else has written since it was read.
    Outrun,
    /// Neither it nor what could stand in its way is there.
    Lost,
}

/// Judges one change of a request that is completed by what is there after it.
fn judge_write(write: &FencedWrite, change: &Change, attempt: &str, there: Option<&Head>) -> Written {
    let Some(there) = there else { return Written::Lost };
    if there.attempt == attempt {
        return Written::Done;
    }
    if !write.passes(there.version) {
        return Written::Superseded(there.version);
    }
    if !change.is_full() {
        return Written::Outrun;
    }
    // A compensation that was sent twice: the other one came after this one, and they say the same.
    if write.fence == Fence::Compensation && there.version == write.version {
        return Written::Done;
    }
    Written::Lost
}

/// The server was put back to an older state between the write and the look at it, or a replica has not heard of it.
fn lost() -> BackendError {
    BackendError::unknown("what was written to Qdrant is not there any more").with_code("not_there")
}

/// An error after something was done, or after it was sent.
fn unconfirmed(error: &BackendError) -> BackendError {
    let unknown = BackendError::unknown(format!("a part is done, and of the rest nobody knows: {}", error.message));
    match &error.code {
        Some(code) => unknown.with_code(code.clone()),
        None => unknown,
    }
}

/// Of several changes, some may have gone through.
fn contended(write: &FencedWrite) -> BackendError {
    let message = "others write the same record all the time";
    let error = if write.changes.len() > 1 { BackendError::unknown(message) } else { BackendError::refused(message) };
    error.with_code("contended")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use seawall_actors::backend::ErrorKind;
    use seawall_actors::operation::OperationId;
    use seawall_actors::record::Properties;

    use super::*;

    fn write(fence: Fence, changes: impl Into<Arc<[Change]>>) -> FencedWrite {
        FencedWrite { operation: OperationId::generate(), version: Version(5), fence, changes: changes.into() }
    }

    #[test]
    fn what_is_read_back_tells_what_became_of_a_change() {
        let put = Change::put(Record::new("a"));
        let merge = Change::Merge { key: "a".into(), properties: Properties::new() };
        let judged = |fence, change: &Change, there: Option<(u64, &str)>| {
            let there = there.map(|(version, attempt)| Head { version: Version(version), attempt: attempt.to_owned() });
            judge_write(&write(fence, [change.clone()]), change, "ours", there.as_ref())
        };
        use Fence::{Compensation, Write};
        for change in [&put, &merge] {
            for fence in [Write, Compensation] {
                assert_eq!(judged(fence, change, Some((5, "ours"))), Written::Done);
                assert_eq!(judged(fence, change, Some((6, "other"))), Written::Superseded(Version(6)));
                assert_eq!(judged(fence, change, None), Written::Lost);
            }
            // It came before, or was taken back before it came.
            assert_eq!(judged(Write, change, Some((5, "other"))), Written::Superseded(Version(5)));
        }
        assert_eq!(judged(Compensation, &put, Some((5, "other"))), Written::Done);
        // The write that it takes back has landed since it was read.
        assert_eq!(judged(Compensation, &merge, Some((5, "other"))), Written::Outrun);
        assert_eq!(judged(Write, &merge, Some((4, "other"))), Written::Outrun);
        // The server is older than it was when it took the write.
        assert_eq!(judged(Write, &put, Some((4, "other"))), Written::Lost);
    }

    #[test]
    fn where_a_part_is_done_nothing_is_said_not_to_have_happened() {
        let merge = |key: &str| Change::Merge { key: key.into(), properties: Properties::new() };
        assert_eq!(contended(&write(Fence::Write, [merge("a")])).kind, ErrorKind::Refused);
        assert_eq!(contended(&write(Fence::Write, [merge("a"), merge("b")])).kind, ErrorKind::Unknown);
        for error in [BackendError::transient("x").with_code("unreachable"), BackendError::permanent("x")] {
            let told = unconfirmed(&error);
            assert_eq!((told.kind, told.code), (ErrorKind::Unknown, error.code));
        }
        assert_eq!(lost().kind, ErrorKind::Unknown);
    }
}
