//! What tables that we know nothing of refer to with foreign keys, and whether one of those would stop a delete (P-53, V-5).
//!
//! A key that cascades takes rows of its own table along, to which others refer in turn; so each is followed.

use std::collections::BTreeSet;

use super::catalog;
use super::db::{Db, Engine, params};
use super::room_rows::Unknown;
use crate::error::Error;

/// Every foreign key, a row for each of its columns: number of the key, its table by name, and as it stands in a statement,
/// the table it refers to, column, column there, whether it refuses, whether it cascades, whether it can be NULL. SQLite
/// compares names without regard to case; a key that names no column refers to the primary key.
const KEYS: &str = r#"
    SELECT k.id, m.name, '"' || replace(m.name, '"', '""') || '"', lower(k."table"),
           '"' || replace(k."from", '"', '""') || '"',
           '"' || coalesce(k."to", (SELECT c.name FROM pragma_table_info(k."table") c WHERE c.pk = k.seq + 1), '') || '"',
           k.on_delete NOT IN ('CASCADE', 'SET NULL', 'SET DEFAULT'), k.on_delete = 'CASCADE',
           k.on_delete = 'SET NULL' AND EXISTS (
               SELECT 1 FROM pragma_table_info(m.name) c WHERE c."notnull" AND lower(c.name) = lower(k."from")),
           TRUE, k.on_delete = 'SET DEFAULT'
      FROM sqlite_master m, pragma_foreign_key_list(m.name) k
     WHERE m.type = 'table'
     ORDER BY m.name, k.id, k.seq"#;

/// The same on PostgreSQL, tables in other schemas named with these, the parts of partitioned ones left out; and whether
/// the table is the one that its name means to us.
const KEYS_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT CAST(k.oid AS BIGINT), CAST(CAST(k.conrelid AS regclass) AS TEXT), CAST(CAST(k.conrelid AS regclass) AS TEXT),
           CAST(CAST(k.confrelid AS regclass) AS TEXT), quote_ident(a.attname), quote_ident(b.attname),
           k.confdeltype IN ('a', 'r'), k.confdeltype = 'c', k.confdeltype = 'n' AND a.attnotnull,
           pg_table_is_visible(k.conrelid), k.confdeltype = 'd'
      FROM pg_constraint k
     CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY AS x (child, parent, n)
      JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.child
      JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = x.parent
     WHERE k.contype = 'f' AND k.conparentid = 0
     ORDER BY k.oid, x.n";

/// A foreign key.
struct Key {
    number: i64,
    /// For people, and as it stands in a statement.
    name: String,
    table: String,
    parent: String,
    /// Its columns, each with the one it refers to.
    columns: Vec<(String, String)>,
    /// Whether it refuses that the row it refers to goes.
    stops: bool,
    cascades: bool,
    is_known: bool,
}

/// How far keys that cascade are followed.
const LONGEST_CHAIN: usize = 5;

/// Stands for the table in a condition on its rows.
const ROW: &str = "{row}";

/// Rows that go: of which table, and by what they are known.
struct Going {
    table: String,
    condition: String,
    links: usize,
}

/// The tables of somebody else's with rows that refer to what goes, by number of rows. `going` names the tables that lose
/// rows, each with the condition, over [`ROW`], that a row of it goes; they bind `room` as `$1`, or nothing.
pub(super) fn find(
    db: &Db,
    going: impl Iterator<Item = (String, String)>,
    room: Option<&str>,
) -> Result<Vec<Unknown>, Error> {
    let doing = "look for tables that refer to what goes";
    let keys = keys(db, room.is_some())?;
    if keys.iter().all(|key| key.is_known) {
        return Ok(Vec::new());
    }
    let mut queue: Vec<Going> = going
        .map(|(table, condition)| Going {
            table,
            condition,
            links: 0,
        })
        .collect();
    let mut found: Vec<Unknown> = Vec::new();
    while let Some(parent) = queue.pop() {
        for key in keys
            .iter()
            .filter(|k| !k.is_known && k.parent == parent.table)
        {
            let alias = format!("p{}", parent.links);
            let joined: Vec<String> = (key.columns.iter())
                .map(|(from, to)| format!("{alias}.{to} = {ROW}.{from}"))
                .collect();
            let condition = format!(
                "EXISTS (SELECT 1 FROM {} {alias} WHERE {} AND {})",
                key_parent(db, &parent.table),
                joined.join(" AND "),
                parent.condition.replace(ROW, &alias)
            );
            let sql = format!(
                "SELECT count(*) FROM {} c WHERE {}",
                key.table,
                condition.replace(ROW, "c")
            );
            let rows = match room {
                Some(room) => db.count(doing, &sql, params![room])?,
                None => db.count(doing, &sql, &[])?,
            };
            if rows == 0 {
                continue;
            }
            match found.iter_mut().find(|u| u.table == key.name) {
                Some(unknown) => {
                    unknown.rows = unknown.rows.max(rows);
                    unknown.stops_delete |= key.stops;
                }
                None => found.push(Unknown {
                    table: key.name.clone(),
                    rows,
                    stops_delete: key.stops,
                }),
            }
            if key.cascades && parent.links < LONGEST_CHAIN {
                queue.push(Going {
                    table: as_parent(db, key),
                    condition,
                    links: parent.links + 1,
                });
            }
        }
    }
    Ok(found)
}

/// The tables of somebody else's whose keys refuse that a row of these goes, whether or not they have such rows.
pub(super) fn strangers(
    db: &Db,
    is_ours: impl Fn(&str) -> bool,
) -> Result<BTreeSet<String>, Error> {
    let mut refusing: BTreeSet<String> = BTreeSet::new();
    let keys = keys(db, true)?;
    // A table that goes along is in the way where another refers to it.
    let mut parents: Vec<String> = Vec::new();
    let mut followed: BTreeSet<usize> = BTreeSet::new();
    loop {
        let next = keys.iter().enumerate().find(|(at, key)| {
            !key.is_known
                && !followed.contains(at)
                && (is_ours(&key.parent) || parents.contains(&key.parent))
        });
        let Some((at, key)) = next else { break };
        followed.insert(at);
        if key.stops {
            refusing.insert(key.name.clone());
        }
        if key.cascades {
            parents.push(as_parent(db, key));
        }
    }
    Ok(refusing)
}

/// How a table that is referred to stands in a statement.
fn key_parent(db: &Db, table: &str) -> String {
    match db.engine() {
        Engine::Sqlite => format!("\"{}\"", table.replace('"', "\"\"")),
        Engine::Postgres => table.to_owned(),
    }
}

/// How keys name the table of this one, where they refer to it.
fn as_parent(db: &Db, key: &Key) -> String {
    match db.engine() {
        Engine::Sqlite => key.name.to_ascii_lowercase(),
        Engine::Postgres => key.table.clone(),
    }
}

fn keys(db: &Db, defaults_stop: bool) -> Result<Vec<Key>, Error> {
    let mut keys: Vec<Key> = Vec::new();
    let sql = db.text(KEYS, KEYS_ON_POSTGRES);
    db.for_each("read the foreign keys", sql, &[], |r| {
        let (number, name): (i64, String) = (r.get(0)?, r.get(1)?);
        let column = (r.get(4)?, r.get(5)?);
        // Whether there is what a default refers to is not looked into: where a whole room goes it may well go, too.
        let stops = r.get::<_, bool>(6)?
            || r.get::<_, bool>(8)?
            || (defaults_stop && r.get::<_, bool>(10)?);
        match keys.last_mut() {
            Some(key) if key.number == number && key.name == name => {
                key.columns.push(column);
                key.stops |= stops;
            }
            _ => keys.push(Key {
                number,
                is_known: r.get::<_, bool>(9)? && catalog::refers_by_right(&name),
                name,
                table: r.get(2)?,
                parent: r.get(3)?,
                columns: vec![column],
                stops,
                cascades: r.get(7)?,
            }),
        }
        Ok(())
    })?;
    Ok(keys)
}
