//! The long stride: offline, where nearly everything goes and little stays, the whole purge is one transaction that
//! refills the large tables instead of deleting from them.

use std::time::Instant;

use super::request::Request;
use crate::error::Error;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{self, Removal, RowCounts};
use crate::store::history::{self, Extent};
use crate::store::homeserver::RowLock;
use crate::store::keys::Keys;
use crate::store::{search, shares, space};
use crate::stride::Leap;
use crate::worksite::{Gait, Phase, Progress, Worksite, hold, overwrite};

/// Bytes of surviving rows that one leap may put aside and write again; bounds its log, of which it needs about
/// twice that.
const LEAP_WRITES: f64 = 400.0 * 1024.0 * 1024.0;

/// Free disk that a leap asks for, in times of what it writes: its log, what it puts aside, and some.
const LEAP_SPACE: f64 = 4.0;

/// Offline, where nearly everything goes and little stays, the whole purge is one stride that refills the large
/// tables: a tenth of the work. Answers whether it was done; if not, nothing of it was, and strides by rows follow.
///
/// Foreign keys are checked in one pass before the transaction is committed, instead of sixteen look-ups for every
/// deleted event; a database that breaks some already is left to strides by rows.
pub(super) fn leap(
    site: &mut Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
    left: i64,
    lock: &mut Option<&mut RowLock>,
) -> Result<bool, Error> {
    let wanted = match site.bounds.leap {
        Leap::Never => false,
        Leap::WhereCheaper => site.db.engine() == Engine::Sqlite && is_cheaper(&site.db, left)?,
        Leap::WherePossible => true,
    };
    if !wanted
        || site.db.engine() != Engine::Sqlite
        || event_rows::has_triggers(&site.db)?
        || event_rows::broken_foreign_keys(&site.db)? > 0
    {
        return Ok(false);
    }
    progress.phase = Phase::Events;
    site.publish(progress);
    site.stay_or_go()?;
    site.still_alone()?;
    // Work lists of this size go to a temporary file; neither setting can be changed inside a transaction.
    site.db.batch("set up the connection", TEMPORARY_FILES)?;
    site.db.set_pragma("foreign_keys", false)?;
    let leapt = leap_unchecked(site, request, progress, lock);
    site.db.set_pragma("foreign_keys", true)?;
    site.db
        .batch("set up the connection", "PRAGMA temp_store = MEMORY")?;
    leapt
}

/// On a server: whether the whole purge is one stride, in which tables are read from end to end instead of looked into row
/// by row. Where the server looks after foreign keys that gains nothing: its triggers take nine tenths of the time.
pub(super) fn is_one_stride(
    site: &Worksite<'_>,
    keys: Option<&Keys>,
    left: i64,
) -> Result<bool, Error> {
    if site.db.engine() != Engine::Postgres || site.gait != Gait::Offline || keys.is_none() {
        return Ok(false);
    }
    Ok(match site.bounds.leap {
        Leap::Never => false,
        Leap::WhereCheaper => {
            (LEAP_FROM..=LONGEST_LEAP).contains(&left)
                && left.saturating_mul(LEAP_SHARE) >= shares::shares(&site.db)?.events
        }
        Leap::WherePossible => true,
    })
}

/// On a server: the part of all events that has to go for a leap to cost less than strides, as a divisor.
const LEAP_SHARE: i64 = 5;

/// Events below which strides by rows are quick enough.
const LEAP_FROM: i64 = 20_000;

/// Whether most of the database goes, what stays is small, and there is room for the log.
fn is_cheaper(db: &Db, left: i64) -> Result<bool, Error> {
    if !(LEAP_FROM..=LONGEST_LEAP).contains(&left) {
        return Ok(false);
    }
    let shares = shares::shares(db)?;
    let stay = shares.events - left;
    let written = shares.used_bytes as f64 * stay as f64 / shares.events.max(1) as f64;
    let Some(path) = db.path() else {
        return Ok(false);
    };
    let free = space::free_bytes(path)? as f64;
    Ok(stay <= left / 2 && written <= LEAP_WRITES && free >= written * LEAP_SPACE)
}

/// Longest leap, in events: bounds its work list, of some 120 bytes each.
const LONGEST_LEAP: i64 = 10_000_000;

/// The work list gets most of the memory: it is what is looked into at random. Sorting takes as much as the page cache.
/// A failed leap throws its temporary tables away, so they need no journal.
const TEMPORARY_FILES: &str = "
    PRAGMA temp_store = FILE;
    PRAGMA temp.journal_mode = OFF;
    PRAGMA temp.cache_size = -114688;
    PRAGMA main.cache_size = -32768;";

fn leap_unchecked(
    site: &mut Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
    lock: &mut Option<&mut RowLock>,
) -> Result<bool, Error> {
    let below = request.point.topological;
    let cut = request.cut(site.room, site.server_name);
    let room = site.locks.write(site.room);
    let writer = site.writer.lock();
    let (ledger, live) = (site.ledger, site.live);
    let overwrites = site.overwrite_deleted;
    let (clock, started) = (site.clock, Instant::now());
    let leapt = site.db.write("purge the events", |db| {
        let mut look_at = |table: &'static str| {
            progress.table = Some(table.to_owned());
            live.set_progress(serde_json::to_value(&*progress).unwrap_or_default());
            Ok(())
        };
        hold(db, lock, clock)?;
        let selected = history::select(db, &cut, Extent::Whole)?;
        if selected.events == 0 {
            // P-7: an empty selection touches nothing.
            return Ok(RowCounts::new());
        }
        let mut rows = RowCounts::new();
        if search::is_present(db) {
            look_at("event_search")?;
            event_rows::add(&mut rows, "event_search", search::refill(db)?);
        }
        if overwrites {
            // A rebuilt index knows nothing of what went; only its former pages do.
            overwrite::owe(ledger, SecureDelete::Fast, false)?;
        }
        let removal = Removal::Refill;
        let removed = history::remove(db, &cut, selected, below, removal, &mut look_at)?;
        rows.extend(removed.rows);
        ledger.add_candidates(room.room().as_str(), &removed.state_groups)?;
        if event_rows::broken_foreign_keys(db)? > 0 {
            return Err(Error::Bug(
                "removing the events in one leap would break a foreign key".into(),
            ));
        }
        Ok(rows)
    });
    let took = started.elapsed();
    site.db.checkpoint()?;
    drop(writer);
    let rows = match leapt {
        Ok(rows) => rows,
        Err(e) if matches!(e, Error::Bug(_)) || e.is_full() => {
            log::warn!(
                "room {}: {}; purging row by row",
                site.room,
                crate::error::Chain(&e)
            );
            return Ok(false);
        }
        Err(e) => return Err(e),
    };
    progress.table = None;
    progress.strides += 1;
    progress.leapt = true;
    progress.events_done = progress.events_planned;
    progress.longest_transaction_ms = progress.longest_transaction_ms.max(took.as_millis() as i64);
    progress.add_rows(&rows);
    site.keep(progress);
    Ok(true)
}
