//! Compressing the state groups of rooms: the same states in fewer rows, room by room.
//!
//! The indexes are looked at first. A compression has one job; a room that another job has, or that is held, is left alone. One
//! that was interrupted begins anew and finds less to do.

use serde::{Deserialize, Serialize};

use super::kind::{self, JobExtent, JobKind, Runner, RunsOn, Work};
use super::many_rooms::{RoomError, RoomsSummary, with_summary};
use super::{Keeper, Shared, Viewer};
use crate::error::{Chain, Error};
use crate::ids::{JobId, RoomId};
use crate::job::{
    HomeserverWatch, JobContext, Phase, Progress, Removes, clean_up, held, overwrite,
};
use crate::jobs::ledger::{JobRecord, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::purge;
use crate::rooms::Selectors;
use crate::store::db::{Db, Engine};
use crate::store::index_test::IndexesBy;
use crate::store::reclaim;
use crate::store::state_groups::{Compressed, rooms_with_groups, verify_indexes};

/// A compression.
pub(super) static STATE_COMPRESS: JobKind = JobKind {
    measure,
    words,
    ..JobKind::new(
        "state_compress",
        RunsOn::ServerThread,
        kind::parameters::<CompressRequest>,
    )
};

impl Work for CompressRequest {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.shared.run_state_compress(guard, self);
    }
}

fn measure(progress: &Progress) -> JobExtent {
    let summary: StateCompressSummary = kind::summary(progress);
    JobExtent {
        done: summary.rooms_done,
        planned: summary.rooms_planned,
        of: "rooms",
    }
}

fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let summary: StateCompressSummary = kind::summary(progress);
    let mut lines = vec![
        format!("the compression of state is {}", kind::state_words(job)),
        format!(
            "{} of state became {}: {} of {} stored anew; {} done, {} left alone, {} failed",
            count(summary.sums.state_rows_before, "row"),
            summary.sums.state_rows_after,
            count(summary.sums.groups_changed, "state group"),
            summary.sums.groups_looked_at,
            count(summary.rooms_done, "room"),
            summary.rooms_skipped,
            summary.rooms_failed,
        ),
    ];
    lines.extend(kind::rooms(&summary.skipped, "  left alone"));
    lines.extend(kind::rooms(&summary.errors, "  failed"));
    lines.push(format!(
        "the longest transaction took {} ms",
        progress.longest_transaction_ms
    ));
    lines.extend(kind::reclaimable(progress));
    lines
}

/// Rooms of a plan that are told one by one.
const ROOMS_TOLD: usize = 100;

/// Which rooms' state groups are to be stored in fewer rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressRequest {
    /// Which rooms; where nothing is said, all that have state groups. Nothing is lost by it, so what is only said of the
    /// rooms that are not meant means all others.
    #[serde(default)]
    pub selectors: Selectors,
}

/// Sums of a compression, or of what it would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompressSums {
    /// State groups that were looked at.
    pub groups_looked_at: i64,
    /// Of these, groups that are stored anew.
    pub groups_changed: i64,
    /// Of these, groups that were left alone: the homeserver is about to delete them or what they rest on, or nobody can say what
    /// they hold.
    pub groups_left_alone: i64,
    /// Rows of `state_groups_state` that these groups had.
    pub state_rows_before: i64,
    /// Rows that they have afterwards.
    pub state_rows_after: i64,
    /// Most steps from a group to the one that is stored in full.
    pub longest_chain: i64,
}

impl CompressSums {
    fn of(done: &Compressed) -> Self {
        Self {
            groups_looked_at: done.groups,
            groups_changed: done.changed,
            groups_left_alone: done.left_alone,
            state_rows_before: done.rows_before,
            state_rows_after: done.rows_after,
            longest_chain: done.longest_chain,
        }
    }
}

/// What a compression has done, beside what every job tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateCompressSummary {
    /// Sums over the rooms, as far as they were come to.
    #[serde(flatten)]
    pub sums: CompressSums,
    /// Rooms that are meant.
    pub rooms_planned: i64,
    /// Of these, rooms that are done.
    pub rooms_done: i64,
    /// Rooms left alone: another job has them, or a hold does.
    pub rooms_skipped: i64,
    /// Rooms that could not be done.
    pub rooms_failed: i64,
    /// Which were left alone, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<RoomError>,
    /// Which failed, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<RoomError>,
}

impl RoomsSummary for StateCompressSummary {
    const COULD_NOT: &'static str = "could not be compressed";

    fn failed(&self) -> (i64, i64, &[RoomError]) {
        (self.rooms_failed, self.rooms_planned, &self.errors)
    }

    fn complete(&self) -> String {
        format!(
            "{} of state became {}, {} stored anew",
            count(self.sums.state_rows_before, "row"),
            self.sums.state_rows_after,
            count(self.sums.groups_changed, "state group")
        )
    }
}

/// What would become of one room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomCompression {
    /// The room, known or not.
    pub room_id: RoomId,
    /// What would become of its groups.
    #[serde(flatten)]
    pub sums: CompressSums,
}

/// What a compression would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateCompressPlan {
    /// Sums over the rooms.
    #[serde(flatten)]
    pub sums: CompressSums,
    /// Rows of `state_group_edges` that there would be more; fewer where that is negative.
    pub more_edges: i64,
    /// Rooms that were looked at.
    pub rooms_looked_at: i64,
    /// Rooms that would take fewer rows.
    pub rooms_changed: i64,
    /// Those of them that give most, no more than a hundred.
    pub rooms: Vec<RoomCompression>,
    /// Rooms that would be left alone, and why.
    pub left_alone: Vec<RoomError>,
    /// How the indexes were looked at.
    pub indexes_by: IndexesBy,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl Keeper {
    /// Starts a compression: the states of these rooms in fewer rows. Returns at once; the work is a job of the whole server.
    ///
    /// # Errors
    /// [`Error::Refused`] beside a homeserver where it has to be stopped; [`Error::RoomBusy`] while another job has the whole
    /// server; [`Error::QueueFull`], [`Error::Stopping`].
    pub fn compress_state(&self, request: &CompressRequest) -> Result<JobId, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        let viewer = self.viewer()?;
        if let Some(why) = viewer.must_stop_to_compress()? {
            return Err(Error::Refused(why));
        }
        // What is misspelt is told now, and not by a job that fails.
        self.shared.rooms_to_compress(&viewer.db, request)?;
        drop(viewer);
        self.start(&STATE_COMPRESS, &Subject::Server {}, request.clone())
    }

    /// What a compression would do now. Reads only, and takes as long as the states are large.
    ///
    /// # Errors
    /// [`Error::Refused`] for a damaged index; those of the database.
    pub fn plan_state_compress(
        &self,
        request: &CompressRequest,
    ) -> Result<StateCompressPlan, Error> {
        let viewer = self.viewer()?;
        let rooms = self.shared.rooms_to_compress(&viewer.db, request)?;
        viewer.plan_compression_of(&rooms)
    }
}

impl Viewer {
    /// As [`Keeper::plan_state_compress`].
    ///
    /// # Errors
    /// As there.
    pub fn plan_state_compress(
        &self,
        request: &CompressRequest,
    ) -> Result<StateCompressPlan, Error> {
        let rooms = match request.selectors == Selectors::default() {
            true => rooms_with_groups(&self.db)?,
            false => {
                let selected = super::rooms::selected(&self.config, &request.selectors)?;
                selected
                    .rooms
                    .into_iter()
                    .map(|room| room.room_id)
                    .collect()
            }
        };
        self.plan_compression_of(&rooms)
    }

    /// Why the homeserver has to be stopped first, if it has to.
    fn must_stop_to_compress(&self) -> Result<Option<String>, Error> {
        let sign = self.running_homeserver()?;
        Ok(sign.and_then(|sign| purge::needs_stopped(&self.db, &sign)))
    }

    fn plan_compression_of(&self, rooms: &[RoomId]) -> Result<StateCompressPlan, Error> {
        let db = &self.db;
        let indexes_by = verify_indexes(db, &mut |_| ())?;
        let must_stop = self.must_stop_to_compress()?;
        let mut plan = StateCompressPlan {
            sums: CompressSums::default(),
            more_edges: 0,
            rooms_looked_at: 0,
            rooms_changed: 0,
            rooms: Vec::new(),
            left_alone: Vec::new(),
            indexes_by,
            notes: super::state_sweep::note_of(indexes_by)
                .map(str::to_owned)
                .into_iter()
                .chain(must_stop)
                .collect(),
        };
        let holds = self.holds();
        let mut all = Compressed::default();
        for room in rooms {
            match held::refuse(db, room, &holds, Removes::History) {
                Err(e @ Error::Held(_)) => {
                    let why = (e.to_string(), e.code());
                    RoomError::tell(&mut plan.left_alone, room, why);
                    continue;
                }
                outcome => drop(outcome?),
            }
            let done = purge::plan_compress(db, room)?;
            all.add(&done);
            plan.rooms_looked_at += 1;
            if done.changed > 0 {
                plan.rooms_changed += 1;
                plan.rooms.push(RoomCompression {
                    room_id: room.clone(),
                    sums: CompressSums::of(&done),
                });
            }
            if plan.rooms.len() > 2 * ROOMS_TOLD {
                keep_largest(&mut plan.rooms);
            }
        }
        keep_largest(&mut plan.rooms);
        plan.sums = CompressSums::of(&all);
        plan.more_edges = all.more_edges;
        Ok(plan)
    }
}

fn keep_largest(rooms: &mut Vec<RoomCompression>) {
    rooms.sort_by_key(|room| room.sums.state_rows_after - room.sums.state_rows_before);
    rooms.truncate(ROOMS_TOLD);
}

/// How far a compression is.
struct Compression {
    progress: Progress,
    summary: StateCompressSummary,
    /// Of the rooms before the one that is at work.
    before: Compressed,
}

impl Compression {
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
    /// The rooms that are meant.
    fn rooms_to_compress(&self, db: &Db, request: &CompressRequest) -> Result<Vec<RoomId>, Error> {
        if request.selectors == Selectors::default() {
            return rooms_with_groups(db);
        }
        let selected = self.selected(&request.selectors, self.config.clock.now())?;
        let rooms = selected.rooms.into_iter();
        Ok(rooms.map(|room| room.room_id).collect())
    }

    /// Carries a compression out, and says in the ledger how it ended.
    pub(super) fn run_state_compress(&self, guard: JobGuard, request: &CompressRequest) {
        self.run_many(guard, |guard| {
            let goes_on = || self.check_goes_on(guard.live());
            let done = self.compress_server(guard, request, &|| goes_on().is_err());
            guard.live().set_interrupt(None);
            done.map_err(|e| match e {
                e if e.is_interrupt() || matches!(e, Error::Stopping) => {
                    goes_on().err().unwrap_or(e)
                }
                e if e.is_damage() => reclaim::damaged(&Chain(&e).to_string()),
                e => self.tell_full_disk(e, None),
            })
        });
    }

    fn compress_server(
        &self,
        guard: &JobGuard,
        request: &CompressRequest,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<StateCompressSummary, Error> {
        let mut ctx = self.job_context(guard, is_stopping)?;
        let handle = ctx.db.interrupt_handle();
        let live = guard.live();
        live.set_interrupt(Some(Box::new(move || handle.interrupt())));
        let mut all = Compression {
            // What an earlier process did of it stays told.
            progress: serde_json::from_value(live.progress()).unwrap_or_default(),
            summary: StateCompressSummary::default(),
            before: Compressed::default(),
        };
        let rooms = self.rooms_to_compress(&ctx.db, request)?;
        all.summary.rooms_planned = i64::try_from(rooms.len()).unwrap_or(i64::MAX);
        look(&mut ctx, guard, &mut all)?;
        if !rooms.is_empty() && ctx.db.engine() == Engine::Sqlite {
            let how = overwrite::choose_secure_delete(&ctx, i64::MAX)?;
            overwrite::add_pending(ctx.ledger, how, false)?;
        }
        let mut kept: Kept = Some((ctx.db, ctx.watch));
        for room in &rooms {
            self.check_goes_on(live)?;
            let done = self.compress_one(&mut kept, guard, is_stopping, room, &mut all);
            all.count(guard, room, done)?;
            all.publish(guard);
        }
        let (db, watch) = kept.ok_or_else(|| Error::Bug("a connection was lost".into()))?;
        let mut ctx = self.job_context_on(db, watch, guard, is_stopping)?;
        clean_up(&mut ctx, &mut all.progress)?;
        all.publish(guard);
        Ok(all.summary)
    }

    /// One room's turn.
    fn compress_one(
        &self,
        kept: &mut Kept,
        guard: &JobGuard,
        is_stopping: &(dyn Fn() -> bool + Sync),
        room: &RoomId,
        all: &mut Compression,
    ) -> Result<(), Error> {
        let _reserved = self.register.reserve(STATE_COMPRESS.name, room)?;
        let (db, watch) = kept
            .take()
            .ok_or_else(|| Error::Bug("a connection was lost".into()))?;
        let mut ctx = self.job_context_on(db, watch, guard, is_stopping)?;
        ctx.room = room;
        let Compression {
            progress,
            summary,
            before,
        } = all;
        let mut of_room = Compressed::default();
        let done = match self.refuse_own_task(&ctx.db, room) {
            Ok(()) => {
                let mut each = |progress: &mut Progress, of_room: &Compressed| {
                    let mut sums = *before;
                    sums.add(of_room);
                    summary.sums = CompressSums::of(&sums);
                    *progress = with_summary(progress, summary);
                    let told = serde_json::to_value(&*progress).unwrap_or_default();
                    guard.live().set_progress(told);
                };
                purge::compress_room(&mut ctx, progress, &mut of_room, &mut each)
            }
            Err(e) => Err(e),
        };
        if of_room.changed > 0 {
            ctx.save_progress(progress);
        }
        before.add(&of_room);
        *kept = Some((ctx.db, ctx.watch));
        done
    }
}

impl Compression {
    /// Counts what became of a room. What is no affair of the room alone ends the compression.
    fn count(
        &mut self,
        guard: &JobGuard,
        room: &RoomId,
        done: Result<(), Error>,
    ) -> Result<(), Error> {
        let summary = &mut self.summary;
        match done {
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

/// Looks at the indexes.
fn look(ctx: &mut JobContext<'_>, guard: &JobGuard, all: &mut Compression) -> Result<(), Error> {
    all.progress.notes.clear();
    all.progress.phase = Phase::Counting;
    all.publish(guard);
    let indexes = verify_indexes(&ctx.db, &mut |what| {
        all.progress.table = Some(what.to_owned());
        all.publish(guard);
    })?;
    all.progress.table = None;
    let note = super::state_sweep::note_of(indexes).map(str::to_owned);
    all.progress.notes.extend(note);
    ctx.check_cancelled()?;
    all.progress.phase = Phase::StateGroups;
    all.publish(guard);
    Ok(())
}
