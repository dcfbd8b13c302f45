//! What is promised of deleted content: that nothing of it is left in the file, its log, the full-text index.
//!
//! Deleting is one thing and overwriting another, and a job can be killed between the two. So the ledger has it as a
//! duty before the deletion commits, and it stands there until it is done: by this job, or by the next of any room.

use std::thread;
use std::time::Duration;

use super::{
    Duties, Endurance, IfStarted, JobContext, LOOK_UP_EVERY, Limits, Outcome, Phase, Progress,
    Scope, ServerState, full_text,
};
use crate::error::Error;
use crate::jobs::ledger::Ledger;
use crate::store::db::{Engine, SecureDelete};
use crate::store::free_pages::{EraseOptions, EraseProgress, Eraser};
use crate::store::{search, space};

/// The full-text index still knows deleted words.
pub(crate) const MERGE_INDEX: &str = "merge the full-text index";

/// The write-ahead log still holds deleted content.
pub(crate) const EMPTY_LOG: &str = "empty the write-ahead log";

/// Free pages still hold deleted content: batches leave that to the end.
pub(crate) const ERASE_PAGES: &str = "overwrite free pages";

/// Notes what a transaction that deletes events leaves to be done; before that commits.
pub(crate) fn add_pending(
    ledger: &Ledger,
    how: SecureDelete,
    is_searched: bool,
) -> Result<(), Error> {
    ledger.add_pending(EMPTY_LOG)?;
    if how == SecureDelete::Fast {
        ledger.add_pending(ERASE_PAGES)?;
    }
    if is_searched {
        ledger.add_pending(MERGE_INDEX)?;
    }
    Ok(())
}

/// What two transactions leave to be done, as one.
pub(crate) fn both(one: Duties, other: Duties) -> Duties {
    Duties {
        pages: match one.pages {
            SecureDelete::Fast => SecureDelete::Fast,
            SecureDelete::On | SecureDelete::Off => other.pages,
        },
        index: one.index || other.index,
    }
}

/// Free pages, in bytes, that are worth looking through for those that a job has added.
const FEW_FREE: u64 = 1 << 30;

/// How pages that become free are overwritten: all at the end, where the pass over the free pages is short enough, or
/// each on its way.
pub(crate) fn choose_secure_delete(ctx: &JobContext<'_>) -> Result<SecureDelete, Error> {
    if !ctx.overwrite_deleted || ctx.db.engine() == Engine::Postgres {
        return Ok(SecureDelete::Off);
    }
    let how = match space::reclaimable_bytes(&ctx.db)? {
        0..=FEW_FREE => SecureDelete::Fast,
        _ => SecureDelete::On,
    };
    ctx.db.set_secure_delete(how)?;
    Ok(how)
}

/// Largest full-text index, in bytes, that is merged in one statement beside a live server: some 0.2 s.
const MERGE_BESIDE: i64 = 8 * 1024 * 1024;

/// How often emptying the log is tried before readers are left alone.
const OVERWRITE_TRIES: usize = 20;

/// How long emptying the log waits for readers when nobody writes: as long as any statement does.
const PATIENCE_OFFLINE: Duration = Duration::from_secs(5);

/// How long emptying the log waits for readers beside a live server, which cannot write meanwhile.
const PATIENCE_BESIDE: Duration = Duration::from_millis(200);

/// Makes good what was promised of deleted content, and says how much `reclaim` would return.
pub(crate) fn clean_up(ctx: &mut JobContext<'_>, progress: &mut Progress) -> Result<(), Error> {
    if ctx.is_one_of_many {
        progress.phase = Phase::Done;
        return Ok(());
    }
    progress.phase = Phase::Tidying;
    ctx.publish(progress);
    if (ctx.is_stopping)() {
        return Err(Error::Stopping);
    }
    if ctx.db.engine() == Engine::Postgres {
        // What a server does with deleted rows is its own affair: they go when it vacuums.
        for duty in [MERGE_INDEX, EMPTY_LOG, ERASE_PAGES] {
            ctx.ledger.clear_pending(duty)?;
        }
    } else if ctx.overwrite_deleted && !ctx.register.another_job_cleans_up(&ctx.live.id) {
        let is_merged = merge_index(ctx, progress)?;
        // The merge is only safe on the disk, and its own traces gone, when the log is empty.
        if empty_log(ctx, progress, is_merged)? && is_merged {
            ctx.ledger.clear_pending(MERGE_INDEX)?;
        }
    }
    if ctx.db.engine() == Engine::Sqlite {
        progress.reclaimable_bytes = Some(space::reclaimable_bytes(&ctx.db)?);
    }
    progress.phase = Phase::Done;
    Ok(())
}

/// Answers whether the index was merged.
fn merge_index(ctx: &mut JobContext<'_>, progress: &mut Progress) -> Result<bool, Error> {
    if !ctx.ledger.has_pending(MERGE_INDEX) {
        return Ok(false);
    }
    if !search::is_present(&ctx.db) {
        // Search was switched off since: no deleted word stands in an index that is not there.
        return Ok(true);
    }
    if ctx.server_state_now()? == ServerState::Running
        && search::index_bytes(&ctx.db)? > MERGE_BESIDE
    {
        progress.notes.push(
            "the full-text index still holds deleted words: merging it takes one long transaction, which is left to \
             the next purge or `roomkeeper reclaim` while the homeserver is stopped"
                .into(),
        );
        return Ok(false);
    }
    if let Some(path) = ctx.db.path()
        && space::free_bytes(path)? < search::merge_needs(&ctx.db)?
    {
        progress.notes.push(
            "the full-text index still holds deleted words: the disk has no room for merging it, which is left to the next \
             purge or `roomkeeper reclaim`, which can use another disk (--via)"
                .into(),
        );
        return Ok(false);
    }
    let merged = ctx.small_transaction(
        "merge the full-text index",
        Scope::Server,
        Limits {
            // Looked for above, where it says how large the index may be.
            if_started: IfStarted::GoOn,
            endures: Endurance::UntilStopping,
            ..Limits::default()
        },
        |tx| Ok(search::optimize(tx)?),
    );
    match merged.and_then(Outcome::done) {
        Ok(_) => Ok(true),
        // Built anew it holds no deleted word.
        Err(e) => match full_text::rebuild_if_damaged(ctx, progress, e) {
            Ok(()) => Ok(true),
            Err(e @ Error::IndexDamaged(_)) => {
                progress.notes.push(e.to_string());
                Ok(false)
            }
            Err(e) => Err(e),
        },
    }
}

/// Empties the log and overwrites the pages that became free. Answers whether nothing of it remains to be done.
fn empty_log(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    is_merged: bool,
) -> Result<bool, Error> {
    if !is_merged && !ctx.ledger.has_pending(EMPTY_LOG) && !ctx.ledger.has_pending(ERASE_PAGES) {
        return Ok(true);
    }
    let Some(raw) = ctx.raw else { return Ok(true) };
    let mut pass = Eraser::default();
    let mut tries = 0;
    loop {
        // Asked every time: a homeserver may have been started meanwhile.
        let manner = match ctx.server_state_now()? {
            ServerState::Stopped => EraseOptions {
                patience: PATIENCE_OFFLINE,
                slice: None,
            },
            ServerState::Running => EraseOptions {
                patience: PATIENCE_BESIDE,
                slice: Some(Duration::from_millis(
                    u64::try_from(ctx.limits.millis / 2).unwrap_or(0),
                )),
            },
        };
        let erased = {
            let turn = ctx.writer.lock();
            pass.step(&mut ctx.db, &turn, raw, manner)?
        };
        match erased {
            EraseProgress::All(_) => {
                ctx.ledger.clear_pending(ERASE_PAGES)?;
                ctx.ledger.clear_pending(EMPTY_LOG)?;
                return Ok(true);
            }
            // Readers come and go.
            EraseProgress::LogInUse if tries == OVERWRITE_TRIES => break,
            EraseProgress::LogInUse => tries += 1,
            EraseProgress::Part => tries = 0,
        }
        if (ctx.is_stopping)() {
            return Err(Error::Stopping);
        }
        thread::sleep(LOOK_UP_EVERY.max(ctx.limits.pause));
    }
    progress.notes.push(
        "the write-ahead log is in use and was not emptied: it and free pages still hold deleted content until the \
         next purge"
            .into(),
    );
    Ok(false)
}
