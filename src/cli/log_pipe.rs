//! The daemon's log, which stops nothing: lines go to a thread that writes them, and where nobody reads what it writes,
//! lines are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// Lines that may wait for whoever reads the log.
const LINES: usize = 4096;

/// How long the end of the process waits for the last lines to be read.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// What the logger writes into. Never blocks.
pub(super) struct LogPipe {
    lines: Sender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

impl LogPipe {
    /// Starts the thread that writes to stderr; where there is no thread to be had, `None`.
    pub fn start() -> Option<Self> {
        Self::to(io::stderr())
    }

    fn to(out: impl Write + Send + 'static) -> Option<Self> {
        let (lines, waiting) = bounded(LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || write(out, &waiting, &lost)).ok()?;
        Some(Self { lines, dropped })
    }

    /// By which the end of the process waits until all is written, but not for long.
    pub fn flusher(&self) -> Flusher {
        Flusher(self.lines.clone())
    }
}

/// Waits for the last lines when it is dropped.
pub(super) struct Flusher(Sender<Vec<u8>>);

impl Drop for Flusher {
    fn drop(&mut self) {
        let until = Instant::now() + LAST_WAIT;
        while !self.0.is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        // The thread may be in the middle of the last one.
        thread::sleep(Duration::from_millis(5));
    }
}

impl Write for LogPipe {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A line whose form is not known yet is held elsewhere.
        if line.is_empty() {
            return Ok(0);
        }
        match self.lines.try_send(line.to_vec()) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            // Its thread has ended, and nobody else would say why.
            Err(TrySendError::Disconnected(_)) => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(mut out: impl Write, waiting: &Receiver<Vec<u8>>, dropped: &AtomicU64) {
    for line in waiting {
        // A log that is gone, or a disk that is full, stops nothing either.
        let _ = out.write_all(&line);
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = out.write_all(super::logging::lost(lost).as_bytes());
        }
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Somebody who does not read until they are let.
    struct Slow(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_says_what_it_lost() {
        let (let_read, reads) = bounded(0);
        let read = Arc::new(Mutex::new(Vec::new()));
        let mut log = LogPipe::to(Slow(reads, read.clone())).expect("a thread");
        let begun = Instant::now();
        for n in 0..2 * LINES {
            let line = format!("line {n}\n");
            log.write_all(line.as_bytes()).expect("taken");
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(log.dropped.load(Ordering::Relaxed) >= LINES as u64 - 1);
        drop(let_read);
        let until = Instant::now() + Duration::from_secs(20);
        while !log.lines.is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(50));
        let text = String::from_utf8(read.lock().clone()).expect("text");
        assert!(text.starts_with("line 0\n"), "{text}");
        assert!(text.contains("of the log were dropped"), "{}", &text[..200]);
    }
}
