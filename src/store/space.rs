//! Disk space: what is free, what a purge needs, what `reclaim` gives back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::db::{Db, Engine};
use crate::error::{Context, Error, StoreError};

/// Free space that a purge asks for before it starts: the write-ahead log of one long batch.
pub const PURGE_NEEDS: u64 = 256 * 1024 * 1024;

/// Bytes free for us on the file system that holds `path`.
pub fn free_bytes(path: &Path) -> Result<u64, Error> {
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(directory)
        .map_err(|e| StoreError::Io(e.into()))
        .context("look how much disk is free")?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of the database file that hold nothing any more, and that [`reclaim`] would give back.
pub fn reclaimable_bytes(db: &Db) -> Result<u64, Error> {
    if db.engine() == Engine::Postgres {
        return Ok(0);
    }
    let bytes = db
        .pragma("freelist_count")?
        .saturating_mul(db.pragma("page_size")?);
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Refuses long work that the disk has no room for. A small database needs no more than itself.
///
/// # Errors
/// [`Error::NoSpace`] with what is needed and what there is.
pub fn check_room_to_purge(db: &Db) -> Result<(), Error> {
    // What a server has room for, it says itself.
    let Some(path) = db.path() else {
        return Ok(());
    };
    let size = fs::metadata(path).map_or(0, |m| m.len());
    let needed = PURGE_NEEDS.min(size);
    let free = free_bytes(path)?;
    if free < needed {
        return Err(Error::NoSpace(format!(
            "a purge writes a log of up to {} beside the database, and the disk has {} free: make room first",
            human(needed),
            human(free)
        )));
    }
    Ok(())
}

/// Sizes of the database file before and after [`reclaim`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reclaimed {
    /// File size before.
    pub bytes_before: u64,
    /// File size after.
    pub bytes_after: u64,
}

/// Gives free pages back to the file system: copies what is used into a new file beside the old one and puts it in
/// its place. At any moment the old file or the new one is there, whole. Nothing else may have the file open.
///
/// # Errors
/// [`Error::NoSpace`] before anything is written when the disk has no room for the copy; [`Error::Refused`] when
/// the file is open elsewhere.
pub fn reclaim(database: &Path) -> Result<Reclaimed, Error> {
    let doing = "reclaim free space";
    // A link stays a link; the file behind it is replaced.
    let database = fs::canonicalize(database).context(doing)?;
    let conn =
        Connection::open_with_flags(&database, OpenFlags::SQLITE_OPEN_READ_WRITE).context(doing)?;
    conn.busy_timeout(std::time::Duration::ZERO)
        .context(doing)?;
    alone(&conn)?;
    let before = fs::metadata(&database).context(doing)?;
    let number = |name| {
        conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0))
            .context(doing)
    };
    let used =
        (number("page_count")? - number("freelist_count")?).saturating_mul(number("page_size")?);
    let needed = u64::try_from(used).unwrap_or(u64::MAX);
    let free = free_bytes(&database)?;
    // A tenth more: full-text and index pages are packed anew, not always tighter.
    if free < needed.saturating_add(needed / 10) {
        return Err(Error::NoSpace(format!(
            "reclaiming copies the {} in use beside the database, and the disk has {} free: make room first",
            human(needed),
            human(free)
        )));
    }
    let copy = beside(&database, ".reclaim");
    match fs::remove_file(&copy) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(doing),
        _ => {}
    }
    let replaced = copy_into(&conn, &copy, &before).and_then(|()| {
        fs::rename(&copy, &database).context(doing)?;
        sync_directory(&database).context(doing)
    });
    if replaced.is_err() {
        let _ = fs::remove_file(&copy);
    }
    drop(conn);
    replaced?;
    let after = fs::metadata(&database).context(doing)?;
    Ok(Reclaimed {
        bytes_before: before.len(),
        bytes_after: after.len(),
    })
}

/// Empties the log and takes the file for this connection alone. With a rollback journal nothing is left beside
/// the file that could be taken for the new file's log.
fn alone(conn: &Connection) -> Result<(), Error> {
    let doing = "take the database for ourselves";
    let refused = |e: rusqlite::Error| {
        let e = StoreError::from(e);
        if e.is_busy() {
            Error::Refused("another process has the database open: stop the homeserver (and roomkeeper's daemon), then reclaim".into())
        } else {
            Error::Store { doing, source: e }
        }
    };
    let checkpoint: i64 = conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0))
        .map_err(refused)?;
    let mode: String = conn
        .query_row("PRAGMA journal_mode = DELETE", [], |r| r.get(0))
        .map_err(refused)?;
    if checkpoint != 0 || mode != "delete" {
        return Err(Error::Refused(
            "another process has the database open: stop the homeserver (and roomkeeper's daemon), then reclaim".into(),
        ));
    }
    conn.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))
        .map_err(refused)?;
    conn.execute_batch("BEGIN EXCLUSIVE; COMMIT")
        .map_err(refused)
}

/// What is damaged is copied by nobody: what is still there might get lost.
pub fn damaged(what: &str) -> Error {
    Error::Refused(format!(
        "the database file is damaged, and was before: {what}. It stays as it is (rule I-18), and nothing was lost by this. \
         Stop the homeserver, make a copy of the file and of its -wal, and look at the copy: `roomkeeper check`, or \
         `sqlite3 COPY 'PRAGMA integrity_check'`. Then restore a backup"
    ))
}

fn copy_into(conn: &Connection, copy: &Path, original: &fs::Metadata) -> Result<(), Error> {
    let doing = "copy the database";
    let name = copy
        .to_str()
        .ok_or_else(|| Error::Config("the database's path is not UTF-8".into()))?;
    conn.execute("VACUUM INTO $1", [name]).context(doing)?;
    let made =
        Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE).context(doing)?;
    let verdict = |conn: &Connection| -> Result<String, Error> {
        conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
            .context(doing)
    };
    let copied = verdict(&made)?;
    if copied != "ok" {
        // What was damaged is copied as it is.
        return Err(match verdict(conn)?.as_str() {
            "ok" => Error::Bug(format!("the copy is not whole: {copied}")),
            held => damaged(held),
        });
    }
    for table in ["events", "event_json", "state_groups_state"] {
        let sql = format!("SELECT count(*) FROM {table}");
        let count = |c: &Connection| c.query_row(&sql, [], |r| r.get::<_, i64>(0)).context(doing);
        if count(conn)? != count(&made)? {
            return Err(Error::Bug(format!(
                "the copy does not hold all rows of {table}"
            )));
        }
    }
    made.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .context(doing)?;
    made.close().map_err(|(_, e)| e).context(doing)?;
    // The homeserver must be able to open it as before.
    fs::set_permissions(copy, fs::Permissions::from_mode(original.mode() & 0o7777))
        .context(doing)?;
    let made = fs::metadata(copy).context(doing)?;
    if (made.uid(), made.gid()) != (original.uid(), original.gid()) {
        std::os::unix::fs::chown(copy, Some(original.uid()), Some(original.gid()))
            .context(doing)?;
    }
    fs::File::open(copy)
        .and_then(|f| f.sync_all())
        .context(doing)
}

fn sync_directory(of: &Path) -> std::io::Result<()> {
    fs::File::open(of.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
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

const DATABASE_SIZE: &str = "-- PostgreSQL
    SELECT pg_database_size(current_database())";

/// The same on a PostgreSQL server: it writes every table of this role anew, one after the other, each of which nobody
/// else can read meanwhile. At any moment a table is as before or done; what has no room stays as it was.
pub fn vacuum(db: &Db) -> Result<Reclaimed, Error> {
    let doing = "write the tables anew";
    let size = || -> Result<u64, Error> {
        let bytes = db.count("measure the database", DATABASE_SIZE, &[])?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    };
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
        log::warn!("{others} tables belong to other roles and are left as they are");
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
        format!("{bytes} bytes")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}
