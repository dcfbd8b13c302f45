//! Undo and proof: archives and what comes back from them, holds, receipts that are carried out again, residue.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

#[allow(dead_code)]
#[path = "../support/child.rs"]
mod child;
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod archive;
mod archive_faults;
mod archive_rooms;
mod holds;
mod replay;
mod residue;
