//! What a `homeserver.yaml` says: Synapse's own keys as they stand, and one block of ours.
//!
//! Other blocks are not ours and are ignored; a misspelt key inside our block is refused with the list of right ones.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Config, HomeserverApi, HomeserverPolicy, Listen, Secret, event_signing, retention};
use crate::database::{Database, Server};
use crate::endpoints::HomeserverEndpoints;
use crate::error::Error;
use crate::ids::UserId;
use crate::time::{Millis, parse_duration};

/// The keys of our block, with what each takes.
const OUR_KEYS: &[(&str, &str)] = &[
    (
        "listen",
        "a list of addresses: \"127.0.0.1:8009\", \"unix:/run/roomkeeper/control.sock\"",
    ),
    (
        "admin_token_path",
        "a file that holds the static admin token",
    ),
    ("admin_user", "the user id the static token stands for"),
    ("ledger", "a file for roomkeeper's own bookkeeping"),
    ("workers", "a number of threads, 1 to 64"),
    ("batch", "{events: 5000, millis: 500}"),
    ("overwrite_deleted", "true or false"),
    ("keep_jobs", "a duration such as 90d"),
    ("foreign_keys", "auto or server"),
    (
        "homeserver",
        "{running: refuse | beside, url: …, admin_token_path: …}",
    ),
];

/// The keys of `batch` in our block.
const BATCH_KEYS: &[(&str, &str)] = &[
    ("events", "a number, 1 to 1000000"),
    ("millis", "a number, 10 to 60000"),
];

/// The keys of `homeserver` in our block.
const HOMESERVER_KEYS: &[(&str, &str)] = &[
    ("running", "refuse or beside"),
    ("url", "the homeserver's own address"),
    (
        "admin_token_path",
        "a file that holds an admin's access token",
    ),
];

/// Reads the files in order; a top-level key of a later file replaces that of an earlier one, as Synapse merges them.
///
/// # Errors
/// [`Error::Config`] with the file, the key and what would do.
pub fn load(files: &[PathBuf]) -> Result<Config, Error> {
    let mut merged = Map::new();
    for file in files {
        let text = fs::read_to_string(file).map_err(|e| {
            Error::Config(format!(
                "the configuration file {} cannot be read: {e}",
                file.display()
            ))
        })?;
        merged.extend(parse(&text).map_err(|e| Error::Config(format!("{}: {e}", file.display())))?);
    }
    let directory = files
        .first()
        .and_then(|f| f.parent())
        .unwrap_or(Path::new(""));
    interpret(&merged, directory)
}

/// The one place that knows a YAML library.
fn parse(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Object(keys)) => Ok(keys),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err("not a mapping of keys to values".into()),
        // Without the lines around the place: there may be secrets in them.
        Err(e) => Err(match e.location() {
            Some(at) => format!(
                "line {}, column {}: not YAML as it should be",
                at.line(),
                at.column()
            ),
            None => "not YAML as it should be".into(),
        }),
    }
}

fn interpret(keys: &Map<String, Value>, directory: &Path) -> Result<Config, Error> {
    let server_name = text(keys, "server_name")?.ok_or_else(|| {
        Error::Config("server_name is missing: it is the domain of the homeserver".into())
    })?;
    let mut config = Config::for_database(database(keys)?, &server_name);
    config.endpoints = endpoints(keys, directory)?;
    config.retention = retention::read(keys.get("retention"))?;
    config.event_signing = event_signing::read(keys, directory, &server_name)?;
    config.delegated_auth = is_delegated(keys);
    config.account_validity = keys
        .get("account_validity")
        .and_then(|v| v.get("enabled"))
        .and_then(Value::as_bool)
        .unwrap_or(false);
    config.relation_type_filters = keys
        .get("experimental_features")
        .and_then(|v| v.get("msc3874_enabled"))
        .and_then(Value::as_bool)
        .unwrap_or(false);
    match keys.get("roomkeeper") {
        None | Some(Value::Null) => {}
        Some(Value::Object(ours)) => read_ours(ours, directory, &mut config)?,
        Some(other) => return Err(wrong("roomkeeper", other, "a block of keys")),
    }
    Ok(config)
}

fn database(keys: &Map<String, Value>) -> Result<Database, Error> {
    if keys.get("databases").is_some_and(|v| !v.is_null()) {
        return Err(Error::Refused(
            "the configuration splits the data over several databases (`databases:`); roomkeeper works on one that \
             holds everything"
                .into(),
        ));
    }
    let block = keys.get("database").unwrap_or(&Value::Null);
    match block.get("name").and_then(Value::as_str) {
        Some("sqlite3") => {}
        Some("psycopg2") => return server(block.get("args")),
        _ => {
            return Err(wrong(
                "database.name",
                block.get("name").unwrap_or(&Value::Null),
                "sqlite3 or psycopg2",
            ));
        }
    }
    match block
        .get("args")
        .and_then(|args| args.get("database"))
        .and_then(Value::as_str)
    {
        Some(":memory:") => Err(Error::Config(
            "database.args.database: a database in memory is in no file".into(),
        )),
        Some(path) => Ok(Database::File(path.into())),
        None => Err(wrong(
            "database.args.database",
            &Value::Null,
            "the path of the database file",
        )),
    }
}

/// The arguments that Synapse hands to libpq. What they mean, the store knows. They are in no message: one of them is
/// the password.
fn server(args: Option<&Value>) -> Result<Database, Error> {
    let Some(Value::Object(args)) = args else {
        return Err(Error::Config(
            "database.args should say how to reach the PostgreSQL server: user, password, dbname, host, …".into(),
        ));
    };
    let mut keys = BTreeMap::new();
    for (key, value) in args {
        let value = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => i32::from(*flag).to_string(),
            _ => {
                return Err(Error::Config(format!(
                    "database.args.{key} should be a text or a number"
                )));
            }
        };
        keys.insert(key.clone(), value);
    }
    Ok(Database::Server(Server::Keys(keys)))
}

fn endpoints(keys: &Map<String, Value>, directory: &Path) -> Result<HomeserverEndpoints, Error> {
    // A relative one lies where the homeserver was started. It may appear later, so all places are kept.
    let pid_files = text(keys, "pid_file")?.map(|path| match Path::new(&path).is_absolute() {
        true => vec![path.into()],
        false => vec![directory.join(&path), path.into()],
    });
    let mut found = HomeserverEndpoints {
        pid_files: pid_files.unwrap_or_default(),
        listeners: Vec::new(),
    };
    let Some(Value::Array(listeners)) = keys.get("listeners") else {
        return Ok(found);
    };
    for listener in listeners {
        let port = match listener.get("port") {
            Some(Value::String(port)) => port.parse().ok(),
            Some(port) => port.as_u64().and_then(|port| u16::try_from(port).ok()),
            None => None,
        };
        let Some(port) = port.filter(|port| *port > 0) else {
            continue;
        };
        let addresses = match (listener.get("bind_addresses"), listener.get("bind_address")) {
            (Some(Value::Array(list)), _) if !list.is_empty() => {
                list.iter().filter_map(Value::as_str).collect()
            }
            (_, Some(Value::String(one))) => vec![one.as_str()],
            _ => vec!["::", "0.0.0.0"],
        };
        for address in addresses {
            let name = match address {
                "localhost" => "127.0.0.1",
                address => address,
            };
            if let Ok(ip) = name.parse::<IpAddr>() {
                // Listening everywhere is reached through this machine's own address.
                let ip = match ip {
                    IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
                    IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
                    ip => ip,
                };
                found.listeners.push(SocketAddr::new(ip, port));
            }
        }
    }
    Ok(found)
}

/// U-13: access tokens are kept by a Matrix Authentication Service.
fn is_delegated(keys: &Map<String, Value>) -> bool {
    let enabled = |block: Option<&Value>| {
        block
            .and_then(|b| b.get("enabled"))
            .and_then(Value::as_bool)
            .unwrap_or(false)
    };
    enabled(keys.get("matrix_authentication_service"))
        || enabled(
            keys.get("experimental_features")
                .and_then(|e| e.get("msc3861")),
        )
}

/// The block with the present names of its keys. Where a former and the present one are given, the present one counts.
fn with_present_names(ours: &Map<String, Value>) -> Map<String, Value> {
    let mut ours = ours.clone();
    for (former, present) in [("stride", "batch")] {
        if let Some(value) = ours.remove(former) {
            log::warn!("roomkeeper.{former} is now called roomkeeper.{present}: rename it there");
            ours.entry(present).or_insert(value);
        }
    }
    ours
}

/// Reads our block. Relative paths in it start at `directory`, that of the first file.
fn read_ours(
    ours: &Map<String, Value>,
    directory: &Path,
    config: &mut Config,
) -> Result<(), Error> {
    let ours = &with_present_names(ours);
    refuse_unknown("roomkeeper", ours, OUR_KEYS)?;
    for (key, value) in ours {
        match key.as_str() {
            "listen" => config.listen = listen(value, directory)?,
            "admin_token_path" => {
                let path = directory.join(string("roomkeeper.admin_token_path", value)?);
                config.admin_token = Some(secret("roomkeeper.admin_token_path", &path)?);
            }
            "admin_user" => {
                let user = UserId::new(string("roomkeeper.admin_user", value)?);
                if !user.is_local(&config.server_name) || !user.has_localpart() {
                    return Err(Error::Config(format!(
                        "roomkeeper.admin_user is {user}, and should be a user of this server: @name:{}",
                        config.server_name
                    )));
                }
                config.admin_user = user;
            }
            "ledger" => {
                let file = string("roomkeeper.ledger", value)?;
                if file.is_empty() {
                    return Err(wrong("roomkeeper.ledger", value, "a file"));
                }
                config.ledger = directory.join(file);
            }
            "workers" => config.workers = number("roomkeeper.workers", value, 1, 64)? as usize,
            "batch" => {
                let block = mapping("roomkeeper.batch", value)?;
                refuse_unknown("roomkeeper.batch", block, BATCH_KEYS)?;
                if let Some(value) = block.get("events") {
                    config.batch.events = number("roomkeeper.batch.events", value, 1, 1_000_000)?;
                }
                if let Some(value) = block.get("millis") {
                    config.batch.millis = number("roomkeeper.batch.millis", value, 10, 60_000)?;
                }
            }
            "overwrite_deleted" => {
                config.overwrite_deleted = boolean("roomkeeper.overwrite_deleted", value)?
            }
            "foreign_keys" => {
                config.batch.check_in_bulk =
                    match string("roomkeeper.foreign_keys", value)?.as_str() {
                        "auto" => true,
                        "server" => false,
                        _ => return Err(wrong("roomkeeper.foreign_keys", value, "auto or server")),
                    };
            }
            "keep_jobs" => config.keep_jobs = duration("roomkeeper.keep_jobs", value)?,
            "homeserver" => {
                let block = mapping("roomkeeper.homeserver", value)?;
                refuse_unknown("roomkeeper.homeserver", block, HOMESERVER_KEYS)?;
                config.homeserver = match block.get("running") {
                    None => HomeserverPolicy::RequireStopped,
                    Some(Value::String(s)) if s == "refuse" => HomeserverPolicy::RequireStopped,
                    Some(Value::String(s)) if s == "beside" => HomeserverPolicy::AllowRunning,
                    Some(other) => {
                        return Err(wrong(
                            "roomkeeper.homeserver.running",
                            other,
                            "refuse or beside",
                        ));
                    }
                };
                config.homeserver_api = homeserver_api(block, directory)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where the homeserver is, and what lets us in: both or neither.
fn homeserver_api(
    block: &Map<String, Value>,
    directory: &Path,
) -> Result<Option<HomeserverApi>, Error> {
    let path_key = "roomkeeper.homeserver.admin_token_path";
    let url = block
        .get("url")
        .map(|value| string("roomkeeper.homeserver.url", value))
        .transpose()?;
    let path = block
        .get("admin_token_path")
        .map(|value| string(path_key, value))
        .transpose()?;
    match (url, path) {
        (None, None) => Ok(None),
        (Some(url), Some(path)) => {
            let token = secret(path_key, &directory.join(path))?;
            HomeserverApi::at(&url, token).map(Some)
        }
        _ => Err(Error::Config(
            "roomkeeper.homeserver: url and admin_token_path belong together".into(),
        )),
    }
}

fn listen(value: &Value, directory: &Path) -> Result<Vec<Listen>, Error> {
    let Value::Array(list) = value else {
        return Err(wrong("roomkeeper.listen", value, "a list of addresses"));
    };
    list.iter()
        .map(|entry| {
            let text = string("roomkeeper.listen", entry)?;
            if let Some(path) = text.strip_prefix("unix:") {
                return Ok(Listen::Unix(directory.join(path)));
            }
            let address = text
                .to_socket_addrs()
                .ok()
                .and_then(|mut found| found.next());
            address
                .map(Listen::Tcp)
                .ok_or_else(|| wrong("roomkeeper.listen", entry, "host:port or unix:/path"))
        })
        .collect()
}

/// Reads a file that holds nothing but a secret. The secret is in no message.
fn secret(key: &str, path: &Path) -> Result<Secret, Error> {
    let text = fs::read_to_string(path)
        .map_err(|e| Error::Config(format!("{key}: {} cannot be read: {e}", path.display())))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(Error::Config(format!(
            "{key}: {} should hold one token on one line",
            path.display()
        )));
    }
    Ok(Secret::new(token))
}

fn refuse_unknown(
    block: &str,
    found: &Map<String, Value>,
    known: &[(&str, &str)],
) -> Result<(), Error> {
    let known: BTreeMap<&str, &str> = known.iter().copied().collect();
    match found.keys().find(|key| !known.contains_key(key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let list: Vec<String> = known
                .iter()
                .map(|(key, takes)| format!("  {key}: {takes}"))
                .collect();
            Err(Error::Config(format!(
                "{block}.{key} is not a key; the keys are\n{}",
                list.join("\n")
            )))
        }
    }
}

pub(super) fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
    // A key, a password or an address with one does not belong on a screen.
    let may_be_secret = [
        "key", "password", "secret", "token", "url", "args", "database",
    ]
    .iter()
    .any(|word| key.contains(word));
    if may_be_secret && !value.is_null() {
        return Error::Config(format!("{key} should be {wanted}"));
    }
    Error::Config(format!("{key} is {value}, and should be {wanted}"))
}

pub(super) fn text(keys: &Map<String, Value>, key: &str) -> Result<Option<String>, Error> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => string(key, value).map(Some),
    }
}

fn string(key: &str, value: &Value) -> Result<String, Error> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| wrong(key, value, "a text"))
}

pub(super) fn mapping<'a>(key: &str, value: &'a Value) -> Result<&'a Map<String, Value>, Error> {
    value
        .as_object()
        .ok_or_else(|| wrong(key, value, "a block of keys"))
}

fn boolean(key: &str, value: &Value) -> Result<bool, Error> {
    value
        .as_bool()
        .ok_or_else(|| wrong(key, value, "true or false"))
}

fn number(key: &str, value: &Value, least: i64, most: i64) -> Result<i64, Error> {
    value
        .as_i64()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| {
            wrong(
                key,
                value,
                &format!("a whole number from {least} to {most}"),
            )
        })
}

pub(super) fn duration(key: &str, value: &Value) -> Result<Millis, Error> {
    match value {
        Value::String(text) => {
            parse_duration(text).map_err(|e| Error::Config(format!("{key}: {e}")))
        }
        Value::Number(n) if n.is_i64() => Ok(Millis(n.as_i64().unwrap_or_default())),
        other => Err(wrong(key, other, "a duration such as 90d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Config, String> {
        let keys = parse(yaml)?;
        interpret(&keys, Path::new("")).map_err(|e| e.to_string())
    }

    const MINIMAL: &str = "server_name: example.org\ndatabase:\n  name: sqlite3\n  args:\n    database: /d/homeserver.db\n";

    #[test]
    fn a_homeserver_yaml_is_read_as_it_stands() {
        let config = read(&format!(
            "{MINIMAL}pid_file: /d/hs.pid\nlisteners:\n  - port: 8008\n    bind_addresses: ['::1', '127.0.0.1']\n    type: http\n\
             unknown_block: {{x: 1}}\nroomkeeper:\n  listen: ['127.0.0.1:8009', 'unix:/run/x.sock']\n  batch: {{events: 10}}\n\
             \n  keep_jobs: 3d\n  homeserver: {{running: beside}}\n"
        ))
        .expect("reads");
        assert_eq!(config.server_name, "example.org");
        assert_eq!(config.database.file(), Some(Path::new("/d/homeserver.db")));
        assert_eq!(config.ledger, Path::new("/d/homeserver.db.roomkeeper"));
        assert_eq!(config.endpoints.listeners.len(), 2);
        assert_eq!(config.endpoints.pid_files, [Path::new("/d/hs.pid")]);
        assert_eq!(config.batch.events, 10);
        assert_eq!(config.keep_jobs, crate::time::days(3));
        assert_eq!(config.homeserver, HomeserverPolicy::AllowRunning);
        assert_eq!(config.listen.len(), 2);
    }

    #[test]
    fn signs_of_life_are_looked_for_wherever_the_homeserver_may_have_meant_them() {
        let keys = parse(
            "pid_file: hs.pid\nlisteners:\n  - {port: '8008', bind_addresses: [localhost]}\n  \
             - {port: 8009, bind_addresses: []}\n",
        );
        let found = endpoints(&keys.expect("parses"), Path::new("/etc/x")).expect("reads");
        assert_eq!(
            found.pid_files,
            [Path::new("/etc/x/hs.pid"), Path::new("hs.pid")]
        );
        let listeners: Vec<String> = found.listeners.iter().map(|a| a.to_string()).collect();
        assert_eq!(
            listeners,
            ["127.0.0.1:8008", "[::1]:8009", "127.0.0.1:8009"]
        );
    }

    #[test]
    fn a_homeserver_yaml_with_postgresql_is_read_as_it_stands() {
        let config = read(
            "server_name: example.org:8448\ndatabase:\n  name: psycopg2\n  txn_limit: 10000\n  args:\n    user: synapse\n    \
             password: hunter2\n    dbname: synapse\n    host: db.example\n    port: 5432\n    cp_min: 5\n    cp_max: 10\n\
             roomkeeper: {ledger: /l, foreign_keys: server}\n",
        )
        .expect("reads");
        let Database::Server(Server::Keys(keys)) = &config.database else {
            panic!("{:?}", config.database);
        };
        assert_eq!(keys["port"], "5432");
        assert_eq!(keys["password"], "hunter2");
        assert!(!format!("{:?}", config.database).contains("hunter2"));
        assert_eq!(config.ledger, Path::new("/l"));
        assert!(!config.batch.check_in_bulk);
        let other = read(
            "server_name: example.org:8448\ndatabase: {name: psycopg2, args: {host: h, dbname: syn}}",
        );
        let ledger = other.expect("reads").ledger;
        assert!(
            ledger.ends_with("example.org_8448.syn.ledger"),
            "{ledger:?}"
        );
    }

    #[test]
    fn wrong_keys_and_values_are_refused_with_what_would_do() {
        for (block, says) in [
            ("roomkeeper: {lisen: []}", "roomkeeper.lisen is not a key"),
            (
                "roomkeeper: {workers: 0}",
                "roomkeeper.workers is 0, and should be a whole number from 1 to 64",
            ),
            (
                "roomkeeper: {homeserver: {running: maybe}}",
                "should be refuse or beside",
            ),
            ("roomkeeper: {keep_jobs: 3 days}", "is not a duration"),
            ("roomkeeper: {admin_user: root}", "a user of this server"),
            (
                "roomkeeper: {admin_user: '@a:elsewhere.org'}",
                "a user of this server",
            ),
            ("roomkeeper: 5", "roomkeeper is 5"),
            ("databases: {main: {}, state: {}}", "splits the data"),
            (
                "roomkeeper: {listen: ['nowhere']}",
                "host:port or unix:/path",
            ),
        ] {
            let error = read(&format!("{MINIMAL}{block}\n")).err().expect(block);
            assert!(error.contains(says), "{block}: {error}");
        }
        assert!(
            read("database: {name: sqlite3}")
                .err()
                .expect("no name")
                .contains("server_name")
        );
        assert!(
            read("server_name: x")
                .err()
                .expect("no database")
                .contains("database.name")
        );
    }

    const SAMPLE: &str = include_str!("../../etc/homeserver-example.yaml");

    /// The sample with every key given: `#key:` is one that has no value as it stands.
    fn switched_on() -> String {
        let mut on = String::new();
        for line in SAMPLE.lines() {
            let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
            let given = rest
                .strip_prefix('#')
                .filter(|key| key.starts_with(char::is_alphabetic));
            on.push_str(&format!("{indent}{}\n", given.unwrap_or(rest)));
        }
        on
    }

    #[test]
    fn a_former_name_of_a_key_is_still_read_and_the_present_one_counts_first() {
        for (keys, events) in [
            ("stride: {events: 7}", 7),
            ("stride: {events: 7}, batch: {events: 8}", 8),
        ] {
            let config = read(&format!("{MINIMAL}roomkeeper: {{{keys}}}\n"));
            assert_eq!(config.expect("reads").batch.events, events, "{keys}");
        }
    }

    #[test]
    fn the_sample_says_the_defaults() {
        let config = read(SAMPLE).expect("reads");
        let default = Config::for_database(config.database.clone(), &config.server_name);
        assert_eq!(config.workers, default.workers);
        assert_eq!(config.batch, default.batch);
        assert_eq!(config.overwrite_deleted, default.overwrite_deleted);
        assert_eq!(config.keep_jobs, default.keep_jobs);
        assert_eq!(config.homeserver, default.homeserver);
        assert_eq!(config.ledger, default.ledger);
        assert_eq!(config.listen, default.listen);
        assert_eq!(config.admin_token, default.admin_token);
        assert_eq!(config.admin_user, default.admin_user);
        // And it says them: nothing that has a default is left out.
        let keys = parse(SAMPLE).expect("parses");
        for key in ["workers", "overwrite_deleted", "keep_jobs"] {
            assert!(keys["roomkeeper"].get(key).is_some(), "{key}");
        }
        let on = parse(&switched_on()).expect("parses");
        let batch = &on["roomkeeper"]["batch"];
        assert_eq!(batch["events"], default.batch.events);
        assert_eq!(batch["millis"], default.batch.millis);
        assert_eq!(keys["roomkeeper"]["homeserver"]["running"], "refuse");
    }

    #[test]
    fn the_sample_has_every_key_and_no_other() {
        let keys = parse(&switched_on()).expect("parses");
        let ours = keys["roomkeeper"].as_object().expect("a block");
        for (block, known) in [
            (ours, OUR_KEYS),
            (ours["batch"].as_object().expect("a block"), BATCH_KEYS),
            (
                ours["homeserver"].as_object().expect("a block"),
                HOMESERVER_KEYS,
            ),
        ] {
            let mut found: Vec<&str> = block.keys().map(String::as_str).collect();
            let mut known: Vec<&str> = known.iter().map(|(key, _)| *key).collect();
            found.sort_unstable();
            known.sort_unstable();
            assert_eq!(found, known);
        }
        // What the sample proposes can be meant, too.
        let directory = tempfile::tempdir().expect("a directory");
        for file in ["admin.token", "synapse.token"] {
            std::fs::write(directory.path().join(file), "secret\n").expect("writes");
        }
        let proposed =
            switched_on().replace("/etc/roomkeeper", &directory.path().to_string_lossy());
        let config = read(&proposed).expect("reads");
        assert_eq!(config.admin_token, Some(Secret::new("secret")));
        assert_eq!(config.listen.len(), 2);
        let api = config.homeserver_api.expect("both keys are there");
        assert_eq!(api.address, "127.0.0.1:8008");
        let default = Config::for_database(config.database.clone(), &config.server_name);
        assert_eq!(config.admin_user, default.admin_user);
    }

    #[test]
    fn relative_paths_of_our_block_start_where_the_file_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("homeserver.yaml");
        let block = "roomkeeper: {ledger: ledger.db, listen: ['unix:s']}\n";
        std::fs::write(&file, format!("{MINIMAL}{block}")).expect("writes");
        let config = load(&[file]).expect("reads");
        assert_eq!(config.ledger, directory.path().join("ledger.db"));
        assert_eq!(config.listen, [Listen::Unix(directory.path().join("s"))]);
    }
}
