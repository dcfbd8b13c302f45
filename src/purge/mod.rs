//! History purges (behaviour.md section 4): what a request would remove, and removing it in batches.

mod compress;
mod extremities;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod flips;
mod plan;
mod request;
mod rewrite;
mod run;
mod state_groups;
mod sweep;
mod together;

pub use compress::{compress_room, needs_stopped, plan_compress};
pub use extremities::{extremities_note, local_messages_note};
pub use plan::{
    Extremities, Plan, Setting, bind, content_bytes, foreign_key_mode, plan, selection,
};
pub use request::Request;
pub use run::{prepare_many, run};
pub(crate) use state_groups::group_of_step;
pub use sweep::{RoomSweep, plan_sweep, sweep_room};
pub use together::{MOST_EVENTS_OF_SMALL, OneOfMany, run_together};
