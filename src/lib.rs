#![doc = include_str!("../README.md")]
//!
//! # A tour in ten sentences
//!
//! 1. A [`Keeper`] owns a database's work: the ledger, the locks, the threads; a [`Viewer`](keeper::Viewer) only reads, and makes plans.
//! 2. What is asked for is a *job* of some [kind](keeper::JobKind), and stands in the ledger before anything happens, so that it goes on
//!    after a kill at any moment.
//! 3. The ledger is a SQLite file of ours beside the database; in the homeserver's tables nothing is ours.
//! 4. A [`PurgePoint`] (an event, a token, a time, an age) becomes a [`Point`]: a place in a room's timeline, at which
//!    everything stays.
//! 5. `purge` and `deletion` decide what goes, in batches: each is a whole purge to a nearer point, in one transaction.
//! 6. What deletes or rewrites rows takes a `Tx`, which `job` alone gives, with the locks of a room, of several, or of the
//!    server, after it has asked whether a homeserver was started.
//! 7. `store` has every SQL statement, one text for both engines, and one list of the homeserver's tables that says of each
//!    what goes with an event or a room, and what stays.
//! 8. `retention` says which rooms are due by which policy, `rooms` what each has and takes, `messages` who sees what of it.
//! 9. Holds, archives and receipts are beside every job: what is held stays, what went can come back, and what was done can
//!    be shown.
//! 10. `http` and `cli` only translate: whatever they can do, a program can do by a [`Keeper`].
//!
//! # What is always so
//!
//! 1. Nothing goes that nobody decided about: a table or column that is not in the list stays, and is named.
//! 2. No row is deleted or rewritten without a `Tx`, which cannot be made without the lock of what it touches.
//! 3. A transaction that is open waits for no lock of ours; locks of several rooms are waited for one at a time, the others
//!    are tried.
//! 4. A room is whole after every commit: `check` finds nothing after a kill that it did not find before.
//! 5. What must not be forgotten between two files that cannot commit together is in the ledger before the database commits.
//! 6. `store` knows no HTTP, no job and no policy; a module names itself and lower layers only, and neighbours do not see
//!    each other.
//! 7. No text of an error of ours is compared or read again: whoever decides by an error decides by its type or its code.
//! 8. Nothing is async, nothing is `unsafe`, no thread outlives its keeper, and no secret and nobody's message is in a log, an
//!    error or a process's arguments.

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
