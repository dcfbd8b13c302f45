//! From what is written of a server to a connection, as libpq would read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use postgres::{Client, Config};

use super::encryption::{self, Encryption, Wanted};
use super::{APPLICATION_NAME, passwords};
use crate::database::Server;
use crate::error::Error;

/// Where servers have their sockets, when no host is said: Debian's place, and PostgreSQL's own.
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How long connecting may take, unless the configuration says.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After what silence the other side is asked whether it is there, and how long it may leave what was sent unanswered.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Connects; `refused` makes an error of the client's.
pub(super) fn connect(
    server: &Server,
    refused: impl Fn(postgres::Error) -> Error,
) -> Result<(Client, Encryption), Error> {
    let (mut config, wanted) = configuration(server)?;
    encryption::connect(&mut config, &wanted, refused)
}

/// What is written, as the client takes it.
fn configuration(server: &Server) -> Result<(Config, Wanted), Error> {
    let (mut config, ours) = match server {
        Server::Url(url) => of_url(url)?,
        Server::Keys(keys) => (of_keys(keys)?, keys.clone()),
    };
    let wanted = Wanted::of(|key| ours.get(key).cloned())?;
    if config.get_hosts().is_empty() {
        let found = SOCKETS.iter().find(|d| Path::new(d).is_dir());
        config.host_path(found.unwrap_or(&SOCKETS[0]));
    }
    if config.get_user().is_none() {
        let name = std::env::var("PGUSER").or_else(|_| std::env::var("USER"));
        config.user(name.as_deref().unwrap_or("postgres"));
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_password().is_none()
        && let Some(password) =
            passwords::from_outside(&config, ours.get("passfile").map(PathBuf::from))
    {
        config.password(password);
    }
    config.application_name(APPLICATION_NAME);
    config.keepalives_idle(KEEPALIVE);
    config.tcp_user_timeout(KEEPALIVE);
    Ok((config, wanted))
}

/// What the client does not know, and we do.
fn is_ours(key: &str) -> bool {
    key.starts_with("ssl") || key == "passfile"
}

/// The client's part of an address, and ours by key. The address is in no message: it can hold a password, even where it
/// cannot be read.
fn of_url(url: &str) -> Result<(Config, BTreeMap<String, String>), Error> {
    let wrong = || {
        Error::Config(
            "the address of the PostgreSQL server cannot be read: it should be \
             postgres://user@host:port/database (what is special in a name or password is written as %40 and the like)"
                .into(),
        )
    };
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut ours, mut theirs) = (BTreeMap::new(), Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((key, value)) if is_ours(key) => {
                let value = percent_decode_str(value).decode_utf8();
                ours.insert(key.to_owned(), value.map_err(|_| wrong())?.into_owned());
            }
            _ => theirs.push(pair),
        }
    }
    let url = match theirs.as_slice() {
        [] => place.to_owned(),
        theirs => format!("{place}?{}", theirs.join("&")),
    };
    Ok((url.parse().map_err(|_| wrong())?, ours))
}

fn of_keys(keys: &BTreeMap<String, String>) -> Result<Config, Error> {
    let mut config = Config::new();
    let wrong =
        |key: &str, wanted: &str| Error::Config(format!("database.args.{key} should be {wanted}"));
    for (key, value) in keys {
        match key.as_str() {
            "host" => {
                for host in value.split(',').filter(|h| !h.is_empty()) {
                    config.host(host);
                }
            }
            "hostaddr" => {
                for address in value.split(',') {
                    let address = address.parse();
                    config.hostaddr(address.map_err(|_| wrong(key, "an IP address"))?);
                }
            }
            "port" => {
                for port in value.split(',') {
                    config.port(port.parse().map_err(|_| wrong(key, "a number"))?);
                }
            }
            "user" => _ = config.user(value),
            "password" => _ = config.password(value),
            "dbname" | "database" => _ = config.dbname(value),
            "options" => _ = config.options(value),
            "connect_timeout" => {
                let seconds: u64 = value
                    .parse()
                    .map_err(|_| wrong(key, "a number of seconds"))?;
                if seconds > 0 {
                    // As libpq: less than two seconds is too little for anybody.
                    config.connect_timeout(Duration::from_secs(seconds.max(2)));
                }
            }
            // The rest is for the pool of Synapse, or for libpq alone.
            _ => {}
        }
    }
    if config.get_hosts().is_empty() && !config.get_hostaddrs().is_empty() {
        for address in config.get_hostaddrs().to_vec() {
            config.host(&address.to_string());
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::super::encryption::{Mode, Roots};
    use super::*;
    use postgres::config::Host;

    fn keys(pairs: &[(&str, &str)]) -> Server {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Server::Keys(pairs.collect())
    }

    #[test]
    fn arguments_of_a_homeserver_yaml_are_understood() {
        let (config, _) = configuration(&keys(&[
            ("user", "synapse"),
            ("password", "s"),
            ("dbname", "synapse"),
            ("host", "db.example"),
            ("port", "5433"),
            ("connect_timeout", "7"),
            ("sslmode", "prefer"),
            ("cp_min", "5"),
            ("cp_max", "10"),
        ]))
        .expect("understood");
        assert_eq!(config.get_hosts(), [Host::Tcp("db.example".into())]);
        assert_eq!(config.get_ports(), [5433]);
        assert_eq!(config.get_user(), Some("synapse"));
        assert_eq!(config.get_dbname(), Some("synapse"));
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(7)));
        let (socket, _) =
            configuration(&keys(&[("host", "/run/pg"), ("database", "d")])).expect("a socket");
        assert_eq!(socket.get_hosts(), [Host::Unix("/run/pg".into())]);
        assert_eq!(socket.get_dbname(), Some("d"));
    }

    #[test]
    fn addresses_are_understood_and_what_is_wrong_with_one_is_said_without_it() {
        let url = |text: &str| configuration(&Server::Url(text.into()));
        let (config, wanted) =
            url("postgres://u:p@h:6000/d?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fca")
                .expect("understood");
        assert_eq!(wanted.mode, Mode::VerifyFull);
        assert_eq!(wanted.roots, Some(Roots::File("/ca".into())));
        assert_eq!(config.get_hosts(), [Host::Tcp("h".into())]);
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(3)));
        let (socket, _) = url("postgres://%2Frun%2Fpg/d").expect("understood");
        assert_eq!(socket.get_hosts(), [Host::Unix("/run/pg".into())]);
        for wrong in [
            "postgres://u:hunter2@h:port/d",
            "postgres://u:p@h/d?hunter2=1",
            "postgres://h/d?sslmode=hunter2",
            "postgres://u:hunter2@h/d?sslmode=verify-ca&sslrootcert=system",
        ] {
            let error = url(wrong).expect_err(wrong).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
