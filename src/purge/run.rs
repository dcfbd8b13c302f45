//! A purge in batches: each is a whole purge to a nearer point, in one transaction.
//!
//! Stopping, crashing or cancelling between two batches leaves a room that is simply purged less far. What must
//! not be forgotten (the state groups of events that are gone) is in the ledger before the batch commits.

use std::time::Instant;

use super::extremities;
use super::plan::{self, refuse_to_empty};
use super::request::Request;
use super::rewrite::{is_one_batch, rewrite};
use super::state_groups;
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{
    BUSY_TIMEOUT, BatchSizer, DiskBudget, Duties, Effects, JobContext, Limits, Log, Outcome, Phase,
    Progress, RECONNECT_PAUSE, Removes, Scope, ServerState, SharedArchive, Why,
    acquire_synapse_lock, archive_events, clean_up, full_text, overwrite,
};
use crate::plural::count;
use crate::store::archived;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{self, Removal};
use crate::store::foreign_keys::ForeignKeys;
use crate::store::history::{self, DepthRange, Extent};
use crate::store::homeserver::PURGE_LOCK;
use crate::store::room_rows;
use crate::store::search::{self, Documents};
use crate::store::tx::{Abort, Tx};
use crate::time::Clock;

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
    ctx.begin_media(request.media, &mut progress)?;
    acquire_synapse_lock(ctx, &[PURGE_LOCK]).map_err(|e| ctx.map_interrupt(e))?;
    let outcome = run_locked(ctx, request, &mut progress);
    ctx.live.set_interrupt(None);
    ctx.tell_of_archive(&mut progress);
    if outcome.is_ok() {
        ctx.look_for_residue(&mut progress);
    }
    ctx.release_synapse_lock();
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
) -> Result<(), Error> {
    let batches = purge_events(ctx, request, progress).map_err(|e| ctx.map_interrupt(e));
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
    let groups = state_groups::collect(ctx, progress)
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
    if ctx.server_state == ServerState::Stopped && rewrite(ctx, request, progress, left)? {
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
    let outcome = batches(ctx, request, progress, documents.as_ref(), &mut keys);
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
pub(super) fn let_go_of_log(ctx: &JobContext<'_>, is_stopping: bool) {
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
) -> Result<(), Error> {
    let below = request.point.topological;
    let planned = progress.events_planned - progress.events_done;
    let secure_delete = overwrite::choose_secure_delete(ctx, planned)?;
    let on_server = ctx.db.engine() == Engine::Postgres;
    let mut sizer = BatchSizer::new(ctx.server_state, ctx.limits).on_server(on_server);
    let mut disk = DiskBudget::new(&ctx.db);
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
            Err(e) if e.is_full() => return Err(disk.full(&ctx.db, ctx.room)),
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
        let (events, cost) = match batch(ctx, &cut, below, &sizer, options, progress) {
            Ok(Outcome::Done(events, cost)) => (events, cost),
            Ok(Outcome::Aborted(Why::BreaksForeignKeys)) => {
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
            Ok(Outcome::Aborted(Why::ServerStateChanged)) => continue,
            Ok(outcome @ Outcome::Aborted(_)) => return outcome.done().map(drop),
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
                    "room {}: the disk has no room for {} at once",
                    ctx.room,
                    count(sizer.events(), "event")
                );
                sizer.shrink();
                continue;
            }
            Err(e) if e.is_full() && !on_server && ctx.release_reserve() => continue,
            Err(e) if e.is_full() && !on_server => return Err(disk.full(&ctx.db, ctx.room)),
            Err(e) => return Err(ctx.map_constraint(e)),
        };
        waited_from = Instant::now();
        sizer.observe(events, cost.took, cost.wal_bytes);
        disk.observe(events, cost.wal_bytes);
        progress.reckon(started, done_before);
        log::debug!(
            "room {}: {} of {}",
            ctx.room,
            progress.events_done,
            count(progress.events_planned, "event")
        );
        let Some(next) = next else { break };
        from = next;
        ctx.rest(sizer.pause());
    }
    progress.rewritten |= rewrites;
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

/// Answers how many events it dealt with.
fn batch(
    ctx: &mut JobContext<'_>,
    cut: &DepthRange<'_>,
    keep_from_depth: i64,
    sizer: &BatchSizer,
    options: BatchOptions<'_>,
    progress: &mut Progress,
) -> Result<Outcome<i64>, Error> {
    let may_rebuild = ctx.server_state == ServerState::Stopped && !sizer.is_limited();
    // Whether it would be cheaper takes a look at every document: too much for one of many small purges.
    let rebuild_from = if ctx.is_one_of_many { 10_000 } else { 0 };
    let on_server = ctx.db.engine() == Engine::Postgres;
    let extent = match options.rewrites || (on_server && sizer.events() >= INDEXED_WHEN_FULL) {
        true => Extent::Whole,
        false => Extent::Batch,
    };
    let limits = Limits {
        deadline: sizer.deadline().filter(|_| sizer.events() > 1),
        log: Log::Batches(options.disk, LOG_OF_MANY),
        shows_tables: options.rewrites,
        is_batch: true,
        ..Limits::default()
    };
    ctx.db.prefer_index_scans(!options.rewrites);
    let (archive, clock) = (ctx.archive.clone(), ctx.clock);
    let how = Manner {
        extent,
        documents: options.documents,
        keys: options.keys,
        secure_delete: options.secure_delete,
        rebuild_from: may_rebuild.then_some(rebuild_from),
        archive: &archive,
        server_state: ctx.server_state,
        clock,
        notes_media: ctx.media.are_taken,
    };
    let purged = ctx.transaction(
        progress,
        "purge the events",
        Scope::Room,
        limits,
        |tx, effects| remove_selected(tx, effects, cut, keep_from_depth, how),
    );
    ctx.db.prefer_index_scans(true);
    purged
}

/// How a transaction removes what it selects.
#[derive(Clone, Copy)]
pub(super) struct Manner<'a> {
    pub extent: Extent,
    pub documents: Option<&'a Documents>,
    /// Looks after foreign keys while they are off.
    pub keys: Option<&'a ForeignKeys>,
    pub secure_delete: SecureDelete,
    /// From how many events on the full-text index may be rebuilt, if it may.
    pub rebuild_from: Option<i64>,
    pub archive: &'a SharedArchive,
    pub server_state: ServerState,
    pub clock: &'a dyn Clock,
    /// Whether the media that the events refer to go as well.
    pub notes_media: bool,
}

/// Selects what `cut` takes and removes it; answers how many events it dealt with.
pub(super) fn remove_selected(
    tx: &Tx<'_>,
    effects: &mut Effects,
    cut: &DepthRange<'_>,
    keep_from_depth: i64,
    how: Manner<'_>,
) -> Result<i64, Abort> {
    let selected = history::select(tx, cut, how.extent)?;
    // The last one looks at everything.
    effects.extremities_kept = Some(selected.extremities_kept);
    if selected.events == 0 {
        // P-7: an empty selection touches nothing.
        return Ok(0);
    }
    tx.in_time()?;
    effects.local_messages = history::local_messages(tx, cut)?;
    if let Some(documents) = how.documents {
        tx.entering("event_search")?;
        documents.note(tx, cut.room, keep_from_depth)?;
    }
    tx.in_time()?;
    if how.notes_media {
        effects.note_media_of_selected(tx, cut.server_name)?;
        tx.in_time()?;
    }
    let written = archive_events(
        how.archive,
        tx,
        cut.room,
        selected.events,
        how.documents.is_some(),
        how.server_state,
        how.clock.now(),
    )?;
    tx.in_time()?;
    if let Some(documents) = how.documents {
        let rebuilds = how.rebuild_from.is_some_and(|from| selected.events >= from);
        let removed = documents.remove(tx, rebuilds)?;
        event_rows::add(&mut effects.rows, "event_search", removed);
    }
    if selected.to_delete > 0 {
        effects.duties = Some(Duties {
            pages: how.secure_delete,
            index: !effects.rows.is_empty(),
        });
    }
    let removed = history::remove(tx, cut, selected, keep_from_depth, Removal::Rows)?;
    if let Some(written) = written {
        archived::ensure_written(tx, &written, &removed.rows)?;
    }
    effects.rows.extend(removed.rows);
    effects.state_groups = removed.state_groups;
    tx.in_time()?;
    if let Some(keys) = how.keys
        && keys.are_broken(tx, selected.to_delete)?
    {
        return Err(Abort::BreaksForeignKeys);
    }
    effects.events = selected.events;
    Ok(selected.events)
}

/// Length at which the log is emptied between many small purges; before, their pages are written again and again.
pub(super) const LOG_OF_MANY: u64 = 128 * 1024 * 1024;

/// Events of a batch on a server from which it costs less to make the indexes of the selection anew.
const INDEXED_WHEN_FULL: i64 = 4_000;
