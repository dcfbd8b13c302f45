//! The homeserver's own lock rows on a room (W-1 … W-8), waited for and held.

use std::time::{Duration, Instant};

use super::JobContext;
use crate::counters::{COUNTERS, Wait};
use crate::error::{Chain, Error};
use crate::store::db::Db;
use crate::store::homeserver::{self, SynapseLock};
use crate::time::Clock;

/// How long a job waits for a lock that the homeserver holds on the room, before it gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// First and longest wait between two tries at it (W-6).
const LOCK_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// W-4: a lock that was lost stops the job before its next destructive transaction.
pub(super) fn renew_lock(
    db: &Db,
    lock: Option<&mut SynapseLock>,
    clock: &dyn Clock,
) -> Result<(), Error> {
    let Some(lock) = lock else {
        return Ok(());
    };
    if lock.is_held(db, clock)? {
        return Ok(());
    }
    Err(Error::Refused(
        "the homeserver's lock on the room was lost (was this process stopped for more than two minutes?); \
         everything up to here is done and whole: ask again"
            .into(),
    ))
}

impl JobContext<'_> {
    /// W-4 for what takes long between two transactions: has the connection read, and with it something by which the lock
    /// is renewed when it is time to, in a moment of its own.
    pub(crate) fn read_and_renew<T>(
        &mut self,
        work: impl FnOnce(&Db, &mut dyn FnMut() -> Result<(), Error>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (db, lock) = (&self.db, &mut self.synapse_lock);
        let (writer, clock) = (self.writer, self.clock);
        work(db, &mut || {
            if lock.as_ref().is_none_or(|lock| !lock.is_due(clock)) {
                return Ok(());
            }
            let _turn = writer.lock();
            match renew_lock(db, lock.as_mut(), clock) {
                // The next one will do, or tell more.
                Err(e) if e.is_busy() || e.is_disconnected() => Ok(()),
                held => held,
            }
        })
    }

    /// Gives the room's lock rows back, where the job has any. What is not given back lapses.
    pub(crate) fn release_synapse_lock(&mut self) {
        if let Some(lock) = self.synapse_lock.take()
            && let Err(e) = lock.release(&mut self.db)
        {
            log::warn!("room {}: {}", self.room, Chain(&e));
        }
    }
}

/// Waits for the room's lock rows of these names, where the homeserver has such rows (W-6), and has the job hold them.
pub(crate) fn acquire_synapse_lock(
    ctx: &mut JobContext<'_>,
    names: &'static [&'static str],
) -> Result<(), Error> {
    if !homeserver::has_locks(&ctx.db) {
        return Ok(());
    }
    let (mut wait, longest) = LOCK_RETRY;
    let asked = Instant::now();
    let until = asked + LOCK_PATIENCE;
    let mut is_told = false;
    loop {
        let rooms = std::slice::from_ref(ctx.room);
        ctx.synapse_lock = {
            let _turn = ctx.writer.lock();
            SynapseLock::try_acquire(&mut ctx.db, names, rooms, ctx.clock)?
        };
        if ctx.synapse_lock.is_some() {
            COUNTERS.wait(Wait::Homeserver).observe(asked.elapsed());
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Error::Refused(format!(
                "the homeserver has held its lock on room {} for ten minutes: it purges or pages the room itself",
                ctx.room
            )));
        }
        ctx.check_cancelled()?;
        if !std::mem::replace(&mut is_told, true)
            && let Some((who, lapses)) = homeserver::lock_holder(&ctx.db, ctx.room)?
        {
            log::warn!(
                "room {}: waiting for the homeserver's lock on it, which {} holds. If that was killed, the lock lapses at {}; \
                 if it runs, it renews the lock until it is done with the room",
                ctx.room,
                crate::ids::Escaped(&who),
                lapses.as_date()
            );
        }
        ctx.rest(wait);
        wait = (wait * 2).min(longest);
    }
}
