//! From what is written of a server to a connection, as libpq would read it (K-4).
//!
//! What libpq knows and we do not is refused by name: ignored, it might let another server answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use postgres::config::{ChannelBinding, Host};
use postgres::{Client, Config, SimpleQueryMessage};

use super::encryption::{self, Encryption, Wanted};
use super::{APPLICATION_NAME, passwords};
use crate::database::Server;
use crate::error::{Error, ServerError, StoreError};

/// Where servers have their sockets, when no host is said: Debian's place, and PostgreSQL's own.
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How long connecting may take, unless the configuration says.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After what silence the other side is asked whether it is there, and how long it may leave what was sent unanswered.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The port of a server, where none is said.
const PORT: u16 = 5432;

/// What is understood, and what libpq asks the environment for where it is not written. Those of encryption are read
/// where it is.
const UNDERSTOOD: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("dbname", "PGDATABASE"),
    ("options", "PGOPTIONS"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
];

/// What makes no difference to who answers and how safely.
const IGNORED: &[&str] = &[
    "application_name",
    "async",
    "client_encoding",
    "connection_factory",
    "cursor_factory",
    "fallback_application_name",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
];

/// What is not supported, where it is in the environment, and the values with which it says no more than is so anyway.
const NOT_SUPPORTED: &[(&str, &str, &[&str])] = &[
    ("service", "PGSERVICE", &[]),
    ("servicefile", "", &[]),
    ("dsn", "", &[]),
    ("gssdelegation", "PGGSSDELEGATION", &["0"]),
    ("gssencmode", "PGGSSENCMODE", &["disable", "prefer"]),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", &["3.0"]),
    ("replication", "", &["0", "false", "no", "off"]),
    ("require_auth", "PGREQUIREAUTH", &[]),
    ("requirepeer", "PGREQUIREPEER", &[]),
    ("requiressl", "PGREQUIRESSL", &["0"]),
    ("scram_client_key", "", &[]),
    ("scram_server_key", "", &[]),
    (
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        &["TLSv1.3"],
    ),
    (
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
    ),
    ("sslcertmode", "PGSSLCERTMODE", &["allow"]),
    ("sslcrl", "PGSSLCRL", &[]),
    ("sslcrldir", "PGSSLCRLDIR", &[]),
    ("sslnegotiation", "PGSSLNEGOTIATION", &["postgres"]),
    ("sslpassword", "", &[]),
];

/// Connects; `refused` makes an error of the client's.
pub(super) fn connect(
    server: &Server,
    refused: impl Fn(postgres::Error) -> Error,
) -> Result<(Client, Encryption), Error> {
    Target::of(server, |name| std::env::var(name).ok())?.connect(refused)
}

/// Refuses what [`connect`] would refuse without asking anybody (K-4).
pub(in crate::store) fn refuse_unsupported(server: &Server) -> Result<(), Error> {
    Target::of(server, |name| std::env::var(name).ok()).map(drop)
}

/// What a session must be for `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

const SESSIONS: [(&str, Session); 6] = [
    ("any", Session::Any),
    ("read-write", Session::ReadWrite),
    ("read-only", Session::ReadOnly),
    ("primary", Session::Primary),
    ("standby", Session::Standby),
    ("prefer-standby", Session::PreferStandby),
];

/// One of the places where the server may be.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    host: Host,
    address: Option<IpAddr>,
    port: u16,
}

impl Place {
    /// What stands for it in a file of passwords.
    fn in_passfile(&self) -> String {
        match &self.host {
            Host::Tcp(host) => host.clone(),
            Host::Unix(path) if SOCKETS.iter().any(|usual| path == Path::new(usual)) => {
                "localhost".into()
            }
            Host::Unix(path) => path.display().to_string(),
        }
    }
}

/// Where to connect, as whom, and what is wanted there.
#[derive(Debug)]
pub(super) struct Target {
    places: Vec<Place>,
    user: String,
    database: String,
    /// What was given; without, a file of passwords is looked into.
    password: Option<String>,
    passfile: Option<PathBuf>,
    /// All but the above.
    config: Config,
    session: Session,
    wanted: Wanted,
}

impl Target {
    pub(super) fn of(
        server: &Server,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let written = match server {
            Server::Url(url) => of_url(url)?,
            Server::Keys(keys) => of_keys(keys)?,
        };
        for (key, variable, harmless) in NOT_SUPPORTED {
            let in_environment = || environment(variable).filter(|_| !variable.is_empty());
            let (name, value) = match written.get(*key) {
                Some(value) => (format!("database.args.{key}"), value.clone()),
                None => match in_environment() {
                    Some(value) => (format!("the environment variable {variable}"), value),
                    None => continue,
                },
            };
            if !value.is_empty() && !harmless.contains(&value.as_str()) {
                return Err(Error::Config(format!(
                    "{name} is not supported: without it another server might answer, or a less safe connection would be \
                     made. Write out what it stands for: host, port, user, dbname, …"
                )));
            }
        }
        // What is written counts, though it is empty; what is empty then is as if there were nothing (but a password of
        // the environment).
        let said = |key: &str| {
            let variable = UNDERSTOOD.iter().find(|(known, _)| *known == key)?.1;
            let written = written.get(key).cloned();
            written
                .or_else(|| environment(variable))
                .filter(|value| !value.is_empty())
        };
        let wrong = |key: &str, wanted: &str| {
            Err(Error::Config(format!(
                "database.args.{key} should be {wanted}"
            )))
        };
        let mut config = Config::new();
        if let Some(options) = said("options") {
            config.options(&options);
        }
        config.connect_timeout(CONNECT_TIMEOUT);
        if let Some(text) = said("connect_timeout") {
            let Ok(seconds) = text.trim().parse::<i64>() else {
                return wrong("connect_timeout", "a number of seconds");
            };
            if let Ok(seconds @ 1..) = u64::try_from(seconds) {
                // As libpq: less than two seconds is too little for anybody.
                config.connect_timeout(Duration::from_secs(seconds.max(2)));
            }
        }
        let session = match said("target_session_attrs") {
            // As libpq: to ask for nothing is not to say nothing.
            None if written.contains_key("target_session_attrs") => {
                return wrong("target_session_attrs", "left out, or say what is wanted");
            }
            None => Session::Any,
            Some(word) => match SESSIONS.iter().find(|(name, _)| *name == word) {
                Some((_, session)) => *session,
                None => {
                    let names = SESSIONS.map(|(name, _)| name).join(", ");
                    return wrong("target_session_attrs", &format!("one of {names}"));
                }
            },
        };
        match said("channel_binding").as_deref() {
            None | Some("prefer") => {}
            Some("disable") => _ = config.channel_binding(ChannelBinding::Disable),
            Some("require") => _ = config.channel_binding(ChannelBinding::Require),
            Some(_) => return wrong("channel_binding", "disable, prefer or require"),
        }
        let user = match said("user") {
            Some(user) => user,
            None => whoami::username().map_err(|e| {
                Error::Config(format!(
                    "no user is named for the PostgreSQL server, and who this process is cannot be found out: {e}"
                ))
            })?,
        };
        config.application_name(APPLICATION_NAME);
        config.keepalives_idle(KEEPALIVE);
        config.tcp_user_timeout(KEEPALIVE);
        Ok(Self {
            places: places(said("host"), said("hostaddr"), said("port"))?,
            database: said("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: said("password"),
            passfile: said("passfile").map(PathBuf::from),
            config,
            session,
            wanted: Wanted::of(|key| {
                written
                    .get(key)
                    .cloned()
                    .or_else(|| environment(&format!("PG{}", key.to_uppercase())))
            })?,
        })
    }

    /// Tries one place after the other. Where a server was reached and does not want us, it is not asked for elsewhere.
    pub(super) fn connect(
        &self,
        refused: impl Fn(postgres::Error) -> Error,
    ) -> Result<(Client, Encryption), Error> {
        let rounds: &[Session] = match self.session {
            Session::PreferStandby => &[Session::Standby, Session::Any],
            _ => &[self.session],
        };
        let mut failed = None;
        for session in rounds {
            for place in &self.places {
                let mut config = self.at(place);
                match encryption::connect(&mut config, &self.wanted, &refused) {
                    Ok((mut client, encryption)) => {
                        match session.misses(&mut client).map_err(&refused)? {
                            None => return Ok((client, encryption)),
                            Some(why) => failed = Some(unsuited(why)),
                        }
                    }
                    Err(e) if is_answer(&e) => return Err(e),
                    Err(e) => failed = Some(e),
                }
            }
        }
        Err(failed.unwrap_or_else(|| Error::Bug("there was no place to connect to".into())))
    }

    fn at(&self, place: &Place) -> Config {
        let mut config = self.config.clone();
        config
            .user(&self.user)
            .dbname(&self.database)
            .port(place.port);
        match &place.host {
            Host::Tcp(host) => config.host(host),
            Host::Unix(path) => config.host_path(path),
        };
        if let Some(address) = place.address {
            config.hostaddr(address);
        }
        let password = self.password.clone().or_else(|| {
            let (host, port) = (place.in_passfile(), place.port.to_string());
            passwords::in_file(
                self.passfile.as_deref(),
                [&host, &port, &self.database, &self.user],
            )
        });
        if let Some(password) = password {
            config.password(password);
        }
        config
    }
}

impl Session {
    /// Why a session is none of this kind; `None` where it is one.
    fn misses(self, client: &mut Client) -> Result<Option<&'static str>, postgres::Error> {
        /// Whether it is a standby, and whether its transactions are read-only.
        const WHAT_IT_IS: &str = "VALUES (pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only'))";
        if self == Self::Any || self == Self::PreferStandby {
            return Ok(None);
        }
        let answer = client.simple_query(WHAT_IT_IS)?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((row.get(0) == Some("t"), row.get(1) == Some("on")))
            }
            _ => None,
        });
        let (is_standby, is_read_only) = row.unwrap_or((false, false));
        Ok(match self {
            Self::Primary if is_standby => Some("it is a standby"),
            Self::Standby if !is_standby => Some("it is no standby"),
            Self::ReadWrite if is_standby || is_read_only => Some("it takes no writes"),
            Self::ReadOnly if !is_standby && !is_read_only => Some("it takes writes"),
            _ => None,
        })
    }
}

/// A server that is not of the kind that was asked for; after a failover it may be.
fn unsuited(why: &str) -> Error {
    Error::Store {
        doing: "connect to the PostgreSQL server",
        source: StoreError::Server(ServerError {
            code: None,
            text: format!(
                "no server is what target_session_attrs asks for; of the last one: {why}"
            ),
            is_disconnected: true,
        }),
    }
}

/// Whether a server answered, and will not have us. One that is starting or stopping has not answered.
fn is_answer(e: &Error) -> bool {
    /// `cannot_connect_now`.
    const NOT_NOW: &str = "57P03";
    match e {
        Error::Store {
            source: StoreError::Server(said),
            ..
        } => said.code.as_deref().is_some_and(|code| code != NOT_NOW),
        _ => true,
    }
}

/// Host by host, as the three lists say: as many addresses and ports as hosts, or one port for all.
fn places(
    hosts: Option<String>,
    addresses: Option<String>,
    ports: Option<String>,
) -> Result<Vec<Place>, Error> {
    let wrong =
        |key: &str, wanted: &str| Error::Config(format!("database.args.{key} should be {wanted}"));
    let list = |text: &Option<String>| -> Vec<String> {
        let parts = text.iter().flat_map(|text| text.split(','));
        parts.map(|part| part.trim().to_owned()).collect()
    };
    let (hosts, addresses, ports) = (list(&hosts), list(&addresses), list(&ports));
    let count = hosts.len().max(addresses.len()).max(1);
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(wrong("hostaddr", "as many addresses as there are hosts"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(wrong("port", "one number, or as many as there are hosts"));
    }
    let of = |list: &[String], at: usize| list.get(at).filter(|text| !text.is_empty()).cloned();
    (0..count)
        .map(|at| {
            let address = of(&addresses, at)
                .map(|address| address.parse::<IpAddr>())
                .transpose()
                .map_err(|_| wrong("hostaddr", "an IP address"))?;
            let port = match of(&ports, if ports.len() == 1 { 0 } else { at }) {
                None => PORT,
                Some(port) => port
                    .parse()
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| wrong("port", "a number from 1 to 65535"))?,
            };
            let host = match (of(&hosts, at), address) {
                // An @ begins the name of a socket that is in no directory.
                (Some(host), _) if host.starts_with(['/', '@']) => Host::Unix(host.into()),
                (Some(host), _) => Host::Tcp(host),
                (None, Some(address)) => Host::Tcp(address.to_string()),
                (None, None) => {
                    let found = SOCKETS.iter().find(|d| Path::new(d).is_dir());
                    Host::Unix(found.unwrap_or(&SOCKETS[0]).into())
                }
            };
            Ok(Place {
                host,
                address,
                port,
            })
        })
        .collect()
}

fn is_known(key: &str) -> bool {
    UNDERSTOOD.iter().any(|(known, _)| *known == key)
        || NOT_SUPPORTED.iter().any(|(known, _, _)| *known == key)
        || IGNORED.contains(&key)
}

/// The keys of a homeserver's `database.args`, by libpq's names.
fn of_keys(keys: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    let mut written = BTreeMap::new();
    for (key, value) in keys {
        let name = match key.as_str() {
            // psycopg2's other name for it.
            "database" => "dbname",
            // For the pool of Synapse.
            key if key.starts_with("cp_") => continue,
            key if is_known(key) => key,
            key => {
                return Err(Error::Config(format!(
                    "database.args.{key} is no parameter of a PostgreSQL connection"
                )));
            }
        };
        written.insert(name.to_owned(), value.clone());
    }
    Ok(written)
}

/// The parts of `postgres://user:password@host:port,host:port/name?key=value`. The address is in no message: it can hold a
/// password, even where it cannot be read.
fn of_url(url: &str) -> Result<BTreeMap<String, String>, Error> {
    read_url(url).ok_or_else(|| {
        Error::Config(
            "the address of the PostgreSQL server cannot be read: it should be \
             postgres://user@host:port/database (what is special in a name or password is written as %40 and the like)"
                .into(),
        )
    })
}

fn read_url(url: &str) -> Option<BTreeMap<String, String>> {
    let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let rest = url
        .strip_prefix("postgres://")
        .or(url.strip_prefix("postgresql://"))?;
    let mut written = BTreeMap::new();
    // As libpq: an @ that no slash comes before ends who connects.
    let rest = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => {
            let (user, password) = match rest[..at].split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (&rest[..at], None),
            };
            written.insert("user".to_owned(), decoded(user)?);
            if let Some(password) = password {
                written.insert("password".to_owned(), decoded(password)?);
            }
            &rest[at + 1..]
        }
        _ => rest,
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (places, name) = match place.split_once('/') {
        Some((places, name)) => (places, Some(name)),
        None => (place, None),
    };
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        written.insert("dbname".to_owned(), decoded(name)?);
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for place in places.split(',') {
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                let port = match after {
                    "" => "",
                    after => after.strip_prefix(':')?,
                };
                (host, port)
            }
            None => place.split_once(':').unwrap_or((place, "")),
        };
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        hosts.push(decoded(host)?);
        ports.push(port.to_owned());
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        written.insert("host".to_owned(), hosts.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        written.insert("port".to_owned(), ports.join(","));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = match (decoded(key)?, decoded(value)?) {
            (key, value) if key == "ssl" && value == "true" => {
                ("sslmode".to_owned(), "require".to_owned())
            }
            pair => pair,
        };
        if !is_known(&key) {
            return None;
        }
        written.insert(key, value);
    }
    Some(written)
}

#[cfg(test)]
mod tests {
    use super::super::encryption::{Mode, Roots};
    use super::*;

    fn target(server: &Server) -> Result<Target, Error> {
        Target::of(server, |_| None)
    }

    fn keys(pairs: &[(&str, &str)]) -> Server {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Server::Keys(pairs.collect())
    }

    fn at(host: &str, port: u16) -> Place {
        Place {
            host: Host::Tcp(host.into()),
            address: None,
            port,
        }
    }

    #[test]
    fn arguments_of_a_homeserver_yaml_are_understood() {
        let found = target(&keys(&[
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
        assert_eq!(found.places, [at("db.example", 5433)]);
        assert_eq!((&*found.user, &*found.database), ("synapse", "synapse"));
        let config = found.at(&found.places[0]);
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(7)));
        let socket = target(&keys(&[("host", "/run/pg"), ("database", "d")])).expect("a socket");
        assert_eq!(socket.places[0].host, Host::Unix("/run/pg".into()));
        assert_eq!(socket.places[0].in_passfile(), "/run/pg");
        assert_eq!(socket.database, "d");
        let usual = target(&keys(&[])).expect("the usual place");
        assert_eq!(usual.places[0].in_passfile(), "localhost");
    }

    #[test]
    fn addresses_are_understood_and_what_is_wrong_with_one_is_said_without_it() {
        let url = |text: &str| target(&Server::Url(text.into()));
        let found =
            url("postgres://u:p@h:6000/d?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fca");
        let found = found.expect("understood");
        assert_eq!(found.wanted.mode, Mode::VerifyFull);
        assert_eq!(found.wanted.roots, Some(Roots::File("/ca".into())));
        assert_eq!(found.places, [at("h", 6000)]);
        assert_eq!(found.password.as_deref(), Some("p"));
        let socket = url("postgres://%2Frun%2Fpg/d").expect("understood");
        assert_eq!(socket.places[0].host, Host::Unix("/run/pg".into()));
        let several =
            url("postgres://u@a,b:7,[::1]:8/d?target_session_attrs=primary").expect("understood");
        assert_eq!(several.places, [at("a", 5432), at("b", 7), at("::1", 8)]);
        assert_eq!(several.session, Session::Primary);
        let special = url("postgresql://u%40x:p%2F%3F@h/a%20b").expect("understood");
        assert_eq!((&*special.user, &*special.database), ("u@x", "a b"));
        assert_eq!(special.password.as_deref(), Some("p/?"));
        for wrong in [
            "postgres://u:hunter2@h:port/d",
            "postgres://u:p@h/d?hunter2=1",
            "postgres://h/d?sslmode=hunter2",
            "postgres://u:hunter2@h/d?sslmode=verify-ca&sslrootcert=system",
            "postgres://u:hunter2@h/d?service=x",
            "postgres://u:hunter2@h:1,i:2,j/d?port=3,4",
        ] {
            let error = url(wrong).expect_err(wrong).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (key, value) in [
            ("service", "x"),
            ("dsn", "host=x"),
            ("requirepeer", "postgres"),
            ("sslcrl", "/crl"),
            ("gssencmode", "require"),
            ("ssl_min_protocol_version", "TLSv1.3"),
            ("replication", "database"),
            ("frobnicate", "1"),
        ] {
            let error = target(&keys(&[("host", "h"), (key, value)])).expect_err(key);
            assert!(error.to_string().contains(key), "{error}");
            assert_eq!(error.class().exit, crate::error::EXIT_USAGE);
        }
        for (variable, value) in [
            ("PGSERVICE", "x"),
            ("PGREQUIREPEER", "postgres"),
            ("PGSSLNEGOTIATION", "direct"),
        ] {
            let of = |name: &str| (name == variable).then(|| value.to_owned());
            let error = Target::of(&keys(&[("host", "h")]), of).expect_err(variable);
            assert!(error.to_string().contains(variable), "{error}");
        }
        for (key, value) in [
            ("service", ""),
            ("gssencmode", "prefer"),
            ("ssl_min_protocol_version", "TLSv1.2"),
            ("keepalives_idle", "10"),
        ] {
            assert!(
                target(&keys(&[("host", "h"), (key, value)])).is_ok(),
                "{key}"
            );
        }
    }
}
