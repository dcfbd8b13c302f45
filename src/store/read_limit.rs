//! How long a reading may take, and how somebody else ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::db::InterruptHandle;

/// The limit of one reading: a moment, and whoever asked may have gone before. Statements look at it while they run (a
/// server is told to stop, over a connection of its own), and none begins after it.
#[derive(Default)]
pub struct ReadLimit {
    until: Mutex<Option<Instant>>,
    is_over: AtomicBool,
    /// The connection to a server that is being asked.
    running: Mutex<Option<Arc<InterruptHandle>>>,
}

impl ReadLimit {
    /// Ends after so long a time.
    pub fn lasting(time: Duration) -> Self {
        Self {
            until: Mutex::new(Some(Instant::now() + time)),
            ..Self::default()
        }
    }

    /// When it ends by itself; `None` for one without an end.
    pub fn deadline(&self) -> Option<Instant> {
        *self.until.lock()
    }

    /// Lets it end after so long a time at the latest.
    pub fn shorten(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut until = self.until.lock();
        *until = Some(until.map_or(end, |until| until.min(end)));
    }

    /// Ends it now: nobody waits for the answer. Does not block.
    pub fn stop(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(running) = self.running.lock().clone() {
            // It connects to the server, which can take as long as it likes.
            let interrupt = move || running.interrupt();
            let thread = thread::Builder::new().name("interrupt".into());
            if let Err(e) = thread.spawn(interrupt) {
                log::warn!("a reading could not be interrupted: {e}");
            }
        }
    }

    /// Whether it was ended, or its time is up.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
            || self.deadline().is_some_and(|until| Instant::now() >= until)
    }

    /// Notes the connection by which [`ReadLimit::stop`] interrupts.
    pub(super) fn runs_on(&self, handle: Option<InterruptHandle>) {
        *self.running.lock() = handle.map(Arc::new);
    }
}

impl std::fmt::Debug for ReadLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadLimit")
            .field("until", &self.deadline())
            .field("is_over", &self.is_over())
            .finish_non_exhaustive()
    }
}
