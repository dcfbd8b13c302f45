//! The daemon: a keeper, its HTTP server, and systemd's wishes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, never, select, tick, unbounded};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};

use super::logging;
use crate::config::{Config, Listen, OverwriteWhen};
use crate::error::{Chain, Context, EXIT_FAILED, Error};
use crate::http;
use crate::keeper::Keeper;

/// How often the reserve for a full disk is looked after.
const KEEP_RESERVE_EVERY: Duration = Duration::from_secs(5 * 60);

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

/// How often systemd is asked for more time to stop in, and how many times: ten minutes.
const ASK_EVERY: Duration = Duration::from_secs(5);
const MOST_TIMES: u32 = 120;

/// What a signal asks for.
enum Signal {
    Stop,
    Reload,
}

/// How a daemon's life ended.
enum End {
    /// Somebody stops it.
    Stopped,
    /// It is to begin anew, with the configuration of now.
    Reload(Box<Config>),
    /// It cannot go on.
    Broken,
}

/// Runs until SIGTERM or SIGINT, then hands running jobs back to the ledger and ends in order. A second one of them ends
/// the process at once. SIGHUP reads the configuration again: one that cannot be meant is told and not taken up.
pub(super) fn serve(read: &dyn Fn() -> Result<Config, Error>) -> Result<ExitCode, Error> {
    let signals = listen_for_signals()?;
    let mut config = read()?;
    loop {
        match live(config, read, &signals)? {
            End::Stopped => return Ok(ExitCode::SUCCESS),
            End::Broken => return Ok(ExitCode::from(EXIT_FAILED)),
            End::Reload(anew) => config = *anew,
        }
    }
}

/// One life with one configuration.
fn live(
    mut config: Config,
    read: &dyn Fn() -> Result<Config, Error>,
    signals: &Receiver<Signal>,
) -> Result<End, Error> {
    logging::set_format(config.log_format);
    if config.listen.is_empty() {
        let mut socket = config.ledger.clone().into_os_string();
        socket.push(".sock");
        config.listen.push(Listen::Unix(socket.into()));
    }
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
    if config.overwrite_when == OverwriteWhen::InProportion {
        config.overwrite_when = OverwriteWhen::WhenIdle;
    }
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
    notify(&[NotifyState::Ready, NotifyState::Status("at work")]);
    let end = attend(&keeper, &server, read, signals);
    match &end {
        End::Reload(_) => {
            log::info!("the configuration was read again: beginning anew with it");
            notify(&[
                NotifyState::Reloading,
                NotifyState::Status("reading the configuration again"),
            ]);
        }
        _ => notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]),
    }
    log::info!("stopping: running jobs are handed back to the ledger");
    let (ended, ends) = bounded::<()>(0);
    thread::scope(|scope| {
        scope.spawn(|| ask_for_time(&ends));
        // First the jobs, which a handler may wait for; then HTTP; then the threads.
        keeper.clone().stop();
        server.stop();
        drop(keeper);
        drop(ended);
    });
    let _ = fs::remove_file(owner_file(&ledger));
    log::info!("stopped");
    Ok(end)
}

/// Tells systemd, as long as what runs comes to its whole point, that it is not stuck.
fn ask_for_time(ends: &Receiver<()>) {
    for _ in 0..MOST_TIMES {
        if ends.recv_timeout(ASK_EVERY) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let micros = u32::try_from(2 * ASK_EVERY.as_micros()).unwrap_or(u32::MAX);
        notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }
}

/// SIGTERM, SIGINT and SIGHUP, as they come.
fn listen_for_signals() -> Result<Receiver<Signal>, Error> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let doing = "listen for signals";
    // The second one that asks for the end is not waited for.
    super::signals()?;
    let mut signals =
        signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]).context(doing)?;
    let (told, heard) = unbounded();
    let listen = move || {
        for signal in signals.forever() {
            let signal = match signal {
                SIGHUP => Signal::Reload,
                _ => Signal::Stop,
            };
            if told.send(signal).is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("signals".into());
    thread.spawn(listen).context(doing)?;
    Ok(heard)
}

/// Waits for the end, and tells systemd's watchdog that we live: whether the database does is another question.
fn attend(
    keeper: &Keeper,
    server: &http::HttpServer,
    read: &dyn Fn() -> Result<Config, Error>,
    signals: &Receiver<Signal>,
) -> End {
    let watchdog = watchdog_period().map_or_else(never, tick);
    let reserve = tick(KEEP_RESERVE_EVERY);
    keeper.keep_reserve();
    loop {
        select! {
            recv(reserve) -> _ => keeper.keep_reserve(),
            recv(signals) -> signal => match signal {
                Ok(Signal::Reload) => match read() {
                    Ok(config) => return End::Reload(Box::new(config)),
                    Err(e) => log::error!(
                        "SIGHUP: the configuration cannot be meant, so the one of before stays: {}",
                        Chain(&e)
                    ),
                },
                Ok(Signal::Stop) => return End::Stopped,
                Err(_) => {
                    log::error!("the thread signals ended unexpectedly: the process ends");
                    return End::Broken;
                }
            },
            recv(server.broken()) -> why => {
                let why = why.unwrap_or_else(|_| "its threads are gone".into());
                log::error!("the HTTP server has failed: {why}");
                return End::Broken;
            }
            recv(keeper.lost_threads()) -> why => {
                log::error!("{}: the process ends", why.unwrap_or_default());
                return End::Broken;
            }
            recv(watchdog) -> _ => {
                if keeper.is_alive() {
                    notify(&[NotifyState::Watchdog]);
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    /// A daemon's life up to where it waits for its end.
    fn attended(happens: impl FnOnce(&Keeper, crossbeam_channel::Sender<Signal>)) -> (End, bool) {
        let directory = tempfile::tempdir().expect("directory");
        let database = directory.path().join("homeserver.db");
        schema::create(database.as_path()).expect("made");
        let mut config = Config::for_sqlite(&database, "example.org");
        config.listen = vec![Listen::Unix(directory.path().join("socket"))];
        let keeper = Keeper::open(config).expect("opens");
        let server = http::serve(keeper.clone()).expect("serves");
        let (told, signals) = unbounded();
        happens(&keeper, told);
        let none = || Err(Error::Config("nothing is read anew".into()));
        let end = attend(&keeper, &server, &none, &signals);
        let is_healthy = keeper.is_healthy();
        keeper.clone().stop();
        server.stop();
        (end, is_healthy)
    }

    #[test]
    fn a_thread_that_ends_unexpectedly_ends_the_process_and_health_says_so() {
        // Kept until the end is there: else the thread of signals is the one that has ended.
        let mut kept = None;
        let (end, is_healthy) = attended(|keeper, told| {
            kept = Some(told);
            drop(keeper.alarm().watch("of a test"));
        });
        assert!(matches!(end, End::Broken) && !is_healthy);
        let (end, is_healthy) = attended(|_, told| drop(told));
        assert!(matches!(end, End::Broken) && is_healthy, "signals");
        let (end, is_healthy) = attended(|_, told| {
            told.send(Signal::Stop).expect("told");
            kept = Some(told);
        });
        assert!(matches!(end, End::Stopped) && is_healthy);
    }
}
