//! Shutting rooms down and deleting them (behaviour.md sections 5 and 6).
//!
//! A deletion blocks the room first, where that was asked for, and then looks whether the room is known (D-4, D-5). Only
//! then its people are moved: `shutdown` takes the room's lock and the writer for each of its
//! transactions itself, tells what it has done so far, and picks up again what an interrupted run has told. What remains
//! is rows.

mod aliases;
mod author;
mod delegate;
#[cfg(all(test, feature = "events"))]
mod faults;
#[cfg(all(test, feature = "events"))]
mod flips;
mod members;
mod new_room;
mod plan;
mod request;
mod rows;
mod run;
mod shutdown;

pub(crate) use delegate::{drop_surplus_extremities, set_block};
pub use plan::{Beside, Plan, bind, plan, warnings};
pub use request::{Request, Shutdown};
pub use rows::prepare_many;
pub use run::{DeletionScope, SHUTDOWN_ROOM, refuse_at_start, run};
pub use shutdown::Setting;
