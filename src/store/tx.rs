//! A transaction that may delete and rewrite rows, as a value.
//!
//! Every verb of the storage that deletes or rewrites takes a [`Tx`]. It is given by the one door of the jobs alone
//! (`job::transaction`), inside a transaction, to whoever holds what it is about: so nothing is deleted without the room's
//! lock and the writer's turn.

use std::ops::Deref;
use std::time::{Duration, Instant};

use super::db::{Db, Failure};
use super::wal::WalGuard;
use crate::error::Error;
use crate::ids::RoomId;
use crate::locks::RoomSet;

/// What a transaction is about, held by whoever opens it.
pub enum Held {
    /// These rooms, which nobody else reads or writes.
    Rooms(RoomSet),
    /// What has no room: the file, the full-text index.
    Server,
}

/// What a transaction comes to nothing by.
#[derive(Debug)]
pub enum Abort {
    /// Others would have waited too long.
    TooLong,
    /// Something refers to a row that goes, and the engine does not look after that by itself.
    BreaksForeignKeys,
    /// It failed, or must not be.
    Failed(Error),
}

impl From<Error> for Abort {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Failure for Abort {
    fn error(&self) -> Option<&Error> {
        match self {
            Self::Failed(error) => Some(error),
            Self::TooLong | Self::BreaksForeignKeys => None,
        }
    }
}

/// What a transaction is opened with.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// For errors, as in "could not purge the events".
    pub doing: &'static str,
    /// What it is about.
    pub held: &'a Held,
    /// How long others may wait.
    pub deadline: Option<Duration>,
    /// Hears of every table before its rows go.
    pub on_table: &'a dyn Fn(&'static str),
}

/// An open transaction of whoever holds what it is about. It reads as a [`Db`] does.
pub struct Tx<'a> {
    db: &'a Db,
    terms: Terms<'a>,
    /// Since when others wait.
    begun: Instant,
}

impl Deref for Tx<'_> {
    type Target = Db;

    fn deref(&self) -> &Db {
        self.db
    }
}

impl Tx<'_> {
    /// To be called before the rows of a table go.
    ///
    /// # Errors
    /// As [`Tx::in_time`].
    pub fn entering(&self, table: &'static str) -> Result<(), Abort> {
        self.in_time()?;
        (self.terms.on_table)(table);
        Ok(())
    }

    /// To be called between statements that may take long.
    ///
    /// # Errors
    /// [`Abort::TooLong`] when others have waited too long: nothing of the transaction remains then.
    pub fn in_time(&self) -> Result<(), Abort> {
        match self.terms.deadline {
            Some(deadline) if self.begun.elapsed() > deadline => Err(Abort::TooLong),
            _ => Ok(()),
        }
    }

    /// Makes sure that the room is one of those that are held.
    ///
    /// # Errors
    /// [`Error::Bug`] where it is not.
    pub fn ensure_held(&self, room: &RoomId) -> Result<(), Error> {
        match self.terms.held {
            Held::Rooms(rooms) if rooms.holds(room) => Ok(()),
            Held::Rooms(_) | Held::Server => Err(Error::Bug(format!(
                "room {room} was about to be changed by somebody who does not hold it"
            ))),
        }
    }
}

impl Db {
    /// Runs `work` in one transaction, as [`Db::write`] does, and answers how long others waited for it.
    ///
    /// # Locking
    /// For the door of the jobs alone, which takes the locks.
    pub(crate) fn transaction<T>(
        &mut self,
        _turn: &WalGuard,
        terms: Terms<'_>,
        mut work: impl FnMut(&Tx<'_>) -> Result<T, Abort>,
    ) -> Result<(T, Duration), Abort> {
        let (done, begun) = self.attempt(terms.doing, |db| {
            // From here on others wait for us; before, we waited for them.
            let begun = Instant::now();
            let tx = Tx { db, terms, begun };
            Ok::<_, Abort>((work(&tx)?, begun))
        })?;
        Ok((done, begun.elapsed()))
    }
}

#[cfg(test)]
impl Db {
    /// A transaction on a database that nobody else has.
    pub(super) fn of_test<T>(
        &mut self,
        doing: &'static str,
        work: impl FnMut(&Tx<'_>) -> Result<T, Abort>,
    ) -> Result<T, Abort> {
        let terms = Terms {
            doing,
            held: &Held::Server,
            deadline: None,
            on_table: &|_| {},
        };
        let done = self.transaction(&WalGuard::default(), terms, work);
        done.map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::RoomLocks;
    use crate::store::db::OpenOptions;
    use crate::store::schema;

    #[test]
    fn a_transaction_is_about_what_is_held_and_nothing_else() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("homeserver.db");
        schema::create(&path).expect("makes");
        let mut db = Db::open(&path, &OpenOptions::default()).expect("opens");
        let [room, other] = ["!a:b", "!b:b"].map(RoomId::from);
        let held = RoomLocks::default().write_all(&room, &[]);
        for (held, may) in [
            (Held::Rooms(held.unwrap_or_else(|_| panic!("free"))), true),
            (Held::Server, false),
        ] {
            let terms = Terms {
                doing: "look",
                held: &held,
                deadline: None,
                on_table: &|_| {},
            };
            let looked = db.transaction(&WalGuard::default(), terms, |tx| {
                assert_eq!(tx.ensure_held(&room).is_ok(), may);
                assert!(matches!(tx.ensure_held(&other), Err(Error::Bug(_))));
                Ok(())
            });
            assert!(looked.is_ok());
        }
    }

    #[test]
    fn nothing_remains_of_a_transaction_that_took_too_long() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("homeserver.db");
        schema::create(&path).expect("makes");
        let mut db = Db::open(&path, &OpenOptions::default()).expect("opens");
        let terms = Terms {
            doing: "write",
            held: &Held::Server,
            deadline: Some(Duration::ZERO),
            on_table: &|table| panic!("{table} is reached too late"),
        };
        let sql = "INSERT INTO rooms (room_id, is_public) VALUES ('!a:b', 0)";
        let late = db.transaction(&WalGuard::default(), terms, |tx| {
            tx.execute("write", sql, &[])?;
            std::thread::sleep(Duration::from_millis(1));
            tx.entering("rooms")
        });
        assert!(matches!(late, Err(Abort::TooLong)));
        let rooms = db.count("look", "SELECT count(*) FROM rooms", &[]);
        assert_eq!(rooms.expect("counts"), 0);
    }
}
