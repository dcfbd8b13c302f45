//! Rooms that a part of a job has, which has no record of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{JobGuard, JobRegistry};
use crate::error::Error;
use crate::ids::RoomId;
use crate::jobs::record::{JobRecord, State, Subject};

/// A room that no other job gets meanwhile.
pub struct Reserved(Option<JobGuard>);

impl JobRegistry {
    /// Takes a room for a part of a job; it is free again when what this gives is dropped.
    ///
    /// # Errors
    /// [`Error::RoomBusy`] while another job has the room.
    pub fn reserve(self: &Arc<Self>, kind: &str, room: &RoomId) -> Result<Reserved, Error> {
        let guard = self.claim(&JobRecord {
            state: State::Running,
            ..JobRecord::new(kind, &Subject::Room(room.clone()), self.clock.now())
        })?;
        // Nobody need wait for it with what is done once for all rooms: the job that it is a part of does that.
        guard.live.reached_cleanup.store(true, Ordering::SeqCst);
        Ok(Reserved(Some(guard)))
    }
}

impl JobRegistry {
    /// As a job that nobody sees: it stands in no ledger, is in no job's way, and is interrupted with the others when the
    /// process stops. Let it go by [`JobGuard::forget`].
    ///
    /// # Errors
    /// [`Error::RoomBusy`] while another of this name is at work.
    pub fn unseen(self: &Arc<Self>, name: &str) -> Result<JobGuard, Error> {
        let guard = self.claim(&JobRecord {
            state: State::Running,
            ..JobRecord::new(name, &Subject::Rooms(name.to_owned()), self.clock.now())
        })?;
        guard.live.reached_cleanup.store(true, Ordering::SeqCst);
        Ok(guard)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(guard) = self.0.take() {
            guard.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::jobs::ledger::Ledger;
    use crate::time::{ManualClock, Millis};

    #[test]
    fn a_room_that_is_reserved_is_busy_until_it_is_let_go_and_no_record_tells_of_it() {
        let dir = tempfile::tempdir().expect("directory");
        let ledger = Ledger::open(&dir.path().join("l")).expect("opens");
        let clock = Arc::new(ManualClock::at(Millis(5)));
        let register = Arc::new(JobRegistry::new(ledger, clock));
        let room = RoomId::from("!a:b");
        let subject = Subject::Room(room.clone());
        let reserved = register.reserve("k", &room).expect("free");
        assert!(register.enqueue("k", &subject, Value::Null).is_err());
        assert!(register.reserve("k", &room).is_err());
        drop(reserved);
        let guard = register.enqueue("k", &subject, Value::Null).expect("free");
        assert!(register.reserve("k", &room).is_err());
        let first = register.reserve("k", &"!c:d".into()).expect("free");
        // What is done once for all rooms is not left to it.
        assert!(!register.another_job_cleans_up(guard.id()));
        drop(first);
        guard.end(None);
        assert_eq!(register.list().expect("read").len(), 1);
    }
}
