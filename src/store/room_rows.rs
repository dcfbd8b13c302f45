//! The rows of a room (behaviour.md section 5): which tables have them, counting them, and removing them in an order
//! that leaves a sound database at every step.
//!
//! What makes the room live goes first. Its events go newest first, so that what remains always has its ancestors and
//! its state. What hangs on neither goes then, and the room's own row last.

use super::archived::Kept;
use super::db::{Db, Engine, Params, params};
use super::event_rows::{self, Removal, RowCounts, Scope, add};
use super::tables::{self, Holds, Otherwise, Per, Rows, Step, Table};
use super::temp_tables::{self, Extent};
use super::tx::{Abort, Tx};
use super::{referring, search, state_groups};
use crate::error::Error;
use crate::ids::{RoomId, UserId};

/// A table that we know nothing of and that has rows of the room (V-5).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unknown {
    /// Its name.
    pub table: String,
    /// Its rows that name the room or one of its events.
    pub rows: i64,
    /// Whether a foreign key of theirs would stop the delete.
    pub stops_delete: bool,
}

/// Whether the room has a row of its own.
pub fn is_known(db: &Db, room: &RoomId) -> Result<bool, Error> {
    const KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM rooms WHERE room_id = $1)";
    Ok(db.count("look for the room", KNOWN, params![room.as_str()])? > 0)
}

/// Events of the room, in the timeline or not.
pub fn count_events(db: &Db, room: &RoomId) -> Result<i64, Error> {
    const EVENTS: &str = "SELECT count(*) FROM events WHERE room_id = $1";
    db.count("count the room's events", EVENTS, params![room.as_str()])
}

/// Local users who are joined (E-1). Domains are compared here, not by a pattern (E-2). Walks the room's part of the
/// key on current state.
pub fn joined_local_users(db: &Db, room: &RoomId, server_name: &str) -> Result<Vec<UserId>, Error> {
    let users = joined_users(db, room)?.into_iter();
    Ok(users.filter(|user| user.is_local(server_name)).collect())
}

/// Servers whose users are joined or invited, other than this one, in alphabetical order: they learn of a deletion only if
/// its leaves go out before the room's rows go (D-51, D-52).
pub fn other_servers(db: &Db, room: &RoomId, server_name: &str) -> Result<Vec<String>, Error> {
    const INVITED: &str = "
        SELECT c.state_key
          FROM current_state_events c
          LEFT JOIN room_memberships m ON m.event_id = c.event_id
         WHERE c.room_id = $1
           AND c.type = 'm.room.member'
           AND coalesce(c.membership, m.membership) IN ('join', 'invite', 'knock')";
    let doing = "read who is in the room";
    let users = db.rows(doing, INVITED, params![room.as_str()], |r| {
        r.get::<_, String>(0).map(UserId::new)
    })?;
    let servers: std::collections::BTreeSet<&str> = users.iter().map(UserId::domain).collect();
    let others = servers.into_iter().filter(|server| *server != server_name);
    Ok(others.map(str::to_owned).collect())
}

/// Who is joined, from every server, in alphabetical order (E-1).
pub(super) fn joined_users(db: &Db, room: &RoomId) -> Result<Vec<UserId>, Error> {
    const JOINED: &str = "
        SELECT c.state_key
          FROM current_state_events c
          LEFT JOIN room_memberships m ON m.event_id = c.event_id
         WHERE c.room_id = $1
           AND c.type = 'm.room.member'
           AND coalesce(c.membership, m.membership) = 'join'
         ORDER BY c.state_key";
    db.rows(
        "read who is in the room",
        JOINED,
        params![room.as_str()],
        |r| r.get::<_, String>(0).map(UserId::new),
    )
}

/// Local users whom a shutdown moves: joined, invited or knocking (D-7), with their membership. Walks
/// `local_current_membership_room_idx`.
pub fn local_users_to_move(
    db: &Db,
    room: &RoomId,
    server_name: &str,
) -> Result<Vec<(UserId, String)>, Error> {
    const MEMBERS: &str = "
        SELECT user_id, membership FROM local_current_membership
         WHERE room_id = $1 AND membership IN ('join', 'invite', 'knock')
         ORDER BY user_id";
    let doing = "read whom a shutdown moves";
    let users = db.rows(doing, MEMBERS, params![room.as_str()], |r| {
        Ok((UserId::new(r.get::<_, String>(0)?), r.get(1)?))
    })?;
    let users = users.into_iter();
    Ok(users
        .filter(|(user, _)| user.is_local(server_name))
        .collect())
}

/// Aliases that lead to the room.
pub fn aliases(db: &Db, room: &RoomId) -> Result<Vec<String>, Error> {
    const ALIASES: &str =
        "SELECT room_alias FROM room_aliases WHERE room_id = $1 ORDER BY room_alias";
    let doing = "read the room's aliases";
    db.rows(doing, ALIASES, params![room.as_str()], |r| r.get(0))
}

/// The tables that we know nothing of and that have rows of the room (V-5): those with a foreign key to events or
/// rooms, and those with a `room_id` or an `event_id`.
pub fn unknown(db: &Db, room: &RoomId) -> Result<Vec<Unknown>, Error> {
    let doing = "look for tables that are not known";
    let catalog = db.catalog();
    let by_room =
        |table: &&Table| table.by_room.is_some() || table.with_event == Some(Rows::Itself);
    let of_room = tables::ALL
        .iter()
        .filter(|table| by_room(table) || has_own_room(table));
    let of_room = of_room.map(|table| (table.name, "{row}.room_id = $1"));
    let of_events = tables::ALL
        .iter()
        .filter(|table| table.with_event.is_some_and(|rows| rows != Rows::Itself));
    let by_event = "{row}.event_id IN (SELECT event_id FROM events WHERE room_id = $1)";
    let going = of_room.chain(of_events.map(|table| (table.name, by_event)));
    let going = going
        .filter(|(table, _)| catalog.has(table))
        .map(|(table, condition)| (table.to_owned(), condition.to_owned()));
    let mut found = referring::find(db, going, Some(room.as_str()))?;
    for table in unknown_tables(db) {
        if found.iter().any(|u| u.table == table) {
            continue;
        }
        let rows = if catalog.has_column(table, "room_id") {
            format!("SELECT count(*) FROM \"{table}\" WHERE room_id = $1")
        } else {
            format!(
                "SELECT count(*) FROM \"{table}\" WHERE event_id IN (SELECT event_id FROM events WHERE room_id = $1)"
            )
        };
        found.push(Unknown {
            table: table.to_owned(),
            rows: db.count(doing, &rows, params![room.as_str()])?,
            stops_delete: false,
        });
    }
    found.retain(|u| u.rows > 0);
    found.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(found)
}

/// The tables with rows that refer to what a history purge deletes, of the selection at hand.
pub(super) fn unknown_of_selection(db: &Db) -> Result<Vec<Unknown>, Error> {
    let by_event = "{row}.event_id IN (SELECT event_id FROM rk_selected WHERE to_delete)";
    let going = tables::purged().filter(|table| db.catalog().has(table.name));
    let going = going.map(|table| (table.name.to_owned(), by_event.to_owned()));
    referring::find(db, going, None)
}

/// Adds what was found elsewhere, of other rows: a table that is there already has more of them.
pub(super) fn add_unknown(found: &mut Vec<Unknown>, more: Vec<Unknown>) {
    for more in more {
        match found.iter_mut().find(|known| known.table == more.table) {
            Some(known) => {
                known.rows += more.rows;
                known.stops_delete |= more.stops_delete;
            }
            None => found.push(more),
        }
    }
}

/// State groups that one statement names.
const GROUPS_AT_ONCE: usize = 5_000;

/// The tables with rows that refer to what goes with state groups.
pub(super) fn unknown_of_groups(db: &Db, groups: &[i64]) -> Result<Vec<Unknown>, Error> {
    let mut found: Vec<Unknown> = Vec::new();
    for some in groups.chunks(GROUPS_AT_ONCE) {
        let ids: Vec<String> = some.iter().map(ToString::to_string).collect();
        let going = [
            ("state_groups", "id"),
            ("state_groups_state", "state_group"),
            ("state_group_edges", "state_group"),
            ("state_group_edges", "prev_state_group"),
        ];
        let going = going.map(|(table, column)| {
            let condition = format!("{{row}}.{column} IN ({})", ids.join(", "));
            (table.to_owned(), condition)
        });
        let refer = referring::find(db, going.into_iter(), None)?;
        add_unknown(&mut found, refer);
    }
    Ok(found)
}

/// The tables that we know nothing of and whose foreign keys may refuse that rows of ours go, by name.
///
/// # Errors
/// Those of the database.
pub fn strangers(db: &Db) -> Result<Vec<String>, Error> {
    let found = referring::strangers(db, tables::is_known)?;
    let found = found.into_iter().filter(|table| !tables::is_known(table));
    Ok(found.collect())
}

/// Whether rows of the room go by statements of their own, found by its id.
fn has_own_room(table: &Table) -> bool {
    let has_room = || {
        table
            .columns()
            .any(|column| column == ("room_id", Holds::Room))
    };
    table.is_synapses && matches!(table.otherwise, Otherwise::Own(_)) && has_room()
}

/// Tables that name rooms or events in the way ours do, and that no rule of ours knows.
fn unknown_tables(db: &Db) -> Vec<&str> {
    let catalog = db.catalog();
    let names_rooms =
        |table: &str| catalog.has_column(table, "room_id") || catalog.has_column(table, "event_id");
    let tables = catalog.tables();
    tables
        .filter(|table| !tables::is_known(table) && names_rooms(table))
        .collect()
}

/// Takes away what makes the room live. Inside a transaction.
pub fn delete_live_state(
    db: &Tx<'_>,
    room: &RoomId,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    db.ensure_held(room)?;
    take_away_aliases(db, room, counts, kept)?;
    state_groups::forget_persisting(db, room, counts)?;
    delete_by_room(db, room, Step::LiveState, counts, kept)
}

/// The current state that is no membership, and that of local users: without these it is the state of no room that the
/// homeserver is in. Walks the room's part of the key on current state.
const LIVE_STATE: &str = "
    t.room_id = $1
       AND (t.type <> 'm.room.member'
            OR t.state_key IN (SELECT user_id FROM local_current_membership WHERE room_id = $1))";

/// As [`delete_live_state`], for where others wait: what has a row for each member is left to [`delete_rest_bounded`], those rows apart
/// without which the homeserver sees no room. Inside a transaction.
pub fn delete_live_state_bounded(
    db: &Tx<'_>,
    room: &RoomId,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    db.ensure_held(room)?;
    let doing = "take away what makes the room live";
    take_away_aliases(db, room, counts, kept)?;
    state_groups::forget_persisting(db, room, counts)?;
    let of_room = params![room.as_str()];
    let table = "current_state_events";
    delete_kept(db, doing, table, LIVE_STATE, of_room, counts, kept)?;
    for table in present(db, Step::LiveState).filter(|table| table.per != Per::Member) {
        delete_rest_of_table(db, room, table.name, counts, kept)?;
    }
    Ok(())
}

/// Tables whose rows [`delete_live_state_bounded`] has left, in the order in which they go.
pub fn left_by_live_state(db: &Db) -> impl Iterator<Item = &'static str> {
    let left = present(db, Step::LiveState).filter(|table| table.per == Per::Member);
    left.map(|table| table.name)
}

/// Removes about `most` rows of the room from a table; answers whether there may be more. Inside a transaction.
pub fn delete_rest_bounded(
    db: &Tx<'_>,
    room: &RoomId,
    table: &'static str,
    most: i64,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<bool, Error> {
    db.ensure_held(room)?;
    if db.engine() == Engine::Postgres {
        // There nobody waits for these rows.
        delete_rest_of_table(db, room, table, counts, kept)?;
        return Ok(false);
    }
    let doing = "delete the room's rows";
    let find = format!("SELECT rowid FROM {table} WHERE room_id = $1 LIMIT $2");
    let mut found: Vec<i64> = db.rows(doing, &find, params![room.as_str(), most], |r| r.get(0))?;
    found.sort_unstable();
    for row in &found {
        kept.rows(db, table, "t.rowid = $1", params![*row])?;
    }
    let delete = format!("DELETE FROM {table} WHERE rowid = $1");
    let mut rows = 0;
    for row in &found {
        rows += db.execute(doing, &delete, params![*row])?;
    }
    add(counts, table, rows);
    Ok(i64::try_from(found.len()).unwrap_or(i64::MAX) >= most)
}

/// Removes the rows of a table, as `t`, for which this is so; where there is an archive they are written there first.
fn delete_kept(
    db: &Tx<'_>,
    doing: &'static str,
    table: &'static str,
    condition: &str,
    of: Params<'_>,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    kept.rows(db, table, condition, of)?;
    let delete = format!("DELETE FROM {table} AS t WHERE {condition}");
    add(counts, table, db.execute(doing, &delete, of)?);
    Ok(())
}

fn take_away_aliases(
    db: &Tx<'_>,
    room: &RoomId,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    if db.catalog().has("room_alias_servers") {
        let doing = "take away what makes the room live";
        let of_room = params![room.as_str()];
        let table = "room_alias_servers";
        delete_kept(db, doing, table, ALIAS_SERVERS, of_room, counts, kept)?;
    }
    Ok(())
}

/// Before the aliases themselves. Walks the aliases of the room, then the index on alias.
const ALIAS_SERVERS: &str =
    "t.room_alias IN (SELECT room_alias FROM room_aliases WHERE room_id = $1)";

/// The newest events of the room by depth, for the next batch: what remains then has all its ancestors, and every
/// event that a state of the remaining ones names. Binds `$1` room, `$2` how many. Walks `events_order_room` backwards
/// and stops at once: without the bound on depth SQLite would now and then rather sort the room.
const SELECT_NEWEST: &str = "
    INSERT INTO rk_selected (stream_ordering, event_id, to_delete)
    SELECT stream_ordering, event_id, TRUE FROM events
     WHERE room_id = $1
       AND topological_ordering <= 9223372036854775807
     ORDER BY topological_ordering DESC, stream_ordering DESC
     LIMIT $2";

/// Fills the temporary table with the next `events` events; answers how many there were.
pub fn select_newest(db: &Db, room: &RoomId, events: i64) -> Result<i64, Error> {
    let doing = "select the room's events";
    temp_tables::begin(db, Extent::Batch)?;
    let selected = db.execute(doing, SELECT_NEWEST, params![room.as_str(), events])?;
    temp_tables::end(db, Extent::Batch)?;
    Ok(selected)
}

/// Links of the auth chain cover that start at a selected event. A chain is of one room; the positions that go are
/// looked up among its links, which is one walk over each chain. Walks `event_auth_chain_links_idx` and the key on
/// chain and sequence number.
const LINKS: &str = "
    t.origin_chain_id IN (
           SELECT c.chain_id FROM rk_selected s CROSS JOIN event_auth_chains c WHERE c.event_id = s.event_id)
       AND EXISTS (
           SELECT 1 FROM event_auth_chains c CROSS JOIN rk_selected s
            WHERE c.chain_id = t.origin_chain_id
              AND c.sequence_number = t.origin_sequence_number
              AND s.event_id = c.event_id)";

/// Backward extremities that no event of the timeline points at any more. Binds `$1` room. Walks `ev_edges_prev_id`.
const DROP_EXTREMITIES: &str = "
    DELETE FROM event_backward_extremities
     WHERE room_id = $1
       AND NOT EXISTS (
           SELECT 1 FROM event_edges g CROSS JOIN events v
            WHERE g.prev_event_id = event_backward_extremities.event_id
              AND v.event_id = g.event_id
              AND NOT v.outlier)";

/// Removes the selected events and everything that belongs to them (E-8). Must run in the transaction that selected.
///
/// # Errors
/// [`Abort::TooLong`] between two tables; those of the database.
pub fn remove_selected(
    db: &Tx<'_>,
    room: &RoomId,
    selected: i64,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Abort> {
    db.ensure_held(room)?;
    let doing = "delete the room's events";
    kept.selected(db, room)?;
    db.in_time()?;
    if db.catalog().has("event_auth_chain_links") {
        db.entering("event_auth_chain_links")?;
        let table = "event_auth_chain_links";
        delete_kept(db, doing, table, LINKS, &[], counts, kept)?;
    }
    event_rows::remove(
        db,
        Scope::Room,
        room.as_str(),
        selected,
        Removal::Rows,
        counts,
    )?;
    let rows = db.execute(doing, DROP_EXTREMITIES, params![room.as_str()])?;
    add(counts, "event_backward_extremities", rows);
    Ok(())
}

/// Removes what hangs on neither life nor events. Inside a transaction.
pub fn delete_rest(
    db: &Tx<'_>,
    room: &RoomId,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    delete_by_room(db, room, Step::AfterEvents, counts, kept)
}

/// Tables that [`delete_rest_of_table`] takes, in its order: those that have rows of the room.
pub fn tables_of_rest(db: &Db, room: &RoomId) -> Result<Vec<&'static str>, Error> {
    let mut tables = Vec::new();
    for Table { name, .. } in present(db, Step::AfterEvents) {
        // Asked whether there is one, PostgreSQL would read all of a table of which the room had a large share; asked for
        // the first of a range, it walks the index.
        let any = format!(
            "SELECT min(room_id) IS NOT NULL FROM {name} WHERE room_id >= $1 AND room_id <= $1"
        );
        if db.count(
            "look whether a table has rows of the room",
            &any,
            params![room.as_str()],
        )? > 0
        {
            tables.push(*name);
        }
    }
    Ok(tables)
}

/// The tables of a step that the database has, SQLite's full-text index apart.
fn present(db: &Db, when: Step) -> impl Iterator<Item = &'static Table> {
    let has_index = db.catalog().has("event_search_content");
    tables::by_room(when)
        .filter(move |table| !(has_index && table.name == "event_search"))
        .filter(|table| db.catalog().has(table.name))
}

/// As [`delete_rest`], one table: for where others wait. Inside a transaction.
pub fn delete_rest_of_table(
    db: &Tx<'_>,
    room: &RoomId,
    table: &'static str,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    db.ensure_held(room)?;
    let of_room = params![room.as_str()];
    kept.rows(db, table, "t.room_id = $1", of_room)?;
    let sql = format!("DELETE FROM {table} WHERE room_id = $1");
    let rows = db.execute("delete the room's rows", &sql, of_room)?;
    add(counts, table, rows);
    Ok(())
}

fn delete_by_room(
    db: &Tx<'_>,
    room: &RoomId,
    when: Step,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    for table in present(db, when) {
        delete_rest_of_table(db, room, table.name, counts, kept)?;
    }
    Ok(())
}

/// Removes the room's own row, after a last look for what came meanwhile; and rows that wait for the deletion of state
/// groups which are gone (P-46). Inside a transaction, when no event of the room is left.
pub fn remove_room(
    db: &Tx<'_>,
    room: &RoomId,
    counts: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<(), Error> {
    db.ensure_held(room)?;
    const DELETE: &str = "DELETE FROM rooms WHERE room_id = $1";
    let doing = "delete the room's own row";
    delete_live_state(db, room, counts, kept)?;
    delete_rest(db, room, counts, kept)?;
    let of_room = params![room.as_str()];
    kept.rows(db, "rooms", "t.room_id = $1", of_room)?;
    add(counts, "rooms", db.execute(doing, DELETE, of_room)?);
    state_groups::forget_compressor_with_room(db, room, counts)?;
    state_groups::forget_orphans(db, counts)
}

/// Counts what a deletion of the room would remove, table by table, the full-text index and the state tables included.
/// The connection may be one that writes nothing but temporary tables.
pub fn count(db: &Db, room: &RoomId) -> Result<RowCounts, Error> {
    let doing = "count the room's rows";
    let id = room.as_str();
    let mut counts = RowCounts::new();
    let selected = select_newest(db, room, i64::MAX)?;
    if db.catalog().has("event_auth_chain_links") {
        let count = format!("SELECT count(*) FROM event_auth_chain_links t WHERE {LINKS}");
        let rows = db.count(doing, &count, &[])?;
        add(&mut counts, "event_auth_chain_links", rows);
    }
    event_rows::count(db, Scope::Room, id, selected, &mut counts)?;
    if db.catalog().has("room_alias_servers") {
        let count = format!("SELECT count(*) FROM room_alias_servers t WHERE {ALIAS_SERVERS}");
        let rows = db.count(doing, &count, params![id])?;
        add(&mut counts, "room_alias_servers", rows);
    }
    for &Table { name: table, .. } in
        present(db, Step::LiveState).chain(present(db, Step::AfterEvents))
    {
        let sql = format!("SELECT count(*) FROM {table} WHERE room_id = $1");
        // Rows that an event takes with it are among those of the room.
        counts.remove(table);
        add(&mut counts, table, db.count(doing, &sql, params![id])?);
    }
    let rooms = db.count(
        doing,
        "SELECT count(*) FROM rooms WHERE room_id = $1",
        params![id],
    )?;
    add(&mut counts, "rooms", rooms);
    state_groups::count_of_room(db, room, &mut counts)?;
    add(
        &mut counts,
        "event_search",
        search::count_of_room(db, room)?,
    );
    Ok(counts)
}
