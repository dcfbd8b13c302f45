//! The homeserver's media store on the disk: where it keeps which file, and how one is removed.
//!
//! The layout is Synapse's (`synapse/media/filepath.py`): `local_content/aa/bb/rest`, `remote_content/SERVER/aa/bb/rest`, and
//! beside each a directory of thumbnails. No symbolic link below the store is followed, because it leads to what may be
//! somebody else's; what lies behind one stays.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::error::Error;

/// A media store.
#[derive(Clone, Debug)]
pub struct MediaFiles {
    root: PathBuf,
}

/// Where one of the homeserver's files lies, with its thumbnails; both below the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The file.
    pub file: String,
    /// The directory of its thumbnails, which need not be there.
    pub thumbnails: String,
}

/// What lies where a file should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The file, and whatever thumbnails it has.
    File,
    /// Nothing: it lies elsewhere, or is gone.
    Nothing,
    /// Something that is left alone: a symbolic link, or something else that the homeserver does not put there.
    Odd,
}

impl Paths {
    /// Of a file by its name on the disk, from this server or another; `None` for names that no homeserver gives.
    pub fn of(origin: Option<&str>, name: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.len() < 5 || !name.bytes().all(is_plain) {
            return None;
        }
        let place = format!("{}/{}/{}", &name[..2], &name[2..4], &name[4..]);
        Some(match origin {
            None => Self {
                file: format!("local_content/{place}"),
                thumbnails: format!("local_thumbnails/{place}"),
            },
            Some(server) => {
                let is_of_name =
                    |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
                if server.is_empty() || server.starts_with('.') || !server.bytes().all(is_of_name) {
                    return None;
                }
                Self {
                    file: format!("remote_content/{server}/{place}"),
                    thumbnails: format!("remote_thumbnail/{server}/{place}"),
                }
            }
        })
    }
}

impl MediaFiles {
    /// The store in a directory.
    ///
    /// # Errors
    /// [`Error::Config`] where it is none, or cannot be read.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let unusable = |why: String| {
            Error::Config(format!(
                "the media store {} cannot be used: {why}; media_store_path should say where it is",
                directory.display()
            ))
        };
        // The store itself may well be a link.
        let root = fs::canonicalize(directory).map_err(|e| unusable(e.to_string()))?;
        match fs::read_dir(&root) {
            Ok(_) => Ok(Self { root }),
            Err(e) => Err(unusable(e.to_string())),
        }
    }

    /// The path of something below the store, and what it is; `None` where nothing is there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where a link or something else than a directory is on the way.
    fn look(&self, relative: &str) -> io::Result<Option<(PathBuf, Metadata)>> {
        let mut path = self.root.clone();
        let mut parts = relative.split('/').peekable();
        while let Some(part) = parts.next() {
            if part.is_empty() || part == "." || part == ".." {
                return Err(ErrorKind::InvalidInput.into());
            }
            path.push(part);
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            if parts.peek().is_none() {
                return Ok(Some((path, found)));
            }
            if !found.is_dir() {
                return Err(ErrorKind::InvalidInput.into());
            }
        }
        Ok(None)
    }

    /// What lies there, and may be removed by this user.
    ///
    /// # Errors
    /// Those of the file system: also where this user may not remove it.
    pub fn find(&self, paths: &Paths) -> Result<Found, Error> {
        let looked = || -> io::Result<Found> {
            let Some((path, file)) = self.look(&paths.file)? else {
                return Ok(Found::Nothing);
            };
            if !file.is_file() {
                return Ok(Found::Odd);
            }
            let directory = path.parent().unwrap_or(&self.root);
            access(directory, Access::WRITE_OK | Access::EXEC_OK)?;
            let Some((directory, thumbnails)) = self.look(&paths.thumbnails)? else {
                return Ok(Found::File);
            };
            if !thumbnails.is_dir() {
                return Ok(Found::Odd);
            }
            for entry in fs::read_dir(directory)? {
                if !entry?.file_type()?.is_file() {
                    return Ok(Found::Odd);
                }
            }
            Ok(Found::File)
        };
        match looked() {
            Err(e) if e.kind() == ErrorKind::InvalidInput => Ok(Found::Odd),
            looked => looked.map_err(|e| failed(e, "look for a file of the media store")),
        }
    }

    /// Removes the file and its thumbnails; answers how many files and bytes that were. What is gone already is gone.
    ///
    /// # Errors
    /// Those of the file system; what was removed by then is gone.
    pub fn remove(&self, paths: &Paths) -> Result<(u64, u64), Error> {
        let mut done = (0, 0);
        let mut remove = |path: &Path, found: &Metadata| match fs::remove_file(path) {
            Ok(()) => {
                done.0 += 1;
                done.1 += found.len();
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        let mut all = || -> io::Result<()> {
            if let Some((directory, found)) = self.look(&paths.thumbnails)?
                && found.is_dir()
            {
                for entry in fs::read_dir(&directory)? {
                    let entry = entry?;
                    if entry.file_type()?.is_file() {
                        remove(&entry.path(), &entry.metadata()?)?;
                    }
                }
                // Where something else is in it, it stays.
                let _ = fs::remove_dir(&directory);
            }
            if let Some((file, found)) = self.look(&paths.file)?
                && found.is_file()
            {
                remove(&file, &found)?;
            }
            Ok(())
        };
        match all() {
            // Somebody has put a link there meanwhile.
            Err(e) if e.kind() == ErrorKind::InvalidInput => {}
            removed => removed.map_err(|e| failed(e, "remove a file of the media store"))?,
        }
        Ok(done)
    }
}

fn failed(e: io::Error, doing: &'static str) -> Error {
    Error::Store {
        doing,
        source: e.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(root: &Path, relative: &str) {
        let path = root.join(relative);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, "bytes").expect("written");
    }

    #[test]
    fn a_file_goes_with_its_thumbnails_and_nothing_else() {
        let dir = tempfile::tempdir().expect("directory");
        let root = dir.path();
        let paths = Paths::of(None, "abcdefgh").expect("a name");
        put(root, "local_content/ab/cd/efgh");
        put(root, "local_content/ab/cd/efgi");
        put(root, "local_thumbnails/ab/cd/efgh/32-32-image-png-crop");
        put(root, "local_thumbnails/ab/cd/efgi/32-32-image-png-crop");
        let store = MediaFiles::open(root).expect("opens");
        assert_eq!(store.find(&paths).expect("looked"), Found::File);
        assert_eq!(store.remove(&paths).expect("removed"), (2, 10));
        assert_eq!(store.find(&paths).expect("looked"), Found::Nothing);
        assert_eq!(store.remove(&paths).expect("again"), (0, 0));
        assert!(root.join("local_content/ab/cd/efgi").exists());
        assert!(root.join("local_thumbnails/ab/cd/efgi").exists());
        assert!(!root.join("local_thumbnails/ab/cd/efgh").exists());
    }

    #[test]
    fn nothing_behind_a_link_is_touched() {
        let dir = tempfile::tempdir().expect("directory");
        let (root, elsewhere) = (dir.path().join("store"), dir.path().join("elsewhere"));
        put(&elsewhere, "cd/efgh");
        put(&elsewhere, "thumb");
        let paths = Paths::of(Some("a.b"), "abcdefgh").expect("a name");
        for link in [
            "remote_content/a.b/ab",
            "remote_content/a.b/ab/cd/efgh",
            "remote_thumbnail/a.b/ab/cd/efgh",
        ] {
            let _ = fs::remove_dir_all(&root);
            put(&root, "remote_content/a.b/ab/cd/x");
            if link.starts_with("remote_thumbnail") {
                put(&root, "remote_content/a.b/ab/cd/efgh");
            }
            let link = root.join(link);
            if link.is_dir() {
                fs::remove_dir_all(&link).expect("away");
            }
            fs::create_dir_all(link.parent().expect("a parent")).expect("made");
            let target = match link.ends_with("remote_content/a.b/ab/cd/efgh") {
                true => elsewhere.join("thumb"),
                false => elsewhere.clone(),
            };
            symlink(target, &link).expect("linked");
            let store = MediaFiles::open(&root).expect("opens");
            assert_eq!(store.find(&paths).expect("looked"), Found::Odd, "{link:?}");
            store.remove(&paths).expect("nothing fails");
            assert!(elsewhere.join("cd/efgh").exists(), "{link:?}");
            assert!(elsewhere.join("thumb").exists(), "{link:?}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for name in ["", "abcd", "../../x", "ab/cdefg", "abcd..", "..abcdef"] {
            assert_eq!(Paths::of(None, name), None, "{name}");
        }
        for server in ["", "..", ".", "a/b", "../x"] {
            assert_eq!(Paths::of(Some(server), "abcdefgh"), None, "{server}");
        }
        assert!(MediaFiles::open(Path::new("/nowhere/at/all")).is_err());
    }
}
