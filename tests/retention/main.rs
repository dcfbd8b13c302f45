//! Retention: the rules against a plain model of them, many rooms, and time.

#[path = "../support/mod.rs"]
#[macro_use]
mod support;

mod arrivals;
mod busy;
mod decisions;
#[cfg(feature = "daemon")]
mod http;
mod many;
mod rules;
mod time;
mod town;
mod upsets;
