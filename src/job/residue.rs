//! What a job's receipt says of what is left of that which went.

use std::collections::BTreeSet;

use serde_json::json;

use super::{JobContext, Progress};
use crate::error::{Chain, Error};
use crate::ids::EventId;
use crate::store::removed;
use crate::store::residue::{self, Gone};

/// Most events that are looked for.
const MOST: usize = 20;

impl JobContext<'_> {
    /// Looks at the end of a job whether an index still finds some of what went, and notes what was found for its receipt.
    /// Of one of many small jobs it is noted only what went: `roomkeeper receipts residue` looks later. What cannot be
    /// looked for is only not told.
    pub(crate) fn look_for_residue(&self, progress: &mut Progress) {
        if let Err(e) = self.note_residue(progress) {
            log::warn!("room {}: {}", self.room, Chain(&e));
        }
    }

    fn note_residue(&self, progress: &mut Progress) -> Result<(), Error> {
        let is_whole = progress
            .rows_removed
            .get("rooms")
            .is_some_and(|rows| *rows > 0)
            && !removed::room_stands(&self.db, self.room)?;
        if progress.events_deleted == 0 && !is_whole {
            return Ok(());
        }
        let mut events: BTreeSet<EventId> = self.live.remembered().into_iter().collect();
        // What an earlier process did.
        events.extend(self.ledger.noted_removed(&self.live.id)?);
        let events: Vec<EventId> = events.into_iter().take(MOST).collect();
        let gone = Gone {
            room: self.room,
            is_whole,
            events: &events,
        };
        let found = match self.is_one_of_many {
            true => residue::Residue::default(),
            false => residue::by_index(&self.db, gone)?,
        };
        for left in found.surprises() {
            log::warn!(
                "room {}: {} of {}.{} still name what went: `roomkeeper check`",
                self.room,
                crate::plural::count(left.count, "row"),
                left.table,
                left.column
            );
        }
        let told = json!({
            "by": if self.is_one_of_many { "nothing" } else { "index" },
            "room": is_whole,
            "events": events.len(),
            "ids": events,
            "columns_scanned": found.columns_scanned,
            "found": found.found,
        });
        progress.more.insert("residue".into(), told);
        Ok(())
    }
}
