//! Putting rows back that an archive holds, frame by frame, newest first: each in one transaction that leaves a whole room.
//!
//! What came meanwhile stays as it is. An event that is held again keeps its present row; a number that was given out again
//! is exchanged for a new one, for events as for state groups; a row whose owner is gone (a device, an account) stays away.
//! Forward extremities, the current state, unread counts and streams are left as they are: people have gone on since.

mod groups;
mod numbers;
mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use self::groups::restore_groups;
pub use self::numbers::{Numbers, number};
pub use self::room::is_live;
use super::archived::{DEPTH, EXTREMITIES, GROUPS, OUTLIERS, REST};
use super::db::{Db, Engine, params};
use super::event_rows::{RowCounts, Scope, add, add_all};
use super::exact_rows;
use super::tables::Rows;
use super::tx::Tx;
use super::value::Bind;
use crate::archive::{Cell, Kind, Record, Records};
use crate::error::Error;
use crate::ids::RoomId;

const DOING: &str = "restore the archive";

/// Binds `$1` event. Walks the key on event id.
const EVENT: &str = "SELECT stream_ordering, outlier FROM events WHERE event_id = $1";

/// Binds `$1` stream ordering.
const IS_GIVEN_OUT: &str = "SELECT count(*) FROM events WHERE stream_ordering = $1";

/// Binds `$1` group.
const GROUP: &str = "SELECT room_id, event_id FROM state_groups WHERE id = $1";

/// Whether something goes by the number of a group that is not there. Binds `$1` group.
const IS_NAMED: &str = "
    SELECT EXISTS (SELECT 1 FROM state_groups_state WHERE state_group = $1)
        OR EXISTS (SELECT 1 FROM state_group_edges WHERE state_group = $1)
        OR EXISTS (SELECT 1 FROM state_group_edges WHERE prev_state_group = $1)
        OR EXISTS (SELECT 1 FROM event_to_state_groups WHERE state_group = $1)";

/// Binds `$1` event. It stayed, and its state is known again.
const TURN_BACK: &str = "UPDATE events SET outlier = FALSE WHERE event_id = $1 AND outlier";

/// Extremities of the room that are held in its timeline again. Binds `$1` room.
const DROP_EXTREMITIES: &str = "
    DELETE FROM event_backward_extremities
     WHERE room_id = $1
       AND EXISTS (SELECT 1 FROM events e
                    WHERE e.event_id = event_backward_extremities.event_id AND NOT e.outlier)";

/// What was an extremity before and is one again. Binds `$1` room, `$2` event.
const PUT_EXTREMITY_BACK: &str = "
    INSERT INTO event_backward_extremities (room_id, event_id)
    SELECT $1, $2
     WHERE NOT EXISTS (SELECT 1 FROM events h WHERE h.event_id = $2 AND NOT h.outlier)
       AND NOT EXISTS (SELECT 1 FROM event_backward_extremities b WHERE b.room_id = $1 AND b.event_id = $2)
       AND EXISTS (SELECT 1 FROM event_edges g
                    CROSS JOIN events v
                    WHERE g.prev_event_id = $2
                      AND v.event_id = g.event_id
                      AND v.room_id = $1
                      AND NOT v.outlier)";

/// Whether the room's least depth is what a purge writes (P-11), and nobody's who fetched older events since. Binds `$1` room.
const IS_PURGED_DEPTH: &str = "
    SELECT count(*) FROM room_depth d
     WHERE d.room_id = $1
       AND d.min_depth = (
           SELECT coalesce(min(e.depth), 0)
             FROM event_backward_extremities b
            CROSS JOIN event_edges g
            CROSS JOIN events e
            WHERE b.room_id = $1
              AND g.prev_event_id = b.event_id
              AND e.event_id = g.event_id)";

/// Binds `$1` depth, `$2` room.
const SET_DEPTH: &str = "UPDATE room_depth SET min_depth = $1 WHERE room_id = $2";

/// Binds `$1` depth, `$2` room.
const LOWER_DEPTH: &str =
    "UPDATE room_depth SET min_depth = $1 WHERE room_id = $2 AND min_depth > $1";

/// Binds `$1` room, `$2` root.
const THREAD: &str = "SELECT topological_ordering, stream_ordering FROM threads WHERE room_id = $1 AND thread_id = $2";

const INSERT_THREAD: &str = "
    INSERT INTO threads (room_id, thread_id, latest_event_id, topological_ordering, stream_ordering)
    VALUES ($1, $2, $3, $4, $5)";

const SET_LATEST: &str = "
    UPDATE threads SET latest_event_id = $1, topological_ordering = $2, stream_ordering = $3
     WHERE room_id = $4 AND thread_id = $5";

/// Foreign keys are looked at when the transaction commits.
const LATE_KEYS: &str = "PRAGMA defer_foreign_keys = ON";

/// Those that may wait; the others find what they refer to, because that comes first.
const LATE_KEYS_ON_POSTGRES: &str = "-- PostgreSQL
    SET CONSTRAINTS ALL DEFERRED";

/// What a state group is known again by: its room, and the event that it was made for.
type Known = (String, String);

/// What an archive holds, held against a database.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Events that come back.
    pub events: i64,
    /// Events that left the timeline and come back into it.
    pub outliers: i64,
    /// Events of the archive that are held in the timeline.
    pub present: i64,
    /// Events of which the archive says that they stayed, and that are gone by now.
    pub missing: i64,
    /// State groups that come back.
    pub groups: i64,
    /// State groups that are needed and neither in the archive nor in the database.
    pub missing_groups: i64,
    /// Rows, by table.
    pub rows: RowCounts,
    /// Rooms.
    pub rooms: BTreeSet<RoomId>,
    /// Rooms that come back themselves.
    pub whole: BTreeSet<RoomId>,
    /// Rooms of these that live again: what they are now, they stay.
    pub live: BTreeSet<RoomId>,
    /// Outliers that come back with a newer frame.
    outliers_coming: HashSet<String>,
    taken_orders: BTreeSet<i64>,
    least_order: i64,
    taken_groups: BTreeSet<i64>,
    greatest_group: i64,
    taken_chains: BTreeSet<i64>,
    greatest_chain: i64,
    /// Chains that were looked at.
    chains: HashSet<i64>,
    /// Groups that come back, and what each rests on.
    coming: HashSet<i64>,
    edges: Vec<(i64, i64)>,
    known: HashMap<i64, Known>,
    needed: HashMap<i64, Known>,
}

/// What one transaction brought back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Events that are in the timeline again.
    pub events: i64,
    /// State groups.
    pub groups: i64,
    /// Rows, by table.
    pub rows: RowCounts,
    /// Rows that stay away, by table: their table, or what they belong to, is gone.
    pub left_out: RowCounts,
}

impl Restored {
    fn add(&mut self, more: &Self) {
        self.events += more.events;
        self.groups += more.groups;
        add_all(&mut self.rows, &more.rows);
        add_all(&mut self.left_out, &more.left_out);
    }
}

enum Item<'a> {
    Chunk,
    Row(&'a str, &'a [String], Vec<Cell<'static>>),
}

/// Hands out what stands in a frame.
fn walk(
    records: &mut Records,
    each: &mut dyn FnMut(Item<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let damaged =
        |why: &dyn std::fmt::Display| Error::Refused(format!("the archive is damaged: {why}"));
    let mut at = usize::MAX;
    while let Some(record) = records.read().map_err(|e| damaged(&e))? {
        match record {
            Record::Chunk => each(Item::Chunk)?,
            Record::Table(table) => at = table,
            Record::Row(cells) => {
                let table = records.table(at);
                let (name, columns) = table.ok_or_else(|| damaged(&"a row of no table"))?;
                each(Item::Row(name, columns, cells))?;
            }
        }
    }
    Ok(())
}

/// A row, with its columns.
struct Fields<'a>(&'a [String], &'a [Cell<'static>]);

impl Fields<'_> {
    fn at(&self, column: &str) -> Option<&Cell<'static>> {
        let at = self.0.iter().position(|name| name == column)?;
        self.1.get(at)
    }

    fn text(&self, column: &str) -> Result<&str, Error> {
        self.at(column)
            .and_then(Cell::text)
            .ok_or_else(|| no_such(column))
    }

    fn int(&self, column: &str) -> Result<i64, Error> {
        self.at(column)
            .and_then(Cell::int)
            .ok_or_else(|| no_such(column))
    }

    fn known(&self) -> Result<(i64, Known), Error> {
        let known = (
            self.text("room_id")?.to_owned(),
            self.text("event_id")?.to_owned(),
        );
        Ok((self.int("id")?, known))
    }
}

fn no_such(column: &str) -> Error {
    Error::Refused(format!("the archive has a row without its {column}"))
}

/// The event's present number, and whether it is an outlier.
fn event(db: &Db, id: &str) -> Result<Option<(i64, bool)>, Error> {
    db.row(DOING, EVENT, params![id], |r| Ok((r.get(0)?, r.get(1)?)))
}

fn group(db: &Db, group: i64) -> Result<Option<Known>, Error> {
    db.row(DOING, GROUP, params![group], |r| {
        Ok((
            r.get(0)?,
            r.get::<_, Option<String>>(1)?.unwrap_or_default(),
        ))
    })
}

/// Looks at a frame; frames newest first. `before` has the numbers that an earlier try gave out.
///
/// # Errors
/// [`Error::Refused`] where the frame is damaged inside; those of the database.
pub fn look(
    db: &Db,
    room: &RoomId,
    records: &mut Records,
    before: &Numbers,
    look: &mut Look,
) -> Result<(), Error> {
    walk(records, &mut |item| {
        let Item::Row(table, columns, cells) = item else {
            return Ok(());
        };
        let row = Fields(columns, &cells);
        if !table.starts_with("rk.") {
            add(&mut look.rows, table, 1);
        }
        match table {
            OUTLIERS => match event(db, row.text("event_id")?)? {
                Some((_, true)) => look.outliers += 1,
                Some((_, false)) => look.present += 1,
                // A later transaction of the same job deleted it.
                None if look.outliers_coming.contains(row.text("event_id")?) => look.outliers += 1,
                None => look.missing += 1,
            },
            GROUPS => {
                let (id, known) = row.known()?;
                look.needed.insert(id, known);
            }
            "events" => {
                let order = row.int("stream_ordering")?;
                look.least_order = look.least_order.min(order);
                let present = event(db, row.text("event_id")?)?;
                let was_outlier = row.int("outlier")? != 0;
                match present {
                    Some((now, is_outlier)) if now == order || !is_outlier || was_outlier => {
                        look.present += 1;
                        return Ok(());
                    }
                    _ if was_outlier => {
                        look.outliers_coming
                            .insert(row.text("event_id")?.to_owned());
                    }
                    _ => look.events += 1,
                }
                if db.count(DOING, IS_GIVEN_OUT, params![order])? > 0 {
                    look.taken_orders.insert(order);
                }
            }
            "rooms" => {
                look.whole.insert(room.clone());
            }
            "event_auth_chains" => {
                let chain = row.int("chain_id")?;
                look.greatest_chain = look.greatest_chain.max(chain);
                if look.chains.insert(chain) && numbers::is_taken(db, before.chain(chain), room)? {
                    look.taken_chains.insert(chain);
                }
            }
            "state_groups" => {
                let (id, known) = row.known()?;
                look.greatest_group = look.greatest_group.max(id);
                let target = before.group(id);
                match group(db, target)? {
                    Some(stands) if stands == known => {}
                    None if db.count(DOING, IS_NAMED, params![target])? == 0 => {
                        look.coming.insert(id);
                    }
                    _ => {
                        look.coming.insert(id);
                        look.taken_groups.insert(id);
                    }
                }
                look.known.insert(id, known);
            }
            "state_group_edges" => {
                let edge = (row.int("state_group")?, row.int("prev_state_group")?);
                look.edges.push(edge);
            }
            _ => {}
        }
        Ok(())
    })
}

/// How rows of a table are put back.
struct Insert {
    sql: String,
    /// Places of the columns in the archive that the table still has.
    picks: Vec<usize>,
    keys: Vec<Key>,
}

/// A foreign key on something else than events and rooms.
struct Key {
    sql: String,
    columns: Vec<String>,
}

impl Insert {
    /// With `looks_up`, rows stay away as well whose event or room is not there.
    fn of(
        db: &Db,
        table: &str,
        archived: &[String],
        looks_up: bool,
    ) -> Result<Option<Self>, Error> {
        if !db.catalog().has(table) {
            return Ok(None);
        }
        let present = exact_rows::columns(db, table)?;
        let (mut picks, mut names, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (at, name) in archived.iter().enumerate() {
            if let Some(column) = present.iter().find(|column| column.name == *name) {
                picks.push(at);
                names.push(format!("\"{name}\""));
                values.push(column.bound(picks.len()));
            }
        }
        let unless_there = match (table, db.engine()) {
            ("events" | "event_json", _) | ("event_search", Engine::Sqlite) => "",
            _ => " ON CONFLICT DO NOTHING",
        };
        let mut keys: BTreeMap<i64, (String, Vec<(String, String)>)> = BTreeMap::new();
        for column in exact_rows::keys(db, table)? {
            let key = keys.entry(column.key).or_default();
            key.0 = column.parent;
            key.1.push((column.from, column.to));
        }
        let keys = keys
            .into_values()
            .filter(|(parent, _)| {
                looks_up || !["events", "rooms"].contains(&parent.to_lowercase().as_str())
            })
            .map(|(parent, columns)| {
                let is: Vec<String> = columns
                    .iter()
                    .enumerate()
                    .map(|(n, (_, to))| format!("\"{to}\" = ${}", n + 1))
                    .collect();
                Key {
                    sql: format!(
                        "SELECT EXISTS (SELECT 1 FROM \"{parent}\" WHERE {})",
                        is.join(" AND ")
                    ),
                    columns: columns.into_iter().map(|(from, _)| from).collect(),
                }
            });
        Ok(Some(Self {
            sql: format!(
                "INSERT INTO {table} ({}) VALUES ({}){unless_there}",
                names.join(", "),
                values.join(", ")
            ),
            picks,
            keys: keys.collect(),
        }))
    }

    /// Puts a row back; answers whether it could be.
    fn run(&self, db: &Tx<'_>, row: &Fields<'_>) -> Result<bool, Error> {
        for key in &self.keys {
            let cells: Option<Vec<&Cell<'static>>> =
                key.columns.iter().map(|column| row.at(column)).collect();
            let Some(cells) = cells.filter(|cells| !cells.contains(&&Cell::Null)) else {
                continue;
            };
            let bound: Vec<&dyn Bind> = cells.into_iter().map(|cell| cell as &dyn Bind).collect();
            if db.count(DOING, &key.sql, &bound)? == 0 {
                return Ok(false);
            }
        }
        let bound: Vec<&dyn Bind> = self
            .picks
            .iter()
            .map(|at| &row.1[*at] as &dyn Bind)
            .collect();
        Ok(db.execute(DOING, &self.sql, &bound)? > 0)
    }
}

/// Takes the rows of an outlier away, in whose place the event itself comes back.
fn replace_outlier(db: &Tx<'_>, scope: Scope, event: &str) -> Result<(), Error> {
    for (table, rows) in scope.tables() {
        let is_index = table.name == "event_search" && db.engine() == Engine::Sqlite;
        if rows == Rows::Itself || is_index || !db.catalog().has(table.name) {
            continue;
        }
        let sql = format!("DELETE FROM {} WHERE event_id = $1", table.name);
        db.execute(DOING, &sql, params![event])?;
    }
    db.execute(
        DOING,
        "DELETE FROM events WHERE event_id = $1",
        params![event],
    )?;
    Ok(())
}

/// The events of a chunk, by what becomes of them.
#[derive(Default)]
struct Chunk {
    inserted: HashSet<String>,
    turned_back: HashSet<String>,
    /// Whether rows of a room that goes are no events' at this place.
    is_over: bool,
}

/// Puts the events of a frame back, in one transaction.
fn restore_events(
    db: &Tx<'_>,
    room: &RoomId,
    records: &mut Records,
    numbers: &Numbers,
    scope: Scope,
) -> Result<Restored, Error> {
    let of_whole = scope == Scope::Room;
    let is_live = of_whole && is_live(db, room)?;
    db.batch(DOING, db.text(LATE_KEYS, LATE_KEYS_ON_POSTGRES))?;
    let of_room = params![room.as_str()];
    let is_purged_depth = db.count(DOING, IS_PURGED_DEPTH, of_room)? > 0;
    let mut restored = Restored::default();
    let mut inserts: HashMap<String, Option<Insert>> = HashMap::new();
    let mut chunk = Chunk {
        is_over: of_whole,
        ..Chunk::default()
    };
    let (mut extremities, mut depth, mut threads) = (Vec::new(), None, Vec::new());
    walk(records, &mut |item| {
        let Item::Row(table, columns, mut cells) = item else {
            chunk = Chunk::default();
            return Ok(());
        };
        numbers.exchange(columns, &mut cells);
        let row = Fields(columns, &cells);
        match table {
            DEPTH => depth = row.at("min_depth").and_then(Cell::int),
            EXTREMITIES => extremities.push(row.text("event_id")?.to_owned()),
            REST => chunk.is_over = true,
            _ if chunk.is_over => {}
            OUTLIERS => {
                let id = row.text("event_id")?;
                if db.execute(DOING, TURN_BACK, params![id])? > 0 {
                    chunk.turned_back.insert(id.to_owned());
                    restored.events += 1;
                }
            }
            "threads" => threads.push((columns.to_vec(), cells)),
            // As people left it.
            "event_forward_extremities" => {}
            _ if table.starts_with("rk.") => {}
            _ => {
                let id = row.text("event_id")?;
                let comes = match table {
                    "events" => match event(db, id)? {
                        None => true,
                        Some((_, true)) if row.int("outlier")? == 0 => {
                            replace_outlier(db, scope, id)?;
                            true
                        }
                        Some(_) => false,
                    },
                    "event_to_state_groups" => {
                        chunk.inserted.contains(id) || chunk.turned_back.contains(id)
                    }
                    _ => chunk.inserted.contains(id),
                };
                if !comes {
                    return Ok(());
                }
                if is_live && table == "event_auth_chains" {
                    room::chain_later(db, id)?;
                    return Ok(());
                }
                let insert = match inserts.get(table) {
                    Some(insert) => insert,
                    None => {
                        let insert = Insert::of(db, table, columns, false)?;
                        inserts.entry(table.to_owned()).or_insert(insert)
                    }
                };
                let is_back = match insert {
                    Some(insert) => insert.run(db, &row)?,
                    None => false,
                };
                if table == "events" {
                    chunk.inserted.insert(id.to_owned());
                    restored.events += i64::from(row.int("outlier")? == 0);
                }
                let counts = match is_back {
                    true => &mut restored.rows,
                    false => &mut restored.left_out,
                };
                add(counts, table, 1);
            }
        }
        Ok(())
    })?;
    for (columns, cells) in threads {
        restore_thread(db, &Fields(&columns, &cells), &mut restored)?;
    }
    db.execute(DOING, DROP_EXTREMITIES, params![room.as_str()])?;
    for id in extremities {
        db.execute(DOING, PUT_EXTREMITY_BACK, params![room.as_str(), id])?;
    }
    if let Some(depth) = depth {
        let sql = match is_purged_depth {
            true => SET_DEPTH,
            false => LOWER_DEPTH,
        };
        db.execute(DOING, sql, params![depth, room.as_str()])?;
    }
    Ok(restored)
}

/// A thread is as new as its newest reply that is held.
fn restore_thread(db: &Tx<'_>, row: &Fields<'_>, restored: &mut Restored) -> Result<(), Error> {
    let (room, root, latest) = (
        row.text("room_id")?,
        row.text("thread_id")?,
        row.text("latest_event_id")?,
    );
    if !db.catalog().has("threads") {
        return Ok(());
    }
    let Some((stream, _)) = event(db, latest)? else {
        return Ok(());
    };
    let topological = row.int("topological_ordering")?;
    let present = db.row(DOING, THREAD, params![room, root], |r| {
        Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?))
    })?;
    match present {
        Some(present) if present >= (topological, stream) => {}
        Some(_) => {
            let set = params![latest, topological, stream, room, root];
            db.execute(DOING, SET_LATEST, set)?;
        }
        None => {
            let thread = params![room, root, latest, topological, stream];
            db.execute(DOING, INSERT_THREAD, thread)?;
            add(&mut restored.rows, "threads", 1);
        }
    }
    Ok(())
}

/// Puts a frame back, in one transaction.
///
/// # Errors
/// Those of the archive and of the database; nothing has come back then.
pub fn restore(
    db: &Tx<'_>,
    kind: Kind,
    room: &RoomId,
    records: &dyn Fn() -> Result<Records, Error>,
    numbers: &Numbers,
) -> Result<Restored, Error> {
    db.ensure_held(room)?;
    match kind {
        Kind::Events => restore_events(db, room, &mut records()?, numbers, Scope::History),
        Kind::StateGroups | Kind::MarkedStateGroups => restore_groups(db, records, numbers),
        Kind::Room => room::restore_room(db, room, records, numbers),
    }
}
