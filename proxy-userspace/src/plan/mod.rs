//! From what should be ([`crate::model`]) and what is ([`Actual`]) to ordered writes ([`Step`]). Pure.

pub mod actual;
pub mod step;

pub use actual::{Actual, Capacity};
pub use step::Step;
