//! Suites that run on both engines: what a test makes, it makes on the engine that its thread is told.

use std::cell::Cell;

/// Which engine a sample is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A file.
    Sqlite,
    /// A database on the server of this process.
    Postgres,
}

thread_local! {
    static CURRENT: Cell<Engine> = const { Cell::new(Engine::Sqlite) };
}

/// The engine of this thread.
pub fn current() -> Engine {
    CURRENT.get()
}

/// How many of so many samples this engine gets: on a server each of them is a database that has to be made.
pub fn share_of(samples: u64) -> u64 {
    match current() {
        Engine::Sqlite => samples,
        Engine::Postgres => samples.div_ceil(6),
    }
}

/// Runs a test on an engine; on none where there is no server to start, which was said then.
pub fn run(engine: Engine, test: impl FnOnce()) {
    #[cfg(feature = "postgres")]
    if engine == Engine::Postgres && super::cluster::cluster().is_none() {
        return;
    }
    CURRENT.set(engine);
    test();
}

/// Runs the tests that are named on PostgreSQL as well.
#[macro_export]
macro_rules! also_on_postgres {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "postgres")]
        mod on_postgres {
            $(#[test]
            fn $name() {
                $crate::support::engine::run($crate::support::engine::Engine::Postgres, super::$name);
            })+
        }
    };
}
