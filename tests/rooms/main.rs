//! What every room has and takes, and which rooms are meant: held against a plain model of the tables.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod listing;
mod model;
mod policies;
mod sets;
#[path = "../retention/town.rs"]
#[allow(dead_code)]
mod town;
