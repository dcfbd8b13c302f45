//! How a connection is encrypted: what `sslmode` and its companions ask for, as libpq understands them.

use std::path::{Path, PathBuf};

use postgres::config::{Host, SslMode};
use postgres::{CancelToken, Client, Config, NoTls};

#[cfg(feature = "postgres-tls")]
use super::tls;
use crate::error::Error;

/// What `sslmode` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Never.
    Disable,
    /// Only where the server takes nobody else.
    Allow,
    /// Where the server can.
    Prefer,
    /// Always, whoever the server is.
    Require,
    /// Always, and the server shows a certificate of somebody we trust.
    VerifyCa,
    /// As before, and it is for the host that was asked for.
    VerifyFull,
}

const MODES: [(&str, Mode); 6] = [
    ("disable", Mode::Disable),
    ("allow", Mode::Allow),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

/// Whom to trust, as `sslrootcert` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// The certificates in a file.
    File(PathBuf),
    /// Whom the operating system trusts (`sslrootcert=system`).
    System,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub mode: Mode,
    pub roots: Option<Roots>,
    /// Our own certificate and its key, where the server wants to see one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Wanted {
    /// `given` answers what was written for a key, or stands in the environment; what is neither is libpq's: files in
    /// `~/.postgresql`.
    pub(super) fn of(given: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let said = |key: &str| given(key).filter(|value| !value.is_empty());
        let mode = match said("sslmode") {
            None => Mode::Prefer,
            Some(word) => MODES
                .iter()
                .find_map(|(name, mode)| (*name == word).then_some(*mode))
                .ok_or_else(|| {
                    let names = MODES.map(|(name, _)| name).join(", ");
                    Error::Config(format!("sslmode should be one of {names}"))
                })?,
        };
        let file = |key: &str, usual: &str| said(key).map(PathBuf::from).or_else(|| at_home(usual));
        let roots = match said("sslrootcert") {
            Some(word) if word == "system" => Some(Roots::System),
            Some(path) => Some(Roots::File(path.into())),
            None => at_home("root.crt").map(Roots::File),
        };
        let own = (
            file("sslcert", "postgresql.crt"),
            file("sslkey", "postgresql.key"),
        );
        let identity = match own {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) if said("sslcert").is_some() => return Err(half("sslcert", "sslkey")),
            (None, Some(_)) if said("sslkey").is_some() => return Err(half("sslkey", "sslcert")),
            _ => None,
        };
        let wanted = Self {
            // As libpq: who says whom to trust means it.
            mode: match (mode, &roots) {
                (Mode::Require, Some(Roots::File(_))) => Mode::VerifyCa,
                (Mode::Require, Some(Roots::System)) => Mode::VerifyFull,
                (mode, _) => mode,
            },
            roots,
            identity,
        };
        wanted.refuse_what_cannot_be()?;
        Ok(wanted)
    }

    fn refuse_what_cannot_be(&self) -> Result<(), Error> {
        let is_verified = matches!(self.mode, Mode::VerifyCa | Mode::VerifyFull);
        if is_verified && self.roots.is_none() {
            return Err(Error::Config(
                "sslmode asks to verify the server's certificate, and nothing says whom to trust: name a file of \
                 certificates in sslrootcert (or \"system\"), or put it at ~/.postgresql/root.crt"
                    .into(),
            ));
        }
        if self.mode == Mode::VerifyCa && self.roots == Some(Roots::System) {
            return Err(Error::Config(
                "sslrootcert=system trusts everybody whom the system trusts, so it needs sslmode=verify-full".into(),
            ));
        }
        Ok(())
    }

    /// How to try, in this order.
    fn attempts(&self) -> &'static [SslMode] {
        match self.mode {
            Mode::Disable => &[SslMode::Disable],
            Mode::Allow => &[SslMode::Disable, SslMode::Require],
            Mode::Prefer => &[SslMode::Prefer, SslMode::Disable],
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => &[SslMode::Require],
        }
    }
}

fn half(said: &str, missing: &str) -> Error {
    Error::Config(format!(
        "{said} is given and {missing} is not: a certificate of ours is shown with its key or not at all"
    ))
}

/// A file of libpq's own place, where it is there.
fn at_home(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME")?;
    Some(Path::new(&home).join(".postgresql").join(name)).filter(|path| path.is_file())
}

/// What encrypts, for a connection and for those that stop its statements.
#[derive(Clone)]
pub(super) enum Encryption {
    /// Nothing does.
    None,
    #[cfg(feature = "postgres-tls")]
    Tls(tls::Connector),
}

impl Encryption {
    /// Asks the server to stop what a connection does.
    pub(super) fn cancel(&self, token: &CancelToken) -> Result<(), postgres::Error> {
        match self {
            Self::None => token.cancel_query(NoTls),
            #[cfg(feature = "postgres-tls")]
            Self::Tls(connector) => token.cancel_query(connector.clone()),
        }
    }

    fn connect(&self, config: &Config) -> Result<Client, postgres::Error> {
        match self {
            Self::None => config.connect(NoTls),
            #[cfg(feature = "postgres-tls")]
            Self::Tls(connector) => config.connect(connector.clone()),
        }
    }
}

/// Connects as was asked for; `refused` makes an error of the client's.
pub(super) fn connect(
    config: &mut Config,
    wanted: &Wanted,
    refused: &impl Fn(postgres::Error) -> Error,
) -> Result<(Client, Encryption), Error> {
    // Sockets are on this machine, and never encrypted.
    let is_socket = |host: &Host| matches!(host, Host::Unix(_));
    let encryption = if wanted.mode == Mode::Disable || config.get_hosts().iter().all(is_socket) {
        Encryption::None
    } else {
        encryption(wanted)?
    };
    let attempts = match encryption {
        Encryption::None => &[SslMode::Disable],
        #[cfg(feature = "postgres-tls")]
        Encryption::Tls(_) => wanted.attempts(),
    };
    let mut attempts = attempts.iter().peekable();
    loop {
        let mode = *attempts.next().unwrap_or(&SslMode::Disable);
        config.ssl_mode(mode);
        match encryption.connect(config) {
            Ok(client) => return Ok((client, encryption)),
            Err(e) if attempts.peek().is_some() && is_about_encryption(&e) => {
                log::debug!("connecting: {e}; trying it the other way");
            }
            Err(e) => return Err(refused(e)),
        }
    }
}

#[cfg(feature = "postgres-tls")]
fn encryption(wanted: &Wanted) -> Result<Encryption, Error> {
    tls::connector(wanted).map(Encryption::Tls)
}

#[cfg(not(feature = "postgres-tls"))]
fn encryption(wanted: &Wanted) -> Result<Encryption, Error> {
    match wanted.attempts() {
        [SslMode::Require] => Err(Error::Config(
            "sslmode asks for an encrypted connection, which this roomkeeper was built without: build it with the \
             feature `postgres-tls`"
                .into(),
        )),
        _ => Ok(Encryption::None),
    }
}

/// Whether connecting failed for how the connection was to be encrypted: the server takes nobody like that, or the two
/// found no common way.
pub(super) fn is_about_encryption(e: &postgres::Error) -> bool {
    /// `invalid_authorization_specification`: no line of `pg_hba.conf` fits.
    const NO_LINE_FITS: &str = "28000";
    match e.as_db_error() {
        Some(said) => said.code().code() == NO_LINE_FITS,
        None => e.to_string().contains("TLS handshake"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pairs: &[(&str, &str)]) -> Result<Wanted, Error> {
        let pairs: Vec<(String, String)> = pairs
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        Wanted::of(|key| pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()))
    }

    #[test]
    fn naming_whom_to_trust_means_to_verify() {
        let mode = |pairs: &[(&str, &str)]| wanted(pairs).expect("understood").mode;
        let root = ("sslrootcert", "/etc/ca.pem");
        assert_eq!(mode(&[("sslmode", "verify-full"), root]), Mode::VerifyFull);
        assert_eq!(mode(&[("sslmode", "require"), root]), Mode::VerifyCa);
        let system = ("sslrootcert", "system");
        assert_eq!(mode(&[("sslmode", "require"), system]), Mode::VerifyFull);
        assert_eq!(mode(&[("sslmode", "prefer"), root]), Mode::Prefer);
        assert_eq!(mode(&[("sslmode", "disable")]), Mode::Disable);
    }

    #[test]
    fn what_cannot_be_verified_is_refused() {
        for (pairs, says) in [
            (
                &[("sslmode", "verify-ca"), ("sslrootcert", "system")][..],
                "verify-full",
            ),
            (&[("sslmode", "hunter2")], "disable, allow, prefer"),
        ] {
            let error = wanted(pairs).expect_err("refused").to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
