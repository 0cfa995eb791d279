//! All embeddings as the rows of one matrix, and the scan over it.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use seawall_actors::backend::BackendError;
use seawall_actors::record::{Embedding, Key, Record};

use super::Metric;
use crate::backends::records::Index;

/// Sums that are kept side by side, so that the compiler can add them with vector instructions.
const LANES: usize = 16;

/// The embeddings of a store. Row `n` of the matrix belongs to `keys[n]`.
pub(super) struct VectorIndex {
    metric: Metric,
    configured: Option<usize>,
    dimension: Option<usize>,
    keys: Vec<Key>,
    rows: HashMap<Key, usize>,
    matrix: Vec<f32>,
    /// One over the length of each row; 0 for a row without length.
    inverse_norms: Vec<f32>,
}

impl VectorIndex {
    pub(super) fn new(metric: Metric, dimension: Option<usize>) -> Self {
        Self {
            metric,
            configured: dimension,
            dimension,
            keys: Vec::new(),
            rows: HashMap::new(),
            matrix: Vec::new(),
            inverse_norms: Vec::new(),
        }
    }

    /// What every embedding must have, if that is settled.
    pub(super) fn dimension(&self) -> Option<usize> {
        self.dimension
    }

    /// The `limit` rows nearest to a point of the right dimension that are to be kept, best first.
    pub(super) fn nearest(&self, point: &[f32], limit: usize, keep: impl Fn(&Key) -> bool) -> Vec<(&Key, f32)> {
        let mut best = Best { limit, heap: BinaryHeap::new(), floor: f32::NEG_INFINITY };
        let offers = |score, key| best.offer(score, key, &keep);
        match self.metric {
            Metric::Dot => self.scan(|_, row| dot(row, point), offers),
            Metric::Euclidean => self.scan(|_, row| 0.0 - distance_squared(row, point).sqrt(), offers),
            Metric::Cosine => {
                let inverse = inverse_norm(point);
                self.scan(|n, row| dot(row, point) * inverse * self.inverse_norms[n], offers);
            }
        }
        best.into_sorted()
    }

    fn scan<'a>(&'a self, score: impl Fn(usize, &[f32]) -> f32, mut offer: impl FnMut(f32, &'a Key)) {
        let Some(dimension) = self.dimension else { return };
        for (n, (row, key)) in self.matrix.chunks_exact(dimension).zip(&self.keys).enumerate() {
            offer(score(n, row), key);
        }
    }

    fn insert(&mut self, key: &Key, embedding: &[f32]) {
        if let Some(&n) = self.rows.get(key) {
            let start = n * embedding.len();
            self.matrix[start..start + embedding.len()].copy_from_slice(embedding);
            self.inverse_norms[n] = inverse_norm(embedding);
            return;
        }
        self.dimension = Some(embedding.len());
        self.rows.insert(key.clone(), self.keys.len());
        self.keys.push(key.clone());
        self.matrix.extend_from_slice(embedding);
        self.inverse_norms.push(inverse_norm(embedding));
    }

    /// The last row takes the place of the one that goes.
    fn remove(&mut self, key: &Key) {
        let (Some(n), Some(dimension)) = (self.rows.remove(key), self.dimension) else { return };
        let last = self.keys.len() - 1;
        self.matrix.copy_within(last * dimension.., n * dimension);
        self.matrix.truncate(last * dimension);
        self.inverse_norms.swap_remove(n);
        self.keys.swap_remove(n);
        if let Some(moved) = self.keys.get(n) {
            self.rows.insert(moved.clone(), n);
        } else if self.keys.is_empty() {
            self.dimension = self.configured;
        }
    }
}

impl Index for VectorIndex {
    /// The dimension that embeddings must have.
    type Draft = Option<usize>;

    fn emptied(&self) -> Self {
        Self::new(self.metric, self.configured)
    }

    fn draft(&self) -> Option<usize> {
        self.dimension
    }

    fn admit(dimension: &mut Option<usize>, record: &Record) -> Result<(), BackendError> {
        let Some(embedding) = &record.embedding else { return Ok(()) };
        check_embedding(embedding, *dimension)?;
        *dimension = Some(embedding.dimension());
        Ok(())
    }

    fn replace(&mut self, key: &Key, _: Option<&Record>, after: Option<&Record>) {
        match after.and_then(|record| record.embedding.as_ref()) {
            Some(embedding) => self.insert(key, embedding.as_slice()),
            None => self.remove(key),
        }
    }
}

/// Whether an embedding can be stored here or compared with what is.
pub(in crate::backends) fn check_embedding(embedding: &Embedding, expected: Option<usize>) -> Result<(), BackendError> {
    let dimension = embedding.dimension();
    if dimension == 0 || expected.is_some_and(|expected| dimension != expected) {
        let expected = expected.map_or("at least 1".to_owned(), |expected| expected.to_string());
        let message = format!("an embedding has {dimension} dimensions, the store has {expected}");
        return Err(BackendError::permanent(message).with_code("wrong_dimension"));
    }
    if !embedding.as_slice().iter().all(|x| x.is_finite()) {
        let message = "an embedding has a component that is NaN or infinite";
        return Err(BackendError::permanent(message).with_code("not_finite"));
    }
    Ok(())
}

/// The best that were offered so far.
struct Best<'a> {
    limit: usize,
    heap: BinaryHeap<Reverse<Candidate<'a>>>,
    /// The score of the worst that is kept, once there are as many as asked for.
    floor: f32,
}

impl<'a> Best<'a> {
    /// Asks whether a key is to be kept only when its score would do.
    fn offer(&mut self, score: f32, key: &'a Key, keep: impl Fn(&Key) -> bool) {
        // Components that are finite can still multiply to infinities, and those cancel to no number.
        let score = if score.is_nan() { f32::NEG_INFINITY } else { score };
        // Not `<=`: an equal score may win by its key.
        if score < self.floor || self.limit == 0 {
            return;
        }
        let candidate = Reverse(Candidate { score, key });
        let full = self.heap.len() >= self.limit;
        if full && self.heap.peek().is_some_and(|worst| candidate >= *worst) || !keep(key) {
            return;
        }
        if full {
            self.heap.pop();
        }
        self.heap.push(candidate);
        if self.heap.len() >= self.limit {
            self.floor = self.heap.peek().map_or(self.floor, |Reverse(worst)| worst.score);
        }
    }

    fn into_sorted(self) -> Vec<(&'a Key, f32)> {
        let sorted = self.heap.into_sorted_vec();
        sorted.into_iter().map(|Reverse(candidate)| (candidate.key, candidate.score)).collect()
    }
}

/// Greater is better: a higher score, then a lower key.
struct Candidate<'a> {
    score: f32,
    key: &'a Key,
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.key.cmp(self.key))
    }
}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate<'_> {}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_pairs(a, b, |x, y| x * y)
}

fn distance_squared(a: &[f32], b: &[f32]) -> f32 {
    sum_pairs(a, b, |x, y| (x - y) * (x - y))
}

fn inverse_norm(a: &[f32]) -> f32 {
    let norm = dot(a, a).sqrt();
    if norm > 0.0 { norm.recip() } else { 0.0 }
}

/// The sum of `f` over both, in [`LANES`] sums side by side.
fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (xs, ys) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += f(xs[lane], ys[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| f(*x, *y)).sum();
    sums.iter().sum::<f32>() + rest
}
