//! What went wrong: what was not done, what to do next, and how loud to be.
//!
//! One table ([`Error::class`]) maps an error to its HTTP status, Matrix error code and exit code. Logging
//! happens once, at the edge. Messages never contain tokens, passwords or message bodies.

use std::fmt;

use crate::ids::{EventId, JobId, RoomId, UserId};

/// An error as the outside sees it: HTTP status, Matrix error code, exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// HTTP status.
    pub status: u16,
    /// Matrix error code, `M_UNKNOWN` unless behaviour.md says otherwise (H-1).
    pub errcode: &'static str,
    /// Exit code of the command line (design.md 5.1).
    pub exit: u8,
}

/// Exit code: the job failed, or a check found something.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: wrong usage or configuration.
pub const EXIT_USAGE: u8 = 2;
/// Exit code: refused for safety.
pub const EXIT_REFUSED: u8 = 3;
/// Exit code: interrupted, as a shell counts SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

/// The error code of what a hold forbids, for clients; in the form of Matrix for one of our own.
pub const HELD: &str = "ROOMKEEPER_HELD";

/// The error code where what was planned is not what would be done now.
pub const PLAN_DRIFTED: &str = "ROOMKEEPER_PLAN_DRIFTED";

/// Why something was not done, or not finished.
///
/// Every transaction leaves a whole room: purged to the point asked for, to a nearer one, or not at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be meant: which key, which value, what would do.
    #[error("{0}")]
    Config(String),
    /// Refused for the data's safety: what was seen, and what to do instead.
    #[error("{0}")]
    Refused(String),
    /// A file that was read without locks was changed meanwhile, because somebody else opened it: which (S-33). Whoever reads
    /// once more reads with locks.
    #[error("{0}")]
    ChangedWhileRead(String),
    /// Synapse was stopped in the middle of a task of its own on the room (E-19): which, and the two ways out.
    #[error("{0}")]
    LeftTask(String),
    /// The full-text index is damaged, and cannot be built anew now: why, and what to do (P-55).
    #[error("{0}")]
    IndexDamaged(String),
    /// Another roomkeeper owns the ledger, and so the work on this database.
    #[error(
        "another roomkeeper is at work: it owns the ledger {0}; wait until it has ended, or stop it"
    )]
    LedgerLocked(std::path::PathBuf),
    /// A parameter that cannot be meant.
    #[error("{message}")]
    BadRequest {
        /// The Matrix error code of behaviour.md.
        errcode: &'static str,
        /// What was wrong.
        message: String,
    },
    /// The event to purge up to is unknown or rejected (H-20).
    #[error("Could not find event {0}")]
    EventNotFound(EventId),
    /// The event to purge up to is of another room (H-20).
    #[error("Event is for wrong room.")]
    WrongRoom,
    /// No event of the room is that old (H-20).
    #[error("there is no event to be purged")]
    NothingThatOld,
    /// Another purge or deletion owns the room (L-2, L-8).
    #[error("History purge already in progress for {room}")]
    RoomBusy {
        /// The busy room.
        room: RoomId,
    },
    /// The point is past every forward extremity: no event would remain (P-2).
    #[error("topological_ordering is greater than forward extremities")]
    WouldEmptyRoom,
    /// A room is to be deleted while local users are joined (E-1).
    #[error("Users are still joined to this room")]
    UsersStillJoined,
    /// No room here has that id or alias.
    #[error("{0}")]
    NoSuchRoom(String),
    /// A hold forbids it: which room, which hold, what to do.
    #[error("{0}")]
    Held(String),
    /// It was to be done as planned, and is something else by now: what, and what to do.
    #[error("{0}")]
    PlanDrifted(String),
    /// No hold of that name holds.
    #[error("{0}")]
    NoSuchHold(String),
    /// The job queue is full; nothing was started.
    #[error("too many purges are waiting; try again when one has ended")]
    QueueFull,
    /// The keeper is stopping; nothing was started, or what ran will be resumed.
    #[error("roomkeeper is stopping")]
    Stopping,
    /// Somebody cancelled the job.
    #[error("cancelled")]
    Cancelled,
    /// The job that was waited for failed.
    #[error("{text}")]
    JobFailed {
        /// What its status says.
        text: String,
        /// Which error ended it, by [`Error::code`]; none where the ledger does not know.
        code: Option<String>,
    },
    /// A daemon that was asked refused or failed.
    #[error("{said}")]
    Remote {
        /// As it answered.
        status: u16,
        /// As it answered.
        errcode: &'static str,
        /// Which error it was, by [`Error::code`]; none where what answered is older.
        code: Option<String>,
        /// What it said.
        said: String,
    },
    /// No such receipt.
    #[error("there is no receipt of {}: give a job, a hold, or the number of a receipt", crate::ids::Escaped(.0))]
    NoSuchReceipt(String),
    /// No such job.
    #[error("no job {0} is known")]
    NoSuchJob(JobId),
    /// A partially joined room still needs an event that would go (P-18).
    #[error(
        "event {0} has only partial state yet: wait until the server has fully joined the room, then purge again"
    )]
    PartialState(EventId),
    /// The caller has not shown who they are, or may not do this (U-1 … U-9).
    #[error("{message}")]
    Denied {
        /// 401 or 403.
        status: u16,
        /// Matrix error code.
        errcode: &'static str,
        /// The sentence of behaviour.md.
        message: &'static str,
        /// `soft_logout`, where the error carries one (U-3 … U-5).
        soft_logout: Option<bool>,
    },
    /// The user may not read the room (M-20).
    #[error("User {user} not in room {room}, and room previews are disabled")]
    NotInRoom {
        /// Who asked.
        user: UserId,
        /// For which room.
        room: RoomId,
    },
    /// A reading took longer than it may, or nobody waits for it any more (M-94).
    #[error(
        "this took longer than a read may take and was stopped: ask for less, or with a narrower filter"
    )]
    ReadTooLong,
    /// The file system has no room for the work.
    #[error("{0}")]
    NoSpace(String),
    /// The database refused while we were `doing` something.
    #[error("could not {doing}: {source}")]
    Store {
        /// What was being done, as a verb phrase.
        doing: &'static str,
        /// What the database said.
        source: StoreError,
    },
    /// A rule of ours was about to be broken; the transaction was rolled back.
    #[error("internal error: {0}")]
    Bug(String),
}

/// What a database said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// SQLite, in plain words; our statements carry no values.
    #[error("{}", in_plain_words(.0))]
    Sqlite(rusqlite::Error),
    /// A PostgreSQL server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The file system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A column holds something else than it should.
    #[error("column {at} of the answer is not {wanted}")]
    Column {
        /// Its place, from 0.
        at: usize,
        /// What it should be.
        wanted: &'static str,
    },
}

/// What a PostgreSQL server said, or that it could not be asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct ServerError {
    /// SQLSTATE, where the server gave one.
    pub code: Option<String>,
    /// The server's message without its details: those can hold what is in a row.
    pub text: String,
    /// Whether the connection is gone.
    pub is_disconnected: bool,
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sqlite(e)
    }
}

/// What SQLite says, without its numbers.
fn in_plain_words(e: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode;
    let plain = match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "the database is locked: another process is writing"
        }
        Some(ErrorCode::ReadOnly) => "the file, or its directory, may only be read",
        Some(ErrorCode::CannotOpen) => "the file, or one beside it, cannot be opened",
        Some(ErrorCode::PermissionDenied) => "permission is missing",
        Some(ErrorCode::NotADatabase) => "the file is not a SQLite database",
        Some(ErrorCode::SystemIoFailure) => "the disk could not be read or written",
        _ => {
            return match e {
                rusqlite::Error::SqliteFailure(_, Some(said)) => said.clone(),
                rusqlite::Error::SqliteFailure(failure, None) => {
                    rusqlite::ffi::code_to_str(failure.extended_code).to_owned()
                }
                e => e.to_string(),
            };
        }
    };
    plain.to_owned()
}

impl StoreError {
    /// Whether others were in the way: another connection held the database for too long, or changed what we changed
    /// (P-25).
    pub fn is_busy(&self) -> bool {
        matches!(
            self.sqlite(),
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
        ) || matches!(self.sqlstate(), Some("40001" | "40P01" | "55P03"))
    }

    /// Whether the server is gone, which it may not be the next time.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Server(e) if e.is_disconnected)
    }

    /// Whether the same may succeed the next time, and nothing is broken.
    pub fn may_pass(&self) -> bool {
        self.is_busy() || self.is_disconnected() || self.is_interrupt() || self.is_full()
    }

    /// What a statement says that was stopped.
    pub(crate) fn interrupted() -> Self {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_INTERRUPT);
        Self::Sqlite(rusqlite::Error::SqliteFailure(code, None))
    }

    /// Whether somebody interrupted the statement.
    pub fn is_interrupt(&self) -> bool {
        self.sqlite() == Some(rusqlite::ErrorCode::OperationInterrupted)
            || self.sqlstate() == Some("57014")
    }

    /// Whether the disk is full, or the user's share of it.
    pub fn is_full(&self) -> bool {
        // SQLITE_IOERR_SHMSIZE: the index of the write-ahead log could not grow.
        const NO_ROOM_FOR_INDEX: i32 = 4874;
        let is_full = |e: &std::io::Error| {
            use std::io::ErrorKind::{QuotaExceeded, StorageFull};
            matches!(e.kind(), StorageFull | QuotaExceeded)
        };
        self.sqlite() == Some(rusqlite::ErrorCode::DiskFull)
            || self.sqlite_code() == Some(NO_ROOM_FOR_INDEX)
            || self.sqlstate() == Some("53100")
            || matches!(self, Self::Io(e) if is_full(e))
    }

    /// Whether it is about the file and not about what it holds: it cannot be opened, read, or written.
    pub fn is_of_file(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, PermissionDenied, ReadOnly, SystemIoFailure};
        matches!(
            self.sqlite(),
            Some(CannotOpen | PermissionDenied | ReadOnly | SystemIoFailure)
        )
    }

    /// Whether the file is something else than a database.
    pub fn is_no_database(&self) -> bool {
        self.sqlite() == Some(rusqlite::ErrorCode::NotADatabase)
    }

    /// SQLite's own number for it, for who looks it up.
    pub fn sqlite_code(&self) -> Option<i32> {
        match self {
            Self::Sqlite(e) => e.sqlite_error().map(|e| e.extended_code),
            _ => None,
        }
    }

    /// Whether a file is damaged, or the full-text index in it.
    pub fn is_damage(&self) -> bool {
        self.sqlite() == Some(rusqlite::ErrorCode::DatabaseCorrupt)
    }

    /// Whether no more than the full-text index is damaged (P-55).
    pub fn is_index_damage(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(e, _)) => {
                e.extended_code == rusqlite::ffi::SQLITE_CORRUPT_VTAB
            }
            _ => false,
        }
    }

    /// Whether a server found an index, or the table beneath it, damaged.
    pub fn is_index_corrupted(&self) -> bool {
        matches!(self.sqlstate(), Some("XX001" | "XX002"))
    }

    /// Whether a constraint was about to be broken.
    pub fn is_constraint(&self) -> bool {
        self.sqlite() == Some(rusqlite::ErrorCode::ConstraintViolation)
            || self.sqlstate().is_some_and(|code| code.starts_with("23"))
    }

    fn sqlite(&self) -> Option<rusqlite::ErrorCode> {
        match self {
            Self::Sqlite(e) => e.sqlite_error_code(),
            _ => None,
        }
    }

    /// Whether a server refused because it can only be read, temporary tables included: a hot standby (K-4).
    pub fn is_of_reading_server(&self) -> bool {
        self.sqlstate() == Some("25006")
    }

    fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(e) => e.code.as_deref(),
            _ => None,
        }
    }
}

/// The HTTP status for whoever waited for a job that failed (H-63): 500 is for nothing that the same request may do when it
/// is sent again.
fn status_of_failed_job(code: Option<&str>) -> u16 {
    match code {
        Some(
            "busy" | "cancelled" | "disconnected" | "index_damaged" | "ledger_locked" | "no_space"
            | "refused" | "stopping",
        ) => 503,
        Some("held" | "partial_state" | "plan_drifted") => 409,
        Some("room_busy" | "task_left" | "users_still_joined" | "would_empty_room") => 400,
        _ => 500,
    }
}

impl Error {
    /// A parameter error with the given Matrix code.
    pub fn bad(errcode: &'static str, message: impl Into<String>) -> Self {
        Self::BadRequest {
            errcode,
            message: message.into(),
        }
    }

    /// The one table from error to answer: status, errcode, exit code.
    pub fn class(&self) -> Class {
        let (status, errcode, exit) = match self {
            Self::Config(_) => (500, "M_UNKNOWN", EXIT_USAGE),
            Self::Refused(_)
            | Self::ChangedWhileRead(_)
            | Self::IndexDamaged(_)
            | Self::LedgerLocked(_) => (503, "M_UNKNOWN", EXIT_REFUSED),
            Self::BadRequest { errcode, .. } => (400, *errcode, EXIT_USAGE),
            Self::EventNotFound(_)
            | Self::NothingThatOld
            | Self::NoSuchHold(_)
            | Self::NoSuchJob(_)
            | Self::NoSuchReceipt(_)
            | Self::NoSuchRoom(_) => (404, "M_NOT_FOUND", EXIT_FAILED),
            Self::WrongRoom
            | Self::RoomBusy { .. }
            | Self::WouldEmptyRoom
            | Self::UsersStillJoined => (400, "M_UNKNOWN", EXIT_FAILED),
            Self::LeftTask(_) => (400, "M_UNKNOWN", EXIT_REFUSED),
            Self::Held(_) => (409, HELD, EXIT_REFUSED),
            Self::PlanDrifted(_) => (409, PLAN_DRIFTED, EXIT_REFUSED),
            Self::QueueFull => (429, "M_LIMIT_EXCEEDED", EXIT_FAILED),
            Self::ReadTooLong => (503, "M_UNKNOWN", EXIT_FAILED),
            Self::Stopping => (503, "M_UNKNOWN", EXIT_INTERRUPTED),
            Self::Cancelled => (500, "M_UNKNOWN", EXIT_INTERRUPTED),
            Self::Denied {
                status, errcode, ..
            } => (*status, *errcode, EXIT_FAILED),
            Self::Remote {
                status,
                errcode,
                code,
                ..
            } => {
                // As the same would have ended without a daemon.
                let exit = match (code.as_deref(), *status) {
                    // It is the daemon that stops, and nobody here was interrupted.
                    (Some("stopping"), _) => EXIT_REFUSED,
                    (Some(code), _) => exit_of_code(code),
                    (None, 400) => EXIT_USAGE,
                    (None, 503) => EXIT_REFUSED,
                    (None, _) => EXIT_FAILED,
                };
                (*status, *errcode, exit)
            }
            Self::NotInRoom { .. } => (403, "M_FORBIDDEN", EXIT_FAILED),
            // The room is not as it has to be, and may be later.
            Self::PartialState(_) => (409, "M_UNKNOWN", EXIT_FAILED),
            // Others were in the way, or the database was away: the same may succeed the next time (H-63).
            Self::NoSpace(_) => (503, "M_UNKNOWN", EXIT_FAILED),
            Self::Store { source, .. } if source.may_pass() => (503, "M_UNKNOWN", EXIT_FAILED),
            Self::JobFailed { code, .. } => {
                let status = status_of_failed_job(code.as_deref());
                let errcode = match code.as_deref() {
                    Some("held") => HELD,
                    Some("plan_drifted") => PLAN_DRIFTED,
                    _ => "M_UNKNOWN",
                };
                (status, errcode, EXIT_FAILED)
            }
            Self::Store { .. } | Self::Bug(_) => (500, "M_UNKNOWN", EXIT_FAILED),
        };
        Class {
            status,
            errcode,
            exit,
        }
    }

    /// Which error this is, for programs: a word that stays the same whatever the sentence says. It stands beside the text
    /// in the ledger and in our own HTTP answers.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "config",
            Self::Refused(_) => "refused",
            Self::ChangedWhileRead(_) => "changed_while_read",
            Self::LedgerLocked(_) => "ledger_locked",
            Self::BadRequest { .. } => "bad_request",
            Self::EventNotFound(_) => "event_not_found",
            Self::WrongRoom => "wrong_room",
            Self::NothingThatOld => "nothing_that_old",
            Self::RoomBusy { .. } => "room_busy",
            Self::WouldEmptyRoom => "would_empty_room",
            Self::UsersStillJoined => "users_still_joined",
            Self::Held(_) => "held",
            Self::PlanDrifted(_) => "plan_drifted",
            Self::NoSuchHold(_) => "no_such_hold",
            Self::QueueFull => "queue_full",
            Self::Stopping => "stopping",
            Self::Cancelled => "cancelled",
            Self::JobFailed { .. } => "job_failed",
            Self::Remote { .. } => "remote",
            Self::NoSuchJob(_) => "no_such_job",
            Self::NoSuchReceipt(_) => "no_such_receipt",
            Self::NoSuchRoom(_) => "no_such_room",
            Self::PartialState(_) => "partial_state",
            Self::Denied { .. } => "denied",
            Self::NotInRoom { .. } => "not_in_room",
            Self::ReadTooLong => "read_too_long",
            Self::NoSpace(_) => "no_space",
            Self::IndexDamaged(_) => "index_damaged",
            Self::LeftTask(_) => "task_left",
            Self::Store { source, .. } if source.is_full() => "no_space",
            Self::Store { source, .. } if source.is_damage() => "damaged",
            Self::Store { source, .. } if source.is_busy() => "busy",
            Self::Store { source, .. } if source.is_disconnected() => "disconnected",
            Self::Store { .. } => "database",
            Self::Bug(_) => "bug",
        }
    }

    /// The error text of a failed job's status (S-3): errors that carry an HTTP code of Synapse's show it.
    pub fn status_text(&self) -> String {
        match self.class().status {
            status @ 400..=499 => format!("{status}: {self}"),
            _ => self.to_string(),
        }
    }

    /// Whether trying the same transaction again may succeed.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_busy())
    }

    /// Whether the server was lost, and may be there the next time.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_disconnected())
    }

    /// Whether a constraint was about to be broken.
    pub fn is_constraint(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_constraint())
    }

    /// Whether the database's file is damaged.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_damage())
    }

    /// Whether no more than the full-text index is damaged: it is derived data, and can be built again (P-55).
    pub fn is_index_damage(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_index_damage())
    }

    /// Whether a disk was full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::NoSpace(_))
            || matches!(self, Self::Store { source, .. } if source.is_full())
    }

    /// SQLite's own number for it, for who looks it up.
    pub fn sqlite_code(&self) -> Option<i32> {
        match self {
            Self::Store { source, .. } => source.sqlite_code(),
            _ => None,
        }
    }

    /// Whether the database was interrupted on our own request.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.is_interrupt())
    }
}

/// The exit code of an error of which only the word is known ([`Error::code`]).
fn exit_of_code(code: &str) -> u8 {
    match code {
        "config" | "bad_request" => EXIT_USAGE,
        "refused" | "changed_while_read" | "ledger_locked" | "index_damaged" | "task_left"
        | "held" | "plan_drifted" => EXIT_REFUSED,
        "stopping" | "cancelled" => EXIT_INTERRUPTED,
        _ => EXIT_FAILED,
    }
}

/// Adds to a database's error what we were doing.
pub(crate) trait Context<T> {
    /// `doing` is a verb phrase: "read the forward extremities".
    fn context(self, doing: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<StoreError>> Context<T> for Result<T, E> {
    fn context(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Store {
            doing,
            source: source.into(),
        })
    }
}

/// An error and everything beneath it on one line, for the log and the terminal.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut below = self.0.source();
        while let Some(error) = below {
            let text = error.to_string();
            // A transparent wrapper repeats the text of what it wraps.
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said.push_str(&text);
            }
            below = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_a_daemon_answers_ends_a_command_as_the_same_would_without_one() {
        let said = || "said".to_owned();
        let room = RoomId::from("!a:b");
        let store = |source| Error::Store {
            doing: "look",
            source,
        };
        let denied = Error::Denied {
            status: 403,
            errcode: "M_FORBIDDEN",
            message: "said",
            soft_logout: None,
        };
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        for error in [
            Error::Config(said()),
            Error::Refused(said()),
            Error::ChangedWhileRead(said()),
            Error::LeftTask(said()),
            Error::IndexDamaged(said()),
            Error::LedgerLocked("l".into()),
            Error::bad("M_INVALID_PARAM", "said"),
            Error::EventNotFound(EventId::from("$a")),
            Error::WrongRoom,
            Error::NothingThatOld,
            Error::RoomBusy { room: room.clone() },
            Error::WouldEmptyRoom,
            Error::UsersStillJoined,
            Error::NoSuchRoom(said()),
            Error::Held(said()),
            Error::PlanDrifted(said()),
            Error::NoSuchHold(said()),
            Error::QueueFull,
            Error::Stopping,
            Error::Cancelled,
            Error::NoSuchJob(JobId::from("a")),
            Error::PartialState(EventId::from("$a")),
            denied,
            Error::NotInRoom {
                user: UserId::from("@a:b"),
                room,
            },
            Error::ReadTooLong,
            Error::NoSpace(said()),
            store(StoreError::interrupted()),
            store(StoreError::Io(full)),
            Error::Bug(said()),
        ] {
            let class = error.class();
            let code = error.code();
            let remote = Error::Remote {
                status: class.status,
                errcode: class.errcode,
                code: Some(code.to_owned()),
                said: said(),
            };
            let expected = match error {
                // Nobody here was interrupted.
                Error::Stopping => EXIT_REFUSED,
                _ => class.exit,
            };
            let answered = Class {
                exit: expected,
                ..class
            };
            assert_eq!(remote.class(), answered, "{code}");
        }
    }
}
