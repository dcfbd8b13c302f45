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

/// Runs a test on an engine; on none where there is no server to start, which was said then.
pub fn run(engine: Engine, test: impl FnOnce()) {
    #[cfg(feature = "postgres")]
    if engine == Engine::Postgres && super::cluster::cluster().is_none() {
        return;
    }
    CURRENT.set(engine);
    test();
}

/// Makes of every function a test on SQLite and one on PostgreSQL.
#[macro_export]
macro_rules! on_both_engines {
    ($($(#[$about:meta])* fn $name:ident() $body:block)+) => {
        mod on_sqlite {
            #[allow(unused_imports)]
            use super::*;
            $($(#[$about])* #[test] fn $name() {
                $crate::support::engine::run($crate::support::engine::Engine::Sqlite, || $body);
            })+
        }
        #[cfg(feature = "postgres")]
        mod on_postgres {
            #[allow(unused_imports)]
            use super::*;
            $($(#[$about])* #[test] fn $name() {
                $crate::support::engine::run($crate::support::engine::Engine::Postgres, || $body);
            })+
        }
    };
}
