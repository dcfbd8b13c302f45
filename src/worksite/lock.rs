//! The homeserver's own lock rows on a room (W-1 … W-8), waited for and held.

use std::time::{Duration, Instant};

use super::Worksite;
use crate::error::Error;
use crate::store::db::Db;
use crate::store::homeserver::{self, RowLock};
use crate::time::Millis;

/// How long a job waits for a lock that the homeserver holds on the room, before it gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// First and longest wait between two tries at it (W-6).
const LOCK_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// W-4: a lock that was lost stops the job before its next destructive transaction.
pub(crate) fn hold(db: &Db, lock: &mut Option<&mut RowLock>, now: Millis) -> Result<(), Error> {
    let Some(lock) = lock else {
        return Ok(());
    };
    if lock.is_held(db, now)? {
        return Ok(());
    }
    Err(Error::Unsafe(
        "the homeserver's lock on the room was lost (was this process stopped for more than two minutes?); \
         everything up to here is done and whole: ask again"
            .into(),
    ))
}

/// Waits for the room's lock rows of these names, where the homeserver has such rows (W-6).
pub(crate) fn acquire_row_lock(
    site: &mut Worksite<'_>,
    names: &'static [&'static str],
) -> Result<Option<RowLock>, Error> {
    if !homeserver::has_locks(&site.db) {
        return Ok(None);
    }
    let (mut wait, longest) = LOCK_RETRY;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        let now = site.clock.now();
        let lock = {
            let _writer = site.writer.lock();
            RowLock::try_acquire(&mut site.db, names, site.room, now)?
        };
        if lock.is_some() {
            return Ok(lock);
        }
        if Instant::now() > until {
            return Err(Error::Unsafe(format!(
                "the homeserver has held its lock on room {} for ten minutes: it purges or pages the room itself",
                site.room
            )));
        }
        site.stay_or_go()?;
        site.rest(wait);
        wait = (wait * 2).min(longest);
    }
}
