//! Where the homeserver keeps media, as its own keys say.

use std::path::PathBuf;

/// Where the homeserver keeps media.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MediaStore {
    /// The directory, where that was said (`media_store_path`).
    pub directory: Option<PathBuf>,
    /// Whether media lie elsewhere as well (`media_storage_providers`): those only the homeserver can remove.
    pub has_providers: bool,
}
