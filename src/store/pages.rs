//! Events of a room in the order of its history: a page of them, and single ones by id (M-10 … M-37).

use std::rc::Rc;

use super::db::{Bind, Db, Engine, Row, RowResult, Value, params};
use super::prefixes::Prefixes;
use super::value::{Json, Read};
use crate::error::Error;
use crate::ids::RoomId;
use crate::point::{Direction, Point};

/// An event as it is stored.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// Its id.
    pub event_id: Rc<str>,
    /// Whether it is of another room than the one that is paged.
    pub is_elsewhere: bool,
    /// Its place.
    pub point: Point,
    /// Who wrote it; `None` means the main process.
    pub writer: Option<String>,
    /// The event; `None` when it is missing.
    pub json: Option<String>,
    /// What the server notes about it.
    pub metadata: Option<String>,
    /// `event_json.format_version` (D-48).
    pub format: Option<i64>,
    /// The state after it, where that was asked for.
    pub state_group: Option<i64>,
    /// Whether it was rejected.
    pub is_rejected: bool,
    /// Whether there are redactions of it.
    pub has_redactions: bool,
    /// Whether other events relate to it.
    pub has_relations: bool,
}

/// The name of the writer that rows without a name are of.
pub const MAIN_WRITER: &str = "master";

/// A JSON text, kept as text or as bytes (M-93); what is none, is none: a damaged row costs an event, not the page.
fn text(row: &Row<'_>, at: usize) -> RowResult<Option<String>> {
    Ok(Json::read(row.value(at)?).map(|json| json.0))
}

/// Reads [`EventRow`]: the statements that do have the same columns, in its order, and look all but the first five up by
/// event id.
fn event_row(row: &Row<'_>, room: &RoomId) -> RowResult<EventRow> {
    let is_text = |at, text: &str| -> RowResult<bool> {
        Ok(matches!(row.value(at)?, Value::Text(known) if known == text))
    };
    Ok(EventRow {
        event_id: row.get(0)?,
        is_elsewhere: !is_text(1, room.as_str())?,
        point: Point {
            topological: row.get(2)?,
            stream: row.get(3)?,
        },
        writer: match is_text(4, MAIN_WRITER)? {
            true => None,
            false => row.get(4)?,
        },
        json: text(row, 5)?,
        metadata: text(row, 6)?,
        format: row.get(7)?,
        state_group: row.get(8)?,
        is_rejected: row.get(9)?,
        has_redactions: row.get(10)?,
        has_relations: row.get(11)?,
    })
}

/// What lies between two tokens: above all lower bounds, and not above any upper one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRange {
    /// Above this place.
    pub above: Point,
    /// Up to this place.
    pub up_to: Point,
    /// Arrived after this.
    pub after: i64,
    /// Arrived by this.
    pub by: i64,
}

impl Default for RowRange {
    /// Everything.
    fn default() -> Self {
        let at = |n| Point {
            topological: n,
            stream: n,
        };
        Self {
            above: at(i64::MIN),
            up_to: at(i64::MAX),
            after: i64::MIN,
            by: i64::MAX,
        }
    }
}

/// What of a filter is decided before events are counted (M-53). Lists that are `None` or empty let everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SqlFilter {
    /// These types, …
    pub types: Vec<String>,
    /// … or those that begin so.
    pub type_prefixes: Prefixes,
    /// None of these types, …
    pub not_types: Vec<String>,
    /// … nor those that begin so.
    pub not_type_prefixes: Prefixes,
    /// By one of these.
    pub senders: Vec<String>,
    /// By none of these.
    pub not_senders: Vec<String>,
    /// With a `url`.
    pub contains_url: bool,
    /// With one of these labels.
    pub labels: Vec<String>,
    /// Which one of these has an event relating to, …
    pub related_by_senders: Vec<String>,
    /// … in one of these ways.
    pub related_by_types: Vec<String>,
    /// Relating to another event in one of these ways.
    pub relation_types: Vec<String>,
    /// Relating to another event in none of these ways.
    pub not_relation_types: Vec<String>,
}

const FORWARDS: &str = "e.topological_ordering, e.stream_ordering";

const BACKWARDS: &str = "e.topological_ordering DESC, e.stream_ordering DESC";

/// Whether the state after each event is looked up, which costs two look-ups each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// It is.
    Wanted,
    /// It is not.
    Unwanted,
}

/// The events of a room in a range of rows that the SQL filter lets through: the first `limit` in the direction, in its order.
pub fn page(
    db: &Db,
    room: &RoomId,
    row_range: &RowRange,
    direction: Direction,
    sql_filter: &SqlFilter,
    limit: i64,
    groups: Groups,
) -> Result<Vec<EventRow>, Error> {
    let name = room.as_str();
    let mut bound: Vec<&dyn Bind> = vec![
        &name,
        &row_range.above.topological,
        &row_range.above.stream,
        &row_range.up_to.topological,
        &row_range.up_to.stream,
        &row_range.after,
        &row_range.by,
    ];
    let clauses = Clauses::of(db.engine(), sql_filter);
    let mut also = String::new();
    for clause in &clauses.0 {
        // Placeholders are numbered here; values are bound, never written.
        also.push_str(" AND ");
        for (n, piece) in clause.text.split('?').enumerate() {
            if n > 0 {
                bound.push(&clause.values[n - 1]);
                also.push_str(&format!("${}", bound.len()));
            }
            also.push_str(piece);
        }
    }
    let order = match direction {
        Direction::Forwards => FORWARDS,
        Direction::Backwards => BACKWARDS,
    };
    bound.push(&limit);
    // A page of a room. Binds `$1` room, `$2`, `$3` the place above which it lies, `$4`, `$5` the place up to which, `$6`,
    // `$7` the same by arrival, then what the SQL filter needs, then the number of events. Walks `events_order_room` and
    // stops; the signs before `stream_ordering`, and the way to say "no outlier", keep the other indexes out of it.
    let (group, join) = match groups {
        Groups::Wanted => (
            "g.state_group",
            "LEFT JOIN event_to_state_groups g ON g.event_id = p.event_id",
        ),
        Groups::Unwanted => ("CAST(NULL AS BIGINT)", ""),
    };
    // What has no number for a place has none on a page, and no token leads there (M-93).
    let is_placed = match db.engine() {
        Engine::Sqlite => " AND typeof(e.topological_ordering) = 'integer'",
        Engine::Postgres => "",
    };
    let sql = format!(
        "SELECT p.event_id, p.room_id, p.topological_ordering, p.stream_ordering, p.instance_name,
                j.json, j.internal_metadata, j.format_version, {group}, r.event_id IS NOT NULL,
                EXISTS (SELECT 1 FROM redactions d WHERE d.redacts = p.event_id),
                EXISTS (SELECT 1 FROM event_relations x WHERE x.relates_to_id = p.event_id)
           FROM (SELECT e.event_id, e.room_id, e.topological_ordering, e.stream_ordering, e.instance_name
                   FROM events e
                  WHERE e.room_id = $1 AND e.outlier IS NOT TRUE
                    AND (e.topological_ordering, e.stream_ordering) > ($2, $3)
                    AND (e.topological_ordering, e.stream_ordering) <= ($4, $5)
                    AND +e.stream_ordering > $6 AND +e.stream_ordering <= $7{is_placed}{also}
                  ORDER BY {order} LIMIT ${}) p
           LEFT JOIN event_json j ON j.event_id = p.event_id
           LEFT JOIN rejections r ON r.event_id = p.event_id
           {join}",
        bound.len()
    );
    let mut rows = db.rows("read a page", &sql, &bound, |row| event_row(row, room))?;
    rows.sort_unstable_by_key(|row| row.point);
    if direction == Direction::Backwards {
        rows.reverse();
    }
    Ok(rows)
}

/// A condition, with a `?` for each value.
struct Clause {
    text: String,
    values: Vec<String>,
}

/// Whether a type begins with one of some texts: one clause and one value, however many they are (M-94).
///
/// SQLite has our function for it, which tries one of them; PostgreSQL tries all, which costs it less than a pattern.
fn begins(engine: Engine, prefixes: &Prefixes) -> (&'static str, String) {
    let text = match engine {
        Engine::Sqlite => "begins_with_any(e.type, ?)",
        Engine::Postgres => "(e.type ^@ ANY (ARRAY(SELECT value FROM json_each(?))))",
    };
    (text, prefixes.to_json())
}

/// The conditions of a sql_filter.
struct Clauses(Vec<Clause>);

impl Clauses {
    fn of(engine: Engine, sql_filter: &SqlFilter) -> Self {
        let mut clauses = Self(Vec::new());
        let one_of = |column: &str| format!("{column} IN (SELECT value FROM json_each(?))");
        let none_of = |column: &str| format!("{column} NOT IN (SELECT value FROM json_each(?))");
        if !sql_filter.types.is_empty() || !sql_filter.type_prefixes.is_empty() {
            let mut any = one_of("e.type");
            let mut values = vec![json_list(&sql_filter.types)];
            if !sql_filter.type_prefixes.is_empty() {
                let (text, value) = begins(engine, &sql_filter.type_prefixes);
                any = format!("({any} OR {text})");
                values.push(value);
            }
            clauses.push(any, values);
        }
        if !sql_filter.not_types.is_empty() {
            clauses.list(none_of("e.type"), &sql_filter.not_types);
        }
        if !sql_filter.not_type_prefixes.is_empty() {
            let (text, value) = begins(engine, &sql_filter.not_type_prefixes);
            clauses.push(format!("NOT {text}"), vec![value]);
        }
        if !sql_filter.senders.is_empty() {
            clauses.list(one_of("e.sender"), &sql_filter.senders);
        }
        if !sql_filter.not_senders.is_empty() {
            clauses.list(none_of("e.sender"), &sql_filter.not_senders);
        }
        if sql_filter.contains_url {
            clauses.push("e.contains_url".into(), Vec::new());
        }
        if !sql_filter.labels.is_empty() {
            let label = one_of("l.label");
            let clause = format!(
                "EXISTS (SELECT 1 FROM event_labels l WHERE l.event_id = e.event_id AND l.room_id = e.room_id
                            AND l.topological_ordering = e.topological_ordering AND {label})"
            );
            clauses.list(clause, &sql_filter.labels);
        }
        clauses.relations(sql_filter);
        clauses
    }

    fn push(&mut self, text: String, values: Vec<String>) {
        self.0.push(Clause { text, values });
    }

    fn list(&mut self, clause: String, list: &[String]) {
        self.push(clause, vec![json_list(list)]);
    }

    fn relations(&mut self, sql_filter: &SqlFilter) {
        let (senders, types) = (&sql_filter.related_by_senders, &sql_filter.related_by_types);
        if !senders.is_empty() || !types.is_empty() {
            let mut clause = "EXISTS (SELECT 1 FROM event_relations x".to_owned();
            let mut values = Vec::new();
            if !senders.is_empty() {
                clause.push_str(
                    " JOIN events c ON c.event_id = x.event_id
                               AND c.sender IN (SELECT value FROM json_each(?))",
                );
                values.push(json_list(senders));
            }
            clause.push_str(" WHERE x.relates_to_id = e.event_id");
            if !types.is_empty() {
                clause.push_str(" AND x.relation_type IN (SELECT value FROM json_each(?))");
                values.push(json_list(types));
            }
            self.push(clause + ")", values);
        }
        let own = "(SELECT 1 FROM event_relations o WHERE o.event_id = e.event_id
                            AND o.relation_type IN (SELECT value FROM json_each(?)))";
        if !sql_filter.relation_types.is_empty() {
            self.list(format!("EXISTS {own}"), &sql_filter.relation_types);
        }
        if !sql_filter.not_relation_types.is_empty() {
            self.list(format!("NOT EXISTS {own}"), &sql_filter.not_relation_types);
        }
    }
}

/// Events by id. Binds `$1` their ids. Looks each up by id.
const BY_ID: &str = "
    SELECT e.event_id, e.room_id, CAST(e.topological_ordering AS BIGINT), e.stream_ordering, e.instance_name,
           j.json, j.internal_metadata, j.format_version, CAST(NULL AS BIGINT), r.event_id IS NOT NULL,
           EXISTS (SELECT 1 FROM redactions d WHERE d.redacts = e.event_id),
           EXISTS (SELECT 1 FROM event_relations x WHERE x.relates_to_id = e.event_id)
      FROM (SELECT value FROM json_each($1)) asked
     CROSS JOIN events e
      LEFT JOIN event_json j ON j.event_id = e.event_id
      LEFT JOIN rejections r ON r.event_id = e.event_id
     WHERE e.event_id = asked.value";

/// Those of the events that are held, in this room or another, in no order, without their states.
pub fn by_id<S: AsRef<str>>(db: &Db, room: &RoomId, ids: &[S]) -> Result<Vec<EventRow>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids = json_list(ids);
    let doing = "read events";
    db.rows(doing, BY_ID, params![ids], |row| event_row(row, room))
}

/// A list as a text to bind.
pub fn json_list<S: AsRef<str>>(list: &[S]) -> String {
    let list: Vec<&str> = list.iter().map(AsRef::as_ref).collect();
    // Texts always become JSON; no list is one that SQL refuses.
    serde_json::to_string(&list).unwrap_or_default()
}

/// A list of integers as a text to bind.
pub fn json_numbers(list: &[i64]) -> String {
    serde_json::to_string(list).unwrap_or_default()
}

/// Binds `$1` room. The last entry of the room in `events_order_room` that is a number: SQLite sorts texts behind them.
const DEEPEST: &str = "
    SELECT CAST(max(topological_ordering) AS BIGINT) FROM events
     WHERE room_id = $1 AND topological_ordering <= 9223372036854775807";

/// The newest live event of the server.
const NEWEST: &str = "SELECT max(stream_ordering) FROM events";

/// Positions that writers have told of.
const TOLD: &str = "SELECT max(stream_id) FROM stream_positions WHERE stream_name = 'events'";

/// A place after everything in the room (M-10, M-11).
pub fn end_of_room(db: &Db, room: &RoomId) -> Result<Point, Error> {
    let doing = "find the end of the room";
    let topological = db.count(doing, DEEPEST, params![room.as_str()])?;
    let mut stream = db.count(doing, NEWEST, &[])?;
    if db.catalog().has("stream_positions") {
        stream = stream.max(db.count(doing, TOLD, &[])?);
    }
    Ok(Point {
        topological,
        stream,
    })
}

/// Binds `$1` room. The last entry of the room in `events_room_stream`.
const NEWEST_OF_ROOM: &str = "SELECT max(stream_ordering) FROM events WHERE room_id = $1";

/// Binds `$1` room, `$2` order of arrival. Walks `events_order_room` from its oldest end to the first that arrived late
/// enough.
const DEPTH_AT: &str = "
    SELECT CAST(e.topological_ordering AS BIGINT) FROM events e
     WHERE e.room_id = $1 AND +e.stream_ordering >= $2
     ORDER BY e.topological_ordering LIMIT 1";

/// How deep the room was when that much had arrived (M-23).
pub fn depth_at(db: &Db, room: &RoomId, stream: i64) -> Result<i64, Error> {
    let doing = "find a depth";
    let newest = db.count(doing, NEWEST_OF_ROOM, params![room.as_str()])?;
    let stream = stream.min(newest);
    db.count(doing, DEPTH_AT, params![room.as_str(), stream])
}

/// Binds `$1` numbers of writers.
const WRITERS: &str = "
    SELECT instance_id, instance_name FROM instance_map
     WHERE instance_id IN (SELECT CAST(value AS BIGINT) FROM json_each($1))";

/// The names of writers, by their numbers in tokens (M-4).
pub fn writers(db: &Db, ids: &[i64]) -> Result<Vec<(i64, String)>, Error> {
    if !db.catalog().has("instance_map") {
        return Ok(Vec::new());
    }
    let ids = json_numbers(ids);
    db.rows("look up writers", WRITERS, params![ids], |r| {
        Ok((r.get(0)?, r.get(1)?))
    })
}

/// Binds `$1` room.
const ROOM_VERSION: &str = "SELECT room_version FROM rooms WHERE room_id = $1";

/// The version of a room, where one is on record.
pub fn room_version(db: &Db, room: &RoomId) -> Result<Option<String>, Error> {
    let doing = "look up the room's version";
    let version = db.row(doing, ROOM_VERSION, params![room.as_str()], |r| {
        r.get::<_, Option<String>>(0)
    })?;
    Ok(version.flatten())
}
