//! Sets of rooms: which are meant, and what is to be done with each of them.
//!
//! A set is chosen once, when it is asked for; its rooms stand in the ledger. A room that is another by the time its turn
//! comes is left alone, and a room that fits later is not taken.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::kind::{self, Belongs, JobKind, Runner, RunsOn, Work, parameters};
use super::room_set_run::RoomSetSummary;
use super::rooms::Selected;
use super::{Keeper, Shared, deletion};
use crate::config::Config;
use crate::deletion::Request;
use crate::error::Error;
use crate::ids::{JobId, RoomId, UserId};
use crate::job::{MediaFate, Progress};
use crate::jobs::ledger::{JobRecord, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::point::PurgePoint;
use crate::rooms::{Condition, Selectors, Sort, Summary};
use crate::time::Millis;

/// A job on a set of rooms.
pub(super) static ROOM_SET: JobKind = JobKind {
    belongs: Belongs::HasParts,
    is_plannable: true,
    words,
    ..JobKind::new("room_set", RunsOn::RoomSetThread, parameters::<RoomSet>)
};

impl Work for RoomSet {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.with_workers(guard, |pool, guard| on.shared.run_set(pool, guard, self));
    }
}

fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let summary: RoomSetSummary = kind::summary(progress);
    let mut lines = vec![
        format!(
            "{} of {} is {}",
            job.params["action"].as_str().unwrap_or_default(),
            job.subject,
            kind::state_words(job)
        ),
        format!(
            "{} done of {}; {} left alone, {} failed; {} moved out",
            summary.rooms_done,
            count(summary.rooms_planned, "room"),
            summary.rooms_skipped,
            summary.rooms_failed,
            count(summary.people_moved, "local user"),
        ),
    ];
    lines.extend(kind::rooms(&summary.skipped, "  left alone"));
    lines.extend(kind::rooms(&summary.errors, "  failed"));
    lines.extend(kind::rows(&progress.rows_removed));
    lines.push(kind::events(progress));
    lines.extend(kind::media(progress));
    lines.extend(kind::reclaimable(progress));
    lines
}

/// Most conditions of a set, named rooms apart.
const MOST_CONDITIONS: usize = 1_000;

/// The longest words for a set in a list of jobs, in characters.
const LONGEST_WORDS: usize = 200;

/// Sets of the same words that can be at work or waiting.
const MOST_ALIKE: usize = 64;

/// What is done with every room of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetAction {
    /// Its history is purged, up to a time or an age: an event or a token is of one room.
    PurgeHistory {
        /// Up to when.
        point: PurgePoint,
        /// Whether local users' messages go as well.
        delete_local_events: bool,
        /// What becomes of media that nothing but these messages refers to.
        media: MediaFate,
    },
    /// It is deleted.
    DeleteRoom(Request),
}

/// Rooms, and what is to be done with each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRequest {
    /// Which rooms.
    pub selectors: Selectors,
    /// Whether every room is meant, but for what the selectors except. Saying nothing never means that.
    pub all_rooms: bool,
    /// Of the rooms that are meant no others than these, where it is said: what somebody was shown before.
    pub among: Option<Vec<RoomId>>,
    /// What is done.
    pub action: SetAction,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedSet {
    /// The job; none where no room is meant.
    pub job_id: Option<JobId>,
    /// How many rooms it has.
    pub rooms: i64,
}

/// The same as the ledger keeps it: what is left of the request when the rooms are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct RoomSet {
    #[serde(flatten)]
    pub(super) action: Action,
    /// What must still be so when a room's turn comes.
    pub(super) selectors: Selectors,
    /// How many rooms.
    pub(super) rooms: i64,
    /// When they were chosen, from which ages are counted.
    pub(super) decided_ms: Millis,
    /// The server's own policy that chose them, where one did: then that decides again, and no selectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<String>,
}

/// What is done, with its time fixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub(super) enum Action {
    PurgeHistory {
        before_ts: Millis,
        delete_local_events: bool,
        #[serde(default, skip_serializing_if = "MediaFate::is_stay")]
        media: MediaFate,
    },
    DeleteRoom {
        request: Request,
    },
}

impl Action {
    /// What becomes of media that nothing but the messages refers to which go.
    pub(super) fn media(&self) -> MediaFate {
        match self {
            Self::PurgeHistory { media, .. } => *media,
            Self::DeleteRoom { request } => request.media,
        }
    }

    /// The word for it.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::PurgeHistory { .. } => "purge_history",
            Self::DeleteRoom { .. } => "delete_room",
        }
    }
}

impl SetRequest {
    /// # Errors
    /// [`Error::BadRequest`] for what cannot be meant, or could mean more than was.
    pub(super) fn validate(&self, config: &Config) -> Result<(), Error> {
        let Selectors { only, not } = &self.selectors;
        let refused = |why: &str| Err(Error::bad("M_INVALID_PARAM", why));
        if only.is_empty() && !self.all_rooms {
            return match not.is_empty() {
                true => Err(Error::bad(
                    "M_MISSING_PARAM",
                    "say which rooms: one by its id, some by what they are, or all of them in so many words",
                )),
                false => refused(
                    "what is only said of the rooms that are not meant would mean all others: say that all rooms are meant \
                     but for those, or which rooms are",
                ),
            };
        }
        if !only.is_empty() && self.all_rooms {
            return refused("all rooms are meant, or those of some sort: say one of the two");
        }
        let conditions = only.iter().chain(not);
        let others = conditions.filter(|condition| !matches!(condition, Condition::Room(_)));
        if others.count() > MOST_CONDITIONS {
            return refused(&format!(
                "no more than {MOST_CONDITIONS} conditions, please"
            ));
        }
        match &self.action {
            SetAction::PurgeHistory { point, .. } => match point {
                PurgePoint::BeforeTs(_) => Ok(()),
                PurgePoint::OlderThan(age) if *age < Millis(0) => {
                    refused("an age is not negative: it would purge the future")
                }
                PurgePoint::OlderThan(_) => Ok(()),
                PurgePoint::BeforeEvent(_) | PurgePoint::BeforeToken(_) => refused(
                    "an event and a token are of one room: a set of rooms is purged up to a time or an age",
                ),
            },
            SetAction::DeleteRoom(request) => {
                deletion::refuse_media_alone(request)?;
                deletion::refuse_foreign(request, &config.server_name)
            }
        }
    }

    /// Whether what goes depends on what time it is now.
    pub fn depends_on_time(&self) -> bool {
        self.selectors.depend_on_time()
            || matches!(
                self.action,
                SetAction::PurgeHistory {
                    point: PurgePoint::OlderThan(_),
                    ..
                }
            )
    }

    /// What is done, at a time, on somebody's word.
    pub(super) fn action_at(&self, now: Millis, operator: &UserId) -> Action {
        match &self.action {
            SetAction::PurgeHistory {
                point,
                delete_local_events,
                media,
            } => Action::PurgeHistory {
                before_ts: point.keep_received_from(now).unwrap_or(Millis(i64::MIN)),
                delete_local_events: *delete_local_events,
                media: *media,
            },
            SetAction::DeleteRoom(request) => {
                let mut request = request.clone();
                request.requester.get_or_insert_with(|| operator.clone());
                Action::DeleteRoom { request }
            }
        }
    }

    /// Of the rooms that are meant those that may be taken, the largest first.
    pub(super) fn chosen(&self, mut rooms: Vec<Summary>) -> Vec<Summary> {
        if let Some(among) = &self.among {
            let among: BTreeSet<&RoomId> = among.iter().collect();
            rooms.retain(|room| among.contains(&room.room_id));
        }
        Sort::Bytes.sort(&mut rooms);
        rooms
    }

    /// For a list of jobs: `3 rooms (empty, not public)`.
    fn words(&self, rooms: usize) -> String {
        let rooms = count(rooms as u64, "room");
        let said = match self.selectors.is_everything() {
            true => "all there are".to_owned(),
            false => self.selectors.to_string(),
        };
        let mut words = format!("{rooms} ({said})");
        if let Some((end, _)) = words.char_indices().nth(LONGEST_WORDS) {
            words.truncate(end);
            words.push_str("…)");
        }
        words
    }
}

impl Keeper {
    /// Purges or deletes every room of a set, as one job with a job for each room; returns at once. The rooms are chosen
    /// now and stand in the ledger; where none is meant there is no job.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a request that names no rooms, or a room that is not known; [`Error::Refused`] for what
    /// depends on age while the clock may be ahead; [`Error::PlanDrifted`]; [`Error::QueueFull`], [`Error::Stopping`]. Nothing was started then.
    pub fn start_set(&self, request: &SetRequest) -> Result<StartedSet, Error> {
        let shared = &self.shared;
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        request.validate(&shared.config)?;
        if request.depends_on_time() {
            shared.refuse_clock_ahead()?;
        }
        let now = self.judged_at()?;
        let Selected { rooms, .. } = shared.selected(&request.selectors, now)?;
        let rooms = request.chosen(rooms);
        let action = request.action_at(now, &shared.config.admin_user);
        shared.refuse_media(action.media())?;
        self.refuse_drift(|viewer, plan| {
            let rooms = rooms.iter().map(|room| room.room_id.clone());
            let is_busy = |room: &RoomId| shared.register.is_busy(room);
            viewer.bind_set(&action, rooms, plan.at(), &is_busy)
        })?;
        let count = i64::try_from(rooms.len()).unwrap_or(i64::MAX);
        if rooms.is_empty() {
            return Ok(StartedSet {
                job_id: None,
                rooms: 0,
            });
        }
        let set = RoomSet {
            action,
            selectors: request.selectors.to_look_at_again(),
            rooms: count,
            decided_ms: now,
            policy: None,
        };
        let params = self.params_of(&ROOM_SET, &set)?;
        shared.release_reserve_if_short();
        let guard = shared
            .enqueue_set(self.asked_by(), &request.words(rooms.len()), &params)
            .map_err(|e| shared.tell_full_disk(e, None))?;
        let rooms: Vec<(RoomId, i64)> = rooms
            .into_iter()
            .map(|room| (room.room_id, room.events))
            .collect();
        if let Err(e) = shared.register.ledger().insert_room_set(guard.id(), &rooms) {
            guard.cancel_enqueue();
            return Err(shared.tell_full_disk(e, None));
        }
        let id = guard.id().clone();
        log::info!("{guard} is queued");
        self.submit(guard, Box::new(set))?;
        Ok(StartedSet {
            job_id: Some(id),
            rooms: count,
        })
    }
}

impl Shared {
    /// Two sets can have the same words, and be of other rooms.
    fn enqueue_set(
        &self,
        asked_by: Option<&str>,
        words: &str,
        params: &serde_json::Value,
    ) -> Result<JobGuard, Error> {
        for number in 1..=MOST_ALIKE {
            let subject = Subject::Rooms(match number {
                1 => words.to_owned(),
                number => format!("{words} #{number}"),
            });
            let register = &self.register;
            match register.enqueue_for(asked_by, ROOM_SET.name, &subject, params.clone()) {
                Err(Error::RoomBusy { .. }) => {}
                enqueued => return enqueued,
            }
        }
        Err(Error::QueueFull)
    }
}
