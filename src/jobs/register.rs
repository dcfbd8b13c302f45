//! Who may start a job, how it ends, and how far it is.
//!
//! A [`JobGuard`] is both the right and the duty to say how a job ended: no job can stay "running" after its
//! worker has gone. One subject (a room) has at most one job at a time (L-1, L-2).

mod reserved;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::ledger::{Ended, JobRecord, Ledger, State, Subject};
pub use super::running::RunningJob;
use crate::counters::{COUNTERS, add};
use crate::error::Error;
use crate::ids::{JobId, RoomId};
use crate::time::{Clock, Millis};

/// How often one who waits for a room looks up.
const LOOK_UP_EVERY: Duration = Duration::from_millis(200);

/// How often the commits of many small jobs are made sure of.
const SYNC_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Busy {
    by_subject: HashMap<Subject, Arc<RunningJob>>,
    /// Jobs whose end the ledger could not be told yet: this is what is so of them (S-31).
    unwritten: HashMap<JobId, JobRecord>,
}

/// The rooms that are busy, and the ledger.
pub struct JobRegistry {
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    busy: Mutex<Busy>,
    ended: Condvar,
    synced: Mutex<Option<Instant>>,
    tell: Option<Tell>,
    tidier: Option<Sender<()>>,
}

/// Hears of every job that ended, whatever its kind; must not keep whoever calls it.
pub type Tell = Arc<dyn Fn(&JobRecord) + Send + Sync>;

impl JobRegistry {
    /// A register over a ledger that we own.
    pub fn new(ledger: Ledger, clock: Arc<dyn Clock>) -> Self {
        Self {
            ledger,
            clock,
            busy: Mutex::default(),
            ended: Condvar::new(),
            synced: Mutex::default(),
            tell: None,
            tidier: None,
        }
    }

    /// The same, of which `tell` hears of every job that ended.
    #[must_use]
    pub fn telling(self, tell: Option<Tell>) -> Self {
        Self { tell, ..self }
    }

    /// The same, with somebody who hears when a job leaves something to be overwritten later.
    #[must_use]
    pub fn tidied_by(self, tidier: Option<Sender<()>>) -> Self {
        Self { tidier, ..self }
    }

    /// Whether somebody overwrites once for all jobs what they deleted.
    pub fn is_tidied(&self) -> bool {
        self.tidier.is_some()
    }

    /// Says that there is something to be overwritten.
    pub fn tidy_later(&self) {
        if let Some(tidier) = &self.tidier {
            // One word that has not been heard yet is enough.
            let _ = tidier.try_send(());
        }
    }

    /// Whether no job is at work or waits for a worker.
    pub fn is_idle(&self) -> bool {
        self.busy.lock().by_subject.is_empty()
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// As [`JobRegistry::enqueue_for`], asked for by nobody.
    ///
    /// # Errors
    /// As there.
    #[cfg(test)]
    pub fn enqueue(
        self: &Arc<Self>,
        kind: &str,
        subject: &Subject,
        params: Value,
    ) -> Result<JobGuard, Error> {
        self.enqueue_for(None, kind, subject, params)
    }

    /// Admits a new job for a room, with who asked for it in the record: check and insert are one step (L-6), and the job
    /// is in the ledger when this returns.
    ///
    /// # Errors
    /// [`Error::RoomBusy`] while another job has the room (L-2).
    pub fn enqueue_for(
        self: &Arc<Self>,
        asked_by: Option<&str>,
        kind: &str,
        subject: &Subject,
        params: Value,
    ) -> Result<JobGuard, Error> {
        self.enqueue_by(asked_by, (kind, subject, params), Ledger::insert)
    }

    /// As [`JobRegistry::enqueue_for`], for a part of another job that stands in the ledger (see [`Ledger::insert_part`]).
    ///
    /// # Errors
    /// As [`JobRegistry::enqueue_for`].
    pub fn enqueue_part(
        self: &Arc<Self>,
        kind: &str,
        subject: &Subject,
        params: Value,
    ) -> Result<JobGuard, Error> {
        self.enqueue_by(None, (kind, subject, params), Ledger::insert_part)
    }

    fn enqueue_by(
        self: &Arc<Self>,
        asked_by: Option<&str>,
        (kind, subject, params): (&str, &Subject, Value),
        insert: fn(&Ledger, &JobRecord) -> Result<(), Error>,
    ) -> Result<JobGuard, Error> {
        let record = JobRecord {
            asked_by: asked_by.map(str::to_owned),
            params,
            ..JobRecord::new(kind, subject, self.clock.now())
        };
        self.write_what_is_unwritten();
        let guard = self.claim(&record)?;
        match insert(&self.ledger, &record) {
            Ok(()) => Ok(guard),
            Err(e) => {
                guard.forget();
                Err(e)
            }
        }
    }

    /// As [`JobRegistry::enqueue_for`], but waits until no other job has the room; looks up now and then whether `give_up` says
    /// to go.
    ///
    /// # Errors
    /// [`Error::Stopping`] when it gave up.
    pub fn enqueue_when_free(
        self: &Arc<Self>,
        kind: &str,
        subject: &Subject,
        params: &Value,
        asked_by: Option<&str>,
        give_up: impl Fn() -> bool,
    ) -> Result<JobGuard, Error> {
        loop {
            // First: a job that stops frees its room, too.
            if give_up() {
                return Err(Error::Stopping);
            }
            match self.enqueue_for(asked_by, kind, subject, params.clone()) {
                Err(Error::RoomBusy { .. }) => {}
                admitted => return admitted,
            }
            let mut busy = self.busy.lock();
            if busy.by_subject.contains_key(subject) {
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
        let guard = self.claim(record)?;
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

    fn claim(self: &Arc<Self>, record: &JobRecord) -> Result<JobGuard, Error> {
        let subject = &record.subject;
        // What has no room has words in its place.
        let room = match subject {
            Subject::Room(room) => room.clone(),
            other => RoomId::new(other.to_string()),
        };
        let mut busy = self.busy.lock();
        if busy.by_subject.contains_key(subject) {
            return Err(Error::RoomBusy { room });
        }
        let live = Arc::new(RunningJob::of(record));
        busy.by_subject.insert(subject.clone(), live.clone());
        Ok(JobGuard {
            register: self.clone(),
            room,
            live,
            is_finished: false,
        })
    }

    /// Whether a job of ours has the room.
    pub fn is_busy(&self, room: &RoomId) -> bool {
        self.is_at_work_on(&Subject::Room(room.clone()))
    }

    /// Whether a job is at work on this, or waits for a worker.
    pub fn is_at_work_on(&self, subject: &Subject) -> bool {
        self.busy.lock().by_subject.contains_key(subject)
    }

    /// Whether a job is at work, or waits for a worker, in this process.
    pub fn is_live(&self, id: &JobId) -> bool {
        self.busy
            .lock()
            .by_subject
            .values()
            .any(|live| live.id == *id)
    }

    /// Notes that a job has come to what is done once for all rooms. Answers whether another job has not yet, and so
    /// will do it.
    pub fn another_job_cleans_up(&self, id: &JobId) -> bool {
        let busy = self.busy.lock();
        let (own, others): (Vec<_>, Vec<_>) = busy.by_subject.values().partition(|l| l.id == *id);
        for live in own {
            live.reached_cleanup.store(true, Ordering::SeqCst);
        }
        others
            .iter()
            .any(|l| !l.reached_cleanup.load(Ordering::SeqCst))
    }

    /// Whether the commits of many small jobs should reach the disk now: once a second for all of them.
    pub fn is_time_to_sync(&self) -> bool {
        let mut synced = self.synced.lock();
        let is_time = synced.is_none_or(|last| last.elapsed() >= SYNC_EVERY);
        if is_time {
            *synced = Some(Instant::now());
        }
        is_time
    }

    /// The job as the ledger has it, with the progress of this moment.
    pub fn get(&self, id: &JobId) -> Result<Option<JobRecord>, Error> {
        Ok(self.ledger.get(id)?.map(|record| self.as_it_is(record)))
    }

    /// All jobs, oldest first.
    pub fn list(&self) -> Result<Vec<JobRecord>, Error> {
        let records = self.ledger.list()?.into_iter();
        Ok(records.map(|record| self.as_it_is(record)).collect())
    }

    /// As [`Ledger::look_up`], and as it is at this moment.
    pub fn look_up(&self, id: &JobId, kind: &str) -> Result<Option<JobRecord>, Error> {
        let found = self.ledger.look_up(id, kind, self.clock.now())?;
        Ok(found.map(|record| self.as_it_is(record)))
    }

    /// What is so of a job, where the ledger does not know it yet.
    fn as_it_is(&self, mut record: JobRecord) -> JobRecord {
        if record.state.is_ended() {
            return record;
        }
        if let Some(ended) = self.busy.lock().unwritten.get(&record.id) {
            return ended.clone();
        }
        if let Some(live) = self.live(&record.id) {
            let progress = live.progress();
            if !progress.is_null() {
                record.progress = progress;
            }
            if live.is_paused() {
                record.state = State::Paused;
            }
        }
        record
    }

    /// Tells the ledger of ends that it could not be told of before.
    pub fn write_what_is_unwritten(&self) {
        let mut busy = self.busy.lock();
        if busy.unwritten.is_empty() {
            return;
        }
        let mut left = HashMap::new();
        for (id, record) in std::mem::take(&mut busy.unwritten) {
            let text = record.error.clone().unwrap_or_default();
            let code = record.error_code.clone().unwrap_or_default();
            let ended = Ended {
                error: (record.state == State::Failed).then_some((&*text, &*code)),
                progress: &record.progress,
                at: record.ended_ms.unwrap_or_else(|| self.clock.now()),
            };
            match self.ledger.end(&id, ended) {
                Ok(()) => {
                    log::info!("the ledger can be written again: the end of job {id} stands in it")
                }
                Err(_) => drop(left.insert(id, record)),
            }
        }
        busy.unwritten = left;
    }

    /// Whether there are ends that the ledger has not been told of.
    pub fn has_unwritten(&self) -> bool {
        !self.busy.lock().unwritten.is_empty()
    }

    fn live(&self, id: &JobId) -> Option<Arc<RunningJob>> {
        self.busy
            .lock()
            .by_subject
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

    /// Asks a job to be left where it is at the next whole point. Answers whether it is one that runs or waits here.
    pub fn pause(&self, id: &JobId) -> bool {
        let Some(live) = self.live(id) else {
            return false;
        };
        live.paused.store(true, Ordering::SeqCst);
        live.interrupt();
        true
    }

    /// Stops the present statement of every job; for when the process stops.
    pub fn interrupt_all(&self) {
        for live in self.busy.lock().by_subject.values() {
            live.interrupt();
        }
    }

    /// Blocks until the job has left this register: ended, or handed back because the process stops.
    pub fn wait(&self, id: &JobId) {
        let mut busy = self.busy.lock();
        while busy.by_subject.values().any(|live| live.id == *id) {
            self.ended.wait(&mut busy);
        }
    }

    /// As [`JobRegistry::wait`], but no longer than `timeout`; answers whether the job has left.
    pub fn wait_for(&self, id: &JobId, timeout: Duration) -> bool {
        let mut busy = self.busy.lock();
        if busy.by_subject.values().any(|live| live.id == *id) {
            self.ended.wait_for(&mut busy, timeout);
        }
        !busy.by_subject.values().any(|live| live.id == *id)
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
    /// What cannot be written is what is so all the same, and is written later (S-31).
    fn finish(
        &self,
        live: &RunningJob,
        ended: Ended<'_>,
        note: impl FnOnce(&Ledger) -> Result<(), Error>,
    ) {
        live.count_what_is_removed(ended.progress);
        let code = ended.error.map_or("", |(_, code)| code);
        add(&COUNTERS.jobs_ended, (&live.kind, code), 1);
        let mut busy = self.busy.lock();
        let is_noted = note(&self.ledger);
        if let Err(e) = &is_noted {
            log::error!(
                "job {}: {}; it is written when that can be done again",
                live.id,
                crate::error::Chain(e)
            );
            let record = as_ended(&live.record, ended);
            busy.unwritten.insert(live.id.clone(), record);
        }
        if let Some(tell) = &self.tell {
            // When it began, the ledger knows.
            let noted = self.ledger.get(&live.id).ok().flatten();
            let noted = noted.filter(|_| is_noted.is_ok());
            tell(&noted.unwrap_or_else(|| as_ended(&live.record, ended)));
        }
        busy.by_subject.remove(&live.record.subject);
        self.ended.notify_all();
    }

    /// Ends a job that nobody has, and that is in the ledger alone, with the public text of why, and its code.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn end_recorded(&self, record: &JobRecord, why: (&str, &str)) -> Result<(), Error> {
        let ended = Ended {
            error: Some(why),
            progress: &record.progress,
            at: self.clock.now(),
        };
        self.ledger.end(&record.id, ended)?;
        if let Some(tell) = &self.tell {
            tell(&as_ended(record, ended));
        }
        Ok(())
    }

    /// Frees a room whose job goes on later, or never was.
    fn let_go(&self, live: &RunningJob, note: impl FnOnce(&Ledger) -> Result<(), Error>) {
        let mut busy = self.busy.lock();
        if let Err(e) = note(&self.ledger) {
            // The ledger says that it runs: the next start takes it up.
            log::error!("job {}: {}", live.id, crate::error::Chain(&e));
        }
        busy.by_subject.remove(&live.record.subject);
        self.ended.notify_all();
    }
}

fn as_ended(record: &JobRecord, ended: Ended<'_>) -> JobRecord {
    JobRecord {
        state: match ended.error {
            Some(_) => State::Failed,
            None => State::Complete,
        },
        error: ended.error.map(|(text, _)| text.to_owned()),
        error_code: ended.error.map(|(_, code)| code.to_owned()),
        waits: None,
        progress: ended.progress.clone(),
        ended_ms: Some(ended.at),
        ..record.clone()
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

    /// The room it has; where it has none, what stands in a log in its place.
    pub fn room(&self) -> &RoomId {
        &self.room
    }

    /// Notes that a worker has the job.
    pub fn start(&self) -> Result<(), Error> {
        self.register
            .ledger
            .start(self.id(), self.register.clock.now())
    }

    /// The job ended: well, or with the public text of its error (S-3) and its code.
    pub fn end(mut self, error: Option<(&str, &str)>) {
        self.finish(error, false);
    }

    /// The same for a part of another job that goes on (see [`Ledger::end_part`]).
    pub fn end_part(mut self, error: Option<(&str, &str)>) {
        self.finish(error, true);
    }

    /// The process stops, or the job is paused: it goes back into the ledger, and goes on later.
    pub fn suspend(mut self) {
        let live = self.live.clone();
        self.let_go(|ledger| ledger.suspend(&live.id, live.is_paused(), &live.progress()));
    }

    /// The job never was: it could not be queued.
    pub fn cancel_enqueue(mut self) {
        let live = self.live.clone();
        self.let_go(|ledger| ledger.cancel_enqueue(&live.id));
    }

    /// It never was: nothing is noted of it.
    pub(crate) fn forget(mut self) {
        self.let_go(|_| Ok(()));
    }

    fn let_go(&mut self, note: impl FnOnce(&Ledger) -> Result<(), Error>) {
        self.is_finished = true;
        self.register.let_go(&self.live, note);
    }

    fn finish(&mut self, error: Option<(&str, &str)>, is_part: bool) {
        self.is_finished = true;
        let (live, progress) = (&self.live, self.live.progress());
        let ended = Ended {
            error,
            progress: &progress,
            at: self.register.clock.now(),
        };
        self.register.finish(live, ended, |ledger| match is_part {
            true => ledger.end_part(&live.id, ended),
            false => ledger.end(&live.id, ended),
        });
    }
}

/// How a line of the log names the job.
impl fmt::Display for JobGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.live.kind.replace('_', " ");
        write!(f, "{}: {kind} {}", self.live.record.subject, self.live.id)
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        if !self.is_finished {
            self.finish(Some(("the job stopped without saying why", "bug")), false);
        }
    }
}

#[cfg(test)]
mod tests;
