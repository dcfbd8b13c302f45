//! The rooms of a retention run that one worker has: small ones together, the others one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::many_rooms::without_a_word;
use super::retention::{Batch, Counters, RETENTION_PURGE};
use super::retention_room::RoomPurge;
use crate::error::{Chain, Error};
use crate::job::{HomeserverWatch, JobContext, Progress, Removes, ServerState};
use crate::jobs::ledger::Subject;
use crate::jobs::register::JobGuard;
use crate::purge::{self, MOST_EVENTS_OF_SMALL, OneOfMany, Request};
use crate::retention::Due;
use crate::store::db::Db;
use crate::store::homeserver;

/// Most events that go together.
const EVENTS_TOGETHER: i64 = 5 * MOST_EVENTS_OF_SMALL;

/// Rooms that go together at first beside a homeserver: they tell how many more may.
const FIRST_BESIDE: usize = 8;

/// Part of the longest time that others may wait which rooms beside a homeserver aim at, in per cent.
const AIM: u32 = 70;

/// What outlives a room.
struct Kept {
    db: Option<(Db, HomeserverWatch)>,
    /// How many rooms go together beside a homeserver.
    beside: usize,
}

/// A room that is a job by now.
struct Admitted<'a> {
    due: &'a Due,
    guard: JobGuard,
    purge: RoomPurge,
}

impl Admitted<'_> {
    /// Whether anything was done to it.
    fn has_begun(&self) -> bool {
        let progress = self.guard.live().progress();
        progress["strides"].as_i64().is_some_and(|done| done > 0)
    }
}

/// What became of a room; nothing where nothing of it was to go.
type Outcome = Result<Option<Progress>, Error>;

impl Shared {
    /// Purges the rooms of a batch on one connection.
    pub(super) fn purge_batch(
        self: &Arc<Self>,
        batch: &Batch,
        counters: &Counters,
        is_over: &dyn Fn() -> bool,
    ) {
        let is_over =
            || self.is_stopping.load(Ordering::SeqCst) || is_over() || counters.is_broken();
        let mut kept = Kept {
            db: None,
            beside: FIRST_BESIDE,
        };
        let mut at = 0;
        while at < batch.rooms.len() && !is_over() {
            let rooms = &batch.rooms[at..at + self.how_many(&batch.rooms[at..], &kept)];
            at += rooms.len();
            let left = match rooms.len() {
                1 => rooms.iter().map(|room| (room, None)).collect(),
                _ => self.purge_group(batch, rooms, counters, &mut kept),
            };
            for ((due, request), room) in left {
                // What has begun says itself how it ends.
                if room.is_none() && is_over() {
                    return;
                }
                self.purge_due(batch, due, request, room, counters, &mut kept);
            }
        }
    }

    /// Purges rooms together. Answers those that are to be purged by themselves: judged anew when it is their turn, and free
    /// for others until then; but for those of which a part is done.
    fn purge_group<'a>(
        self: &Arc<Self>,
        batch: &Batch,
        rooms: &'a [(Due, Request)],
        counters: &Counters,
        kept: &mut Kept,
    ) -> Vec<(&'a (Due, Request), Option<Admitted<'a>>)> {
        let mut admitted = Vec::with_capacity(rooms.len());
        let mut left = Vec::new();
        for asked in rooms {
            match self.admit(batch, &asked.0, &asked.1) {
                Ok(Some(room)) => {
                    counters.running.lock().push(room.guard.id().clone());
                    admitted.push((asked, room));
                }
                // It is asked, and told, in its turn.
                Ok(None) | Err(_) => left.push((asked, None)),
            }
        }
        let together = self.purge_together(batch, &admitted, kept);
        for (at, (asked, room)) in admitted.into_iter().enumerate() {
            let id = room.guard.id().clone();
            let progress = together.as_ref().and_then(|done| done.get(at));
            if let Some(progress) = progress {
                counters.running.lock().retain(|running| *running != id);
                counters.purged(room.due, progress);
                room.guard.end_part(None);
            } else if room.has_begun() {
                left.push((asked, Some(room)));
            } else {
                counters.running.lock().retain(|running| *running != id);
                room.guard.cancel_enqueue();
                left.push((asked, None));
            }
        }
        left
    }

    /// Purges one room, and counts what became of it.
    fn purge_due(
        self: &Arc<Self>,
        batch: &Batch,
        due: &Due,
        request: &Request,
        room: Option<Admitted<'_>>,
        counters: &Counters,
        kept: &mut Kept,
    ) {
        let room = match room {
            Some(room) => Ok(Some(room)),
            None => self.admit(batch, due, request),
        };
        let room = match room {
            Ok(Some(room)) => room,
            other => return settle(counters, due, other.map(|_| None)),
        };
        let id = room.guard.id().clone();
        if !counters.running.lock().contains(&id) {
            counters.running.lock().push(id.clone());
        }
        let alone = || self.purge_alone(batch, &room, kept);
        let done = catch_unwind(AssertUnwindSafe(alone));
        counters.running.lock().retain(|running| *running != id);
        let Ok(done) = done else {
            return counters.failed(&due.room_id, without_a_word());
        };
        let done = done.map_err(|e| self.tell_full_disk(e, Some(&due.room_id)));
        match &done {
            Ok(_) => room.guard.end_part(None),
            Err(Error::Stopping) => room.guard.suspend(),
            Err(e) => room.guard.end_part(Some((&e.status_text(), e.code()))),
        }
        settle(counters, due, done.map(Some));
    }

    /// How many of these rooms are tried together.
    fn how_many(&self, rooms: &[(Due, Request)], kept: &Kept) -> usize {
        let config = &self.config;
        let is_beside = self.is_beside(kept);
        let most = match (config.database.file(), &config.archive) {
            (Some(_), None) if is_beside => kept.beside.min(config.batch.rooms),
            (Some(_), None) => config.batch.rooms,
            _ => 1,
        };
        let mut events = 0;
        let small = rooms.iter().take_while(|(due, _)| {
            events += due.events;
            due.events <= MOST_EVENTS_OF_SMALL && events <= EVENTS_TOGETHER
        });
        small.take(most.max(1)).count().max(1)
    }

    fn is_beside(&self, kept: &Kept) -> bool {
        let now = self.config.clock.now();
        match &kept.db {
            Some((db, _)) => self.watch().look(db, now).is_ok_and(|sign| sign.is_some()),
            None => true,
        }
    }

    /// Has the room judged anew, and makes a job of it.
    fn admit<'a>(
        self: &Arc<Self>,
        batch: &Batch,
        due: &'a Due,
        request: &Request,
    ) -> Result<Option<Admitted<'a>>, Error> {
        let room = &due.room_id;
        let now = self.config.clock.now();
        if self.with_reader(|db| homeserver::has_own_task(db, room, now))? {
            return Err(Error::RoomBusy { room: room.clone() });
        }
        self.refuse_held(room, Removes::History)?;
        let run = batch.run;
        let Some(request) = self.recheck(run, room, request, now.min(batch.planned_at))? else {
            return Ok(None);
        };
        let purge = RoomPurge { request, run };
        let params = serde_json::to_value(&purge).map_err(|e| Error::Bug(e.to_string()))?;
        let subject = Subject::Room(room.clone());
        let guard = self
            .register
            .enqueue_part(RETENTION_PURGE.name, &subject, params)
            .map_err(|e| self.tell_full_disk(e, Some(room)))?;
        Ok(Some(Admitted { due, guard, purge }))
    }

    /// What a room is purged with: the connection of the rooms before it, or a new one that is prepared for all of them.
    fn context<'a>(
        &'a self,
        batch: &Batch,
        guard: &'a JobGuard,
        kept: &mut Kept,
        is_stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<JobContext<'a>, Error> {
        let mut ctx = match kept.db.take() {
            Some((db, watch)) => self.job_context_on(db, watch, guard, is_stopping)?,
            None => {
                let ctx = self.job_context(guard, is_stopping)?;
                let cuts = batch.rooms.iter();
                let cuts = cuts.map(|(due, _)| (&due.room_id, due.point.topological));
                purge::prepare_many(&ctx.db, cuts)?;
                ctx
            }
        };
        ctx.is_one_of_many = true;
        Ok(ctx)
    }

    /// Purges rooms together; answers what was done of each, or nothing where each is to be purged by itself.
    fn purge_together(
        self: &Arc<Self>,
        batch: &Batch,
        rooms: &[(&(Due, Request), Admitted<'_>)],
        kept: &mut Kept,
    ) -> Option<Vec<Progress>> {
        if rooms.len() < 2 {
            return None;
        }
        let is_stopping = || self.is_stopping.load(Ordering::SeqCst);
        let together = || -> Result<Option<Vec<Progress>>, Error> {
            let mut ctx = self.context(batch, &rooms[0].1.guard, kept, &is_stopping)?;
            let parts = rooms.iter().map(|(_, room)| OneOfMany {
                live: room.guard.live(),
                room: room.guard.room(),
                request: &room.purge.request,
                progress: Progress::default(),
            });
            let mut parts: Vec<OneOfMany<'_>> = parts.collect();
            let begun = Instant::now();
            let done = purge::run_together(&mut ctx, &mut parts);
            if ctx.server_state == ServerState::Running {
                let longest = parts
                    .iter()
                    .map(|part| part.progress.longest_transaction_ms);
                let longest = Duration::from_millis(longest.max().unwrap_or(0).unsigned_abs());
                kept.beside = next_beside(rooms.len(), longest, ctx.limits.millis, &done);
                log::debug!("{} rooms in {:?}", rooms.len(), begun.elapsed());
                // Once for all of them.
                ctx.rest(ctx.limits.pause);
            }
            kept.db = Some((ctx.db, ctx.watch));
            Ok(done?.then(|| parts.into_iter().map(|part| part.progress).collect()))
        };
        match catch_unwind(AssertUnwindSafe(together)) {
            Ok(Ok(done)) => done,
            // Whatever it was, each of them says it by itself.
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Purges one room. The connection outlives it, unless it failed.
    fn purge_alone(
        self: &Arc<Self>,
        batch: &Batch,
        room: &Admitted<'_>,
        kept: &mut Kept,
    ) -> Result<Progress, Error> {
        let is_stopping = || self.is_stopping.load(Ordering::SeqCst);
        room.guard.start()?;
        let mut ctx = self.context(batch, &room.guard, kept, &is_stopping)?;
        let progress = purge::run(&mut ctx, &room.purge.request)?;
        // A rewrite leaves nothing of what was prepared on its connection.
        if !progress.rewritten {
            kept.db = Some((ctx.db, ctx.watch));
        }
        Ok(progress)
    }
}

/// How many rooms go together next, by how long others waited for these.
fn next_beside(rooms: usize, longest: Duration, limit: i64, done: &Result<bool, Error>) -> usize {
    if !matches!(done, Ok(true)) {
        return (rooms / 2).max(2);
    }
    let aim = Duration::from_millis(limit.unsigned_abs()) * AIM / 100;
    let each = longest.max(Duration::from_millis(1)) / u32::try_from(rooms).unwrap_or(1).max(1);
    let fitting = aim.as_micros() / each.as_micros().max(1);
    usize::try_from(fitting)
        .unwrap_or(usize::MAX)
        .clamp(2, rooms.saturating_mul(2))
}

/// Counts what became of a room, and says what nobody else does.
fn settle(counters: &Counters, due: &Due, outcome: Outcome) {
    let room = &due.room_id;
    match outcome {
        Ok(Some(done)) => counters.purged(due, &done),
        Ok(None) => counters.left_alone(),
        // It goes on later.
        Err(Error::Stopping) => {}
        Err(Error::RoomBusy { .. }) => {
            log::warn!("room {room}: another job has it, so this retention run skips it");
            counters.skipped();
        }
        Err(e @ Error::Held(_)) => {
            log::warn!("{e}; this retention run skips it");
            counters.left_alone();
        }
        Err(e) => {
            log::error!("room {room}: its retention failed: {}", Chain(&e));
            counters.failed(room, (e.status_text(), e.code()));
            if e.is_full() {
                // The next room would fare no better.
                counters.broken.lock().get_or_insert(e);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_rooms_go_together_as_others_can_wait_for() {
        let next =
            |rooms, millis| next_beside(rooms, Duration::from_millis(millis), 500, &Ok(true));
        assert_eq!(next(8, 40), 16, "no more than twice as many");
        assert_eq!(next(100, 350), 100);
        assert_eq!(next(100, 700), 50);
        assert_eq!(next(100, 0), 200);
        assert_eq!(next(2, 10_000), 2);
        let given_up = next_beside(40, Duration::ZERO, 500, &Ok(false));
        assert_eq!(given_up, 20);
        assert_eq!(
            next_beside(2, Duration::ZERO, 500, &Err(Error::Stopping)),
            2
        );
    }
}
