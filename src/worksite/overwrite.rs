//! What is promised of deleted content: that nothing of it is left in the file, its log, the full-text index.
//!
//! Deleting is one thing and overwriting another, and a job can be killed between the two. So the ledger has it as a
//! duty before the deletion commits, and it stands there until it is done: by this job, or by the next of any room.

use std::thread;
use std::time::Duration;

use super::{Gait, LOOK_UP_EVERY, Phase, Progress, Worksite};
use crate::error::Error;
use crate::jobs::ledger::Ledger;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::erase::{Erased, Manner, Pass};
use crate::store::{search, space};

/// The full-text index still knows deleted words.
pub(crate) const MERGE_INDEX: &str = "merge the full-text index";

/// The write-ahead log still holds deleted content.
pub(crate) const EMPTY_LOG: &str = "empty the write-ahead log";

/// Free pages still hold deleted content: strides leave that to the end.
pub(crate) const ERASE_PAGES: &str = "overwrite free pages";

/// Notes what a transaction that deletes events leaves to be done; before that commits.
pub(crate) fn owe(ledger: &Ledger, how: SecureDelete, is_searched: bool) -> Result<(), Error> {
    ledger.owe(EMPTY_LOG)?;
    if how == SecureDelete::Fast {
        ledger.owe(ERASE_PAGES)?;
    }
    if is_searched {
        ledger.owe(MERGE_INDEX)?;
    }
    Ok(())
}

/// Free pages, in bytes, that are worth looking through for those that a job has added.
const FEW_FREE: u64 = 1 << 30;

/// How pages that become free are overwritten: all at the end, where the pass over the free pages is short enough, or
/// each on its way.
pub(crate) fn settle_on(site: &Worksite<'_>) -> Result<SecureDelete, Error> {
    if !site.overwrite_deleted || site.db.engine() == Engine::Postgres {
        return Ok(SecureDelete::Off);
    }
    let how = match space::reclaimable_bytes(&site.db)? {
        0..=FEW_FREE => SecureDelete::Fast,
        _ => SecureDelete::On,
    };
    site.db.set_secure_delete(how)?;
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
pub(crate) fn tidy(site: &mut Worksite<'_>, progress: &mut Progress) -> Result<(), Error> {
    if site.is_one_of_many {
        progress.phase = Phase::Done;
        return Ok(());
    }
    progress.phase = Phase::Tidying;
    site.publish(progress);
    if (site.is_stopping)() {
        return Err(Error::Stopping);
    }
    if site.db.engine() == Engine::Postgres {
        // What a server does with deleted rows is its own affair: they go when it vacuums.
        for duty in [MERGE_INDEX, EMPTY_LOG, ERASE_PAGES] {
            site.ledger.settle(duty)?;
        }
    } else if site.overwrite_deleted && !site.register.leaves_the_rest_to_others(&site.live.id) {
        let is_merged = merge_index(site, progress)?;
        // The merge is only safe on the disk, and its own traces gone, when the log is empty.
        if empty_log(site, progress, is_merged)? && is_merged {
            site.ledger.settle(MERGE_INDEX)?;
        }
    }
    if site.db.engine() == Engine::Sqlite {
        progress.reclaimable_bytes = Some(space::reclaimable_bytes(&site.db)?);
    }
    progress.phase = Phase::Done;
    Ok(())
}

/// Answers whether the index was merged.
fn merge_index(site: &mut Worksite<'_>, progress: &mut Progress) -> Result<bool, Error> {
    if !site.ledger.owes(MERGE_INDEX) {
        return Ok(false);
    }
    if site.gait == Gait::Beside && index_bytes(&site.db)? > MERGE_BESIDE {
        progress.notes.push(
            "the full-text index still holds deleted words: merging it takes one long transaction, which is left to \
             the next purge or `roomkeeper reclaim` while the homeserver is stopped"
                .into(),
        );
        return Ok(false);
    }
    let _writer = site.writer.lock();
    site.db
        .write("merge the full-text index", search::optimize)?;
    Ok(true)
}

/// Empties the log and overwrites the pages that became free. Answers whether nothing of it remains to be done.
fn empty_log(
    site: &mut Worksite<'_>,
    progress: &mut Progress,
    is_merged: bool,
) -> Result<bool, Error> {
    if !is_merged && !site.ledger.owes(EMPTY_LOG) && !site.ledger.owes(ERASE_PAGES) {
        return Ok(true);
    }
    let Some(raw) = site.raw else { return Ok(true) };
    let manner = match site.gait {
        Gait::Offline => Manner {
            patience: PATIENCE_OFFLINE,
            slice: None,
        },
        Gait::Beside => Manner {
            patience: PATIENCE_BESIDE,
            slice: Some(Duration::from_millis(
                u64::try_from(site.bounds.millis / 2).unwrap_or(0),
            )),
        },
    };
    let mut pass = Pass::default();
    let mut tries = 0;
    loop {
        let erased = {
            let _writer = site.writer.lock();
            pass.go_on(&mut site.db, raw, manner)?
        };
        match erased {
            Erased::All(_) => {
                site.ledger.settle(ERASE_PAGES)?;
                site.ledger.settle(EMPTY_LOG)?;
                return Ok(true);
            }
            // Readers come and go.
            Erased::LogInUse if tries == OVERWRITE_TRIES => break,
            Erased::LogInUse => tries += 1,
            Erased::Part => tries = 0,
        }
        if (site.is_stopping)() {
            return Err(Error::Stopping);
        }
        thread::sleep(LOOK_UP_EVERY.max(site.bounds.rest));
    }
    progress.notes.push(
        "the write-ahead log is in use and was not emptied: it and free pages still hold deleted content until the \
         next purge"
            .into(),
    );
    Ok(false)
}

fn index_bytes(db: &Db) -> Result<i64, Error> {
    const SIZE: &str = "SELECT sum(length(block)) FROM event_search_segments";
    db.count("measure the full-text index", SIZE, &[])
}
