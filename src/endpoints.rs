//! Where a homeserver would be met; the configuration knows it, the store looks there.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Where to look for a running homeserver; from its own configuration, where we have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HomeserverEndpoints {
    /// `pid_file` of the configuration; where that is relative, all the places that can be meant.
    pub pid_files: Vec<PathBuf>,
    /// Addresses of its TCP listeners.
    pub listeners: Vec<SocketAddr>,
}
