//! Bringing back what a job removed, from its archive, while the homeserver is stopped.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::archives::{file_of, settings};
use super::ownership::{look, own_work, refuse_anybody_else, refuse_wrong_server_name};
use super::{tell_full_disk, with_reserve};
use crate::archive::{self, Found, FrameAt, Identity, Reader};
use crate::config::Config;
use crate::error::Error;
use crate::hold::Hold;
use crate::ids::{JobId, RoomId};
use crate::job::{Reserve, write_once};
use crate::jobs::ledger::Ledger;
use crate::locks::RoomLocks;
use crate::plural::{count, count_of};
use crate::sqlite_file::{self, NEEDED_TO_BEGIN};
use crate::store::db::{Db, Engine};
use crate::store::event_rows::{RowCounts, add_all};
use crate::store::restore::{self, Look, Numbers, Restored};
use crate::store::{db, removed};

/// What is to come back.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The job whose archive it is in.
    pub job: JobId,
    /// Of that, this room alone.
    pub room: Option<RoomId>,
    /// Only say what would come back.
    pub dry_run: bool,
    /// The private keys, where it is encrypted.
    pub keys: Vec<Identity>,
}

/// What came back, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Restoration {
    /// The job.
    pub job: String,
    /// The rooms.
    pub rooms: Vec<RoomId>,
    /// Events that are in the timeline again.
    pub events: i64,
    /// Events that are held already and stay as they are.
    pub already_there: i64,
    /// State groups.
    pub state_groups: i64,
    /// State groups and events that got new numbers, because theirs were given out again.
    pub renumbered: i64,
    /// Rows, by table; what would come back at most, in a dry run.
    pub rows: RowCounts,
    /// Rows that stay away, by table: what they belong to is gone.
    pub left_out: RowCounts,
    /// The hold that keeps it from going again; none in a dry run.
    pub hold: Option<String>,
    /// What else there is to know, a sentence each.
    pub notes: Vec<String>,
}

/// Brings back what a job removed: each of its transactions whole, newest first, so that at every moment the room is whole
/// and purged less far. Doing it again brings back the rest. It leaves a hold on the rooms, or the next retention run would
/// take them again.
///
/// # Errors
/// [`Error::Config`] where no archives are kept; [`Error::NoSuchJob`]; [`Error::Refused`] while a homeserver runs, while the
/// job has not ended, or where what the archive needs is gone, which is said before anything is touched;
/// [`Error::LedgerLocked`].
pub fn restore(config: &Config, request: &RestoreRequest) -> Result<Restoration, Error> {
    if let (false, Some(file)) = (request.dry_run, config.database.file()) {
        Reserve::beside(file).release_if_short();
    }
    restore_with_room(config, request).map_err(|e| tell_full_disk(config, e, NEEDED_TO_BEGIN))
}

fn restore_with_room(config: &Config, request: &RestoreRequest) -> Result<Restoration, Error> {
    let archive = settings(config)?;
    let file = file_of(archive, &request.job)?;
    let mut archive = Reader::open(&file)?;
    let header = archive.header().clone();
    if header.server_name != config.server_name {
        return Err(Error::Refused(format!(
            "{} is an archive of the server {}, and this is {}",
            file.display(),
            header.server_name,
            config.server_name
        )));
    }
    let mut done = Restoration {
        job: request.job.to_string(),
        ..Restoration::default()
    };
    let mut frames = Vec::new();
    for found in archive.frames()? {
        match found {
            Found::Whole(frame) => {
                if request.room.as_ref().is_none_or(|room| *room == frame.head.room) {
                    frames.push(frame);
                }
            }
            Found::Damaged { at, bytes, why } => done.notes.push(format!(
                "{bytes} bytes of the archive from byte {at} on cannot be read ({why}): what is in them cannot come back"
            )),
        }
    }
    frames.reverse();
    if frames.is_empty() {
        return Err(match &request.room {
            Some(room) => Error::NoSuchRoom(format!(
                "the archive of {} has nothing of room {room}",
                request.job
            )),
            None => Error::Refused(format!("the archive {} is empty", file.display())),
        });
    }
    if request.dry_run {
        look(config, |db| {
            refuse_foreign(db, &header.engine)?;
            plan(db, &archive, &file, &frames, &request.keys, &mut done)
        })?;
        return Ok(done);
    }
    let (ledger, _lock) = own_work(config)?;
    refuse_anybody_else(config)?;
    refuse_unended(&ledger, &request.job)?;
    let mut db = Db::open(&config.database, &db::OpenOptions::default())?;
    refuse_wrong_server_name(&db, config)?;
    refuse_foreign(&db, &header.engine)?;
    let numbers = plan(&db, &archive, &file, &frames, &request.keys, &mut done)?;
    write_numbers(&file, &numbers)?;
    numbers.take(&db)?;
    let hold = lay_hold(config, &ledger, &request.job, &done.rooms)?;
    done.hold = Some(hold);
    // What stands again is no sign of another database (S-30).
    ledger.is_restored(&request.job)?;
    (done.events, done.state_groups) = (0, 0);
    done.rows = RowCounts::new();
    // Nobody else is at work here.
    let (locks, writer) = (RoomLocks::default(), Mutex::default());
    for (n, frame) in frames.iter().enumerate() {
        let head = &frame.head;
        let records = || archive.records(frame, &request.keys);
        let (room, doing) = (Some(&head.room), "restore the archive");
        let back = with_reserve(config, || {
            write_once(&mut db, &locks, &writer, room, doing, |tx| {
                restore::restore(tx, head.kind, &head.room, &records, &numbers)
            })
        });
        // A transaction comes back whole or not at all.
        let back = back.map_err(|e| tell_full_disk(config, e, needed_for(frame)));
        let back = back.map_err(|e| match n {
            0 => e,
            _ => {
                log::warn!("{n} of {} back", count(frames.len() as u64, "transaction"));
                e
            }
        })?;
        db.checkpoint()?;
        add(&mut done, &back);
    }
    for (table, rows) in &done.left_out {
        done.notes.push(format!(
            "{} away: what that belonged to is gone",
            count_of(
                *rows,
                &format!("row of {table} stays"),
                &format!("rows of {table} stay")
            )
        ));
    }
    super::receipts::note_restored(config, &ledger, &done);
    Ok(done)
}

/// Bytes that one transaction of an archive needs on the disk, at most: its rows in the log and in the file.
fn needed_for(frame: &FrameAt) -> u64 {
    // Seen: a row and its places in indexes; and what compressing has saved.
    const PER_ROW: u64 = 2 << 10;
    const TIMES_COMPRESSED: u64 = 16;
    let rows = u64::try_from(frame.head.rows.values().sum::<i64>()).unwrap_or(0);
    NEEDED_TO_BEGIN
        .saturating_add(rows.saturating_mul(PER_ROW))
        .saturating_add(frame.bytes.saturating_mul(TIMES_COMPRESSED))
}

fn add(done: &mut Restoration, back: &Restored) {
    done.events += back.events;
    done.state_groups += back.groups;
    add_all(&mut done.rows, &back.rows);
    add_all(&mut done.left_out, &back.left_out);
}

fn refuse_foreign(db: &Db, engine: &str) -> Result<(), Error> {
    let why = match (db.engine(), engine) {
        (Engine::Sqlite, "sqlite") | (Engine::Postgres, "postgres") => return Ok(()),
        (Engine::Sqlite, _) => "the archive is of a PostgreSQL server, and this is a file",
        (Engine::Postgres, _) => "the archive is of a file, and this is a PostgreSQL server",
    };
    Err(Error::Refused(format!(
        "{why}: rows come back to the engine that they come from"
    )))
}

fn refuse_unended(ledger: &Ledger, job: &JobId) -> Result<(), Error> {
    match ledger.get(job)? {
        Some(record) if !record.state.is_ended() => Err(Error::Refused(format!(
            "the job {job} has not ended and would go on removing: end it first (`roomkeeper jobs --cancel {job}`)"
        ))),
        _ => Ok(()),
    }
}

/// Holds the archive against the database, before anything is touched.
fn plan(
    db: &Db,
    archive: &Reader,
    file: &Path,
    frames: &[FrameAt],
    keys: &[Identity],
    done: &mut Restoration,
) -> Result<Numbers, Error> {
    let before = read_numbers(file)?;
    let mut look = Look::default();
    for frame in frames {
        let room = &frame.head.room;
        look.rooms.insert(room.clone());
        let records = &mut archive.records(frame, keys)?;
        restore::look(db, room, records, &before, &mut look)?;
    }
    for room in &look.whole {
        if restore::is_live(db, room)? {
            look.live.insert(room.clone());
        }
    }
    for room in &look.rooms {
        if !look.whole.contains(room) && !removed::room_stands(db, room)? {
            return Err(Error::Refused(format!(
                "room {room} is not in the database any more: its history cannot come back without it"
            )));
        }
    }
    let numbers = restore::number(db, &mut look, &before)?;
    if look.missing > 0 || look.missing_groups > 0 {
        return Err(Error::Refused(format!(
            "what the archive needs is gone since: {} and {}. If a later job of the room removed \
             them, restore that one first (`roomkeeper archives` lists them)",
            count(look.missing_groups, "state group"),
            count(look.missing, "state event")
        )));
    }
    done.rooms = look.rooms.into_iter().collect();
    done.events = look.events + look.outliers;
    done.already_there = look.present;
    done.state_groups = look.groups;
    done.renumbered = numbers.count() as i64;
    done.rows = look.rows;
    for room in &look.live {
        done.notes.push(format!(
            "room {room} was joined anew: its history comes back, and who is in it and how it is set up stays as it is now"
        ));
    }
    if look.whole.len() > look.live.len() {
        done.notes.push(
            "a deleted room comes back as it was when its rows went: who was moved out before is out, aliases that lead \
             elsewhere by now stay there, media does not come back, and a block stays until it is lifted"
                .into(),
        );
    }
    done.notes.push(
        "what others have seen meanwhile stays so: leaves, notifications, and unread counts are not put back".into(),
    );
    Ok(numbers)
}

/// Where the new numbers of a restoration are written down, beside its archive.
pub(super) fn numbers_of(file: &Path) -> PathBuf {
    file.with_extension("rka-numbers")
}

/// The new numbers of state groups and chains, as they are written down.
#[derive(Serialize, Deserialize)]
struct Written {
    groups: BTreeMap<i64, i64>,
    #[serde(default)]
    chains: BTreeMap<i64, i64>,
}

/// The numbers that an earlier try gave out: what it brought back goes by them.
fn read_numbers(file: &Path) -> Result<Numbers, Error> {
    let path = numbers_of(file);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Numbers::default()),
        text => {
            text.map_err(|e| Error::Refused(format!("{} cannot be read: {e}", path.display())))?
        }
    };
    let written: Written = serde_json::from_slice(&text)
        .map_err(|e| Error::Refused(format!("{} cannot be understood: {e}", path.display())))?;
    Ok(Numbers {
        groups: written.groups,
        chains: written.chains,
        ..Numbers::default()
    })
}

/// On the disk before the first transaction that goes by them.
fn write_numbers(file: &Path, numbers: &Numbers) -> Result<(), Error> {
    if numbers.groups.is_empty() && numbers.chains.is_empty() {
        return Ok(());
    }
    let path = numbers_of(file);
    let write = || {
        let new = path.with_extension("rka-numbers-new");
        let mut out = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        let written = Written {
            groups: numbers.groups.clone(),
            chains: numbers.chains.clone(),
        };
        out.write_all(&serde_json::to_vec(&written)?)?;
        out.sync_all()?;
        fs::rename(&new, &path)?;
        sqlite_file::sync_directory_of(&path)
    };
    write().map_err(|e| archive::unwritable(&path, &e))
}

/// Lays a hold on the rooms, unless one of an earlier try is there.
fn lay_hold(
    config: &Config,
    ledger: &Ledger,
    job: &JobId,
    rooms: &[RoomId],
) -> Result<String, Error> {
    let holds = ledger.holds()?;
    for n in 1.. {
        let name = match n {
            1 => format!("restored-{job}"),
            n => format!("restored-{job}-{n}"),
        };
        let mut named = holds.iter().filter(|hold| hold.name == name).peekable();
        if named.peek().is_some() {
            if named
                .any(|hold| hold.is_active() && rooms.iter().all(|room| hold.rooms.contains(room)))
            {
                return Ok(name);
            }
            continue;
        }
        ledger.add_hold(&Hold {
            name: name.clone(),
            rooms: rooms.to_vec(),
            reason: format!(
                "what job {job} removed was restored: without this hold it would go again"
            ),
            by: Some(config.admin_user.to_string()),
            at_ms: config.clock.now(),
            ..Hold::default()
        })?;
        return Ok(name);
    }
    Err(Error::Bug("no name is left for a hold".into()))
}
