//! What the database holds: tables, columns, schema version (V-1 … V-9).

use std::collections::{HashMap, HashSet};

use super::db::Db;
use super::tables;
use crate::error::Error;

/// The oldest schema we work on: the full snapshot that Synapse 1.66–1.79 ship (V-2).
pub const OLDEST_SCHEMA: i64 = 72;
/// The newest schema we know (V-2).
pub const NEWEST_SCHEMA: i64 = 94;

/// Tables with their columns, and the schema version.
#[derive(Debug, Default)]
pub struct Catalog {
    tables: HashMap<String, HashSet<String>>,
    /// Foreign keys on `events` and `rooms`.
    references: Vec<Reference>,
    version: Option<i64>,
    compat: Option<i64>,
    newest_delta: Option<i64>,
    has_stalled_upgrade: bool,
}

/// A foreign key on `events` or `rooms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The table that has it.
    pub table: String,
    /// Its column.
    pub column: String,
    /// `events` or `rooms`.
    pub to: String,
    /// The column there.
    pub to_column: String,
    /// Whether what it refers to cannot be deleted before it: its rows do not go along.
    pub stops_delete: bool,
}

const COLUMNS: &str = "
    SELECT m.name, c.name
      FROM sqlite_master m, pragma_table_info(m.name) c
     WHERE m.type = 'table'";

const COLUMNS_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT c.relname, a.attname
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND a.attnum > 0 AND NOT a.attisdropped
       AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND pg_table_is_visible(c.oid)";

const REFERRING: &str = "
    SELECT m.name, k.\"from\", k.\"table\",
           coalesce(k.\"to\", CASE k.\"table\" WHEN 'rooms' THEN 'room_id' ELSE 'stream_ordering' END),
           k.on_delete NOT IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
      FROM sqlite_master m, pragma_foreign_key_list(m.name) k
     WHERE m.type = 'table' AND lower(k.\"table\") IN ('events', 'rooms')";

const REFERRING_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT c.relname, a.attname, p.relname, b.attname, k.confdeltype IN ('a', 'r')
      FROM pg_constraint k
      JOIN pg_class c ON c.oid = k.conrelid
      JOIN pg_class p ON p.oid = k.confrelid
      JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
      JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = k.confkey[1]
     WHERE k.contype = 'f' AND k.confrelid IN (to_regclass('events'), to_regclass('rooms'))";

impl Catalog {
    /// Reads the catalogue of an open database.
    pub fn read(db: &Db) -> Result<Self, Error> {
        let doing = "read the catalogue";
        let mut catalog = Self::default();
        db.for_each(doing, db.text(COLUMNS, COLUMNS_ON_POSTGRES), &[], |row| {
            let columns = catalog.tables.entry(row.get(0)?).or_default();
            columns.insert(row.get(1)?);
            Ok(())
        })?;
        catalog.references = db.rows(
            doing,
            db.text(REFERRING, REFERRING_ON_POSTGRES),
            &[],
            |row| {
                Ok(Reference {
                    table: row.get(0)?,
                    column: row.get(1)?,
                    to: row.get(2)?,
                    to_column: row.get(3)?,
                    stops_delete: row.get(4)?,
                })
            },
        )?;
        let number = |table: &str, sql: &str| -> Result<Option<i64>, Error> {
            if !catalog.tables.contains_key(table) {
                return Ok(None);
            }
            Ok(db.row(doing, sql, &[], |row| row.get(0))?.flatten())
        };
        catalog.version = number("schema_version", "SELECT version FROM schema_version")?;
        catalog.compat = number(
            "schema_compat_version",
            "SELECT compat_version FROM schema_compat_version",
        )?;
        catalog.newest_delta = number(
            "applied_schema_deltas",
            "SELECT max(version) FROM applied_schema_deltas",
        )?;
        catalog.has_stalled_upgrade = matches!((catalog.newest_delta, catalog.version), (Some(delta), Some(version)) if delta > version);
        Ok(catalog)
    }

    /// Whether a homeserver has been at work on the database: it notes what it did to the tables.
    pub fn is_of_homeserver(&self) -> bool {
        self.newest_delta.is_some()
    }

    /// Whether the table exists.
    pub fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Whether the table exists and has the column.
    pub fn has_column(&self, table: &str, column: &str) -> bool {
        self.tables
            .get(table)
            .is_some_and(|columns| columns.contains(column))
    }

    /// Synapse's schema version.
    pub fn version(&self) -> i64 {
        self.version.unwrap_or(0)
    }

    /// Names of all tables.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// Foreign keys on events and rooms of tables that we know nothing of (V-5): they may stop a delete.
    pub fn unknown_references(&self) -> impl Iterator<Item = &Reference> {
        let references = self.references.iter();
        references.filter(|r| !refers_by_right(&r.table))
    }

    /// The tables of these keys, in alphabetical order.
    pub fn unknown_referring(&self) -> Vec<&str> {
        let tables = self.unknown_references().map(|r| r.table.as_str());
        let tables: std::collections::BTreeSet<&str> = tables.collect();
        tables.into_iter().collect()
    }

    /// Refuses what we must not write to (V-1, V-2, V-9, V-10); warns of what is newer but compatible.
    ///
    /// # Errors
    /// [`Error::Refused`] with what was found and what to do.
    pub fn refuse_unknown_schema(&self) -> Result<(), Error> {
        for table in [
            "schema_version",
            "events",
            "event_json",
            "rooms",
            "state_groups",
        ] {
            if !self.has(table) {
                return Err(Error::Refused(format!(
                    "this is not a Synapse database: it has no table {table} (if the homeserver keeps its state \
                     tables in a second database, roomkeeper cannot work on it)"
                )));
            }
        }
        let version = self.version.ok_or_else(|| {
            Error::Refused(
                "schema_version is empty: start Synapse once, so that it completes the database"
                    .into(),
            )
        })?;
        let compat = self.compat.unwrap_or(version.min(NEWEST_SCHEMA));
        if compat > NEWEST_SCHEMA {
            return Err(Error::Refused(format!(
                "the database asks for programs that know schema {compat} or newer, and this roomkeeper knows {NEWEST_SCHEMA}: \
                 use a newer roomkeeper"
            )));
        }
        if version < OLDEST_SCHEMA {
            return Err(Error::Refused(format!(
                "the database has schema {version}; roomkeeper works on {OLDEST_SCHEMA} (Synapse 1.66) and newer: \
                 upgrade Synapse first"
            )));
        }
        if self.has_stalled_upgrade {
            return Err(Error::Refused(format!(
                "an upgrade of the database from schema {version} was not finished: start Synapse, let it complete \
                 the upgrade, stop it, and try again"
            )));
        }
        if version > NEWEST_SCHEMA {
            log::warn!(
                "the database has schema {version}, newer than {NEWEST_SCHEMA} but declared compatible; going on"
            );
        }
        for table in self.unknown_referring() {
            log::warn!(
                "unknown table {table} refers to events or rooms: its rows may stop a delete"
            );
        }
        Ok(())
    }
}

/// Whether a table of Synapse's own has this name and foreign keys that our rules know.
pub(super) fn refers_by_right(table: &str) -> bool {
    tables::named(table).is_some_and(|table| table.refers)
}
