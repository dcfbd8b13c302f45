//! A full-text index that is damaged (P-55): it is derived data, and built again from its content, where nobody waits.

use super::overwrite::add_pending;
use super::{
    DiskBudget, Endurance, IfStarted, JobContext, Limits, Log, Outcome, Progress, Scope,
    ServerState,
};
use crate::error::Error;
use crate::store::db::SecureDelete;
use crate::store::{search, space};

/// What a job notes once it has built the index anew.
const REBUILT: &str = "the full-text index was damaged and was built anew from its content";

/// What a rebuild needs on the disk, in times of the texts that it reads: the new index, the log, some.
const REBUILD_NEEDS: u64 = 4;

/// From so many segments of one level on, a small disk has them merged before the next batch: two batches later FTS4
/// would do it itself, all in one transaction.
const MANY_SEGMENTS: i64 = 13;

/// Merges the index in small steps where the disk is small and the next batches would have it merged at once (S-35).
/// Each step is a transaction of its own and takes the writer's turn.
///
/// # Errors
/// Those of the database: a disk without room for the smallest step among them.
pub(crate) fn merge_in_steps(ctx: &mut JobContext<'_>, disk: &DiskBudget) -> Result<(), Error> {
    let mut most = i64::MAX;
    loop {
        let Some(leaves) = disk.leaves()? else {
            return Ok(());
        };
        let leaves = leaves.min(most);
        if search::most_segments(&ctx.db)? < MANY_SEGMENTS {
            return Ok(());
        }
        let limits = Limits {
            // It takes nothing from anybody, and stands before a batch that looks.
            if_started: IfStarted::GoOn,
            log: Log::Empty,
            ..Limits::default()
        };
        let doing = "merge the full-text index";
        let merged = ctx.small_transaction(doing, Scope::Server, limits, |tx| {
            Ok(search::merge_some(tx, leaves)?)
        });
        match merged.and_then(Outcome::done) {
            Ok((true, _)) => {}
            Ok((false, _)) => return Ok(()),
            // A leaf holds a whole word's documents, so some are large.
            Err(e) if e.is_full() && leaves > 1 => most = (leaves / 4).max(1),
            Err(e) => return Err(e),
        }
    }
}

/// Builds the index anew where `error` says that it is damaged and nothing more is: what failed can be tried again then.
///
/// # Errors
/// `error` itself where it is another; [`Error::IndexDamaged`] while a homeserver runs, which would wait for all of it;
/// [`Error::NoSpace`] with the bytes that are missing.
pub(crate) fn rebuild_if_damaged(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    error: Error,
) -> Result<(), Error> {
    // Once is enough: what fails again is something else.
    if !error.is_index_damage() || progress.notes.iter().any(|note| note == REBUILT) {
        return Err(error);
    }
    if ctx.server_state_now()? == ServerState::Running {
        return Err(Error::IndexDamaged(
            "the full-text index is damaged. It is made of other tables, and nothing is lost: stop the homeserver and ask \
             again, which builds it anew; or have SQLite do it now, while the homeserver waits: INSERT INTO \
             event_search(event_search) VALUES ('rebuild')"
                .into(),
        ));
    }
    if let Some(path) = ctx.db.path() {
        let texts = u64::try_from(search::content_bytes(&ctx.db)?).unwrap_or(0);
        let (needed, free) = (
            texts.saturating_mul(REBUILD_NEEDS),
            space::free_bytes(path)?,
        );
        if free < needed {
            return Err(Error::NoSpace(format!(
                "the full-text index is damaged, and building it anew takes up to {needed} bytes of which the disk has \
                 {free} free: make room for {} bytes and ask again",
                needed - free
            )));
        }
    }
    log::warn!(
        "room {}: the full-text index is damaged; building it anew",
        ctx.room
    );
    if ctx.overwrite_deleted {
        add_pending(ctx.ledger, SecureDelete::Fast, false)?;
    }
    let limits = Limits {
        if_started: IfStarted::GoOn,
        endures: Endurance::UntilStopping,
        ..Limits::default()
    };
    let doing = "rebuild the full-text index";
    ctx.small_transaction(doing, Scope::Server, limits, |tx| Ok(search::rebuild(tx)?))?
        .done()?;
    progress.notes.push(REBUILT.to_owned());
    Ok(())
}
