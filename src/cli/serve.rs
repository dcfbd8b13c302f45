//! The daemon: a keeper, its HTTP server, and systemd's wishes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

use super::signals;
use crate::config::{Config, Listen};
use crate::error::{Context, EXIT_FAILED, Error};
use crate::http;
use crate::keeper::Keeper;

/// How often the main thread looks up: for signals, which set a flag, and for the watchdog.
const LOOK_UP_EVERY: Duration = Duration::from_millis(200);

/// How often the reserve for a full disk is looked after.
const KEEP_RESERVE_EVERY: Duration = Duration::from_secs(30);

/// Who owns a ledger and where it can be reached; one-shot commands read it.
#[derive(Serialize, Deserialize)]
pub(super) struct Owner {
    /// The daemon's process.
    pub pid: u32,
    /// The database it works on, as the database itself knows it.
    #[serde(default)]
    pub database: String,
    /// Its Unix sockets.
    pub sockets: Vec<PathBuf>,
}

/// The file in which a daemon says where it can be reached.
pub(super) fn owner_file(ledger: &Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".owner");
    name.into()
}

/// Runs until SIGTERM or SIGINT, then hands running jobs back to the ledger and ends in order. A second signal ends
/// the process at once.
pub(super) fn serve(mut config: Config) -> Result<ExitCode, Error> {
    if config.listen.is_empty() {
        let mut socket = config.ledger.clone().into_os_string();
        socket.push(".sock");
        config.listen.push(Listen::Unix(socket.into()));
    }
    let stop = signals()?;
    let ledger = config.ledger.clone();
    let sockets = config
        .listen
        .iter()
        .filter_map(|listen| match listen {
            // Whoever asks may be elsewhere.
            Listen::Unix(path) => Some(std::path::absolute(path)),
            Listen::Tcp(_) => None,
        })
        .collect::<Result<_, _>>()
        .context("find the daemon's own socket")?;
    config.resume = true;
    config.retention_jobs = true;
    let keeper = Keeper::open(config)?;
    let database = keeper.identity()?;
    let server = http::serve(keeper.clone())?;
    let owner = Owner {
        pid: std::process::id(),
        database,
        sockets,
    };
    write_owner(&ledger, &owner)?;
    for address in server.addresses() {
        log::info!("listening on {address}");
    }
    for socket in &owner.sockets {
        log::info!("listening on {}", socket.display());
    }
    notify(&[NotifyState::Ready]);
    let outcome = attend(&keeper, &server, &stop);
    notify(&[NotifyState::Stopping]);
    log::info!("stopping: running jobs are handed back to the ledger");
    // First the jobs, which a handler may wait for; then HTTP; then the threads.
    keeper.clone().stop();
    server.stop();
    drop(keeper);
    let _ = fs::remove_file(owner_file(&ledger));
    log::info!("stopped");
    outcome
}

/// Waits for the end, and tells systemd's watchdog that the database still answers.
fn attend(
    keeper: &Keeper,
    server: &http::HttpServer,
    stop: &std::sync::atomic::AtomicBool,
) -> Result<ExitCode, Error> {
    let watchdog = watchdog_period();
    let mut fed = Instant::now();
    keeper.keep_reserve();
    let mut kept = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        if kept.elapsed() > KEEP_RESERVE_EVERY {
            kept = Instant::now();
            keeper.keep_reserve();
        }
        match server.broken().recv_timeout(LOOK_UP_EVERY) {
            Ok(why) => {
                log::error!("the HTTP server has failed: {why}");
                return Ok(ExitCode::from(EXIT_FAILED));
            }
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_UP_EVERY),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(period) = watchdog
            && fed.elapsed() > period
            && keeper.is_healthy()
        {
            fed = Instant::now();
            notify(&[NotifyState::Watchdog]);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A third of what systemd allows, so that two late looks do no harm.
fn watchdog_period() -> Option<Duration> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros) / 3)
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, states) {
        log::warn!("systemd could not be notified: {e}");
    }
}

fn write_owner(ledger: &Path, owner: &Owner) -> Result<(), Error> {
    let doing = "say where the daemon listens";
    let text = serde_json::to_string(owner).map_err(|e| Error::Bug(e.to_string()))?;
    fs::write(owner_file(ledger), text).context(doing)
}
