//! Purges: held against a plain model, resumed, arrived in the middle of, on every kind of room and damage.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod arrivals;
mod as_planned;
mod batches;
mod defects;
mod foreign_keys;
mod full_text;
mod hostile_content;
mod locks;
mod memberships;
mod privacy;
mod purge;
mod redactions;
mod resume;
mod state_groups;
