//! Connections for questions: lent out one at a time, kept open between questions, replaced when they break.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::db::{Access, Db, Engine, OpenOptions};
use super::read_limit::ReadLimit;
use crate::database::Database;
use crate::error::Error;

/// Connections that ask and cannot write. Those that wait lie on a stack, so that the one whose caches are warm is lent
/// next; whoever finds none opens one, so nobody waits for another's question.
pub struct Connections {
    database: Database,
    most: usize,
    idle: Mutex<Vec<Db>>,
    is_closed: AtomicBool,
}

impl Connections {
    /// None yet; at most `most` are kept open.
    pub fn new(database: &Database, most: usize) -> Self {
        Self {
            database: database.clone(),
            most,
            idle: Mutex::default(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Asks something, under a limit where there is one. A connection to a server that broke meanwhile is replaced before
    /// the question is put.
    ///
    /// # Errors
    /// [`Error::ReadTooLong`] when it was over before there was an answer.
    pub fn ask_within<T>(
        &self,
        limit: Option<&Arc<ReadLimit>>,
        question: impl FnOnce(&Db) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let idle = self.idle.lock().pop();
        let mut db = match idle {
            Some(db) => db,
            None => Db::open(
                &self.database,
                &OpenOptions {
                    access: Access::ReadOnly,
                    ..OpenOptions::default()
                },
            )?,
        };
        let mut answer = db.set_limit(limit).and_then(|()| question(&db));
        if let Some(limit) = limit {
            if limit.is_over() && answer.as_ref().is_err_and(Error::is_interrupt) {
                answer = Err(Error::ReadTooLong);
            }
            if let Err(e) = db.set_limit(None) {
                log::debug!("a connection is not used again: {e}");
                return answer;
            }
        }
        let is_disconnected = answer.as_ref().is_err_and(Error::is_disconnected);
        // A server hears of an interrupt over a connection of its own. It may come late, and would end the next reading here.
        let may_be_interrupted =
            db.engine() == Engine::Postgres && limit.is_some_and(|limit| limit.is_over());
        if !is_disconnected && !may_be_interrupted {
            self.put_back(db);
        }
        answer
    }

    /// Keeps a connection, unless there are enough.
    fn put_back(&self, db: Db) {
        let mut idle = self.idle.lock();
        if idle.len() < self.most && !self.is_closed.load(Ordering::SeqCst) {
            idle.push(db);
        } else {
            // Closing may empty the write-ahead log: not while others wait for the stack.
            drop(idle);
            drop(db);
        }
    }

    /// Closes those that wait, and from now on every one when its question is answered.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }
}
