//! Deleted rooms: what goes, what stays, who is moved.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod deletion;
#[cfg(feature = "events")]
mod shutdown;
