//! A purge in batches: each is a whole purge to a nearer point, in one transaction.
//!
//! Stopping, crashing or cancelling between two batches leaves a room that is simply purged less far. What must
//! not be forgotten (the state groups of events that are gone) is in the ledger before the batch commits.

use std::fs;
use std::time::{Duration, Instant};

use super::extremities;
use super::plan::{self, refuse_to_empty};
use super::request::Request;
use super::rewrite::{is_one_batch, rewrite};
use super::state_groups;
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{
    BUSY_TIMEOUT, BatchSizer, DiskBudget, JobContext, Phase, Progress, RECONNECT_PAUSE, Removes,
    Removing, ServerState, acquire_synapse_lock, clean_up, full_text, note_removed, overwrite,
    renew_lock,
};
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{self, Removal, RowCounts};
use crate::store::foreign_keys::ForeignKeys;
use crate::store::history::{self, DepthRange, Extent};
use crate::store::homeserver::{PURGE_LOCK, SynapseLock};
use crate::store::room_rows;
use crate::store::search::{self, Documents};

/// Carries out a purge from wherever an earlier run of the same job left it.
///
/// # Errors
/// Refusals before anything is touched ([`Error::WouldEmptyRoom`], [`Error::NoSpace`], …); [`Error::Stopping`]
/// and [`Error::Cancelled`] between batches. In every case the room is whole.
///
/// # Locking
/// Takes the room alone for each batch and lets readers through between batches; holds Synapse's
/// `purge_pagination_lock`, where there is one, for the whole run.
pub fn run(ctx: &mut JobContext<'_>, request: &Request) -> Result<Progress, Error> {
    let mut progress: Progress = serde_json::from_value(ctx.live.progress()).unwrap_or_default();
    progress.phase = Phase::Counting;
    // Said again where it is still so.
    progress.notes.clear();
    ctx.publish(&progress);
    let handle = ctx.db.interrupt_handle();
    ctx.live
        .set_interrupt(Some(Box::new(move || handle.interrupt())));
    ctx.check_cancelled()?;
    let request = &Request {
        held: ctx.heed_holds(Removes::History)?,
        ..request.clone()
    };
    let mut synapse_lock =
        acquire_synapse_lock(ctx, &[PURGE_LOCK]).map_err(|e| ctx.map_interrupt(e))?;
    let outcome = run_locked(ctx, request, &mut progress, synapse_lock.as_mut());
    ctx.live.set_interrupt(None);
    if let Some(lock) = synapse_lock
        && let Err(e) = lock.release(&mut ctx.db)
    {
        log::warn!("room {}: {}", ctx.room, crate::error::Chain(&e));
    }
    ctx.publish(&progress);
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
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
    mut lock: Option<&mut SynapseLock>,
) -> Result<(), Error> {
    let batches = purge_events(ctx, request, progress, &mut lock).map_err(|e| ctx.map_interrupt(e));
    if ctx.db.engine() == Engine::Sqlite {
        let_go_of_log(ctx, matches!(batches, Err(Error::Stopping)));
    }
    match &batches {
        // What is on its way out must not take long; the rest waits for the next start.
        Err(Error::Stopping | Error::Refused(_) | Error::Held(_)) => return batches,
        // An interrupt can end a commit that has happened all the same: what was noted before it says so.
        Err(Error::Cancelled) if !ctx.ledger.candidates(ctx.room.as_str())?.is_empty() => {}
        Err(_) if progress.batches == 0 => return batches,
        _ => {}
    }
    // From here on a cancelled job is tidied up like any other; only stopping interrupts it.
    if matches!(batches, Err(Error::Cancelled)) {
        ctx.live.set_interrupt(None);
    }
    let groups = state_groups::collect(ctx, progress, &mut lock)
        .and_then(|()| clean_up(ctx, progress))
        .map_err(|e| ctx.map_interrupt(e));
    match (batches, groups) {
        (Ok(()), groups) => groups,
        (batches, Ok(())) => batches,
        (batches, Err(e)) => {
            log::warn!(
                "room {}: after the purge ended early: {}",
                ctx.room,
                crate::error::Chain(&e)
            );
            if matches!(e, Error::Stopping) {
                Err(e)
            } else {
                batches
            }
        }
    }
}

fn purge_events(
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
    lock: &mut Option<&mut SynapseLock>,
) -> Result<(), Error> {
    let on_server = ctx.db.engine() == Engine::Postgres;
    if !on_server {
        // Batches say themselves when the log is copied.
        ctx.db.set_pragma("wal_autocheckpoint", 0)?;
    }
    let below = request.point.topological;
    if ctx.is_one_of_many {
        history::forget_former_job(&ctx.db)?;
    }
    refuse_to_empty(&ctx.db, ctx.room, request)?;
    if !room_rows::is_known(&ctx.db, ctx.room)? {
        let note = "the database does not know this room (an id begins with !; an alias is none)";
        progress.notes.push(note.into());
    }
    refuse_partial_state(ctx, request)?;
    extremities::have_surplus_dropped(ctx, request)?;
    let expiry = request.expiry(&ctx.db, ctx.clock.now())?;
    let whole = extremities::cut(ctx, request, expiry);
    let left = match request.held.is_empty() {
        true => history::count_timeline(&ctx.db, &whole)?,
        false => count_beside_held(ctx, &whole)?,
    };
    progress.events_planned = progress.events_done + left;
    if ctx.server_state == ServerState::Stopped && rewrite(ctx, request, progress, left, lock)? {
        return Ok(());
    }
    let documents = match search::is_present(&ctx.db) {
        true if ctx.is_one_of_many => Some(Documents::noted()),
        true => Some(Documents::new(&ctx.db)?),
        false => None,
    };
    if let Some(documents) = &documents {
        documents.note(&ctx.db, ctx.room, below)?;
    }
    progress.phase = Phase::Events;
    // Not inside a transaction, and each change has every statement prepared anew: so once for all batches.
    let in_sets = !on_server || ctx.limits.check_in_bulk;
    let mut keys = if in_sets {
        ForeignKeys::read(&ctx.db)?
    } else {
        None
    };
    if let Some(who) = plan::foreign_key_mode(&ctx.db, in_sets)? {
        log::info!("room {}: foreign keys are {who}", ctx.room);
    }
    if keys.is_some() {
        ctx.db.set_foreign_keys(false)?;
    }
    let outcome = batches(ctx, request, progress, documents.as_ref(), &mut keys, lock);
    ctx.db.set_foreign_keys(true)?;
    outcome
}

/// What goes where some of it is held.
fn count_beside_held(ctx: &JobContext<'_>, whole: &DepthRange<'_>) -> Result<i64, Error> {
    ctx.db.read("count the events to purge", |db| {
        let selected = history::select(db, whole, Extent::Whole)?;
        if selected.held > 0 {
            log::info!(
                "room {}: {} below the point are held and stay",
                ctx.room,
                selected.held
            );
        }
        Ok(selected.events)
    })
}

/// Lets the server's connections copy the log again, after most of it has been copied for them; a process that stops
/// does not wait for that.
fn let_go_of_log(ctx: &JobContext<'_>, is_stopping: bool) {
    let mut writer = ctx.writer.lock();
    if !writer.unpin() || is_stopping {
        return;
    }
    if let Err(e) = writer.checkpoint(&ctx.db) {
        log::debug!("room {}: {}", ctx.room, crate::error::Chain(&e));
    }
}

fn batches(
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
    documents: Option<&Documents>,
    keys: &mut Option<ForeignKeys>,
    lock: &mut Option<&mut SynapseLock>,
) -> Result<(), Error> {
    let below = request.point.topological;
    let secure_delete = overwrite::choose_secure_delete(ctx)?;
    let on_server = ctx.db.engine() == Engine::Postgres;
    let mut sizer = BatchSizer::new(ctx.server_state, ctx.limits).on_server(on_server);
    let mut disk = DiskBudget::new(&ctx.db);
    let planned = progress.events_planned - progress.events_done;
    let expiry = request.expiry(&ctx.db, ctx.clock.now())?;
    let mut rewrites = request.held.is_empty() && is_one_batch(ctx, keys.as_ref(), planned)?;
    let (started, done_before) = (Instant::now(), progress.events_done);
    let mut from = i64::MIN;
    let mut waited_from = Instant::now();
    loop {
        ctx.publish(progress);
        ctx.check_cancelled()?;
        match full_text::merge_in_steps(ctx, &disk) {
            Err(e) if e.is_full() && ctx.release_reserve() => continue,
            Err(e) if e.is_full() => return Err(disk.full()),
            Err(e) if e.is_index_damage() => full_text::rebuild_if_damaged(ctx, progress, e)?,
            merged => merged?,
        }
        sizer.set_limit(disk.events()?);
        let next = ctx.look_for_homeserver().and_then(|()| {
            if sizer.server_state() != ctx.server_state {
                sizer = BatchSizer::new(ctx.server_state, ctx.limits).on_server(on_server);
                sizer.set_limit(disk.events()?);
                rewrites &= ctx.server_state == ServerState::Stopped;
            }
            match rewrites {
                true => Ok(None),
                false => history::depth_after(&ctx.db, ctx.room, from, below, sizer.events()),
            }
        });
        let next = match next {
            Err(e) if e.is_disconnected() && waited_from.elapsed() < BUSY_TIMEOUT => {
                wait_for_server(ctx, &e);
                continue;
            }
            next => next?,
        };
        // The last batch looks at everything once more: at what came late, and at redactions that were kept
        // for the sake of events that are gone by now.
        let (from_depth, to_depth) = next.map_or((i64::MIN, below), |next| (from, next));
        let cut = DepthRange {
            from: from_depth,
            below: to_depth,
            ..extremities::cut(ctx, request, expiry)
        };
        let options = BatchOptions {
            documents,
            keys: keys.as_ref(),
            secure_delete,
            rewrites,
            disk: &disk,
        };
        let batch = match batch(ctx, &cut, below, &sizer, options, lock, progress) {
            Ok(Outcome::Done(batch)) => batch,
            Ok(Outcome::BreaksKeys) => {
                log::debug!(
                    "room {}: a foreign key needs the engine's own care",
                    ctx.room
                );
                (*keys, rewrites) = (None, false);
                ctx.db.set_foreign_keys(true)?;
                continue;
            }
            Ok(Outcome::TooLong) => {
                sizer.shrink();
                ctx.rest(sizer.pause());
                continue;
            }
            Err(e) if e.is_disconnected() && waited_from.elapsed() < BUSY_TIMEOUT => {
                wait_for_server(ctx, &e);
                continue;
            }
            Err(e)
                if e.is_busy()
                    && (ctx.server_state == ServerState::Running || on_server)
                    && waited_from.elapsed() < BUSY_TIMEOUT =>
            {
                log::info!(
                    "room {}: the homeserver keeps the database busy; waiting",
                    ctx.room
                );
                ctx.rest(sizer.pause());
                continue;
            }
            Err(e) if e.is_index_damage() => {
                full_text::rebuild_if_damaged(ctx, progress, e)?;
                continue;
            }
            // Nothing of it happened, and its log is gone: half as much may have room.
            Err(e) if e.is_full() && !on_server && sizer.events() > 1 => {
                log::info!(
                    "room {}: the disk has no room for {} events at once",
                    ctx.room,
                    sizer.events()
                );
                sizer.shrink();
                continue;
            }
            Err(e) if e.is_full() && !on_server && ctx.release_reserve() => continue,
            Err(e) if e.is_full() && !on_server => return Err(disk.full()),
            Err(e) => return Err(e),
        };
        waited_from = Instant::now();
        progress.batches += 1;
        progress.table = None;
        progress.rewritten |= rewrites;
        progress.events_done = (progress.events_done + batch.events).min(progress.events_planned);
        progress.longest_transaction_ms = progress
            .longest_transaction_ms
            .max(batch.took.as_millis() as i64);
        progress.add_rows(&batch.rows);
        progress.local_messages_kept += batch.local_messages;
        // The last one looks at everything.
        progress.extremities_kept = batch.extremities_kept;
        ctx.save_progress(progress);
        sizer.observe(batch.events, batch.took, batch.wal_bytes);
        disk.observe(batch.events, batch.wal_bytes);
        progress.reckon(started, done_before);
        log::debug!(
            "room {}: {} of {} events",
            ctx.room,
            progress.events_done,
            progress.events_planned
        );
        let Some(next) = next else { break };
        from = next;
        ctx.rest(sizer.pause());
    }
    progress.seconds_left = None;
    extremities::tell_what_stays(progress);
    Ok(())
}

/// A server that was lost may be there again in a moment.
fn wait_for_server(ctx: &JobContext<'_>, lost: &Error) {
    log::warn!(
        "room {}: {}; trying again",
        ctx.room,
        crate::error::Chain(lost)
    );
    ctx.rest(RECONNECT_PAUSE);
}

/// P-18, before anything is touched: a later batch would find out too late. Only a room that is being joined
/// costs more than a look.
fn refuse_partial_state(ctx: &JobContext<'_>, request: &Request) -> Result<(), Error> {
    if !history::is_partially_joined(&ctx.db, ctx.room)? {
        return Ok(());
    }
    let expiry = request.expiry(&ctx.db, ctx.clock.now())?;
    let whole = extremities::cut(ctx, request, expiry);
    ctx.db
        .read("look for events with partial state", |db| {
            history::select(db, &whole, Extent::Whole)
        })
        .map(drop)
}

#[derive(Default)]
struct Batch {
    events: i64,
    extremities_kept: i64,
    local_messages: i64,
    rows: RowCounts,
    took: Duration,
    wal_bytes: u64,
}

enum Outcome {
    Done(Batch),
    /// Others would have waited too long; nothing of it happened.
    TooLong,
    /// Something refers to an event that goes, and foreign keys are off; nothing of it happened.
    BreaksKeys,
}

/// What a batch of a job works with besides its database.
#[derive(Clone, Copy)]
struct BatchOptions<'a> {
    documents: Option<&'a Documents>,
    /// Looks after foreign keys while they are off.
    keys: Option<&'a ForeignKeys>,
    secure_delete: SecureDelete,
    /// On a server: whether this is the whole purge, and a large part of what the server has.
    rewrites: bool,
    /// What the disk has room for.
    disk: &'a DiskBudget,
}

fn batch(
    ctx: &mut JobContext<'_>,
    cut: &DepthRange<'_>,
    keep_from_depth: i64,
    sizer: &BatchSizer,
    options: BatchOptions<'_>,
    lock: &mut Option<&mut SynapseLock>,
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    let room = ctx.locks.write(ctx.room);
    let mut writer = ctx.writer.lock();
    match ctx.server_state {
        ServerState::Running => writer.pin(&ctx.db)?,
        ServerState::Stopped => {
            writer.unpin();
        }
    }
    let (ledger, live, clock, server_state) = (ctx.ledger, ctx.live, ctx.clock, ctx.server_state);
    let overwrites = ctx.overwrite_deleted;
    let may_rebuild = server_state == ServerState::Stopped && !sizer.is_limited();
    // Whether it would be cheaper takes a look at every document: too much for one of many small purges.
    let rebuild_from = if ctx.is_one_of_many { 10_000 } else { 0 };
    let mut begun = Instant::now();
    let (mut gave_up, mut breaks_keys) = (false, false);
    let on_server = ctx.db.engine() == Engine::Postgres;
    let extent = match options.rewrites || (on_server && sizer.events() >= INDEXED_WHEN_FULL) {
        true => Extent::Whole,
        false => Extent::Batch,
    };
    ctx.db.prefer_index_scans(!options.rewrites);
    let wal_before = log_length(&ctx.db);
    let result = ctx.db.write("purge the events", |db| {
        // From here on others wait for us; before, we waited for them.
        begun = Instant::now();
        let mut in_time = |table: &'static str| match sizer.deadline() {
            Some(deadline) if begun.elapsed() > deadline && sizer.events() > 1 => {
                gave_up = true;
                Err(Error::Cancelled)
            }
            _ if options.rewrites => {
                progress.table = Some(table.to_owned());
                live.set_progress(serde_json::to_value(&*progress).unwrap_or_default());
                Ok(())
            }
            _ => Ok(()),
        };
        renew_lock(db, lock, clock)?;
        let selected = history::select(db, cut, extent)?;
        if selected.events == 0 {
            // P-7: an empty selection touches nothing.
            return Ok(Batch {
                extremities_kept: selected.extremities_kept,
                ..Batch::default()
            });
        }
        in_time("")?;
        let local_messages = history::local_messages(db, cut)?;
        let mut rows = RowCounts::new();
        if let Some(documents) = options.documents {
            in_time("event_search")?;
            documents.note(db, cut.room, keep_from_depth)?;
            event_rows::add(
                &mut rows,
                "event_search",
                documents.remove(db, may_rebuild && selected.events >= rebuild_from)?,
            );
        }
        if overwrites && selected.to_delete > 0 && db.engine() == Engine::Sqlite {
            overwrite::add_pending(ledger, options.secure_delete, !rows.is_empty())?;
        }
        let removal = Removal::Rows;
        let removed = history::remove(db, cut, selected, keep_from_depth, removal, &mut in_time)?;
        rows.extend(removed.rows);
        ledger.add_candidates(room.room().as_str(), &removed.state_groups)?;
        note_removed(db, ledger, live, Removing::Events)?;
        in_time("")?;
        if let Some(keys) = options.keys
            && keys.are_broken(db, selected.to_delete)?
        {
            breaks_keys = true;
            return Err(Error::Cancelled);
        }
        Ok(Batch {
            events: selected.events,
            extremities_kept: selected.extremities_kept,
            local_messages,
            rows,
            ..Batch::default()
        })
    });
    let took = begun.elapsed();
    ctx.db.prefer_index_scans(true);
    let wal_bytes = log_length(&ctx.db);
    if result.is_ok() {
        ctx.note_commit();
    }
    match ctx.server_state {
        _ if ctx.db.engine() == Engine::Postgres => {}
        // Emptying it costs as much for one small room as for hundreds of them.
        ServerState::Stopped
            if ctx.is_one_of_many
                && wal_bytes < LOG_OF_MANY
                && result.is_ok()
                && options.disk.has_room_beside(wal_bytes) => {}
        // The log is empty again before the next batch; with readers about, it is when they have gone.
        ServerState::Stopped => {
            let emptied = ctx.db.checkpoint();
            if result.is_ok() {
                emptied?;
            }
        }
        ServerState::Running => writer.checkpoint_if_long(&ctx.db)?,
    }
    drop(writer);
    if result.is_err() && breaks_keys {
        return Ok(Outcome::BreaksKeys);
    }
    if result.is_err() && gave_up {
        return Ok(Outcome::TooLong);
    }
    Ok(Outcome::Done(Batch {
        took,
        wal_bytes: match wal_bytes.saturating_sub(wal_before) {
            // It began anew meanwhile.
            0 => wal_bytes,
            grown => grown,
        },
        ..result?
    }))
}

/// Events of a batch on a server from which it costs less to make the indexes of the selection anew.
const INDEXED_WHEN_FULL: i64 = 4_000;

/// Length at which the log is emptied between many small purges; before, their pages are written again and again.
const LOG_OF_MANY: u64 = 128 * 1024 * 1024;

/// Bytes of the write-ahead log.
fn log_length(db: &Db) -> u64 {
    let wal = db.wal_path();
    wal.and_then(|w| fs::metadata(w).ok())
        .map_or(0, |m| m.len())
}
