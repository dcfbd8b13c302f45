//! A thread that ticks. It sleeps on its stop channel, so that stopping is immediate; late ticks fold into one.

use std::convert::Infallible;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

/// How often ended jobs are looked through for those to forget. They are forgotten by the clock, not by the tick:
/// a look-up in between does not find them either.
pub const PERIOD: Duration = Duration::from_secs(30);

/// A ticking thread; dropping it stops and joins it.
pub struct Timer {
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Timer {
    /// Calls `tick` every `period`, first after one `period`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        period: Duration,
        mut tick: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        // Nothing is ever sent; only closing the channel ends the wait.
        let (stop, stopped) = bounded::<Infallible>(0);
        let thread = thread::Builder::new().name("timer".into()).spawn(move || {
            let mut due = Instant::now() + period;
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_deadline(due) {
                tick();
                due = (due + period).max(Instant::now());
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            log::error!("the timer thread died");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_ticks_and_stops_at_once() {
        let (ticked, ticks) = crossbeam_channel::unbounded();
        let timer = Timer::start(Duration::from_millis(5), move || {
            ticked.send(()).expect("heard")
        })
        .expect("thread");
        ticks.recv_timeout(Duration::from_secs(5)).expect("a tick");
        drop(timer);
        let slow = Timer::start(Duration::from_secs(3600), || ()).expect("thread");
        let before = Instant::now();
        drop(slow);
        assert!(before.elapsed() < Duration::from_secs(5));
    }
}
