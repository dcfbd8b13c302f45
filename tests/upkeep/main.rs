//! The whole server: state that is swept and compressed, media that nothing refers to, what is wrong and mended.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

#[allow(dead_code)]
#[path = "../support/child.rs"]
mod child;
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod compress;
mod media;
mod repair;
mod sweep;
