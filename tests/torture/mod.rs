//! A service that is cut off in the middle of its work, and what has to be true afterwards.
//!
//! ```text
//! writer.rs    the service: a process that writes, and says what it asks and what it is told
//! process.rs   starting it, following it, stopping and killing it
//! told.rs      what it was told, and the judgement over what is there in the end
//! site.rs      the stores and the runtime in a directory
//! rounds.rs    kill, open, drain, compare, and again
//! ```
//!
//! The program `torture` and the test `kills` kill it, the test `power_loss` takes its power away.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "every program uses its part of this room")]

pub mod process;
pub mod rounds;
pub mod site;
pub mod told;
pub mod writer;

pub use process::Process;
pub use told::{Figures, Told};
pub use writer::Scene;
