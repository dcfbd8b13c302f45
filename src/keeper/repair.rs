//! Mending what a check finds and what can be mended without guessing: planned, done in transactions, and checked again.
//!
//! The indexes are tested first. Then one thing after the other is looked for, because what a table says of memberships may
//! follow from what another says, and mended room by room; a room that another job has, or of which what would go is held,
//! is left alone. A repair that was interrupted begins anew and finds less to do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kind::{self, JobExtent, JobKind, Runner, RunsOn, Work, parameters};
use super::many_rooms::{RoomError, RoomWhy, RoomsSummary, with_summary};
use super::{Keeper, Shared, Viewer, ownership};
use crate::error::{Chain, Error};
use crate::hold::Hold;
use crate::ids::{Escaped, JobId, RoomId};
use crate::job::{
    DiskBudget, Duties, HomeserverWatch, JobContext, Limits, Log, Outcome, Phase, Progress,
    Removes, Scope, ServerState, Why, clean_up, held, overwrite,
};
use crate::jobs::ledger::{JobRecord, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::store::check::{self, Violation};
use crate::store::db::{Db, SecureDelete};
use crate::store::event_rows::add;
use crate::store::index_test::IndexesBy;
use crate::store::reclaim;
use crate::store::repair::{self, Act, Finding, Mend};

/// A repair.
pub(super) static REPAIR: JobKind = JobKind {
    measure,
    words,
    ..JobKind::new("repair", RunsOn::ServerThread, parameters::<RepairRequest>)
};

impl Work for RepairRequest {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.shared.run_repair(guard, self);
    }
}

fn measure(progress: &Progress) -> JobExtent {
    let summary: RepairSummary = kind::summary(progress);
    JobExtent {
        done: summary.rows_mended,
        planned: summary.rows_found,
        of: "rows",
    }
}

fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let summary: RepairSummary = kind::summary(progress);
    let mut lines = vec![format!("the repair is {}", kind::state_words(job))];
    for item in &summary.items {
        let mended = match item.rows_mended {
            0 => "left as it is".to_owned(),
            n if n == item.rows => format!("{} mended", count(n, "row")),
            n => format!("{n} of {} mended", count(item.rows, "row")),
        };
        lines.push(format!("  {}  {}: {mended}", item.rule, item.wrong));
        lines.extend(item.waits.as_ref().map(|why| format!("        {why}")));
    }
    lines.extend(kind::rooms(&summary.left_alone, "  is left alone"));
    if summary.items.is_empty() {
        lines.push("nothing was to be mended, and nothing was changed".into());
    }
    lines.extend(summary.unmended.iter().map(Unmended::words));
    if summary.unmended.is_empty() {
        lines.push("checked again: every invariant holds".into());
    }
    lines
}

/// Rows that are told of each thing that is mended.
const ROWS_TOLD: usize = 100;

/// How often everything is looked for: the members of a room stand in five tables, each of which may show that another is
/// wrong.
const MOST_ROUNDS: usize = 8;

/// Rows of one transaction while nobody waits, and beside a homeserver.
const BATCH: (usize, usize) = (5_000, 500);

/// What is to be mended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRequest {
    /// Numbers of rules; empty for all.
    pub rules: Vec<String>,
}

impl RepairRequest {
    /// By the numbers of rules, in any case.
    ///
    /// # Errors
    /// A sentence about one by which nothing can be mended.
    pub fn of(words: &[String]) -> Result<Self, String> {
        let mut rules = Vec::new();
        for word in words {
            let rule = word.trim().to_uppercase();
            if !repair::RULES.contains(&&*rule) {
                return Err(format!(
                    "nothing can be mended by the rule {word:?}; there are {}",
                    repair::RULES.join(", ")
                ));
            }
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        Ok(Self { rules })
    }

    fn takes(&self, rule: &str) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|known| known == rule)
    }

    fn mends(&self, db: &Db) -> Vec<Mend> {
        let all = repair::all(db).into_iter();
        all.filter(|mend| self.takes(mend.rule)).collect()
    }
}

/// A row that is mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRow {
    /// Its room, where it names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_id: Option<RoomId>,
    /// The event, state group or user that it is about.
    pub about: String,
}

/// One kind of thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairItem {
    /// The rule that it breaks.
    pub rule: String,
    /// What is wrong.
    pub wrong: String,
    /// What becomes of it: `deletes`, `corrects`, `adds` or `rebuilds`.
    pub act: String,
    /// The table.
    pub table: String,
    /// Rows that are so.
    pub rows: i64,
    /// Whether there are more than were counted.
    pub has_more: bool,
    /// Rows that were mended.
    pub rows_mended: i64,
    /// Which, no more than a hundred.
    pub told: Vec<RepairRow>,
    /// Why it has to wait, where it has to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

impl RepairItem {
    fn of(mend: &Mend, found: &[Finding]) -> Self {
        let act = serde_json::to_value(mend.act).unwrap_or_default();
        let told = found.iter().take(ROWS_TOLD).map(|one| RepairRow {
            room_id: one.room.clone(),
            about: one.shown.clone(),
        });
        Self {
            rule: mend.rule.to_owned(),
            wrong: mend.wrong.clone(),
            act: act.as_str().unwrap_or_default().to_owned(),
            table: mend.table.to_owned(),
            rows: i64::try_from(found.len()).unwrap_or(i64::MAX),
            has_more: found.len() as i64 >= repair::MOST_FOUND,
            rows_mended: 0,
            told: told.collect(),
            waits: None,
        }
    }
}

/// A rule that is broken and cannot be mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmended {
    /// Its number.
    pub rule: String,
    /// What it asks.
    pub meaning: String,
    /// Rows that break it.
    pub rows: i64,
    /// One of them.
    pub example: String,
    /// What a person can do about it.
    pub advice: String,
}

impl Unmended {
    /// For people. What it names is in it as it is.
    pub fn words(&self) -> String {
        format!(
            "{} is still broken by {}, such as {}: {}. Not mended: {}.",
            self.rule,
            count(self.rows, "row"),
            Escaped(&self.example),
            self.meaning,
            self.advice
        )
    }

    fn of(violation: &Violation) -> Self {
        Self {
            rule: violation.rule.to_owned(),
            meaning: violation.meaning.to_owned(),
            rows: violation.rows,
            example: violation.example.clone(),
            advice: repair::advice(violation.rule).to_owned(),
        }
    }
}

/// What a repair would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepairPlan {
    /// What would be mended. What follows from it is found when it is done.
    pub items: Vec<RepairItem>,
    /// Rooms of which rows would be left alone, and why; no more than a hundred.
    pub left_alone: Vec<RoomError>,
    /// Rules that are broken and by which nothing can be mended.
    pub unmended: Vec<Unmended>,
    /// How the indexes were tested by whose word this is so.
    pub indexes_by: IndexesBy,
}

/// What a repair has done, beside what every job tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairSummary {
    /// Rows that were found.
    pub rows_found: i64,
    /// Rows that were mended.
    pub rows_mended: i64,
    /// What was wrong.
    pub items: Vec<RepairItem>,
    /// Rooms of which rows were left alone, and why; no more than a hundred.
    pub left_alone: Vec<RoomError>,
    /// What the check says afterwards; nothing where all is well.
    pub unmended: Vec<Unmended>,
}

impl RoomsSummary for RepairSummary {
    const COULD_NOT: &'static str = "could not be mended";

    fn failed(&self) -> (i64, i64, &[RoomError]) {
        (0, 0, &[])
    }

    fn complete(&self) -> String {
        format!(
            "{} of {} rows mended, {} rules still broken",
            self.rows_mended,
            self.rows_found,
            self.unmended.len()
        )
    }
}

impl Keeper {
    /// Starts a repair and returns at once; the work is a job of the whole server.
    ///
    /// # Errors
    /// [`Error::RoomBusy`] while another job has the whole server; [`Error::QueueFull`], [`Error::Stopping`].
    pub fn repair(&self, request: &RepairRequest) -> Result<JobId, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        self.start(&REPAIR, &Subject::Server {}, request.clone())
    }

    /// What such a repair would do now. Reads only, and takes as long as a check.
    ///
    /// # Errors
    /// [`Error::Refused`] for a damaged index or file; those of the database.
    pub fn plan_repair(&self, request: &RepairRequest) -> Result<RepairPlan, Error> {
        self.viewer()?.plan_repair(request)
    }
}

/// Why rows of a room are not mended, if they are not: what would go is held.
fn held_back(db: &Db, mend: &Mend, room: &RoomId, holds: &[Hold]) -> Result<Option<String>, Error> {
    if mend.act != Act::Deletes {
        return Ok(None);
    }
    Ok(match held::refuse(db, room, holds, Removes::History) {
        Err(Error::Held(why)) => Some(why),
        Ok(some) if mend.has_text && !some.is_empty() => Some(format!(
            "{} holds messages of it, and whose text a row is cannot be told any more",
            some[0].name
        )),
        outcome => {
            outcome?;
            None
        }
    })
}

/// Why something has to wait.
fn wait_for_stop(mend: &Mend, is_running: bool) -> Option<String> {
    let why = mend.needs_stopped.filter(|_| is_running)?;
    Some(format!(
        "a homeserver runs, and {why}: stop it and ask again"
    ))
}

impl Viewer {
    /// As [`Keeper::plan_repair`].
    ///
    /// # Errors
    /// As there.
    pub fn plan_repair(&self, request: &RepairRequest) -> Result<RepairPlan, Error> {
        let db = &self.db;
        let mut plan = RepairPlan {
            indexes_by: repair::verify(db, &mut |_| ())?,
            items: Vec::new(),
            left_alone: Vec::new(),
            unmended: Vec::new(),
        };
        let is_running = self.running_homeserver()?.is_some();
        let holds = self.holds();
        for mend in request.mends(db) {
            let mut found = mend.find(db)?;
            let mut left: BTreeMap<RoomId, bool> = BTreeMap::new();
            for room in found.iter().filter_map(|one| one.room.as_ref()) {
                if left.contains_key(room) {
                    continue;
                }
                let why = held_back(db, &mend, room, &holds)?;
                left.insert(room.clone(), why.is_some());
                if let Some(why) = why {
                    tell_once(&mut plan.left_alone, room, (why, "held"));
                }
            }
            found.retain(|one| !one.room.as_ref().is_some_and(|room| left[room]));
            if !found.is_empty() {
                let mut item = RepairItem::of(&mend, &found);
                item.waits = wait_for_stop(&mend, is_running);
                plan.items.push(item);
            }
        }
        let now = self.config.clock.now();
        let report = check::check(db, now, |_, _| ())?;
        let mended: Vec<&str> = plan.items.iter().map(|item| &*item.rule).collect();
        let is_left = |v: &&Violation| request.takes(v.rule) && !mended.contains(&v.rule);
        plan.unmended = report
            .violations
            .iter()
            .filter(is_left)
            .map(Unmended::of)
            .collect();
        Ok(plan)
    }
}

/// A room may be left alone for each thing that is wrong there; why it is, is told once.
fn tell_once(told: &mut Vec<RoomError>, room: &RoomId, why: RoomWhy) {
    let is_told = |one: &RoomError| one.room_id == *room && one.error == why.0;
    if !told.iter().any(is_told) {
        RoomError::tell(told, room, why);
    }
}

/// The connection that one room hands on to the next.
type Kept = Option<(Db, HomeserverWatch)>;

/// How far a repair is.
struct Repair {
    progress: Progress,
    summary: RepairSummary,
    pages: SecureDelete,
}

impl Repair {
    fn publish(&mut self, guard: &JobGuard) {
        self.progress = with_summary(&self.progress, &self.summary);
        let told = serde_json::to_value(&self.progress).unwrap_or_default();
        guard.live().set_progress(told);
    }
}

fn connection(kept: &Kept) -> Result<&Db, Error> {
    let kept = kept.as_ref();
    kept.map(|(db, _)| db)
        .ok_or_else(|| Error::Bug("a connection was lost".into()))
}

impl Shared {
    /// Carries a repair out, and says in the ledger how it ended.
    pub(super) fn run_repair(&self, guard: JobGuard, request: &RepairRequest) {
        self.run_many(guard, |guard| {
            let goes_on = || self.check_goes_on(guard.live());
            let mended = self.repair_server(guard, request, &|| goes_on().is_err());
            guard.live().set_interrupt(None);
            mended.map_err(|e| match e {
                e if e.is_interrupt() || matches!(e, Error::Stopping) => {
                    goes_on().err().unwrap_or(e)
                }
                e if e.is_damage() => reclaim::damaged(&Chain(&e).to_string()),
                e => self.tell_full_disk(e, None),
            })
        });
    }

    fn repair_server(
        &self,
        guard: &JobGuard,
        request: &RepairRequest,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<RepairSummary, Error> {
        let ctx = self.job_context(guard, is_stopping)?;
        let handle = ctx.db.interrupt_handle();
        let live = guard.live();
        live.set_interrupt(Some(Box::new(move || handle.interrupt())));
        let mut repair = Repair {
            progress: serde_json::from_value(live.progress()).unwrap_or_default(),
            summary: RepairSummary::default(),
            pages: SecureDelete::Off,
        };
        repair.progress.phase = Phase::Counting;
        repair::verify(&ctx.db, &mut |what| {
            repair.progress.table = Some(what.to_owned());
            repair.publish(guard);
        })?;
        repair.progress.table = None;
        let mends = request.mends(&ctx.db);
        repair.pages = overwrite::choose_secure_delete(&ctx, i64::MAX)?;
        let mut kept: Kept = Some((ctx.db, ctx.watch));
        let mut items: Vec<Option<RepairItem>> = vec![None; mends.len()];
        // What is put right in one table may show what is wrong in another.
        for _ in 0..MOST_ROUNDS {
            let mut mended = 0;
            for (mend, item) in mends.iter().zip(&mut items) {
                repair.publish(guard);
                mended +=
                    self.mend_one(&mut kept, guard, is_stopping, mend, (&mut repair, item))?;
            }
            repair.summary.rows_mended += mended;
            if mended == 0 {
                break;
            }
        }
        for item in items.into_iter().flatten() {
            log::info!(
                "{guard}: {} ({}): {} of {} rows mended",
                item.rule,
                item.wrong,
                item.rows_mended,
                item.rows
            );
            repair.summary.rows_found += item.rows;
            repair.summary.items.push(item);
        }
        let (db, watch) = kept
            .take()
            .ok_or_else(|| Error::Bug("a connection was lost".into()))?;
        let mut ctx = self.job_context_on(db, watch, guard, is_stopping)?;
        if repair.progress.rows_removed.is_empty() {
            repair.progress.phase = Phase::Done;
        } else {
            clean_up(&mut ctx, &mut repair.progress)?;
        }
        let report = check::check(&ctx.db, ctx.clock.now(), |rule, _| {
            repair.progress.table = Some(rule.to_owned());
        })?;
        repair.progress.table = None;
        repair.summary.unmended = report.violations.iter().map(Unmended::of).collect();
        repair.publish(guard);
        Ok(repair.summary)
    }

    /// Mends what is wrong of one kind until no more is found, or no more can be; answers how many rows that changed.
    fn mend_one(
        &self,
        kept: &mut Kept,
        guard: &JobGuard,
        is_stopping: &(dyn Fn() -> bool + Sync),
        mend: &Mend,
        (repair, item): (&mut Repair, &mut Option<RepairItem>),
    ) -> Result<i64, Error> {
        let mut all = 0;
        loop {
            self.check_goes_on(guard.live())?;
            let found = mend.find(connection(kept)?)?;
            if found.is_empty() {
                return Ok(all);
            }
            let rows = i64::try_from(found.len()).unwrap_or(i64::MAX);
            let item = item.get_or_insert_with(|| RepairItem::of(mend, &found));
            item.rows = item.rows.max(item.rows_mended + rows);
            item.has_more = false;
            let mended = self.mend_all(
                kept,
                guard,
                is_stopping,
                (mend, found),
                (&mut *repair, &mut *item),
            )?;
            item.rows_mended += mended;
            all += mended;
            if mended == 0 {
                return Ok(all);
            }
        }
    }

    /// Mends what was found of one kind, room by room; answers how many rows that changed.
    fn mend_all(
        &self,
        kept: &mut Kept,
        guard: &JobGuard,
        is_stopping: &(dyn Fn() -> bool + Sync),
        (mend, found): (&Mend, Vec<Finding>),
        (repair, item): (&mut Repair, &mut RepairItem),
    ) -> Result<i64, Error> {
        let mut rooms: BTreeMap<Option<RoomId>, Vec<Finding>> = BTreeMap::new();
        for one in found {
            rooms.entry(one.room.clone()).or_default().push(one);
        }
        let mut mended = 0;
        for (room, found) in &rooms {
            self.check_goes_on(guard.live())?;
            let busy = || ("another job has it".to_owned(), "room_busy");
            let reserved = room
                .as_ref()
                .map(|room| self.register.reserve(REPAIR.name, room));
            let _reserved = match reserved.transpose() {
                Ok(reserved) => reserved,
                Err(Error::RoomBusy { room }) => {
                    tell_once(&mut repair.summary.left_alone, &room, busy());
                    continue;
                }
                Err(e) => return Err(e),
            };
            let (db, watch) = kept
                .take()
                .ok_or_else(|| Error::Bug("a connection was lost".into()))?;
            let mut ctx = self.job_context_on(db, watch, guard, is_stopping)?;
            ctx.archive = None;
            if let Some(room) = room {
                ctx.room = room;
            }
            let done = mend_room(&mut ctx, mend, room.as_ref(), found, repair);
            *kept = Some((ctx.db, ctx.watch));
            let (rows, left) = done?;
            mended += rows;
            match (left, room) {
                (Some(why), Some(room)) => {
                    log::warn!("{guard}: room {room} is left alone: {}", why.0);
                    tell_once(&mut repair.summary.left_alone, room, why);
                }
                (Some((why, _)), None) => item.waits = Some(why),
                (None, _) => {}
            }
            repair.publish(guard);
        }
        Ok(mended)
    }
}

/// One room's turn, or that of what has no room: how many rows were changed, and why the rest was left alone.
fn mend_room(
    ctx: &mut JobContext<'_>,
    mend: &Mend,
    room: Option<&RoomId>,
    found: &[Finding],
    repair: &mut Repair,
) -> Result<(i64, Option<RoomWhy>), Error> {
    if let Some(room) = room {
        let is_running = || Ok(ctx.server_state == ServerState::Running);
        match ownership::refuse_own_task(&ctx.db, room, ctx.clock.now(), is_running) {
            Err(Error::RoomBusy { .. }) => {
                let why = "the homeserver itself is purging or deleting it".to_owned();
                return Ok((0, Some((why, "room_busy"))));
            }
            Err(e @ Error::LeftTask(_)) => return Ok((0, Some((e.to_string(), e.code())))),
            looked => looked?,
        }
        if let Some(why) = held_back(&ctx.db, mend, room, &ctx.ledger.holds()?)? {
            return Ok((0, Some((why, "held"))));
        }
        if mend.act == Act::Deletes {
            ctx.heed_holds(Removes::History)?;
        }
    }
    let scope = match room {
        Some(_) => Scope::Room,
        None => Scope::Server,
    };
    let (mut rows, mut left) = (0, None);
    let (offline, beside) = BATCH;
    let batch = match ctx.server_state {
        ServerState::Stopped => offline,
        ServerState::Running => beside,
    };
    let disk = DiskBudget::new(&ctx.db);
    let (mut at, mut most) = (0, batch);
    while at < found.len() {
        ctx.check_cancelled()?;
        let is_running = ctx.server_state_now()? == ServerState::Running;
        if let Some(why) = wait_for_stop(mend, is_running) {
            return Ok((rows, Some((why, "homeserver_running"))));
        }
        let room_for = usize::try_from(disk.rows()?).unwrap_or(usize::MAX);
        let size = most.min(room_for).min(found.len() - at);
        let log = match room_for < batch || most < batch {
            true => Log::Empty,
            false => Log::Leave,
        };
        let chunk = &found[at..at + size];
        let done = match mend_chunk(ctx, mend, scope, (chunk, log), repair) {
            // Nothing of it happened: fewer at once may have room (S-35).
            Err(e) if e.is_full() && size > 1 => {
                most = (size / 8).max(1);
                continue;
            }
            Err(e) if e.is_full() && ctx.release_reserve() => continue,
            done => done?,
        };
        at += size;
        match done {
            Chunk::Done(changed) => rows += changed,
            Chunk::Left(why) => return Ok((rows, Some(why))),
            // One of them: the others go by themselves.
            Chunk::InTheWay => {
                for one in chunk.chunks(1) {
                    match mend_chunk(ctx, mend, scope, (one, log), repair)? {
                        Chunk::Done(changed) => rows += changed,
                        Chunk::Left(why) => return Ok((rows, Some(why))),
                        Chunk::InTheWay => {
                            let why = format!("another row of {} is in the way", mend.table);
                            left = Some((why, "row_in_the_way"));
                        }
                    }
                }
            }
        }
    }
    Ok((rows, left))
}

/// What became of some rows.
enum Chunk {
    Done(i64),
    Left(RoomWhy),
    /// What would be written breaks a constraint: another row has its place.
    InTheWay,
}

fn mend_chunk(
    ctx: &mut JobContext<'_>,
    mend: &Mend,
    scope: Scope<'_>,
    (chunk, log): (&[Finding], Log<'_>),
    repair: &mut Repair,
) -> Result<Chunk, Error> {
    let limits = Limits {
        log,
        is_batch: true,
        ..Limits::default()
    };
    let pages = repair.pages;
    let doing = "mend the database";
    let done = ctx.transaction(&mut repair.progress, doing, scope, limits, |tx, effects| {
        tx.entering(mend.table)?;
        let mut changed = 0;
        for one in chunk {
            changed += mend.apply(tx, one)?;
        }
        if mend.act == Act::Deletes && changed > 0 {
            add(&mut effects.rows, mend.table, changed);
            effects.duties = Some(Duties {
                pages,
                index: mend.table == "event_search",
            });
        }
        Ok(changed)
    });
    Ok(match done {
        Err(e) if e.is_constraint() => Chunk::InTheWay,
        Err(e) => return Err(e),
        Ok(Outcome::Done(changed, _)) => Chunk::Done(changed),
        Ok(Outcome::Aborted(Why::HomeserverStarted(_) | Why::ServerStateChanged)) => {
            let why = "a homeserver was started or stopped meanwhile: ask again".to_owned();
            Chunk::Left((why, "homeserver_running"))
        }
        Ok(Outcome::Aborted(Why::RoomInUse(_))) => {
            Chunk::Left(("another job has it".to_owned(), "room_busy"))
        }
        Ok(outcome @ (Outcome::TooLong | Outcome::Aborted(Why::BreaksForeignKeys))) => {
            Chunk::Done(outcome.done()?.0)
        }
    })
}
