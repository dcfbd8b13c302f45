//! A keeper and its HTTP server in this process, over a database of the suite's own; and what it logs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use roomkeeper::config::{Listen, Secret};
use roomkeeper::http::{self, HttpServer};
use roomkeeper::time::SystemClock;
use roomkeeper::{Config, Keeper};

use super::work::Site;

/// Stopped when it is dropped.
pub struct Served {
    server: Option<HttpServer>,
    pub keeper: Keeper,
    pub address: SocketAddr,
    pub socket: PathBuf,
    pub database: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    /// Over a database of `example.org` that `make` makes; `change` is what the suite wants of the configuration. It has a
    /// port, a socket, this admin token and the system's clock.
    pub fn start(token: &str, make: impl FnOnce(&Path), change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("homeserver.db");
        make(&database);
        let mut config = Site::at(&database, "example.org").config();
        let socket = directory.path().join("control.sock");
        config.listen = vec![
            Listen::Tcp(([127, 0, 0, 1], 0).into()),
            Listen::Unix(socket.clone()),
        ];
        config.admin_token = Some(Secret::new(token));
        config.clock = Arc::new(SystemClock);
        change(&mut config);
        let keeper = Keeper::open(config).expect("opens");
        let server = http::serve(keeper.clone()).expect("serves");
        let address = server.addresses()[0];
        Self {
            server: Some(server),
            keeper,
            address,
            socket,
            database,
            _directory: directory,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        self.keeper.clone().stop();
    }
}

/// Everything that was logged since somebody listened, of all tests of the suite: a level and what was said, a line each.
pub static LOG: Mutex<String> = Mutex::new(String::new());

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOG.lock()
            .push_str(&format!("{} {}\n", record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// Has [`LOG`] take what is logged, down to this level.
pub fn listen_to_the_log(level: log::LevelFilter) {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        log::set_boxed_logger(Box::new(Listener)).expect("the first");
        log::set_max_level(level);
    });
}
