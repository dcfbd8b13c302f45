//! The thread that runs retention: it looks at the clock, plans, and hands rooms to the workers as they come free.
//!
//! It is a thread of its own and no worker, so that it can wait for workers without holding one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::Shared;
use super::kind::{JobKind, Runner, Work};
use super::retention_room::RetentionRun;
use crate::error::{Chain, Error};
use crate::ids::JobId;
use crate::jobs::ledger::State;
use crate::jobs::pool::Pool;
use crate::jobs::register::JobGuard;
use crate::jobs::schedule::Schedule;
use crate::policy::LifetimeRange;
use crate::time::{JumpTolerantClock, Millis, days};

/// How long the thread sleeps at most. Nothing is late for that: what is due before wakes it, and records of jobs that
/// ended long ago are forgotten by the clock, whoever looks.
const LONGEST_SLEEP: Duration = Duration::from_secs(60 * 60);

/// How soon is tried again to write what the ledger could not be told.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// What the thread is asked to do.
enum Command {
    /// Carry this out now.
    Run(JobGuard, Box<dyn Work>),
    /// Look at the clock now, and say which runs began since this was last asked, when they have ended.
    Tick(Sender<Vec<JobId>>),
}

/// The thread; dropping it ends and joins it.
pub(super) struct RetentionScheduler {
    orders: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl RetentionScheduler {
    /// Starts the thread. Jobs run at their intervals where the configuration says so.
    pub(super) fn start(shared: Arc<Shared>, pool: Arc<Pool>) -> Result<Self, Error> {
        let (orders, taken) = unbounded();
        let runs = Runs::new(&shared)?;
        let thread = thread::Builder::new()
            .name("retention".into())
            .spawn(move || {
                let watched = shared.alarm.watch("retention");
                run_loop(&shared, &pool, runs, &taken);
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

    fn send(&self, send: Command) -> Result<(), Error> {
        let orders = self.orders.as_ref().ok_or(Error::Stopping)?;
        orders.send(send).map_err(|_| Error::Stopping)
    }

    /// Carries a job out as soon as what runs now has ended.
    pub(super) fn run(&self, guard: JobGuard, work: Box<dyn Work>) -> Result<(), Error> {
        self.send(Command::Run(guard, work))
    }

    /// Looks at the clock now; answers the runs that were due since this was last asked, which have ended.
    pub(super) fn tick(&self) -> Result<Vec<JobId>, Error> {
        let (answer, answered) = unbounded();
        self.send(Command::Tick(answer))?;
        answered.recv().map_err(|_| Error::Stopping)
    }
}

impl Drop for RetentionScheduler {
    fn drop(&mut self) {
        drop(self.orders.take());
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            log::error!("the retention thread died");
        }
    }
}

/// Runs of which nobody has asked, that are remembered at most: most daemons are never asked.
const MOST_UNTOLD: usize = 100;

/// How often the policies of our own are carried out.
const POLICIES_EVERY: Millis = days(1);

/// What the ledger calls that.
const POLICIES: &str = "policies";

/// What is due at some interval.
#[derive(Clone, Copy)]
enum Recurring {
    /// A retention run.
    Retention(LifetimeRange),
    /// All of our own policies, one after the other.
    Policies,
}

/// The configured jobs and when they are due.
struct Runs {
    schedule: Schedule,
    /// What the schedule numbers.
    recurring: Vec<Recurring>,
    tolerant: JumpTolerantClock,
    /// The runs that began since somebody asked: the thread may have looked at the clock before whoever moved it asks.
    untold: Vec<JobId>,
}

/// What the ledger calls a job's interval: another interval or range is another job.
pub(super) fn name(interval: Millis, range: &LifetimeRange) -> String {
    let bound = |bound: Option<Millis>| bound.map_or("-".to_owned(), |ms| ms.0.to_string());
    format!(
        "retention {} {} {}",
        interval.0,
        bound(range.shortest),
        bound(range.longest)
    )
}

impl Runs {
    fn new(shared: &Shared) -> Result<Self, Error> {
        let config = &shared.config;
        let tolerant = JumpTolerantClock::new(&*config.clock);
        let mut schedule = Schedule::default();
        let mut recurring = Vec::new();
        let (now, monotonic) = (config.clock.now(), config.clock.monotonic());
        if config.retention.enabled && config.retention_jobs {
            for job in &config.retention.purge_jobs {
                let name = name(job.interval, &job.range);
                let from = shared.register.ledger().interval_start(&name, now)?;
                schedule.add(job.interval, now - from, monotonic);
                recurring.push(Recurring::Retention(job.range));
                log::info!(
                    "retention: rooms with {} every {}, next in {}",
                    job.range,
                    job.interval.in_words(),
                    (job.interval - (now - from)).max(Millis(0)).in_words()
                );
            }
        }
        if !config.policies.is_empty() && config.retention_jobs {
            let from = shared.register.ledger().interval_start(POLICIES, now)?;
            schedule.add(POLICIES_EVERY, now - from, monotonic);
            recurring.push(Recurring::Policies);
            log::info!(
                "policies: {} of our own once a day, next in {}",
                config.policies.len(),
                (POLICIES_EVERY - (now - from)).max(Millis(0)).in_words()
            );
        }
        Ok(Self {
            schedule,
            recurring,
            tolerant,
            untold: Vec::new(),
        })
    }

    /// Runs what is due.
    fn tick(&mut self, shared: &Arc<Shared>, pool: &Arc<Pool>) {
        let clock = &shared.config.clock;
        while !shared.is_stopping.load(Ordering::SeqCst) {
            let now = self.tolerant.now(&**clock);
            let Some(at) = self.schedule.next_due(clock.monotonic()) else {
                break;
            };
            match self.recurring[at] {
                Recurring::Retention(range) => self.run_retention(shared, pool, range, now),
                Recurring::Policies => self.run_policies(shared, pool, now),
            }
        }
        let surplus = self.untold.len().saturating_sub(MOST_UNTOLD);
        self.untold.drain(..surplus);
    }

    fn run_retention(
        &mut self,
        shared: &Arc<Shared>,
        pool: &Arc<Pool>,
        range: LifetimeRange,
        now: Millis,
    ) {
        let run = RetentionRun {
            range,
            scheduled: true,
            plan: None,
        };
        if shared.jobs_wait_for_a_word() {
            log::warn!("retention: rooms with {range}: {WAITING}");
            return;
        }
        match shared.enqueue_retention(run, None) {
            Ok(guard) => {
                self.untold.push(guard.id().clone());
                shared.note_run(range, now);
                shared.run(pool, guard, run, now);
            }
            Err(e) => log::warn!("retention: rooms with {range}: {}", Chain(&e)),
        }
    }

    /// Carries out our own policies in their order, each by what the one before has left.
    fn run_policies(&mut self, shared: &Arc<Shared>, pool: &Arc<Pool>, now: Millis) {
        if shared.jobs_wait_for_a_word() {
            log::warn!("policies: {WAITING}");
            return;
        }
        if let Err(e) = shared.register.ledger().set_interval_start(POLICIES, now) {
            log::warn!("{}", Chain(&e));
        }
        for policy in &shared.config.policies {
            if shared.is_stopping.load(Ordering::SeqCst) {
                return;
            }
            match shared.enqueue_policy(policy, now, None) {
                Ok(None) => {}
                Ok(Some((guard, set))) => {
                    self.untold.push(guard.id().clone());
                    shared.run_set(pool, guard, &set);
                }
                Err(Error::RoomBusy { .. }) => {
                    log::warn!("the policy {} is still at work", policy.name);
                }
                Err(e) => log::warn!("the policy {}: {}", policy.name, Chain(&e)),
            }
        }
    }
}

/// Why nothing is run.
const WAITING: &str = "not run, because an older database was put back and jobs wait for a word (`roomkeeper jobs` shows them)";

impl Shared {
    /// Notes that the jobs of this range run, from which their intervals count at the next start.
    pub(super) fn note_run(&self, range: LifetimeRange, now: Millis) {
        let jobs = self.config.retention.purge_jobs.iter();
        for job in jobs.filter(|job| job.range == range) {
            let noted = self
                .register
                .ledger()
                .set_interval_start(&name(job.interval, &job.range), now);
            if let Err(e) = noted {
                log::warn!("{}", Chain(&e));
            }
        }
    }
}

/// Until nobody can give orders any more.
fn run_loop(shared: &Arc<Shared>, pool: &Arc<Pool>, mut runs: Runs, orders: &Receiver<Command>) {
    if shared.config.retention_jobs {
        shared.look_for_forgotten();
    }
    loop {
        match orders.recv_timeout(shared.sleep_for(&runs)) {
            Ok(Command::Run(guard, work)) => {
                let runner = Runner {
                    shared,
                    workers: Some(pool),
                };
                work.run(&runner, guard);
            }
            Ok(Command::Tick(answer)) => {
                runs.tick(shared, pool);
                drop(answer.send(std::mem::take(&mut runs.untold)));
            }
            Err(RecvTimeoutError::Timeout) => runs.tick(shared, pool),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        shared.register.write_what_is_unwritten();
        shared.register.forget_old(shared.config.keep_jobs);
        shared.expire_archives();
        for parts in JobKind::parts() {
            shared.register.forget_complete(parts.name);
        }
    }
}

impl Shared {
    /// Whether a person is asked what is to become of jobs (S-30): until then nothing goes by a schedule either.
    fn jobs_wait_for_a_word(&self) -> bool {
        let unended = self.register.ledger().unended();
        unended.is_ok_and(|jobs| jobs.iter().any(|job| job.state == State::Waiting))
    }

    /// How long there is nothing to do.
    fn sleep_for(&self, runs: &Runs) -> Duration {
        let most = match self.register.has_unwritten() {
            true => WRITE_AGAIN,
            false => LONGEST_SLEEP,
        };
        let due = runs.schedule.due();
        let left = due.map(|due| {
            (due - self.config.clock.monotonic())
                .0
                .max(0)
                .cast_unsigned()
        });
        left.map_or(most, |ms| Duration::from_millis(ms).min(most))
    }
}
