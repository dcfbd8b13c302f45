//! The rules of the layers, kept by tests: who may name whom, sizes of files, and SQL that every engine of ours can read.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use roomkeeper::store::schema;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Batch, Connection};
use source::{Source, sources};

/// The layers: a module may name itself and what lies on lower layers; neighbours do not see each other. The tour in
/// the crate's documentation says what each is for.
const LAYERS: &[&[&str]] = &[
    // Words.
    &[
        "ids",
        "time",
        "room_version",
        "batch",
        "endpoints",
        "database",
        "counters",
    ],
    // Grammar.
    &[
        "error",
        "hold",
        "plan_hash",
        "point",
        "policy",
        "locks",
        "event",
    ],
    // Files.
    &["sqlite_file", "archive"],
    // Machines.
    &["client", "config", "store", "jobs"],
    // What jobs work with.
    &["job"],
    // Features.
    &["purge", "retention", "deletion", "messages", "rooms"],
    // The facade.
    &["keeper"],
    // HTTP.
    &["http"],
    // The command line, which speaks to a daemon over HTTP or to the facade.
    &["cli"],
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// What `lib.rs` hands out under its own name: `Keeper` of `keeper`.
fn handed_out() -> BTreeMap<String, String> {
    let lib = sources().into_iter().find(|s| s.path == "lib.rs");
    let code = lib.expect("src/lib.rs").code;
    let mut names = BTreeMap::new();
    for line in code.split(';') {
        let Some((module, list)) = line
            .trim()
            .strip_prefix("pub use ")
            .and_then(|rest| rest.split_once("::"))
        else {
            continue;
        };
        for name in list.trim_matches(['{', '}']).split(',') {
            names.insert(name.trim().to_owned(), module.to_owned());
        }
    }
    names
}

#[test]
fn modules_name_only_what_lies_on_lower_floors() {
    let handed_out = handed_out();
    assert!(handed_out.contains_key("Keeper"));
    let mut wrong = BTreeSet::new();
    for source in sources() {
        let Some(module) = source.module() else {
            continue;
        };
        let Some(layer) = layer_of(module) else {
            panic!(
                "{} is on no layer: say in LAYERS where {module} belongs",
                source.path
            );
        };
        for name in source.names_of_crate() {
            let named = handed_out.get(&name).unwrap_or(&name);
            if named != module && layer_of(named).is_none_or(|below| below >= layer) {
                wrong.insert(format!("{} names crate::{name}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "against the layers: {wrong:#?}");
}

#[test]
fn every_module_has_its_layer() {
    let there: BTreeSet<String> = sources()
        .iter()
        .filter_map(|s| s.module().map(str::to_owned))
        .collect();
    let planned: BTreeSet<String> = LAYERS.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(there, planned);
}

/// A file is one noun; from here on it holds a second one.
const LONGEST_FILE: usize = 700;

#[test]
fn no_file_is_too_long() {
    for source in sources() {
        assert!(
            source.lines <= LONGEST_FILE,
            "{} has {} lines: look for the second noun",
            source.path,
            source.lines
        );
    }
}

/// The statements that stand in the source as they are run. Those that are put together from pieces are judged by
/// `tests/plans.rs`, when a purge runs them. Settings (`PRAGMA`) are none: some take effect when they are prepared.
fn statements(of: &Source) -> impl Iterator<Item = &String> {
    const VERBS: &[&str] = &[
        "SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "CREATE", "DROP",
    ];
    of.texts.iter().filter(|text| {
        let mut words = text.split_whitespace();
        words.next().is_some_and(|verb| VERBS.contains(&verb))
            && words.next().is_some()
            && !text.contains('{')
    })
}

/// Prepares every statement of a text, and finds the parameters numbered as they come.
fn judge(conn: &Connection, path: &str, sql: &str) -> usize {
    let mut batch = Batch::new(conn, sql);
    let mut count = 0;
    loop {
        match batch.next() {
            Ok(None) => return count,
            Ok(Some(statement)) => {
                count += 1;
                for number in 1..=statement.parameter_count() {
                    let expected = format!("${number}");
                    assert_eq!(
                        statement.parameter_name(number),
                        Some(expected.as_str()),
                        "{path}: parameters are numbered in order of first appearance: {sql}"
                    );
                }
            }
            Err(e) => panic!("{path}: {e}: {sql}"),
        }
    }
}

#[test]
fn every_statement_is_understood_and_its_parameters_are_in_order() {
    let homeserver = Connection::open_in_memory().expect("opens");
    schema::create_in(&homeserver).expect("tables");
    let ledger = Connection::open_in_memory().expect("opens");
    let sources = sources();
    // What makes tables comes first: the ledger's, and the temporary ones of a purge.
    for source in &sources {
        for sql in statements(source) {
            if sql.trim_start().starts_with("CREATE TEMPORARY TABLE") {
                homeserver.execute_batch(sql).expect(sql);
            } else if sql.trim_start().starts_with("CREATE TABLE") {
                ledger.execute_batch(sql).expect(sql);
            }
        }
    }
    // This one is put together from pieces.
    homeserver
        .execute_batch("CREATE TEMPORARY TABLE rk_aside (rk_number INTEGER)")
        .expect("a table");
    let mut count = 0;
    for source in &sources {
        let is_of_the_ledger = source.module() == Some("jobs");
        let conn = if is_of_the_ledger {
            &ledger
        } else {
            &homeserver
        };
        for sql in statements(source) {
            count += judge(conn, &source.path, sql);
        }
    }
    assert!(count > 150, "only {count} statements were found");
}

/// What only the daemon needs. A library user builds without these.
const OF_THE_DAEMON: &[&str] = &[
    "clap",
    "clap_complete",
    "clap_mangen",
    "env_logger",
    "form_urlencoded",
    "indicatif",
    "percent_encoding",
    "regex",
    "sd_notify",
    "saphyr_parser",
    "signal_hook",
    "subtle",
    "tiny_http",
];

#[test]
fn what_only_the_daemon_needs_is_named_only_in_its_rooms() {
    let rooms = ["http", "cli"];
    for source in sources() {
        if source.module().is_some_and(|m| rooms.contains(&m)) || source.path.starts_with("config/")
        {
            continue;
        }
        // Addresses of servers are percent-encoded, too; there it comes with the driver.
        let is_driver = source.path.starts_with("store/postgres/");
        for package in OF_THE_DAEMON {
            assert!(
                is_driver && *package == "percent_encoding"
                    || !source.code.contains(&format!("{package}::")),
                "{} uses {package}",
                source.path
            );
        }
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).expect("Cargo.toml");
    for package in OF_THE_DAEMON {
        let package = package.replace('_', "-");
        let is_optional = manifest.lines().any(|line| {
            let name = line
                .split_once(" = ")
                .map(|(name, _)| name.replace('_', "-"));
            name.as_deref() == Some(&package) && line.contains("optional = true")
        });
        assert!(is_optional, "{package} is in every build");
    }
}

/// The numbers of rules in a text: a letter, a hyphen, a number, and in one case another letter.
fn rules_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| {
            let Some((letter, number)) = word.split_once('-') else {
                return false;
            };
            let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
            letter.len() == 1
                && "SLRPEDMHUWVIK".contains(letter)
                && number.len() <= digits.len() + 1
                && !digits.is_empty()
                && digits.bytes().all(|b| b.is_ascii_digit())
        })
        .collect()
}

#[test]
fn every_rule_that_the_code_refers_to_is_told_and_no_other() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let told = std::fs::read_to_string(src.join("rules.md")).expect("src/rules.md");
    let told: BTreeSet<&str> = (told.lines())
        .filter_map(|line| line.strip_prefix("- **")?.split_once("** "))
        .map(|(rule, sentence)| {
            assert!(
                sentence.contains(" (") && sentence.ends_with(')'),
                "{rule} has no source"
            );
            rule
        })
        .collect();
    let (mut untold, mut unused) = (BTreeMap::new(), told.clone());
    for source in sources() {
        let text = std::fs::read_to_string(src.join(&source.path)).expect("a file");
        unused.retain(|rule| !rules_in(&text).contains(rule));
        for rule in rules_in(&text)
            .into_iter()
            .filter(|rule| !told.contains(rule))
        {
            untold.insert(rule.to_owned(), source.path.clone());
        }
    }
    assert!(untold.is_empty(), "src/rules.md does not tell {untold:?}");
    assert!(
        unused.is_empty(),
        "no code refers to {unused:?}, which src/rules.md tells"
    );
}
