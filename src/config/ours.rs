//! Our own block of the configuration: `roomkeeper:`.

use std::collections::BTreeMap;
use std::fs;
use std::net::ToSocketAddrs;
use std::path::Path;

use super::misspelt::distance;
use super::values::{boolean, duration_with_unit, mapping, number, string, wrong};
use super::yaml::{Map, Value};
use super::{
    Archive, Config, HomeserverApi, HomeserverPolicy, Listen, LogFormat, Network, OverwriteWhen,
    Secret, secrets,
};
use super::{notify, policies};
use crate::archive::Recipient;
use crate::error::Error;
use crate::ids::UserId;
use crate::time::Millis;

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
    (
        "metrics_token_path",
        "a file that holds a token for /metrics alone",
    ),
    (
        "trusted_proxies",
        "a list of addresses and networks: \"127.0.0.1\", \"10.0.0.0/8\"",
    ),
    ("admin_user", "the user id the static token stands for"),
    ("ledger", "a file for roomkeeper's own bookkeeping"),
    ("workers", "a number of threads, 1 to 64"),
    ("batch", "{events: 5000, millis: 500}"),
    ("overwrite_deleted", "true, false or at_once"),
    ("keep_jobs", "a duration such as 90d"),
    ("foreign_keys", "auto or server"),
    ("short_lifetimes", "true or false"),
    ("retention_of_left_rooms", "true or false"),
    ("check_clock", "on or off"),
    ("clock_tolerance", "a duration such as 7d"),
    ("archive", "{directory: …, keep: 30d, recipients: [age1…]}"),
    (
        "policies",
        "a list of policies: [{name: …, what: room, start: last_leave, after: 30d}]",
    ),
    ("log_format", "text or json"),
    (
        "notify",
        "{command: […], url: …, token_path: …, when: [complete, failed], timeout: 30s}",
    ),
    (
        "homeserver",
        "{running: refuse | beside | assume, url: …, admin_token_path: …}",
    ),
];

/// The keys of `batch` in our block.
const BATCH_KEYS: &[(&str, &str)] = &[
    ("events", "a number, 1 to 1000000"),
    ("millis", "a number, 10 to 60000"),
];

/// The keys of `archive` in our block.
const ARCHIVE_KEYS: &[(&str, &str)] = &[
    ("directory", "a directory that has room for it"),
    ("recipients", "a list of public keys: \"age1…\""),
    ("keep", "a duration such as 30d"),
];

/// The keys of `homeserver` in our block.
const HOMESERVER_KEYS: &[(&str, &str)] = &[
    ("running", "refuse, beside or assume"),
    ("url", "the homeserver's own address"),
    (
        "admin_token_path",
        "a file that holds an admin's access token",
    ),
];

/// The keys of our block that speak of one server, or of the daemon beside it: with another database they are not used
/// (K-6), so that a copy never reaches the live server.
const OF_THE_SERVER: &[&str] = &[
    "listen",
    "trusted_proxies",
    "admin_token_path",
    "metrics_token_path",
    "ledger",
    "homeserver",
    "notify",
    "media",
    "archive",
];

/// A mistake in the name of our block would silently leave out everything that it says.
pub(super) fn is_meant_for_ours(key: &str) -> bool {
    const OURS: &str = "roomkeeper";
    let plain: String = key
        .chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect();
    let most = if plain.starts_with('r') { 2 } else { 1 };
    key != OURS && distance(&plain, OURS) <= most
}

/// The block with the present names of its keys. Where a former and the present one are given, the present one counts.
fn with_present_names(ours: &Map) -> Map {
    let mut ours = ours.clone();
    for (former, present) in [("stride", "batch")] {
        if let Some(value) = ours.remove(former) {
            value.warn(format!(
                "roomkeeper.{former} is now called roomkeeper.{present}: rename it there"
            ));
            if ours.get(present).is_none() {
                ours.insert(present.to_owned(), value);
            }
        }
    }
    ours
}

/// Reads our block. Relative paths in it start at `directory`, that of the first file.
pub(super) fn read_ours(
    ours: &Map,
    directory: &Path,
    is_elsewhere: bool,
    config: &mut Config,
    errors: &mut Vec<Error>,
) {
    let ours = &with_present_names(ours);
    errors.extend(refuse_unknown("roomkeeper", ours, OUR_KEYS).err());
    for (key, value) in ours.iter().filter(|(_, value)| !value.is_null()) {
        if is_elsewhere && OF_THE_SERVER.contains(&key) {
            continue;
        }
        errors.extend(read_our_key(key, value, directory, config).err());
    }
}

fn read_our_key(
    key: &str,
    value: &Value,
    directory: &Path,
    config: &mut Config,
) -> Result<(), Error> {
    match key {
        "listen" => config.listen = listen(value, directory)?,
        "trusted_proxies" => config.trusted_proxies = trusted_proxies(value)?,
        "admin_token_path" => {
            let path = directory.join(string("roomkeeper.admin_token_path", value)?);
            config.admin_token = Some(secret("roomkeeper.admin_token_path", &path)?);
        }
        "metrics_token_path" => {
            let path = directory.join(string("roomkeeper.metrics_token_path", value)?);
            config.metrics_token = Some(secret("roomkeeper.metrics_token_path", &path)?);
        }
        "admin_user" => {
            let user = UserId::new(string("roomkeeper.admin_user", value)?);
            if !user.is_local(&config.server_name) || !user.has_localpart() {
                return Err(Error::Config(format!(
                    "{}: roomkeeper.admin_user is {user}, and should be a user of this server: @name:{}",
                    value.place(),
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
            let key = "roomkeeper.overwrite_deleted";
            let at_once = string(key, value).is_ok_and(|text| text == "at_once");
            config.overwrite_deleted = match value.as_bool() {
                Some(whether) => whether,
                None if at_once => true,
                None => return Err(wrong(key, value, "true, false or at_once")),
            };
            if at_once {
                config.overwrite_when = OverwriteWhen::AtOnce;
            }
        }
        "foreign_keys" => {
            config.batch.check_in_bulk = match string("roomkeeper.foreign_keys", value)?.as_str() {
                "auto" => true,
                "server" => false,
                _ => return Err(wrong("roomkeeper.foreign_keys", value, "auto or server")),
            };
        }
        "keep_jobs" => config.keep_jobs = duration_with_unit("roomkeeper.keep_jobs", value)?,
        "short_lifetimes" => {
            config.retention.short_lifetimes = boolean("roomkeeper.short_lifetimes", value)?
        }
        "retention_of_left_rooms" => {
            config.retention.of_left_rooms = boolean("roomkeeper.retention_of_left_rooms", value)?
        }
        // YAML reads a bare on and off as true and false.
        "check_clock" => {
            config.check_clock = match (value.as_bool(), value.as_str()) {
                (Some(on), _) => on,
                (_, Some("on")) => true,
                (_, Some("off")) => false,
                _ => return Err(wrong("roomkeeper.check_clock", value, "on or off")),
            }
        }
        "clock_tolerance" => {
            config.clock_tolerance = duration_with_unit("roomkeeper.clock_tolerance", value)?
        }
        "archive" => {
            config.archive = Some(read_archive(value, directory)?);
        }
        "policies" => config.policies = policies::read(value)?,
        "log_format" => {
            config.log_format = match string("roomkeeper.log_format", value)?.as_str() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err(wrong("roomkeeper.log_format", value, "text or json")),
            };
        }
        "notify" => config.notify = Some(notify::read(value, directory)?),
        "homeserver" => {
            let block = mapping("roomkeeper.homeserver", value)?;
            refuse_unknown("roomkeeper.homeserver", block, HOMESERVER_KEYS)?;
            config.homeserver = match block.get("running") {
                None => HomeserverPolicy::RequireStopped,
                Some(other) => match other.as_str() {
                    Some("refuse") => HomeserverPolicy::RequireStopped,
                    Some("beside") => HomeserverPolicy::AllowRunning,
                    Some("assume") => HomeserverPolicy::AssumeRunning,
                    _ => {
                        let key = "roomkeeper.homeserver.running";
                        return Err(wrong(key, other, "refuse, beside or assume"));
                    }
                },
            };
            config.homeserver_api = homeserver_api(block, directory)?;
        }
        _ => {}
    }
    Ok(())
}

/// Reads the block. A relative directory starts at `base`.
fn read_archive(value: &Value, base: &Path) -> Result<Archive, Error> {
    let block = mapping("roomkeeper.archive", value)?;
    refuse_unknown("roomkeeper.archive", block, ARCHIVE_KEYS)?;
    let directory = match block.get("directory") {
        Some(directory) => string("roomkeeper.archive.directory", directory)?,
        None => String::new(),
    };
    if directory.is_empty() {
        return Err(wrong(
            "roomkeeper.archive",
            value,
            "a block with a directory: {directory: /var/lib/roomkeeper/archive}",
        ));
    }
    let mut archive = Archive::in_directory(base.join(directory));
    if let Some(value) = block.get("recipients") {
        let key = "roomkeeper.archive.recipients";
        let wanted = "a list of public keys, each age1… as age-keygen prints it";
        let Some(list) = value.as_list().filter(|list| !list.is_empty()) else {
            return Err(wrong(key, value, wanted));
        };
        let recipients: Result<Vec<Recipient>, Error> = list
            .iter()
            .map(|entry| {
                let text = string(key, entry)?;
                // What does not parse may be a private key, and is not shown.
                let parsed = text.parse();
                parsed.map_err(|_| {
                    Error::Config(format!("{}: {key} should be {wanted}", entry.place()))
                })
            })
            .collect();
        archive.recipients = recipients?;
    }
    if let Some(keep) = block.get("keep") {
        archive.keep = duration_with_unit("roomkeeper.archive.keep", keep)?;
        if archive.keep < Millis(60 * 60 * 1000) {
            return Err(wrong(
                "roomkeeper.archive.keep",
                keep,
                "a duration of at least an hour",
            ));
        }
    }
    Ok(archive)
}

/// Where the homeserver is, and what lets us in: both or neither.
fn homeserver_api(block: &Map, directory: &Path) -> Result<Option<HomeserverApi>, Error> {
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
    let Some(list) = value.as_list() else {
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

fn trusted_proxies(value: &Value) -> Result<Vec<Network>, Error> {
    let key = "roomkeeper.trusted_proxies";
    let Some(list) = value.as_list() else {
        return Err(wrong(key, value, "a list of addresses and networks"));
    };
    let read = |entry: &Value| {
        let network = Network::parse(&string(key, entry)?);
        network.ok_or_else(|| {
            let wanted = "an address, or a network without bits beside it: 127.0.0.1, 10.0.0.0/8";
            wrong(key, entry, wanted)
        })
    };
    list.iter().map(|entry| read(entry)).collect()
}

/// Reads a file that holds nothing but a secret. The secret is in no message.
pub(super) fn secret(key: &str, path: &Path) -> Result<Secret, Error> {
    secrets::refuse_open(key, path)?;
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

pub(super) fn refuse_unknown(
    block: &str,
    found: &Map,
    known: &[(&str, &str)],
) -> Result<(), Error> {
    let known: BTreeMap<&str, &str> = known.iter().copied().collect();
    let Some((key, value)) = found.iter().find(|(key, _)| !known.contains_key(key)) else {
        return Ok(());
    };
    let list: Vec<String> = known
        .iter()
        .map(|(key, takes)| format!("  {key}: {takes}"))
        .collect();
    Err(Error::Config(format!(
        "{}: {block}.{key} is not a key; the keys are\n{}",
        value.place(),
        list.join("\n")
    )))
}

#[cfg(test)]
mod tests {
    use super::super::file::interpret;
    use super::super::file::one_error;
    use super::super::file::testing::*;
    use super::*;
    use crate::database::Database;

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
    fn wrong_keys_and_values_are_refused_with_what_would_do() {
        for (block, says) in [
            ("roomkeeper: {lisen: []}", "roomkeeper.lisen is not a key"),
            (
                "roomkeeper: {workers: 0}",
                "roomkeeper.workers is 0, and should be a whole number from 1 to 64",
            ),
            (
                "roomkeeper: {homeserver: {running: maybe}}",
                "should be refuse, beside or assume",
            ),
            ("roomkeeper: {keep_jobs: 3 days}", "is not a duration"),
            ("roomkeeper: {admin_user: root}", "a user of this server"),
            (
                "roomkeeper: {admin_user: '@a:elsewhere.org'}",
                "a user of this server",
            ),
            ("roomkeeper: 5", "roomkeeper is 5"),
            (
                "roomkeeper: {trusted_proxies: [10.0.0.1/8]}",
                "a network without bits beside it",
            ),
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
                .contains("database is missing")
        );
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
        let keys = parse(SAMPLE).expect("parses").to_json().expect("JSON");
        for key in ["workers", "overwrite_deleted", "keep_jobs"] {
            assert!(keys["roomkeeper"].get(key).is_some(), "{key}");
        }
        let on = parse(&switched_on()).expect("parses");
        let on = on.to_json().expect("JSON");
        let batch = &on["roomkeeper"]["batch"];
        assert_eq!(batch["events"], default.batch.events);
        assert_eq!(batch["millis"], default.batch.millis);
        assert_eq!(keys["roomkeeper"]["homeserver"]["running"], "refuse");
    }

    #[test]
    fn the_sample_has_every_key_and_no_other() {
        let keys = parse(&switched_on()).expect("parses");
        let keys = keys.to_json().expect("JSON");
        let ours = keys["roomkeeper"].as_object().expect("a block");
        for (block, known) in [
            (ours, OUR_KEYS),
            (ours["batch"].as_object().expect("a block"), BATCH_KEYS),
            (
                ours["homeserver"].as_object().expect("a block"),
                HOMESERVER_KEYS,
            ),
            (
                ours["notify"].as_object().expect("a block"),
                notify::NOTIFY_KEYS,
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
        let program = directory.path().join("tell");
        std::fs::write(&program, "#!/bin/sh\n").expect("writes");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).expect("set");
        for file in [
            "admin.token",
            "metrics.token",
            "synapse.token",
            "hook.token",
        ] {
            let file = directory.path().join(file);
            std::fs::write(&file, "secret\n").expect("writes");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
            std::fs::set_permissions(&file, mode).expect("set");
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
    fn another_database_takes_along_everything_that_speaks_of_the_server() {
        let directory = directory(&[("token", "secret")]);
        let token = directory.path().join("token");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&token, mode).expect("set");
        let live = format!(
            "{MINIMAL}pid_file: /run/hs.pid\nlisteners: [{{port: 8008}}]\nsigning_key: ed25519 a x\n\
             default_room_version: '9'\nretention: {{enabled: true}}\nroomkeeper:\n  ledger: /var/lib/live.db\n  \
             listen: ['127.0.0.1:8009']\n  admin_token_path: {0}\n  workers: 3\n  keep_jobs: 5d\n  homeserver: \
             {{running: beside, url: 'http://127.0.0.1:8008', admin_token_path: {0}}}\n",
            token.display()
        );
        let value = parse(&live).expect("parses");
        let keys = value.as_map().expect("keys");
        let meant = interpret(keys, Path::new(""), None)
            .map_err(one_error)
            .expect("reads");
        assert!(meant.homeserver_api.is_some() && meant.admin_token.is_some());
        let copy = Database::File("/tmp/copy.db".into());
        let copied = interpret(keys, Path::new(""), Some(copy.clone())).map_err(one_error);
        let copied = copied.expect("reads");
        assert_eq!(copied.database.file(), Some(Path::new("/tmp/copy.db")));
        let plain = Config::for_database(copy, "example.org");
        assert_eq!(copied.ledger, plain.ledger);
        assert_eq!(copied.homeserver, plain.homeserver);
        assert_eq!(copied.homeserver_api, None);
        assert_eq!(copied.endpoints, plain.endpoints);
        assert_eq!(copied.listen, []);
        assert_eq!(copied.admin_token, None);
        // What says how, and not where, is used.
        assert_eq!(
            (copied.workers, copied.keep_jobs),
            (3, crate::time::days(5))
        );
        assert!(copied.retention.enabled && copied.event_signing.signing_key.is_some());
        // Nor does it ask for what is not there.
        let broken = live.replace(&*token.to_string_lossy(), "/nowhere");
        let value = parse(&broken).expect("parses");
        let copy = Database::File("/tmp/copy.db".into());
        assert!(interpret(value.as_map().expect("keys"), Path::new(""), Some(copy)).is_ok());
    }

    #[test]
    fn a_key_of_ours_is_either_of_the_server_or_of_the_work() {
        const OF_THE_WORK: &[&str] = &[
            "admin_user",
            "workers",
            "batch",
            "overwrite_deleted",
            "keep_jobs",
            "foreign_keys",
            "short_lifetimes",
            "retention_of_left_rooms",
            "check_clock",
            "clock_tolerance",
            "log_format",
            "policies",
        ];
        for (key, _) in OUR_KEYS {
            assert!(
                OF_THE_SERVER.contains(key) != OF_THE_WORK.contains(key),
                "{key}: does it speak of the server? Then --database must not use it"
            );
        }
    }

    #[test]
    fn a_block_that_looks_like_ours_is_refused() {
        for name in [
            "roomkeper",
            "room_keeper",
            "Roomkeeper",
            "room-keeper",
            "rommkeeper",
            "roomkepeer",
            "roomkeepers",
            "roomskeeper",
            "oomkeeper",
            "ROOMKEEPER",
        ] {
            let error = read(&format!("{MINIMAL}{name}: {{ledger: /x}}\n"))
                .err()
                .expect(name);
            assert!(error.contains("misspelt `roomkeeper:`"), "{name}: {error}");
        }
        for name in [
            "room_list_publication_rules",
            "roomkeeper_notes",
            "room_prejoin_state",
            "bookkeeper",
            "gatekeeper",
        ] {
            assert!(
                read(&format!("{MINIMAL}{name}: {{ledger: /x}}\n")).is_ok(),
                "{name}"
            );
        }
    }
}
