//! A look through the whole database for what is left of that which a job removed.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};

use super::Viewer;
use super::archives::file_of;
use super::receipts::note_whoever_has_the_ledger;
use crate::archive::{Found, Identity, Reader, Record};
use crate::config::Config;
use crate::error::Error;
use crate::ids::{EventId, JobId, RoomId};
use crate::plural::count;
use crate::receipt::{Draft, Entry};
use crate::store::removed;
use crate::store::residue::{self, Gone, Residue};

/// Most events that are looked for at once, in memory.
const MOST: usize = 200_000;

/// Of these, how many its receipt names.
const NAMED: usize = 20;

/// What a look through the database found.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ResidueReport {
    /// The job.
    pub job: String,
    /// Its room.
    pub room: RoomId,
    /// Whether the room itself was looked for.
    pub is_whole: bool,
    /// How many events were looked for.
    pub events: usize,
    /// Whether these were all of them that the job removed, from its archive; else some, from its receipt.
    pub from_archive: bool,
    /// What was found.
    #[serde(flatten)]
    pub residue: Residue,
}

/// Looks through every text of every table for what a job removed, whose receipts these are: for all of its events where its
/// archive can be read, else for those that its receipt names. Leaves a receipt. `on_table` hears of every table, and says
/// whether to go on.
///
/// # Errors
/// [`Error::Refused`] for a job that removed nothing that is known any more, or whose room was restored; those of the
/// database, and of an archive that is encrypted to other keys.
pub fn residue(
    config: &Config,
    job: &str,
    receipts: &[Entry],
    keys: &[Identity],
    on_table: &mut dyn FnMut(&str) -> bool,
) -> Result<ResidueReport, Error> {
    let said = receipts.iter().filter_map(|entry| entry.line.as_deref());
    let said: Vec<Value> = said
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    if said.iter().any(|said| said["what"] == "restore") {
        return Err(Error::Refused(format!(
            "what job {job} removed was restored: it stands in the database again"
        )));
    }
    let of_job = said
        .iter()
        .find(|said| said["subject"]["room_id"].is_string() && said["residue"].is_object());
    let (of_room, room) = match of_job {
        Some(said) => (
            said,
            said["subject"]["room_id"].as_str().unwrap_or_default(),
        ),
        None => {
            return Err(Error::Refused(format!(
                "no receipt of {job} says what of one room it removed: of a run, or a set, each room has a job and a receipt \
                 of its own (`roomkeeper receipts`)"
            )));
        }
    };
    let room = RoomId::new(room);
    let viewer = Viewer::open(config.clone())?;
    let in_archive = events_in_archive(config, &JobId::from(job), keys)?;
    let from_archive = in_archive.is_some();
    let named = || {
        let ids = of_room["residue"]["ids"].as_array();
        let ids = ids.into_iter().flatten().filter_map(Value::as_str);
        ids.map(EventId::new).collect()
    };
    let events: Vec<EventId> = in_archive.unwrap_or_else(named);
    let is_whole = of_room["residue"]["room"] == true && !removed::room_stands(&viewer.db, &room)?;
    if events.is_empty() && !is_whole {
        return Err(Error::Refused(format!(
            "nothing that job {job} removed is known any more, or its room is there again"
        )));
    }
    let gone = Gone {
        room: &room,
        is_whole,
        events: &events,
    };
    let found = residue::scan(&viewer.db, gone, on_table)?;
    let draft = Draft::new("residue", job, config.clock.now())
        .say("who", config.admin_user.as_str())
        .say("subject", json!({ "room_id": room, "job": job }))
        .say(
            "residue",
            json!({
                "by": "scan",
                "room": is_whole,
                "events": events.len(),
                "ids": &events[..events.len().min(NAMED)],
                "columns_scanned": found.columns_scanned,
                "found": found.found,
            }),
        )
        .say("outcome", "complete");
    note_whoever_has_the_ledger(config, draft);
    Ok(ResidueReport {
        job: job.to_owned(),
        room,
        is_whole,
        events: events.len(),
        from_archive,
        residue: found,
    })
}

/// The events of a job's archive; `None` where there is none, or nobody here can open it.
fn events_in_archive(
    config: &Config,
    job: &JobId,
    keys: &[Identity],
) -> Result<Option<Vec<EventId>>, Error> {
    let file = config.archive.as_ref().map(|archive| file_of(archive, job));
    let Some(Ok(file)) = file else {
        return Ok(None);
    };
    let mut reader = Reader::open(&file)?;
    let mut events = BTreeSet::new();
    for found in reader.frames()? {
        let Found::Whole(frame) = found else { continue };
        if frame.head.is_encrypted && keys.is_empty() {
            return Ok(None);
        }
        let unreadable = |e| Error::Refused(format!("{}: {e}", file.display()));
        let mut records = reader.records(&frame, keys)?;
        let mut place = None;
        while let Some(record) = records.read().map_err(unreadable)? {
            match record {
                Record::Table(table) => {
                    let of_events = records.table(table).filter(|(name, _)| *name == "events");
                    place = of_events
                        .and_then(|(_, columns)| columns.iter().position(|c| c == "event_id"));
                }
                Record::Row(cells) if events.len() < MOST => {
                    if let Some(crate::archive::Cell::Text(id)) = place.and_then(|at| cells.get(at))
                    {
                        events.insert(EventId::new(&**id));
                    }
                }
                Record::Row(_) => {
                    let most = count(MOST as u64, "event");
                    log::info!("{}: {most} of it are looked for", file.display());
                    return Ok(Some(events.into_iter().collect()));
                }
                Record::Chunk => {}
            }
        }
    }
    Ok(Some(events.into_iter().collect()))
}
