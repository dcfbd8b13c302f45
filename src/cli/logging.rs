//! What a line of the log looks like: for people, for systemd's journal, or for machines.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use log::Level;
use parking_lot::Mutex;
use serde_json::json;

use super::{Cli, Command, log_pipe};
use crate::config::LogFormat;
use crate::time::{Clock, Millis, SystemClock};

/// The form of lines: 0 while a daemon has not read its configuration, 1 text, 2 JSON.
static FORMAT: AtomicU8 = AtomicU8::new(1);
const UNDECIDED: u8 = 0;
const TEXT: u8 = 1;
const JSON: u8 = 2;

/// What is said before the form is known, as the mistakes in a configuration are.
static HELD: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// Most lines that are held.
const MOST_HELD: usize = 1_000;

struct Line {
    at: Millis,
    level: Level,
    target: String,
    message: String,
}

impl Line {
    fn write(&self) -> String {
        match FORMAT.load(Ordering::SeqCst) {
            JSON => self.as_json(),
            _ => self.as_text(journal_reads()),
        }
    }

    fn as_json(&self) -> String {
        let time = rfc3339(self.at);
        let level = self.level.as_str().to_lowercase();
        let priority = priority_of(self.level, journal_reads());
        let line =
            json!({"time": time, "level": level, "target": self.target, "message": self.message});
        format!("{priority}{line}\n")
    }

    fn as_text(&self, journal: bool) -> String {
        let seconds = self.at.as_date().replace(' ', "T");
        // The journal has a time of its own, and takes every line for a message.
        let (head, next) = match journal {
            true => {
                let priority = priority_of(self.level, true);
                (priority.to_owned(), format!("\n{priority}  "))
            }
            false => (
                format!("[{seconds}Z {:<5} {}] ", self.level, self.target),
                "\n    ".to_owned(),
            ),
        };
        format!("{head}{}\n", self.message.replace('\n', &next))
    }
}

fn rfc3339(at: Millis) -> String {
    let date = at.as_date().replace(' ', "T");
    format!("{date}.{:03}Z", at.0.rem_euclid(1_000))
}

/// What `sd-daemon(3)` puts before a line, where the journal reads.
fn priority_of(level: Level, journal: bool) -> &'static str {
    match level {
        _ if !journal => "",
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// As [`priority_of`], for what a command says on stderr.
pub(super) fn priority(level: Level) -> &'static str {
    priority_of(level, journal_reads())
}

/// Whether the journal reads our stderr: it has the device and inode that systemd names (`systemd.exec(5)`).
fn journal_reads() -> bool {
    static READS: OnceLock<bool> = OnceLock::new();
    *READS.get_or_init(|| {
        let Ok(named) = std::env::var("JOURNAL_STREAM") else {
            return false;
        };
        let stat = rustix::fs::fstat(std::io::stderr());
        stat.is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
    })
}

/// From now on a daemon's lines have this form; what was held is written in it.
pub(super) fn set_format(format: LogFormat) {
    let number = match format {
        LogFormat::Text => TEXT,
        LogFormat::Json => JSON,
    };
    FORMAT.store(number, Ordering::SeqCst);
    for line in std::mem::take(&mut *HELD.lock()) {
        log::logger().log(
            &log::Record::builder()
                .level(line.level)
                .target(&line.target)
                .args(format_args!("{}", line.message))
                .build(),
        );
    }
}

/// Writes what is held in the form for people: the configuration that would have said another could not be read.
pub(super) fn give_up_waiting() {
    if FORMAT.load(Ordering::SeqCst) == UNDECIDED {
        set_format(LogFormat::Text);
    }
}

/// Whether lines are for machines.
pub(super) fn is_json() -> bool {
    FORMAT.load(Ordering::SeqCst) == JSON
}

/// What the log itself has to say of lines that were lost.
pub(super) fn lost(lines: u64) -> String {
    let word = if lines == 1 { "line" } else { "lines" };
    let line = Line {
        at: SystemClock.now(),
        level: Level::Warn,
        target: module_path!().to_owned(),
        message: format!("{lines} {word} of the log were dropped: nobody read it"),
    };
    line.write()
}

/// A daemon's log stops nothing, whoever reads it; the last lines are waited for when what this gives is dropped.
pub(super) fn start(cli: &Cli) -> Option<log_pipe::Flusher> {
    let is_daemon = matches!(cli.command, Command::Serve);
    let default = match (cli.global.verbose, is_daemon) {
        _ if cli.global.quiet => "error",
        (0, false) => "warn",
        (0, true) | (1, _) => "info",
        (2, _) => "debug",
        _ => "trace",
    };
    let env = env_logger::Env::new().filter_or("ROOMKEEPER_LOG", default);
    let mut builder = env_logger::Builder::from_env(env);
    if is_daemon {
        FORMAT.store(UNDECIDED, Ordering::SeqCst);
    }
    if is_daemon || journal_reads() {
        builder.format(|out, record| {
            let line = Line {
                at: SystemClock.now(),
                level: record.level(),
                target: record.target().to_owned(),
                message: record.args().to_string(),
            };
            if FORMAT.load(Ordering::SeqCst) != UNDECIDED {
                return out.write_all(line.write().as_bytes());
            }
            let mut held = HELD.lock();
            if held.len() < MOST_HELD {
                held.push(line);
            }
            Ok(())
        });
    }
    let pipe = is_daemon.then(log_pipe::LogPipe::start).flatten();
    let flusher = pipe.as_ref().map(log_pipe::LogPipe::flusher);
    if let Some(pipe) = pipe {
        builder.target(env_logger::Target::Pipe(Box::new(pipe)));
        // Whatever panics says so in the log, where it can hold up nobody.
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
    builder.init();
    flusher
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_for_people_for_the_journal_or_for_machines() {
        let line = Line {
            at: Millis(1_700_000_000_007),
            level: Level::Warn,
            target: "roomkeeper::x".into(),
            message: "first\nsecond \"quoted\"".into(),
        };
        assert_eq!(
            line.as_text(false),
            "[2023-11-14T22:13:20Z WARN  roomkeeper::x] first\n    second \"quoted\"\n"
        );
        assert_eq!(line.as_text(true), "<4>first\n<4>  second \"quoted\"\n");
        assert_eq!(
            line.as_json(),
            "{\"level\":\"warn\",\"message\":\"first\\nsecond \\\"quoted\\\"\",\"target\":\"roomkeeper::x\",\
             \"time\":\"2023-11-14T22:13:20.007Z\"}\n"
        );
        let priorities = [Level::Error, Level::Info, Level::Trace].map(|l| priority_of(l, true));
        assert_eq!(priorities, ["<3>", "<6>", "<7>"]);
    }
}
