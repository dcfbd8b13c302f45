//! A database file and a keeper on it: what the suites do over and over.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use roomkeeper::batch::{BatchLimits, Rewrite};
use roomkeeper::config::HomeserverPolicy;
use roomkeeper::job::Progress;
use roomkeeper::jobs::ledger::JobRecord;
use roomkeeper::purge::Plan;
use roomkeeper::time::ManualClock;
use roomkeeper::{Config, Error, Keeper, Millis, PurgeOptions, PurgePoint, RoomId};

use rusqlite::Connection;

use super::draft::{Draft, FIRST_TS};
use super::engine::Engine;
use super::ids::word_of;
use super::model::Wanted;
use super::rooms::{self, Recipe};
pub use super::seed::{cases, seed};
use super::tables::{Row, Tables};

/// The time in the samples: a day after their events.
pub const NOW: Millis = Millis(FIRST_TS + 86_400_000);

/// A homeserver's database in a directory of its own.
pub struct Site {
    directory: Option<tempfile::TempDir>,
    pub database: PathBuf,
    /// Where the sample is, when it is not in the file.
    #[cfg(feature = "postgres")]
    pub on_server: Option<super::server::OnServer>,
    pub server_name: String,
    pub clock: Arc<ManualClock>,
}

/// One purge, as a person asks for it.
#[derive(Clone, Debug)]
pub struct Ask {
    pub room: String,
    pub below: i64,
    pub delete_local_events: bool,
    pub keep_received_after: Option<i64>,
}

impl Ask {
    /// Everything of `room` below a depth, local users' messages too.
    pub fn all_of(room: &str, below: i64) -> Self {
        Self {
            room: room.to_owned(),
            below,
            delete_local_events: true,
            keep_received_after: None,
        }
    }

    /// The point, as the library takes it.
    pub fn point(&self) -> PurgePoint {
        PurgePoint::BeforeToken(format!("t{}-0", self.below))
    }

    pub fn options(&self) -> PurgeOptions {
        PurgeOptions {
            delete_local_events: self.delete_local_events,
            keep_received_after: self.keep_received_after.map(Millis),
            ..PurgeOptions::default()
        }
    }
}

impl Site {
    fn new(server_name: &str) -> Self {
        let directory = directory();
        let mut site = Self::at(&directory.path().join("homeserver.db"), server_name);
        site.directory = Some(directory);
        site
    }

    /// What somebody else has written into a file, and takes away in the end: there, or where this engine has it.
    pub fn of_file(database: &Path, server_name: &str) -> Self {
        let mut site = Self::at(database, server_name);
        site.place_on(super::engine::current());
        site
    }

    /// A database of somebody else, who takes it away in the end.
    pub fn at(database: &Path, server_name: &str) -> Self {
        Self {
            directory: None,
            database: database.to_owned(),
            #[cfg(feature = "postgres")]
            on_server: None,
            server_name: server_name.to_owned(),
            clock: Arc::new(ManualClock::at(NOW)),
        }
    }

    /// The directory of the database.
    pub fn directory(&self) -> &Path {
        self.database.parent().expect("a file is in a directory")
    }

    /// A random sample.
    pub fn random(seed: u64, recipe: &Recipe) -> Self {
        Self::adjusted(seed, recipe, |_| ())
    }

    /// A random sample to which something is done before anybody uses it.
    pub fn adjusted(seed: u64, recipe: &Recipe, adjust: impl FnOnce(&Connection)) -> Self {
        let draft = rooms::draw(seed, recipe);
        let mut site = Self::new(&draft.server_name);
        rooms::write(&site.database, &draft);
        adjust(&Connection::open(&site.database).expect("it opens"));
        site.place_on(super::engine::current());
        site
    }

    /// What a test drew by hand.
    pub fn of(mut draft: Draft) -> Self {
        let mut site = Self::new(&draft.server_name);
        if draft.groups.groups.is_empty() {
            draft.settle();
        }
        rooms::write(&site.database, &draft);
        site.place_on(super::engine::current());
        site
    }

    /// Moves the sample to where this engine has it.
    fn place_on(&mut self, engine: Engine) {
        #[cfg(feature = "postgres")]
        if engine == Engine::Postgres {
            let tables = Tables::read(&self.database);
            self.on_server = Some(super::server::OnServer::of(&tables));
        }
        let _ = engine;
    }

    /// A second one that is the same. Nobody may have the first open.
    pub fn copy(&self) -> Self {
        #[allow(unused_mut)]
        let mut copy = Self::new(&self.server_name);
        #[cfg(feature = "postgres")]
        {
            copy.on_server = self.on_server.as_ref().map(|server| server.copy());
        }
        for suffix in [
            "",
            "-wal",
            ".roomkeeper",
            ".roomkeeper-wal",
            ".roomkeeper.holds",
        ] {
            let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            if with(&self.database).exists() {
                fs::copy(with(&self.database), with(&copy.database)).expect("copied");
            }
        }
        copy
    }

    /// Nobody else runs; one batch does all.
    pub fn config(&self) -> Config {
        let mut config = Config::for_sqlite(&self.database, &self.server_name);
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            config.database = server.database();
        }
        config.homeserver = HomeserverPolicy::AssumeStopped;
        config.workers = 1;
        config.clock = self.clock.clone();
        config
    }

    /// As [`Site::config`], in one transaction that refills the large tables.
    pub fn rewriting(&self) -> Config {
        let mut config = self.config();
        config.batch.rewrite = Rewrite::WherePossible;
        config
    }

    /// As [`Site::config`], with batches of so many events.
    pub fn in_batches_of(&self, events: i64) -> Config {
        let mut config = self.config();
        config.batch.events_offline = events;
        config
    }

    /// Beside a homeserver that is not there, without rests.
    pub fn beside(&self, events: i64, millis: i64) -> Config {
        let mut config = self.config();
        config.homeserver = HomeserverPolicy::AssumeRunning;
        config.batch = BatchLimits {
            events,
            millis,
            pause: Duration::ZERO,
            ..config.batch
        };
        config
    }

    /// Purges in one batch.
    pub fn purge(&self, ask: &Ask) -> Result<Progress, Error> {
        self.purge_with(self.config(), ask)
    }

    /// Purges as `config` says.
    pub fn purge_with(&self, config: Config, ask: &Ask) -> Result<Progress, Error> {
        let keeper = Keeper::open(config)?;
        let id = keeper.purge_history(&RoomId::new(&*ask.room), ask.point(), ask.options())?;
        let outcome = keeper.wait(&id);
        keeper.stop();
        outcome.map(|record| progress_of(&record))
    }

    /// The same, as the model takes it.
    pub fn wanted<'a>(&'a self, ask: &'a Ask) -> Wanted<'a> {
        Wanted {
            room: &ask.room,
            below: ask.below,
            delete_local_events: ask.delete_local_events,
            keep_received_after: ask.keep_received_after,
            keep_extremities: false,
            held: &[],
            server_name: &self.server_name,
        }
    }

    /// The same beside a homeserver (P-51).
    pub fn wanted_beside<'a>(&'a self, ask: &'a Ask) -> Wanted<'a> {
        Wanted {
            keep_extremities: true,
            ..self.wanted(ask)
        }
    }

    /// What such a purge would do.
    pub fn plan(&self, ask: &Ask) -> Result<Plan, Error> {
        let viewer = roomkeeper::keeper::Viewer::open(self.config())?;
        viewer.plan_purge(&RoomId::new(&*ask.room), ask.point(), ask.options())
    }

    /// Everything the database holds.
    pub fn tables(&self) -> Tables {
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            return server.tables();
        }
        Tables::read(&self.database)
    }

    /// Runs SQL past roomkeeper, as the owner of everything, and no foreign key stops it on a server.
    #[track_caller]
    pub fn run(&self, sql: &str) {
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            let mut client = server.client();
            client
                .batch_execute("SET session_replication_role = replica; SET ROLE synapse")
                .expect("an administrator may");
            client.batch_execute(sql).expect(sql);
            return;
        }
        let conn = Connection::open(&self.database).expect("opens");
        conn.execute_batch(sql).expect(sql);
    }

    /// Has an index lose rows, as a damaged one has: `insert` is run while nobody keeps it up to date.
    #[track_caller]
    pub fn lose_from_index(&self, index: &str, delete: &str, insert: &str) {
        self.run(delete);
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            let ready = |is_so: bool| {
                let sql = format!(
                    "UPDATE pg_index SET indisready = {is_so} WHERE indexrelid = '{index}'::regclass"
                );
                server.client().batch_execute(&sql).expect(&sql);
            };
            ready(false);
            self.run(insert);
            ready(true);
            return;
        }
        let hidden: (String, i64, String) = {
            let conn = Connection::open(&self.database).expect("opens");
            let found = conn.query_row(
                "SELECT tbl_name, rootpage, sql FROM sqlite_master WHERE name = ?",
                [index],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
            );
            conn.execute_batch("PRAGMA writable_schema = ON")
                .expect("on");
            conn.execute("DELETE FROM sqlite_master WHERE name = ?", [index])
                .expect("hidden");
            found.expect("there is such an index")
        };
        self.run(insert);
        let conn = Connection::open(&self.database).expect("opens");
        conn.execute_batch("PRAGMA writable_schema = ON")
            .expect("on");
        conn.execute(
            "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES ('index', ?, ?, ?, ?)",
            (index, &hidden.0, hidden.1, &hidden.2),
        )
        .expect("shown");
    }

    /// An administrator's SQL, where the database is on a server.
    pub fn run_as_admin(&self, sql: &str) {
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            server.client().batch_execute(sql).expect(sql);
        }
        let _ = sql;
    }

    /// The number that a question past roomkeeper has for an answer.
    #[track_caller]
    pub fn number(&self, sql: &str) -> i64 {
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            let sql = &*roomkeeper::store::dialect::to_postgres(sql);
            let row = server.client().query_one(sql, &[]).expect(sql);
            return row.get(0);
        }
        let conn = Connection::open(&self.database).expect("opens");
        conn.query_row(sql, [], |row| row.get(0)).expect(sql)
    }

    /// A row goes into a table.
    pub fn insert(&self, table: &str, row: &Row) {
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            return server.insert(table, std::slice::from_ref(row));
        }
        let conn = Connection::open(&self.database).expect("opens");
        super::tables::insert(&conn, table, row);
    }

    /// Fails when the database breaks an invariant.
    #[track_caller]
    pub fn assert_sound(&self, about: &str) {
        let violations =
            roomkeeper::keeper::check_offline(&self.config(), |_, _| ()).expect("checked");
        assert!(violations.is_empty(), "{about}: {violations:#?}");
        #[cfg(feature = "postgres")]
        if let Some(server) = &self.on_server {
            let orphans = server.orphans();
            assert!(orphans.is_empty(), "{about}: {orphans:#?}");
        }
    }
}

impl Site {
    /// Puts an earlier copy in the place of the database, and leaves the ledger.
    pub fn put_back(&self, backup: &Self) {
        #[cfg(feature = "postgres")]
        if super::engine::current() == Engine::Postgres {
            let (to, from) = (self.on_server.as_ref(), backup.on_server.as_ref());
            return to
                .expect("on a server")
                .put_back(from.expect("on a server"));
        }
        for suffix in ["", "-wal", "-shm"] {
            let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            let _ = fs::remove_file(with(&self.database));
            if with(&backup.database).exists() {
                fs::copy(with(&backup.database), with(&self.database)).expect("copied");
            }
        }
    }

    /// Fails when a word of an event that was deleted since `before` is found in the file, its log or the index. What a
    /// server has in its files is its own affair.
    #[track_caller]
    pub fn assert_forgotten(&self, before: &Tables, about: &str) {
        if super::engine::current() == Engine::Postgres {
            return;
        }
        let ids = |tables: &Tables| -> BTreeSet<String> {
            let events = tables.rows("events").iter();
            events.map(|e| e.word("event_id").to_owned()).collect()
        };
        let log = PathBuf::from(format!("{}-wal", self.database.display()));
        let mut bytes = fs::read(&self.database).expect("read");
        bytes.extend(fs::read(log).unwrap_or_default());
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let deleted = ids(before)
            .difference(&ids(&self.tables()))
            .cloned()
            .collect::<Vec<_>>();
        let found: Vec<&String> = deleted
            .iter()
            .filter(|id| text.contains(&word_of(id)))
            .collect();
        assert!(
            found.is_empty(),
            "{about}: words of {found:?} are still there"
        );
        let conn = Connection::open(&self.database).expect("opens");
        let mut asked = conn
            .prepare("SELECT count(*) FROM event_search WHERE value MATCH ?")
            .expect("prepared");
        for id in deleted {
            let found: i64 = asked
                .query_row([word_of(&id)], |r| r.get(0))
                .expect("asked");
            assert_eq!(found, 0, "{about}: the index finds {id}");
        }
    }
}

/// A directory in memory where there is such a place: nothing here outlives the test, so nothing need reach a disk.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// How far a job is, in its own words.
pub fn progress_of(record: &JobRecord) -> Progress {
    serde_json::from_value(record.progress.clone()).expect("a purge's progress")
}
