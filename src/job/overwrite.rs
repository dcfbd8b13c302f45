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
use crate::config::OverwriteWhen;
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

/// Free pages, in bytes, that are worth looking through for those that a job has added: of any job, for each event that it
/// removes, and at the most. To look at a page takes a microsecond; an event leaves one of its own at the most, and to
/// overwrite that on its way takes some fifteen.
const FEW_FREE: u64 = 16 << 20;
const FREE_FOR_EACH: u64 = 64 << 10;
const MOST_FREE: u64 = 1 << 30;

/// How pages that become free are overwritten by a job that is to remove so many events: all at the end, where the pass over
/// the free pages is short enough, or each on its way.
pub(crate) fn choose_secure_delete(
    ctx: &JobContext<'_>,
    events: i64,
) -> Result<SecureDelete, Error> {
    if !ctx.overwrite_deleted || ctx.db.engine() == Engine::Postgres {
        return Ok(SecureDelete::Off);
    }
    let events = match ctx.overwrite_when {
        // One pass after all jobs.
        OverwriteWhen::WhenIdle => u64::MAX,
        _ => u64::try_from(events).unwrap_or(0),
    };
    let worth = FEW_FREE.saturating_add(events.saturating_mul(FREE_FOR_EACH));
    let how = match space::reclaimable_bytes(&ctx.db)? {
        free if free <= worth.min(MOST_FREE) => SecureDelete::Fast,
        _ => SecureDelete::On,
    };
    ctx.db.set_secure_delete(how)?;
    Ok(how)
}

/// Largest full-text index, in bytes, that is merged in one statement beside a live server: some 0.2 s.
const MERGE_BESIDE: i64 = 8 * 1024 * 1024;

/// Largest full-text index, in bytes, that any job merges before it ends, and by how much more a job may for each row of the
/// index that it removed: merging takes 12 ns a byte, and removing an event more than twice what this adds.
const MERGE_ALWAYS: i64 = 4 * 1024 * 1024;
const MERGE_FOR_EACH: i64 = 2 * 1024;

/// Whether merging an index of so many bytes is in proportion to a job that removed so many rows of it.
fn is_in_proportion(bytes: i64, removed: i64) -> bool {
    bytes <= MERGE_ALWAYS.saturating_add(removed.saturating_mul(MERGE_FOR_EACH))
}

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
        if ctx.register.is_tidied() {
            // Whoever noted it before may have seen it done while this job was at work.
            if !progress.rows_removed.is_empty() {
                add_pending(ctx.ledger, SecureDelete::Fast, false)?;
            }
            ctx.register.tidy_later();
        } else {
            overwrite(ctx, progress)?;
        }
    }
    if ctx.db.engine() == Engine::Sqlite {
        progress.reclaimable_bytes = Some(space::reclaimable_bytes(&ctx.db)?);
    }
    progress.phase = Phase::Done;
    Ok(())
}

/// Whether something that was deleted is still to be overwritten.
pub(crate) fn is_owed(ledger: &Ledger) -> bool {
    [MERGE_INDEX, EMPTY_LOG, ERASE_PAGES]
        .iter()
        .any(|duty| ledger.has_pending(duty))
}

/// Does what is owed, of this job and of others before it.
///
/// # Locking
/// As a transaction of the server. Other jobs may go on meanwhile: what they come to owe stays owed.
pub(crate) fn overwrite(ctx: &mut JobContext<'_>, progress: &mut Progress) -> Result<(), Error> {
    let owed = ctx.ledger.times_pending(MERGE_INDEX);
    let is_merged = merge_index(ctx, progress)?;
    // The merge is only safe on the disk, and its own traces gone, when the log is empty.
    if empty_log(ctx, progress, is_merged)? && is_merged {
        ctx.ledger.clear_pending_of(MERGE_INDEX, owed)?;
    }
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
    let bytes = search::index_bytes(&ctx.db)?;
    if ctx.server_state_now()? == ServerState::Running && bytes > MERGE_BESIDE {
        progress.notes.push(
            "the full-text index still holds deleted words: merging it takes one long transaction, which is left to \
             the next purge or `roomkeeper reclaim` while the homeserver is stopped"
                .into(),
        );
        return Ok(false);
    }
    let removed = progress.rows_removed.get("event_search").copied();
    if ctx.overwrite_when != OverwriteWhen::AtOnce && !is_in_proportion(bytes, removed.unwrap_or(0))
    {
        progress.notes.push(
            "nothing finds what was deleted any more, but its words may still stand in the file, in the full-text index: \
             merging that costs many times this job and is left to the next large one, to `roomkeeper reclaim` or to \
             `roomkeeper serve` (`overwrite_deleted: at_once` has every job do it)"
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
    let owed = [EMPTY_LOG, ERASE_PAGES].map(|duty| (duty, ctx.ledger.times_pending(duty)));
    // Where each page was overwritten on its way, there is none to look for.
    let leaves_pages = !is_merged && !ctx.ledger.has_pending(ERASE_PAGES);
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
            match leaves_pages {
                true if ctx.db.checkpoint_within(manner.patience)? => EraseProgress::All(0),
                true => EraseProgress::LogInUse,
                false => pass.step(&mut ctx.db, &turn, raw, manner)?,
            }
        };
        match erased {
            EraseProgress::All(_) => {
                for (duty, times) in owed {
                    ctx.ledger.clear_pending_of(duty, times)?;
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_is_in_proportion_to_what_went() {
        // 30 bytes of index a document, and 130 of a large server: 30,000, 222,000, a million documents.
        for (bytes, least) in [(3 << 20, 0), (30 << 20, 13_000), (140 << 20, 69_000)] {
            assert!(is_in_proportion(bytes, 1_000_000), "{bytes}");
            assert!(is_in_proportion(bytes, least + 1_000), "{bytes}");
            assert!(least == 0 || !is_in_proportion(bytes, least), "{bytes}");
        }
        assert!(is_in_proportion(i64::MAX, i64::MAX));
    }
}
