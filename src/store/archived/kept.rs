//! The rows of a room that goes, written down table by table before they go.

use std::collections::HashMap;

use super::{
    DOCUMENT, DOING, EXTREMITIES, EXTREMITIES_OF_ROOM, REST, WITNESS, write, write_chunks,
    write_group,
};
use crate::archive::{Cell, Frame, Head, Kind, Witness};
use crate::error::Error;
use crate::ids::{EventId, RoomId};
use crate::store::db::{Db, Engine, Params, params};
use crate::store::event_rows::Scope;
use crate::store::{exact_rows, tables};
use crate::time::Millis;

/// What one transaction of a deletion writes down; nothing, where there is no archive.
pub struct Kept<'a> {
    frame: Option<Frame<'a>>,
    witness: Option<Witness>,
    events: i64,
    tables: HashMap<&'static str, Columns>,
}

/// The columns of a table, and how they are read.
struct Columns {
    names: Vec<String>,
    select: String,
}

impl<'a> Kept<'a> {
    /// Into this frame.
    pub fn new(frame: Option<Frame<'a>>) -> Self {
        Self {
            frame,
            witness: None,
            events: 0,
            tables: HashMap::new(),
        }
    }

    /// Writes the rows of a table, as `t`, for which this is so. To be called before they go.
    pub(in crate::store) fn rows(
        &mut self,
        db: &Db,
        table: &'static str,
        condition: &str,
        params: Params<'_>,
    ) -> Result<(), Error> {
        let Some(frame) = &mut self.frame else {
            return Ok(());
        };
        if !self.tables.contains_key(table) {
            let columns = exact_rows::columns(db, table)?;
            let select: Vec<String> = columns.iter().map(|column| column.select()).collect();
            let columns = Columns {
                names: columns.into_iter().map(|column| column.name).collect(),
                select: select.join(", "),
            };
            self.tables.insert(table, columns);
        }
        let Columns { names, select } = &self.tables[table];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let sql = format!("SELECT {select} FROM {table} t WHERE {condition}");
        write(db, frame, table, &names, &sql, params)?;
        if self.witness.is_none() && !frame.counts().is_empty() {
            let address = db.text("t.rowid", ADDRESS);
            let sql =
                format!("SELECT CAST({address} AS TEXT) FROM {table} t WHERE {condition} LIMIT 1");
            self.witness = db.row(DOING, &sql, params, |r| {
                Ok(Witness::Row {
                    table: table.to_owned(),
                    address: r.get(0)?,
                })
            })?;
        }
        Ok(())
    }

    /// Writes the selected events and all that belongs to them. To be called before the first of it goes.
    pub(in crate::store) fn selected(&mut self, db: &Db, room: &RoomId) -> Result<(), Error> {
        let Some(frame) = &mut self.frame else {
            return Ok(());
        };
        let of_room = params![room.as_str()];
        let event = ["event_id"];
        write(db, frame, EXTREMITIES, &event, EXTREMITIES_OF_ROOM, of_room)?;
        write_chunks(db, frame, Scope::Room, room, false)?;
        let ended = frame
            .table(REST, &["n"])
            .and_then(|()| frame.row(&[Cell::Int(0)]));
        ended.map_err(|e| frame.explain(&e))?;
        self.events = frame.counts().get("events").copied().unwrap_or(0);
        let newest = db.row(DOING, WITNESS, &[], |r| {
            Ok(Witness::Deleted {
                event_id: EventId::new(r.get::<_, String>(0)?),
                stream_ordering: r.get(1)?,
            })
        })?;
        // Nobody gives it out again.
        self.witness = newest.or(self.witness.take());
        Ok(())
    }

    /// Writes documents of a file's full-text index, which the query finds in its content.
    pub(in crate::store) fn documents(
        &mut self,
        db: &Db,
        found: &str,
        params: Params<'_>,
    ) -> Result<(), Error> {
        let Some(frame) = &mut self.frame else {
            return Ok(());
        };
        let sql = format!(
            "SELECT c.c0event_id, c.c1room_id, c.c2sender, c.c3key, c.c4value
               FROM event_search_content c WHERE c.docid IN ({found})"
        );
        write(db, frame, "event_search", &DOCUMENT, &sql, params)?;
        if self.witness.is_none() {
            let sql = format!("SELECT CAST(max(docid) AS TEXT) FROM ({found})");
            let newest = db.row(DOING, &sql, params, |r| r.get::<_, Option<String>>(0))?;
            self.witness = newest.flatten().map(|address| Witness::Row {
                table: CONTENT.to_owned(),
                address,
            });
        }
        Ok(())
    }

    /// Writes a state group that is about to go.
    pub(in crate::store) fn group(&mut self, db: &Db, group: i64) -> Result<(), Error> {
        let Some(frame) = &mut self.frame else {
            return Ok(());
        };
        if self.witness.is_none() {
            self.witness = super::witness_of_group(db, group)?;
        }
        write_group(db, group, frame)
    }

    /// Before the transaction commits. Where nothing was written there is no frame.
    ///
    /// # Errors
    /// Those of the archive.
    pub fn finish(self, room: &RoomId, now: Millis) -> Result<(), Error> {
        let Some(frame) = self.frame.filter(|frame| !frame.counts().is_empty()) else {
            return Ok(());
        };
        let head = Head {
            kind: Kind::Room,
            room: room.clone(),
            at_ms: now,
            events: self.events,
            rows: frame.counts().clone(),
            is_encrypted: false,
            witness: self.witness,
        };
        frame.finish(&head)
    }
}

const CONTENT: &str = "event_search_content";

/// Where a row lies on a server, and which transaction wrote it: no two rows ever share that.
const ADDRESS: &str = "CAST(t.ctid AS TEXT) || ' ' || CAST(t.xmin AS TEXT)";

/// Whether the row that lay there still does.
pub(super) fn row_stands(db: &Db, table: &str, address: &str) -> Result<bool, Error> {
    // The name comes out of a file.
    let is_known = table == CONTENT || tables::named(table).is_some();
    if !is_known || !db.catalog().has(table) {
        return Ok(false);
    }
    let found = match db.engine() {
        Engine::Sqlite => {
            let sql = format!("SELECT count(*) FROM {table} WHERE rowid = $1");
            let row: i64 = address.parse().unwrap_or(i64::MIN);
            db.count(DOING, &sql, params![row])?
        }
        Engine::Postgres => {
            let Some((place, writer)) = address.split_once(' ') else {
                return Ok(false);
            };
            let sql = format!(
                "SELECT count(*) FROM {table} t
                  WHERE t.ctid = CAST(CAST($1 AS TEXT) AS tid) AND CAST(t.xmin AS TEXT) = $2"
            );
            db.count(DOING, &sql, params![place, writer])?
        }
    };
    Ok(found > 0)
}
