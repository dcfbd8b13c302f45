//! Connections for questions: lent out one at a time, kept open between questions, replaced when they break.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::db::{Access, Db, OpenOptions};
use crate::database::Database;
use crate::error::Error;

/// Connections that ask and cannot write. Those that wait lie in a channel; whoever finds none opens one, so nobody waits
/// for another's question.
pub struct Connections {
    database: Database,
    lend: Sender<Db>,
    idle: Receiver<Db>,
    is_closed: AtomicBool,
}

impl Connections {
    /// None yet; at most `most` are kept open.
    pub fn new(database: &Database, most: usize) -> Self {
        let (lend, idle) = bounded(most);
        Self {
            database: database.clone(),
            lend,
            idle,
            is_closed: AtomicBool::new(false),
        }
    }

    /// Asks something. A connection to a server that broke meanwhile is replaced before the question is put.
    pub fn ask<T>(&self, question: impl FnOnce(&Db) -> Result<T, Error>) -> Result<T, Error> {
        let db = match self.idle.try_recv() {
            Ok(db) => db,
            Err(_) => Db::open(
                &self.database,
                &OpenOptions {
                    access: Access::Ask,
                    ..OpenOptions::default()
                },
            )?,
        };
        let answer = question(&db);
        let is_lost = answer.as_ref().is_err_and(Error::is_lost);
        if !is_lost && !self.is_closed.load(Ordering::SeqCst) {
            // Where enough are kept already, this one is closed.
            let _ = self.lend.try_send(db);
        }
        answer
    }

    /// Closes those that wait, and from now on every one when its question is answered.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        while self.idle.try_recv().is_ok() {}
    }
}
