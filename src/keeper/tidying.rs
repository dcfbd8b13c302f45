//! What the jobs of a daemon leave to be overwritten is done once for all of them, when none is at work.
//!
//! Merging the full-text index and looking through the free pages cost by what is there and not by what went: after each of a
//! thousand small jobs they would cost a hundred times the jobs.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select};

use super::Shared;
use crate::config::OverwriteWhen;
use crate::error::{Chain, Error};
use crate::job::{Progress, overwrite};

/// How long no job has ended before it is begun.
const QUIET: Duration = Duration::from_secs(2);

/// How long jobs that follow each other may put it off.
const AT_MOST: Duration = Duration::from_secs(10 * 60);

/// The name under which it is at work among the jobs.
const NAME: &str = "overwriting what jobs deleted";

/// The thread; dropping it ends and joins it.
pub(super) struct Tidier {
    ends: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

/// What is owed.
#[derive(Clone, Copy)]
struct Owed {
    since: Instant,
    /// When a job ended last.
    touched: Instant,
}

impl Owed {
    fn at(now: Instant) -> Self {
        Self {
            since: now,
            touched: now,
        }
    }

    fn due(&self) -> Instant {
        (self.touched + QUIET).min(self.latest())
    }

    fn latest(&self) -> Instant {
        self.since + AT_MOST
    }
}

impl Tidier {
    /// Starts the thread where the configuration leaves it to one. `woken` hears whenever a job leaves something to it.
    pub(super) fn start(
        shared: Arc<Shared>,
        woken: Option<Receiver<()>>,
    ) -> Result<Option<Self>, Error> {
        let Some(woken) = woken else {
            return Ok(None);
        };
        let (ends, ended) = bounded(0);
        let run = move || {
            let watched = shared.alarm.watch("tidying");
            tidy_now_and_then(&shared, &woken, &ended);
            watched.end();
        };
        let thread = thread::Builder::new().name("tidying".into()).spawn(run);
        let thread = thread.map_err(|e| Error::Store {
            doing: "start a thread",
            source: e.into(),
        })?;
        Ok(Some(Self {
            ends: Some(ends),
            thread: Some(thread),
        }))
    }

    /// By which the thread hears, where there is to be one.
    pub(super) fn channel(when: OverwriteWhen) -> Option<(Sender<()>, Receiver<()>)> {
        (when == OverwriteWhen::WhenIdle).then(|| bounded(1))
    }
}

impl Drop for Tidier {
    fn drop(&mut self) {
        drop(self.ends.take());
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            log::error!("the tidying thread died");
        }
    }
}

fn tidy_now_and_then(shared: &Shared, woken: &Receiver<()>, ended: &Receiver<Infallible>) {
    let is_owed = overwrite::is_owed(shared.register.ledger());
    let mut owed = is_owed.then(|| Owed::at(Instant::now()));
    loop {
        let due = owed.map_or_else(never, |owed| at(owed.due()));
        select! {
            recv(ended) -> _ => return,
            recv(woken) -> _ => {
                let now = Instant::now();
                owed.get_or_insert_with(|| Owed::at(now)).touched = now;
            }
            recv(due) -> now => {
                let now = now.unwrap_or_else(|_| Instant::now());
                match &mut owed {
                    Some(owed) if !shared.register.is_idle() && now < owed.latest() => {
                        owed.touched = now;
                    }
                    _ => {
                        // What cannot be done now is owed all the same: after the next job it is tried again.
                        owed = None;
                        match shared.overwrite_what_is_owed() {
                            Ok(()) | Err(Error::Stopping) => {}
                            Err(e) => log::warn!("{NAME}: {}; the next job tries again", Chain(&e)),
                        }
                    }
                }
            }
        }
    }
}

impl Shared {
    fn overwrite_what_is_owed(&self) -> Result<(), Error> {
        if !overwrite::is_owed(self.register.ledger()) {
            return Ok(());
        }
        let begun = Instant::now();
        let guard = self.register.unseen(NAME)?;
        let is_stopping = || self.is_stopping.load(Ordering::SeqCst);
        let mut progress = Progress::default();
        let done = self.job_context(&guard, &is_stopping).and_then(|mut ctx| {
            ctx.overwrite_when = OverwriteWhen::AtOnce;
            let handle = ctx.db.interrupt_handle();
            ctx.live
                .set_interrupt(Some(Box::new(move || handle.interrupt())));
            let done = overwrite::overwrite(&mut ctx, &mut progress);
            ctx.live.set_interrupt(None);
            done.map_err(|e| ctx.map_interrupt(e))
        });
        guard.forget();
        done?;
        for note in &progress.notes {
            log::info!("{NAME}: {note}");
        }
        if progress.notes.is_empty() {
            let took = begun.elapsed();
            log::info!("{NAME}: done, in {} ms", took.as_millis());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_quiet_and_for_ten_minutes_at_the_most() {
        let begin = Instant::now();
        let mut owed = Owed::at(begin);
        assert_eq!(owed.due(), begin + QUIET);
        for second in 1..1_000 {
            owed.touched = begin + Duration::from_secs(second);
            assert_eq!(owed.due(), (owed.touched + QUIET).min(begin + AT_MOST));
        }
        assert_eq!(owed.due(), begin + AT_MOST);
    }
}
