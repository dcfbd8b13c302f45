//! A purge in strides: each is a whole purge to a nearer point, in one transaction.
//!
//! Stopping, crashing or cancelling between two strides leaves a room that is simply purged less far. What must
//! not be forgotten (the state groups of events that are gone) is in the ledger before the stride commits.

use std::fs;
use std::time::{Duration, Instant};

use super::leap::{is_one_stride, leap};
use super::plan::{self, refuse_to_empty};
use super::request::Request;
use super::state;
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{self, Removal, RowCounts};
use crate::store::history::{self, Cut, Extent};
use crate::store::homeserver::{PURGE_LOCK, RowLock};
use crate::store::keys::Keys;
use crate::store::room_rows;
use crate::store::search::{self, Documents};
use crate::store::space;
use crate::worksite::{
    BUSY_PATIENCE, Gait, LOST_REST, Pace, Phase, Progress, Worksite, acquire_row_lock, hold,
    overwrite, tidy,
};

/// Carries out a purge from wherever an earlier run of the same job left it.
///
/// # Errors
/// Refusals before anything is touched ([`Error::WouldEmptyRoom`], [`Error::NoSpace`], …); [`Error::Stopping`]
/// and [`Error::Cancelled`] between strides. In every case the room is whole.
///
/// # Locking
/// Takes the room alone for each stride and lets readers through between strides; holds Synapse's
/// `purge_pagination_lock`, where there is one, for the whole run.
pub fn run(site: &mut Worksite<'_>, request: &Request) -> Result<Progress, Error> {
    let mut progress: Progress = serde_json::from_value(site.live.progress()).unwrap_or_default();
    progress.phase = Phase::Counting;
    // Said again where it is still so.
    progress.notes.clear();
    site.publish(&progress);
    let handle = site.db.interrupt_handle();
    site.live
        .set_interrupt(Some(Box::new(move || handle.interrupt())));
    site.stay_or_go()?;
    let mut row_lock = acquire_row_lock(site, &[PURGE_LOCK]).map_err(|e| site.explain(e))?;
    let outcome = run_locked(site, request, &mut progress, row_lock.as_mut());
    site.live.set_interrupt(None);
    if let Some(lock) = row_lock
        && let Err(e) = lock.release(&mut site.db)
    {
        log::warn!("room {}: {}", site.room, crate::error::Chain(&e));
    }
    site.publish(&progress);
    outcome.map(|()| progress)
}

/// Prepares a connection for the purges of many rooms, one after the other: each with the depth that survives.
pub fn prepare_many<'a>(
    db: &Db,
    cuts: impl Iterator<Item = (&'a RoomId, i64)>,
) -> Result<(), Error> {
    match search::is_present(db) {
        true => Documents::note_many(db, cuts).map(drop),
        false => Ok(()),
    }
}

fn run_locked(
    site: &mut Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
    mut lock: Option<&mut RowLock>,
) -> Result<(), Error> {
    let strides = purge_events(site, request, progress, &mut lock).map_err(|e| site.explain(e));
    if site.gait == Gait::Beside && site.db.engine() == Engine::Sqlite {
        let_go_of_log(site, matches!(strides, Err(Error::Stopping)));
    }
    match &strides {
        // What is on its way out must not take long; the rest waits for the next start.
        Err(Error::Stopping | Error::Unsafe(_)) => return strides,
        // An interrupt can end a commit that has happened all the same: what was noted before it says so.
        Err(Error::Cancelled) if !site.ledger.candidates(site.room.as_str())?.is_empty() => {}
        Err(_) if progress.strides == 0 => return strides,
        _ => {}
    }
    // From here on a cancelled job is tidied up like any other; only stopping interrupts it.
    if matches!(strides, Err(Error::Cancelled)) {
        site.live.set_interrupt(None);
    }
    let groups = state::collect(site, progress, &mut lock)
        .and_then(|()| tidy(site, progress))
        .map_err(|e| site.explain(e));
    match (strides, groups) {
        (Ok(()), groups) => groups,
        (strides, Ok(())) => strides,
        (strides, Err(e)) => {
            log::warn!(
                "room {}: after the purge ended early: {}",
                site.room,
                crate::error::Chain(&e)
            );
            if matches!(e, Error::Stopping) {
                Err(e)
            } else {
                strides
            }
        }
    }
}

fn purge_events(
    site: &mut Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
    lock: &mut Option<&mut RowLock>,
) -> Result<(), Error> {
    let on_server = site.db.engine() == Engine::Postgres;
    if !on_server {
        // Strides say themselves when the log is copied.
        site.db.set_pragma("wal_autocheckpoint", 0)?;
    }
    let below = request.point.topological;
    if site.is_one_of_many {
        history::forget_former_job(&site.db)?;
    }
    refuse_to_empty(&site.db, site.room, request)?;
    if !room_rows::is_known(&site.db, site.room)? {
        let note = "the database does not know this room (an id begins with !; an alias is none)";
        progress.notes.push(note.into());
    }
    refuse_partial_state(site, request)?;
    space::check_room_to_purge(&site.db)?;
    let left = history::count_timeline(&site.db, &request.cut(site.room, site.server_name))?;
    progress.events_planned = progress.events_done + left;
    if site.gait == Gait::Offline && leap(site, request, progress, left, lock)? {
        return Ok(());
    }
    let documents = match search::is_present(&site.db) {
        true if site.is_one_of_many => Some(Documents::noted()),
        true => Some(Documents::new(&site.db)?),
        false => None,
    };
    if let Some(documents) = &documents {
        documents.note(&site.db, site.room, below)?;
    }
    progress.phase = Phase::Events;
    // Not inside a transaction, and each change has every statement prepared anew: so once for all strides.
    let in_sets = !on_server || site.bounds.keys_in_sets;
    let mut keys = if in_sets { Keys::read(&site.db)? } else { None };
    if let Some(who) = plan::care_for_keys(&site.db, in_sets)? {
        log::info!("room {}: foreign keys are {who}", site.room);
    }
    if keys.is_some() {
        site.db.set_foreign_keys(false)?;
    }
    let outcome = strides(site, request, progress, documents.as_ref(), &mut keys, lock);
    site.db.set_foreign_keys(true)?;
    outcome
}

/// Lets the server's connections copy the log again, after most of it has been copied for them; a process that stops
/// does not wait for that.
fn let_go_of_log(site: &Worksite<'_>, is_stopping: bool) {
    let mut writer = site.writer.lock();
    writer.unpin();
    if is_stopping {
        return;
    }
    if let Err(e) = writer.copy(&site.db) {
        log::debug!("room {}: {}", site.room, crate::error::Chain(&e));
    }
}

fn strides(
    site: &mut Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
    documents: Option<&Documents>,
    keys: &mut Option<Keys>,
    lock: &mut Option<&mut RowLock>,
) -> Result<(), Error> {
    let below = request.point.topological;
    let secure_delete = overwrite::settle_on(site)?;
    let on_server = site.db.engine() == Engine::Postgres;
    let mut pace = Pace::new(site.gait, site.bounds).on_server(on_server);
    let planned = progress.events_planned - progress.events_done;
    let mut leaps = is_one_stride(site, keys.as_ref(), planned)?;
    let (started, done_before) = (Instant::now(), progress.events_done);
    let mut from = i64::MIN;
    let mut waited_from = Instant::now();
    loop {
        site.publish(progress);
        site.stay_or_go()?;
        let next = site.still_alone().and_then(|()| match leaps {
            true => Ok(None),
            false => history::depth_after(&site.db, site.room, from, below, pace.events()),
        });
        let next = match next {
            Err(e) if e.is_lost() && waited_from.elapsed() < BUSY_PATIENCE => {
                wait_for_server(site, &e);
                continue;
            }
            next => next?,
        };
        // The last stride looks at everything once more: at what came late, and at redactions that were kept
        // for the sake of events that are gone by now.
        let (from_depth, to_depth) = next.map_or((i64::MIN, below), |next| (from, next));
        let cut = Cut {
            from: from_depth,
            below: to_depth,
            ..request.cut(site.room, site.server_name)
        };
        let means = Means {
            documents,
            keys: keys.as_ref(),
            secure_delete,
            leaps,
        };
        let stride = match stride(site, &cut, below, &pace, means, lock, progress) {
            Ok(Outcome::Done(stride)) => stride,
            Ok(Outcome::BreaksKeys) => {
                log::debug!(
                    "room {}: a foreign key needs the engine's own care",
                    site.room
                );
                (*keys, leaps) = (None, false);
                site.db.set_foreign_keys(true)?;
                continue;
            }
            Ok(Outcome::TooLong) => {
                pace.shorten();
                site.rest(pace.rest());
                continue;
            }
            Err(e) if e.is_lost() && waited_from.elapsed() < BUSY_PATIENCE => {
                wait_for_server(site, &e);
                continue;
            }
            Err(e)
                if e.is_busy()
                    && (site.gait == Gait::Beside || on_server)
                    && waited_from.elapsed() < BUSY_PATIENCE =>
            {
                log::info!(
                    "room {}: the homeserver keeps the database busy; waiting",
                    site.room
                );
                site.rest(pace.rest());
                continue;
            }
            Err(e) => return Err(e),
        };
        waited_from = Instant::now();
        progress.strides += 1;
        progress.table = None;
        progress.leapt |= leaps;
        progress.events_done = (progress.events_done + stride.events).min(progress.events_planned);
        progress.longest_transaction_ms = progress
            .longest_transaction_ms
            .max(stride.took.as_millis() as i64);
        progress.add_rows(&stride.rows);
        site.keep(progress);
        pace.learn(stride.events, stride.took, stride.wal_bytes);
        progress.reckon(started, done_before);
        log::debug!(
            "room {}: {} of {} events",
            site.room,
            progress.events_done,
            progress.events_planned
        );
        let Some(next) = next else { break };
        from = next;
        site.rest(pace.rest());
    }
    progress.seconds_left = None;
    Ok(())
}

/// A server that was lost may be there again in a moment.
fn wait_for_server(site: &Worksite<'_>, lost: &Error) {
    log::warn!(
        "room {}: {}; trying again",
        site.room,
        crate::error::Chain(lost)
    );
    site.rest(LOST_REST);
}

/// P-18, before anything is touched: a later stride would find out too late. Only a room that is being joined
/// costs more than a look.
fn refuse_partial_state(site: &Worksite<'_>, request: &Request) -> Result<(), Error> {
    if !history::is_partially_joined(&site.db, site.room)? {
        return Ok(());
    }
    let whole = request.cut(site.room, site.server_name);
    site.db
        .read("look for events with partial state", |db| {
            history::select(db, &whole, Extent::Whole)
        })
        .map(drop)
}

struct Stride {
    events: i64,
    rows: RowCounts,
    took: Duration,
    wal_bytes: u64,
}

enum Outcome {
    Done(Stride),
    /// Others would have waited too long; nothing of it happened.
    TooLong,
    /// Something refers to an event that goes, and foreign keys are off; nothing of it happened.
    BreaksKeys,
}

/// What a stride of a job works with besides its database.
#[derive(Clone, Copy)]
struct Means<'a> {
    documents: Option<&'a Documents>,
    /// Looks after foreign keys while they are off.
    keys: Option<&'a Keys>,
    secure_delete: SecureDelete,
    /// On a server: whether this is the whole purge, and a large part of what the server has.
    leaps: bool,
}

fn stride(
    site: &mut Worksite<'_>,
    cut: &Cut<'_>,
    survives: i64,
    pace: &Pace,
    means: Means<'_>,
    lock: &mut Option<&mut RowLock>,
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    let room = site.locks.write(site.room);
    let mut writer = site.writer.lock();
    if site.gait == Gait::Beside {
        writer.pin(&site.db)?;
    }
    let (ledger, live, clock, gait) = (site.ledger, site.live, site.clock, site.gait);
    let overwrites = site.overwrite_deleted;
    let may_rebuild = gait == Gait::Offline;
    // Whether it would be cheaper takes a look at every document: too much for one of many small purges.
    let rebuild_from = if site.is_one_of_many { 10_000 } else { 0 };
    let mut begun = Instant::now();
    let (mut gave_up, mut breaks_keys) = (false, false);
    let on_server = site.db.engine() == Engine::Postgres;
    let extent = match means.leaps || (on_server && pace.events() >= INDEXED_WHEN_FULL) {
        true => Extent::Whole,
        false => Extent::Stride,
    };
    site.db.walk_indexes(!means.leaps);
    let wal_before = log_length(&site.db);
    let result = site.db.write("purge the events", |db| {
        // From here on others wait for us; before, we waited for them.
        begun = Instant::now();
        let mut in_time = |table: &'static str| match pace.deadline() {
            Some(deadline) if begun.elapsed() > deadline && pace.events() > 1 => {
                gave_up = true;
                Err(Error::Cancelled)
            }
            _ if means.leaps => {
                progress.table = Some(table.to_owned());
                live.set_progress(serde_json::to_value(&*progress).unwrap_or_default());
                Ok(())
            }
            _ => Ok(()),
        };
        hold(db, lock, clock)?;
        let selected = history::select(db, cut, extent)?;
        if selected.events == 0 {
            // P-7: an empty selection touches nothing.
            return Ok((0, RowCounts::new()));
        }
        let mut rows = RowCounts::new();
        if let Some(documents) = means.documents {
            in_time("event_search")?;
            documents.note(db, cut.room, survives)?;
            event_rows::add(
                &mut rows,
                "event_search",
                documents.remove(db, may_rebuild && selected.events >= rebuild_from)?,
            );
        }
        if overwrites && selected.doomed > 0 && db.engine() == Engine::Sqlite {
            overwrite::owe(ledger, means.secure_delete, !rows.is_empty())?;
        }
        let removal = Removal::Rows;
        let removed = history::remove(db, cut, selected, survives, removal, &mut in_time)?;
        rows.extend(removed.rows);
        ledger.add_candidates(room.room().as_str(), &removed.state_groups)?;
        in_time("")?;
        if let Some(keys) = means.keys
            && keys.are_broken(db, selected.doomed)?
        {
            breaks_keys = true;
            return Err(Error::Cancelled);
        }
        Ok((selected.events, rows))
    });
    let took = begun.elapsed();
    site.db.walk_indexes(true);
    let wal_bytes = log_length(&site.db);
    match site.gait {
        _ if site.db.engine() == Engine::Postgres => {}
        // Emptying it costs as much for one small room as for hundreds of them.
        Gait::Offline if site.is_one_of_many && wal_bytes < LOG_OF_MANY => {}
        // The log is empty again before the next stride; with readers about, it is when they have gone.
        Gait::Offline => drop(site.db.checkpoint()?),
        Gait::Beside => writer.shorten(&site.db)?,
    }
    drop(writer);
    if result.is_err() && breaks_keys {
        return Ok(Outcome::BreaksKeys);
    }
    if result.is_err() && gave_up {
        return Ok(Outcome::TooLong);
    }
    let (events, rows) = result?;
    Ok(Outcome::Done(Stride {
        events,
        rows,
        took,
        wal_bytes: match wal_bytes.saturating_sub(wal_before) {
            // It began anew meanwhile.
            0 => wal_bytes,
            grown => grown,
        },
    }))
}

/// Events of a stride on a server from which it costs less to make the indexes of the selection anew.
const INDEXED_WHEN_FULL: i64 = 4_000;

/// Length at which the log is emptied between many small purges; before, their pages are written again and again.
const LOG_OF_MANY: u64 = 128 * 1024 * 1024;

/// Bytes of the write-ahead log.
fn log_length(db: &Db) -> u64 {
    let wal = db.wal_path();
    wal.and_then(|w| fs::metadata(w).ok())
        .map_or(0, |m| m.len())
}
