//! Where the homeserver's data lies: in a file of SQLite's, or on a PostgreSQL server.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A homeserver's database.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A file of SQLite's.
    File(PathBuf),
    /// A database on a PostgreSQL server.
    Server(Server),
}

/// How a PostgreSQL server is reached. It can hold a password, which is never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Server {
    /// `postgres://user:password@host:port/name?sslmode=…`.
    Url(String),
    /// Keys of libpq as `database.args` of Synapse's configuration has them: `host`, `port`, `user`, `password`,
    /// `dbname` or `database`, `sslmode`, `connect_timeout`, …
    Keys(BTreeMap<String, String>),
}

/// How an address of a server begins.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

impl Database {
    /// What `--database` says: an address begins with `postgres://`, everything else is the path of a file.
    pub fn of_words(words: &str) -> Self {
        let rest = SCHEMES.iter().find_map(|scheme| {
            let (begin, rest) = words.split_at_checked(scheme.len())?;
            begin.eq_ignore_ascii_case(scheme).then_some(rest)
        });
        match rest {
            Some(rest) => Self::Server(Server::Url(format!("postgres://{rest}"))),
            None => Self::File(words.into()),
        }
    }

    /// As [`Database::of_words`], for paths that may be no text.
    pub fn of_path(path: &Path) -> Self {
        match path.to_str() {
            Some(words) => Self::of_words(words),
            None => path.into(),
        }
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) => None,
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Server(server) => server.fmt(f),
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Server {
    /// The name of the database on its server, as far as the address says it.
    pub fn database_name(&self) -> &str {
        match self {
            Self::Url(url) => {
                let address = url.split('?').next().unwrap_or_default();
                // What follows a password that holds a slash is still last.
                address.rsplit('/').next().unwrap_or_default()
            }
            Self::Keys(keys) => keys
                .get("dbname")
                .or_else(|| keys.get("database"))
                .map_or("", String::as_str),
        }
    }

    /// Whether the address as it is written holds a password, which on a command line everybody on the machine can read.
    pub fn shows_password(&self) -> bool {
        let Self::Url(url) = self else { return false };
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let rest = SCHEMES.iter().find_map(|s| place.strip_prefix(s));
        let who = rest.and_then(|rest| Some(rest.rsplit_once('@')?.0));
        who.is_some_and(|who| who.contains(':'))
            || query.split('&').any(|pair| pair.starts_with("password="))
    }
}

/// Host and name: what helps a person, and no secret.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => {
                let rest = SCHEMES.iter().find_map(|s| url.strip_prefix(s));
                let rest = rest.unwrap_or("");
                // A password can hold what should have been written as %40 or %3F.
                let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
                let place = place.split('?').next().unwrap_or("");
                let place = if rest.contains("password=") {
                    "…"
                } else {
                    place
                };
                write!(f, "postgres://{place}")
            }
            Self::Keys(keys) => {
                let host = keys.get("host").map_or("", String::as_str);
                write!(f, "postgres://{host}/{}", self.database_name())
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<PathBuf> for Database {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&PathBuf> for Database {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Path> for Database {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&Database> for Database {
    fn from(database: &Database) -> Self {
        database.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let url = "postgres://synapse:hunter2@db.example:5433/synapse?password=hunter2";
        let keys = [("user", "synapse"), ("password", "hunter2"), ("host", "h")];
        let keys = keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for database in [
            Database::of_words(url),
            Database::of_words("postgres://synapse:hunt@er2/x@db.example/synapse"),
            Database::of_words("postgres://synapse:hunt?er2@db.example/synapse"),
            Database::of_words("postgres://db.example/synapse?password=a@hunter2"),
            Database::Server(Server::Keys(keys)),
        ] {
            let shown = format!("{database} {database:?}");
            assert!(!shown.contains("hunt"), "{shown}");
            assert!(shown.contains("postgres://"), "{shown}");
        }
    }

    #[test]
    fn an_address_with_a_password_is_told_from_one_without() {
        let shows = |url: &str| Server::Url(url.into()).shows_password();
        assert!(shows("postgres://synapse:hunter2@db.example/synapse"));
        assert!(shows(
            "postgresql://db.example/synapse?user=u&password=hunter2"
        ));
        assert!(!shows(
            "postgres://synapse@db.example:5433/synapse?sslmode=require"
        ));
        assert!(!shows("postgres:///synapse"));
    }

    #[test]
    fn what_is_no_address_is_a_file() {
        assert_eq!(
            Database::of_words("copy.db").file(),
            Some(Path::new("copy.db"))
        );
        assert_eq!(Database::of_words("postgresql:///synapse").file(), None);
    }
}
