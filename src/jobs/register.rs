//! Who may start a job, how it ends, and how far it is.
//!
//! A [`JobGuard`] is both the right and the duty to say how a job ended: no job can stay "running" after its
//! worker has gone. One subject (a room) has at most one job at a time (L-1, L-2).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::ledger::{JobRecord, Ledger, State};
use crate::error::Error;
use crate::ids::{JobId, RoomId};
use crate::time::{Clock, Millis};

/// How often one who waits for a room looks up.
const LOOK_UP_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// What stops a statement that is running now.
pub type Interrupt = Box<dyn Fn() + Send>;

/// A job that has not ended, as others see it.
pub struct RunningJob {
    /// Its id.
    pub id: JobId,
    /// Its kind, as the ledger has it.
    pub kind: String,
    cancelled: AtomicBool,
    reached_cleanup: AtomicBool,
    interrupt: Mutex<Option<Interrupt>>,
    progress: Mutex<Value>,
}

impl RunningJob {
    /// Whether somebody asked for the job to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Says by what the job's present statement can be stopped; `None` while it must not be.
    pub fn set_interrupt(&self, interrupt: Option<Interrupt>) {
        *self.interrupt.lock() = interrupt;
    }

    /// Stops the present statement, if it may be stopped.
    pub fn interrupt(&self) {
        if let Some(interrupt) = &*self.interrupt.lock() {
            interrupt();
        }
    }

    /// Publishes how far the job is.
    pub fn set_progress(&self, progress: Value) {
        *self.progress.lock() = progress;
    }

    /// How far the job is.
    pub fn progress(&self) -> Value {
        self.progress.lock().clone()
    }
}

#[derive(Default)]
struct Busy {
    by_room: HashMap<RoomId, Arc<RunningJob>>,
}

/// The rooms that are busy, and the ledger.
pub struct JobRegistry {
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    busy: Mutex<Busy>,
    ended: Condvar,
}

impl JobRegistry {
    /// A register over a ledger that we own.
    pub fn new(ledger: Ledger, clock: Arc<dyn Clock>) -> Self {
        Self {
            ledger,
            clock,
            busy: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Admits a new job for a room: check and insert are one step (L-6), and the job is in the ledger when this
    /// returns.
    ///
    /// # Errors
    /// [`Error::RoomBusy`] while another job has the room (L-2).
    pub fn enqueue(
        self: &Arc<Self>,
        kind: &str,
        room: &RoomId,
        params: Value,
    ) -> Result<JobGuard, Error> {
        let record = JobRecord {
            id: JobId::random(),
            kind: kind.to_owned(),
            subject: room.as_str().to_owned(),
            state: State::Queued,
            error: None,
            params,
            progress: Value::Null,
            created_ms: self.clock.now(),
            started_ms: None,
            ended_ms: None,
        };
        let guard = self.claim(&record, room, Value::Null)?;
        match self.ledger.insert(&record) {
            Ok(()) => Ok(guard),
            Err(e) => {
                guard.forget();
                Err(e)
            }
        }
    }

    /// As [`JobRegistry::enqueue`], but waits until no other job has the room; looks up now and then whether `give_up` says
    /// to go.
    ///
    /// # Errors
    /// [`Error::Stopping`] when it gave up.
    pub fn enqueue_when_free(
        self: &Arc<Self>,
        kind: &str,
        room: &RoomId,
        params: &Value,
        give_up: impl Fn() -> bool,
    ) -> Result<JobGuard, Error> {
        loop {
            // First: a job that stops frees its room, too.
            if give_up() {
                return Err(Error::Stopping);
            }
            match self.enqueue(kind, room, params.clone()) {
                Err(Error::RoomBusy { .. }) => {}
                admitted => return admitted,
            }
            let mut busy = self.busy.lock();
            if busy.by_room.contains_key(room) {
                self.ended.wait_for(&mut busy, LOOK_UP_EVERY);
            }
        }
    }

    /// Admits a job that the ledger has from an earlier life.
    ///
    /// # Errors
    /// [`Error::RoomBusy`] while another job has the room, or this one does; [`Error::NoSuchJob`] when it has ended since
    /// the record was read.
    pub fn requeue(self: &Arc<Self>, record: &JobRecord) -> Result<JobGuard, Error> {
        let guard = self.claim(
            record,
            &RoomId::new(record.subject.clone()),
            record.progress.clone(),
        )?;
        match self.ledger.get(&record.id) {
            Ok(Some(job)) if !job.state.is_ended() => Ok(guard),
            Ok(_) => {
                guard.forget();
                Err(Error::NoSuchJob(record.id.clone()))
            }
            Err(e) => {
                guard.forget();
                Err(e)
            }
        }
    }

    fn claim(
        self: &Arc<Self>,
        record: &JobRecord,
        room: &RoomId,
        progress: Value,
    ) -> Result<JobGuard, Error> {
        let mut busy = self.busy.lock();
        if busy.by_room.contains_key(room) {
            return Err(Error::RoomBusy { room: room.clone() });
        }
        let live = Arc::new(RunningJob {
            id: record.id.clone(),
            kind: record.kind.clone(),
            cancelled: AtomicBool::new(false),
            reached_cleanup: AtomicBool::new(false),
            interrupt: Mutex::new(None),
            progress: Mutex::new(progress),
        });
        busy.by_room.insert(room.clone(), live.clone());
        Ok(JobGuard {
            register: self.clone(),
            room: room.clone(),
            live,
            is_finished: false,
        })
    }

    /// Whether a job of ours has the room.
    pub fn is_busy(&self, room: &RoomId) -> bool {
        self.busy.lock().by_room.contains_key(room)
    }

    /// Whether a job is at work, or waits for a worker, in this process.
    pub fn is_live(&self, id: &JobId) -> bool {
        self.busy.lock().by_room.values().any(|live| live.id == *id)
    }

    /// Notes that a job has come to what is done once for all rooms. Answers whether another job has not yet, and so
    /// will do it.
    pub fn another_job_cleans_up(&self, id: &JobId) -> bool {
        let busy = self.busy.lock();
        let (own, others): (Vec<_>, Vec<_>) = busy.by_room.values().partition(|l| l.id == *id);
        for live in own {
            live.reached_cleanup.store(true, Ordering::SeqCst);
        }
        others
            .iter()
            .any(|l| !l.reached_cleanup.load(Ordering::SeqCst))
    }

    /// The job as the ledger has it, with the progress of this moment.
    pub fn get(&self, id: &JobId) -> Result<Option<JobRecord>, Error> {
        Ok(self
            .ledger
            .get(id)?
            .map(|record| self.with_progress(record)))
    }

    /// All jobs, oldest first.
    pub fn list(&self) -> Result<Vec<JobRecord>, Error> {
        Ok(self
            .ledger
            .list()?
            .into_iter()
            .map(|record| self.with_progress(record))
            .collect())
    }

    fn with_progress(&self, mut record: JobRecord) -> JobRecord {
        if !record.state.is_ended()
            && let Some(live) = self.live(&record.id)
        {
            let progress = live.progress();
            if !progress.is_null() {
                record.progress = progress;
            }
        }
        record
    }

    fn live(&self, id: &JobId) -> Option<Arc<RunningJob>> {
        self.busy
            .lock()
            .by_room
            .values()
            .find(|live| live.id == *id)
            .cloned()
    }

    /// Asks a job to end. Answers whether it is one that runs or waits here.
    pub fn cancel(&self, id: &JobId) -> bool {
        let Some(live) = self.live(id) else {
            return false;
        };
        live.cancelled.store(true, Ordering::SeqCst);
        live.interrupt();
        true
    }

    /// Stops the present statement of every job; for when the process stops.
    pub fn interrupt_all(&self) {
        for live in self.busy.lock().by_room.values() {
            live.interrupt();
        }
    }

    /// Blocks until the job has left this register: ended, or handed back because the process stops.
    pub fn wait(&self, id: &JobId) {
        let mut busy = self.busy.lock();
        while busy.by_room.values().any(|live| live.id == *id) {
            self.ended.wait(&mut busy);
        }
    }

    /// As [`JobRegistry::wait`], but no longer than `timeout`; answers whether the job has left.
    pub fn wait_for(&self, id: &JobId, timeout: std::time::Duration) -> bool {
        let mut busy = self.busy.lock();
        if busy.by_room.values().any(|live| live.id == *id) {
            self.ended.wait_for(&mut busy, timeout);
        }
        !busy.by_room.values().any(|live| live.id == *id)
    }

    /// Forgets what ended long ago: ids after 24 hours (S-10), records after `keep`.
    pub fn forget_old(&self, keep: Millis) {
        if let Err(e) = self.ledger.forget(self.clock.now(), keep) {
            log::warn!("{}", crate::error::Chain(&e));
        }
    }

    /// Forgets jobs of one kind that ended well 24 hours ago.
    pub fn forget_complete(&self, kind: &str) {
        if let Err(e) = self.ledger.forget_complete(kind, self.clock.now()) {
            log::warn!("{}", crate::error::Chain(&e));
        }
    }

    /// Writes down how a job ended and frees its room, as one step: whoever has read that it ended may start the next.
    fn finish(&self, room: &RoomId, note: impl FnOnce(&Ledger) -> Result<(), Error>) {
        let mut busy = self.busy.lock();
        if let Err(e) = note(&self.ledger) {
            // The ledger still says that it runs; the next start finds nothing left to do and says so.
            log::error!("room {room}: {}", crate::error::Chain(&e));
        }
        busy.by_room.remove(room);
        self.ended.notify_all();
    }
}

/// The right to run a job, and the duty to say how it ended.
pub struct JobGuard {
    register: Arc<JobRegistry>,
    room: RoomId,
    live: Arc<RunningJob>,
    is_finished: bool,
}

impl JobGuard {
    /// The job as others see it.
    pub fn live(&self) -> &Arc<RunningJob> {
        &self.live
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.live.id
    }

    /// The room it has.
    pub fn room(&self) -> &RoomId {
        &self.room
    }

    /// Notes that a worker has the job.
    pub fn start(&self) -> Result<(), Error> {
        self.register
            .ledger
            .start(self.id(), self.register.clock.now())
    }

    /// The job ended: well, or with the public text of its error (S-3).
    pub fn end(mut self, error: Option<&str>) {
        self.finish_ended(error);
    }

    /// The same for a part of another job that goes on (see [`Ledger::end_part`]).
    pub fn end_part(mut self, error: Option<&str>) {
        let (live, now) = (self.live.clone(), self.register.clock.now());
        self.finish(|ledger| ledger.end_part(&live.id, error, &live.progress(), now));
    }

    /// The process stops: the job goes back into the ledger and is resumed at the next start.
    pub fn suspend(mut self) {
        let live = self.live.clone();
        self.finish(|ledger| ledger.suspend(&live.id, &live.progress()));
    }

    /// The job never was: it could not be queued.
    pub fn cancel_enqueue(mut self) {
        let live = self.live.clone();
        self.finish(|ledger| ledger.cancel_enqueue(&live.id));
    }

    fn forget(mut self) {
        self.finish(|_| Ok(()));
    }

    fn finish_ended(&mut self, error: Option<&str>) {
        let (live, now) = (self.live.clone(), self.register.clock.now());
        self.finish(|ledger| ledger.end(&live.id, error, &live.progress(), now));
    }

    fn finish(&mut self, note: impl FnOnce(&Ledger) -> Result<(), Error>) {
        self.is_finished = true;
        self.register.finish(&self.room, note);
    }
}

/// How a line of the log names the job.
impl fmt::Display for JobGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.live.kind.replace('_', " ");
        // Some jobs have many rooms, and say so in words.
        let what = match self.room.as_str().contains(' ') {
            true => "",
            false => "room ",
        };
        write!(f, "{what}{}: {kind} {}", self.room, self.live.id)
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        if !self.is_finished {
            self.finish_ended(Some("the job stopped without saying why"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::ManualClock;

    fn register() -> (tempfile::TempDir, Arc<JobRegistry>) {
        let dir = tempfile::tempdir().expect("directory");
        let ledger = Ledger::open(&dir.path().join("l")).expect("opens");
        (
            dir,
            Arc::new(JobRegistry::new(
                ledger,
                Arc::new(ManualClock::at(Millis(5))),
            )),
        )
    }

    #[test]
    fn a_room_has_one_job_at_a_time_in_every_outcome() {
        let (_dir, register) = register();
        let room = RoomId::from("!a:b");
        for end in 0..4 {
            let guard = register.enqueue("k", &room, Value::Null).expect("free");
            let again = register
                .enqueue("k", &room, Value::Null)
                .err()
                .map(|e| e.to_string());
            assert_eq!(
                again.as_deref(),
                Some("History purge already in progress for !a:b")
            );
            assert!(
                register
                    .enqueue("k", &RoomId::from("!c:d"), Value::Null)
                    .is_ok()
            );
            match end {
                0 => guard.end(None),
                1 => guard.end(Some("no")),
                2 => guard.cancel_enqueue(),
                _ => drop(guard),
            }
            assert!(!register.is_busy(&room));
        }
    }

    #[test]
    fn the_last_of_several_jobs_does_what_is_done_once_for_all() {
        let (_dir, register) = register();
        let enqueue = |room| {
            register
                .enqueue("k", &RoomId::from(room), Value::Null)
                .expect("free")
        };
        let (first, second) = (enqueue("!a:b"), enqueue("!c:d"));
        assert!(register.another_job_cleans_up(first.id()));
        assert!(!register.another_job_cleans_up(second.id()));
        second.end(None);
        assert!(!register.another_job_cleans_up(first.id()));
    }

    #[test]
    fn no_job_stays_running_when_its_worker_has_gone() {
        let (_dir, register) = register();
        let guard = register
            .enqueue("k", &RoomId::from("!a:b"), Value::Null)
            .expect("free");
        let id = guard.id().clone();
        guard.start().expect("noted");
        let died = std::thread::spawn(move || {
            let _held = guard;
            panic!("meant to");
        });
        assert!(died.join().is_err());
        let record = register.get(&id).expect("read").expect("there");
        assert_eq!(
            (record.state, record.ended_ms),
            (State::Failed, Some(Millis(5)))
        );
        register.wait(&id);
    }

    #[test]
    fn a_withdrawn_job_leaves_no_trace_and_a_suspended_one_waits_for_the_next_start() {
        let (_dir, register) = register();
        let guard = register
            .enqueue("k", &RoomId::from("!a:b"), Value::Null)
            .expect("free");
        let id = guard.id().clone();
        guard.cancel_enqueue();
        assert!(register.get(&id).expect("read").is_none());
        let guard = register
            .enqueue("k", &RoomId::from("!a:b"), Value::Null)
            .expect("free");
        guard.start().expect("noted");
        guard.suspend();
        let unended = register.ledger().unended().expect("read");
        assert_eq!(unended.len(), 1);
        assert_eq!(unended[0].state, State::Queued);
    }
}
