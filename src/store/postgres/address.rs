//! From what is written of a server to a connection, as libpq would read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::config::{Host, SslMode};
use postgres::{CancelToken, Client, Config, NoTls};

use super::APPLICATION_NAME;
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
) -> Result<Client, Error> {
    configuration(server)?.connect(NoTls).map_err(refused)
}

/// Asks the server to stop what a connection does.
pub(super) fn cancel(token: &CancelToken) -> Result<(), postgres::Error> {
    token.cancel_query(NoTls)
}

/// What is written, as the client takes it.
fn configuration(server: &Server) -> Result<Config, Error> {
    let mut config = match server {
        Server::Url(url) => of_url(url)?,
        Server::Keys(keys) => of_keys(keys)?,
    };
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
        && let Some(password) = password_from_outside(&config)
    {
        config.password(password);
    }
    config.application_name(APPLICATION_NAME);
    config.keepalives_idle(KEEPALIVE);
    config.tcp_user_timeout(KEEPALIVE);
    Ok(config)
}

/// The address is in no message: it can hold a password, even where it cannot be read.
fn of_url(url: &str) -> Result<Config, Error> {
    // Kinds of `sslmode` that the client does not know are ours to understand.
    let (url, modes): (String, Vec<String>) = match url.split_once('?') {
        None => (url.to_owned(), Vec::new()),
        Some((place, query)) => {
            let (ssl, rest): (Vec<&str>, Vec<&str>) =
                query.split('&').partition(|pair| pair.starts_with("ssl"));
            let modes = ssl.iter().filter_map(|pair| pair.strip_prefix("sslmode="));
            (
                format!("{place}?{}", rest.join("&")),
                modes.map(str::to_owned).collect(),
            )
        }
    };
    let url = url.strip_suffix('?').unwrap_or(&url);
    let mut config: Config = url.parse().map_err(|_| {
        Error::Config(
            "the address of the PostgreSQL server cannot be read: it should be \
             postgres://user@host:port/database (what is special in a name or password is written as %40 and the like)"
                .into(),
        )
    })?;
    set_ssl_mode(&mut config, modes.last().map(String::as_str))?;
    Ok(config)
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
    set_ssl_mode(&mut config, keys.get("sslmode").map(String::as_str))?;
    Ok(config)
}

fn set_ssl_mode(config: &mut Config, mode: Option<&str>) -> Result<(), Error> {
    match mode {
        None | Some("disable" | "allow" | "prefer") => {
            config.ssl_mode(SslMode::Disable);
            Ok(())
        }
        Some("require" | "verify-ca" | "verify-full") => Err(Error::Config(
            "sslmode asks for an encrypted connection, which this roomkeeper was built without"
                .into(),
        )),
        Some(_) => Err(Error::Config(
            "sslmode should be disable, allow, prefer, require, verify-ca or verify-full".into(),
        )),
    }
}

/// `PGPASSWORD`, or the line of `~/.pgpass` that fits: ways to give a password that nobody else can see.
fn password_from_outside(config: &Config) -> Option<String> {
    if let Ok(password) = std::env::var("PGPASSWORD") {
        return Some(password);
    }
    let file = std::env::var_os("PGPASSFILE")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(Path::new(&home).join(".pgpass"))
        })?;
    let text = std::fs::read_to_string(file).ok()?;
    let host = match config.get_hosts().first()? {
        Host::Tcp(host) => host.clone(),
        Host::Unix(_) => "localhost".into(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let user = config.get_user()?;
    let name = config.get_dbname().unwrap_or(user);
    password_line(&text, [&host, &port.to_string(), name, user])
}

/// `host:port:database:user:password`, each but the last may be `*`; a backslash goes before a colon that is meant.
fn password_line(text: &str, wanted: [&str; 4]) -> Option<String> {
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let mut fields = Vec::new();
        let (mut field, mut letters) = (String::new(), line.chars());
        while let Some(letter) = letters.next() {
            match letter {
                '\\' => field.extend(letters.next()),
                ':' if fields.len() < 4 => fields.push(std::mem::take(&mut field)),
                letter => field.push(letter),
            }
        }
        fields.push(field);
        let fits = wanted
            .iter()
            .zip(&fields)
            .all(|(wanted, field)| field == "*" || field == wanted);
        if fields.len() == 5 && fits {
            return fields.pop();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(pairs: &[(&str, &str)]) -> Server {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Server::Keys(pairs.collect())
    }

    #[test]
    fn arguments_of_a_homeserver_yaml_are_understood() {
        let config = configuration(&keys(&[
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
        let socket =
            configuration(&keys(&[("host", "/run/pg"), ("database", "d")])).expect("a socket");
        assert_eq!(socket.get_hosts(), [Host::Unix("/run/pg".into())]);
        assert_eq!(socket.get_dbname(), Some("d"));
    }

    #[test]
    fn addresses_are_understood_and_what_is_wrong_with_one_is_said_without_it() {
        let url = |text: &str| configuration(&Server::Url(text.into()));
        let config =
            url("postgres://u:p@h:6000/d?sslmode=disable&connect_timeout=3").expect("understood");
        assert_eq!(config.get_hosts(), [Host::Tcp("h".into())]);
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(3)));
        let socket = url("postgres://%2Frun%2Fpg/d").expect("understood");
        assert_eq!(socket.get_hosts(), [Host::Unix("/run/pg".into())]);
        for wrong in [
            "postgres://u:hunter2@h:port/d",
            "postgres://u:p@h/d?hunter2=1",
            "postgres://h/d?sslmode=hunter2",
            "postgres://u:hunter2@h/d?sslmode=verify-full",
        ] {
            let error = url(wrong).expect_err(wrong).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_line_of_pgpass_that_fits_is_found() {
        let text = "# passwords\nh:5432:d:u:first\n*:*:*:u:a\\:b\\\\c:d\n";
        let found = |wanted| password_line(text, wanted);
        assert_eq!(found(["h", "5432", "d", "u"]).as_deref(), Some("first"));
        assert_eq!(found(["x", "1", "d", "u"]).as_deref(), Some("a:b\\c:d"));
        assert_eq!(found(["x", "1", "d", "v"]), None);
    }
}
