//! The rooms of the whole server: what each of them has and takes, and which of them are meant.
//!
//! A [`Summary`] is everything that is known of a room; [`Selectors`] choose among them. Both read only.

mod by_policy;
mod selectors;
mod statistics;
mod summary;

pub use self::by_policy::{Judge, Judged, WhyNot, forgotten};
pub use self::selectors::select;
pub use crate::selectors::{Condition, Selectors};
pub use statistics::{Statistics, StatisticsOf};
pub use summary::{Policies, PolicyOf, Sort, Summary, Totals, summarize};
