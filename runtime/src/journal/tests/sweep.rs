//! Every step of the disk fails once; every byte and every length of a small journal is damaged once.
//!
//! `SEAWALL_SWEEP_STEP` sets the stride (1 takes all). The defaults fit the ordinary run.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;

use super::*;
use crate::guard::Step;

fn stride(otherwise: usize) -> usize {
    std::env::var("SEAWALL_SWEEP_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(otherwise)
}

/// Does the cases on several threads: most of a case is waiting.
fn in_parallel<T: Sync>(cases: &[T], threads: usize, judge: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    judge(case);
                }
            });
        }
    });
}
