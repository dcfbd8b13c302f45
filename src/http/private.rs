//! Directories that only this user can enter.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rand::Rng;
use rand::distr::Alphanumeric;

/// How such directories begin their names, so that the ones left by killed processes can be found.
const PREFIX: &str = ".roomkeeper-";

/// The name of the one socket in such a directory.
pub const SOCKET: &str = "s";

/// A socket's path must fit into 108 bytes with its closing zero; what does not is not tried.
const LONGEST_SOCKET_PATH: usize = 107;

/// Younger leftovers may belong to a process that is just starting.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// A directory of mode 0700 with a name nobody can guess; removed, with its socket, when dropped.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    /// A directory for a socket that no client ever sees: in systemd's runtime directory if there is one, else
    /// where temporary files go. Leftovers of dead processes there are removed on the way.
    pub fn temporary() -> io::Result<Self> {
        // systemd writes several directories with colons between them.
        let runtime = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
        let runtime = runtime
            .split(':')
            .next()
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        let mut failure = None;
        for base in runtime
            .into_iter()
            .chain([std::env::temp_dir(), PathBuf::from("/tmp")])
        {
            remove_leftovers(&base);
            match Self::create_in(&base) {
                Ok(directory) => return Ok(directory),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| ErrorKind::NotFound.into()))
    }

    /// A directory on the file system of `path`, next to it, so that a file can be moved from one to the other.
    pub fn beside(path: &Path) -> io::Result<Self> {
        Self::create_in(path.parent().unwrap_or(Path::new(".")))
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        let name: String = rand::rng()
            .sample_iter(Alphanumeric)
            .take(12)
            .map(char::from)
            .collect();
        let path = base.join(format!("{PREFIX}{name}"));
        if path.as_os_str().len() + 1 + SOCKET.len() > LONGEST_SOCKET_PATH {
            let text = format!("{} is too long for the path of a socket", base.display());
            return Err(io::Error::new(ErrorKind::InvalidFilename, text));
        }
        // `mkdir` fails on whatever is already there, a planted symbolic link included.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    /// Where its socket is, or will be.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Connects to a socket file without ever waiting: a full queue is `WouldBlock`, and so is every later read or
/// write on the stream that would have to wait.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Only what we put there: a socket, and then the empty directory.
fn remove(directory: &Path) {
    let _ = fs::remove_file(directory.join(SOCKET));
    if let Err(error) = fs::remove_dir(directory) {
        log::debug!("http: {} stays: {error}", directory.display());
    }
}

/// Removes what killed processes of this user left in `base`: directories whose socket nobody listens on.
fn remove_leftovers(base: &Path) {
    let ours = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        let age = found
            .modified()
            .ok()
            .and_then(|made| SystemTime::now().duration_since(made).ok());
        let old = age.is_some_and(|age| age > LEFTOVER_AGE);
        if !found.is_dir() || found.uid() != ours || !old {
            continue;
        }
        match connect(&path.join(SOCKET)) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::NotFound
                ) =>
            {
                remove(&path)
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_its_owner_can_enter_and_nothing_stays() {
        let directory = PrivateDir::temporary().expect("a directory");
        let path = directory.path.clone();
        let mode = fs::metadata(&path).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        let _listener = UnixListener::bind(directory.socket()).expect("a socket");
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn leftovers_go_and_living_ones_stay() {
        let base = tempfile::tempdir().expect("a directory");
        let age = |directory: &Path| {
            let long_ago = SystemTime::now() - 2 * LEFTOVER_AGE;
            fs::File::open(directory)
                .and_then(|file| file.set_modified(long_ago))
                .expect("aged");
        };
        let dead = PrivateDir::create_in(base.path()).expect("a directory");
        drop(UnixListener::bind(dead.socket()).expect("a socket"));
        age(&dead.path);
        let living = PrivateDir::create_in(base.path()).expect("a directory");
        let _listener = UnixListener::bind(living.socket()).expect("a socket");
        age(&living.path);
        let young = PrivateDir::create_in(base.path()).expect("a directory");
        fs::create_dir(base.path().join("roomkeeper-of-somebody")).expect("a directory");

        remove_leftovers(base.path());
        assert!(!dead.path.exists());
        assert!(living.path.exists());
        assert!(young.path.exists());
        assert!(base.path().join("roomkeeper-of-somebody").exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_said_to_be_so() {
        let error = PrivateDir::create_in(Path::new(&"/long".repeat(30))).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::InvalidFilename);
    }
}
