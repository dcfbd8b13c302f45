//! Retention (behaviour.md section 3): which rooms are due, and up to where. It decides and touches nothing; what it
//! decides is done by purges like any other.

mod clock;
mod plan;
mod recheck;

pub use clock::{newest_arrival, refuse_clock_ahead};
pub use plan::{Due, Exact, LeftAlone, Plan, Reason, Stays, plan};
pub use recheck::{Decided, Recheck, recheck};
