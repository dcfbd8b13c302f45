//! Work that outlives a call: a pool of threads, an alarm, and the ledger in which every job stands before it
//! starts.

pub mod alarm;
mod counts;
pub mod holds;
mod kept;
pub mod ledger;
pub mod many;
pub mod media;
pub mod pool;
pub mod reading;
pub mod receipts;
mod record;
pub mod register;
pub mod removed;
pub mod room_sets;
mod running;
pub mod schedule;
mod schema;
