//! The sockets clients come in by: TCP addresses and Unix socket files.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::config::Listen;
use crate::http::private::{self, PrivateDir};

/// Connections the kernel keeps for us until we accept them. The standard library's 128 overflows in one burst,
/// and a client that met a full queue tries again only after a second.
const BACKLOG: i32 = 1024;

/// Through which kind of listener a request came. It decides whether a token is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A TCP address: anyone who can reach the port.
    Tcp,
    /// A Unix socket: only whom the file system lets in.
    Unix,
}

impl Origin {
    /// `tcp` or `unix`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

/// An open listener. Dropping it closes the socket, and removes the socket file if that is still its own.
#[derive(Debug)]
pub enum Listener {
    /// A TCP address.
    Tcp(TcpListener),
    /// A socket file, which goes with it.
    Unix(UnixListener, #[allow(dead_code)] SocketFile),
}

/// A connection with a client. Never blocks.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// How an address is written in the configuration.
pub fn describe(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Opens a listener.
///
/// # Errors
/// The address is in use, or not ours. A socket file that another process still listens on is refused, and so is a
/// directory that other users can write to; a file left behind by a dead process is replaced.
pub fn open(listen: &Listen) -> io::Result<Listener> {
    match listen {
        Listen::Tcp(address) => open_tcp(*address),
        Listen::Unix(path) => open_unix(path),
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<Listener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, BACKLOG)?;
    if !address.ip().is_loopback() {
        log::warn!("http: {address} can be reached from other machines, without encryption");
    }
    Ok(Listener::Tcp(listener))
}

fn open_unix(path: &Path) -> io::Result<Listener> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    check_directory(parent)?;
    // Two processes that start at once take turns from the look to the rename.
    let directory = rustix::fs::open(
        parent,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;

    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Err(io::Error::new(
                ErrorKind::AlreadyExists,
                "a file that is not a socket is in the way",
            ));
        }
        Ok(_) => match private::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                log::info!(
                    "http: {} was left behind by a dead process and is replaced",
                    path.display()
                );
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(_) => {
                return Err(io::Error::new(
                    ErrorKind::AddrInUse,
                    "another process listens on this socket",
                ));
            }
            // A full queue, say: somebody is there.
            Err(error) => return Err(error),
        },
    }

    // Made where nobody else can reach it, and moved into place with its mode already set: there is no moment
    // in which the socket is open to others.
    let temp_dir = PrivateDir::beside(path)?;
    let temp_socket = temp_dir.socket();
    let listener = UnixListener::bind(&temp_socket)?;
    std::fs::set_permissions(&temp_socket, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, BACKLOG)?;
    let file = SocketFile::of(&temp_socket, path)?;
    std::fs::rename(&temp_socket, path)?;
    Ok(Listener::Unix(listener, file))
}

/// The directory must be a place where nobody but us (or root) can swap files.
fn check_directory(parent: &Path) -> io::Result<()> {
    let found = std::fs::metadata(parent)?;
    let ours = rustix::process::geteuid().as_raw();
    let refuse = |why: &str| {
        let text = format!("the directory {} {why}", parent.display());
        Err(io::Error::new(ErrorKind::PermissionDenied, text))
    };
    if !found.is_dir() {
        return Err(io::Error::new(
            ErrorKind::NotADirectory,
            format!("{} is not a directory", parent.display()),
        ));
    }
    if found.uid() != ours && found.uid() != 0 {
        return refuse("belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return refuse("can be written to by other users (chmod go-w)");
    }
    Ok(())
}

/// A socket file of ours, known by its inode so that a successor's file of the same name is left alone.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(made: &Path, path: &Path) -> io::Result<Self> {
        let made = std::fs::symlink_metadata(made)?;
        Ok(Self {
            path: path.to_owned(),
            identity: (made.dev(), made.ino()),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        if found.is_ok_and(|found| found == self.identity)
            && std::fs::remove_file(&self.path).is_err()
        {
            log::warn!("http: could not remove the socket {}", self.path.display());
        }
    }
}

impl Listener {
    /// Takes one waiting client, if there is one.
    pub fn accept(&self) -> io::Result<Stream> {
        let stream = match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                // Answers are written in one piece; waiting to fill a packet only delays them.
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Stream::Unix(stream)
            }
        };
        Ok(stream)
    }

    /// What kind of listener this is.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Tcp(_) => Origin::Tcp,
            Self::Unix(..) => Origin::Unix,
        }
    }

    /// The TCP address really taken; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Stream {
    /// Who is at the other end, over TCP. An address of four that was mapped into six is told as one of four.
    pub fn peer(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => Some(stream.peer_addr().ok()?.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }

    /// Ends our half: the client reads the end after the answer.
    pub fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
