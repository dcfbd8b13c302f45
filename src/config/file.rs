//! What a `homeserver.yaml` says: Synapse's own keys as they stand, and one block of ours.
//!
//! Other blocks are not ours and are ignored; a misspelt key inside our block is refused with the list of right ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::located::{database, endpoints, media};
use super::ours::{is_meant_for_ours, read_ours};
use super::values::{text, truth, wrong};
pub use super::yaml::Warning;
use super::yaml::{self, Map, Source};
use super::{Config, authentication, event_signing, retention, secrets};
use crate::database::Database;
use crate::error::Error;

/// What a configuration says, and what somebody should look at in it.
pub struct Examined {
    /// The files that were read, in their order.
    pub files: Vec<PathBuf>,
    /// What it means, where it can be meant.
    pub config: Result<Config, Vec<Error>>,
    /// What works, and should be looked at.
    pub warnings: Vec<Warning>,
}

/// Reads the files in order; a top-level key of a later file replaces that of an earlier one, as Synapse merges them. A
/// directory stands for its `*.yaml` (K-1). With another database than the one that is configured, nothing is used that
/// speaks of that server (K-6).
///
/// # Errors
/// [`Error::Config`] with the file, the line, the key and what would do, for all that is wrong.
pub fn load(files: &[PathBuf], instead: Option<Database>) -> Result<Config, Error> {
    let examined = examine(files, instead);
    for warning in &examined.warnings {
        log::warn!("{warning}");
    }
    examined.config.map_err(one_error)
}

/// All that is wrong in one error; what is refused for the data's safety comes first.
pub(super) fn one_error(mut errors: Vec<Error>) -> Error {
    if let Some(at) = errors.iter().position(|e| !matches!(e, Error::Config(_))) {
        return errors.swap_remove(at);
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Error::Config(texts.join("\n"))
}

/// As [`load`], with everything that is wrong, one by one, and nothing logged.
pub fn examine(files: &[PathBuf], instead: Option<Database>) -> Examined {
    let mut sources = Vec::new();
    let mut warnings = Vec::new();
    let mut errors = Vec::new();
    let mut merged = Map::default();
    let files = match in_directories(files, &mut warnings) {
        Ok(files) => files,
        Err(e) => {
            errors.push(e);
            Vec::new()
        }
    };
    for file in &files {
        let source = Source::of(file);
        match read_file(file, &source) {
            Ok(keys) => merged.extend(keys),
            Err(e) => errors.push(e),
        }
        sources.push(source);
    }
    // What is missing may stand where nothing could be read.
    let config = match errors.is_empty() {
        false => Err(errors),
        true => {
            let directory = files.first().and_then(|f| f.parent());
            interpret(&merged, directory.unwrap_or(Path::new("")), instead)
        }
    };
    warnings.extend(sources.iter().flat_map(|source| source.warnings()));
    Examined {
        files,
        config,
        warnings,
    }
}

/// The files that are meant: of a directory its `*.yaml` by name, as Synapse's `--config-path` takes them.
fn in_directories(files: &[PathBuf], warnings: &mut Vec<Warning>) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for path in files {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let unreadable = |e| {
            let path = path.display();
            Error::Config(format!(
                "the configuration directory {path} cannot be read: {e}"
            ))
        };
        let mut of_directory = Vec::new();
        for entry in fs::read_dir(path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?.path();
            if entry.is_file() && entry.extension().is_some_and(|end| end == "yaml") {
                of_directory.push(entry);
            }
        }
        if of_directory.is_empty() {
            warn_of(path, "no file in this directory ends in .yaml", warnings);
        }
        of_directory.sort();
        found.extend(of_directory);
    }
    Ok(found)
}

fn warn_of(path: &Path, text: &str, warnings: &mut Vec<Warning>) {
    warnings.push(Warning {
        file: path.display().to_string(),
        line: 0,
        text: text.into(),
    });
}

/// The keys of one file. What is no block of keys is ignored, as Synapse does.
fn read_file(file: &Path, source: &Rc<Source>) -> Result<Map, Error> {
    let unreadable = |e: String| {
        let file = file.display();
        Error::Config(format!("the configuration file {file} cannot be read: {e}"))
    };
    let bytes = fs::read(file).map_err(|e| unreadable(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        unreadable(format!(
            "byte {} is not UTF-8",
            e.utf8_error().valid_up_to()
        ))
    })?;
    let read = yaml::read(&text, source).map_err(Error::Config)?;
    let Some(keys) = read.as_map() else {
        if !read.is_null() {
            source.warn(
                0,
                "this is no block of keys and is ignored, as Synapse does".into(),
            );
        }
        return Ok(Map::default());
    };
    let holds_secret = [
        "signing_key",
        "macaroon_secret_key",
        "registration_shared_secret",
    ]
    .iter()
    .any(|key| keys.get(key).is_some_and(|value| !value.is_null()))
        || keys
            .get("database")
            .and_then(|block| block.get("args")?.get("password"))
            .is_some_and(|value| !value.is_null())
        || keys
            .get("matrix_authentication_service")
            .and_then(|block| block.get("secret"))
            .is_some_and(|value| !value.is_null());
    if holds_secret && secrets::is_readable_by_everybody(file) {
        source.warn(
            0,
            "everybody on this machine can read the secrets in this file: chmod 640 it".into(),
        );
    }
    Ok(keys.clone())
}

pub(super) fn interpret(
    keys: &Map,
    directory: &Path,
    instead: Option<Database>,
) -> Result<Config, Vec<Error>> {
    let mut errors = Vec::new();
    for (key, value) in keys.iter().filter(|(key, _)| is_meant_for_ours(key)) {
        errors.push(Error::Config(format!(
            "{}: the block {key:?} looks like a misspelt `roomkeeper:`, and nothing of it would be used",
            value.place()
        )));
    }
    let is_elsewhere = instead.is_some();
    let name = match text(keys, "server_name") {
        Ok(Some(name)) if !name.is_empty() => Some(name),
        Ok(_) => {
            errors.push(Error::Config(
                "server_name is missing: it is the domain of the homeserver".into(),
            ));
            None
        }
        Err(e) => {
            errors.push(e);
            None
        }
    };
    let database = match instead {
        Some(database) => Some(database),
        None => or_note(&mut errors, database(keys)),
    };
    // With a name and a database or without: what else is wrong is said at once.
    let is_whole = name.is_some() && database.is_some();
    let name = name.unwrap_or_else(|| "server_name.invalid".into());
    let database = database.unwrap_or_else(|| Database::File(PathBuf::new()));
    let mut config = Config::for_database(database, &name);
    if !is_elsewhere && let Some(found) = or_note(&mut errors, endpoints(keys, directory)) {
        config.endpoints = found;
    }
    if !is_elsewhere && let Some(found) = or_note(&mut errors, media(keys, directory)) {
        config.media = found;
    }
    if let Some(read) = or_note(&mut errors, retention::read(keys.get("retention"))) {
        config.retention = read;
    }
    if let Some(read) = or_note(&mut errors, event_signing::read(keys, directory, &name)) {
        config.event_signing = read;
    }
    config.delegated_auth = or_note(&mut errors, is_delegated(keys)).unwrap_or(true);
    let block = keys.get("matrix_authentication_service");
    if !is_elsewhere
        && let Some(found) = or_note(&mut errors, authentication::read(block, directory))
    {
        config.authentication_service = found;
    }
    for (block, key, flag) in [
        ("account_validity", "enabled", &mut config.account_validity),
        (
            "experimental_features",
            "msc3874_enabled",
            &mut config.relation_type_filters,
        ),
    ] {
        let value = keys.get(block).and_then(|block| block.get(key));
        let read = truth(&format!("{block}.{key}"), value);
        *flag = or_note(&mut errors, read).unwrap_or(false);
    }
    match keys.get("roomkeeper") {
        Some(value) if value.as_map().is_some() => {
            let ours = value.as_map().cloned().unwrap_or_default();
            read_ours(&ours, directory, is_elsewhere, &mut config, &mut errors);
        }
        Some(value) if !value.is_null() => {
            errors.push(wrong("roomkeeper", value, "a block of keys"))
        }
        _ => {}
    }
    match errors.is_empty() && is_whole {
        true => Ok(config),
        false => Err(errors),
    }
}

/// What was read, or nothing and the error noted.
fn or_note<T>(errors: &mut Vec<Error>, read: Result<T, Error>) -> Option<T> {
    read.map_err(|e| errors.push(e)).ok()
}

/// U-13: access tokens are kept by a Matrix Authentication Service.
fn is_delegated(keys: &Map) -> Result<bool, Error> {
    let service = keys.get("matrix_authentication_service");
    let former = keys
        .get("experimental_features")
        .and_then(|features| features.get("msc3861"));
    // A mistake there is told by who reads that block.
    let service = truth(
        "matrix_authentication_service.enabled",
        service.and_then(|block| block.get("enabled")),
    )
    .unwrap_or(true);
    let former = truth(
        "experimental_features.msc3861.enabled",
        former.and_then(|block| block.get("enabled")),
    )?;
    Ok(service || former)
}

/// What the tests of several files share.
#[cfg(test)]
pub(super) mod testing {
    use super::super::yaml::Value;
    use super::*;

    pub(in crate::config) fn parse(text: &str) -> Result<Value, String> {
        yaml::read(text, &Source::of(Path::new("x.yaml")))
    }

    pub(in crate::config) fn read(text: &str) -> Result<Config, String> {
        let value = parse(text)?;
        let keys = value.as_map().expect("keys");
        interpret(keys, Path::new(""), None).map_err(|errors| one_error(errors).to_string())
    }

    /// A directory with these files.
    pub(in crate::config) fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let file = directory.path().join(name);
            std::fs::create_dir_all(file.parent().expect("a parent")).expect("made");
            std::fs::write(&file, text).expect("writes");
        }
        directory
    }

    pub(in crate::config) const MINIMAL: &str = "server_name: example.org\ndatabase:\n  name: sqlite3\n  args:\n    database: /d/homeserver.db\n";
}

#[cfg(test)]
mod tests {
    use super::super::{HomeserverPolicy, Listen};
    use super::testing::*;
    use super::*;

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
    fn relative_paths_of_our_block_start_where_the_file_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("homeserver.yaml");
        let block = "roomkeeper: {ledger: ledger.db, listen: ['unix:s']}\n";
        std::fs::write(&file, format!("{MINIMAL}{block}")).expect("writes");
        let config = load(&[file], None).expect("reads");
        assert_eq!(config.ledger, directory.path().join("ledger.db"));
        assert_eq!(config.listen, [Listen::Unix(directory.path().join("s"))]);
    }

    #[test]
    fn a_directory_stands_for_its_yaml_files_in_order() {
        // As Debian's package has it: server_name in conf.d alone.
        let directory = directory(&[
            (
                "homeserver.yaml",
                &MINIMAL.replace("server_name: example.org\n", ""),
            ),
            ("conf.d/server_name.yaml", "server_name: example.org\n"),
            ("conf.d/report_stats.yaml", "report_stats: false\n"),
            ("conf.d/zz.yaml", "roomkeeper: {workers: 7}\n"),
            ("conf.d/aa.yaml", "roomkeeper: {workers: 5}\n"),
            ("conf.d/zz.yaml.dpkg-old", "roomkeeper: {workers: 9}\n"),
            ("conf.d/empty.yaml", "# nothing yet\n"),
            ("conf.d/list.yaml", "- a list\n"),
            ("conf.d/sub.yaml/x.yaml", "server_name: elsewhere.org\n"),
        ]);
        let at = |name: &str| directory.path().join(name);
        let examined = examine(&[at("homeserver.yaml"), at("conf.d")], None);
        let config = examined.config.map_err(one_error).expect("reads");
        assert_eq!(config.server_name, "example.org");
        assert_eq!(config.workers, 7);
        let names = examined
            .files
            .iter()
            .map(|f| f.file_name().expect("a name").to_string_lossy());
        let names: Vec<_> = names.collect();
        assert_eq!(
            names,
            [
                "homeserver.yaml",
                "aa.yaml",
                "empty.yaml",
                "list.yaml",
                "report_stats.yaml",
                "server_name.yaml",
                "zz.yaml"
            ]
        );
        let warnings: Vec<String> = examined.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains("list.yaml: this is no block of keys"),
            "{warnings:?}"
        );
        let none = examine(&[at("conf.d/sub.yaml/none")], None)
            .config
            .map_err(one_error);
        assert!(
            none.err()
                .expect("refused")
                .to_string()
                .contains("cannot be read")
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once_each_with_its_line() {
        let error = read(
            "roomkeeper:\n  workers: 0\n  lisen: []\n  keep_jobs: 3 days\nretention: {purge_jobs: [{}]}\n",
        );
        let error = error.err().expect("refused");
        for says in [
            "x.yaml:2: roomkeeper.workers is 0",
            "x.yaml:3: roomkeeper.lisen is not a key",
            "x.yaml:4: roomkeeper.keep_jobs",
            "server_name is missing",
            "database is missing",
            "'interval' key",
        ] {
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
