//! History purges (behaviour.md section 4): what a request would remove, and removing it in strides.

#[cfg(test)]
mod faults;
mod leap;
mod overwrite;
mod pace;
mod plan;
mod request;
mod run;
mod state;

pub(crate) use overwrite::{EMPTY_LOG, ERASE_PAGES, MERGE_INDEX};
pub use pace::{Gait, Pace};
pub use plan::{Plan, plan};
pub use request::{Progress, Request};
pub use run::{Worksite, run};
