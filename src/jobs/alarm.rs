//! What tells that a thread has ended which should not have: the process ends then, with the reason (S-37).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Hears of every thread that it watches and that ends unexpectedly.
#[derive(Clone)]
pub struct Alarm {
    lost: Sender<String>,
    heard: Receiver<String>,
    rang: Arc<AtomicBool>,
}

impl Default for Alarm {
    fn default() -> Self {
        let (lost, heard) = bounded(1);
        Self {
            lost,
            heard,
            rang: Arc::default(),
        }
    }
}

impl Alarm {
    /// Watches the thread that keeps what this gives.
    pub fn watch(&self, thread: &'static str) -> Watched {
        Watched {
            thread,
            alarm: self.clone(),
        }
    }

    /// Whether a thread has been lost.
    pub fn rang(&self) -> bool {
        self.rang.load(Ordering::SeqCst)
    }

    /// Gives a sentence when a thread has been lost.
    pub fn heard(&self) -> &Receiver<String> {
        &self.heard
    }
}

/// Kept by a thread; dropped in a panic, it rings.
pub struct Watched {
    thread: &'static str,
    alarm: Alarm,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.alarm.rang.store(true, Ordering::SeqCst);
            let said = format!("the thread {} ended unexpectedly", self.thread);
            log::error!("{said}");
            // The first one is reason enough.
            let _ = self.alarm.lost.try_send(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_rings_and_one_that_ends_does_not() {
        let alarm = Alarm::default();
        for dies in [false, true] {
            let watched = alarm.watch("of a test");
            let thread = std::thread::spawn(move || {
                let _watched = watched;
                assert!(!dies, "meant to");
            });
            assert_eq!(thread.join().is_err(), dies);
            assert_eq!(alarm.rang(), dies);
        }
        let said = alarm.heard().try_recv().expect("heard");
        assert_eq!(said, "the thread of a test ended unexpectedly");
    }
}
