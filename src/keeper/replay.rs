//! After a backup was restored: what jobs removed since it was made is in the database again, and goes again, by the receipts
//! beside it.
//!
//! Each receipt of a job that ended well is carried out again in their order, to the point that was its point then. What
//! has been decided since counts: a hold, a policy that keeps more by now, a restoration. Doing it twice removes nothing
//! more, so that it can be begun anew wherever it was interrupted.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};

use super::deletion::{DELETE_ROOM, PURGE_ROOM, SHUTDOWN_AND_PURGE_ROOM};
use super::purge_history::PURGE_HISTORY;
use super::receipts::recorded_receipts;
use super::retention::RETENTION_PURGE;
use super::retention_room::RetentionRun;
use super::room_set_part::{DELETE_IN_SET, PURGE_IN_SET};
use super::{Keeper, PurgeOptions, Viewer};
use crate::config::Config;
use crate::deletion::{DeletionScope, Request};
use crate::error::Error;
use crate::ids::{JobId, RoomId};
use crate::jobs::ledger::{State, Subject};
use crate::point::{Point, PurgePoint};
use crate::receipt::{Draft, Entry};
use crate::store::db::Db;
use crate::store::removed;
use crate::time::Millis;

/// Who asks for what is done again: its receipts are none to be carried out.
const WHO: &str = "replay";

/// Receipts that are read at once.
const PAGE: usize = 500;

/// From when on it is to be done again: what was before is in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// A checkpoint of so many receipts.
    Receipts(u64),
    /// A moment.
    Time(Millis),
}

/// One job that is to be done again.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ReplayStep {
    /// The number of its receipt.
    pub receipt: u64,
    /// The job of then.
    pub job: String,
    /// When it ended.
    pub at_ms: Millis,
    /// What it did.
    pub what: String,
    /// Its room.
    pub room: RoomId,
    /// Events that would go, as the database is now; of a deletion nothing is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<i64>,
    /// Why it is not done again; nothing where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    #[serde(skip)]
    act: Option<Act>,
}

#[derive(Clone, Debug)]
enum Act {
    Purge {
        point: Point,
        options: PurgeOptions,
        /// Of a retention run: what it took.
        run: Option<RetentionRun>,
    },
    Delete(Request, DeletionScope),
}

/// The steps that the receipts of `page` tell of.
fn steps(
    since: Since,
    mut page: impl FnMut(u64) -> Result<Vec<Entry>, Error>,
) -> Result<Vec<ReplayStep>, Error> {
    let (mut steps, mut restored) = (Vec::new(), BTreeSet::new());
    let mut from = match since {
        Since::Receipts(size) => size,
        Since::Time(_) => 0,
    };
    loop {
        let entries = page(from)?;
        let Some(last) = entries.last() else { break };
        from = last.seq + 1;
        for entry in &entries {
            let Some(line) = &entry.line else {
                log::warn!(
                    "receipt {} was forgotten: what it said is not done again",
                    entry.seq
                );
                continue;
            };
            let said: Value = serde_json::from_str(line).unwrap_or_default();
            let at = Millis(said["at"].as_i64().unwrap_or(0));
            if matches!(since, Since::Time(time) if at < time) || said["who"] == WHO {
                continue;
            }
            if said["what"] == "restore" {
                let rooms = said["subject"]["rooms"].as_array().into_iter().flatten();
                let job = said["ref"].as_str().unwrap_or_default();
                restored.extend(
                    rooms.filter_map(|room| Some((job.to_owned(), room.as_str()?.to_owned()))),
                );
            }
            steps.extend(step(entry.seq, at, &said));
        }
    }
    for step in &mut steps {
        if restored.contains(&(step.job.clone(), step.room.as_str().to_owned())) {
            step.left_out =
                Some("it was taken back: `restore` brought back what it removed".into());
        }
    }
    Ok(steps)
}

/// What a receipt says that can be done again.
fn step(receipt: u64, at_ms: Millis, said: &Value) -> Option<ReplayStep> {
    let what = said["what"].as_str()?;
    let room = RoomId::new(said["subject"]["room_id"].as_str()?);
    let asked = &said["asked"];
    let flag = |name: &str| asked[name] == true;
    let act = if [PURGE_HISTORY.name, RETENTION_PURGE.name, PURGE_IN_SET.name].contains(&what) {
        let point: Point = serde_json::from_value(said["point"].clone()).ok()?;
        let options = PurgeOptions {
            delete_local_events: flag("delete_local_events"),
            keep_received_after: asked["keep_received_after"].as_i64().map(Millis),
            strict: false,
            ..PurgeOptions::default()
        };
        let run = (what == RETENTION_PURGE.name).then(|| RetentionRun {
            range: serde_json::from_value(said["policy"].clone()).unwrap_or_default(),
            scheduled: said["who"] == crate::jobs::receipts::SCHEDULED,
            plan: None,
        });
        Act::Purge {
            point,
            options,
            run,
        }
    } else if [
        SHUTDOWN_AND_PURGE_ROOM.name,
        DELETE_ROOM.name,
        PURGE_ROOM.name,
        DELETE_IN_SET.name,
    ]
    .contains(&what)
    {
        let request = Request {
            block: flag("block"),
            purge: asked["purge"] != false,
            force_purge: flag("force_purge"),
            ..Request::default()
        };
        let scope = match what == PURGE_ROOM.name {
            true => DeletionScope::Rows,
            false => DeletionScope::Whole,
        };
        Act::Delete(request, scope)
    } else {
        return None;
    };
    let outcome = said["outcome"].as_str().unwrap_or_default();
    let left_out = (outcome != "complete")
        .then(|| format!("it did not end well ({outcome}): ask again for what is to go"));
    Some(ReplayStep {
        receipt,
        job: said["ref"].as_str().unwrap_or_default().to_owned(),
        at_ms,
        what: what.to_owned(),
        room,
        events: None,
        left_out,
        act: Some(act),
    })
}

/// What is left of a purge by the policies of now, as it is asked for.
fn judged(
    db: &Db,
    config: &Config,
    step: &ReplayStep,
    point: Point,
    options: PurgeOptions,
    run: Option<RetentionRun>,
) -> Result<Option<(PurgePoint, PurgeOptions)>, Error> {
    let mut request = options.request(point, None);
    if let Some(run) = run {
        let now = config.clock.now();
        match run.recheck(db, config, &step.room, &request, now)? {
            Some(judged) => request = judged,
            None => return Ok(None),
        }
    }
    let options = PurgeOptions {
        keep_received_after: request.keep_received_after,
        ..options
    };
    Ok(Some((
        PurgePoint::BeforeToken(request.point.to_string()),
        options,
    )))
}

const KEPT_BY_POLICY: &str = "by the policies of now nothing of it goes";

/// What a replay would do. Reads only; nobody may have the ledger meanwhile.
///
/// # Errors
/// [`Error::LedgerLocked`] while a roomkeeper is at work; those of the ledger and of the database.
pub fn plan_replay(config: &Config, since: Since) -> Result<Vec<ReplayStep>, Error> {
    let reader = recorded_receipts(config)?;
    let reader = reader.ok_or_else(|| Error::LedgerLocked(config.ledger.clone()))?;
    let mut steps = steps(since, |from| reader.page(from, PAGE))?;
    let viewer = Viewer::open(config.clone())?;
    for step in steps.iter_mut().filter(|step| step.left_out.is_none()) {
        match viewer.plan_step(step) {
            Ok(events) => step.events = events,
            Err(e) if e.is_interrupt() => return Err(e),
            Err(e) => step.left_out = Some(e.to_string()),
        }
    }
    Ok(steps)
}

impl Viewer {
    /// Counts the events of a purge.
    fn plan_step(&self, step: &ReplayStep) -> Result<Option<i64>, Error> {
        match &step.act {
            Some(Act::Purge {
                point,
                options,
                run,
            }) => {
                let judged = judged(&self.db, &self.config, step, *point, *options, *run)?;
                let Some((point, options)) = judged else {
                    return Err(Error::Refused(KEPT_BY_POLICY.into()));
                };
                self.plan_purge(&step.room, &point, options)
                    .map(|plan| Some(plan.events_deleted))
            }
            Some(Act::Delete(request, DeletionScope::Whole)) => {
                self.plan_deletion(&step.room, request).map(|_| None)
            }
            Some(Act::Delete(_, DeletionScope::Rows)) | None => Ok(None),
        }
    }
}

impl Keeper {
    /// What is to be done again, in the order in which it is: each with [`Keeper::replay_step`], when the one before has
    /// ended. Takes up before what an interrupted replay has left, and answers the ids of these jobs: they come first.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn replay(&self, since: Since) -> Result<(Vec<JobId>, Vec<ReplayStep>), Error> {
        let ledger = self.shared.register.ledger();
        let steps = steps(since, |from| ledger.receipts(from, PAGE))?;
        let begun = self.take_up(|state| state == State::Queued)?;
        Ok((begun, steps))
    }

    /// Starts one job again; none where its room is gone, or by the policies of now nothing goes.
    ///
    /// # Errors
    /// [`Error::Held`] where a hold lies on the room by now; as [`Keeper::purge_history`] and
    /// [`Keeper::shutdown_and_purge_room`].
    pub fn replay_step(&self, step: &ReplayStep) -> Result<Option<JobId>, Error> {
        let keeper = self.on_behalf_of(WHO);
        let shared = &self.shared;
        match &step.act {
            Some(Act::Purge {
                point,
                options,
                run,
            }) => {
                let judged = shared
                    .with_reader(|db| judged(db, &shared.config, step, *point, *options, *run))?;
                let Some((point, options)) = judged else {
                    return Ok(None);
                };
                keeper.purge_history(&step.room, point, options).map(Some)
            }
            Some(Act::Delete(request, DeletionScope::Whole)) => {
                let request = request.clone();
                keeper
                    .shutdown_and_purge_room(&step.room, request)
                    .map(Some)
            }
            Some(Act::Delete(request, DeletionScope::Rows)) => {
                shared.refuse_held(&step.room, crate::job::Removes::Room)?;
                if !shared.with_reader(|db| removed::room_stands(db, &step.room))? {
                    return Ok(None);
                }
                let deletion = keeper.deletion(request.clone(), DeletionScope::Rows);
                let subject = Subject::Room(step.room.clone());
                keeper.start(&PURGE_ROOM, &subject, deletion).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Leaves a receipt of a replay that has come to its end: how many jobs were done again, and how many were not.
    pub fn note_replayed(&self, since: Since, done: usize, left_out: usize) {
        let config = &self.shared.config;
        let since = match since {
            Since::Receipts(size) => json!({ "receipts": size }),
            Since::Time(time) => json!({ "at": time }),
        };
        let draft = Draft::new("replay", WHO, config.clock.now())
            .say("who", WHO)
            .say("subject", json!({"server": {}}))
            .say("asked", json!({ "since": since }))
            .say("after", json!({ "jobs": done, "left_out": left_out }))
            .say("outcome", "complete");
        super::receipts::note(self.shared.register.ledger(), &draft);
    }
}
