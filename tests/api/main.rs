//! The answers over HTTP, and who may ask: clients of Synapse, admins, delegated logins, pages, metrics.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;
#[path = "../sample/mod.rs"]
mod sample;

#[cfg(feature = "daemon")]
mod asked_by;
#[cfg(feature = "daemon")]
mod clients;
#[cfg(feature = "daemon")]
mod delegated;
#[cfg(feature = "daemon")]
mod http_rooms;
mod messages;
#[cfg(feature = "daemon")]
mod metrics;
