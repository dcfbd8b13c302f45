//! Media: which files the homeserver has rows of, what refers to them, and how their rows go.
//!
//! A file is referred to wherever its id stands: `mxc://server/id` at any depth of an event, in a profile, in account data,
//! in the HTML of a message, as a link to the homeserver's own download path; escaped or not. So the question is not where a
//! reference may stand, but whether the id, which is drawn by chance, stands in any text of any table. Tables that nobody
//! knows of are read as well. What the homeserver keeps of a redacted message, until it forgets it, refers like any other.

mod text;

use std::collections::BTreeSet;

use super::db::{Db, Engine, params};
use super::tables;
use super::tx::Tx;
use crate::error::Error;
use crate::ids::RoomId;
use crate::time::Millis;

pub use self::text::{MediaName, Unreferenced, is_media_id, is_server_name};

/// A file of the media repository, as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaFile {
    /// The server that it came from; none where it was uploaded here.
    pub origin: Option<String>,
    /// Its id there.
    pub media_id: String,
    /// By what the file is called on the disk: of our own, the id.
    pub filesystem_id: String,
    /// Its bytes, without thumbnails.
    pub bytes: i64,
    /// Who uploaded it, where it was uploaded here.
    pub user_id: Option<String>,
    /// When it was uploaded or fetched.
    pub created: Millis,
    /// When somebody last looked at it, where that is known; not before it was there.
    pub last_access: Millis,
}

impl MediaFile {
    /// Its address, with the name of this server.
    pub fn uri(&self, server_name: &str) -> String {
        let origin = self.origin.as_deref().unwrap_or(server_name);
        format!("mxc://{origin}/{}", self.media_id)
    }
}

/// Uploads that are a reason to ask: neither previews of links, which the homeserver forgets by itself, nor what was
/// quarantined or found to be safe, nor what was never uploaded. Binds `$1` the id before, `$2` created before then, `$3` most.
const LOCAL: &str = "
    SELECT media_id, media_length, user_id, created_ts, last_access_ts
      FROM local_media_repository
     WHERE media_id > $1 AND created_ts < $2 AND media_length IS NOT NULL AND url_cache IS NULL
       AND quarantined_by IS NULL AND NOT safe_from_quarantine
     ORDER BY media_id
     LIMIT $3";

/// The same of copies. Binds `$1` the origin and `$2` the id before, `$3` created before then, `$4` most.
const REMOTE: &str = "
    SELECT media_origin, media_id, filesystem_id, media_length, created_ts, last_access_ts
      FROM remote_media_cache
     WHERE (media_origin, media_id) > ($1, $2) AND created_ts < $3 AND media_length IS NOT NULL
       AND quarantined_by IS NULL
     ORDER BY media_origin, media_id
     LIMIT $4";

const ONE_LOCAL: &str = "
    SELECT media_id, media_length, user_id, created_ts, last_access_ts
      FROM local_media_repository
     WHERE media_id = $1 AND media_length IS NOT NULL AND url_cache IS NULL
       AND quarantined_by IS NULL AND NOT safe_from_quarantine";

const ONE_REMOTE: &str = "
    SELECT media_origin, media_id, filesystem_id, media_length, created_ts, last_access_ts
      FROM remote_media_cache
     WHERE media_origin = $1 AND media_id = $2 AND media_length IS NOT NULL AND quarantined_by IS NULL";

const DOING: &str = "read which media there are";

fn local(row: &super::db::Row<'_>) -> super::db::RowResult<MediaFile> {
    let media_id: String = row.get(0)?;
    let created = row.stamp(3).unwrap_or(i64::MAX);
    Ok(MediaFile {
        origin: None,
        filesystem_id: media_id.clone(),
        media_id,
        bytes: row.stamp(1).unwrap_or(0),
        user_id: row.get(2)?,
        created: Millis(created),
        last_access: Millis(row.stamp(4).unwrap_or(created).max(created)),
    })
}

fn remote(row: &super::db::Row<'_>) -> super::db::RowResult<MediaFile> {
    let created = row.stamp(4).unwrap_or(i64::MAX);
    Ok(MediaFile {
        origin: Some(row.get(0)?),
        media_id: row.get(1)?,
        filesystem_id: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
        bytes: row.stamp(3).unwrap_or(0),
        user_id: None,
        created: Millis(created),
        last_access: Millis(row.stamp(5).unwrap_or(created).max(created)),
    })
}

/// Whether the database has the tables of media at all.
pub fn is_present(db: &Db) -> bool {
    let tables = [
        "local_media_repository",
        "local_media_repository_thumbnails",
        "remote_media_cache",
        "remote_media_cache_thumbnails",
    ];
    tables.iter().all(|table| db.catalog().has(table))
}

/// The next files after one, uploads before copies, that were there before a time; no more than so many. Walks the primary
/// keys.
pub fn after(
    db: &Db,
    last: Option<&MediaFile>,
    before: Millis,
    most: i64,
) -> Result<Vec<MediaFile>, Error> {
    let mut found = Vec::new();
    let is_local = last.is_none_or(|file| file.origin.is_none());
    if is_local {
        let id = last.map_or("", |file| &file.media_id);
        found = db.rows(DOING, LOCAL, params![id, before.0, most], local)?;
    }
    let left = most - i64::try_from(found.len()).unwrap_or(most);
    if left > 0 {
        let (origin, id) = match last {
            Some(file) if !is_local => {
                (file.origin.as_deref().unwrap_or_default(), &*file.media_id)
            }
            _ => ("", ""),
        };
        found.extend(db.rows(DOING, REMOTE, params![origin, id, before.0, left], remote)?);
    }
    Ok(found)
}

/// A file by its name, where it is one that may go at all.
pub fn named(db: &Db, name: &MediaName) -> Result<Option<MediaFile>, Error> {
    match &name.origin {
        None => db.row(DOING, ONE_LOCAL, params![name.media_id], local),
        Some(origin) => db.row(DOING, ONE_REMOTE, params![origin, name.media_id], remote),
    }
}

/// Number of a file's thumbnails, and their bytes. Walks the index on them.
pub fn thumbnails(db: &Db, file: &MediaFile) -> Result<(i64, i64), Error> {
    const OF_LOCAL: &str = "
        SELECT count(*), CAST(coalesce(sum(thumbnail_length), 0) AS BIGINT)
          FROM local_media_repository_thumbnails WHERE media_id = $1";
    const OF_REMOTE: &str = "
        SELECT count(*), CAST(coalesce(sum(thumbnail_length), 0) AS BIGINT)
          FROM remote_media_cache_thumbnails WHERE media_origin = $1 AND media_id = $2";
    let read = |row: &super::db::Row<'_>| Ok((row.get(0)?, row.stamp(1).unwrap_or(0)));
    let found = match &file.origin {
        None => db.row(DOING, OF_LOCAL, params![file.media_id], read)?,
        Some(origin) => db.row(DOING, OF_REMOTE, params![origin, file.media_id], read)?,
    };
    Ok(found.unwrap_or((0, 0)))
}

/// What is not counted as a reference, because it goes.
#[derive(Clone, Copy, Debug)]
pub enum Going<'a> {
    /// Nothing.
    Nothing,
    /// The rows that go with a room.
    Room(&'a RoomId),
    /// The events of the selection of a purge that is planned, in the same transaction.
    Selected,
}

/// Tables in which nothing refers to media: those of media themselves, what is derived from the JSON of events that are
/// held, and ids alone.
const NOT_READ: &[&str] = &[
    "current_state_events",
    "device_lists_changes_in_room",
    "event_auth",
    "event_auth_chain_links",
    "event_auth_chains",
    "event_edges",
    "event_push_actions",
    "event_push_summary",
    "event_relations",
    "event_search",
    "event_to_state_groups",
    "event_txn_id_device_id",
    "local_media_repository",
    "local_media_repository_thumbnails",
    "quarantined_media_changes",
    "receipts_graph",
    "receipts_linearized",
    "remote_media_cache",
    "remote_media_cache_thumbnails",
    "state_events",
    "state_group_edges",
    "state_groups",
    "state_groups_state",
    "user_directory_search",
    "user_ips",
];

/// Every table and column that can hold a text; numbers cannot.
const COLUMNS: &str = "
    SELECT m.name, c.name, upper(c.type)
      FROM sqlite_master m, pragma_table_info(m.name) c
     WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
     ORDER BY m.name, c.cid";

const COLUMNS_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT c.relname, a.attname, upper(format_type(a.atttypid, NULL))
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid
     WHERE c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition AND c.relpersistence <> 't'
       AND a.attnum > 0 AND NOT a.attisdropped
       AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND pg_table_is_visible(c.oid)
     ORDER BY c.relname, a.attnum";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Every table that is read, with its columns as expressions whose values are texts.
fn columns(db: &Db) -> Result<Vec<(String, Vec<String>)>, Error> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let sql = db.text(COLUMNS, COLUMNS_ON_POSTGRES);
    db.for_each("read the catalogue", sql, &[], |row| {
        let (table, name, kind): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let column = quoted(&name);
        let text = match db.engine() {
            _ if kind.contains("INT") || kind.starts_with("BOOL") => return Ok(()),
            Engine::Sqlite => column,
            Engine::Postgres if kind == "BYTEA" => format!("encode({column}, 'escape')"),
            Engine::Postgres => format!("CAST({column} AS TEXT)"),
        };
        if found.last().is_none_or(|(last, _)| *last != table) {
            found.push((table, Vec::new()));
        }
        if let Some((_, columns)) = found.last_mut() {
            columns.push(text);
        }
        Ok(())
    })?;
    let is_read = |table: &str| {
        !NOT_READ.contains(&table)
            && !["event_search_", "user_directory_search_"]
                .iter()
                .any(|index| table.starts_with(index) && tables::is_known(table))
    };
    found.retain(|(table, columns)| is_read(table) && !columns.is_empty());
    Ok(found)
}

/// Without one of these in it, a text refers to no file: the scheme, a link to a download, an escaped letter of either.
const MARKS: [&str; 3] = ["mxc", "media", "\\u00"];

/// Strikes out of `wanted` all that anything refers to which does not go. Reads every text of the database once; `each` hears
/// of every table before it is read.
pub fn strike_referenced(
    db: &Db,
    wanted: &mut Unreferenced,
    going: Going<'_>,
    each: &mut dyn FnMut(&str) -> Result<(), Error>,
) -> Result<(), Error> {
    for (table, texts) in columns(db)? {
        if wanted.is_empty() {
            return Ok(());
        }
        each(&table)?;
        let marked: Vec<String> = texts
            .iter()
            .flat_map(|text| MARKS.iter().map(move |mark| (text, mark)))
            .map(|(text, mark)| match db.engine() {
                Engine::Sqlite => format!("instr({text}, '{mark}') > 0"),
                Engine::Postgres => format!("strpos({text}, '{mark}') > 0"),
            })
            .collect();
        let has = |column: &str| db.catalog().has_column(&table, column);
        let known = tables::named(&table);
        let goes_with_room = known.is_some_and(|t| t.with_event.is_some() || t.by_room.is_some());
        let goes_with_event = known.is_some_and(|t| t.purged().is_some());
        let (stays, room) = match going {
            Going::Room(room) if goes_with_room && has("room_id") => {
                ("coalesce(room_id, '') <> $1", Some(room))
            }
            Going::Selected if goes_with_event && has("event_id") => (
                "NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = t.event_id AND s.to_delete)",
                None,
            ),
            _ => ("TRUE", None),
        };
        let sql = format!(
            "SELECT {} FROM {} t WHERE {stays} AND ({})",
            texts.join(", "),
            quoted(&table),
            marked.join(" OR ")
        );
        let mut read = |row: &super::db::Row<'_>| {
            for at in 0..texts.len() {
                wanted.strike(row.value(at)?);
            }
            Ok(())
        };
        let doing = "look what refers to media";
        match room {
            Some(room) => db.for_each(doing, &sql, params![room.as_str()], &mut read)?,
            None => db.for_each(doing, &sql, &[], &mut read)?,
        }
    }
    Ok(())
}

/// The same of events that have come since, by their stream ordering, and of profiles once more, which have no order; answers the
/// greatest there is now. Walks the index on stream orderings.
pub fn strike_newer(db: &Db, wanted: &mut Unreferenced, since: i64) -> Result<i64, Error> {
    const NEWER: &str = "
        SELECT e.stream_ordering, j.json
          FROM events e
          JOIN event_json j ON j.event_id = e.event_id
         WHERE e.stream_ordering > $1";
    const AVATARS: &str = "SELECT avatar_url FROM profiles WHERE avatar_url LIKE 'mxc:%'";
    let doing = "look at profiles again";
    db.for_each(doing, AVATARS, &[], |row| {
        wanted.strike(row.value(0)?);
        Ok(())
    })?;
    let mut greatest = since;
    db.for_each(
        "look at what was written meanwhile",
        NEWER,
        params![since],
        |row| {
            greatest = greatest.max(row.get(0)?);
            wanted.strike(row.value(1)?);
            Ok(())
        },
    )?;
    Ok(greatest)
}

/// Tells `each` every file that the events of a room refer to, as often as they do. Walks `events_order_room`.
pub fn for_each_of_room(
    db: &Db,
    room: &RoomId,
    server_name: &str,
    each: &mut dyn FnMut(MediaName),
) -> Result<(), Error> {
    const OF_ROOM: &str = "
        SELECT j.json
          FROM events e
          JOIN event_json j ON j.event_id = e.event_id
         WHERE e.room_id = $1";
    db.for_each(
        "look which media a room has",
        OF_ROOM,
        params![room.as_str()],
        |row| {
            text::names_in(row.value(0)?, server_name, each);
            Ok(())
        },
    )
}

/// The same of the events of a selection that go, in its transaction.
pub fn for_each_selected(
    db: &Db,
    server_name: &str,
    each: &mut dyn FnMut(MediaName),
) -> Result<(), Error> {
    const SELECTED: &str = "
        SELECT j.json
          FROM rk_selected s
          JOIN event_json j ON j.event_id = s.event_id
         WHERE s.to_delete";
    db.for_each("look which media would go", SELECTED, &[], |row| {
        text::names_in(row.value(0)?, server_name, each);
        Ok(())
    })
}

/// The files that the events of a selection refer to which go, and that may go at all; in its transaction. Looks each one up.
pub fn files_of_selected(db: &Db, server_name: &str) -> Result<Vec<MediaFile>, Error> {
    let mut names = BTreeSet::new();
    for_each_selected(db, server_name, &mut |name| {
        names.insert(name);
    })?;
    files_of(db, names.into_iter())
}

/// Those of some names that have a file which may go at all.
pub fn files_of(db: &Db, names: impl Iterator<Item = MediaName>) -> Result<Vec<MediaFile>, Error> {
    let mut files = Vec::new();
    for name in names {
        files.extend(named(db, &name)?);
    }
    Ok(files)
}

/// Whether a room is encrypted, or has an encrypted message: what those refer to cannot be read. Walks `events_order_room`, to
/// its end where it is not.
pub fn is_encrypted(db: &Db, room: &RoomId) -> Result<bool, Error> {
    const ENCRYPTED: &str = "
        SELECT count(*)
         WHERE EXISTS (SELECT 1 FROM events
                        WHERE room_id = $1 AND type IN ('m.room.encryption', 'm.room.encrypted'))";
    let doing = "look whether the room is encrypted";
    Ok(db.count(doing, ENCRYPTED, params![room.as_str()])? > 0)
}

/// Number and bytes of what people of this server have uploaded who wrote encrypted messages in a room: no more than that can
/// any of these refer to. Copies of what other servers have are not counted.
pub fn uploads_beside_encrypted(
    db: &Db,
    room: &RoomId,
    server_name: &str,
) -> Result<(i64, i64), Error> {
    const SENDERS: &str = "
        SELECT DISTINCT sender FROM events WHERE room_id = $1 AND type = 'm.room.encrypted'";
    const UPLOADS: &str = "
        SELECT count(*), CAST(coalesce(sum(media_length), 0) AS BIGINT)
          FROM local_media_repository
         WHERE user_id = $1 AND url_cache IS NULL AND media_length IS NOT NULL";
    let doing = "count what encrypted messages may refer to";
    let mut senders: Vec<String> = Vec::new();
    let end = format!(":{server_name}");
    db.for_each(doing, SENDERS, params![room.as_str()], |row| {
        let sender: Option<String> = row.get(0)?;
        senders.extend(sender.filter(|sender| sender.ends_with(&end)));
        Ok(())
    })?;
    let (mut files, mut bytes) = (0, 0);
    for sender in senders {
        let read = |row: &super::db::Row<'_>| Ok((row.get(0)?, row.stamp(1).unwrap_or(0)));
        let found: Option<(i64, i64)> = db.row(doing, UPLOADS, params![sender], read)?;
        let (count, length) = found.unwrap_or_default();
        files += count;
        bytes += length;
    }
    Ok((files, bytes))
}

/// Whether any room of this server is encrypted: what its messages refer to cannot be read.
pub fn has_encrypted_rooms(db: &Db) -> Result<bool, Error> {
    const ENCRYPTED: &str = "
        SELECT count(*)
         WHERE EXISTS (SELECT 1 FROM state_events WHERE type = 'm.room.encryption')
            OR EXISTS (SELECT 1 FROM events WHERE type = 'm.room.encrypted')";
    Ok(db.count("look for encrypted rooms", ENCRYPTED, &[])? > 0)
}

/// Everybody who is or was in an encrypted room, or wrote an encrypted message, and is of this server.
pub fn users_of_encrypted_rooms(
    db: &Db,
    server_name: &str,
) -> Result<std::collections::HashSet<String>, Error> {
    const MEMBERS: &str = "
        SELECT DISTINCT m.user_id
          FROM room_memberships m
         WHERE m.room_id IN (SELECT s.room_id FROM state_events s WHERE s.type = 'm.room.encryption')";
    const SENDERS: &str = "SELECT DISTINCT sender FROM events WHERE type = 'm.room.encrypted'";
    let mut users = std::collections::HashSet::new();
    let end = format!(":{server_name}");
    for sql in [MEMBERS, SENDERS] {
        db.for_each("look who is in encrypted rooms", sql, &[], |row| {
            let user: Option<String> = row.get(0)?;
            users.extend(user.filter(|user| user.ends_with(&end)));
            Ok(())
        })?;
    }
    Ok(users)
}

/// Deletes a file's rows; answers whether it still was one that may go. Where not, nothing was changed. Adds the rows to
/// `rows`.
pub fn delete(
    tx: &Tx<'_>,
    file: &MediaFile,
    rows: &mut super::event_rows::RowCounts,
) -> Result<bool, Error> {
    const LOCAL: &str = "
        DELETE FROM local_media_repository
         WHERE media_id = $1 AND url_cache IS NULL AND quarantined_by IS NULL AND NOT safe_from_quarantine";
    const LOCAL_THUMBNAILS: &str =
        "DELETE FROM local_media_repository_thumbnails WHERE media_id = $1";
    const REMOTE: &str = "
        DELETE FROM remote_media_cache WHERE media_origin = $1 AND media_id = $2 AND quarantined_by IS NULL";
    const REMOTE_THUMBNAILS: &str =
        "DELETE FROM remote_media_cache_thumbnails WHERE media_origin = $1 AND media_id = $2";
    let doing = "delete the rows of media";
    let mut count = |table: &str, n: i64| {
        if n > 0 {
            super::event_rows::add(rows, table, n);
        }
    };
    let (gone, thumbnails) = match &file.origin {
        None => {
            let gone = tx.execute(doing, LOCAL, params![file.media_id])?;
            count("local_media_repository", gone);
            match gone {
                0 => (0, 0),
                _ => (
                    gone,
                    tx.execute(doing, LOCAL_THUMBNAILS, params![file.media_id])?,
                ),
            }
        }
        Some(origin) => {
            let name = params![origin, file.media_id];
            let gone = tx.execute(doing, REMOTE, name)?;
            count("remote_media_cache", gone);
            match gone {
                0 => (0, 0),
                _ => (gone, tx.execute(doing, REMOTE_THUMBNAILS, name)?),
            }
        }
    };
    let table = match file.origin {
        None => "local_media_repository_thumbnails",
        Some(_) => "remote_media_cache_thumbnails",
    };
    count(table, thumbnails);
    Ok(gone > 0)
}

/// Whether a file has a row at all, whatever that says.
pub fn has_row(db: &Db, name: &MediaName) -> Result<bool, Error> {
    const LOCAL: &str = "SELECT count(*) FROM local_media_repository WHERE media_id = $1";
    const REMOTE: &str =
        "SELECT count(*) FROM remote_media_cache WHERE media_origin = $1 AND media_id = $2";
    let rows = match &name.origin {
        None => db.count(DOING, LOCAL, params![name.media_id])?,
        Some(origin) => db.count(DOING, REMOTE, params![origin, name.media_id])?,
    };
    Ok(rows > 0)
}
