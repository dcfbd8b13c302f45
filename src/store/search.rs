//! The full-text index (V-0d): `event_search` is FTS4 on SQLite and has no index on event ids.
//!
//! A delete by event id would read the whole index once a batch, which makes a long purge quadratic. So the
//! content table is walked once a job, and what it says of the room is kept in a temporary table. Where few documents are
//! wanted, the index itself says which they are (see `lookup`).

mod lookup;

use super::archived::Kept;
use super::db::{Db, params};
use super::event_rows;
use super::tx::Tx;
use crate::error::Error;
use crate::ids::RoomId;

const TEMPORARY_TABLE: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_search (
        stream_ordering INTEGER NOT NULL, docid INTEGER NOT NULL,
        PRIMARY KEY (stream_ordering, docid)) WITHOUT ROWID;
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_search_seen (docid INTEGER NOT NULL);
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_search_rooms_seen (docid INTEGER NOT NULL);
    DELETE FROM rk_search;
    DELETE FROM rk_search_seen;
    INSERT INTO rk_search_seen (docid) VALUES (-9223372036854775808);";

/// Up to which document the notes go. It stands beside them, so that a transaction that is given up takes both back.
const SEEN: &str = "SELECT docid FROM rk_search_seen";

const SET_SEEN: &str = "UPDATE rk_search_seen SET docid = $1";

/// Binds `$1` docid after which to look, `$2` room, `$3` depth that survives. Walks the content table once.
const NOTE_DOCUMENTS: &str = "
    INSERT OR IGNORE INTO rk_search (stream_ordering, docid)
    SELECT e.stream_ordering, c.docid
      FROM event_search_content c
     CROSS JOIN events e
     WHERE c.docid > $1
       AND c.c1room_id = $2
       AND e.event_id = c.c0event_id
       AND e.topological_ordering < $3";

const TEMPORARY_CUTS: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_search_cuts (room_id TEXT PRIMARY KEY, depth BIGINT NOT NULL);
    DELETE FROM rk_search_cuts;";

/// Binds `$1` room, `$2` depth that survives.
const ADD_CUT: &str = "INSERT INTO rk_search_cuts (room_id, depth) VALUES ($1, $2)";

/// As [`NOTE_DOCUMENTS`], for many rooms. Binds `$1` docid after which to look. Walks the content table once.
const NOTE_DOCUMENTS_OF_MANY: &str = "
    INSERT OR IGNORE INTO rk_search (stream_ordering, docid)
    SELECT e.stream_ordering, c.docid
      FROM event_search_content c
     CROSS JOIN rk_search_cuts k
     CROSS JOIN events e
     WHERE c.docid > $1
       AND k.room_id = c.c1room_id
       AND e.event_id = c.c0event_id
       AND e.topological_ordering < k.depth";

const NEWEST_DOCUMENT: &str = "SELECT max(docid) FROM event_search_content";

/// In ascending order, or FTS4 would write a segment for every step back. The document must still be that
/// event's: a live server can use the number of a deleted newest document again.
const DELETE_DOCUMENTS: &str = "
    DELETE FROM event_search
     WHERE docid IN (
           SELECT m.docid
             FROM rk_selected s
            CROSS JOIN rk_search m
            CROSS JOIN event_search_content c
            WHERE s.to_delete
              AND m.stream_ordering = s.stream_ordering
              AND c.docid = m.docid
              AND c.c0event_id = s.event_id)";

/// The content of the events to delete' documents alone; the index is rebuilt from what remains.
const DELETE_CONTENT: &str = "
    DELETE FROM event_search_content
     WHERE docid IN (
           SELECT m.docid
             FROM rk_selected s
            CROSS JOIN rk_search m
            CROSS JOIN event_search_content c
            WHERE s.to_delete
              AND m.stream_ordering = s.stream_ordering
              AND c.docid = m.docid
              AND c.c0event_id = s.event_id)";

/// Documents, up to `$1`: how many there are beyond is not worth reading all of them.
const COUNT_UP_TO: &str = "SELECT count(*) FROM (SELECT 1 FROM event_search_docsize LIMIT $1) AS n";

/// Whether fewer documents are left than the `going` ones. Taking a document out of the index costs about as much as putting
/// one in; a rebuild puts in what remains. So it is the cheaper way then, and it leaves no trace of what went.
fn is_most(db: &Db, doing: &'static str, going: i64) -> Result<bool, Error> {
    let twice = going.saturating_mul(2);
    Ok(db.count(doing, COUNT_UP_TO, params![twice])? < twice)
}

/// Documents that go with this batch.
const COUNT_GOING: &str = "
    SELECT count(*)
      FROM rk_selected s
     CROSS JOIN rk_search m
     WHERE s.to_delete AND m.stream_ordering = s.stream_ordering";

const REBUILD: &str = "INSERT INTO event_search(event_search) VALUES ('rebuild')";

/// One walk over the content table, for a dry run.
const COUNT_DOCUMENTS: &str = "
    SELECT count(*)
      FROM event_search_content c
     CROSS JOIN rk_selected s
     WHERE s.event_id = c.c0event_id AND s.to_delete";

/// What the index holds of one room, as far as it has been looked at. The notes are in the connection's temporary
/// tables.
pub struct Documents {
    /// Whether the notes are of many rooms, each below the depth that survives there.
    of_many: bool,
}

impl Documents {
    /// Starts with nothing noted.
    pub fn new(db: &Db) -> Result<Self, Error> {
        db.batch("make the temporary tables", TEMPORARY_TABLE)?;
        Ok(Self { of_many: false })
    }

    /// Starts with the documents of many rooms noted, each below the depth that survives there.
    pub fn note_many<'a>(
        db: &Db,
        cuts: impl Iterator<Item = (&'a RoomId, i64)>,
    ) -> Result<Self, Error> {
        let doing = "read the full-text index";
        Self::new(db)?;
        let documents = Self::noted();
        db.batch(doing, TEMPORARY_CUTS)?;
        for (room, depth) in cuts {
            db.execute(doing, ADD_CUT, params![room.as_str(), depth])?;
        }
        documents.note_newer(db, None)?;
        Ok(documents)
    }

    /// What [`Documents::note_many`] noted on this connection.
    pub fn noted() -> Self {
        Self { of_many: true }
    }

    /// Notes the documents of events below `below` that came since the last look. The first call walks the
    /// whole content table; call it outside a write transaction.
    ///
    /// With the notes of many rooms, those of every one of them are noted: what is seen now is not looked at again.
    pub fn note(&self, db: &Db, room: &RoomId, below: i64) -> Result<(), Error> {
        self.note_newer(db, Some((room, below)))
    }

    fn note_newer(&self, db: &Db, one: Option<(&RoomId, i64)>) -> Result<(), Error> {
        let doing = "read the full-text index";
        let newest = db.count(doing, NEWEST_DOCUMENT, &[])?;
        let seen = db.count(doing, SEEN, &[])?;
        if newest <= seen {
            return Ok(());
        }
        if seen == i64::MIN && lookup::note(db, one.filter(|_| !self.of_many), newest)? {
            db.execute(doing, SET_SEEN, params![newest])?;
            return Ok(());
        }
        match one {
            Some((room, below)) if !self.of_many => {
                db.execute(doing, NOTE_DOCUMENTS, params![seen, room.as_str(), below])?;
            }
            _ => {
                db.execute(doing, NOTE_DOCUMENTS_OF_MANY, params![seen])?;
            }
        }
        db.execute(doing, SET_SEEN, params![newest])?;
        Ok(())
    }

    /// Deletes the documents of the events to delete; must run in the transaction that selected them. With
    /// `may_rebuild` the index may be rebuilt from what remains, where that is cheaper: one long statement.
    pub fn remove(&self, db: &Tx<'_>, may_rebuild: bool) -> Result<i64, Error> {
        let doing = "purge the full-text index";
        let going = db.count(doing, COUNT_GOING, &[])?;
        if going == 0 {
            return Ok(0);
        }
        let rebuild = may_rebuild && is_most(db, doing, going)?;
        let removed = if rebuild {
            let removed = db.execute(doing, DELETE_CONTENT, &[])?;
            self::rebuild(db)?;
            removed
        } else {
            db.execute(doing, DELETE_DOCUMENTS, &[])?
        };
        // Numbers above the newest remaining document will be used again.
        let newest = db.count(doing, NEWEST_DOCUMENT, &[])?;
        if newest < db.count(doing, SEEN, &[])? {
            db.execute(doing, SET_SEEN, params![newest])?;
        }
        Ok(removed)
    }
}

/// Binds `$1` docid after which to look, `$2` room. Walks the content table once.
const NOTE_ROOM: &str = "
    INSERT OR IGNORE INTO rk_search (stream_ordering, docid)
    SELECT 0, c.docid FROM event_search_content c WHERE c.docid > $1 AND c.c1room_id = $2";

/// The last of the next `$1` documents that are noted.
const LAST_OF_NEXT: &str = "
    SELECT max(docid) FROM (SELECT docid FROM rk_search ORDER BY stream_ordering, docid LIMIT $1) AS next";

/// Of those noted up to `$1`, the ones that are still the room's, `$2`.
const NOTED: &str = "
    SELECT m.docid FROM rk_search m CROSS JOIN event_search_content c
     WHERE m.docid <= $1 AND c.docid = m.docid AND c.c1room_id = $2";

/// Notes every document of a room that is to go, whether or not its event is held; outside a write transaction.
pub fn note_room(db: &Db, room: &RoomId) -> Result<(), Error> {
    let doing = "read the full-text index";
    if is_present(db) {
        db.batch("make the temporary tables", TEMPORARY_TABLE)?;
        let newest = db.count(doing, NEWEST_DOCUMENT, &[])?;
        if !lookup::note_room(db, room, newest)? {
            db.execute(doing, NOTE_ROOM, params![i64::MIN, room.as_str()])?;
        }
        db.execute(doing, SET_SEEN, params![newest])?;
    }
    Ok(())
}

const TEMPORARY_ROOMS: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_search_rooms (room_id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_search_of_rooms (
        room_id TEXT NOT NULL, docid INTEGER NOT NULL, PRIMARY KEY (room_id, docid)) WITHOUT ROWID;
    DELETE FROM rk_search_rooms;
    DELETE FROM rk_search_of_rooms;
    DELETE FROM rk_search_rooms_seen;";

/// Binds `$1` room.
const ADD_ROOM: &str = "INSERT OR IGNORE INTO rk_search_rooms (room_id) VALUES ($1)";

/// Walks the content table once.
const NOTE_ROOMS: &str = "
    INSERT OR IGNORE INTO rk_search_of_rooms (room_id, docid)
    SELECT c.c1room_id, c.docid
      FROM event_search_content c
     CROSS JOIN rk_search_rooms r
     WHERE r.room_id = c.c1room_id";

/// Binds `$1` the newest document.
const ADD_ROOMS_SEEN: &str = "INSERT INTO rk_search_rooms_seen (docid) VALUES ($1)";

/// Binds `$1` the newest document.
const LOWER_ROOMS_SEEN: &str = "UPDATE rk_search_rooms_seen SET docid = min(docid, $1)";

/// Binds `$1` room.
const NOTE_ONE_OF_ROOMS: &str = "
    INSERT INTO rk_search (stream_ordering, docid)
    SELECT 0, docid FROM rk_search_of_rooms WHERE room_id = $1";

const ROOMS_SEEN: &str = "SELECT docid FROM rk_search_rooms_seen";

/// Notes the documents of many rooms that are to go, one after the other, in one walk at most; outside a write transaction.
pub fn note_rooms<'a>(db: &Db, rooms: impl Iterator<Item = &'a RoomId>) -> Result<(), Error> {
    let doing = "read the full-text index";
    if !is_present(db) {
        return Ok(());
    }
    db.batch("make the temporary tables", TEMPORARY_TABLE)?;
    db.batch("make the temporary tables", TEMPORARY_ROOMS)?;
    let rooms: Vec<&RoomId> = rooms.collect();
    for room in &rooms {
        db.execute(doing, ADD_ROOM, params![room.as_str()])?;
    }
    let newest = db.count(doing, NEWEST_DOCUMENT, &[])?;
    if !lookup::note_rooms(db, &rooms, newest)? {
        db.execute(doing, NOTE_ROOMS, &[])?;
    }
    db.execute(doing, ADD_ROOMS_SEEN, params![newest])?;
    Ok(())
}

/// As [`note_room`], for one of the rooms that [`note_rooms`] noted on this connection.
pub fn note_one_of_rooms(db: &Db, room: &RoomId) -> Result<(), Error> {
    let doing = "read the full-text index";
    if is_present(db) {
        db.batch("make the temporary tables", TEMPORARY_TABLE)?;
        db.execute(doing, NOTE_ONE_OF_ROOMS, params![room.as_str()])?;
        let seen = db.count(doing, ROOMS_SEEN, &[])?;
        db.execute(doing, SET_SEEN, params![seen])?;
    }
    Ok(())
}

/// Removes the next `most` documents of a room that was noted, those that came since the look among them; answers how
/// many went, and whether there are more. Inside a transaction. With `may_rebuild` the index may be rebuilt from what
/// remains, where that is cheaper: one long statement.
pub fn remove_room(
    db: &Tx<'_>,
    room: &RoomId,
    most: i64,
    may_rebuild: bool,
    kept: &mut Kept<'_>,
) -> Result<(i64, bool), Error> {
    db.ensure_held(room)?;
    let doing = "delete the room's full-text documents";
    if !is_present(db) {
        return Ok((0, false));
    }
    let seen = db.count(doing, SEEN, &[])?;
    db.execute(doing, NOTE_ROOM, params![seen, room.as_str()])?;
    let noted = db.count(doing, "SELECT count(*) FROM rk_search", &[])?;
    if noted == 0 {
        return Ok((0, false));
    }
    let last = db.count(doing, LAST_OF_NEXT, params![most])?;
    let rebuild = may_rebuild && noted <= most && is_most(db, doing, noted)?;
    let table = if rebuild {
        "event_search_content"
    } else {
        "event_search"
    };
    kept.documents(db, NOTED, params![last, room.as_str()])?;
    let delete = format!("DELETE FROM {table} WHERE docid IN ({NOTED})");
    let removed = db.execute(doing, &delete, params![last, room.as_str()])?;
    if rebuild {
        self::rebuild(db)?;
    }
    db.execute(
        doing,
        "DELETE FROM rk_search WHERE docid <= $1",
        params![last],
    )?;
    // Numbers above the newest remaining document will be used again.
    let newest = db.count(doing, NEWEST_DOCUMENT, &[])?;
    db.execute(doing, SET_SEEN, params![newest])?;
    db.execute(doing, LOWER_ROOMS_SEEN, params![newest])?;
    Ok((removed, noted > most))
}

/// How many documents the room has.
pub fn count_of_room(db: &Db, room: &RoomId) -> Result<i64, Error> {
    let doing = "count the room's full-text documents";
    if !is_present(db) {
        return Ok(0);
    }
    let sql = "SELECT count(*) FROM event_search_content WHERE c1room_id = $1";
    db.count(doing, sql, params![room.as_str()])
}

/// Removes the documents of the events to delete by putting aside what stays, and rebuilds the index from it.
pub fn rewrite(db: &Tx<'_>) -> Result<i64, Error> {
    let stays =
        "NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = t.c0event_id AND s.to_delete)";
    let removed = event_rows::rewrite(db, "event_search_content", stays)?;
    if removed > 0 {
        self::rebuild(db)?;
    }
    Ok(removed)
}

/// How many documents the events to delete have.
pub fn count(db: &Db) -> Result<i64, Error> {
    db.count("count the rows to purge", COUNT_DOCUMENTS, &[])
}

/// Whether the index agrees with its content: an error where it does not. Needs a connection that may write, and changes
/// nothing.
pub fn verify(db: &Db) -> Result<(), Error> {
    db.execute(
        "check the full-text index",
        "INSERT INTO event_search(event_search) VALUES ('integrity-check')",
        &[],
    )?;
    Ok(())
}

/// Builds the index anew from its content, whatever is wrong with it. One long statement.
pub fn rebuild(db: &Tx<'_>) -> Result<(), Error> {
    db.execute("rebuild the full-text index", REBUILD, &[])?;
    Ok(())
}

/// Bytes of the index, without its content. A segment says in its entry how many its leaves take, after the number of its
/// last block; a minus while it is being merged. Where one does not, all of them are looked at.
pub fn index_bytes(db: &Db) -> Result<i64, Error> {
    const SAID: &str = "
        SELECT CASE WHEN min(start_block = 0 OR instr(end_block, ' ') > 0)
                    THEN sum(length(root) + CASE WHEN start_block = 0 THEN 0
                                                 ELSE abs(CAST(substr(end_block, instr(end_block, ' ') + 1) AS INTEGER)) END)
               END
          FROM event_search_segdir";
    const SIZE: &str = "SELECT coalesce(sum(length(block)), 0) FROM event_search_segments";
    let doing = "measure the full-text index";
    if !is_present(db) {
        return Ok(0);
    }
    match db.row(doing, SAID, &[], |row| row.get::<_, Option<i64>>(0))? {
        Some(Some(bytes)) => Ok(bytes),
        _ => db.count(doing, SIZE, &[]),
    }
}

/// Bytes of the texts that the index is made of; reads them.
pub fn content_bytes(db: &Db) -> Result<i64, Error> {
    const SIZE: &str = "SELECT sum(length(c4value)) FROM event_search_content";
    db.count("measure the full-text index", SIZE, &[])
}

/// Whether the database has the index in the form we know.
pub fn is_present(db: &Db) -> bool {
    db.catalog().has("event_search")
        && db.catalog().has("event_search_docsize")
        && db
            .catalog()
            .has_column("event_search_content", "c0event_id")
}

/// Free bytes that merging the index needs, for its log and for what the file grows by meanwhile.
pub fn merge_needs(db: &Db) -> Result<u64, Error> {
    // The new blocks, the old ones overwritten, and the same again when the log is copied into the file.
    const TIMES: u64 = 4;
    let bytes = u64::try_from(index_bytes(db)?).unwrap_or(0);
    Ok(bytes.saturating_mul(TIMES).saturating_add(1 << 20))
}

/// Segments of the level of the index that has most of them. When a level has 16, FTS4 merges them all within whatever
/// statement comes next, which takes as much log as the level has.
pub fn most_segments(db: &Db) -> Result<i64, Error> {
    const MOST: &str = "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM event_search_segdir GROUP BY level) levels";
    match is_present(db) {
        true => db.count("look at the full-text index", MOST, &[]),
        false => Ok(0),
    }
}

/// Merges segments of one level, no more than `leaves` leaves of them; answers whether anything was to be merged. What it
/// says is as it was at every step.
pub fn merge_some(db: &Tx<'_>, leaves: i64) -> Result<bool, Error> {
    const PLACES: &str = "SELECT coalesce(sum(start_block + leaves_end_block + end_block), 0) FROM event_search_segdir";
    let doing = "merge the full-text index";
    let before = db.count(doing, PLACES, &[])?;
    db.execute(
        doing,
        "INSERT INTO event_search(event_search) VALUES ('merge=' || $1 || ',4')",
        params![leaves],
    )?;
    Ok(db.count(doing, PLACES, &[])? != before)
}

/// Merges the whole index into one segment, after which no deleted word stands in it. One long statement:
/// for when nobody waits.
pub fn optimize(db: &Tx<'_>) -> Result<(), Error> {
    db.execute(
        "merge the full-text index",
        "INSERT INTO event_search(event_search) VALUES ('optimize')",
        &[],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::db::OpenOptions;
    use crate::store::history::{self, DepthRange, Extent};
    use crate::store::schema;

    /// A database with one event of depth 1.
    fn database() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("homeserver.db");
        schema::create(&path).expect("makes");
        let db = Db::open(&path, &OpenOptions::default()).expect("opens");
        db.batch(
            "add an event",
            "INSERT INTO events (stream_ordering, topological_ordering, depth, event_id, type, room_id, processed, outlier)
             VALUES (2, 1, 1, '$a', 'm.room.message', '!r', TRUE, FALSE)",
        )
        .expect("added");
        (dir, db)
    }

    fn add_document(db: &Db) {
        let sql = "INSERT INTO event_search (event_id, room_id, key, value) VALUES ('$a', '!r', 'k', 'words')";
        db.batch("add a document", sql).expect("added");
    }

    fn removed(db: &mut Db, documents: &Documents) -> i64 {
        let cut = DepthRange {
            room: &RoomId::from("!r"),
            from: i64::MIN,
            below: 2,
            delete_local_events: true,
            server_name: "example.org",
            expiry: None,
            keep_extremities: false,
            held: &[],
        };
        history::select(db, &cut, Extent::Batch).expect("selected");
        db.of_test("remove the documents", |tx| Ok(documents.remove(tx, true)?))
            .expect("removed")
    }

    #[test]
    fn what_a_transaction_noted_before_it_was_given_up_is_noted_again() {
        let (_dir, mut db) = database();
        let documents = Documents::new(&db).expect("tables");
        let room = RoomId::from("!r");
        documents.note(&db, &room, 2).expect("nothing yet");
        add_document(&db);
        let given_up: Result<(), Error> = db.write("give up", |db| {
            documents.note(db, &room, 2)?;
            Err(Error::Cancelled)
        });
        assert!(given_up.is_err());
        documents.note(&db, &room, 2).expect("noted again");
        assert_eq!(removed(&mut db, &documents), 1);
    }

    /// P-55: what arrives for one room of a batch while another is purged.
    #[test]
    fn a_document_of_another_room_of_the_batch_is_noted_whoever_looks() {
        let (_dir, mut db) = database();
        let (other, room) = (RoomId::from("!other"), RoomId::from("!r"));
        let cuts = [(&other, 2), (&room, 2)];
        let documents = Documents::note_many(&db, cuts.into_iter()).expect("noted");
        add_document(&db);
        documents.note(&db, &other, 2).expect("noted by the other");
        documents.note(&db, &room, 2).expect("noted");
        assert_eq!(removed(&mut db, &documents), 1);
    }

    #[test]
    fn documents_that_get_a_freed_number_are_found() {
        let (_dir, mut db) = database();
        let documents = Documents::new(&db).expect("tables");
        let room = RoomId::from("!r");
        add_document(&db);
        documents.note(&db, &room, 2).expect("noted");
        assert_eq!(removed(&mut db, &documents), 1);
        add_document(&db);
        documents.note(&db, &room, 2).expect("noted");
        assert_eq!(removed(&mut db, &documents), 1);
    }
}
