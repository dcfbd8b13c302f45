//! Carrying a set of rooms out: a job of its own, and a job for each room.
//!
//! The rooms are handed to the workers in batches, a bounded number at a time; each room is purged or deleted by a job like
//! any other, so that one that is busy is skipped and one that fails stops nobody. What became of a room is in the ledger
//! before its job ends, together with the sums, so that a set that was interrupted goes on with the next room and counts
//! none twice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Shared;
use super::kind::{Runner, Work};
use super::many_rooms::{
    BATCH_EVENTS, DoneSignal, LOOK_UP_EVERY, RoomError, RoomWhy, RoomsSummary, with_summary,
    without_a_word,
};
use super::room_set::{Action, RoomSet};
use super::room_set_part::{DELETE_IN_SET, Fits, Kept, PURGE_IN_SET, Prepare, RoomOfSet, RoomWork};
use super::room_set_plan::{is_of_room, why};
use crate::deletion::{self, SHUTDOWN_ROOM, Shutdown};
use crate::error::{Chain, Error};
use crate::ids::{JobId, RoomId};
use crate::job::media::MediaSummary;
use crate::job::{Phase, Progress};
use crate::jobs::ledger::{State, Subject};
use crate::jobs::pool::{Pool, SubmitError};
use crate::jobs::register::{JobGuard, RunningJob};
use crate::jobs::room_sets::{RoomLeft, RoomOutcome};
use crate::plural::count;
use crate::point::Point;
use crate::purge;
use crate::store::db::Db;
use crate::store::expiry::Expiry;
use crate::store::points;
use crate::time::Millis;

/// Most rooms of a batch: between two of them others get a worker.
const BATCH_ROOMS: usize = 250;

/// Sets that may wait for their turn.
const MOST_WAITING: usize = 64;

/// Why a room that was chosen is left alone.
const NO_LONGER_FITS: &str = "it is not any more what it was chosen for";

/// What a set has done, beside what every job tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoomSetSummary {
    /// Rooms that were chosen.
    pub rooms_planned: i64,
    /// Of these, rooms purged or deleted.
    pub rooms_done: i64,
    /// Rooms left alone.
    pub rooms_skipped: i64,
    /// Rooms that could not be purged or deleted.
    pub rooms_failed: i64,
    /// Users of this server that were moved out, counted once for each room.
    pub people_moved: i64,
    /// What became of media, where they go with the messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaSummary>,
    /// Which were left alone, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<RoomError>,
    /// Which failed, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<RoomError>,
}

impl RoomsSummary for RoomSetSummary {
    const COULD_NOT: &'static str = "failed";

    fn failed(&self) -> (i64, i64, &[RoomError]) {
        (self.rooms_failed, self.rooms_planned, &self.errors)
    }

    fn complete(&self) -> String {
        count(self.rooms_done, "room")
    }
}

type Order = (JobGuard, Box<dyn Work>);

/// The thread that sets run in, one after the other; dropping it ends and joins it. It is no worker, so that it can wait
/// for workers without holding one.
pub(super) struct RoomSetRunner {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl RoomSetRunner {
    pub(super) fn start(shared: Arc<Shared>, pool: Arc<Pool>) -> Result<Self, Error> {
        let (orders, taken): (_, Receiver<Order>) = bounded(MOST_WAITING);
        let thread = thread::Builder::new()
            .name("room-sets".into())
            .spawn(move || {
                let watched = shared.alarm.watch("room-sets");
                let runner = Runner {
                    shared: &shared,
                    workers: Some(&pool),
                };
                for (guard, work) in taken {
                    work.run(&runner, guard);
                }
                watched.end();
            })
            .map_err(|e| Error::Store {
                doing: "start a thread",
                source: e.into(),
            })?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Runs a set as soon as those before it have ended.
    pub(super) fn run(&self, guard: JobGuard, set: Box<dyn Work>) -> Result<(), Error> {
        let Some(orders) = &self.orders else {
            return Err(Error::Stopping);
        };
        match orders.try_send((guard, set)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full((guard, _))) => {
                guard.cancel_enqueue();
                Err(Error::QueueFull)
            }
            Err(TrySendError::Disconnected((guard, _))) => {
                guard.suspend();
                Err(Error::Stopping)
            }
        }
    }
}

impl Drop for RoomSetRunner {
    fn drop(&mut self) {
        drop(self.orders.take());
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            log::error!("the thread of room sets died");
        }
    }
}

/// What a set shares with the workers that have its batches.
struct Counters {
    set: JobId,
    live: Arc<RunningJob>,
    summary: Mutex<(RoomSetSummary, Progress)>,
    /// The jobs of rooms that run now.
    running: Mutex<Vec<JobId>>,
    /// What ended the set before its last room.
    broken: Mutex<Option<Error>>,
}

impl Counters {
    fn progress(&self, of: &(RoomSetSummary, Progress)) -> Value {
        let (summary, progress) = of;
        serde_json::to_value(with_summary(progress, summary)).unwrap_or_default()
    }

    fn publish(&self) {
        let told = self.progress(&self.summary.lock());
        self.live.set_progress(told);
    }

    fn is_broken(&self) -> bool {
        self.broken.lock().is_some()
    }

    /// What is no fault of a room ends the set: what is left of it can be asked for again.
    fn break_off(&self, error: Error) {
        self.broken.lock().get_or_insert(error);
    }
}

/// What became of one room.
enum Turn {
    Done(Box<Progress>),
    /// There was nothing to do, or somebody else has it.
    Skipped(RoomWhy),
    Failed(RoomWhy),
}

/// Rooms that one worker takes one after the other.
struct Batch {
    set: Arc<RoomSet>,
    rooms: Vec<RoomLeft>,
}

impl Shared {
    /// Carries a set out, and says in the ledger how it ended.
    pub(super) fn run_set(self: &Arc<Self>, pool: &Arc<Pool>, guard: JobGuard, set: &RoomSet) {
        self.run_many(guard, |guard| {
            let done = self.run_rooms_of_set(pool, guard, set);
            self.forget_media_unless_it_goes_on(guard.id(), &done);
            done.map_err(|e| self.tell_full_disk(e, None))
        });
    }

    fn run_rooms_of_set(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        guard: &JobGuard,
        set: &RoomSet,
    ) -> Result<RoomSetSummary, Error> {
        let ledger = self.register.ledger();
        if ledger.count_room_set(guard.id())? != set.rooms {
            return Err(Error::Refused(
                "it was interrupted while it was written down, so which rooms were chosen is not known; nothing was done. \
                 Ask again"
                    .into(),
            ));
        }
        self.refuse_drift_of(guard, |viewer, plan| {
            let rooms = ledger.rooms_left(guard.id(), 0, usize::MAX)?;
            let rooms = rooms.into_iter().map(|left| left.room);
            let is_busy = |room: &RoomId| self.register.is_busy(room);
            viewer.bind_set(&set.action, rooms, plan.at(), &is_busy)
        })?;
        let mut progress: Progress =
            serde_json::from_value(guard.live().progress()).unwrap_or_default();
        let summary = serde_json::from_value(std::mem::take(&mut progress.more).into());
        let mut summary: RoomSetSummary = summary.unwrap_or_default();
        summary.rooms_planned = set.rooms;
        progress.phase = Phase::Events;
        let counters = Arc::new(Counters {
            set: guard.id().clone(),
            live: guard.live().clone(),
            summary: Mutex::new((summary, progress)),
            running: Mutex::default(),
            broken: Mutex::default(),
        });
        counters.publish();
        let stay = || self.check_goes_on(guard.live());
        let set = Arc::new(self.by_policy_of_now(set));
        self.finish_parts(&set, &counters, &|| stay().is_err())?;
        let most = self.workers_of_many();
        let (done, ended) = unbounded::<()>();
        let (mut running, mut place, mut is_over) = (0, 0, false);
        let mut next: Option<Batch> = None;
        while running > 0 || !is_over {
            if stay().is_err() || counters.is_broken() {
                is_over = true;
                next = None;
                let is_paused = guard.live().is_paused();
                for id in counters.running.lock().iter() {
                    match is_paused {
                        true => self.register.pause(id),
                        false => self.register.cancel(id),
                    };
                }
            }
            while running < most && !is_over {
                if next.is_none() {
                    next = batch(ledger.rooms_left(guard.id(), place, BATCH_ROOMS)?, &set);
                }
                let Some(batch) = next.take() else {
                    is_over = true;
                    break;
                };
                let after = batch.rooms.last().map_or(place, |room| room.place + 1);
                match self.submit_set_batch(pool, batch, &counters, &done) {
                    Ok(()) => {
                        running += 1;
                        place = after;
                    }
                    Err(SubmitError::Full) => break,
                    Err(SubmitError::Closed) => is_over = true,
                }
            }
            if ended.recv_timeout(LOOK_UP_EVERY).is_ok() {
                running -= 1;
            }
        }
        if let Some(e) = counters.broken.lock().take() {
            stay()?;
            return Err(e);
        }
        stay()?;
        let told = serde_json::from_value(guard.live().progress());
        let mut told: Progress = told.unwrap_or_default();
        if set.action.media().goes() {
            let is_stopping = || self.is_suspended(guard.live());
            let mut ctx = self.job_context(guard, &is_stopping)?;
            told = self.take_media_of(&mut ctx, set.action.media(), Ok(told))?;
        }
        self.clean_up_after_rooms(guard, &mut told)?;
        Ok(counters.summary.lock().0.clone())
    }

    /// Has a worker take a batch, which says when it is through.
    fn submit_set_batch(
        self: &Arc<Self>,
        pool: &Pool,
        batch: Batch,
        counters: &Arc<Counters>,
        done: &Sender<()>,
    ) -> Result<(), SubmitError> {
        let (shared, counters, done) = (self.clone(), counters.clone(), done.clone());
        pool.submit(Box::new(move || {
            let _says = DoneSignal(done);
            let through = catch_unwind(AssertUnwindSafe(|| shared.take_batch(&batch, &counters)));
            match through {
                Ok(Ok(())) | Ok(Err(Error::Stopping | Error::Cancelled)) => {}
                Ok(Err(e)) => counters.break_off(e),
                Err(_) => counters.break_off(Error::Bug("a batch of rooms panicked".into())),
            }
        }))
    }

    /// Takes the rooms of a batch one after the other, on one connection.
    fn take_batch(self: &Arc<Self>, batch: &Batch, counters: &Counters) -> Result<(), Error> {
        let rooms = || batch.rooms.iter().map(|left| &left.room);
        let cuts = match &batch.set.action {
            Action::PurgeHistory { before_ts, .. } => Some(self.cuts(rooms(), *before_ts)?),
            Action::DeleteRoom { .. } => None,
        };
        let prepare = |db: &Db| match &cuts {
            Some((points, _)) => {
                let cuts = rooms().zip(points);
                let cuts =
                    cuts.filter_map(|(room, point)| Some((room, point.as_ref()?.topological)));
                purge::prepare_many(db, cuts)
            }
            None => deletion::prepare_many(db, rooms()),
        };
        let mut kept: Kept = None;
        let mut fits = Fits::new(&batch.set);
        for (at, left) in batch.rooms.iter().enumerate() {
            let live = &counters.live;
            if self.check_goes_on(live).is_err() || counters.is_broken() {
                return Ok(());
            }
            let room = &left.room;
            let work = match (&batch.set.action, &cuts) {
                (Action::DeleteRoom { request }, _) => Ok(match self.moves_people(&batch.set) {
                    true => RoomWork::Deletion(request.clone()),
                    false => RoomWork::DeletionOfEmpty(request.clone()),
                }),
                (
                    Action::PurgeHistory {
                        before_ts,
                        delete_local_events,
                        media,
                    },
                    Some((points, expiry)),
                ) => points[at]
                    .map(|point| {
                        RoomWork::Purge(purge::Request {
                            point,
                            delete_local_events: *delete_local_events,
                            media: *media,
                            keep_received_after: Some(*before_ts - Millis(1)),
                            expiry: Some(*expiry),
                            held: Vec::new(),
                        })
                    })
                    .ok_or(Error::NothingThatOld),
                (Action::PurgeHistory { .. }, None) => Err(Error::Bug("no cuts".into())),
            };
            let looked =
                work.and_then(|work| self.look_at_turn(room, &mut fits).map(|fit| (work, fit)));
            match looked {
                Ok((work, true)) => {
                    self.take_room(left, work, &mut kept, &prepare, counters)?;
                }
                Ok((_, false)) => {
                    let turn = Turn::Skipped((NO_LONGER_FITS.to_owned(), "no_longer_fits"));
                    self.note_turn(counters, left.place, room, turn)?;
                }
                Err(e) => self.note_turn(counters, left.place, room, turn_of(e)?)?,
            }
        }
        Ok(())
    }

    /// Whether people may be moved out of the rooms of a set: a policy must say so.
    fn moves_people(&self, set: &RoomSet) -> bool {
        set.policy.as_ref().is_none_or(|name| {
            let policy = self.policy_of_now(name, &set.action);
            policy.is_some_and(|policy| policy.even_with_members)
        })
    }

    /// A set of a policy, no further than that goes by now.
    fn by_policy_of_now(&self, set: &RoomSet) -> RoomSet {
        let mut set = set.clone();
        let policy = set
            .policy
            .as_ref()
            .and_then(|name| self.policy_of_now(name, &set.action));
        let until = policy.map(|policy| set.decided_ms - policy.after);
        if let (Action::PurgeHistory { before_ts, .. }, Some(until)) = (&mut set.action, until) {
            *before_ts = until.min(*before_ts);
        }
        set
    }

    /// Where each room is cut, and what has expired.
    fn cuts<'a>(
        &self,
        rooms: impl Iterator<Item = &'a RoomId>,
        before_ts: Millis,
    ) -> Result<(Vec<Option<Point>>, Expiry), Error> {
        let now = self.config.clock.now();
        self.with_reader(|db| {
            let expiry = Expiry::find(db, before_ts, now)?;
            let points = rooms.map(|room| points::anchor(db, room, &expiry));
            Ok((points.collect::<Result<_, _>>()?, expiry))
        })
    }

    /// Whether a room is still one of those that were meant.
    fn look_at_turn(&self, room: &RoomId, fits: &mut Fits) -> Result<bool, Error> {
        self.with_reader(|db| self.refuse_own_task(db, room))?;
        fits.fits(self, room)
    }

    /// Purges or deletes one room, as a job.
    fn take_room(
        &self,
        left: &RoomLeft,
        work: RoomWork,
        kept: &mut Kept,
        prepare: Prepare<'_>,
        counters: &Counters,
    ) -> Result<(), Error> {
        let kind = match &work {
            RoomWork::Purge(_) => &PURGE_IN_SET,
            RoomWork::Deletion(_) | RoomWork::DeletionOfEmpty(_) => &DELETE_IN_SET,
        };
        let part = RoomOfSet {
            set: counters.set.clone(),
            work,
        };
        let params = serde_json::to_value(&part).map_err(|e| Error::Bug(e.to_string()))?;
        let subject = Subject::Room(left.room.clone());
        match self.register.enqueue_part(kind.name, &subject, params) {
            Ok(guard) => self.do_part(guard, left, &part, kept, prepare, counters),
            Err(e) => self.note_turn(counters, left.place, &left.room, turn_of(e)?),
        }
    }

    fn do_part(
        &self,
        guard: JobGuard,
        left: &RoomLeft,
        part: &RoomOfSet,
        kept: &mut Kept,
        prepare: Prepare<'_>,
        counters: &Counters,
    ) -> Result<(), Error> {
        let id = guard.id().clone();
        counters.running.lock().push(id.clone());
        let worked = catch_unwind(AssertUnwindSafe(|| {
            self.work_on_room(&guard, part, kept, Some(prepare))
        }));
        counters.running.lock().retain(|running| *running != id);
        let room = &left.room;
        match worked {
            Ok(Ok(done)) => {
                // First what became of the room: a part that is found without an end is not begun again then.
                self.note_turn(counters, left.place, room, Turn::Done(Box::new(done)))?;
                guard.end_part(None);
            }
            Ok(Err(Error::Stopping)) => {
                let is_all = self.is_suspended(&counters.live);
                guard.suspend();
                if !is_all {
                    let turn = Turn::Skipped(("somebody paused it".to_owned(), "paused"));
                    self.note_turn(counters, left.place, room, turn)?;
                }
            }
            // The set is cancelled, and the room with it.
            Ok(Err(e @ Error::Cancelled)) if counters.live.is_cancelled() => {
                guard.end_part(Some((&e.status_text(), e.code())));
            }
            Ok(Err(e)) => {
                let e = self.tell_full_disk(e, Some(guard.room()));
                log::error!("{guard} failed: {}", Chain(&e));
                let (text, code) = (e.status_text(), e.code());
                let is_of_room = is_of_room(&e) || matches!(e, Error::Cancelled | Error::Bug(_));
                if is_of_room || may_be_of_room(&e) {
                    let turn = Turn::Failed((text.clone(), code));
                    self.note_turn(counters, left.place, room, turn)?;
                    guard.end_part(Some((&text, code)));
                } else {
                    guard.end_part(Some((&text, code)));
                    return Err(e);
                }
            }
            Err(_) => {
                let turn = Turn::Failed(without_a_word());
                self.note_turn(counters, left.place, room, turn)?;
            }
        }
        Ok(())
    }

    /// Writes down what became of a room, and how far the set is with that.
    fn note_turn(
        &self,
        counters: &Counters,
        place: i64,
        room: &RoomId,
        turn: Turn,
    ) -> Result<(), Error> {
        let mut of = counters.summary.lock();
        let (summary, progress) = &mut *of;
        let outcome = match turn {
            Turn::Done(done) => {
                summary.rooms_done += 1;
                summary.people_moved += people_moved(&done);
                progress.events_planned += done.events_planned;
                progress.events_done += done.events_done;
                progress.add_part(&done);
                RoomOutcome::Done
            }
            Turn::Skipped(why) => {
                log::info!("room {room}: left alone by set {}: {}", counters.set, why.0);
                summary.rooms_skipped += 1;
                RoomError::tell(&mut summary.skipped, room, why);
                RoomOutcome::Skipped
            }
            Turn::Failed(why) => {
                summary.rooms_failed += 1;
                RoomError::tell(&mut summary.errors, room, why);
                RoomOutcome::Failed
            }
        };
        let value = counters.progress(&of);
        counters.live.set_progress(value.clone());
        let ledger = self.register.ledger();
        ledger.note_room_outcome(&counters.set, place, outcome, &value)
    }

    /// Finishes what a set that was interrupted was in the middle of, whatever those rooms are by now: a room of which some
    /// rows are gone has no life any more.
    fn finish_parts(
        &self,
        set: &RoomSet,
        counters: &Counters,
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let ledger = self.register.ledger();
        let mut fits = Fits::new(set);
        for record in ledger.unended_parts(&counters.set)? {
            if is_over() {
                return Ok(());
            }
            let (Some(part), Some(room)) = (RoomOfSet::of_record(&record), record.subject.room())
            else {
                continue;
            };
            // Somebody had it go on alone.
            let Ok(guard) = self.register.requeue(&record) else {
                continue;
            };
            let Some(place) = ledger.place_of_room(&counters.set, room)? else {
                guard.end_part(None);
                continue;
            };
            if record.state != State::Queued {
                ledger.set_state(guard.id(), State::Queued)?;
            }
            // By a policy that is another now a room of which nothing has gone yet stays.
            if set.policy.is_some()
                && !ledger.has_noted_removed(guard.id())?
                && !fits.fits(self, room)?
            {
                let turn = Turn::Skipped((NO_LONGER_FITS.to_owned(), "no_longer_fits"));
                self.note_turn(counters, place, room, turn)?;
                guard.end_part(None);
                continue;
            }
            log::info!("{guard} goes on where it was interrupted");
            let left = RoomLeft {
                place,
                room: room.clone(),
                events: 0,
            };
            let prepare = |db: &Db| match &part.work {
                RoomWork::Purge(request) => {
                    purge::prepare_many(db, std::iter::once((room, request.point.topological)))
                }
                RoomWork::Deletion(_) | RoomWork::DeletionOfEmpty(_) => {
                    deletion::prepare_many(db, std::iter::once(room))
                }
            };
            match self.do_part(guard, &left, &part, &mut None, &prepare, counters) {
                Err(Error::Stopping | Error::Cancelled) => return Ok(()),
                outcome => outcome?,
            }
        }
        Ok(())
    }
}

/// What a room's error makes of its turn; what is no fault of a room ends the batch.
fn turn_of(e: Error) -> Result<Turn, Error> {
    match e {
        Error::NothingThatOld | Error::RoomBusy { .. } | Error::LeftTask(_) | Error::Held(_) => {
            Ok(Turn::Skipped((why(&e), e.code())))
        }
        e if is_of_room(&e) => Ok(Turn::Failed((e.status_text(), e.code()))),
        e => Err(e),
    }
}

/// Whether what a database said may be about this room's rows: a trigger or a constraint of somebody's. Where the disk is
/// full, the file damaged or the server gone the next room would fare no better.
fn may_be_of_room(e: &Error) -> bool {
    matches!(e, Error::Store { .. }) && !e.is_full() && !e.is_disconnected() && !e.is_damage()
}

fn people_moved(done: &Progress) -> i64 {
    let told = done.more.get(SHUTDOWN_ROOM).cloned();
    let shutdown: Option<Shutdown> = told.and_then(|told| serde_json::from_value(told).ok());
    let moved = shutdown.map_or(0, |shutdown| shutdown.kicked_users.len());
    i64::try_from(moved).unwrap_or(i64::MAX)
}

/// The next rooms of a set that go to one worker.
fn batch(mut rooms: Vec<RoomLeft>, set: &Arc<RoomSet>) -> Option<Batch> {
    let mut events = 0;
    let end = rooms.iter().position(|room| {
        events += room.events;
        events > BATCH_EVENTS
    });
    if let Some(end) = end {
        rooms.truncate(end.max(1));
    }
    (!rooms.is_empty()).then(|| Batch {
        set: set.clone(),
        rooms,
    })
}
