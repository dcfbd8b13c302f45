//! What was counted of rooms and is kept in the ledger, so that the next question need not count it again. It may be lost
//! at any time: then it is counted anew.

use rusqlite::params;

use super::ledger::Ledger;
use crate::error::{Context, Error};

impl Ledger {
    /// What is kept of every room: its id, and a text of the caller's.
    pub fn room_statistics(&self) -> Result<Vec<(String, String)>, Error> {
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached("SELECT room_id, counted FROM room_statistics")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        run().context("read what was counted of rooms")
    }

    /// Keeps what was counted of some rooms; of those without a text nothing is kept any more.
    pub fn keep_room_statistics(&self, rooms: &[(String, Option<String>)]) -> Result<(), Error> {
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            {
                let mut keep = tx.prepare_cached(
                    "INSERT INTO room_statistics (room_id, counted) VALUES ($1, $2)
                         ON CONFLICT (room_id) DO UPDATE SET counted = excluded.counted",
                )?;
                let mut drop =
                    tx.prepare_cached("DELETE FROM room_statistics WHERE room_id = $1")?;
                for (room, counted) in rooms {
                    match counted {
                        Some(counted) => keep.execute(params![room, counted])?,
                        None => drop.execute([room])?,
                    };
                }
            }
            tx.commit()
        };
        run().context("keep what was counted of rooms")
    }
}
