//! Who is told when a job has ended: a program, a web address, or both (`roomkeeper.notify`).
//!
//! A thread of its own tells them, one after the other, so that nobody who is told can hold up a job. That somebody could
//! not be told stands in the log and is no more than that.

use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use crossbeam_channel::RecvTimeoutError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::job_view;
use super::kind::JobKind;
use crate::config::{Command, Config, Notify};
use crate::error::{Context, Error};
use crate::jobs::alarm::Alarm;
use crate::jobs::ledger::{JobRecord, State};
use crate::plural::count;
use crate::time::Millis;

/// Ends of jobs that may wait to be told.
const MOST_WAITING: usize = 1_000;

/// How long a process that ends still tells what waits, all in all.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// How often one looks whether a program has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The pauses before a web address that could not be told is told again.
#[cfg(feature = "tls")]
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// Most entries of a list in what is told; the rest is at `/_roomkeeper/v1/jobs/{id}`.
const MOST_ENTRIES: usize = 100;

/// What a program that is told does not inherit: secrets, and what is between systemd and us.
const NOT_INHERITED: [&str; 6] = [
    "PGPASSWORD",
    "PGPASSFILE",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "CREDENTIALS_DIRECTORY",
];

/// Tells of a job that ended.
pub(super) type Tell = Arc<dyn Fn(&JobRecord) + Send + Sync>;

/// The thread; dropping it tells what waits, but not for long, and joins it.
pub(super) struct Notifier {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    /// Starts the thread, where somebody is to be told; and what hands the ends of jobs to it.
    pub(super) fn start(config: &Config, alarm: &Alarm) -> Result<Option<(Self, Tell)>, Error> {
        let Some(notify) = config.notify.clone() else {
            return Ok(None);
        };
        let (hand_over, taken) = bounded::<JobRecord>(MOST_WAITING);
        let (stop, stops) = bounded(0);
        let tells = Teller {
            notify: notify.clone(),
            server_name: config.server_name.clone(),
            stops,
        };
        let watched = alarm.watch("notifier");
        let run = move || {
            tells.run(&taken);
            watched.end();
        };
        let thread = thread::Builder::new().name("notifier".into());
        let thread = thread.spawn(run).context("start a thread")?;
        let tell = move |job: &JobRecord| {
            let is_wanted = match job.state {
                State::Complete => notify.complete,
                State::Failed => notify.failed,
                _ => false,
            };
            if !is_wanted || JobKind::of(&job.kind).is_part() {
                return;
            }
            if let Err(TrySendError::Full(_)) = hand_over.try_send(job.clone()) {
                log::warn!(
                    "nobody is told of the end of job {}: {MOST_WAITING} others wait to be told",
                    job.id
                );
            }
        };
        let notifier = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok(Some((notifier, Arc::new(tell))))
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            log::error!("the notifier's thread died");
        }
    }
}

struct Teller {
    notify: Notify,
    server_name: String,
    /// Says nothing, and closes when the process ends.
    stops: Receiver<()>,
}

impl Teller {
    /// Until nobody hands over any more, or the process ends.
    fn run(&self, taken: &Receiver<JobRecord>) {
        loop {
            crossbeam_channel::select! {
                recv(taken) -> job => match job {
                    Ok(job) => self.tell(&job, None),
                    Err(_) => return,
                },
                recv(self.stops) -> _ => break,
            }
        }
        // Whoever is at work no longer hands over: what waits is all there is.
        let last = Instant::now() + LAST_WAIT;
        while let Ok(job) = taken.try_recv() {
            if Instant::now() >= last {
                log::warn!(
                    "nobody is told of the end of job {} and of {} more: the process ends",
                    job.id,
                    taken.len()
                );
                return;
            }
            self.tell(&job, Some(last));
        }
    }

    /// Tells everybody, until `last` at the most.
    fn tell(&self, job: &JobRecord, last: Option<Instant>) {
        let timeout = Duration::from_millis(u64::try_from(self.notify.timeout.0).unwrap_or(0));
        let deadline = || {
            let by_timeout = Instant::now() + timeout;
            last.map_or(by_timeout, |last| last.min(by_timeout))
        };
        let document = document(job, &self.server_name);
        if let Some(command) = &self.notify.command
            && let Err(why) = self.run_command(command, &document, deadline())
        {
            log::warn!(
                "{} could not be told of the end of job {}: {why}",
                command.program.display(),
                job.id
            );
        }
        #[cfg(feature = "tls")]
        if let Some(webhook) = &self.notify.webhook
            && let Err(why) = self.post(webhook, &document, &deadline)
        {
            log::warn!(
                "{webhook} could not be told of the end of job {}: {why}",
                job.id
            );
        }
    }

    /// When to give up: at the deadline; and when the process ends, soon after that.
    fn is_over(&self, deadline: Instant, ending: &mut Option<Instant>) -> bool {
        let now = Instant::now();
        if ending.is_none()
            && self.stops.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
        {
            *ending = Some(now + LAST_WAIT);
        }
        now >= deadline || ending.is_some_and(|end| now >= end)
    }

    fn run_command(
        &self,
        command: &Command,
        document: &Value,
        deadline: Instant,
    ) -> Result<(), String> {
        let mut process = std::process::Command::new(&command.program);
        process
            .args(&command.arguments)
            .stdin(Stdio::piped())
            // Our own standard output may be a document for machines. What it has to say, it says on stderr.
            .stdout(Stdio::null())
            .process_group(0);
        for name in NOT_INHERITED {
            process.env_remove(name);
        }
        let mut child = process.spawn().map_err(|e| e.to_string())?;
        // It may read nothing of it; then this thread ends with the pipe.
        let (stdin, text) = (child.stdin.take(), format!("{document}\n"));
        let write = move || -> io::Result<()> {
            match stdin {
                Some(mut stdin) => stdin.write_all(text.as_bytes()),
                None => Ok(()),
            }
        };
        let writer = thread::Builder::new().name("notifier-in".into());
        if let Err(e) = writer.spawn(write) {
            end(&mut child);
            return Err(e.to_string());
        }
        let mut ending = None;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(match (status.code(), status.signal()) {
                        (Some(code), _) => format!("it ended with exit code {code}"),
                        (None, signal) => format!("signal {} ended it", signal.unwrap_or(0)),
                    });
                }
                Ok(None) if self.is_over(deadline, &mut ending) => {
                    end(&mut child);
                    return Err("it took too long and was ended (roomkeeper.notify.timeout)".into());
                }
                Ok(None) => thread::sleep(LOOK_EVERY),
                Err(e) => {
                    end(&mut child);
                    return Err(e.to_string());
                }
            }
        }
    }

    #[cfg(feature = "tls")]
    fn post(
        &self,
        webhook: &crate::config::Webhook,
        document: &Value,
        deadline: &dyn Fn() -> Instant,
    ) -> Result<(), String> {
        use crate::client::Client;
        let token = webhook.token.as_ref().map(crate::config::Secret::reveal);
        let client = Client::web(webhook.is_encrypted, &webhook.host, webhook.port, token);
        let client = client.map_err(|e| e.to_string())?.with_most(1024 * 1024);
        let mut pauses = AGAIN_AFTER.iter();
        loop {
            let until = deadline();
            let left = until.saturating_duration_since(Instant::now());
            let ending = std::cell::Cell::new(None);
            let is_over = || {
                let mut known = ending.get();
                let is_over = self.is_over(until, &mut known);
                ending.set(known);
                is_over
            };
            let answered = client.clone().with_timeout(left).post_for_status(
                webhook.path.reveal(),
                document,
                &is_over,
            );
            let why = match answered {
                Ok(200..=299) => return Ok(()),
                Ok(status) if status < 500 && status != 429 => {
                    return Err(format!("it answered {status}"));
                }
                Ok(status) => format!("it answered {status}"),
                Err(e) => e.to_string(),
            };
            let Some(pause) = pauses.next() else {
                return Err(why);
            };
            // A process that ends does not wait to say it again.
            if self.stops.recv_timeout(*pause) != Err(RecvTimeoutError::Timeout) {
                return Err(why);
            }
        }
    }
}

/// Ends a program with all that it started.
fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// What is told: a sentence for people, and the job as `/_roomkeeper/v1/jobs/{id}` shows it.
fn document(job: &JobRecord, server_name: &str) -> Value {
    let mut view = job_view(job);
    if let Some(progress) = view.get_mut("progress").and_then(Value::as_object_mut) {
        for list in progress.values_mut().filter_map(Value::as_array_mut) {
            list.truncate(MOST_ENTRIES);
        }
    }
    json!({"server_name": server_name, "text": sentence(job), "job": view})
}

fn sentence(job: &JobRecord) -> String {
    let what = format!("{} of {}", job.kind.replace('_', " "), job.subject);
    let events = job.progress["events_deleted"].as_u64().unwrap_or(0);
    let took = job.ended_ms.zip(job.started_ms);
    let took = took.map_or(Millis(0), |(ended, started)| ended - started);
    match &job.error {
        Some(error) => format!("{what} failed: {error}"),
        None => format!(
            "{what} is complete: {} deleted in {}",
            count(events, "event"),
            took.for_people()
        ),
    }
}
