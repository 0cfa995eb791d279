//! x

pub mod guard;
pub mod journal;
