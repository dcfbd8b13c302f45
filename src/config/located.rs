//! Where the homeserver's data lies, and where a running homeserver would be met, as Synapse's own keys say.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::MediaStore;
use super::values::{mapping, string, text, wrong};
use super::yaml::{Map, Value};
use crate::database::{Database, Server};
use crate::endpoints::HomeserverEndpoints;
use crate::error::Error;

/// `database`, `databases` with one entry, or `database_path` (K-3), as Synapse weighs them.
pub(super) fn database(keys: &Map) -> Result<Database, Error> {
    let given = |key| keys.get(key).filter(|value| !value.is_null());
    let path = given("database_path");
    let block = match given("databases") {
        None => given("database"),
        Some(several) => {
            let only = the_only_one(several)?;
            let other = given("database").map(|_| "database");
            if let Some(other) = other.or(path.map(|_| "database_path")) {
                return Err(Error::Config(format!(
                    "{}: {other} and databases cannot both be given",
                    several.place()
                )));
            }
            Some(only)
        }
    };
    if let Some(path) = path {
        let is_file = block.is_none_or(|block| engine(block) == Some("sqlite3"));
        if is_file {
            return file_database("database_path", path);
        }
        path.warn("database_path is not used, because the database is no file of SQLite's".into());
    }
    let Some(block) = block else {
        return Err(Error::Config(
            "database is missing: {name: sqlite3 or psycopg2, args: …}".into(),
        ));
    };
    match engine(block) {
        Some("sqlite3") => {}
        Some("psycopg2") => return server(block.get("args")),
        _ => {
            let name = block.get("name").unwrap_or(block);
            return Err(wrong("database.name", name, "sqlite3 or psycopg2"));
        }
    }
    match block.get("args").and_then(|args| args.get("database")) {
        Some(path) => file_database("database.args.database", path),
        None => Err(wrong(
            "database.args.database",
            block,
            "the path of the database file",
        )),
    }
}

/// What Synapse takes where no engine is named is SQLite.
fn engine(block: &Value) -> Option<&str> {
    match block.get("name") {
        None => block.as_map().map(|_| "sqlite3"),
        Some(name) => name.as_str(),
    }
}

fn file_database(key: &str, value: &Value) -> Result<Database, Error> {
    match string(key, value)?.as_str() {
        ":memory:" => Err(Error::Config(format!(
            "{}: {key}: a database in memory is in no file",
            value.place()
        ))),
        "" => Err(wrong(key, value, "the path of the database file")),
        path => Ok(Database::File(path.into())),
    }
}

/// The one database of `databases`, which has to hold both halves of the data.
fn the_only_one(several: &Value) -> Result<&Value, Error> {
    let entries = mapping("databases", several)?;
    let mut entries = entries.iter();
    let (Some((name, block)), None) = (entries.next(), entries.next()) else {
        return Err(Error::Refused(
            "the configuration splits the data over several databases (`databases:`); roomkeeper works on one that \
             holds everything"
                .into(),
        ));
    };
    let stores = block
        .get("data_stores")
        .and_then(Value::as_list)
        .unwrap_or(&[]);
    let holds = |store: &str| stores.iter().any(|held| held.as_str() == Some(store));
    if stores.is_empty() || holds("main") && holds("state") {
        return Ok(block);
    }
    Err(Error::Refused(format!(
        "{}: databases.{name}.data_stores should name main and state: roomkeeper works on a database that holds \
         everything",
        block.place()
    )))
}

/// The arguments that Synapse hands to libpq. What they mean, the store knows. They are in no message: one of them is
/// the password.
fn server(args: Option<&Value>) -> Result<Database, Error> {
    let Some(args) = args.and_then(Value::as_map) else {
        return Err(Error::Config(
            "database.args should say how to reach the PostgreSQL server: user, password, dbname, host, …".into(),
        ));
    };
    let mut keys = BTreeMap::new();
    for (key, value) in args.iter().filter(|(_, value)| !value.is_null()) {
        // What is for Synapse's own pool of connections.
        if key.starts_with("cp_") {
            continue;
        }
        keys.insert(
            key.to_owned(),
            string(&format!("database.args.{key}"), value)?,
        );
    }
    Ok(Database::Server(Server::Keys(keys)))
}

/// `media_store_path`, and whether media lie elsewhere as well.
pub(super) fn media(keys: &Map, directory: &Path) -> Result<MediaStore, Error> {
    // A relative one lies where the homeserver was started, which is most often beside its configuration.
    let store = text(keys, "media_store_path")?.filter(|path| !path.is_empty());
    let store = store.map(|path| match directory.join(&path) {
        beside if beside.is_dir() => beside,
        _ => path.into(),
    });
    let is_given = |key| keys.get(key).is_some_and(|value| !value.is_null());
    let is_empty = |value: &Value| value.as_list().is_some_and(|list| list.is_empty());
    let providers = keys.get("media_storage_providers");
    Ok(MediaStore {
        directory: store,
        has_providers: providers.is_some_and(|list| !list.is_null() && !is_empty(list))
            || is_given("backup_media_store_path"),
    })
}

pub(super) fn endpoints(keys: &Map, directory: &Path) -> Result<HomeserverEndpoints, Error> {
    // A relative one lies where the homeserver was started. It may appear later, so all places are kept.
    let pid_files = text(keys, "pid_file")?.map(|path| match Path::new(&path).is_absolute() {
        true => vec![path.into()],
        false => vec![directory.join(&path), path.into()],
    });
    let mut found = HomeserverEndpoints {
        pid_files: pid_files.unwrap_or_default(),
        listeners: Vec::new(),
    };
    let Some(listeners) = keys.get("listeners").and_then(Value::as_list) else {
        return Ok(found);
    };
    for listener in listeners {
        let port = match listener.get("port") {
            Some(port) => port.python_text().and_then(|port| port.parse().ok()),
            None => None,
        };
        let Some(port) = port.filter(|port: &u16| *port > 0) else {
            continue;
        };
        let addresses = match (listener.get("bind_addresses"), listener.get("bind_address")) {
            (Some(list), _) if list.as_list().is_some_and(|list| !list.is_empty()) => {
                let list = list.as_list().unwrap_or(&[]);
                list.iter().filter_map(|one| one.as_str()).collect()
            }
            (_, Some(one)) if one.as_str().is_some() => one.as_str().into_iter().collect(),
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

#[cfg(test)]
mod tests {
    use super::super::file::testing::*;
    use super::*;

    #[test]
    fn signs_of_life_are_looked_for_wherever_the_homeserver_may_have_meant_them() {
        let keys = parse(
            "pid_file: hs.pid\nlisteners:\n  - {port: '8008', bind_addresses: [localhost]}\n  \
             - {port: 8009, bind_addresses: []}\n",
        );
        let found = endpoints(
            keys.expect("parses").as_map().expect("keys"),
            Path::new("/etc/x"),
        )
        .expect("reads");
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
    fn the_database_is_where_synapse_would_have_it() {
        let file = |text: &str| {
            let config = read(&format!("server_name: example.org\n{text}"));
            config.map(|config| config.database.to_string())
        };
        for (text, database) in [
            ("database_path: /d/hs.db", "/d/hs.db"),
            (
                "database_path: /d/hs.db\ndatabase: {name: sqlite3, args: {database: /other.db}}",
                "/d/hs.db",
            ),
            (
                "database: {name: sqlite3}\ndatabase_path: /d/hs.db",
                "/d/hs.db",
            ),
            ("database: {args: {database: /d/hs.db}}", "/d/hs.db"),
            (
                "database_path: /d/hs.db\ndatabase: {name: psycopg2, args: {host: h, dbname: d}}",
                "postgres://h/d",
            ),
            (
                "databases: {master: {name: psycopg2, args: {host: h, dbname: d}}}",
                "postgres://h/d",
            ),
            (
                "databases: {x: {name: sqlite3, data_stores: [state, main], args: {database: /d/hs.db}}}",
                "/d/hs.db",
            ),
        ] {
            assert_eq!(file(text).as_deref(), Ok(database), "{text}");
        }
        for (text, says) in [
            (
                "databases: {main: {name: sqlite3}, state: {name: sqlite3}}",
                "splits the data",
            ),
            (
                "databases: {x: {name: sqlite3, data_stores: [main], args: {database: /d}}}",
                "main and state",
            ),
            (
                "databases: {x: {}}\ndatabase: {name: sqlite3}",
                "cannot both be given",
            ),
            (
                "databases: {x: {}}\ndatabase_path: /d",
                "cannot both be given",
            ),
            (
                "database: {name: postgres, args: {}}",
                "sqlite3 or psycopg2",
            ),
            ("database: {name: psycopg2}", "how to reach"),
            ("database_path: ':memory:'", "in memory"),
        ] {
            let error = file(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
