//! A homeserver's directory in which the program is run, and a daemon that runs there.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use roomkeeper::client::Client;
use roomkeeper::database::{Database, Server};
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::sample;
use crate::support::engine::{self, Engine};
use crate::support::work::Site;

/// A long time for something that should happen soon, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// How often one looks whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `is_so` answers something.
pub fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = is_so() {
            return answer;
        }
        assert!(begun.elapsed() < SOON, "{what} has not come about");
        sleep(LOOK_EVERY);
    }
}

/// Purges room `a` below this depth by the command.
pub fn purge(home: &Home, below: i64, more: &[&str]) -> Ran {
    let (room, token) = (sample::room_id("a"), sample::token(below));
    let mut words = vec!["purge-history", room.as_str(), "--before-token", &token];
    words.extend_from_slice(more);
    home.run(&words)
}

/// Sends a signal to a process that we started.
pub fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), signal).expect("it can be signalled");
}

/// A directory with a database and a configuration.
pub struct Home {
    directory: tempfile::TempDir,
    site: Site,
}

impl Home {
    /// With room `a` of so many events; `block` is what the configuration says in our block, as flow YAML.
    pub fn new(events: i64, block: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("homeserver.db");
        sample::create(&database, &["a"], events);
        let site = Site::of_file(&database, sample::SERVER_NAME);
        let home = Self { directory, site };
        home.configure(block, "");
        home
    }

    /// Writes the configuration anew, `more` being other blocks of it.
    pub fn configure(&self, block: &str, more: &str) {
        let path = self.database().display().to_string();
        let (database, ours) = match self.site.config().database {
            Database::Server(Server::Keys(keys)) => {
                let ledger = format!("ledger: '{path}.roomkeeper'");
                let ours = [block, &ledger].map(str::to_owned);
                let ours = ours.into_iter().filter(|keys| !keys.is_empty());
                let args = serde_json::json!({"name": "psycopg2", "args": keys});
                (args.to_string(), ours.collect::<Vec<_>>().join(", "))
            }
            _ => (
                format!("{{name: sqlite3, args: {{database: '{path}'}}}}"),
                block.to_owned(),
            ),
        };
        let yaml = format!(
            "server_name: example.org\ndatabase: {database}\nroomkeeper: {{{ours}}}\n{more}\n"
        );
        fs::write(self.path("homeserver.yaml"), yaml).expect("writes");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file that its owner alone can read.
    pub fn write_secret(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).expect("writes");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("set");
    }

    pub fn database(&self) -> PathBuf {
        self.path("homeserver.db")
    }

    /// The program, about to run with this configuration and nothing of our surroundings.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        command
            .args(["-c", "homeserver.yaml"])
            .args(words)
            .current_dir(self.directory.path())
            .env_clear()
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, words: &[&str]) -> Ran {
        Ran::of(self.command(words).output().expect("runs"))
    }

    /// Runs SQL on the database, with no other connection of ours left open.
    pub fn sql(&self, sql: &str) {
        self.site.run(sql);
    }

    /// How many events room `a` has, as far as they have been committed.
    pub fn events(&self) -> i64 {
        let sql = "SELECT count(*) FROM events";
        if engine::current() == Engine::Postgres {
            return self.site.number(sql);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let conn = Connection::open_with_flags(self.database(), flags).expect("opens");
        conn.query_row(sql, [], |row| row.get(0)).expect("counts")
    }

    /// The one job that there is, as `jobs --json` shows it.
    pub fn job(&self) -> Value {
        let jobs = self.run(&["jobs", "--json"]).json();
        let list = jobs["jobs"].as_array().expect("a list").clone();
        assert_eq!(list.len(), 1, "{jobs}");
        list[0].clone()
    }

    pub fn assert_sound(&self) {
        let check = self.run(&["check"]);
        assert_eq!(
            (check.code, check.out.as_str()),
            (Some(0), "every invariant holds\n"),
            "{}",
            check.err
        );
    }
}

/// How the program ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The one JSON document on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// That it ended so, and said so on stderr in one sentence.
    #[track_caller]
    pub fn assert_ended(&self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(says), "{says:?} is not in {:?}", self.err);
    }
}

/// `roomkeeper serve`, started as systemd starts it.
pub struct Daemon<'a> {
    home: &'a Home,
    child: Child,
    notes: UnixDatagram,
    /// Told by the daemon and not asked for yet.
    told: Vec<String>,
}

impl<'a> Daemon<'a> {
    /// Starts it and waits until it says that it is ready.
    pub fn start(home: &'a Home) -> Self {
        Self::start_with(home, |_| {})
    }

    pub fn start_with(home: &'a Home, change: impl FnOnce(&mut Command)) -> Self {
        let socket = home.path("notify");
        let _ = fs::remove_file(&socket);
        let notes = UnixDatagram::bind(&socket).expect("binds");
        notes.set_nonblocking(true).expect("a socket");
        let log = File::options()
            .create(true)
            .append(true)
            .open(home.path("log"))
            .expect("a log");
        let mut command = home.command(&["serve"]);
        command
            .env("NOTIFY_SOCKET", &socket)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        change(&mut command);
        let child = command.spawn().expect("starts");
        let mut daemon = Self {
            home,
            child,
            notes,
            told: Vec::new(),
        };
        daemon.wait_to_hear("READY=1");
        daemon
    }

    /// Waits until the daemon tells systemd this.
    pub fn wait_to_hear(&mut self, word: &str) {
        until(word, || {
            self.listen();
            if let Some(at) = self.told.iter().position(|told| told == word) {
                self.told.drain(..=at);
                return Some(());
            }
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!(
                    "the daemon ended with {status} before {word}: {}",
                    self.log()
                );
            }
            None
        });
    }

    fn listen(&mut self) {
        let mut note = [0; 4096];
        loop {
            match self.notes.recv(&mut note) {
                Ok(length) => {
                    let note = String::from_utf8_lossy(&note[..length]).into_owned();
                    self.told.extend(note.lines().map(str::to_owned));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A client at its Unix socket.
    pub fn client(&self) -> Client {
        Client::unix(self.home.path("homeserver.db.roomkeeper.sock"))
    }

    /// Asks it to purge room `a` up to a depth, and gives the id of the purge.
    pub fn purge(&self, below: i64) -> String {
        let path = format!(
            "/_synapse/admin/v1/purge_history/{}",
            sample::room_id("a").replace('!', "%21")
        );
        let body = serde_json::json!({
            "purge_up_to_event_id": sample::event_id("a", below), "delete_local_events": true});
        let reply = self.client().post(&path, &body).expect("answers");
        assert_eq!(reply.status, 200, "{:?}", reply.body);
        reply.body["purge_id"].as_str().expect("an id").to_owned()
    }

    /// A purge, as `/_roomkeeper/v1/jobs` shows it.
    pub fn job(&self, id: &str) -> Value {
        let reply = self
            .client()
            .get(&format!("/_roomkeeper/v1/jobs/{id}"))
            .expect("answers");
        assert_eq!(reply.status, 200, "{:?}", reply.body);
        reply.body
    }

    pub fn wait_until_complete(&self, id: &str) -> Value {
        until("the end of a purge", || {
            let job = self.job(id);
            assert_ne!(job["state"], "failed", "{job}");
            (job["state"] == "complete").then_some(job)
        })
    }

    pub fn send(&self, what: Signal) {
        signal(&self.child, what);
    }

    /// Sends SIGTERM, and gives how it ended and after how long.
    pub fn terminate(mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.send(Signal::TERM);
        self.wait_to_hear("STOPPING=1");
        let status = self.wait();
        (status, begun.elapsed())
    }

    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the daemon's end", || child.try_wait().expect("a child"))
    }

    /// Everything that daemons in this home have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path("log")).expect("a log")
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
