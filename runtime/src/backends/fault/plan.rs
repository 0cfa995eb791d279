//! Faults by chance, the same ones for the same seed.

use super::{Fault, Op, Ops};

/// How likely which faults are.
///
/// Each call draws once; the chances of what can happen to it add up, to 1 at the most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPlan {
    chances: Vec<(Ops, f64, Fault)>,
}

impl FaultPlan {
    /// No faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With this fault for this share of these calls, 0 to 1.
    #[must_use]
    pub fn with(mut self, ops: impl Into<Ops>, chance: f64, fault: Fault) -> Self {
        self.chances.push((ops.into(), chance, fault));
        self
    }

    fn pick(&self, op: Op, mut drawn: f64) -> Option<Fault> {
        for (ops, chance, fault) in &self.chances {
            if ops.has(op) {
                if drawn < *chance {
                    return Some(*fault);
                }
                drawn -= chance;
            }
        }
        None
    }
}

/// A plan and where it is. The draw of a call depends on the seed, on what is called and on how often that was
/// called before, not on what else goes on: concurrent calls of other kinds do not change it.
#[derive(Debug, Default)]
pub(super) struct Seeded {
    pub(super) seed: u64,
    pub(super) plan: FaultPlan,
}

impl Seeded {
    pub(super) fn draw(&self, op: Op, nth: u64) -> Option<Fault> {
        if self.plan.chances.is_empty() {
            return None;
        }
        let stream = nth.wrapping_mul(Op::ALL.len() as u64).wrapping_add(op as u64);
        // Far apart, so that neighbouring calls do not begin with related states.
        let mut rng = fastrand::Rng::with_seed(self.seed ^ stream.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        self.plan.pick(op, rng.f64())
    }
}
