#![doc = include_str!("../README.md")]

// What the suites under `tests/` share is also used by tests in here, and names this crate by its name.
#[cfg(test)]
extern crate self as roomkeeper;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

pub mod archive;
pub mod batch;
#[cfg(feature = "daemon")]
pub mod cli;
pub mod client;
pub mod config;
pub mod counters;
pub mod database;
pub mod deletion;
pub mod endpoints;
pub mod error;
pub mod event;
pub mod hold;
#[cfg(feature = "daemon")]
pub mod http;
pub mod ids;
pub mod job;
pub mod jobs;
pub mod keeper;
pub mod locks;
pub mod media_files;
pub mod messages;
pub mod plan_hash;
pub mod plural;
pub mod point;
pub mod policy;
pub mod purge;
pub mod receipt;
pub mod retention;
pub mod room_version;
pub mod rooms;
pub mod sqlite_file;
pub mod store;
pub mod time;

/// What the README has no room for, by subject.
pub mod guide {
    /// The daemon: paths, logins, proxies, the ledger.
    ///
    #[doc = include_str!("guide/daemon.md")]
    pub mod daemon {}
    /// Deleting rooms, and what becomes of their people.
    ///
    #[doc = include_str!("guide/deletion.md")]
    pub mod deletion {}
    /// Looking into a room.
    ///
    #[doc = include_str!("guide/messages.md")]
    pub mod messages {}
    /// What is different on PostgreSQL.
    ///
    #[doc = include_str!("guide/postgresql.md")]
    pub mod postgresql {}
    /// How retention is read and carried out.
    ///
    #[doc = include_str!("guide/retention.md")]
    pub mod retention {}
    /// What is refused, what is overwritten, and what happens beside a running homeserver.
    ///
    #[doc = include_str!("guide/safety.md")]
    pub mod safety {}
}

/// The rules that comments refer to by their numbers.
#[doc = include_str!("rules.md")]
pub mod rules {}

pub use config::Config;
pub use error::Error;
pub use ids::{EventId, JobId, RoomId, UserId};
pub use keeper::{Keeper, PurgeOptions};
pub use messages::{Filter, Page, PageRequest, Reader};
pub use point::{Direction, Point, PurgePoint, StreamToken};
pub use time::{Millis, days};
