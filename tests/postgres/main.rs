//! What only PostgreSQL has: its connections, keys, races and texts.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

#![cfg(feature = "postgres")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code)]
#[path = "../source/mod.rs"]
mod source;

mod connections;
mod keys;
mod races;
mod rooms;
mod texts;
