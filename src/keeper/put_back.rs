//! Jobs belong to a database, not to its path (S-30): when an older one was put in its place, nothing goes on by itself.

use serde_json::json;

use crate::error::Error;
use crate::jobs::ledger::Ledger;
use crate::plural::count_of;
use crate::purge;
use crate::receipt::Draft;
use crate::store::db::Db;
use crate::store::removed;
use crate::time::Millis;

/// Looks whether an older database was put in the place of the one that the jobs have worked on. If so, every job that has
/// not ended waits for a person, and what was decided for the other database is decided anew.
pub(super) fn hold_jobs_of_another_database(
    db: &Db,
    ledger: &Ledger,
    now: Millis,
) -> Result<(), Error> {
    if let Some(sign) = sign_of_an_older_one(db, ledger)? {
        hold_jobs(
            ledger,
            &format!("an older database was put back: {sign}"),
            now,
        )?;
    }
    Ok(())
}

/// Has every job that has not ended wait for a person, and says so.
pub(super) fn hold_jobs(ledger: &Ledger, why: &str, now: Millis) -> Result<(), Error> {
    let jobs = ledger.hold_unended(why, &purge::group_of_step)?;
    let waits = match jobs {
        0 => String::new(),
        jobs => format!(
            " {}: `roomkeeper jobs --resume` goes on in this database, `roomkeeper jobs --cancel ID` ends one.",
            count_of(jobs as u64, "job waits", "jobs wait")
        ),
    };
    log::warn!(
        "{why}. What jobs removed since it was made is in it again: stop roomkeeper, and `roomkeeper replay --since WHEN` (when \
         the backup was made) removes it again; with --dry-run it says what.{waits}"
    );
    let draft = Draft::new("put_back", "put_back", now)
        .say("who", "roomkeeper")
        .say("subject", json!({"server": {}}))
        .say("reason", why)
        .say("outcome", "complete");
    super::receipts::note(ledger, &draft);
    Ok(())
}

/// What shows that the database is older than the ledger's last word of it.
fn sign_of_an_older_one(db: &Db, ledger: &Ledger) -> Result<Option<String>, Error> {
    let evidence = ledger.evidence()?;
    for (event, stream_ordering) in &evidence.events {
        if removed::event_stands(db, event, *stream_ordering)? {
            return Ok(Some(format!(
                "event {event}, which a job has deleted, stands in it under its old number {stream_ordering}"
            )));
        }
    }
    for room in &evidence.rooms {
        if removed::room_stands(db, room)? {
            return Ok(Some(format!(
                "room {room}, which a job has deleted, is in it"
            )));
        }
    }
    let Some(seen) = evidence.greatest else {
        return Ok(None);
    };
    let greatest = removed::greatest_stream_ordering(db)?;
    // A database without events has none that is greater, and was noted so.
    Ok((greatest.unwrap_or(i64::MIN) < seen).then(|| {
        let now = greatest.map_or_else(|| "none".to_owned(), |now| now.to_string());
        format!("the number of its newest event is {now}, and jobs have seen {seen}")
    }))
}
