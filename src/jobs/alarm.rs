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
            has_ended: false,
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

/// Kept by a thread; dropped by whoever has not said [`Watched::end`] before, it rings: in a panic, and in a return that
/// nobody asked for.
pub struct Watched {
    thread: &'static str,
    alarm: Alarm,
    has_ended: bool,
}

impl Watched {
    /// The thread ends because it was told to.
    pub fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.has_ended {
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
    fn a_thread_that_panics_or_returns_early_rings_and_one_that_was_told_to_end_does_not() {
        for (is_told, panics) in [(true, false), (false, false), (false, true)] {
            let alarm = Alarm::default();
            let watched = alarm.watch("of a test");
            let thread = std::thread::spawn(move || {
                let watched = watched;
                assert!(!panics, "meant to");
                if is_told {
                    watched.end();
                }
            });
            assert_eq!(thread.join().is_err(), panics);
            assert_eq!(alarm.rang(), !is_told);
            let said = alarm.heard().try_recv().ok();
            let expected = "the thread of a test ended unexpectedly".to_owned();
            assert_eq!(said, (!is_told).then_some(expected));
        }
    }
}
