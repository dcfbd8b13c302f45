//! What the ledger notes of several rooms at once: one transaction, and at most one sync, however many they are.

use rusqlite::params;

use super::ledger::{Ledger, START};
use crate::error::{Context, Error};
use crate::ids::{JobId, RoomId};
use crate::time::Millis;

/// What is to be done about a room's state groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Groups to look at again another time.
    pub again: Vec<i64>,
}

const ADD_CANDIDATE: &str = "INSERT OR IGNORE INTO candidate (subject, number) VALUES ($1, $2)";

impl Ledger {
    /// As [`Ledger::add_candidates`], of many rooms. Durable when it returns.
    pub fn add_candidates_of(&self, rooms: &[(RoomId, Vec<i64>)]) -> Result<(), Error> {
        if rooms.iter().all(|(_, numbers)| numbers.is_empty()) {
            return Ok(());
        }
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            {
                let mut insert = tx.prepare_cached(ADD_CANDIDATE)?;
                for (room, numbers) in rooms {
                    for number in numbers {
                        insert.execute(params![room.as_str(), number])?;
                    }
                }
            }
            tx.commit()
        };
        run().context("note state groups in the ledger")
    }

    /// As [`Ledger::decide`], of many rooms. Durable when it returns.
    pub fn decide_all(&self, rooms: &[(&RoomId, Decided)]) -> Result<(), Error> {
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            {
                let mut forget = tx.prepare_cached("DELETE FROM candidate WHERE subject = $1")?;
                let mut insert = tx.prepare_cached(
                    "INSERT INTO step (subject, seq, step)
                     SELECT $1, coalesce(max(seq), 0) + 1, $2 FROM step WHERE subject = $1",
                )?;
                let mut again = tx.prepare_cached(ADD_CANDIDATE)?;
                for (room, decided) in rooms {
                    forget.execute([room.as_str()])?;
                    for step in &decided.steps {
                        insert.execute(params![room.as_str(), step])?;
                    }
                    for number in &decided.again {
                        again.execute(params![room.as_str(), number])?;
                    }
                }
            }
            tx.commit()
        };
        run().context("note a decision in the ledger")
    }

    /// Crosses out every step of these rooms. One that is done again changes nothing.
    pub fn done_all<'a>(&self, rooms: impl Iterator<Item = &'a RoomId>) -> Result<(), Error> {
        let run = || {
            self.with_relaxed_sync(|conn| {
                let tx = conn.unchecked_transaction()?;
                let mut crossed_out = 0;
                {
                    let mut delete = tx.prepare_cached("DELETE FROM step WHERE subject = $1")?;
                    for room in rooms {
                        crossed_out += delete.execute([room.as_str()])?;
                    }
                }
                tx.commit()?;
                Ok(crossed_out)
            })
        };
        run().context("cross out a step in the ledger").map(drop)
    }

    /// As [`Ledger::start`], of many jobs.
    pub fn start_all<'a>(
        &self,
        jobs: impl Iterator<Item = &'a JobId>,
        now: Millis,
    ) -> Result<(), Error> {
        let run = || {
            self.with_relaxed_sync(|conn| {
                let tx = conn.unchecked_transaction()?;
                let mut started = 0;
                {
                    let mut update = tx.prepare_cached(START)?;
                    for id in jobs {
                        started += update.execute(params![now.0, id.as_str()])?;
                    }
                }
                tx.commit()?;
                Ok(started)
            })
        };
        run().context("note a job's start in the ledger").map(drop)
    }

    /// As [`Ledger::progress`], of many jobs.
    pub fn progress_of(&self, jobs: &[(&JobId, serde_json::Value)]) -> Result<(), Error> {
        let run = || {
            self.with_relaxed_sync(|conn| {
                let tx = conn.unchecked_transaction()?;
                {
                    let mut update =
                        tx.prepare_cached("UPDATE job SET progress = $1 WHERE id = $2")?;
                    for (id, progress) in jobs {
                        update.execute(params![progress.to_string(), id.as_str()])?;
                    }
                }
                tx.commit()?;
                Ok(jobs.len())
            })
        };
        run()
            .context("note a job's progress in the ledger")
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_of_many_is_what_is_noted_of_each() {
        let dir = tempfile::tempdir().expect("directory");
        let (many, each) = ["many", "each"]
            .map(|name| Ledger::open(&dir.path().join(name)).expect("opens"))
            .into();
        let rooms = ["!a:x", "!b:x", "!c:x"].map(RoomId::from);
        let groups = [vec![3, 1], vec![], vec![7]];
        let noted: Vec<_> = rooms.iter().cloned().zip(groups.clone()).collect();
        many.add_candidates_of(&noted).expect("noted");
        for (room, groups) in &noted {
            each.add_candidates(room.as_str(), groups).expect("noted");
        }
        let same = |many: &Ledger, each: &Ledger| {
            for room in &rooms {
                let of = |ledger: &Ledger| {
                    let candidates = ledger.candidates(room.as_str()).expect("read");
                    (candidates, ledger.steps(room.as_str()).expect("read"))
                };
                assert_eq!(of(many), of(each), "{room}");
            }
        };
        same(&many, &each);
        let decided = |steps: &[&str], again: &[i64]| Decided {
            steps: steps.iter().map(|step| (*step).to_owned()).collect(),
            again: again.to_vec(),
        };
        let all = [
            (&rooms[0], decided(&["x", "y"], &[])),
            (&rooms[2], decided(&["z"], &[9])),
        ];
        many.decide_all(&all).expect("decided");
        for (room, decided) in &all {
            each.decide(room.as_str(), &decided.steps).expect("decided");
            each.add_candidates(room.as_str(), &decided.again)
                .expect("noted");
        }
        same(&many, &each);
        assert_eq!(many.steps("!a:x").expect("read").len(), 2);
        many.done_all(rooms[..2].iter()).expect("done");
        each.done_up_to("!a:x", i64::MAX).expect("done");
        same(&many, &each);
        assert_eq!(many.steps("!c:x").expect("read").len(), 1);
    }
}
