//! The temporary tables of a purge or a deletion: made, emptied, and indexed when they are full.

use super::db::{Db, Engine};
use crate::error::Error;

/// How much a selection may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A batch: its index is kept while it is filled.
    Batch,
    /// All there is below the point: it is indexed when it is full, which is cheaper.
    Whole,
}

/// The temporary tables of a purge. `to_delete` is Synapse's `should_delete`; `outlier` is what the event was then.
const TEMPORARY_TABLES: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_selected (
        stream_ordering INTEGER PRIMARY KEY, event_id TEXT NOT NULL, to_delete BOOLEAN NOT NULL,
        outlier BOOLEAN NOT NULL DEFAULT FALSE);
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_extremities (event_id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_own_extremities (event_id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_held (sender TEXT, since INTEGER NOT NULL, until INTEGER NOT NULL);
    DELETE FROM rk_held;
    DELETE FROM rk_selected;
    DELETE FROM rk_extremities;";

/// The same. What is selected is forgotten when its transaction ends, which costs less than to truncate tables. Of the
/// columns only the two flags get statistics: that the others are unique is said by their indexes, and looking at thirty
/// thousand ids in every batch takes time.
const TEMPORARY_TABLES_ON_POSTGRES: &str = "-- PostgreSQL
    CREATE TEMPORARY TABLE rk_selected (
        stream_ordering BIGINT NOT NULL, event_id TEXT NOT NULL, to_delete BOOLEAN NOT NULL,
        outlier BOOLEAN NOT NULL DEFAULT FALSE) ON COMMIT DELETE ROWS;
    ALTER TABLE rk_selected ALTER stream_ordering SET STATISTICS 0, ALTER event_id SET STATISTICS 0,
        ALTER to_delete SET STATISTICS 1, ALTER outlier SET STATISTICS 1;
    CREATE TEMPORARY TABLE rk_extremities (event_id TEXT PRIMARY KEY) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_own_extremities (event_id TEXT PRIMARY KEY);
    CREATE TEMPORARY TABLE rk_held (sender TEXT, since BIGINT NOT NULL, until BIGINT NOT NULL) ON COMMIT DELETE ROWS;";

/// How much of that is there: 0 nothing, 1 the tables, 2 the indexes as well.
const TABLES_THERE: &str = "-- PostgreSQL
    SELECT CASE WHEN to_regclass('pg_temp.rk_selected') IS NULL THEN 0
                WHEN to_regclass('pg_temp.rk_selected_event_id') IS NULL THEN 1 ELSE 2 END";

const EMPTY_SELECTED: &str = "-- PostgreSQL
    DELETE FROM rk_selected; DELETE FROM rk_extremities;";

const ANALYZE_SELECTED: &str = "-- PostgreSQL
    ANALYZE rk_selected";

const INDEX_SELECTED_ON_POSTGRES: &str = "-- PostgreSQL
    CREATE UNIQUE INDEX rk_selected_event_id ON rk_selected (event_id);
    CREATE UNIQUE INDEX rk_selected_stream_ordering ON rk_selected (stream_ordering)";

const DROP_INDEX_ON_POSTGRES: &str = "-- PostgreSQL
    DROP INDEX pg_temp.rk_selected_event_id, pg_temp.rk_selected_stream_ordering";

const INDEX_SELECTED: &str = "CREATE UNIQUE INDEX IF NOT EXISTS temp.rk_selected_event_id ON rk_selected (event_id, to_delete)";

const DROP_INDEX: &str = "DROP INDEX IF EXISTS temp.rk_selected_event_id";

/// Makes the temporary tables, or empties them.
pub(super) fn begin(db: &Db, extent: Extent) -> Result<(), Error> {
    let doing = "select events";
    if db.engine() == Engine::Postgres {
        let there = db.count(doing, TABLES_THERE, &[])?;
        if there == 0 {
            db.batch(doing, TEMPORARY_TABLES_ON_POSTGRES)?;
        }
        db.batch(doing, EMPTY_SELECTED)?;
        return match extent {
            Extent::Batch if there < 2 => db.batch(doing, INDEX_SELECTED_ON_POSTGRES),
            Extent::Whole if there == 2 => db.batch(doing, DROP_INDEX_ON_POSTGRES),
            _ => Ok(()),
        };
    }
    db.batch(doing, TEMPORARY_TABLES)?;
    // A schema that changes has every statement prepared anew: little to pay once, much to pay in every batch.
    match extent {
        Extent::Batch => db.batch(doing, INDEX_SELECTED),
        Extent::Whole => db.batch(doing, DROP_INDEX),
    }
}

/// The selection is full: it is found by event id from here on.
pub(super) fn end(db: &Db, extent: Extent) -> Result<(), Error> {
    let doing = "select events";
    if db.engine() == Engine::Postgres {
        if extent == Extent::Whole {
            db.batch(doing, INDEX_SELECTED_ON_POSTGRES)?;
        }
        return db.batch(doing, ANALYZE_SELECTED);
    }
    db.batch(doing, INDEX_SELECTED)
}
