//! A site's archive, and what comes back from it.

use std::path::PathBuf;

use roomkeeper::config::Archive;
use roomkeeper::keeper::{self, Restoration, RestoreRequest};
use roomkeeper::{Config, Error, JobId};

use super::work::Site;

/// Where it is.
pub fn directory(site: &Site) -> PathBuf {
    site.directory().join("archive")
}

/// With the archive, open to everybody who may read the files.
pub fn archiving(site: &Site, mut config: Config) -> Config {
    config.archive = Some(Archive::in_directory(directory(site)));
    config
}

/// Brings back what a job removed, or says what would come.
pub fn restore(site: &Site, job: &JobId, dry_run: bool) -> Result<Restoration, Error> {
    let config = archiving(site, site.config());
    let request = RestoreRequest {
        job: job.clone(),
        room: None,
        dry_run,
        keys: Vec::new(),
    };
    keeper::restore(&config, &request)
}
