//! A room's state groups in fewer rows, window by window: what would change, and changing it.

use std::time::Duration;

use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{
    DiskBudget, Endurance, IfStarted, JobContext, Limits, Log, Outcome, Progress, Removes, Scope,
    ServerState, Why, acquire_synapse_lock,
};
use crate::store::db::{Db, Engine};
use crate::store::event_rows::add;
use crate::store::homeserver::PURGE_LOCK;
use crate::store::state_groups::{Compressed, Compressor};

/// Rows of state that are read for one transaction while nobody waits, and beside a homeserver.
const ROWS: (i64, i64) = (200_000, 40_000);

/// What Synapse's own deletion of state groups waits, ten minutes, must be longer than any transaction of ours: by then it sees
/// what rests on what.
const MOST_TIME: Duration = Duration::from_secs(4 * 60);

/// What compressing a room would come to. Reads only.
///
/// # Errors
/// What the run would refuse: a damaged index.
pub fn plan_compress(db: &Db, room: &RoomId) -> Result<Compressed, Error> {
    let mut compressor = Compressor::new(db, room)?;
    let mut all = Compressed::default();
    while !compressor.is_done() {
        let step = compressor.plan(db, ROWS.0)?;
        all.add(&step.done);
        compressor.keep(step);
    }
    Ok(all)
}

/// Why it cannot be done while this homeserver runs, if it cannot.
///
/// Beside Synapse on PostgreSQL it can: what a group says never changes, so whatever Synapse remembers stays right; it reads a
/// chain in one statement, on one snapshot; and groups that it is about to delete, which it would store anew, are left alone, with
/// those that rest on them, ten minutes before it does so.
pub fn needs_stopped(db: &Db, sign: &str) -> Option<String> {
    let why = match db.engine() {
        Engine::Sqlite => {
            "on SQLite it reads the rows of a state group and what that rests on one after the other, not as of one moment: it \
             could take a state for another that is stored anew in between"
        }
        Engine::Postgres if !db.catalog().has("state_groups_pending_deletion") => {
            "its release deletes state groups without a word to anybody, also one that another has just come to rest on"
        }
        Engine::Postgres => return None,
    };
    Some(format!(
        "a homeserver runs ({sign}), and {why}. Stop it, and ask again"
    ))
}

/// Stores a room's state groups in fewer rows.
///
/// # Errors
/// [`Error::Held`] where the whole room is held; [`Error::Refused`] for a damaged index, where a homeserver runs beside which it
/// cannot be done, and where a state would have become another; [`Error::Stopping`], [`Error::Cancelled`] between two
/// transactions. What was done is whole.
///
/// # Locking
/// As [`super::run`]; the homeserver's lock is held for each transaction alone.
pub fn compress_room(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    all: &mut Compressed,
    each: &mut dyn FnMut(&mut Progress, &Compressed),
) -> Result<(), Error> {
    ctx.heed_holds(Removes::History)?;
    let room = ctx.room;
    let mut compressor = Compressor::new(&ctx.db, room)?;
    let disk = DiskBudget::new(&ctx.db);
    let mut most = i64::MAX;
    while !compressor.is_done() {
        ctx.check_cancelled()?;
        if let Some(sign) = ctx.running_homeserver()?
            && let Some(why) = needs_stopped(&ctx.db, &sign)
        {
            return Err(Error::Refused(why));
        }
        let is_beside = ctx.server_state == ServerState::Running;
        let room_for = disk.rows()?;
        let rows = if is_beside { ROWS.1 } else { ROWS.0 };
        let limits = Limits {
            deadline: Some(MOST_TIME),
            if_started: IfStarted::Refuse,
            endures: Endurance::UntilCancelled,
            log: match room_for < rows {
                true => Log::Empty,
                false => Log::Leave,
            },
            ..Limits::default()
        };
        let rows = rows.min(room_for).min(most);
        if is_beside {
            acquire_synapse_lock(ctx, &[PURGE_LOCK])?;
        }
        let doing = "store state groups in fewer rows";
        let done = ctx.transaction(progress, doing, Scope::Room, limits, |tx, effects| {
            let step = compressor.carry_out(tx, rows)?;
            let rows = step.done.rows_before - step.done.rows_after;
            add(&mut effects.rows, "state_groups_state", rows);
            add(
                &mut effects.rows,
                "state_group_edges",
                -step.done.more_edges,
            );
            Ok(step)
        });
        ctx.release_synapse_lock();
        let done = match done {
            // Nothing of it happened: fewer at once may have room (S-35).
            Err(e) if e.is_full() && rows > 1 => {
                most = (rows / 8).max(1);
                continue;
            }
            Err(e) if e.is_full() && ctx.release_reserve() => continue,
            done => done?,
        };
        match done {
            Outcome::Done(step, _) => {
                all.add(&step.done);
                progress.batches += i64::from(step.done.changed > 0);
                compressor.keep(step);
                each(progress, all);
            }
            Outcome::Aborted(Why::ServerStateChanged) => continue,
            Outcome::TooLong if rows > 1 => most = rows / 4,
            other => return other.done().map(drop),
        }
        if is_beside {
            ctx.rest(ctx.limits.pause);
        }
    }
    Ok(())
}
