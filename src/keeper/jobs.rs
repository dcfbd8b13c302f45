//! What can be asked of jobs: how far they are, that they end, pause, go on; and to wait for them.

use std::time::Duration;

use super::kind::{JobKind, work_of};
use super::{Keeper, UNKNOWN_KIND};
use crate::error::Error;
use crate::ids::JobId;
use crate::jobs::ledger::{JobRecord, State};

impl Keeper {
    /// Every job on record, oldest first, with the progress of this moment.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn jobs(&self) -> Result<Vec<JobRecord>, Error> {
        self.shared.register.list()
    }

    /// One job on record.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn job(&self, id: &JobId) -> Result<Option<JobRecord>, Error> {
        self.shared.register.get(id)
    }

    /// Asks a job to end at the next whole point; it then is `failed` with the error `cancelled`. A job that waits
    /// for the next start is ended at once.
    ///
    /// # Errors
    /// [`Error::NoSuchJob`]; a job that has ended already is left as it is, and that is no error.
    pub fn cancel(&self, id: &JobId) -> Result<(), Error> {
        let Some(job) = self.job(id)? else {
            return Err(Error::NoSuchJob(id.clone()));
        };
        if job.state.is_ended() || self.shared.register.cancel(id) {
            return Ok(());
        }
        let cancelled = Error::Cancelled;
        let why = (&*cancelled.to_string(), cancelled.code());
        self.shared.register.end_recorded(&job, why)?;
        self.shared.cancel_parts(id)
    }

    /// Leaves a job where it is, at the next whole point; it goes on by [`Keeper::continue_job`] alone, and not at a start.
    /// Its room is free meanwhile. A job that waits for the next start is paused at once.
    ///
    /// # Errors
    /// [`Error::NoSuchJob`]; [`Error::BadRequest`] for one that has ended. One that is paused already stays so.
    pub fn pause(&self, id: &JobId) -> Result<(), Error> {
        let job = self.job(id)?.ok_or_else(|| Error::NoSuchJob(id.clone()))?;
        if job.state.is_ended() {
            let text = format!("job {id} has ended: there is nothing to pause");
            return Err(Error::bad("M_UNKNOWN", text));
        }
        if job.state == State::Paused || self.shared.register.pause(id) {
            return Ok(());
        }
        self.shared.register.ledger().set_state(id, State::Paused)
    }

    /// Goes on with a job that is paused, or that waits for a person's word (S-30).
    ///
    /// # Errors
    /// [`Error::NoSuchJob`]; [`Error::RoomBusy`] while another job has the room; [`Error::BadRequest`] for one that has
    /// ended; [`Error::QueueFull`], [`Error::Stopping`]. One that runs or is queued is left as it is.
    pub fn continue_job(&self, id: &JobId) -> Result<(), Error> {
        let record = self.job(id)?.ok_or_else(|| Error::NoSuchJob(id.clone()))?;
        if record.state.is_ended() {
            let text = format!("job {id} has ended: there is nothing to go on with");
            return Err(Error::bad("M_UNKNOWN", text));
        }
        let register = &self.shared.register;
        if !matches!(record.state, State::Paused | State::Waiting) {
            return Ok(());
        }
        if register.is_live(id) {
            let text = format!("job {id} is about to be paused: ask again in a moment");
            return Err(Error::bad("M_UNKNOWN", text));
        }
        let guard = register.requeue(&record)?;
        register.ledger().set_state(id, State::Queued)?;
        let Some(work) = work_of(&record) else {
            guard.end(Some((UNKNOWN_KIND, "unknown_kind")));
            return Ok(());
        };
        log::info!("{guard} goes on");
        self.submit(guard, work)
    }

    /// Takes up the jobs that an earlier process left unfinished, those that wait for a person's word among them (S-30);
    /// answers their ids. A job that cannot be taken up is ended with the reason (S-19). One that is paused stays so.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn resume(&self) -> Result<Vec<JobId>, Error> {
        self.take_up(|state| matches!(state, State::Queued | State::Waiting))
    }

    pub(super) fn take_up(&self, is_wanted: impl Fn(State) -> bool) -> Result<Vec<JobId>, Error> {
        let mut resumed = Vec::new();
        for record in self.shared.register.ledger().unended()? {
            if !is_wanted(record.state) {
                continue;
            }
            if (JobKind::of(&record.kind).is_left_to_another)(&self.shared, &record)? {
                continue;
            }
            let id = record.id.clone();
            let register = &self.shared.register;
            let guard = match register.requeue(&record) {
                Ok(guard) => guard,
                // It runs already, or a retention run has finished it.
                Err(Error::NoSuchJob(_)) => continue,
                Err(_) if register.is_live(&id) => continue,
                Err(e) if !matches!(e, Error::RoomBusy { .. }) => return Err(e),
                Err(e) => {
                    let why =
                        "interrupted, and another job of the room was taken up again before it";
                    log::warn!("{id} of {} is given up: {why}", record.subject);
                    register.end_recorded(&record, (why, e.code()))?;
                    continue;
                }
            };
            if record.state != State::Queued {
                register.ledger().set_state(&id, State::Queued)?;
            }
            let Some(work) = work_of(&record) else {
                guard.end(Some((UNKNOWN_KIND, "unknown_kind")));
                continue;
            };
            if let Some((why, code)) = work.given_up(&self.shared) {
                log::warn!("{guard}: {why}");
                guard.end(Some((why, code)));
                continue;
            }
            log::info!("{guard} goes on where it was interrupted");
            match self.submit(guard, work) {
                Ok(()) => resumed.push(id),
                // It stands in the ledger and is taken up at the next start.
                Err(e) => log::warn!("{id} could not be taken up again: {e}"),
            }
        }
        Ok(resumed)
    }

    /// Blocks until a job has ended, and gives its record.
    ///
    /// # Errors
    /// [`Error::JobFailed`] with the text of its status; [`Error::Stopping`] when it was handed back because the
    /// keeper stops; [`Error::NoSuchJob`].
    pub fn wait(&self, id: &JobId) -> Result<JobRecord, Error> {
        self.shared.register.wait(id);
        let job = self.job(id)?.ok_or_else(|| Error::NoSuchJob(id.clone()))?;
        match job.state {
            State::Complete => Ok(job),
            State::Failed => Err(Error::JobFailed {
                text: job.error.unwrap_or_default(),
                code: job.error_code,
            }),
            State::Paused => Err(Error::Refused(format!(
                "job {id} is paused: `roomkeeper jobs --continue {id}` goes on with it"
            ))),
            State::Queued | State::Running | State::Waiting if self.is_stopping() => {
                Err(Error::Stopping)
            }
            State::Queued | State::Running | State::Waiting => Err(Error::JobFailed {
                text: "it ended early, and that could not be written into the ledger (the log says why): it is taken up \
                       again at the next start"
                    .into(),
                code: None,
            }),
        }
    }

    /// Waits for a job no longer than `timeout`; answers whether it has ended or was handed back.
    pub fn wait_for(&self, id: &JobId, timeout: Duration) -> bool {
        self.shared.register.wait_for(id, timeout)
    }
}
