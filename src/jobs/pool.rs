//! A bounded pool of worker threads over a crossbeam channel.
//!
//! The pool owns its threads and the only sender, so ownership is the way it stops: dropping it closes the
//! queue, and the workers leave when they have emptied it. Queued jobs are still run; a keeper that stops sets
//! a flag that makes each of them hand itself back at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::alarm::Alarm;

/// A unit of work.
pub type Job = Box<dyn FnOnce() + Send>;

/// Jobs that may wait. A person who starts more than this by hand is better told; retention feeds the queue as
/// workers come free.
pub const QUEUE_DEPTH: usize = 256;

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// Every place in the queue is taken.
    Full,
    /// The pool is closing.
    Closed,
}

/// Threads that take jobs from a bounded queue.
pub struct Pool {
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `workers` threads and a queue of `depth` places.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(workers: usize, depth: usize, alarm: &Alarm) -> std::io::Result<Self> {
        let (jobs, queue) = bounded::<Job>(depth);
        let mut pool = Self {
            jobs: Some(jobs),
            workers: Vec::with_capacity(workers),
        };
        for n in 1..=workers {
            let queue = queue.clone();
            let watched = alarm.watch("purge");
            pool.workers
                .push(
                    thread::Builder::new()
                        .name(format!("purge-{n}"))
                        .spawn(move || {
                            work(&queue);
                            watched.end();
                        })?,
                );
        }
        Ok(pool)
    }

    /// Queues a job, or says at once why it cannot. Never blocks.
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        let jobs = self.jobs.as_ref().ok_or(SubmitError::Closed)?;
        jobs.try_send(job).map_err(|e| match e {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Closed,
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Close first, or the joins never return.
        drop(self.jobs.take());
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                log::error!("a worker thread died outside a job");
            }
        }
    }
}

/// Until the queue is closed.
fn work(queue: &Receiver<Job>) {
    for job in queue {
        // A panic costs one job, never the worker; the job's guard records the failure.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            log::error!("a job panicked; its worker carries on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    #[test]
    fn a_full_queue_is_a_refusal_and_never_a_wait() {
        let pool = Pool::new(1, 1, &Alarm::default()).expect("threads");
        let (started, release) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (s, r) = (started.clone(), release.clone());
        let hold = Box::new(move || {
            s.wait();
            r.wait();
        });
        assert_eq!(pool.submit(hold), Ok(()));
        started.wait();
        assert_eq!(pool.submit(Box::new(|| ())), Ok(()));
        assert_eq!(pool.submit(Box::new(|| ())), Err(SubmitError::Full));
        release.wait();
    }

    #[test]
    fn a_panic_costs_one_job_and_dropping_the_pool_runs_what_is_queued() {
        let ran = Arc::new(AtomicUsize::new(0));
        let pool = Pool::new(2, 16, &Alarm::default()).expect("threads");
        for n in 0..8 {
            let ran = ran.clone();
            let job = Box::new(move || {
                ran.fetch_add(1, Ordering::SeqCst);
                assert_ne!(n, 3, "meant to panic");
            });
            assert_eq!(pool.submit(job), Ok(()));
        }
        drop(pool);
        assert_eq!(ran.load(Ordering::SeqCst), 8);
    }
}
