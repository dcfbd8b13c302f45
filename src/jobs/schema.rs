//! The ledger's tables, and how a ledger of an earlier version gets them.
//!
//! The number in `user_version` says which version a ledger has. A newer one is refused (S-32); an older one is brought up to
//! date in one transaction, which goes by the tables and columns that are there: four shapes of version 1 were in use.
//! To add something: raise [`VERSION`], put what a new ledger has into [`TABLES`], and if an older one needs more than
//! a table that was not there before, say so in [`bring_up_to_date`].

use std::path::Path;

use rusqlite::Connection;

use crate::error::Error;

/// The version that this roomkeeper writes.
pub(super) const VERSION: i64 = 6;

/// "rkeL": in the header of every ledger since version 2.
const APPLICATION_ID: i64 = 0x726b_654c;

/// The jobs.
const JOB: &str = "
    CREATE TABLE IF NOT EXISTS job (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL,
        -- What it is done to: a room, rooms with lifetimes of a range, the server.
        subject_kind TEXT NOT NULL, subject TEXT NOT NULL,
        params TEXT NOT NULL, state TEXT NOT NULL,
        error TEXT, error_code TEXT,
        -- Why it does not go on by itself.
        waits TEXT,
        asked_by TEXT, progress TEXT NOT NULL,
        created_ms INTEGER NOT NULL, started_ms INTEGER, ended_ms INTEGER)";

/// Everything else, each with its name.
const TABLES: &[(&str, &str)] = &[
    (
        "candidate",
        // Numbers a job must look at before it is done, whatever happens to it.
        "CREATE TABLE IF NOT EXISTS candidate (
            subject TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (subject, number)) WITHOUT ROWID",
    ),
    (
        "step",
        // What a job decided to do with them, to be done in this order.
        "CREATE TABLE IF NOT EXISTS step (
            subject TEXT NOT NULL, seq INTEGER NOT NULL, step TEXT NOT NULL, PRIMARY KEY (subject, seq)) WITHOUT ROWID",
    ),
    (
        "duty",
        // Cleaning up that the database still needs, whichever job comes to it first.
        "CREATE TABLE IF NOT EXISTS duty (name TEXT PRIMARY KEY) WITHOUT ROWID",
    ),
    (
        "recurring",
        // From when the interval of a recurring job counts: its last run, or when it was first heard of.
        "CREATE TABLE IF NOT EXISTS recurring (name TEXT PRIMARY KEY, from_ms INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        "room_statistics",
        // What was counted of rooms, and may be lost.
        "CREATE TABLE IF NOT EXISTS room_statistics (room_id TEXT PRIMARY KEY, counted TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        "subject_database",
        // The database that all this is about.
        "CREATE TABLE IF NOT EXISTS subject_database (one INTEGER PRIMARY KEY CHECK (one = 1), identity TEXT NOT NULL)",
    ),
    (
        "removed",
        // One of what each batch removed, and the greatest stream ordering after it: by these a database that was put
        // back is known (S-30). Its stage: 0 the batch is about to commit, 1 it has, 2 power that fails cannot take it back.
        "CREATE TABLE IF NOT EXISTS removed (
            seq INTEGER PRIMARY KEY, job TEXT NOT NULL, event_id TEXT, stream_ordering INTEGER, room_id TEXT,
            greatest INTEGER, stage INTEGER NOT NULL)",
    ),
    (
        "room_of_set",
        // The rooms that a job on a set of rooms was given, in their order, and what became of each: done, skipped or failed.
        "CREATE TABLE IF NOT EXISTS room_of_set (
            job TEXT NOT NULL, place INTEGER NOT NULL, room_id TEXT NOT NULL, events INTEGER NOT NULL, outcome TEXT,
            PRIMARY KEY (job, place)) WITHOUT ROWID",
    ),
    (
        "hold",
        // What nobody may delete, as the file beside the ledger has it too. A roomkeeper that knows nothing of this refuses
        // the ledger, so that it deletes nothing that is held.
        "CREATE TABLE IF NOT EXISTS hold (name TEXT PRIMARY KEY, said TEXT NOT NULL)",
    ),
    (
        "receipt",
        // What was done, in the order in which it ended: the hash of a line, and the line unless it was forgotten. A
        // roomkeeper that knows nothing of this refuses the ledger, so that nothing ends without one.
        "CREATE TABLE IF NOT EXISTS receipt (seq INTEGER PRIMARY KEY, about TEXT, leaf BLOB NOT NULL, line TEXT)",
    ),
    (
        "receipt_tree",
        // The whole subtrees of the tree over these hashes.
        "CREATE TABLE IF NOT EXISTS receipt_tree (
            level INTEGER NOT NULL, place INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, place)) WITHOUT ROWID",
    ),
    (
        "media",
        // Files that a job has to look at once its events are gone; with a name on the disk, those whose rows go or are gone.
        // A roomkeeper that knows nothing of this refuses the ledger, so that no file is left without a row.
        "CREATE TABLE IF NOT EXISTS media (
            job TEXT NOT NULL, origin TEXT NOT NULL, media_id TEXT NOT NULL, file TEXT,
            PRIMARY KEY (job, origin, media_id)) WITHOUT ROWID",
    ),
];

const INDEXES: &str = "
    CREATE INDEX IF NOT EXISTS job_ended ON job (ended_ms);
    CREATE INDEX IF NOT EXISTS job_subject ON job (subject);
    CREATE INDEX IF NOT EXISTS receipt_about ON receipt (about);";

/// Version 1 had fewer columns, and said in a CHECK which words a state can be. What a retention run is about stood there
/// as a sentence.
const COPY_JOBS_OF_1: &str = "
    -- The order of rows is that in which they came.
    INSERT INTO job (id, kind, subject_kind, subject, params, state, error, progress, created_ms, started_ms, ended_ms)
    SELECT id, kind,
           CASE kind WHEN 'retention' THEN 'lifetimes' ELSE 'room' END,
           CASE WHEN kind <> 'retention' THEN subject
                WHEN json_valid(params)
                THEN coalesce(json_extract(params, '$.shortest_max_lifetime'), '') || '..'
                     || coalesce(json_extract(params, '$.longest_max_lifetime'), '')
                ELSE '..' END,
           params, state, error, progress, created_ms, started_ms, ended_ms
      FROM job_of_1
     ORDER BY rowid";

const DROP_JOBS_OF_1: &str = "
    -- They are in the new table.
    DROP TABLE job_of_1";

/// What a file holds, before anything is written to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing at all.
    Nothing,
    /// A ledger of a version that we know.
    Ledger,
    /// A ledger of a newer roomkeeper, with its version.
    Newer(i64),
    /// A database of something else.
    SomethingElse,
}

/// That a ledger is of a newer roomkeeper, which is left to that one.
pub(super) fn is_newer(path: &Path, version: i64) -> Error {
    Error::Refused(format!(
        "the ledger {} was written by a newer roomkeeper (its version is {version}, this one knows {VERSION}): use that \
         one, or say another ledger with roomkeeper.ledger",
        path.display()
    ))
}

/// Looks what a file holds; reads only. Tables of SQLite's own, such as `ANALYZE` makes, are nobody's.
pub(super) fn look(conn: &Connection) -> rusqlite::Result<Found> {
    let pragma = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (version, application) = (pragma("user_version")?, pragma("application_id")?);
    let tables: Vec<String> = conn
        .prepare(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if tables.is_empty() && application == 0 {
        return Ok(Found::Nothing);
    }
    let is_known = |table: &String| table == "job" || TABLES.iter().any(|(name, _)| name == table);
    let has_jobs = ["id", "kind", "params", "state", "progress"]
        .iter()
        .try_fold(true, |all, column| {
            has_column(conn, column).map(|has| all && has)
        })?;
    if version > VERSION && (application == APPLICATION_ID || has_jobs) {
        return Ok(Found::Newer(version));
    }
    if version <= VERSION && tables.iter().all(is_known) && (has_jobs || version < 2) {
        return Ok(Found::Ledger);
    }
    Ok(Found::SomethingElse)
}

/// Makes the tables, or brings those of an earlier version up to date: all of it or nothing, whenever the process is
/// killed.
pub(super) fn bring_up_to_date(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let done = bring(conn);
    conn.execute_batch(if done.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    done
}

fn bring(conn: &Connection) -> rusqlite::Result<()> {
    let has_jobs = has_column(conn, "id")?;
    if has_jobs && !has_column(conn, "waits")? {
        conn.execute_batch("ALTER TABLE job RENAME TO job_of_1")?;
        conn.execute_batch(JOB)?;
        conn.execute_batch(COPY_JOBS_OF_1)?;
        conn.execute_batch(DROP_JOBS_OF_1)?;
    }
    conn.execute_batch(JOB)?;
    for (_, table) in TABLES {
        conn.execute_batch(table)?;
    }
    conn.execute_batch(INDEXES)?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", VERSION)
}

/// Whether the table of jobs is there and has a column.
pub(super) fn has_column(conn: &Connection, column: &str) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM pragma_table_info('job') WHERE name = $1)",
        [column],
        |row| row.get(0),
    )
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use rusqlite::Connection;

    use super::*;
    use crate::error::{EXIT_REFUSED, Error};
    use crate::ids::{JobId, RoomId};
    use crate::jobs::ledger::{Ledger, State, Subject};
    use crate::time::days;

    /// What every shape of version 1 had.
    const FIRST: &str = "
        CREATE TABLE job (
            id TEXT PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, params TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'complete', 'failed')),
            error TEXT, progress TEXT NOT NULL, created_ms INTEGER NOT NULL, started_ms INTEGER, ended_ms INTEGER);
        CREATE INDEX job_ended ON job (ended_ms);
        CREATE INDEX job_subject ON job (subject);
        CREATE TABLE candidate (
            subject TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (subject, number)) WITHOUT ROWID;
        CREATE TABLE step (
            subject TEXT NOT NULL, seq INTEGER NOT NULL, step TEXT NOT NULL, PRIMARY KEY (subject, seq)) WITHOUT ROWID;
        PRAGMA user_version = 1;
        INSERT INTO job VALUES ('Z', 'purge_history', '!a:b', '{\"x\":1}', 'running', NULL, '{\"y\":2}', 5, 6, NULL);
        INSERT INTO job VALUES ('A', 'purge_history', '!c:d', 'null', 'failed', 'why', 'null', 5, 6, 7);
        INSERT INTO candidate VALUES ('!a:b', 3);
        INSERT INTO step VALUES ('!a:b', 1, 'what');";

    /// What the next shapes had besides, each with all before it.
    const LATER: [&str; 4] = [
        "CREATE TABLE duty (name TEXT PRIMARY KEY) WITHOUT ROWID; INSERT INTO duty VALUES ('d');",
        "CREATE TABLE recurring (name TEXT PRIMARY KEY, from_ms INTEGER NOT NULL) WITHOUT ROWID;
         INSERT INTO recurring VALUES ('r', 9);
         INSERT INTO job VALUES ('R', 'retention', 'rooms with max_lifetime <= 30d',
             '{\"shortest_max_lifetime\":null,\"longest_max_lifetime\":2592000000}', 'queued', NULL, 'null', 8, NULL, NULL);
         INSERT INTO job VALUES ('D', 'retention', 'rooms with what nobody can read', '{', 'complete', NULL, 'null', 8, 8, 8);",
        "CREATE TABLE subject_database (one INTEGER PRIMARY KEY CHECK (one = 1), identity TEXT NOT NULL);
         INSERT INTO subject_database VALUES (1, '/db');",
        "CREATE TABLE room_statistics (room_id TEXT PRIMARY KEY, counted TEXT NOT NULL) WITHOUT ROWID;",
    ];

    /// What the first edition asked before it opened a ledger.
    const FIRST_EDITION_REFUSES: &str = "
        SELECT EXISTS (SELECT 1 FROM sqlite_master
                        WHERE type = 'table'
                          AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
                          AND name NOT IN ('job', 'candidate', 'step', 'duty', 'recurring', 'subject_database'))";

    fn made(dir: &Path, sql: &str) -> PathBuf {
        let path = dir.join("l");
        let conn = Connection::open(&path).expect("opens");
        conn.execute_batch(sql).expect(sql);
        path
    }

    #[test]
    fn a_ledger_of_every_version_there_was_is_brought_up_to_date_and_loses_nothing() {
        for shapes in 0..=LATER.len() {
            let dir = tempfile::tempdir().expect("directory");
            let path = made(dir.path(), &format!("{FIRST}{}", LATER[..shapes].concat()));
            // Twice, because the second time it is of this version.
            for _ in 0..2 {
                let ledger = Ledger::open(&path).expect("opens");
                let jobs = ledger.list().expect("read");
                let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
                assert_eq!(ids[..2], ["Z", "A"], "in the order in which they came");
                let (first, second) = (&jobs[0], &jobs[1]);
                assert_eq!(first.subject, Subject::Room("!a:b".into()));
                assert_eq!(
                    (first.state, first.started_ms.map(|ms| ms.0)),
                    (State::Queued, Some(6))
                );
                assert_eq!(
                    (&first.params["x"], &first.progress["y"]),
                    (&1.into(), &2.into())
                );
                assert_eq!(
                    (second.state, second.error.as_deref()),
                    (State::Failed, Some("why"))
                );
                assert_eq!(ledger.candidates("!a:b").expect("read"), [3]);
                assert_eq!(
                    ledger.steps("!a:b").expect("read"),
                    [(1, "what".to_owned())]
                );
                assert_eq!(ledger.has_pending("d"), shapes >= 1);
                if shapes >= 2 {
                    let range = crate::policy::LifetimeRange {
                        shortest: None,
                        longest: Some(days(30)),
                    };
                    assert_eq!(jobs[2].subject, Subject::Lifetimes(range));
                    assert_eq!(jobs[3].subject, Subject::Lifetimes(Default::default()));
                }
                assert_eq!(ledger.is_of_another("/other").expect("read"), shapes >= 3);
                ledger
                    .set_state(&JobId::from("Z"), State::Paused)
                    .expect("a word of today");
                ledger
                    .set_state(&JobId::from("Z"), State::Queued)
                    .expect("set");
            }
            let conn = Connection::open(&path).expect("opens");
            let version = conn.pragma_query_value(None, "user_version", |row| row.get(0));
            assert_eq!(version, Ok(VERSION));
            let refused = conn.query_row(FIRST_EDITION_REFUSES, [], |row| row.get(0));
            assert_eq!(refused, Ok(true), "the first edition leaves it alone");
        }
    }

    /// What came with versions 3 to 6: a ledger of the version before had none of it.
    const CAME_LATER: [&[&str]; 4] = [
        &["room_of_set"],
        &["hold"],
        &["receipt", "receipt_tree"],
        &["media"],
    ];

    #[test]
    fn a_ledger_of_versions_2_to_5_gets_what_came_later_and_keeps_the_rest() {
        for version in 2..=5 {
            let dir = tempfile::tempdir().expect("directory");
            let path = dir.path().join("l");
            let ledger = Ledger::open(&path).expect("made");
            ledger.add_candidates("!a:b", &[3]).expect("noted");
            drop(ledger);
            let drops: String = (CAME_LATER[version - 2..].concat().iter())
                .map(|table| format!("DROP TABLE {table};"))
                .collect();
            made(
                dir.path(),
                &format!("{drops} PRAGMA user_version = {version}"),
            );
            let ledger = Ledger::open(&path).expect("brought up to date");
            assert_eq!(ledger.candidates("!a:b").expect("read"), [3]);
            assert_eq!(ledger.count_receipts().expect("read"), 0);
            assert_eq!(ledger.holds().expect("read").len(), 0);
            assert_eq!(ledger.count_room_set(&"A".into()).expect("read"), 0);
            assert_eq!(ledger.going_media().expect("read"), []);
        }
    }

    #[test]
    fn a_ledger_of_a_newer_roomkeeper_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("l");
        drop(Ledger::open(&path).expect("made"));
        made(
            dir.path(),
            "CREATE TABLE of_tomorrow (x); ALTER TABLE job ADD COLUMN y; PRAGMA user_version = 7",
        );
        let before = std::fs::read(&path).expect("read");
        let refused = Ledger::open(&path).err().expect("refused");
        assert!(
            refused.to_string().contains("its version is 7"),
            "{refused}"
        );
        assert_eq!(refused.class().exit, EXIT_REFUSED);
        assert_eq!(std::fs::read(&path).expect("read"), before);
    }

    #[test]
    fn what_is_damaged_says_what_is_lost_and_what_is_something_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("l");
        let ledger = Ledger::open(&path).expect("made");
        for n in 0..200 {
            ledger
                .add_candidates(&format!("!room{n}:example.org"), &[n])
                .expect("noted");
        }
        drop(ledger);
        let whole = std::fs::read(&path).expect("read");
        let mut torn = whole.clone();
        torn[4096..].fill(0x55);
        for bytes in [
            &b"this is no database, but a file of some length, as a text would be............"[..],
            &torn,
        ] {
            let _ = std::fs::remove_file(dir.path().join("l-wal"));
            std::fs::write(&path, bytes).expect("written");
            let refused = Ledger::open(&path).err().expect("refused");
            assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
            let said = refused.to_string();
            for words in [
                "is damaged",
                "lost are the list of jobs",
                ".damaged",
                "roomkeeper check",
            ] {
                assert!(said.contains(words), "{words}: {said}");
            }
        }
        for sql in [
            "CREATE TABLE places (id)",
            "CREATE TABLE job (id); PRAGMA user_version = 9",
            "CREATE TABLE job (id, kind, params, state, progress); CREATE TABLE x (y)",
        ] {
            let _ = std::fs::remove_file(&path);
            made(dir.path(), sql);
            let refused = Ledger::open(&path).err().expect("refused");
            assert!(matches!(refused, Error::Config(_)), "{sql}: {refused:?}");
        }
        let room = RoomId::from("!a:b");
        assert_eq!(Subject::Room(room.clone()).room(), Some(&room));
    }
}
