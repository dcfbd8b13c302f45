//! Sweeping the state groups of the whole server: what no event that is held has goes, room by room.
//!
//! The indexes are looked at first; then the tables say what is of no use, and before a group goes the indexes must say so
//! too. A sweep has one job; a room that another job has, or that is held, is left alone. One that was interrupted begins
//! anew and finds less to do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kind::{self, JobExtent, JobKind, Runner, RunsOn, Work};
use super::many_rooms::{RoomError, RoomsSummary, with_summary};
use super::{Keeper, Shared, Viewer};
use crate::error::{Chain, Error};
use crate::ids::{JobId, RoomId};
use crate::job::{
    HomeserverWatch, JobContext, Phase, Progress, Removes, SharedArchive, clean_up, held, overwrite,
};
use crate::jobs::ledger::{JobRecord, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::purge::{self, RoomSweep};
use crate::store::db::{Db, Engine};
use crate::store::event_rows::{RowCounts, add_all};
use crate::store::index_test::IndexesBy;
use crate::store::reclaim;
use crate::store::state_groups::{Unreferenced, verify_indexes};

/// A sweep.
pub(super) static STATE_SWEEP: JobKind = JobKind {
    measure,
    words,
    ..JobKind::new("state_sweep", RunsOn::ServerThread, |_| {
        Some(Box::new(StateSweep {}))
    })
};

/// There is nothing to say of one before it begins.
#[derive(Serialize)]
struct StateSweep {}

impl Work for StateSweep {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.shared.run_state_sweep(guard);
    }
}

fn measure(progress: &Progress) -> JobExtent {
    let summary: StateSweepSummary = kind::summary(progress);
    JobExtent {
        done: summary.groups_done,
        planned: summary.groups_planned,
        of: "state groups",
    }
}

fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let summary: StateSweepSummary = kind::summary(progress);
    let mut lines = vec![
        format!("the sweep of state groups is {}", kind::state_words(job)),
        format!(
            "{} of {} had no event any more; {} swept, {} left alone, {} failed",
            summary.groups_planned,
            count(summary.groups_looked_at, "state group"),
            count(summary.rooms_done, "room"),
            summary.rooms_skipped,
            summary.rooms_failed,
        ),
    ];
    lines.extend(kind::rooms(&summary.skipped, "  left alone"));
    lines.extend(kind::rooms(&summary.errors, "  failed"));
    lines.extend(kind::rows(&progress.rows_removed));
    lines.push(format!(
        "{} freed, {} left to the homeserver to delete; the longest transaction took {} ms",
        count(progress.state_groups_freed, "state group"),
        progress.state_groups_marked,
        progress.longest_transaction_ms,
    ));
    lines.extend(kind::reclaimable(progress));
    lines
}

/// Groups whose rooms are held in memory at once.
const WINDOW: u64 = 1_000_000;

/// Rooms of a plan that are told one by one.
const ROOMS_TOLD: usize = 100;

/// What a sweep has done, beside what every job tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateSweepSummary {
    /// State groups that there were.
    pub groups_looked_at: i64,
    /// Of these, groups that no event which is held has.
    pub groups_planned: i64,
    /// Of these, groups dealt with: they are gone, or marked, or had to stay.
    pub groups_done: i64,
    /// Rooms that have such groups, as far as they were come to.
    pub rooms_planned: i64,
    /// Of these, rooms that were swept.
    pub rooms_done: i64,
    /// Rooms left alone: another job has them, or a hold does.
    pub rooms_skipped: i64,
    /// Rooms that could not be swept.
    pub rooms_failed: i64,
    /// Which were left alone, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<RoomError>,
    /// Which failed, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<RoomError>,
}

impl RoomsSummary for StateSweepSummary {
    const COULD_NOT: &'static str = "could not be swept";

    fn failed(&self) -> (i64, i64, &[RoomError]) {
        (self.rooms_failed, self.rooms_planned, &self.errors)
    }

    fn complete(&self) -> String {
        format!(
            "{} of {} of no use, {} swept",
            self.groups_planned,
            count(self.groups_looked_at, "state group"),
            count(self.rooms_done, "room")
        )
    }
}

/// What a sweep would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StateSweepPlan {
    /// State groups that there are.
    pub groups_looked_at: i64,
    /// Of these, groups that no event which is held has.
    pub groups_unreferenced: i64,
    /// Of these, groups that would go.
    pub state_groups: i64,
    /// Of these, groups that would stay: without them others would need more rows, an event in flight uses them, or nobody
    /// can say what they hold.
    pub state_groups_kept: i64,
    /// Rows that would be removed, by table.
    pub rows_removed: RowCounts,
    /// Whether that is exact to the row.
    pub is_exact: bool,
    /// Rooms that would be swept.
    pub rooms_swept: i64,
    /// The largest of them, no more than a hundred.
    pub rooms: Vec<RoomSweep>,
    /// Rooms that would be left alone, and why.
    pub left_alone: Vec<RoomError>,
    /// How the indexes were looked at.
    pub indexes_by: IndexesBy,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What a person should know of how the indexes were looked at.
pub(super) fn note_of(indexes: IndexesBy) -> Option<&'static str> {
    match indexes {
        IndexesBy::IntegrityCheck | IndexesBy::Amcheck => None,
        IndexesBy::Comparison => Some(
            "the server has no extension amcheck, or this role may not use it: the indexes were counted against their tables \
             instead, which shows rows that they have lost (CREATE EXTENSION amcheck, as an administrator, shows more)",
        ),
    }
}

impl Keeper {
    /// Starts a sweep: every state group of the server that no event which is held has goes. Returns at once; the work is a
    /// job. Beside a homeserver the groups are marked, and it deletes them ten minutes later.
    ///
    /// # Errors
    /// [`Error::RoomBusy`] while another job has the whole server; [`Error::QueueFull`], [`Error::Stopping`].
    pub fn sweep_state(&self) -> Result<JobId, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        self.start(&STATE_SWEEP, &Subject::Server {}, StateSweep {})
    }

    /// What a sweep would do now. Reads only, and takes as long as the tables of state groups are large.
    ///
    /// # Errors
    /// [`Error::Refused`] for a damaged index; those of the database.
    pub fn plan_state_sweep(&self) -> Result<StateSweepPlan, Error> {
        self.viewer()?.plan_state_sweep()
    }
}

impl Viewer {
    /// As [`Keeper::plan_state_sweep`].
    ///
    /// # Errors
    /// As there.
    pub fn plan_state_sweep(&self) -> Result<StateSweepPlan, Error> {
        let db = &self.db;
        let indexes_by = verify_indexes(db, &mut |_| ())?;
        let unreferenced = Unreferenced::read(db)?;
        let mut plan = StateSweepPlan {
            groups_looked_at: unreferenced.looked_at,
            groups_unreferenced: i64::try_from(unreferenced.len()).unwrap_or(i64::MAX),
            state_groups: 0,
            state_groups_kept: 0,
            rows_removed: RowCounts::new(),
            is_exact: true,
            rooms_swept: 0,
            rooms: Vec::new(),
            left_alone: Vec::new(),
            indexes_by,
            notes: note_of(indexes_by).map(str::to_owned).into_iter().collect(),
        };
        let holds = self.holds();
        // A room may come in several windows.
        let mut rooms: BTreeMap<RoomId, RoomSweep> = BTreeMap::new();
        for window in unreferenced.windows(WINDOW) {
            for (room, groups) in unreferenced.of_window(db, window)? {
                if let Err(e) = held::refuse(db, &room, &holds, Removes::History) {
                    match e {
                        Error::Held(_) => {
                            let why = (e.to_string(), e.code());
                            RoomError::tell(&mut plan.left_alone, &room, why);
                        }
                        e => return Err(e),
                    }
                    continue;
                }
                let sweep = purge::plan_sweep(db, &room, &unreferenced, &groups)?;
                plan.state_groups += sweep.state_groups;
                plan.state_groups_kept += sweep.state_groups_kept;
                plan.is_exact &= sweep.is_exact;
                add_all(&mut plan.rows_removed, &sweep.rows_removed);
                for note in &sweep.notes {
                    if plan.notes.len() < ROOMS_TOLD {
                        plan.notes.push(format!("room {room}: {note}"));
                    }
                }
                match rooms.get_mut(&room) {
                    Some(known) => {
                        plan.is_exact = false;
                        known.is_exact = false;
                        known.state_groups += sweep.state_groups;
                        known.state_groups_kept += sweep.state_groups_kept;
                        add_all(&mut known.rows_removed, &sweep.rows_removed);
                    }
                    None => {
                        plan.rooms_swept += 1;
                        rooms.insert(room, sweep);
                    }
                }
                // Those that are told are the largest; the others are sums by now.
                if rooms.len() > 2 * ROOMS_TOLD {
                    keep_largest(&mut rooms);
                }
            }
        }
        keep_largest(&mut rooms);
        plan.rooms = rooms.into_values().collect();
        plan.rooms.sort_by_key(|room| -size(room));
        Ok(plan)
    }
}

fn size(room: &RoomSweep) -> i64 {
    room.rows_removed.values().sum()
}

fn keep_largest(rooms: &mut BTreeMap<RoomId, RoomSweep>) {
    let mut sizes: Vec<(i64, RoomId)> = rooms
        .values()
        .map(|room| (-size(room), room.room_id.clone()))
        .collect();
    sizes.sort();
    for (_, room) in sizes.iter().skip(ROOMS_TOLD) {
        rooms.remove(room);
    }
}

/// How far a sweep is.
struct Sweep {
    progress: Progress,
    summary: StateSweepSummary,
}

impl Sweep {
    /// Shows how far it is, the sums among it.
    fn publish(&mut self, guard: &JobGuard) {
        self.progress = with_summary(&self.progress, &self.summary);
        let told = serde_json::to_value(&self.progress).unwrap_or_default();
        guard.live().set_progress(told);
    }
}

/// The connection that one room hands on to the next.
type Kept = Option<(Db, HomeserverWatch)>;

impl Shared {
    /// Carries a sweep out, and says in the ledger how it ended.
    pub(super) fn run_state_sweep(&self, guard: JobGuard) {
        self.run_many(guard, |guard| {
            let goes_on = || self.check_goes_on(guard.live());
            let swept = self.sweep_server(guard, &|| goes_on().is_err());
            guard.live().set_interrupt(None);
            swept.map_err(|e| match e {
                e if e.is_interrupt() || matches!(e, Error::Stopping) => {
                    goes_on().err().unwrap_or(e)
                }
                e if e.is_damage() => reclaim::damaged(&Chain(&e).to_string()),
                e => self.tell_full_disk(e, None),
            })
        });
    }

    fn sweep_server(
        &self,
        guard: &JobGuard,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<StateSweepSummary, Error> {
        let mut ctx = self.job_context(guard, is_stopping)?;
        let handle = ctx.db.interrupt_handle();
        let live = guard.live();
        live.set_interrupt(Some(Box::new(move || handle.interrupt())));
        let mut sweep = Sweep {
            // What an earlier process did of it stays told.
            progress: serde_json::from_value(live.progress()).unwrap_or_default(),
            summary: StateSweepSummary::default(),
        };
        let unreferenced = look(&mut ctx, guard, &mut sweep)?;
        if !unreferenced.is_empty() && ctx.db.engine() == Engine::Sqlite {
            let how = overwrite::choose_secure_delete(&ctx, i64::MAX)?;
            overwrite::add_pending(ctx.ledger, how, false)?;
        }
        let archive = ctx.archive.take();
        let mut kept: Kept = Some((ctx.db, ctx.watch));
        for window in unreferenced.windows(WINDOW) {
            let rooms = match &kept {
                Some((db, _)) => unreferenced.of_window(db, window)?,
                None => break,
            };
            sweep.summary.rooms_planned += i64::try_from(rooms.len()).unwrap_or(i64::MAX);
            for (room, groups) in &rooms {
                self.check_goes_on(live)?;
                let swept = self.sweep_one(
                    &mut kept,
                    guard,
                    is_stopping,
                    (room, groups, archive.clone()),
                    (&unreferenced, &mut sweep.progress),
                );
                sweep.count(guard, room, swept)?;
                sweep.summary.groups_done += i64::try_from(groups.len()).unwrap_or(i64::MAX);
                sweep.publish(guard);
            }
        }
        let (db, watch) = kept.ok_or_else(|| Error::Bug("a connection was lost".into()))?;
        let mut ctx = self.job_context_on(db, watch, guard, is_stopping)?;
        ctx.archive = archive;
        clean_up(&mut ctx, &mut sweep.progress)?;
        sweep.publish(guard);
        Ok(sweep.summary)
    }

    /// One room's turn.
    fn sweep_one(
        &self,
        kept: &mut Kept,
        guard: &JobGuard,
        is_stopping: &(dyn Fn() -> bool + Sync),
        (room, groups, archive): (&RoomId, &[i64], SharedArchive),
        (unreferenced, progress): (&Unreferenced, &mut Progress),
    ) -> Result<(), Error> {
        let _reserved = self.register.reserve(STATE_SWEEP.name, room)?;
        let (db, watch) = kept
            .take()
            .ok_or_else(|| Error::Bug("a connection was lost".into()))?;
        let mut ctx = self.job_context_on(db, watch, guard, is_stopping)?;
        ctx.room = room;
        // One file for all of them.
        ctx.archive = archive;
        let swept = match self.refuse_own_task(&ctx.db, room) {
            Ok(()) => purge::sweep_room(&mut ctx, progress, unreferenced, groups),
            Err(e) => Err(e),
        };
        *kept = Some((ctx.db, ctx.watch));
        swept
    }
}

impl Sweep {
    /// Counts what became of a room. What is no affair of the room alone ends the sweep.
    fn count(
        &mut self,
        guard: &JobGuard,
        room: &RoomId,
        swept: Result<(), Error>,
    ) -> Result<(), Error> {
        let summary = &mut self.summary;
        match swept {
            Ok(()) => summary.rooms_done += 1,
            Err(e @ (Error::RoomBusy { .. } | Error::Held(_) | Error::LeftTask(_))) => {
                let why = match &e {
                    Error::RoomBusy { .. } => {
                        "another job has it, or the homeserver itself is at work on it".to_owned()
                    }
                    e => e.to_string(),
                };
                log::warn!("{guard}: room {room} is left alone: {why}");
                summary.rooms_skipped += 1;
                RoomError::tell(&mut summary.skipped, room, (why, e.code()));
            }
            Err(e @ Error::Bug(_)) => {
                log::error!("{guard}: room {room}: {}", Chain(&e));
                summary.rooms_failed += 1;
                RoomError::tell(&mut summary.errors, room, (e.status_text(), e.code()));
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// Looks at the indexes, then at the tables.
fn look(
    ctx: &mut JobContext<'_>,
    guard: &JobGuard,
    sweep: &mut Sweep,
) -> Result<Unreferenced, Error> {
    sweep.progress.notes.clear();
    sweep.progress.phase = Phase::Counting;
    sweep.publish(guard);
    let indexes = verify_indexes(&ctx.db, &mut |what| {
        sweep.progress.table = Some(what.to_owned());
        sweep.publish(guard);
    })?;
    sweep.progress.table = None;
    let note = note_of(indexes).map(str::to_owned);
    sweep.progress.notes.extend(note);
    ctx.check_cancelled()?;
    let unreferenced = Unreferenced::read(&ctx.db)?;
    sweep.summary.groups_looked_at = unreferenced.looked_at;
    sweep.summary.groups_planned = i64::try_from(unreferenced.len()).unwrap_or(i64::MAX);
    sweep.progress.phase = Phase::StateGroups;
    sweep.publish(guard);
    log::info!(
        "{guard}: {} of {} of no use",
        sweep.summary.groups_planned,
        count(sweep.summary.groups_looked_at, "state group")
    );
    Ok(unreferenced)
}
