//! Keeps the rooms of a Matrix homeserver on its *database*, Synapse's SQLite file or PostgreSQL, outside the homeserver:
//! purges their history, keeps retention policies, deletes them, pages through them, and can show what it did.
//!
//! What it is and how it is run stands in [`guide::readme`]; this is the library, in a program of your own:
//!
//! ```
//! use roomkeeper::{Config, JobState, Keeper, NewEvent, Progress, PurgeOptions, PurgePoint, RoomId, Viewer, days};
//! # use roomkeeper::{Clock, Millis, SystemClock, create_database};
//! # let directory = tempfile::tempdir()?;
//! # let database = directory.path().join("homeserver.db");
//! # create_database(database.as_path())?;
//! # let room = RoomId::from("!garden:example.org");
//! # let keeper = Keeper::open(Config::for_sqlite(&database, "example.org"))?;
//! # let at = |days_ago| SystemClock.now() - days(days_ago);
//! # let said = |text: &str, days_ago| NewEvent::message("@alice:example.org", text, at(days_ago));
//! # keeper.append(&room, &[NewEvent::create("@alice:example.org", "11", at(20)), NewEvent::join("@alice:example.org", at(20))])?;
//! # keeper.append(&room, &[said("old", 15), said("old, too", 12), said("older than a week", 8), said("new", 2)])?;
//! # keeper.stop();
//! let config = Config::for_sqlite(&database, "example.org");
//! let (week, options) = (PurgePoint::OlderThan(days(7)), PurgeOptions { delete_local_events: true, ..Default::default() });
//!
//! // Looking takes no lock and changes nothing.
//! let plan = Viewer::open(config.clone())?.plan_purge(&room, &week, options)?;
//! assert_eq!(plan.events_deleted, 2);
//!
//! let keeper = Keeper::open(config)?;
//! let job = keeper.purge_history(&room, &week, options)?;     // returns at once; the work is a job
//! let done = keeper.wait(&job)?;                              // blocks
//! assert_eq!((done.state, Progress::of(&done).events_deleted), (JobState::Complete, 2));
//! keeper.stop();                                              // joins its threads
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A tour in ten sentences
//!
//! 1. A [`Keeper`] owns a database's work: the ledger, the locks, the threads; a [`Viewer`] only reads, and makes plans.
//! 2. What is asked for is a *job* of some [`JobKind`], and stands in the ledger before anything happens, so that it goes on
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
//!
//! # Errors
//!
//! Every function says which variants of [`Error`] it has of its own. *Those of the database* are [`Error::Store`] (it could
//! not be read or written), [`Error::NoSpace`], and [`Error::Refused`] (it is not one we know, or another file lies in its
//! place by now); *those of the ledger* are [`Error::Store`] and [`Error::NoSpace`]. Times are [`Millis`], since 1970 or of a
//! duration; sizes are bytes.
//!
//! # Features
//!
//! `daemon` (default): the command line, HTTP, the configuration file. `postgres`, `postgres-tls` (default): that engine, and
//! encrypted connections to it. `events`: events of this server, hashed and signed, as deletions with a new room need.
//! `test-internals` is for our own tests: what it shows changes with any commit.

// Public names are those below, and no module's: what is reachable and has no name is forgotten in that list.
#![cfg_attr(not(feature = "test-internals"), warn(unnameable_types))]
#![cfg_attr(not(feature = "test-internals"), warn(clippy::missing_errors_doc))]
// What the command line and HTTP alone call is unused without them; with them the compiler sees what nobody calls.
#![cfg_attr(not(feature = "daemon"), allow(dead_code, unused_imports))]
// Comments of ours lead into private modules; a reader of the documentation sees the words.
#![allow(rustdoc::private_intra_doc_links)]

// What the suites under `tests/` share is also used by tests in here, and names this crate by its name.
#[cfg(test)]
extern crate self as roomkeeper;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

#[cfg(not(feature = "test-internals"))]
mod archive;
#[cfg(feature = "test-internals")]
pub mod archive;
#[cfg(not(feature = "test-internals"))]
mod batch;
#[cfg(feature = "test-internals")]
pub mod batch;
#[cfg(all(feature = "daemon", not(feature = "test-internals")))]
mod cli;
#[cfg(all(feature = "daemon", feature = "test-internals"))]
pub mod cli;
#[cfg(not(feature = "test-internals"))]
mod client;
#[cfg(feature = "test-internals")]
pub mod client;
#[cfg(not(feature = "test-internals"))]
mod config;
#[cfg(feature = "test-internals")]
pub mod config;
#[cfg(not(feature = "test-internals"))]
mod counters;
#[cfg(feature = "test-internals")]
pub mod counters;
#[cfg(not(feature = "test-internals"))]
mod database;
#[cfg(feature = "test-internals")]
pub mod database;
#[cfg(not(feature = "test-internals"))]
mod deletion;
#[cfg(feature = "test-internals")]
pub mod deletion;
#[cfg(not(feature = "test-internals"))]
mod endpoints;
#[cfg(feature = "test-internals")]
pub mod endpoints;
#[cfg(not(feature = "test-internals"))]
mod error;
#[cfg(feature = "test-internals")]
pub mod error;
#[cfg(not(feature = "test-internals"))]
mod event;
#[cfg(feature = "test-internals")]
pub mod event;
#[cfg(not(feature = "test-internals"))]
mod hold;
#[cfg(feature = "test-internals")]
pub mod hold;
#[cfg(all(feature = "daemon", not(feature = "test-internals")))]
mod http;
#[cfg(all(feature = "daemon", feature = "test-internals"))]
pub mod http;
#[cfg(not(feature = "test-internals"))]
mod ids;
#[cfg(feature = "test-internals")]
pub mod ids;
#[cfg(not(feature = "test-internals"))]
mod job;
#[cfg(feature = "test-internals")]
pub mod job;
#[cfg(not(feature = "test-internals"))]
mod jobs;
#[cfg(feature = "test-internals")]
pub mod jobs;
#[cfg(not(feature = "test-internals"))]
mod keeper;
#[cfg(feature = "test-internals")]
pub mod keeper;
#[cfg(not(feature = "test-internals"))]
mod locks;
#[cfg(feature = "test-internals")]
pub mod locks;
#[cfg(not(feature = "test-internals"))]
mod media_files;
#[cfg(feature = "test-internals")]
pub mod media_files;
#[cfg(not(feature = "test-internals"))]
mod messages;
#[cfg(feature = "test-internals")]
pub mod messages;
#[cfg(not(feature = "test-internals"))]
mod plan_hash;
#[cfg(feature = "test-internals")]
pub mod plan_hash;
#[cfg(not(feature = "test-internals"))]
mod plural;
#[cfg(feature = "test-internals")]
pub mod plural;
#[cfg(not(feature = "test-internals"))]
mod point;
#[cfg(feature = "test-internals")]
pub mod point;
#[cfg(not(feature = "test-internals"))]
mod policy;
#[cfg(feature = "test-internals")]
pub mod policy;
#[cfg(not(feature = "test-internals"))]
mod purge;
#[cfg(feature = "test-internals")]
pub mod purge;
#[cfg(not(feature = "test-internals"))]
mod receipt;
#[cfg(feature = "test-internals")]
pub mod receipt;
#[cfg(not(feature = "test-internals"))]
mod retention;
#[cfg(feature = "test-internals")]
pub mod retention;
#[cfg(not(feature = "test-internals"))]
mod room_version;
#[cfg(feature = "test-internals")]
pub mod room_version;
#[cfg(not(feature = "test-internals"))]
mod rooms;
#[cfg(feature = "test-internals")]
pub mod rooms;
#[cfg(not(feature = "test-internals"))]
mod selectors;
#[cfg(feature = "test-internals")]
pub mod selectors;
#[cfg(not(feature = "test-internals"))]
mod sqlite_file;
#[cfg(feature = "test-internals")]
pub mod sqlite_file;
#[cfg(not(feature = "test-internals"))]
mod store;
#[cfg(feature = "test-internals")]
pub mod store;
#[cfg(not(feature = "test-internals"))]
mod time;
#[cfg(feature = "test-internals")]
pub mod time;

/// What the README has no room for, by subject.
pub mod guide {
    /// Everything for who runs it.
    ///
    #[doc = include_str!("../README.md")]
    pub mod readme {}
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
    /// What has changed.
    ///
    #[doc = include_str!("guide/changes.md")]
    pub mod changes {}
    /// How it is built, tested and changed.
    ///
    #[doc = include_str!("guide/developing.md")]
    pub mod developing {}
    /// What nobody may delete, and plans that bind.
    ///
    #[doc = include_str!("guide/holds.md")]
    pub mod holds {}
    /// Files: which go, which stay, and why.
    ///
    #[doc = include_str!("guide/media.md")]
    pub mod media {}
    /// Purging a room, and what is common to all commands.
    ///
    #[doc = include_str!("guide/purging.md")]
    pub mod purging {}
    /// Proof of what was done, and replaying it after a backup was restored.
    ///
    #[doc = include_str!("guide/receipts.md")]
    pub mod receipts {}
    /// What is checked, and what is mended.
    ///
    #[doc = include_str!("guide/repair.md")]
    pub mod repair {}
    /// Many rooms at once.
    ///
    #[doc = include_str!("guide/sets.md")]
    pub mod sets {}
    /// State groups: what is swept, and how the others are compressed.
    ///
    #[doc = include_str!("guide/state.md")]
    pub mod state {}
    /// Archives, and what comes back from them.
    ///
    #[doc = include_str!("guide/undo.md")]
    pub mod undo {}
}

/// The rules that comments refer to by their numbers.
#[doc = include_str!("rules.md")]
pub mod rules {}

/// The program `roomkeeper`.
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub use cli::run as run_command_line;

// Words: who and what, where and when.
pub use archive::{Identity as ArchiveIdentity, Recipient as ArchiveRecipient};
pub use database::{Database, Server};
pub use endpoints::HomeserverEndpoints;
pub use error::{Class, Error, ServerError, StoreError};
pub use event::{EventError, SigningKeys};
pub use hold::{HeldEvents, Hold, Release};
pub use ids::{EventId, JobId, RoomId, UserId};
pub use plan_hash::PlanHash;
pub use point::{Direction, NoToken, Point, Positions, PurgePoint, RoomToken, StreamToken};
pub use time::{Clock, ManualClock, Millis, SystemClock, days};

// How a keeper is set up.
pub use batch::{BatchLimits, Rewrite};
pub use config::{
    Archive as ArchiveConfig, AuthenticationService, Command as NotifyCommand, Config,
};
pub use config::{
    EventSigning, HomeserverApi, HomeserverPolicy, Listen, LogFormat, Network, Notify,
    OverwriteWhen,
};
pub use config::{PolicyStart, PolicyWhat, ServerPolicy};
pub use config::{Secret, SigningKey, Webhook};
pub use policy::{Clamp, Decision, Lifetime, LifetimeRange, Policy, PurgeJob, Retention, Source};

// The keeper, and who only looks.
pub use keeper::{Keeper, NewEvent, Viewer};
pub use keeper::{Measures, RoomError};

// Jobs.
pub use job::{Phase, Progress};
pub use jobs::ledger::{JobRecord, State as JobState, Subject as JobSubject};
pub use keeper::{JobExtent, JobKind, job_view, recorded_jobs, state_words};

// Purges, deletions, sets of rooms, retention, state groups, repairs: requests, plans, what was done.
pub use config::MediaStore;
pub use deletion::{Plan as DeletionPlan, Request as DeletionRequest, Shutdown};
pub use job::media::MediaSummary;
pub use job::{MediaFate, MediaPlan, PlannedMedia};
pub use keeper::MediaRequest;
pub use keeper::{CompressRequest, CompressSums, RoomCompression, StateCompressPlan};
pub use keeper::{DeleteStatus, PurgeOptions, PurgeStatus, RetentionSummary};
pub use keeper::{Estimate, StateCompressSummary, StateSweepPlan, StateSweepSummary};
pub use keeper::{PlannedRoom, RoomLeftAlone, RoomPlan, RoomSetSummary, SetAction, SetPlan};
pub use keeper::{PolicyPlan, RoomNotTaken, RoomTaken};
pub use keeper::{RepairItem, RepairPlan, RepairRequest, RepairRow, RepairSummary, Unmended};
pub use keeper::{ResidueReport, residue};
pub use keeper::{SetRequest, SetTotals, StartedSet, plan_set, rooms_of_set};
pub use purge::{Plan as PurgePlan, RoomSweep};
pub use retention::{Due, Exact, LeftAlone, Plan as RetentionPlan, Reason, Stays};
pub use store::index_test::IndexesBy;
pub use store::residue::{Found as ResidueFound, Residue};
pub use store::room_rows::Unknown as UnknownTable;

// Holds, archives, receipts.
pub use jobs::receipts::ReceiptReader;
pub use keeper::{ArchiveReport, Restoration, RestoreRequest, archives, restore, shred};
pub use keeper::{ReplayStep, Since, plan_replay};
pub use keeper::{add_hold, holds, release_hold};
pub use keeper::{forget_receipts, receipt_keys, recorded_receipts};
pub use receipt::note::{Checkpoint, PublicKey};
pub use receipt::tree::{Frontier, Whole};
pub use receipt::{Entry as ReceiptEntry, Proof as ReceiptProof, Verified};

// Rooms, people, messages.
pub use keeper::{RoomQuery, RoomReport, RoomState, Task, rooms as list_rooms};
pub use messages::{Around, BadFilter, ContextRequest, EventContext, EventJson, Filter, Format};
pub use messages::{Hierarchy, HierarchyRequest, MediaId, Page, PageRequest, Reader, Session};
pub use rooms::{Condition, PolicyOf, Selectors, Sort, Statistics, Summary, Totals, WhyNot};
pub use store::lookups::{Account, ForwardExtremity, Profile};
pub use store::named_rooms::Mark;
pub use store::read_limit::ReadLimit;
pub use store::rooms::{Details as RoomDetails, Room as CountedRoom};
pub use store::user_list::{ListedUser, UserQuery};
pub use store::users::Requester;

// A database as a whole.
pub use keeper::{check_offline, identity_of, reclaim, reclaim_via};
pub use store::check::{CheckReport, Violation};
pub use store::reclaim::Reclaimed;
pub use store::schema::create as create_database;
