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
    port: u16,
    programs: PathBuf,
    admin: Mutex<Client>,
    /// The shell that watches over it: it ends the server when this process has ended, which closes the pipe.
    _watcher: Child,
}

/// Set where a missing server is a failure: in CI.
const MUST_RUN: &str = "ROOMKEEPER_CI";

const ADMIN: &str = "postgres";

/// A role with no rights but those of an owner, as Synapse's is.
pub const ROLE: &str = "synapse";

/// Where a server is met that is met by its socket alone.
const PORT: u16 = 5432;

/// The server of this process; `None`, after saying so, where there are no programs to start one with.
pub fn cluster() -> Option<&'static Cluster> {
    of_this_process("", PORT)
}

/// As [`cluster`], for a suite that meets it over TCP, too: on a port of 127.0.0.1 that was free.
pub fn cluster_over_tcp() -> Option<&'static Cluster> {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    of_this_process("127.0.0.1", free.expect("a free port").port())
}

/// Where tests that tested nothing are noted, for `tests/zz_not_tested.rs` to tell at the end; one file a run of cargo.
pub fn not_tested() -> PathBuf {
    let run = std::os::unix::process::parent_id();
    std::env::temp_dir().join(format!("roomkeeper-not-tested-{run}"))
}

fn of_this_process(addresses: &str, port: u16) -> Option<&'static Cluster> {
    let cluster = start_once(addresses, port);
    if cluster.is_none() {
        let thread = std::thread::current();
        let note = format!("{}\n", thread.name().unwrap_or("a test"));
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(not_tested());
        let _ = file.and_then(|mut file| file.write_all(note.as_bytes()));
    }
    cluster
}

fn start_once(addresses: &str, port: u16) -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    CLUSTER
        .get_or_init(|| match programs() {
            Some(programs) => Some(Cluster::start(programs, addresses, port)),
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
    fn start(programs: PathBuf, addresses: &str, port: u16) -> Self {
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
             {bin}/postgres -D {dir}/data -k {dir} -c listen_addresses={addresses} -c port={port} -c fsync=off -c full_page_writes=off \
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
            match client(&directory, port, "postgres", "postgres") {
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
            port,
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
            ("port", self.port.to_string()),
            ("user", role.into()),
            ("dbname", name.into()),
        ];
        Database::Server(Server::Keys(
            pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        ))
    }

    /// A connection past roomkeeper, as an administrator.
    pub fn client(&self, name: &str) -> Client {
        client(&self.directory, self.port, "postgres", name).expect("connects")
    }

    /// A connection past roomkeeper, as the ordinary role.
    pub fn client_of_role(&self, name: &str) -> Client {
        client(&self.directory, self.port, ROLE, name).expect("connects")
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

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Puts a file into its directory that the server may read and nobody else; answers its path.
    pub fn keep(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.directory.join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        if rustix::process::geteuid().is_root() {
            let done = Command::new("chown")
                .arg("nobody:nogroup")
                .arg(&path)
                .status();
            assert!(done.expect("chown").success());
        }
        path
    }

    /// Sets what the server takes up without a restart, and has it read `pg_hba.conf` anew, with this text in it. Who
    /// connects from now on meets it so.
    pub fn configure(&self, settings: &[(&str, &str)], who_may_come: &str) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("{} ", COUNT.fetch_add(1, Ordering::SeqCst));
        self.keep("data/pg_hba.conf", who_may_come);
        for (name, value) in settings.iter().chain(&[("log_line_prefix", &*mark)]) {
            self.run(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        self.run("SELECT pg_reload_conf()");
        let until = Instant::now() + Duration::from_secs(30);
        let prefix = || -> String {
            let mut client = self.client("postgres");
            let row = client.query_one("SELECT current_setting('log_line_prefix')", &[]);
            row.expect("asked").get(0)
        };
        while prefix() != mark {
            assert!(
                Instant::now() < until,
                "the server does not take up its configuration"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a hot standby of this server, on a port of its own in the same directory; answers when it can be asked.
    pub fn standby(&self) -> Standby {
        let port = self.port.wrapping_add(1).max(1024);
        // The other programs are where the server truly is.
        let server = fs::canonicalize(self.programs.join("postgres")).expect("a program");
        let programs = server.parent().expect("a directory").to_owned();
        let script = format!(
            "cd {dir} && {bin}/pg_basebackup -h {dir} -p {from} -U postgres -D {dir}/standby -R -X stream -c fast \
             >{dir}/standby.log 2>&1 && chmod 700 {dir}/standby && \
             {bin}/pg_ctl -D {dir}/standby -o '-k {dir} -c port={port} -c listen_addresses= -c fsync=off -c max_connections=120' \
             -l {dir}/standby.log -w start >/dev/null 2>&1",
            dir = self.directory.display(),
            bin = programs.display(),
            from = self.port,
        );
        let mut words = without_rights();
        words.extend(["sh", "-c", &script].map(str::to_owned));
        let done = Command::new(&words[0]).args(&words[1..]).status();
        let log = || fs::read_to_string(self.directory.join("standby.log")).unwrap_or_default();
        assert!(done.expect("a shell").success(), "{}", log());
        Standby {
            directory: self.directory.clone(),
            programs,
            port,
        }
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
        *self.admin.lock() =
            client(&self.directory, self.port, "postgres", "postgres").expect("runs again");
    }
}

/// A standby that runs as long as this is kept.
pub struct Standby {
    directory: PathBuf,
    programs: PathBuf,
    port: u16,
}

impl Standby {
    /// How the ordinary role reaches a database on it.
    pub fn database(&self, name: &str) -> Database {
        let pairs = [
            ("host", self.directory.display().to_string()),
            ("port", self.port.to_string()),
            ("user", ROLE.into()),
            ("dbname", name.into()),
        ];
        let pairs = pairs.into_iter().map(|(k, v)| (k.to_owned(), v));
        Database::Server(Server::Keys(pairs.collect()))
    }

    /// A connection past roomkeeper.
    pub fn client(&self, name: &str) -> Client {
        client(&self.directory, self.port, ADMIN, name).expect("connects")
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let stop = format!(
            "{}/pg_ctl -D {}/standby -m immediate stop >/dev/null 2>&1",
            self.programs.display(),
            self.directory.display()
        );
        let mut words = without_rights();
        words.extend(["sh", "-c", &stop].map(str::to_owned));
        let _ = Command::new(&words[0]).args(&words[1..]).status();
    }
}

fn client(directory: &Path, port: u16, role: &str, name: &str) -> Result<Client, postgres::Error> {
    let mut config = postgres::Config::new();
    config
        .host_path(directory)
        .port(port)
        .user(role)
        .dbname(name);
    if role == ADMIN {
        // A person who looks is taken for no homeserver.
        config.application_name("psql");
    }
    config.connect(NoTls)
}

/// Says on the terminal what a suite left out.
pub fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "{words}");
}
