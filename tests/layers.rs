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
        "plural",
    ],
    // Grammar.
    &[
        "error",
        "hold",
        "plan_hash",
        "point",
        "policy",
        "receipt",
        "selectors",
        "locks",
        "event",
    ],
    // Files.
    &["sqlite_file", "archive", "media_files"],
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
fn no_module_is_public_but_to_our_own_tests() {
    let lib = include_str!("../src/lib.rs");
    let (mut before, mut sealed) = ("", 0);
    for line in lib.lines() {
        let public = line.strip_prefix("pub mod ");
        if let Some(module) = public.and_then(|rest| rest.strip_suffix(';')) {
            let shown =
                before.starts_with("#[cfg(") && before.contains("feature = \"test-internals\"");
            assert!(shown && !before.contains("not("), "{module} is public");
            sealed += 1;
        }
        before = line;
    }
    assert_eq!(sealed, LAYERS.concat().len());
    // Who shows others how it is done goes by public names: no path leads into a module.
    for shown in [
        include_str!("examples/embed.rs"),
        include_str!("../README.md"),
    ] {
        for path in shown.split("roomkeeper::").skip(1) {
            let name = path.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            let name = name.into_iter().next().unwrap_or_default();
            let leads_on = path[name.len()..].starts_with("::");
            assert!(
                !leads_on || name == "guide",
                "roomkeeper::{name} is a module"
            );
        }
    }
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

/// Functions of the storage that write without a `Tx`: none of them a row of a room.
const WRITES_NO_ROWS: &[(&str, &[&str])] = &[
    // Says how the planner may read.
    ("store/residue.rs", &["by_index"]),
    // The statement itself; what begins and ends a transaction.
    ("store/db.rs", &["execute", "batch", "begin", "commit"]),
    ("store/postgres.rs", &["execute"]),
    // Connections, and who may have the file.
    (
        "store/sqlite.rs",
        &[
            "execute",
            "connect",
            "begin_to_read",
            "roll_back",
            "set_secure_delete",
            "pin_snapshot",
        ],
    ),
    ("store/homeserver.rs", &["is_open_elsewhere"]),
    (
        "store/reclaim.rs",
        &["open_alone", "open_alone_keeping_log"],
    ),
    ("store/work_lock.rs", &["take_on_server"]),
    // The homeserver's lock rows, which the door itself takes and renews.
    (
        "store/homeserver.rs",
        &[
            "try_acquire",
            "is_held",
            "release",
            "release_leftover_locks",
        ],
    ),
    // Temporary tables of a connection: what is selected, and what is kept out of it.
    ("store/event_rows.rs", &["hold_selected"]),
    ("store/forward_extremities.rs", &["leave_out"]),
    ("store/held.rs", &["note", "leave_out"]),
    (
        "store/history.rs",
        &["forget_former_job", "select", "fill_extremities"],
    ),
    ("store/policies.rs", &["cuts"]),
    ("store/redactions.rs", &["keep"]),
    ("store/room_rows.rs", &["select_newest"]),
    (
        "store/search.rs",
        &[
            "new",
            "note_many",
            "note_newer",
            "note_room",
            "note_rooms",
            "note_one_of_rooms",
        ],
    ),
    (
        "store/search/lookup.rs",
        &["note", "note_room", "note_rooms"],
    ),
    ("store/temp_tables.rs", &["begin", "end"]),
    // Asks the index whether it is whole, by a statement that looks like one that writes.
    ("store/search.rs", &["verify"]),
    // How the engine reads, in transactions that only read.
    ("store/index_test.rs", &["compare"]),
    ("store/state_groups/unreferenced.rs", &["run", "confirm"]),
    // The file anew, row by row the same.
    ("store/reclaim.rs", &["copy_into", "vacuum_into"]),
    ("store/space.rs", &["vacuum"]),
    // Databases that are made here.
    (
        "store/sample.rs",
        &["fill_room", "event", "state", "finish"],
    ),
    ("store/schema.rs", &["create_on_server", "create_in"]),
    // An event writer has been given one when it began.
    (
        "store/append.rs",
        &[
            "append",
            "append_outside",
            "insert",
            "insert_auth",
            "group",
            "make_known",
        ],
    ),
];

/// Where functions begin, their names, and what stands before their bodies.
fn functions(code: &str) -> Vec<(usize, &str, &str)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let head = &code[at..];
        let head = &head[..head.find(['{', ';']).unwrap_or(head.len())];
        let name = head[3..].split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(name) = name.clone().next().filter(|name| !name.is_empty()) {
            found.push((at, name, head));
        }
    }
    found
}

#[test]
fn whoever_writes_rows_has_been_given_a_transaction_by_the_door() {
    let mut unused: BTreeSet<(&str, &str)> = (WRITES_NO_ROWS.iter())
        .flat_map(|(path, names)| names.iter().map(move |name| (*path, *name)))
        .collect();
    let (mut wrong, mut right) = (BTreeSet::new(), 0);
    for source in sources() {
        let (path, code) = (&source.path, &source.code);
        // Its constructor is for the door: job::transaction gives a `Tx`, and nobody else.
        let makes = code.contains("Terms {") || code.contains("Tx {");
        if makes && !["store/tx.rs", "job/transaction.rs"].contains(&path.as_str()) {
            wrong.insert(format!("{path} makes a Tx"));
        }
        if source.module() != Some("store") {
            continue;
        }
        let functions = functions(code);
        for write in [".execute(", ".batch(", ".execute_batch("] {
            for (at, _) in code.match_indices(write) {
                let function = functions.iter().rfind(|(begin, ..)| *begin < at);
                let (_, name, head) = function.expect("a statement is in a function");
                let excused = (WRITES_NO_ROWS.iter())
                    .filter(|(excused, _)| path == excused)
                    .find_map(|(path, names)| Some((*path, *names.iter().find(|n| *n == name)?)));
                match excused {
                    Some(excused) => _ = unused.remove(&excused),
                    None if head.contains("Tx<") => right += 1,
                    None => _ = wrong.insert(format!("{path}: {name}")),
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "rows are written without `&Tx`, which JobContext::transaction and job::write_once give: {wrong:#?}"
    );
    assert!(unused.is_empty(), "excused for nothing: {unused:?}");
    assert!(right > 40, "only {right} statements have a Tx");
}
