use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::*;
use crate::store::db::{Db, OpenOptions};
use crate::store::{check, schema};
use crate::time::Millis;

/// Our own schema, as the tests have it: columns by table.
fn catalogue(conn: &Connection) -> BTreeMap<String, BTreeSet<String>> {
    let mut statement = conn
        .prepare(
            "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'",
        )
        .expect("it is done");
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)));
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    for row in rows.expect("a list") {
        let (table, column) = row.expect("a row");
        found.entry(table).or_default().insert(column);
    }
    found
}

fn ours() -> Connection {
    let conn = Connection::open_in_memory().expect("it is done");
    schema::create_in(&conn).expect("it is done");
    conn
}

/// What a catalogue has that nobody has decided about, by name.
fn undecided(catalogue: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, columns) in catalogue {
        let Some(table) = named(name) else {
            if !is_known(name) && !name.starts_with("sqlite_") {
                found.push(name.clone());
            }
            continue;
        };
        let known: BTreeSet<&str> = table.columns().map(|(column, _)| column).collect();
        let unknown = columns
            .iter()
            .filter(|column| !known.contains(column.as_str()));
        found.extend(unknown.map(|column| format!("{name}.{column}")));
    }
    found
}

#[test]
fn every_table_and_column_of_our_schema_is_decided_about() {
    let catalogue = catalogue(&ours());
    assert!(catalogue.len() > 70);
    assert_eq!(undecided(&catalogue), Vec::<String>::new());
}

#[test]
fn a_table_and_a_column_of_tomorrow_are_named() {
    let conn = ours();
    conn.execute_batch(
        "CREATE TABLE polls (poll_id TEXT, room_id TEXT); ALTER TABLE events ADD COLUMN weather TEXT;",
    )
    .expect("it is done");
    assert_eq!(undecided(&catalogue(&conn)), ["events.weather", "polls"]);
}

#[test]
fn a_name_stands_once_and_is_plain() {
    let mut names = BTreeSet::new();
    for table in ALL {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(names.insert(table.name), "{} stands twice", table.name);
        assert!(table.name.chars().all(is_plain), "{}", table.name);
        let mut columns = BTreeSet::new();
        for word in table.columns.split(' ') {
            let (column, holds) = word.split_once(':').unwrap_or((word, "plain"));
            assert!(!column.is_empty(), "{}: two spaces", table.name);
            assert!(columns.insert(column), "{}.{column} twice", table.name);
            let is_word = holds == "plain" || Holds::named(holds) != Holds::Plain;
            assert!(is_word, "{}.{column}: {holds} says nothing", table.name);
        }
    }
}

/// What a table's columns name and what becomes of its rows agree: nothing is left undecided, and no rule looks for a column
/// that is not there.
#[test]
fn every_table_that_names_something_says_what_becomes_of_it() {
    for table in ALL {
        let holds = |what: (&str, Holds)| table.columns().any(|column| column == what);
        let by_event = table.purged().or(table.with_event).is_some();
        let goes = by_event || table.by_room.is_some();
        let is_named = table.columns().any(|(_, holds)| holds != Holds::Plain);
        let is_decided = goes || table.otherwise != Otherwise::Unconcerned;
        let is_own = matches!(table.otherwise, Otherwise::Own(_));
        assert!(!is_named || is_decided, "{} names something", table.name);
        assert!(is_named || !goes, "{} names nothing", table.name);
        assert!(
            !goes || table.otherwise == Otherwise::Unconcerned,
            "{} goes twice",
            table.name
        );
        if by_event || table.held.is_some() {
            assert!(holds(("event_id", Holds::Event)), "{}", table.name);
        }
        if table.by_room.is_some() {
            assert!(holds(("room_id", Holds::Room)), "{}", table.name);
        }
        assert!(!table.refers || goes || is_own, "{} would stop", table.name);
        // What goes with an event whose room stays, goes with it where the room goes, too.
        if table.purged().is_some() {
            assert!(table.with_event.is_some(), "{} would stay", table.name);
        }
        if let Some(column) = table.held_needs {
            assert!(table.columns().any(|(name, _)| name == column));
        }
    }
}

/// A row goes before the one that it refers to; Synapse's own keys are those that the list says.
#[test]
fn rows_go_before_what_they_refer_to() {
    let conn = ours();
    let mut statement = conn
        .prepare(
            r#"SELECT DISTINCT m.name, k."table" FROM sqlite_master m, pragma_foreign_key_list(m.name) k
                WHERE m.type = 'table'"#,
        )
        .expect("it is done");
    let keys = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)));
    let keys: Vec<(String, String)> = keys
        .expect("a list")
        .map(|key| key.expect("a key"))
        .collect();
    assert!(keys.len() > 15);
    let events: Vec<&str> = with_events_of_room().map(|table| table.name).collect();
    assert_eq!(events.last(), Some(&"events"));
    let place = |table: &Table| ALL.iter().position(|t| t.name == table.name);
    for (child, parent) in keys {
        let (child, parent) = (
            named(&child).expect("a table of the list"),
            named(&parent).expect("a table of the list"),
        );
        let about = format!("{} refers to {}", child.name, parent.name);
        let is_ours = ["events", "rooms"].contains(&parent.name);
        assert!(!is_ours || child.refers, "{about}");
        if let (Some(of_child), Some(of_parent)) = (child.by_room, parent.by_room) {
            let is_before = (of_child as u8, place(child)) < (of_parent as u8, place(parent));
            assert!(is_before, "{about}");
        }
        if parent.name == "events" && child.purged().is_some() {
            assert!(place(child) < place(parent), "{about}");
        }
    }
}

/// The order of P-13, in which rows are locked, too.
#[test]
fn a_history_purge_removes_rows_in_its_order() {
    let order: Vec<&str> = purged().map(|table| table.name).collect();
    let of_p_13 = [
        "event_edges",
        "events",
        "event_json",
        "event_auth",
        "event_relations",
        "event_search",
        "rejections",
        "redactions",
    ];
    let kept: Vec<&str> = order
        .iter()
        .copied()
        .filter(|t| of_p_13.contains(t))
        .collect();
    assert_eq!(kept, of_p_13);
    assert_eq!(order.first(), Some(&"event_to_state_groups"));
}

/// `check` misses no row of which the list says that its event is held, and takes none for one that is.
#[test]
fn check_names_every_table_whose_rows_lack_their_event() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("homeserver.db");
    schema::create(&path).expect("made");
    let held = || ALL.iter().filter(|table| table.held.is_some());
    // The index of a file has no table of that shape.
    let of_files = || held().filter(|table| table.held_needs.is_none());
    assert_eq!((held().count(), of_files().count()), (9, 8));
    let conn = Connection::open(&path).expect("opens");
    conn.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON")
        .expect("off");
    for table in of_files() {
        let mut statement = conn
            .prepare(
                r#"SELECT name FROM pragma_table_info($1) WHERE "notnull" OR name = 'event_id'"#,
            )
            .expect("prepared");
        let names = statement.query_map([table.name], |r| r.get::<_, String>(0));
        let names: Vec<String> = names
            .expect("a list")
            .map(|name| name.expect("a name"))
            .collect();
        let values = vec!["1"; names.len()].join(", ");
        let names = names.join(", ");
        let sql = format!("INSERT INTO {} ({names}) VALUES ({values})", table.name);
        conn.execute(&sql, [])
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
    drop(conn);
    let db = Db::open(&path, &OpenOptions::default()).expect("opens");
    let found = check::check(&db, Millis(0), |_, _| ())
        .expect("checked")
        .violations;
    let told: BTreeMap<&str, i64> = found
        .iter()
        .filter(|v| v.rule == "I-13")
        .map(|v| (v.meaning, v.rows))
        .collect();
    let meanings: Vec<String> = of_files()
        .map(|table| {
            format!(
                "every {} belongs to an event that is held",
                table.held.expect("held")
            )
        })
        .collect();
    let expected: BTreeMap<&str, i64> = meanings.iter().map(|m| (m.as_str(), 1)).collect();
    assert_eq!(told, expected);
}
