//! Files that hold secrets: who can read them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Refuses a file of ours that everybody can read (K-6). A group may read it: so are Debian's.
///
/// # Errors
/// [`Error::Config`] with the file and what to do.
pub(super) fn refuse_open(key: &str, path: &Path) -> Result<(), Error> {
    match everybody_reads(key, path) {
        Some(said) => Err(Error::Config(said)),
        None => Ok(()),
    }
}

/// What is to be said of a file with a secret that everybody can read.
pub(super) fn everybody_reads(key: &str, path: &Path) -> Option<String> {
    is_readable_by_everybody(path).then(|| {
        let path = path.display();
        format!("{key}: everybody on this machine can read {path}: chmod 640 it")
    })
}

/// Whether anybody on the machine can read a file: its mode lets them, and so does every directory on the way to it.
pub(super) fn is_readable_by_everybody(path: &Path) -> bool {
    let mode = |path: &Path| fs::metadata(path).map(|about| about.mode()).unwrap_or(0);
    let path: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    mode(&path) & 0o004 != 0 && path.ancestors().skip(1).all(|way| mode(way) & 0o001 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn everybody_can_read_what_mode_and_directories_let_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("token");
        fs::write(&file, "secret").expect("written");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
        };
        for (of_directory, of_file, is_open) in [
            (0o755, 0o644, true),
            (0o755, 0o640, false),
            (0o755, 0o600, false),
            (0o750, 0o644, false),
            (0o711, 0o604, true),
        ] {
            set(directory.path(), of_directory);
            set(&file, of_file);
            assert_eq!(
                is_readable_by_everybody(&file),
                is_open,
                "{of_directory:o} {of_file:o}"
            );
            let refused = refuse_open("k", &file).err().map(|e| e.to_string());
            assert_eq!(refused.is_some(), is_open);
            assert!(refused.is_none_or(|said| said.contains("chmod 640")));
        }
        assert!(!is_readable_by_everybody(Path::new("/nowhere/at/all")));
    }
}
