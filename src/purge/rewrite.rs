//! The long batch: offline, where nearly everything goes and little stays, the whole purge is one transaction that
//! refills the large tables instead of deleting from them.

use super::extremities;
use super::request::Request;
use crate::batch::Rewrite;
use crate::error::{Chain, Error};
use crate::job::{
    Duties, JobContext, Limits, Log, Outcome, Phase, Progress, Scope, ServerState, Why,
    archive_events,
};
use crate::store::archived;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{self, Removal};
use crate::store::foreign_keys::ForeignKeys;
use crate::store::history::{self, Extent};
use crate::store::search::{self, Documents};
use crate::store::tx::Abort;
use crate::store::{sizes, space};

/// Bytes of surviving rows that one rewrite may put aside and write again; bounds its log, of which it needs about
/// twice that.
const REWRITE_WRITES: f64 = 400.0 * 1024.0 * 1024.0;

/// Free disk that a rewrite asks for, in times of what it writes: its log, what it puts aside, and some.
const REWRITE_SPACE: f64 = 4.0;

/// Offline, where nearly everything goes and little stays, the whole purge is one batch that refills the large
/// tables: a tenth of the work. Answers whether it was done; if not, nothing of it was, and batches by rows follow.
///
/// Foreign keys are checked in one pass before the transaction is committed, instead of sixteen look-ups for every
/// deleted event; a database that breaks some already is left to batches by rows.
pub(super) fn rewrite(
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
    left: i64,
) -> Result<bool, Error> {
    let wanted = match ctx.limits.rewrite {
        Rewrite::Never => false,
        Rewrite::WhereCheaper => ctx.db.engine() == Engine::Sqlite && is_cheaper(&ctx.db, left)?,
        Rewrite::WherePossible => true,
    };
    // What is held stays where it is, however much of the rest goes.
    if !wanted
        || !request.held.is_empty()
        || ctx.db.engine() != Engine::Sqlite
        || has_triggered_index(&ctx.db)?
        || event_rows::broken_foreign_keys(&ctx.db)? > 0
    {
        return Ok(false);
    }
    progress.phase = Phase::Events;
    ctx.publish(progress);
    ctx.check_cancelled()?;
    ctx.look_for_homeserver()?;
    if ctx.server_state == ServerState::Running {
        return Ok(false);
    }
    // Work lists of this size go to a temporary file; neither setting can be changed inside a transaction.
    ctx.db.batch("set up the connection", TEMPORARY_FILES)?;
    ctx.db.set_pragma("foreign_keys", false)?;
    let rewritten = rewrite_unchecked(ctx, request, progress);
    ctx.db.set_pragma("foreign_keys", true)?;
    ctx.db
        .batch("set up the connection", "PRAGMA temp_store = MEMORY")?;
    rewritten
}

/// Whether a trigger on the full-text index's own tables would see them filled again. Every other table that has triggers
/// is looked after row by row.
fn has_triggered_index(db: &Db) -> Result<bool, Error> {
    let triggered = event_rows::tables_with_triggers(db)?;
    Ok(triggered
        .iter()
        .any(|table| table.starts_with("event_search")))
}

/// On a server: whether the whole purge is one batch, in which tables are read from end to end instead of looked into row
/// by row. Where the server looks after foreign keys that gains nothing: its triggers take nine tenths of the time.
pub(super) fn is_one_batch(
    ctx: &JobContext<'_>,
    keys: Option<&ForeignKeys>,
    left: i64,
) -> Result<bool, Error> {
    if ctx.db.engine() != Engine::Postgres
        || ctx.server_state != ServerState::Stopped
        || keys.is_none()
    {
        return Ok(false);
    }
    Ok(match ctx.limits.rewrite {
        Rewrite::Never => false,
        Rewrite::WhereCheaper => {
            (REWRITE_FROM..=LONGEST_REWRITE).contains(&left)
                && left.saturating_mul(REWRITE_SHARE) >= sizes::sizes(&ctx.db)?.events
        }
        Rewrite::WherePossible => true,
    })
}

/// On a server: the part of all events that has to go for a rewrite to cost less than batches, as a divisor.
const REWRITE_SHARE: i64 = 5;

/// Events below which batches by rows are quick enough.
const REWRITE_FROM: i64 = 20_000;

/// Whether most of the database goes, what stays is small, and there is room for the log.
fn is_cheaper(db: &Db, left: i64) -> Result<bool, Error> {
    if !(REWRITE_FROM..=LONGEST_REWRITE).contains(&left) {
        return Ok(false);
    }
    let sizes = sizes::sizes(db)?;
    let stay = sizes.events - left;
    let written = sizes.used_bytes as f64 * stay as f64 / sizes.events.max(1) as f64;
    let Some(path) = db.path() else {
        return Ok(false);
    };
    let free = space::free_bytes(path)? as f64;
    Ok(stay <= left / 2 && written <= REWRITE_WRITES && free >= written * REWRITE_SPACE)
}

/// Longest rewrite, in events: bounds its work list, of some 120 bytes each.
const LONGEST_REWRITE: i64 = 10_000_000;

/// The work list gets most of the memory: it is what is looked into at random. Sorting takes as much as the page cache.
/// A failed rewrite throws its temporary tables away, so they need no journal.
const TEMPORARY_FILES: &str = "
    PRAGMA temp_store = FILE;
    PRAGMA temp.journal_mode = OFF;
    PRAGMA temp.cache_size = -114688;
    PRAGMA main.cache_size = -32768;";

fn rewrite_unchecked(
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<bool, Error> {
    let below = request.point.topological;
    let expiry = request.expiry(&ctx.db, ctx.clock.now())?;
    let cut = extremities::cut(ctx, request, expiry);
    let room = ctx.room;
    let limits = Limits {
        log: Log::Empty,
        shows_tables: true,
        is_batch: true,
        ..Limits::default()
    };
    let planned = progress.events_planned;
    let (archive, clock) = (ctx.archive.clone(), ctx.clock);
    let notes_media = ctx.media.are_taken;
    let rewritten = ctx.transaction(
        progress,
        "purge the events",
        Scope::Room,
        limits,
        |tx, effects| {
            let selected = history::select(tx, &cut, Extent::Whole)?;
            effects.events = planned;
            if selected.events == 0 {
                // P-7: an empty selection touches nothing.
                return Ok(());
            }
            effects.local_messages = history::local_messages(tx, &cut)?;
            if notes_media {
                effects.note_media_of_selected(tx, cut.server_name)?;
            }
            let mut written = None;
            if archive.is_some() {
                let with_documents = search::is_present(tx);
                if with_documents {
                    Documents::new(tx)?.note(tx, room, below)?;
                }
                let (events, how) = (selected.events, ServerState::Stopped);
                let now = clock.now();
                written = archive_events(&archive, tx, room, events, with_documents, how, now)?;
            }
            if search::is_present(tx) {
                tx.entering("event_search")?;
                event_rows::add(&mut effects.rows, "event_search", search::rewrite(tx)?);
            }
            // A rebuilt index knows nothing of what went; only its former pages do.
            effects.duties = Some(Duties {
                pages: SecureDelete::Fast,
                index: false,
            });
            let removed = history::remove(tx, &cut, selected, below, Removal::Rewrite)?;
            if let Some(written) = written {
                archived::ensure_written(tx, &written, &removed.rows)?;
            }
            effects.rows.extend(removed.rows);
            effects.state_groups = removed.state_groups;
            match event_rows::broken_foreign_keys(tx)? {
                0 => Ok(()),
                _ => Err(Abort::BreaksForeignKeys),
            }
        },
    );
    match rewritten {
        Ok(Outcome::Done(..)) => {}
        Ok(Outcome::Aborted(Why::BreaksForeignKeys)) => {
            log::warn!(
                "room {room}: removing the events in one rewrite would break a foreign key; purging row by row"
            );
            return Ok(false);
        }
        Err(e) if e.is_full() => {
            log::warn!("room {room}: {}; purging row by row", Chain(&e));
            return Ok(false);
        }
        Ok(Outcome::Aborted(Why::ServerStateChanged)) => return Ok(false),
        Ok(other) => return other.done().map(|_| false),
        Err(e) => return Err(e),
    }
    progress.rewritten = true;
    extremities::tell_what_stays(progress);
    ctx.save_progress(progress);
    Ok(true)
}
