//! What of that which went still stands somewhere: every column that can name an event or a room is asked for some of them.
//!
//! At the end of a job only columns with an index are asked, which costs a look at each. A whole [`scan`] reads every text of
//! every table once, whatever it looks for: also tables and columns that our [list](tables::ALL) does not know, because a
//! table that nobody knows of cannot be forgotten otherwise. Numbers (stream orderings, state groups) are `check`'s to look at.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::db::{Db, Engine};
use super::tables::{self, Holds, Otherwise, Table};
use super::value::{Bind, Params, Value, params};
use crate::error::Error;
use crate::ids::{EventId, RoomId};

const DOING: &str = "look for what is left of what went";

/// Most rows of a column that are counted by an index.
const MOST_COUNTED: i64 = 1_000;

/// Rows of a file, and pages of a server, that are read at once: nobody's log waits for all of it.
const ROWS_AT_ONCE: i64 = 2_000;
const PAGES_AT_ONCE: i64 = 4_096;

/// Columns that hold text, of every table that is one: table, column, whether it is read as a text, whether rows are found by
/// a number.
const TEXTS: &str = "
    SELECT m.name, c.name, 0, NOT l.wr
      FROM sqlite_master m
      JOIN pragma_table_list(m.name) l ON l.schema = 'main'
      JOIN pragma_table_info(m.name) c
     WHERE m.type = 'table' AND l.type IN ('table', 'virtual') AND m.name NOT LIKE 'sqlite~_%' ESCAPE '~'
       AND NOT (upper(c.type) LIKE '%INT%' OR upper(c.type) LIKE 'BOOL%' OR upper(c.type) LIKE 'REAL%'
                OR upper(c.type) LIKE 'DOUBLE%' OR upper(c.type) LIKE 'FLOAT%')
     ORDER BY m.name, c.cid";

const TEXTS_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT c.relname, a.attname, t.typname NOT IN ('text', 'varchar', 'bpchar', 'bytea'), true
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid
      JOIN pg_type t ON t.oid = a.atttypid
     WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND a.attnum > 0 AND NOT a.attisdropped
       AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND pg_table_is_visible(c.oid)
       AND (t.typcategory = 'S' OR t.typname IN ('bytea', 'json', 'jsonb', 'tsvector', '_text', '_varchar', 'xml'))
     ORDER BY c.relname, a.attnum";

/// What every index begins with: table, first column, the second, if there is one, and the index itself.
const INDEXES: &str = "
    SELECT m.name, x.name, (SELECT y.name FROM pragma_index_xinfo(i.name) y WHERE y.seqno = 1 AND y.key), i.name
      FROM sqlite_master m, pragma_index_list(m.name) i, pragma_index_xinfo(i.name) x
     WHERE m.type = 'table' AND NOT i.partial AND x.seqno = 0 AND x.key AND x.name IS NOT NULL";

const INDEXES_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT c.relname, a.attname, b.attname, x.relname
      FROM pg_index i
      JOIN pg_class c ON c.oid = i.indrelid
      JOIN pg_class x ON x.oid = i.indexrelid
      JOIN pg_am m ON m.oid = x.relam
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
      LEFT JOIN pg_attribute b ON i.indnkeyatts > 1 AND b.attrelid = i.indrelid AND b.attnum = i.indkey[1]
     WHERE i.indisvalid AND i.indpred IS NULL AND m.amname = 'btree' AND pg_table_is_visible(c.oid)";

/// Pages that a table has. Binds `$1` its name.
const PAGES: &str = "-- PostgreSQL
    SELECT pg_relation_size(to_regclass(quote_ident($1))) / CAST(current_setting('block_size') AS BIGINT)";

/// What went, as far as it is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Gone<'a> {
    /// The room it was in.
    pub room: &'a RoomId,
    /// Whether the room went as well.
    pub is_whole: bool,
    /// Some of its events, or all.
    pub events: &'a [EventId],
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residue {
    /// Columns that were looked into.
    pub columns_scanned: usize,
    /// Columns that name one of them, in alphabetical order.
    pub found: Vec<Found>,
}

/// A column that names what went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its table.
    pub table: String,
    /// Its name.
    pub column: String,
    /// In how many rows; no more than a thousand where only indexes were asked.
    pub count: i64,
    /// Why it may; nothing where it should not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Residue {
    /// What should not be there.
    pub fn surprises(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| found.why.is_none())
    }
}

/// Columns whose rows are an event's own although nothing in our list takes them away with it.
const OF_LIVE_EVENTS: [&str; 2] = ["current_state_events", "local_current_membership"];

/// Why a column may name what went; nothing where it should not.
fn why(table: &str, column: &str, is_room: bool, gone: Gone<'_>) -> Option<&'static str> {
    let known = tables::named(table)?;
    let (_, holds) = known.columns().find(|(name, _)| *name == column)?;
    if let Otherwise::Kept(why) = known.otherwise {
        return Some(why);
    }
    let is_own = is_own(known, column, is_room, gone);
    match holds {
        _ if is_own => None,
        Holds::Json | Holds::Text => Some("what stays says so in its own words"),
        Holds::Event | Holds::Room => Some("what stays refers to it"),
        Holds::Order | Holds::Group | Holds::Plain => None,
    }
}

/// Whether rows that are found by this column should have gone.
fn is_own(table: &Table, column: &str, is_room: bool, gone: Gone<'_>) -> bool {
    let goes_with_room = || {
        table.with_event.is_some()
            || table.by_room.is_some()
            || matches!(table.otherwise, Otherwise::Own(_))
    };
    match (is_room, column) {
        (true, "room_id") => goes_with_room(),
        (false, "event_id") if gone.is_whole => goes_with_room(),
        (false, "event_id") => {
            table.with_event.is_some()
                || table.purged().is_some()
                || OF_LIVE_EVENTS.contains(&table.name)
        }
        _ => false,
    }
}

/// Asks the columns that have an index. Counts no more rows than a thousand of each; to be used with few events, and outside
/// a transaction.
///
/// # Errors
/// Those of the database.
pub fn by_index(db: &Db, gone: Gone<'_>) -> Result<Residue, Error> {
    db.read(DOING, |db| {
        // Whatever statistics say, no table is read for this.
        if db.engine() == Engine::Postgres {
            db.batch(DOING, "SET LOCAL enable_seqscan = off")?;
        }
        ask(db, gone)
    })
}

fn ask(db: &Db, gone: Gone<'_>) -> Result<Residue, Error> {
    let mut texts = BTreeSet::new();
    for column in texts_of(db)? {
        if !column.is_cast {
            texts.insert((column.table, column.name));
        }
    }
    // By table and column: whether it is found within a room alone, and the index.
    let mut ways: BTreeMap<(String, String), (bool, String)> = BTreeMap::new();
    let sql = db.text(INDEXES, INDEXES_ON_POSTGRES);
    db.for_each(DOING, sql, &[], |r| {
        let table: String = r.get(0)?;
        let first: String = r.get(1)?;
        let index: String = r.get(3)?;
        if let (true, Some(second)) = (first == "room_id", r.get::<_, Option<String>>(2)?) {
            let way = (true, index.clone());
            ways.entry((table.clone(), second)).or_insert(way);
        }
        ways.insert((table, first), (false, index));
        Ok(())
    })?;
    let mut asked = Vec::new();
    for ((table, column), (within_room, index)) in ways {
        if !texts.contains(&(table.clone(), column.clone())) {
            continue;
        }
        let holds = tables::named(&table).map(|known| {
            let mut columns = known.columns();
            columns.find(|(name, _)| *name == column).map(|(_, h)| h)
        });
        // Of what nobody has decided about, whatever it holds.
        let (events, rooms) = match holds {
            Some(Some(Holds::Event)) => (true, false),
            Some(Some(Holds::Room)) => (false, true),
            Some(Some(_)) => (false, false),
            Some(None) | None => (true, true),
        };
        if events && !gone.events.is_empty() {
            asked.push((
                table.clone(),
                column.clone(),
                index.clone(),
                within_room,
                false,
            ));
        }
        if rooms && gone.is_whole && !within_room {
            asked.push((table, column, index, false, true));
        }
    }
    let ids = (2..).take(gone.events.len()).map(|n| format!("${n}"));
    let ids = ids.collect::<Vec<_>>().join(", ");
    let words: Vec<&str> = [gone.room.as_str()]
        .into_iter()
        .chain(gone.events.iter().map(EventId::as_str))
        .collect();
    let all: Vec<&dyn Bind> = words.iter().map(|word| word as &dyn Bind).collect();
    let mut residue = Residue::default();
    // A statement may have so many parts.
    for part in asked.chunks(200) {
        let asks = part.iter().enumerate();
        let asks = asks.map(|(place, (table, column, index, within_room, is_room))| {
            let is_one = match (is_room, within_room) {
                (true, _) => format!("\"{column}\" = $1"),
                (false, true) => format!("room_id = $1 AND \"{column}\" IN ({ids})"),
                (false, false) => format!("\"{column}\" IN ({ids})"),
            };
            // Whatever statistics say, no table is read for this.
            let by = match db.engine() {
                Engine::Sqlite => format!(" INDEXED BY \"{index}\""),
                Engine::Postgres => String::new(),
            };
            format!(
                "SELECT {place}, count(*) FROM (SELECT 1 AS one FROM \"{table}\"{by} WHERE {is_one} LIMIT {MOST_COUNTED}) AS found"
            )
        });
        let asks = asks.collect::<Vec<_>>().join(" UNION ALL ");
        // Whatever is asked, the room is bound.
        let sql = format!("WITH asked AS (SELECT CAST($1 AS TEXT) AS room_id) {asks}");
        let of_events = part.iter().any(|(.., is_room)| !is_room);
        let bound: Params<'_> = if of_events { &all } else { &all[..1] };
        db.for_each(DOING, &sql, bound, |r| {
            let (place, count): (i64, i64) = (r.get(0)?, r.get(1)?);
            let asked = usize::try_from(place).ok().and_then(|at| part.get(at));
            if let (Some((table, column, .., is_room)), true) = (asked, count > 0) {
                residue.note(table, column, *is_room, count, gone);
            }
            Ok(())
        })?;
    }
    let columns: BTreeSet<_> = asked.iter().map(|(t, c, ..)| (t, c)).collect();
    residue.columns_scanned = columns.len();
    residue.sort();
    Ok(residue)
}

impl Residue {
    fn note(&mut self, table: &str, column: &str, is_room: bool, count: i64, gone: Gone<'_>) {
        let why = why(table, column, is_room, gone).map(str::to_owned);
        let of = |found: &&mut Found| found.table == table && found.column == column;
        match self.found.iter_mut().find(of) {
            Some(found) => {
                found.count = found.count.max(count);
                found.why = found.why.take().and(why);
            }
            None => self.found.push(Found {
                table: table.to_owned(),
                column: column.to_owned(),
                count,
                why,
            }),
        }
    }

    fn sort(&mut self) {
        self.found
            .sort_by(|a, b| (&a.table, &a.column).cmp(&(&b.table, &b.column)));
    }
}

/// A column that holds text.
struct TextColumn {
    table: String,
    name: String,
    /// Whether it is read as the text that it can be written as.
    is_cast: bool,
    has_rowid: bool,
}

fn texts_of(db: &Db) -> Result<Vec<TextColumn>, Error> {
    let mut columns = db.rows(DOING, db.text(TEXTS, TEXTS_ON_POSTGRES), &[], |r| {
        Ok(TextColumn {
            table: r.get(0)?,
            name: r.get(1)?,
            is_cast: r.get(2)?,
            has_rowid: r.get(3)?,
        })
    })?;
    // What an index keeps of its table is read through that.
    columns.retain(|c| tables::named(&c.table).is_some() || !tables::is_known(&c.table));
    Ok(columns)
}

/// Reads every text there is, once, for the names of what went. `on_table` hears of every table before it is read, and says
/// whether to go on.
///
/// # Errors
/// [`Error::Cancelled`] where it should not; those of the database.
pub fn scan(
    db: &Db,
    gone: Gone<'_>,
    on_table: &mut dyn FnMut(&str) -> bool,
) -> Result<Residue, Error> {
    let mut needles = Needles::default();
    for event in gone.events {
        needles.add(event.as_str(), false);
    }
    if gone.is_whole {
        needles.add(gone.room.as_str(), true);
    }
    let columns = texts_of(db)?;
    let mut residue = Residue {
        columns_scanned: columns.len(),
        ..Residue::default()
    };
    for of_table in columns.chunk_by(|a, b| a.table == b.table) {
        let table = &of_table[0].table;
        if !on_table(table) {
            return Err(Error::Cancelled);
        }
        let mut counts = vec![[0; 2]; of_table.len()];
        read_table(db, of_table, &mut |at, text| {
            for (count, is_named) in counts[at].iter_mut().zip(needles.named_in(text)) {
                *count += i64::from(is_named);
            }
        })?;
        for (column, [events, rooms]) in of_table.iter().zip(counts) {
            for (count, is_room) in [(events, false), (rooms, true)] {
                if count > 0 {
                    residue.note(table, &column.name, is_room, count, gone);
                }
            }
        }
    }
    residue.sort();
    Ok(residue)
}

/// Hands out every text of a table, with the number of its column.
fn read_table(
    db: &Db,
    columns: &[TextColumn],
    each: &mut dyn FnMut(usize, &[u8]),
) -> Result<(), Error> {
    let table = &columns[0].table;
    let list = columns.iter().map(|column| match column.is_cast {
        true => format!("CAST(\"{}\" AS TEXT)", column.name),
        false => format!("\"{}\"", column.name),
    });
    let list = list.collect::<Vec<_>>().join(", ");
    let mut read = |sql: &str, bound: Params<'_>, from: usize| {
        let (mut rows, mut last) = (0, None);
        db.for_each(DOING, sql, bound, |r| {
            rows += 1;
            if from > 0 {
                last = Some(r.get::<_, i64>(0)?);
            }
            for at in 0..columns.len() {
                match r.value(from + at)? {
                    Value::Text(text) => each(at, text.as_bytes()),
                    Value::Bytes(bytes) => each(at, bytes),
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok::<_, Error>((rows, last))
    };
    if db.engine() == Engine::Postgres {
        let sql = format!(
            "-- PostgreSQL
            SELECT {list} FROM ONLY \"{table}\"
             WHERE ctid >= CAST(CAST($1 AS TEXT) AS tid) AND ctid < CAST(CAST($2 AS TEXT) AS tid)"
        );
        let pages = db.count(DOING, PAGES, params![table])?;
        for from in (0..pages).step_by(PAGES_AT_ONCE as usize) {
            let bounds = [from, from + PAGES_AT_ONCE].map(|page| format!("({page},0)"));
            read(&sql, params![bounds[0], bounds[1]], 0)?;
        }
        return Ok(());
    }
    if !columns[0].has_rowid {
        return read(&format!("SELECT {list} FROM \"{table}\""), &[], 0).map(drop);
    }
    let sql = format!(
        "SELECT rowid, {list} FROM \"{table}\" WHERE rowid > $1 ORDER BY rowid LIMIT {ROWS_AT_ONCE}"
    );
    let mut from = i64::MIN;
    loop {
        match read(&sql, params![from], 1)? {
            (ROWS_AT_ONCE, Some(last)) => from = last,
            _ => return Ok(()),
        }
    }
}

/// Ids that are looked for in texts, all at once.
#[derive(Default)]
struct Needles<'a> {
    /// Each with whether it is a room's, by their sigil, and by their length.
    known: HashMap<&'a [u8], bool>,
    lengths: BTreeSet<usize>,
    sigils: BTreeSet<u8>,
}

impl<'a> Needles<'a> {
    fn add(&mut self, id: &'a str, is_room: bool) {
        if let Some(sigil) = id.bytes().next() {
            self.known.insert(id.as_bytes(), is_room);
            self.lengths.insert(id.len());
            self.sigils.insert(sigil);
        }
    }

    /// Whether a text names an event of them, and a room.
    fn named_in(&self, text: &[u8]) -> [bool; 2] {
        let mut named = [false; 2];
        for (at, byte) in text.iter().enumerate() {
            if !self.sigils.contains(byte) {
                continue;
            }
            for length in &self.lengths {
                let Some(word) = text.get(at..at + length) else {
                    break;
                };
                // Not the beginning of another id.
                let ends = text.get(at + length).is_none_or(|next| {
                    !next.is_ascii_alphanumeric() && !b"-_=+/.:".contains(next)
                        || (b".:".contains(next)
                            && !text
                                .get(at + length + 1)
                                .is_some_and(u8::is_ascii_alphanumeric))
                });
                if let (Some(is_room), true) = (self.known.get(word), ends) {
                    named[usize::from(*is_room)] = true;
                }
            }
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_wherever_it_stands_and_no_other_is_taken_for_it() {
        let mut needles = Needles::default();
        needles.add("$one", false);
        needles.add("$older:example.org", false);
        needles.add("!room:example.org", true);
        let named = |text: &str| needles.named_in(text.as_bytes());
        for text in [
            "$one",
            r#"{"event_id":"$one"}"#,
            "see $one.",
            "$$one, of course",
            "[\"$two\",\"$older:example.org\"]",
        ] {
            assert_eq!(named(text), [true, false], "{text}");
        }
        for text in [
            "$on",
            "$ones",
            "$one-half",
            "$one:example.org",
            "one",
            "$older:example.organic",
            "",
        ] {
            assert_eq!(named(text), [false, false], "{text}");
        }
        assert_eq!(named("override/!room:example.org"), [false, true]);
        assert_eq!(named("!room:example.org of $one"), [true, true]);
        assert_eq!(named("!room:example.org:8448"), [false, false]);
        assert_eq!(needles.named_in(b"\xff$one\xff"), [true, false]);
    }

    #[test]
    fn what_stays_may_name_what_went_and_nothing_may_be_its_own() {
        let (room, events) = (RoomId::from("!a:b"), [EventId::from("$e")]);
        let purged = Gone {
            room: &room,
            is_whole: false,
            events: &events,
        };
        let deleted = Gone {
            is_whole: true,
            ..purged
        };
        for (table, column) in [
            ("events", "event_id"),
            ("event_json", "event_id"),
            ("event_edges", "event_id"),
            ("current_state_events", "event_id"),
            ("of_tomorrow", "note"),
            ("events", "of_tomorrow"),
        ] {
            assert_eq!(why(table, column, false, purged), None, "{table}.{column}");
            assert_eq!(why(table, column, false, deleted), None, "{table}.{column}");
        }
        for (table, column) in [
            ("event_json", "json"),
            ("event_edges", "prev_event_id"),
            ("receipts_linearized", "event_id"),
            ("event_backward_extremities", "event_id"),
            ("event_reports", "event_id"),
            ("state_groups", "event_id"),
        ] {
            assert!(
                why(table, column, false, purged).is_some(),
                "{table}.{column}"
            );
        }
        assert_eq!(why("receipts_linearized", "event_id", false, deleted), None);
        for table in [
            "rooms",
            "receipts_linearized",
            "state_groups_state",
            "room_aliases",
        ] {
            assert_eq!(why(table, "room_id", true, deleted), None, "{table}");
        }
        assert_eq!(
            why("blocked_rooms", "room_id", true, deleted),
            Some("a blocked room stays blocked")
        );
        assert!(
            why(
                "sliding_sync_joined_rooms",
                "tombstone_successor_room_id",
                true,
                deleted
            )
            .is_some()
        );
    }
}
