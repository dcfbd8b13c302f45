//! Disk space: what is free, what could be given back, what a server gives back.

use std::path::Path;

use super::db::{Db, Engine};
use super::reclaim::Reclaimed;
use crate::error::{Context, Error, StoreError};
use crate::plural::{count, count_of};

/// Bytes free for us on the file system that holds `path`.
pub fn free_bytes(path: &Path) -> Result<u64, Error> {
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    free_bytes_in(directory)
}

/// Bytes free for us on the file system that holds a directory.
pub fn free_bytes_in(directory: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(directory)
        .map_err(|e| StoreError::Io(e.into()))
        .context("look how much disk is free")?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of the database file that hold nothing any more, and that `reclaim` would give back.
pub fn reclaimable_bytes(db: &Db) -> Result<u64, Error> {
    if db.engine() == Engine::Postgres {
        return Ok(0);
    }
    let bytes = db
        .pragma("freelist_count")?
        .saturating_mul(db.pragma("page_size")?);
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Bytes of the whole database, where a server has it.
pub fn server_bytes(db: &Db) -> Result<Option<u64>, Error> {
    if db.engine() != Engine::Postgres {
        return Ok(None);
    }
    let bytes = db.count("measure the database", DATABASE_SIZE, &[])?;
    Ok(u64::try_from(bytes).ok())
}

/// The tables of this role, largest first, as the server quotes their names.
const OWN_TABLES: &str = "-- PostgreSQL
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND pg_table_is_visible(c.oid)
       AND n.nspname NOT IN ('pg_catalog', 'information_schema')
       AND pg_has_role(c.relowner, 'USAGE')
     ORDER BY pg_total_relation_size(c.oid) DESC";

/// How many tables are somebody else's.
const OTHERS_TABLES: &str = "-- PostgreSQL
    SELECT count(*)
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND pg_table_is_visible(c.oid)
       AND n.nspname NOT IN ('pg_catalog', 'information_schema')
       AND NOT pg_has_role(c.relowner, 'USAGE')";

/// Bytes that the database takes, free pages included.
pub fn database_bytes(db: &Db) -> Result<u64, Error> {
    let bytes = match db.engine() {
        Engine::Sqlite => db
            .pragma("page_count")?
            .saturating_mul(db.pragma("page_size")?),
        Engine::Postgres => db.count("measure the database", DATABASE_SIZE, &[])?,
    };
    Ok(u64::try_from(bytes).unwrap_or(0))
}

const DATABASE_SIZE: &str = "-- PostgreSQL
    SELECT pg_database_size(current_database())";

/// `reclaim` on a PostgreSQL server: it writes every table of this role anew, one after the other, each of which nobody
/// else can read meanwhile. At any moment a table is as before or done; what has no room stays as it was.
pub fn vacuum(db: &Db) -> Result<Reclaimed, Error> {
    let doing = "write the tables anew";
    let size = || Ok::<_, Error>(server_bytes(db)?.unwrap_or(0));
    let bytes_before = size()?;
    let own = db.rows(doing, OWN_TABLES, &[], |r| r.get::<_, String>(0))?;
    let others = db.count(doing, OTHERS_TABLES, &[])?;
    // The server would only warn, and skip them (K-5).
    if own.is_empty() {
        return Err(Error::Refused(
            "this role may not write the tables anew: they belong to another role. Say that one as the user, or make this \
             one a member of it (GRANT owner TO role)"
                .into(),
        ));
    }
    if others > 0 {
        let others = count_of(
            others,
            "table belongs to another role and is",
            "tables belong to other roles and are",
        );
        log::warn!("{others} left as it stands");
    }
    for table in own {
        log::info!("writing {table} anew");
        db.batch(doing, &format!("VACUUM (FULL, ANALYZE) {table}"))?;
    }
    Ok(Reclaimed {
        bytes_before,
        bytes_after: size()?,
    })
}

/// Bytes for people: `1.2 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        count(bytes, "byte")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}
