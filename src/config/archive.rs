//! `archive` in our block: whether what jobs remove is written down first.

use std::path::PathBuf;

use crate::archive::Recipient;
use crate::time::{Millis, days};

/// How long archives are kept where nothing else is said.
const KEEP: Millis = days(30);

/// Where and how long what jobs remove is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Archive {
    /// The directory; it is made where there is none.
    pub directory: PathBuf,
    /// The public keys to which archives are encrypted; without any they are not.
    pub recipients: Vec<Recipient>,
    /// How long after a job an archive is kept.
    pub keep: Millis,
}

impl Archive {
    /// Archives in a directory, kept for 30 days.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            recipients: Vec::new(),
            keep: KEEP,
        }
    }
}
