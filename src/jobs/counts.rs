//! How many jobs of which kind are in which state.

use rusqlite::params;

use super::ledger::Ledger;
use super::record::{State, Subject};
use crate::error::{Context, Error};
use crate::time::Millis;

impl Ledger {
    /// How many jobs on record there are of each kind in each state.
    pub fn counts(&self) -> Result<Vec<(String, State, i64)>, Error> {
        const COUNTS: &str = "SELECT kind, state, count(*) FROM job GROUP BY kind, state";
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached(COUNTS)?
                .query_map([], |row| {
                    let state: String = row.get(1)?;
                    Ok((row.get(0)?, State::of(&state), row.get(2)?))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        run().context("count the jobs in the ledger")
    }

    /// When the last job of this kind and subject that ended well began.
    pub fn last_complete(&self, kind: &str, subject: &Subject) -> Result<Option<Millis>, Error> {
        const LAST: &str = "
            SELECT max(coalesce(started_ms, created_ms)) FROM job
             WHERE subject = $1 AND subject_kind = $2 AND kind = $3 AND state = 'complete'";
        let (subject_kind, subject) = subject.columns();
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached(LAST)?
                .query_row(params![subject, subject_kind, kind], |row| row.get(0))
        };
        let began: Option<i64> = run().context("read the ledger")?;
        Ok(began.map(Millis))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::ids::JobId;
    use crate::jobs::ledger::{Ended, JobRecord};

    #[test]
    fn jobs_are_counted_by_kind_and_state_and_the_last_good_end_is_found() {
        let dir = tempfile::tempdir().expect("directory");
        let ledger = Ledger::open(&dir.path().join("l")).expect("opens");
        let subject = Subject::Server {};
        assert_eq!(ledger.counts().expect("read"), []);
        assert_eq!(ledger.last_complete("k", &subject).expect("read"), None);
        for (n, error) in [None, None, Some(("no", "refused"))]
            .into_iter()
            .enumerate()
        {
            let id = JobId::from(format!("job{n}").as_str());
            let record = JobRecord {
                id: id.clone(),
                ..JobRecord::new("k", &subject, Millis(10 * n as i64))
            };
            ledger.insert(&record).expect("written");
            ledger.start(&id, Millis(10 * n as i64 + 1)).expect("noted");
            let progress = Value::Null;
            let at = Millis(100);
            ledger
                .end(
                    &id,
                    Ended {
                        error,
                        progress: &progress,
                        at,
                    },
                )
                .expect("noted");
        }
        let counts = ledger.counts().expect("read");
        let of = |state| (("k".to_owned()), state);
        let (kind, complete) = of(State::Complete);
        assert_eq!(
            counts,
            [(kind.clone(), complete, 2), (kind, State::Failed, 1)]
        );
        let last = ledger.last_complete("k", &subject).expect("read");
        assert_eq!(last, Some(Millis(11)), "the failed one does not count");
    }
}
