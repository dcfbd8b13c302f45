//! What the configuration means. What a file says of it is read in `file` (daemon feature).

mod archive;
mod authentication;
mod event_signing;
#[cfg(feature = "daemon")]
pub mod file;
mod homeserver;
#[cfg(feature = "daemon")]
mod located;
mod media;
#[cfg(feature = "daemon")]
mod misspelt;
mod network;
mod notify;
#[cfg(feature = "daemon")]
mod ours;
#[cfg(feature = "daemon")]
mod policies;
#[cfg(feature = "daemon")]
mod retention;
#[cfg(feature = "daemon")]
mod scalar;
#[cfg(feature = "daemon")]
mod secrets;
mod server_policy;
#[cfg(feature = "daemon")]
mod syntax;
#[cfg(feature = "daemon")]
mod values;
#[cfg(feature = "daemon")]
mod yaml;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::archive::Archive;
pub use self::authentication::AuthenticationService;
pub use self::event_signing::{EventSigning, SigningKey};
pub use self::homeserver::HomeserverApi;
pub use self::media::MediaStore;
pub use self::network::Network;
pub use self::notify::{Command, Notify, Webhook};
pub use self::server_policy::{PolicyStart, PolicyWhat, ServerPolicy};
use crate::batch::BatchLimits;
use crate::database::Database;
use crate::endpoints::HomeserverEndpoints;
use crate::ids::UserId;
use crate::policy::Retention;
use crate::time::{Clock, Millis, SystemClock, days};

/// Purge threads. On SQLite one writes at a time; the others read ahead, so more than a few serve nobody.
pub const WORKERS: usize = 4;

/// How long records of ended jobs are kept.
pub const KEEP_JOBS: Millis = days(90);

/// What to do about a homeserver that may be running on the same database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HomeserverPolicy {
    /// Refuse to work while one seems to be running (the default).
    #[default]
    RequireStopped,
    /// The operator says that none is running; do not look.
    AssumeStopped,
    /// One may be running. While one seems to: small transactions with rests between, its lock rows are taken, state
    /// groups are left to it. While none does, all is as if it were required to be stopped.
    AllowRunning,
    /// The operator says that one is running, seen or not; do not look.
    AssumeRunning,
}

/// A place to listen for HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP; every request needs a token.
    Tcp(SocketAddr),
    /// A Unix socket of mode 0600; who can open it needs no token.
    Unix(PathBuf),
}

/// How the daemon writes its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people (the default). Where the journal reads, with its priorities and without a time.
    #[default]
    Text,
    /// A JSON document a line.
    Json,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for comparing.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// When deleted content is overwritten, and the full-text index merged: after a small job that costs many times the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverwriteWhen {
    /// Before the job ends, whatever it costs.
    AtOnce,
    /// Before the job ends (the default). A full-text index that is out of all proportion to what went is left to the next
    /// large job, which a note of the job says.
    #[default]
    InProportion,
    /// Once for all jobs, some seconds after the last of them, and ten minutes after the first at the latest: the daemon's
    /// way, which has a thread for it.
    WhenIdle,
}

/// Everything a [`Keeper`](crate::Keeper) needs to know.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The homeserver's database.
    pub database: Database,
    /// `server_name` of the homeserver.
    pub server_name: String,
    /// Our own bookkeeping; by default `<database>.roomkeeper`, or for a database on a server a file in our
    /// state directory.
    pub ledger: PathBuf,
    /// Purge threads.
    pub workers: usize,
    /// Bounds of transactions beside a live server.
    pub batch: BatchLimits,
    /// Whether deleted content is overwritten: zeros in the file, the full-text index merged, the log emptied.
    pub overwrite_deleted: bool,
    /// When that is done, where it is.
    pub overwrite_when: OverwriteWhen,
    /// Where what jobs remove is written down first; nowhere without.
    pub archive: Option<Archive>,
    /// Where the homeserver keeps media.
    pub media: MediaStore,
    /// How long records of ended jobs are kept.
    pub keep_jobs: Millis,
    /// How long messages stay, and the jobs that see to it: the homeserver's own `retention` block.
    pub retention: Retention,
    /// Policies of this server's own, by the life of rooms; the first counts where two take the same room.
    pub policies: Vec<ServerPolicy>,
    /// Whether the retention jobs run at their intervals, if `retention` is enabled, and `policies` once a day; runs on demand
    /// do not ask for it.
    pub retention_jobs: bool,
    /// Whether what depends on age is refused while the clock may be ahead.
    pub check_clock: bool,
    /// How far the clock may be after the newest event before that is doubted.
    pub clock_tolerance: Millis,
    /// What to do about a homeserver that may be running.
    pub homeserver: HomeserverPolicy,
    /// Where to look for one.
    pub endpoints: HomeserverEndpoints,
    /// Whether jobs that an earlier process left unfinished are resumed when the keeper opens.
    pub resume: bool,
    /// Where the daemon listens.
    pub listen: Vec<Listen>,
    /// The proxies whose word about their clients counts (`X-Forwarded-For`).
    pub trusted_proxies: Vec<Network>,
    /// Who is told when a job has ended.
    pub notify: Option<Notify>,
    /// How the daemon writes its log.
    pub log_format: LogFormat,
    /// The static admin token, if there is one (U-14).
    pub admin_token: Option<Secret>,
    /// The token that reads `/metrics` and nothing else, if there is one.
    pub metrics_token: Option<Secret>,
    /// Who the holder of the static token is.
    pub admin_user: UserId,
    /// Whether the homeserver keeps its access tokens elsewhere, so that they are not looked for in the database (U-13).
    pub delegated_auth: bool,
    /// Who is asked about them then; without, only the static token works.
    pub authentication_service: Option<AuthenticationService>,
    /// Whether accounts can expire (U-6).
    pub account_validity: bool,
    /// What this server's own events are made with, as a shutdown needs them.
    pub event_signing: EventSigning,
    /// How a homeserver that runs beside us is asked to move people out of rooms, and to block them.
    pub homeserver_api: Option<HomeserverApi>,
    /// Whether filters may name types of relations (the experimental MSC3874).
    pub relation_type_filters: bool,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// The defaults for a SQLite database.
    pub fn for_sqlite(database: impl AsRef<Path>, server_name: &str) -> Self {
        Self::for_database(database.as_ref().into(), server_name)
    }

    /// The defaults for a database.
    pub fn for_database(database: Database, server_name: &str) -> Self {
        let ledger = match &database {
            Database::File(path) => {
                // However the way to the file is written, it has one ledger.
                let file = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                let mut ledger = file.into_os_string();
                ledger.push(".roomkeeper");
                ledger.into()
            }
            // One ledger for each homeserver and each copy of it; the address may be written in many ways.
            Database::Server(server) => {
                let name = format!("{server_name}.{}.ledger", server.database_name());
                state_directory().join(name.replace(['/', ':'], "_"))
            }
        };
        let mut batch = BatchLimits::default();
        if let Database::Server(_) = database {
            batch = BatchLimits::on_server();
        }
        Self {
            database,
            server_name: server_name.to_owned(),
            ledger,
            workers: WORKERS,
            batch,
            overwrite_deleted: true,
            overwrite_when: OverwriteWhen::default(),
            archive: None,
            media: MediaStore::default(),
            keep_jobs: KEEP_JOBS,
            retention: Retention::default(),
            policies: Vec::new(),
            retention_jobs: false,
            check_clock: true,
            clock_tolerance: days(7),
            homeserver: HomeserverPolicy::default(),
            endpoints: HomeserverEndpoints::default(),
            resume: false,
            listen: Vec::new(),
            trusted_proxies: Vec::new(),
            notify: None,
            log_format: LogFormat::default(),
            admin_token: None,
            metrics_token: None,
            admin_user: UserId::new(format!("@roomkeeper:{server_name}")),
            delegated_auth: false,
            authentication_service: None,
            account_validity: false,
            event_signing: EventSigning::default(),
            homeserver_api: None,
            relation_type_filters: false,
            clock: Arc::new(SystemClock),
        }
    }
}

/// Where our ledger lies when the database is no file: systemd's `StateDirectory=`, or `$XDG_STATE_HOME/roomkeeper`, or
/// `~/.local/state/roomkeeper`, or for somebody without a home `/var/lib/roomkeeper`.
fn state_directory() -> PathBuf {
    let of = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(given) = of("STATE_DIRECTORY") {
        return given;
    }
    let home = of("HOME").filter(|home| home != Path::new("/"));
    of("XDG_STATE_HOME")
        .or_else(|| home.map(|home| home.join(".local/state")))
        .map_or_else(
            || PathBuf::from("/var/lib/roomkeeper"),
            |state| state.join("roomkeeper"),
        )
}
