//! Many small rooms: the events of several of them go in one transaction, and their state groups in another.
//!
//! What a transaction costs beside its rows (a commit, a segment of the full-text index, a sync of the ledger, a rest beside
//! a homeserver) is paid once for all of them. It is nothing but a shorter way: whatever is in its way sends the rooms
//! back to be done one after the other, as jobs like any other, which find done what is done.

use std::sync::Arc;

use super::plan::refuse_to_empty;
use super::request::Request;
use super::run::{LOG_OF_MANY, Manner, let_go_of_log, remove_selected};
use super::state_groups;
use crate::error::{Chain, Error};
use crate::ids::RoomId;
use crate::job::{
    BatchSizer, DiskBudget, Effects, JobContext, Limits, Log, Outcome, Phase, Progress, Removes,
    Scope, ServerState, overwrite,
};
use crate::jobs::register::RunningJob;
use crate::plural::count;
use crate::store::db::Engine;
use crate::store::event_rows::add_all;
use crate::store::expiry::Expiry;
use crate::store::foreign_keys::ForeignKeys;
use crate::store::history::{self, DepthRange, Extent};
use crate::store::homeserver::{self, PURGE_LOCK, SynapseLock};
use crate::store::room_rows;
use crate::store::search::{self, Documents};
use crate::time::Millis;

/// Events of a small room, at the most; and of all that go together.
pub const MOST_EVENTS_OF_SMALL: i64 = 1_000;

/// One of the rooms that go together: a job of its own.
pub struct OneOfMany<'a> {
    /// The job.
    pub live: &'a RunningJob,
    /// Its room.
    pub room: &'a RoomId,
    /// What is asked of it.
    pub request: &'a Request,
    /// How far it is.
    pub progress: Progress,
}

/// Purges these rooms together, the first of which is that of `ctx`; answers whether it did. If not, each is to be purged by
/// [`super::run`], whatever became of it here: its job tells how far it is.
///
/// # Errors
/// As [`super::run`]; they are those of any of the rooms, so each is asked by itself then.
///
/// # Locking
/// Waits for the first room and tries for the others, all of them in the homeserver's table of locks too.
pub fn run_together(ctx: &mut JobContext<'_>, rooms: &mut [OneOfMany<'_>]) -> Result<bool, Error> {
    if ctx.db.engine() != Engine::Sqlite
        || ctx.archive.is_some()
        || (ctx.homeserver.is_some() && ctx.server_state == ServerState::Running)
        || ctx.ledger.holds()?.iter().any(|hold| hold.is_active())
    {
        return Ok(false);
    }
    let handle = ctx.db.interrupt_handle();
    ctx.live
        .set_interrupt(Some(Box::new(move || handle.interrupt())));
    let done = with_locks(ctx, rooms);
    ctx.live.set_interrupt(None);
    ctx.release_synapse_lock();
    let done = done.map_err(|e| ctx.map_interrupt(e));
    if let Err(e) = &done {
        log::debug!(
            "{} together: {}",
            count(rooms.len() as u64, "room"),
            Chain(e)
        );
    }
    done
}

fn with_locks(ctx: &mut JobContext<'_>, rooms: &mut [OneOfMany<'_>]) -> Result<bool, Error> {
    ctx.check_cancelled()?;
    ctx.heed_holds(Removes::History)?;
    let names: Vec<RoomId> = rooms.iter().map(|part| part.room.clone()).collect();
    if homeserver::has_locks(&ctx.db) {
        let _turn = ctx.writer.lock();
        let lock = SynapseLock::try_acquire(&mut ctx.db, &[PURGE_LOCK], &names, ctx.clock)?;
        let Some(lock) = lock else {
            return Ok(false);
        };
        ctx.synapse_lock = Some(lock);
    }
    // Not before: a room that somebody has is waited for by itself, and its job is not at work until then.
    let jobs = rooms.iter().map(|part| &part.live.id);
    ctx.ledger.start_all(jobs, ctx.clock.now())?;
    ctx.db.set_pragma("wal_autocheckpoint", 0)?;
    let purged = purge_events(ctx, rooms, &names);
    let_go_of_log(ctx, matches!(purged, Err(Error::Stopping)));
    if !purged? {
        return Ok(false);
    }
    if !state_groups::collect_together(ctx, rooms)? {
        return Ok(false);
    }
    for part in rooms.iter_mut() {
        part.progress.phase = Phase::Done;
    }
    save(ctx, rooms)?;
    Ok(true)
}

/// Writes down how far the jobs are, for whoever asks and for whoever goes on with them.
fn save(ctx: &JobContext<'_>, rooms: &[OneOfMany<'_>]) -> Result<(), Error> {
    let mut told = Vec::with_capacity(rooms.len());
    for part in rooms {
        let progress = serde_json::to_value(&part.progress).unwrap_or_default();
        part.live.set_progress(progress.clone());
        told.push((&part.live.id, progress));
    }
    ctx.ledger.progress_of(&told)
}

/// What is asked of one of them, as it is found in the database.
struct Ready<'a> {
    cut: DepthRange<'a>,
    below: i64,
}

/// What is to be known of a room before the first row goes; `None` where it has to be purged by itself.
fn look_at<'b, 'a: 'b>(
    ctx: &JobContext<'_>,
    server_name: &'b str,
    part: &mut OneOfMany<'a>,
    expiry: &mut Option<(Millis, Expiry)>,
) -> Result<Option<Ready<'b>>, Error> {
    let (db, room, request) = (&ctx.db, part.room, part.request);
    if !request.held.is_empty() || part.progress.batches > 0 {
        return Ok(None);
    }
    if refuse_to_empty(db, room, request).is_err()
        || !room_rows::is_known(db, room)?
        || history::is_partially_joined(db, room)?
    {
        return Ok(None);
    }
    // Of rooms of one policy it is found once.
    let found = match (request.keep_received_after, &*expiry) {
        (Some(after), Some((of, found))) if request.expiry.is_none() && after == *of => {
            Some(*found)
        }
        (after, _) => {
            let found = request.expiry(db, ctx.clock.now())?;
            *expiry = after.zip(found);
            found
        }
    };
    let stays = ctx.server_state == ServerState::Running;
    let cut = request.cut(room, server_name, stays, found);
    let left = history::count_timeline(db, &cut)?;
    part.progress.events_planned = left;
    Ok((left <= MOST_EVENTS_OF_SMALL).then_some(Ready {
        cut,
        below: request.point.topological,
    }))
}

fn purge_events(
    ctx: &mut JobContext<'_>,
    rooms: &mut [OneOfMany<'_>],
    names: &[RoomId],
) -> Result<bool, Error> {
    let mut ready = Vec::with_capacity(rooms.len());
    let (server_name, mut expiry) = (ctx.server_name, None);
    for part in rooms.iter_mut() {
        match look_at(ctx, server_name, part, &mut expiry)? {
            Some(room) => ready.push(room),
            None => return Ok(false),
        }
    }
    let events: i64 = rooms.iter().map(|part| part.progress.events_planned).sum();
    let disk = DiskBudget::new(&ctx.db);
    if disk.events()? < events.max(1) || disk.leaves()?.is_some() {
        return Ok(false);
    }
    let documents = search::is_present(&ctx.db).then(Documents::noted);
    if let Some(documents) = &documents {
        // Of every room of the batch, whoever asks.
        documents.note(&ctx.db, ctx.room, ready[0].below)?;
    }
    let secure_delete = overwrite::choose_secure_delete(ctx, i64::MAX)?;
    let keys = ForeignKeys::read(&ctx.db)?;
    // Not inside a transaction, and each change has every statement prepared anew: so once for all of them.
    if keys.is_some() {
        ctx.db.set_foreign_keys(false)?;
    }
    let archive = None;
    let how = Manner {
        extent: Extent::Batch,
        documents: documents.as_ref(),
        keys: keys.as_ref(),
        secure_delete,
        rebuild_from: None,
        archive: &archive,
        server_state: ctx.server_state,
        clock: ctx.clock,
        // Retention alone has rooms go together.
        notes_media: false,
    };
    let purged = in_one_transaction(ctx, rooms, names, &ready, &disk, how);
    ctx.db.set_foreign_keys(true)?;
    purged
}

fn in_one_transaction(
    ctx: &mut JobContext<'_>,
    rooms: &mut [OneOfMany<'_>],
    names: &[RoomId],
    ready: &[Ready<'_>],
    disk: &DiskBudget,
    how: Manner<'_>,
) -> Result<bool, Error> {
    let sizer = BatchSizer::new(ctx.server_state, ctx.limits);
    let limits = Limits {
        deadline: sizer.deadline(),
        log: Log::Batches(disk, LOG_OF_MANY),
        ..Limits::default()
    };
    let holds = ctx.ledger.holds()?;
    let ledger = ctx.ledger;
    let mut all = Progress::default();
    let doing = "purge the events";
    let purged = ctx.transaction(
        &mut all,
        doing,
        Scope::Together(names),
        limits,
        |tx, all| {
            // The door has looked at the first room alone.
            if !Arc::ptr_eq(&holds, &ledger.holds()?) {
                return Ok(None);
            }
            let mut done = Vec::with_capacity(ready.len());
            for room in ready {
                let mut effects = Effects::default();
                history::forget_former_job(tx)?;
                remove_selected(tx, &mut effects, &room.cut, room.below, how)?;
                add_all(&mut all.rows, &effects.rows);
                if let Some(duties) = effects.duties {
                    all.duties = Some(match all.duties {
                        Some(before) => overwrite::both(before, duties),
                        None => duties,
                    });
                }
                let groups = std::mem::take(&mut effects.state_groups);
                all.of_rooms.push((room.cut.room.clone(), groups));
                done.push(effects);
            }
            Ok(Some(done))
        },
    )?;
    let Outcome::Done(Some(done), cost) = purged else {
        return Ok(false);
    };
    for (part, effects) in rooms.iter_mut().zip(&done) {
        part.progress.add_transaction(effects, cost.took);
        part.progress.batches += 1;
        super::extremities::tell_what_stays(&mut part.progress);
    }
    save(ctx, rooms)?;
    Ok(true)
}

#[cfg(test)]
mod tests;
