//! A room that was deleted comes back: as it was, where nobody is in it again; else its history alone, and what it is now
//! stays.

use std::collections::HashMap;

use super::groups::restore_groups;
use super::{DOING, Fields, Insert, Item, LOWER_DEPTH, Numbers, Restored};
use super::{event, restore_events, restore_thread, walk};
use crate::archive::{Cell, Records};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::archived::REST;
use crate::store::db::{Db, Engine, params};
use crate::store::event_rows::{Scope, add};
use crate::store::tables;
use crate::store::tx::Tx;
use crate::store::value::Bind;

/// Binds `$1` room.
const IS_LIVE: &str = "
    SELECT EXISTS (SELECT 1 FROM current_state_events
                    WHERE room_id = $1 AND type = 'm.room.create' AND state_key = '')";

/// Its place in the auth graph is found by the homeserver. Binds `$1` event.
const CHAIN_LATER: &str = "
    INSERT INTO event_auth_chain_to_calculate (event_id, room_id, type, state_key)
    SELECT event_id, room_id, type, state_key FROM events
     WHERE event_id = $1
       AND state_key IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM event_auth_chain_to_calculate WHERE event_id = $1)";

const TEMPORARY_TABLES: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_documents (
        event_id TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (event_id, key)) WITHOUT ROWID;
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_documents_of (room_id TEXT PRIMARY KEY)";

const ARE_NOTED: &str = "SELECT count(*) FROM rk_documents_of WHERE room_id = $1";

/// Binds `$1` room. Walks the content table once.
const NOTE_DOCUMENTS: &str = "
    INSERT OR IGNORE INTO rk_documents (event_id, key)
    SELECT c0event_id, c3key FROM event_search_content
     WHERE c1room_id = $1 AND c0event_id IS NOT NULL AND c3key IS NOT NULL";

/// Rows that what stands in their way makes room for, where the room comes back as it was: by these columns.
const REPLACED: &[(&str, &[&str])] = &[
    ("local_current_membership", &["room_id", "user_id"]),
    ("sliding_sync_membership_snapshots", &["room_id", "user_id"]),
    ("sliding_sync_joined_rooms", &["room_id"]),
    ("room_stats_current", &["room_id"]),
    ("room_stats_state", &["room_id"]),
    ("room_stats_earliest_token", &["room_id"]),
];

/// Rows that are there already when these columns are the same: no key of their own says so.
const SAME: &[(&str, &[&str])] = &[
    (
        "receipts_graph",
        &["room_id", "receipt_type", "user_id", "thread_id"],
    ),
    (
        "receipts_linearized",
        &["room_id", "receipt_type", "user_id", "thread_id"],
    ),
    ("room_alias_servers", &["room_alias", "server"]),
    (
        "stream_ordering_to_exterm",
        &["room_id", "stream_ordering", "event_id"],
    ),
    (
        "event_push_actions",
        &["room_id", "event_id", "user_id", "profile_tag"],
    ),
    (
        "federation_inbound_events_staging",
        &["room_id", "origin", "event_id"],
    ),
    (
        "event_auth_chain_links",
        &[
            "origin_chain_id",
            "target_chain_id",
            "origin_sequence_number",
            "target_sequence_number",
        ],
    ),
];

/// What comes back into a room that lives again, beside what belongs to its events.
const OF_PEOPLE: &[&str] = &[
    "room_aliases",
    "room_alias_servers",
    "room_retention",
    "receipts_graph",
    "receipts_linearized",
    "e2e_room_keys",
    "room_account_data",
    "room_tags",
];

/// What belongs to events and is the room's as it is now.
const OF_NOW: &[&str] = &[
    "event_forward_extremities",
    "event_auth_chains",
    "event_auth_chain_to_calculate",
];

/// Whether the homeserver is in a room.
pub fn is_live(db: &Db, room: &RoomId) -> Result<bool, Error> {
    Ok(db.count(DOING, IS_LIVE, params![room.as_str()])? > 0)
}

/// Has the homeserver find out where a state event stands in the auth graph.
pub(super) fn chain_later(db: &Tx<'_>, event: &str) -> Result<(), Error> {
    if db.catalog().has("event_auth_chain_to_calculate") {
        db.execute(DOING, CHAIN_LATER, params![event])?;
    }
    Ok(())
}

/// How rows of a table come back.
struct Way {
    insert: Option<Insert>,
    replaces: Option<String>,
    finds_same: Option<String>,
    columns: &'static [&'static str],
}

impl Way {
    fn of(db: &Db, table: &str, archived: &[String], is_live: bool) -> Result<Self, Error> {
        let of = |list: &'static [(&str, &'static [&'static str])]| {
            let found = list.iter().find(|(name, _)| *name == table);
            found.map(|(_, columns)| *columns)
        };
        let replaced = of(REPLACED).filter(|_| !is_live);
        let same = of(SAME);
        let is_so = |columns: &[&str]| {
            let each = columns.iter().enumerate();
            let each: Vec<String> = each
                .map(|(n, column)| format!("{column} IS NOT DISTINCT FROM ${}", n + 1))
                .collect();
            each.join(" AND ")
        };
        let of_key = |columns: &[&str]| is_so(columns).replace(" IS NOT DISTINCT FROM ", " = ");
        Ok(Self {
            insert: Insert::of(db, table, archived, true)?,
            replaces: replaced.map(|key| format!("DELETE FROM {table} WHERE {}", of_key(key))),
            finds_same: same
                .map(|key| format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {})", is_so(key))),
            columns: replaced.or(same).unwrap_or(&[]),
        })
    }

    /// Answers whether the row is back; nothing where it was there.
    fn run(&self, db: &Tx<'_>, row: &Fields<'_>) -> Result<Option<bool>, Error> {
        let Some(insert) = &self.insert else {
            return Ok(Some(false));
        };
        let null = Cell::Null;
        let cells = self.columns.iter().map(|column| row.at(column));
        let bound: Vec<&dyn Bind> = cells
            .map(|cell| cell.unwrap_or(&null) as &dyn Bind)
            .collect();
        if let Some(replace) = &self.replaces {
            db.execute(DOING, replace, &bound)?;
        } else if let Some(same) = &self.finds_same
            && db.count(DOING, same, &bound)? > 0
        {
            return Ok(None);
        }
        insert.run(db, row).map(Some)
    }
}

/// Puts a frame of a deleted room back, in one transaction.
pub(super) fn restore_room(
    db: &Tx<'_>,
    room: &RoomId,
    records: &dyn Fn() -> Result<Records, Error>,
    numbers: &Numbers,
) -> Result<Restored, Error> {
    let is_live = is_live(db, room)?;
    let mut restored = restore_groups(db, records, numbers)?;
    let put = |restored: &mut Restored, wanted: &dyn Fn(&str) -> bool| {
        rest(db, room, records, numbers, is_live, restored, wanted)
    };
    // What everything else refers to comes first.
    put(&mut restored, &|table| table == "rooms")?;
    let events = restore_events(db, room, &mut records()?, numbers, Scope::Room)?;
    restored.add(&events);
    let first = "partial_state_rooms";
    put(&mut restored, &|table| table == first)?;
    put(&mut restored, &|table| !["rooms", first].contains(&table))?;
    Ok(restored)
}

/// Puts the rows back that are no events' of this frame, of the tables that are wanted.
fn rest(
    db: &Tx<'_>,
    room: &RoomId,
    records: &dyn Fn() -> Result<Records, Error>,
    numbers: &Numbers,
    is_live: bool,
    restored: &mut Restored,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<(), Error> {
    let mut of_events = false;
    let mut ways: HashMap<String, Way> = HashMap::new();
    walk(&mut records()?, &mut |item| {
        let (table, columns, mut cells) = match item {
            Item::Chunk => {
                of_events = true;
                return Ok(());
            }
            Item::Row(table, columns, cells) => (table, columns, cells),
        };
        if table == REST {
            of_events = false;
        }
        let is_group = ["state_groups", "state_group_edges", "state_groups_state"].contains(&table);
        if of_events || is_group || table.starts_with("rk.") || !wanted(table) {
            return Ok(());
        }
        numbers.exchange(columns, &mut cells);
        let row = Fields(columns, &cells);
        let is_back = match table {
            "event_search" if db.engine() == Engine::Sqlite => document(db, room, &row)?,
            "threads" if is_live => {
                restore_thread(db, &row, restored)?;
                None
            }
            "room_depth" if is_live => {
                let depth = row.int("min_depth")?;
                db.execute(DOING, LOWER_DEPTH, params![depth, room.as_str()])?;
                None
            }
            _ if is_live && !comes_into_live(db, table, &row)? => None,
            _ => {
                if !ways.contains_key(table) {
                    let way = Way::of(db, table, columns, is_live)?;
                    ways.insert(table.to_owned(), way);
                }
                ways[table].run(db, &row)?
            }
        };
        match is_back {
            Some(true) => add(&mut restored.rows, table, 1),
            Some(false) => add(&mut restored.left_out, table, 1),
            None => {}
        }
        Ok(())
    })
}

/// Whether a row comes back although the room lives again.
fn comes_into_live(db: &Db, table: &str, row: &Fields<'_>) -> Result<bool, Error> {
    if OF_PEOPLE.contains(&table) {
        return Ok(true);
    }
    let belongs = tables::named(table).is_some_and(|table| table.with_event.is_some());
    if !belongs || OF_NOW.contains(&table) {
        return Ok(false);
    }
    match row.at("event_id").and_then(Cell::text) {
        Some(id) => Ok(event(db, id)?.is_some()),
        None => Ok(false),
    }
}

/// Puts a document of the full-text index back, unless it is there.
fn document(db: &Tx<'_>, room: &RoomId, row: &Fields<'_>) -> Result<Option<bool>, Error> {
    const IS_THERE: &str = "SELECT count(*) FROM rk_documents WHERE event_id = $1 AND key = $2";
    const INSERT: &str = "
        INSERT INTO event_search (event_id, room_id, sender, key, value) VALUES ($1, $2, $3, $4, $5)";
    db.batch(DOING, TEMPORARY_TABLES)?;
    if db.count(DOING, ARE_NOTED, params![room.as_str()])? == 0 {
        db.execute(DOING, NOTE_DOCUMENTS, params![room.as_str()])?;
        let noted = "INSERT INTO rk_documents_of (room_id) VALUES ($1)";
        db.execute(DOING, noted, params![room.as_str()])?;
    }
    let null = Cell::Null;
    let cell = |column: &str| row.at(column).unwrap_or(&null).clone();
    let (id, key) = (cell("event_id"), cell("key"));
    // As often as it was there: what comes back now is not noted.
    if db.count(DOING, IS_THERE, params![id, key])? > 0 {
        return Ok(None);
    }
    let (of, sender, value) = (cell("room_id"), cell("sender"), cell("value"));
    db.execute(DOING, INSERT, params![id, of, sender, key, value])?;
    Ok(Some(true))
}
