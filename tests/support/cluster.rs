//! A PostgreSQL server for one run of the tests: started as somebody without rights, reached by a socket in a directory
//! of its own, gone when the tests have ended however they end.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postgres::{Client, NoTls};
use roomkeeper::database::{Database, Server};

/// A server that runs, and where.
pub struct Cluster {
    directory: PathBuf,
    programs: PathBuf,
    admin: Mutex<Client>,
    /// The shell that watches over it: it ends the server when this process has ended, which closes the pipe.
    _watcher: Child,
}

/// Set where a missing server is a failure: in CI.
const MUST_RUN: &str = "ROOMKEEPER_CI";

/// A role with no rights but those of an owner, as Synapse's is.
pub const ROLE: &str = "synapse";

/// The server of this process; `None`, after saying so, where there are no programs to start one with.
pub fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    CLUSTER
        .get_or_init(|| match programs() {
            Some(programs) => Some(Cluster::start(programs)),
            None => {
                assert!(
                    std::env::var_os(MUST_RUN).is_none(),
                    "there is no PostgreSQL server to start (initdb, postgres): install postgresql"
                );
                eprintln!("NOT TESTED: there is no PostgreSQL server to start; install postgresql");
                None
            }
        })
        .as_ref()
}

/// Where `initdb` and `postgres` are: `ROOMKEEPER_PG_BIN`, the path, or Debian's place for the newest version.
fn programs() -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("ROOMKEEPER_PG_BIN")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    places.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    places.extend(versions.into_iter().rev());
    places
        .into_iter()
        .find(|p| p.join("initdb").is_file() && p.join("postgres").is_file())
}

/// How to run something as somebody without rights: the server refuses to be root.
fn without_rights() -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let words = [
        "setpriv",
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
        "--",
    ];
    words.map(str::to_owned).to_vec()
}

impl Cluster {
    fn start(programs: PathBuf) -> Self {
        // The name of a socket has to be short.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory
        } else {
            Path::new("/tmp")
        };
        let directory = root.join(format!("rk-pg-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        if rustix::process::geteuid().is_root() {
            let done = Command::new("chown")
                .arg("nobody:nogroup")
                .arg(&directory)
                .status();
            assert!(done.expect("chown").success());
        }
        let script = format!(
            "cd {dir} && {bin}/initdb -D {dir}/data -U postgres -A trust -E UTF8 --locale=C --no-sync >{dir}/initdb.log 2>&1 || exit 1
             {bin}/postgres -D {dir}/data -k {dir} -c listen_addresses= -c fsync=off -c full_page_writes=off \
                -c synchronous_commit=off -c max_connections=120 -c shared_buffers=64MB -c autovacuum=off \
                -c log_min_messages=warning -c max_wal_size=256MB  >{dir}/server.log 2>&1 &
             cat >/dev/null
             kill -QUIT $(head -n 1 {dir}/data/postmaster.pid); while [ -e {dir}/data/postmaster.pid ]; do sleep 0.02; done; rm -rf {dir}",
            dir = directory.display(),
            bin = programs.display(),
        );
        let mut words = without_rights();
        words.extend(["sh", "-c", &script].map(str::to_owned));
        let watcher = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let until = Instant::now() + Duration::from_secs(60);
        let admin = loop {
            match client(&directory, "postgres", "postgres") {
                Ok(client) => break client,
                Err(e) if Instant::now() > until => {
                    let log = fs::read_to_string(directory.join("initdb.log")).unwrap_or_default();
                    panic!("the server does not start: {e}: {log}");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let cluster = Self {
            directory,
            programs,
            admin: Mutex::new(admin),
            _watcher: watcher,
        };
        cluster.run(&format!("CREATE ROLE {ROLE} LOGIN"));
        cluster
    }

    /// Has an administrator run something.
    pub fn run(&self, sql: &str) {
        self.admin.lock().batch_execute(sql).expect(sql);
    }

    /// The first number that a question to an administrator has for an answer.
    pub fn number(&self, sql: &str) -> i64 {
        self.admin.lock().query_one(sql, &[]).expect(sql).get(0)
    }

    /// A new database that belongs to the ordinary role: a copy of `template`, which nobody may be using.
    pub fn create(&self, template: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("d{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let words = format!("CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {template}");
        // A session that was just closed is still there for a moment.
        for attempt in 0.. {
            match self.admin.lock().batch_execute(&words) {
                Ok(()) => break,
                Err(e) if attempt > 100 => panic!("{words}: {e:?}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        name
    }

    /// What the server has said so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.directory.join("server.log")).expect("a log");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Throws a database away.
    pub fn drop(&self, name: &str) {
        self.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
    }

    /// How the ordinary role reaches a database.
    pub fn database(&self, name: &str) -> Database {
        self.database_of(ROLE, name)
    }

    /// How some role reaches a database.
    pub fn database_of(&self, role: &str, name: &str) -> Database {
        let host = self.directory.display().to_string();
        let pairs = [
            ("host", host),
            ("user", role.into()),
            ("dbname", name.into()),
        ];
        Database::Server(Server::Keys(
            pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        ))
    }

    /// A connection past roomkeeper, as an administrator.
    pub fn client(&self, name: &str) -> Client {
        client(&self.directory, "postgres", name).expect("connects")
    }

    /// A connection past roomkeeper, as the ordinary role.
    pub fn client_of_role(&self, name: &str) -> Client {
        client(&self.directory, ROLE, name).expect("connects")
    }

    /// An empty database in Synapse's layout, made once.
    pub fn empty(&self) -> &'static str {
        static EMPTY: OnceLock<String> = OnceLock::new();
        EMPTY.get_or_init(|| {
            let name = self.create("template0");
            roomkeeper::store::schema::create(self.database(&name)).expect("tables");
            name
        })
    }

    /// Stops the server at once, as a crash would, and starts it again; answers when it takes connections.
    pub fn crash(&self) {
        let pid = fs::read_to_string(self.directory.join("data/postmaster.pid")).expect("runs");
        let pid = pid.lines().next().expect("a number").to_owned();
        let log = self.directory.join("server.log");
        let script = format!(
            "kill -QUIT {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.02; done; \
             {}/pg_ctl -D {dir}/data -o '-k {dir} -c listen_addresses= -c fsync=off -c max_connections=120 \
             -c autovacuum=off ' -l {} -w start >/dev/null 2>&1",
            self.programs.display(),
            log.display(),
            dir = self.directory.display(),
        );
        let mut words = without_rights();
        words.extend(["sh", "-c", &script].map(str::to_owned));
        let done = Command::new(&words[0]).args(&words[1..]).status();
        assert!(done.expect("a shell").success());
        *self.admin.lock() = client(&self.directory, "postgres", "postgres").expect("runs again");
    }
}

fn client(directory: &Path, role: &str, name: &str) -> Result<Client, postgres::Error> {
    let mut config = postgres::Config::new();
    config.host_path(directory).user(role).dbname(name);
    config.connect(NoTls)
}

/// Says on the terminal what a suite left out.
pub fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}
