//! What was deleted is gone: not in the file, not in its log, not in the full-text index; and the disk gets its space
//! back.
//!
//! What a PostgreSQL server has in its files is its own affair: there the words are looked for in every row of every table,
//! and what is about files (overwriting, `reclaim` of a file) has no subject.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::draft::{Draft, Event};
use crate::support::tables::{assert_same, row};
use crate::support::work::{Ask, Site};
use roomkeeper::{Config, Error, Keeper, OverwriteWhen, RoomId};
use rusqlite::Connection;

const ROOM: &str = "!room:example.org";
const OTHER: &str = "!other:example.org";
/// In no table, no statement, no message of a program.
const SECRET: &str = "xylophonist";
const KEPT: &str = "quaternions";

/// Two rooms; the first says the secret word in every message below depth 100.
fn telltale(messages: i64) -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", "@ann:example.org", 2);
    draft.open_room(OTHER, "b", "@ann:example.org", 1_000_000);
    let mut before = "$a-join".to_owned();
    for n in 0..messages {
        let id = format!("$m{n}");
        let depth = if n + 1 == messages { 10_000 } else { 3 + n };
        let mut event =
            Event::message(&id, ROOM, "@rita:remote.example", depth, 10 + n).after(&[&before]);
        event.body = if n + 1 == messages {
            KEPT.to_owned()
        } else {
            format!("{SECRET} number{n} {}", "la ".repeat(40))
        };
        draft.row(
            "event_search",
            row([
                ("event_id", (&id).into()),
                ("room_id", ROOM.into()),
                ("key", "content.body".into()),
                ("value", (&event.body).into()),
            ]),
        );
        draft.add(event);
        before = id;
    }
    Site::of(draft)
}

/// How often a word stands in the file and its log, and how many documents the index finds; on a server, in how many
/// values of tables.
fn found(site: &Site, word: &str) -> (usize, i64) {
    if crate::support::engine::current() == crate::support::engine::Engine::Postgres {
        let tables = site.tables();
        let values = tables.0.values().flatten().flat_map(|row| row.0.values());
        let documents = format!("SELECT count(*) FROM event_search WHERE value LIKE '%{word}%'");
        let has_word = |value: &&crate::support::tables::Value| {
            format!("{value:?}").to_lowercase().contains(word)
        };
        return (values.filter(has_word).count(), site.number(&documents));
    }
    let count = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes
            .windows(word.len())
            .filter(|w| w.eq_ignore_ascii_case(word.as_bytes()))
            .count()
    };
    let wal = PathBuf::from(format!("{}-wal", site.database.display()));
    let in_files = count(site.database.clone()) + count(wal);
    let conn = Connection::open(&site.database).expect("opens");
    let matching = "SELECT count(*) FROM event_search WHERE value MATCH ?";
    (
        in_files,
        conn.query_row(matching, [word], |r| r.get(0))
            .expect("asked"),
    )
}

/// How a purge goes about it.
type Way = fn(&Site) -> Config;

/// All ways of going about it: in one batch, in many, in a rewrite, beside a homeserver.
fn ways(site: &Site) -> Vec<(&'static str, Site, Way)> {
    let all: [(&str, Way); 4] = [
        ("one batch", |s| s.config()),
        ("many batches", |s| s.in_batches_of(2)),
        ("a rewrite", |s| s.rewriting()),
        ("beside", |s| s.beside(7, 60_000)),
    ];
    all.into_iter()
        .map(|(name, config)| (name, site.copy(), config))
        .collect()
}

#[test]
fn no_word_that_was_purged_is_found_anywhere() {
    let site = telltale(80);
    assert!(found(&site, SECRET).0 >= 79 && found(&site, SECRET).1 == 79);
    for (way, site, config) in ways(&site) {
        let mut config = config(&site);
        config.overwrite_deleted = true;
        let done = site
            .purge_with(config, &Ask::all_of(ROOM, 10_000))
            .expect("purged");
        assert_eq!(done.events_deleted, 79, "{way}");
        assert_eq!(
            done.notes,
            Vec::<String>::new(),
            "{way}: nothing is left to be done"
        );
        assert_eq!(found(&site, SECRET), (0, 0), "{way}");
        assert_eq!(found(&site, "number7"), (0, 0), "{way}");
        assert!(
            found(&site, KEPT).0 > 0 && found(&site, KEPT).1 == 1,
            "{way}: the other message is there"
        );
        site.assert_sound(way);
    }
}

/// What takes a pass over the whole database is done once, when nothing else is waiting.
#[test]
fn of_several_jobs_the_last_overwrites_what_all_have_deleted() {
    for way in [Site::config, |s: &Site| s.beside(7, 60_000)] {
        let site = telltale(80);
        let keeper = roomkeeper::Keeper::open(way(&site)).expect("opens");
        let purge = |room: &str, below| {
            let ask = Ask::all_of(room, below);
            let room = roomkeeper::RoomId::new(&*ask.room);
            keeper
                .purge_history(&room, ask.point(), ask.options())
                .expect("queued")
        };
        let jobs = [purge(ROOM, 10_000), purge(OTHER, 2)];
        for job in &jobs {
            keeper.wait(job).expect("purged");
        }
        keeper.stop();
        assert_eq!(found(&site, SECRET), (0, 0));
        assert!(found(&site, KEPT).0 > 0);
        site.assert_sound("two jobs");
    }
}

/// The test above can fail.
#[test]
fn without_overwriting_purged_words_are_still_in_the_file() {
    let site = telltale(80);
    let mut config = site.config();
    config.overwrite_deleted = false;
    site.purge_with(config, &Ask::all_of(ROOM, 10_000))
        .expect("purged");
    let (in_files, in_index) = found(&site, SECRET);
    assert!(
        in_files > 0,
        "SQLite alone leaves deleted content in free pages"
    );
    assert_eq!(in_index, 0);
    // A later purge does not know of them; reclaiming leaves them behind.
    roomkeeper::keeper::reclaim(&site.config()).expect("reclaimed");
    assert_eq!(found(&site, SECRET), (0, 0));
}

/// A job that ended before it had overwritten what it deleted leaves that to the next, of whatever room.
#[test]
fn what_a_failed_job_left_to_be_overwritten_the_next_one_overwrites() {
    let site = telltale(80);
    let ask = Ask::all_of(ROOM, 10_000);
    {
        // A reader that keeps its snapshot: the log cannot be emptied.
        let reader = Connection::open(&site.database).expect("opens");
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM events")
            .expect("reads");
        let config = site.beside(100, 60_000);
        let done = std::thread::scope(|scope| {
            scope
                .spawn(|| site.purge_with(config, &ask))
                .join()
                .expect("no panic")
        });
        let done = done.expect("purged");
        assert!(
            done.notes
                .iter()
                .any(|n| n.contains("write-ahead log is in use")),
            "{:?}",
            done.notes
        );
        reader.execute_batch("COMMIT").expect("ends");
    }
    site.purge(&Ask::all_of("!nowhere:example.org", 1))
        .expect("nothing to purge");
    assert_eq!(found(&site, SECRET), (0, 0));
}

/// Words of others, so many that merging the index is out of proportion to a small job.
fn with_a_large_index(site: &Site) {
    site.run(
        "INSERT INTO event_search (event_id, room_id, key, value)
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300),
                        w(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM w WHERE i < 1500)
         SELECT '$b-join', '!other:example.org', 'content.body',
                (SELECT group_concat(hex(randomblob(5)), ' ') FROM w WHERE n.i > 0)
           FROM n",
    );
}

/// A small job beside a large index leaves merging it to others, and says so; who wants it done by every job has it done, and
/// a daemon does it once it is idle, whoever left it.
#[test]
fn what_is_out_of_proportion_is_said_and_done_by_the_daemon_or_at_once() {
    let site = telltale(80);
    with_a_large_index(&site);
    let at_once = site.copy();
    let ask = Ask::all_of(ROOM, 10_000);
    let done = site.purge(&ask).expect("purged");
    assert_eq!(done.events_deleted, 79);
    assert!(
        done.notes.iter().any(|n| n.contains("at_once")),
        "{:?}",
        done.notes
    );
    let (in_files, in_index) = found(&site, SECRET);
    assert!(in_files > 0, "the test can fail");
    assert_eq!(in_index, 0, "nothing finds it");

    let mut config = at_once.config();
    config.overwrite_when = OverwriteWhen::AtOnce;
    let done = at_once.purge_with(config, &ask).expect("purged");
    assert_eq!(done.notes, Vec::<String>::new());
    assert_eq!(found(&at_once, SECRET), (0, 0));
    at_once.assert_sound("at once");

    let mut config = site.config();
    config.overwrite_when = OverwriteWhen::WhenIdle;
    let keeper = Keeper::open(config).expect("opens");
    wait_until_overwritten(&keeper);
    keeper.stop();
    assert_eq!(found(&site, SECRET), (0, 0));
    assert!(found(&site, KEPT).0 > 0);
    site.assert_sound("idle");
}

fn wait_until_overwritten(keeper: &Keeper) {
    let begun = std::time::Instant::now();
    while keeper.owes_overwriting() {
        assert!(begun.elapsed().as_secs() < 300, "it is never overwritten");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Jobs one after the other leave it to the daemon, beside a homeserver as well.
#[test]
fn a_daemon_overwrites_once_for_all_jobs_what_they_deleted() {
    for way in [Site::config, |s: &Site| s.beside(7, 60_000)] {
        let site = telltale(80);
        let mut config = way(&site);
        config.overwrite_when = OverwriteWhen::WhenIdle;
        let keeper = Keeper::open(config).expect("opens");
        for (room, below) in [(ROOM, 10_000), (OTHER, 2)] {
            let ask = Ask::all_of(room, below);
            let job = keeper
                .purge_history(&RoomId::new(room), ask.point(), ask.options())
                .expect("queued");
            keeper.wait(&job).expect("purged");
        }
        wait_until_overwritten(&keeper);
        keeper.stop();
        assert_eq!(found(&site, SECRET), (0, 0));
        assert!(found(&site, KEPT).0 > 0);
        site.assert_sound("two jobs");
    }
}

/// Grows the file so that there is something to give back.
fn roomy() -> Site {
    telltale(3_000)
}

#[test]
fn reclaim_shrinks_the_file_and_changes_nothing_in_it() {
    let site = roomy();
    fs::set_permissions(&site.database, fs::Permissions::from_mode(0o640)).expect("set");
    let done = site.purge(&Ask::all_of(ROOM, 10_000)).expect("purged");
    let before = site.tables();
    let size = fs::metadata(&site.database).expect("there").len();
    let reclaimed = roomkeeper::keeper::reclaim(&site.config()).expect("reclaimed");
    let after = fs::metadata(&site.database).expect("there");
    assert_eq!(
        (reclaimed.bytes_before, reclaimed.bytes_after),
        (size, after.len())
    );
    let promised = done.reclaimable_bytes.expect("said");
    // Free pages are counted; tables that are packed anew may take one page more than they had.
    let page = 4_096;
    assert!(
        promised > 0 && size - after.len() + page >= promised,
        "{promised} were promised, {size} became {}",
        after.len()
    );
    assert_eq!(after.permissions().mode() & 0o7777, 0o640);
    assert_same(&before, &site.tables(), "reclaimed");
    assert_eq!(found(&site, SECRET), (0, 0));
    assert_eq!(
        beside(&site.database),
        [
            "homeserver.db",
            "homeserver.db.roomkeeper",
            "homeserver.db.roomkeeper.checkpoints",
            "homeserver.db.roomkeeper.checkpoints.key",
            "homeserver.db.roomkeeper.checkpoints.pub"
        ]
    );
    let conn = Connection::open(&site.database).expect("opens");
    let mode: String = conn
        .pragma_query_value(None, "journal_mode", |r| r.get(0))
        .expect("asked");
    assert_eq!(mode, "wal", "as the homeserver left it");
    drop(conn);
    site.assert_sound("reclaimed");
}

#[test]
fn reclaim_is_refused_while_another_has_the_database_open() {
    let site = telltale(10);
    let before = fs::read(&site.database).expect("read");
    let other = Connection::open(&site.database).expect("opens");
    other
        .query_row("SELECT count(*) FROM events", [], |r| r.get::<_, i64>(0))
        .expect("asked");
    let refused = roomkeeper::keeper::reclaim(&site.config()).expect_err("it is open");
    assert!(
        matches!(&refused, Error::Refused(said) if said.contains("database open")),
        "{refused}"
    );
    drop(other);
    assert_eq!(before, fs::read(&site.database).expect("read"));
    assert_eq!(
        beside(&site.database),
        ["homeserver.db", "homeserver.db.roomkeeper"]
    );
    roomkeeper::keeper::reclaim(&site.config()).expect("reclaimed when it is closed");
}

also_on_postgres!(no_word_that_was_purged_is_found_anywhere);

/// The names of the files in the database's directory.
fn beside(database: &Path) -> Vec<String> {
    let entries = fs::read_dir(database.parent().expect("a directory")).expect("read");
    let name = |e: std::io::Result<fs::DirEntry>| {
        e.expect("read").file_name().into_string().expect("a name")
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}
