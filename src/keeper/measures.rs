//! What whoever watches a keeper wants to know of this moment, cheap enough to be asked every few seconds: what stands in
//! the ledger, sizes of files, and how long ago retention did its work.

use std::path::{Path, PathBuf};

use super::retention::RETENTION;
use super::{Keeper, Shared, retention_scheduler};
use crate::error::Error;
use crate::job::Reserve;
use crate::jobs::ledger::{State, Subject};
use crate::policy::PurgeJob;
use crate::store::space;

/// A keeper at one moment. What cannot be measured now is `None`.
#[derive(Clone, Debug, Default)]
pub struct Measures {
    /// Jobs on record, by kind and state.
    pub jobs: Vec<(String, State, i64)>,
    /// Whether the database answers.
    pub is_database_up: bool,
    /// Bytes of the database: its file, or what the server says.
    pub database_bytes: Option<u64>,
    /// Bytes of its write-ahead log, where that is a file.
    pub log_bytes: Option<u64>,
    /// Bytes in the file that hold nothing any more.
    pub reclaimable_bytes: Option<u64>,
    /// Bytes free on the disk of the database, where that is a file.
    pub database_disk_free: Option<u64>,
    /// Bytes of the reserve that is given up when the disk is full; 0 when it has been.
    pub reserve_bytes: Option<u64>,
    /// Bytes of the ledger with its log.
    pub ledger_bytes: Option<u64>,
    /// Bytes free on the ledger's disk.
    pub ledger_disk_free: Option<u64>,
    /// For every job of the retention that is enabled: the lifetimes it takes, its interval in seconds, and the seconds
    /// since the last run that ended well began, or, before there was one, since the daemon first counted the interval.
    pub retention: Vec<(String, f64, f64)>,
}

impl Keeper {
    /// Measures. Never an error: what cannot be had is left out.
    pub fn measures(&self) -> Measures {
        let shared = &self.shared;
        let ledger = shared.register.ledger();
        let mut measures = Measures {
            jobs: ledger.counts().unwrap_or_default(),
            ledger_bytes: with_log(ledger.path()),
            ledger_disk_free: space::free_bytes(ledger.path()).ok(),
            retention: shared.retention_lag().unwrap_or_default(),
            ..Measures::default()
        };
        if let Some(file) = shared.config.database.file() {
            measures.database_bytes = size(file);
            measures.log_bytes = Some(size(&log_of(file)).unwrap_or(0));
            measures.database_disk_free = space::free_bytes(file).ok();
            measures.reserve_bytes = Some(Reserve::beside(file).bytes());
        }
        let sizes =
            shared.with_reader(|db| Ok((space::server_bytes(db)?, space::reclaimable_bytes(db)?)));
        if let Ok((on_server, reclaimable)) = sizes {
            measures.is_database_up = true;
            measures.database_bytes = on_server.or(measures.database_bytes);
            measures.reclaimable_bytes = Some(reclaimable).filter(|_| on_server.is_none());
        }
        measures
    }
}

impl Shared {
    fn retention_lag(&self) -> Result<Vec<(String, f64, f64)>, Error> {
        let config = &self.config;
        if !config.retention.enabled || !config.retention_jobs {
            return Ok(Vec::new());
        }
        let lag = |job: &PurgeJob| {
            let (ledger, now) = (self.register.ledger(), config.clock.now());
            let subject = Subject::Lifetimes(job.range);
            let since = match ledger.last_complete(RETENTION.name, &subject)? {
                Some(began) => began,
                None => {
                    let name = retention_scheduler::name(job.interval, &job.range);
                    ledger.interval_start(&name, now)?
                }
            };
            let seconds = (now - since).0.max(0) as f64 / 1e3;
            Ok((job.range.to_string(), job.interval.0 as f64 / 1e3, seconds))
        };
        config.retention.purge_jobs.iter().map(lag).collect()
    }
}

fn size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.len())
}

fn log_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn with_log(path: &Path) -> Option<u64> {
    Some(size(path)? + size(&log_of(path)).unwrap_or(0))
}
