//! State groups, once the events are gone: deciding what nothing refers to any more, noting the decision in the
//! ledger, carrying it out in bounded transactions.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::together::OneOfMany;
use crate::archive::Kind;
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{
    Cost, DiskBudget, Effects, Endurance, GroupsFrame, IfStarted, JobContext, Limits, Log, Outcome,
    Phase, Progress, Scope, ServerState, Why,
};
use crate::jobs::many::Decided;
use crate::plural::count_of;
use crate::store::db::{Db, Engine};
use crate::store::state_groups::{self, Freed, Persisting, Plan, Rebase, References, Rules, Walk};
use crate::time::Millis;

/// Rows of state that one transaction deletes offline; bounds the log.
const ROWS_OFFLINE: i64 = 1_000_000;

/// One thing to do, as the ledger keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// Store a group that stays on another base, or in full.
    Rebase { group: i64, base: Option<i64> },
    /// Delete a group.
    Delete { group: i64 },
}

/// Age at which a row of `state_groups_persisting` is that of a homeserver which died (P-54).
const STALE_AFTER: Millis = Millis(7 * 24 * 60 * 60 * 1000);

/// The group that a step of the ledger is about: what was decided on for another database is looked at anew.
pub(crate) fn group_of_step(step: &str) -> Option<i64> {
    match serde_json::from_str(step).ok()? {
        Step::Rebase { group, .. } | Step::Delete { group } => Some(group),
    }
}

/// Lets go of the state groups that the ledger notes for the room and that nothing refers to (P-30 … P-46).
///
/// Where the homeserver is stopped they go at once. Where one may be running they are marked, by the protocol of
/// its own tables; where it has no such tables, they wait in the ledger for a purge while it is stopped. Which of the two
/// is the case is asked before every transaction (P-54).
///
/// # Locking
/// The room is taken for each transaction; the homeserver's lock on it is held on, and looked at in every one (W-4).
pub(super) fn collect(ctx: &mut JobContext<'_>, progress: &mut Progress) -> Result<(), Error> {
    collect_by(ctx, progress, Walk::Around)
}

/// The same, and says how far it looks around what the ledger notes.
pub(super) fn collect_by(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    walk: Walk,
) -> Result<(), Error> {
    progress.phase = Phase::StateGroups;
    ctx.publish(progress);
    if ctx.server_state == ServerState::Running && ctx.running_homeserver()?.is_some() {
        undecide(ctx)?;
        return leave_to_homeserver(ctx, progress, walk);
    }
    // What an interrupted run decided is finished first; then what this one decides.
    for decides in [false, true] {
        if decides && !decide(ctx, progress, walk)? {
            return Ok(());
        }
        if let Some(sign) = carry_out(ctx, progress)? {
            undecide(ctx)?;
            let marked = progress.state_groups_marked;
            leave_to_homeserver(ctx, progress, walk)?;
            let marked = progress.state_groups_marked - marked;
            log::warn!("room {}: a homeserver was started: {sign}", ctx.room);
            progress.notes.push(format!(
                "a homeserver was started meanwhile ({sign}): {} left for it to delete",
                count_of(
                    marked,
                    "state group that nothing refers to any more was",
                    "state groups that nothing refers to any more were"
                )
            ));
            return Ok(());
        }
    }
    Ok(())
}

/// Notes in the ledger what is to be done about the candidates; answers whether there were any.
fn decide(ctx: &mut JobContext<'_>, progress: &mut Progress, walk: Walk) -> Result<bool, Error> {
    let room = ctx.room.as_str();
    let candidates = ctx.ledger.candidates(room)?;
    forget_compressor(ctx, progress)?;
    if candidates.is_empty() {
        return Ok(false);
    }
    let plan = plan(ctx, ctx.room, progress, &candidates, walk)?;
    let steps = steps_of(&plan)?;
    ctx.ledger.decide(room, &steps)?;
    // What an event in flight uses is looked at again the next time.
    ctx.ledger.add_candidates(room, &plan.in_use)?;
    Ok(true)
}

/// What is to be done, as the ledger keeps it.
fn steps_of(plan: &Plan) -> Result<Vec<String>, Error> {
    let rebases = plan.rebases.iter().map(|r| Step::Rebase {
        group: r.group,
        base: r.base,
    });
    let deletes = plan
        .to_delete
        .iter()
        .map(|group| Step::Delete { group: *group });
    let steps: Result<Vec<String>, _> = rebases
        .chain(deletes)
        .map(|step| serde_json::to_string(&step))
        .collect();
    steps.map_err(|e| Error::Bug(format!("writing down what to do: {e}")))
}

/// What an earlier run decided while no homeserver ran is decided anew.
fn undecide(ctx: &JobContext<'_>) -> Result<(), Error> {
    let room = ctx.room.as_str();
    let steps = ctx.ledger.steps(room)?;
    if steps.is_empty() {
        return Ok(());
    }
    let parsed = steps.iter().map(|(_, step)| parse(step));
    let groups: Result<Vec<i64>, Error> = parsed
        .map(|step| {
            step.map(|step| match step {
                Step::Rebase { group, .. } | Step::Delete { group } => group,
            })
        })
        .collect();
    ctx.ledger.undecide(room, &groups?)
}

fn parse(step: &str) -> Result<Step, Error> {
    serde_json::from_str(step)
        .map_err(|e| Error::Bug(format!("the ledger holds a step that is none: {e}")))
}

/// The groups that events in flight use: those of a homeserver that died a week ago are not in use any more (P-54).
fn in_use(ctx: &JobContext<'_>, db: &Db) -> Result<BTreeSet<i64>, Error> {
    let rows = state_groups::persisting(db)?;
    let unknown: Vec<&Persisting> = rows.iter().filter(|row| row.since.is_none()).collect();
    let names: Vec<String> = unknown
        .iter()
        .map(|row| format!("{} {}", row.group, row.instance))
        .collect();
    let now = ctx.clock.now();
    let seen = ctx.ledger.first_seen("persisting ", &names, now)?;
    let known = rows.iter().filter_map(|row| Some((row.group, row.since?)));
    let unknown = unknown.iter().map(|row| row.group).zip(seen);
    let fresh = known
        .chain(unknown)
        .filter(|(_, since)| now - *since < STALE_AFTER);
    Ok(fresh.map(|(group, _)| group).collect())
}

/// What is to go. To find that out in a large room takes minutes.
fn plan(
    ctx: &mut JobContext<'_>,
    room: &RoomId,
    progress: &mut Progress,
    candidates: &[i64],
    walk: Walk,
) -> Result<Plan, Error> {
    let in_use = in_use(ctx, &ctx.db)?;
    plan_beside(ctx, room, progress, candidates, walk, &in_use)
}

fn plan_beside(
    ctx: &mut JobContext<'_>,
    room: &RoomId,
    progress: &mut Progress,
    candidates: &[i64],
    walk: Walk,
    in_use: &BTreeSet<i64>,
) -> Result<Plan, Error> {
    let rules = Rules {
        room: Some(room),
        references: References::All,
        walk,
        in_use,
    };
    let plan = ctx
        .read_and_renew(|db, renew| state_groups::plan(db, candidates, rules, &mut |_| renew()))?;
    if plan.kept_as_base > 0 {
        log::info!(
            "room {room}: {}: without them others would need more rows",
            count_of(
                plan.kept_as_base as u64,
                "unreferenced state group stays",
                "unreferenced state groups stay"
            )
        );
    }
    for note in plan.tangles.notes() {
        log::warn!("room {room}: {note}");
        progress.notes.push(note);
    }
    Ok(plan)
}

fn leave_to_homeserver(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    walk: Walk,
) -> Result<(), Error> {
    let candidates = ctx.ledger.candidates(ctx.room.as_str())?;
    if candidates.is_empty() {
        return forget_compressor(ctx, progress);
    }
    if !ctx.db.catalog().has("state_groups_pending_deletion") {
        progress.notes.push(
            "state groups that nothing refers to any more are noted in the ledger; they go with the next purge of this \
             room while the homeserver is stopped (this release of it has no way to be told of them)"
                .into(),
        );
        return forget_compressor(ctx, progress);
    }
    let plan = plan(ctx, ctx.room, progress, &candidates, walk)?;
    let (room, archive, now) = (ctx.room, ctx.archive.clone(), ctx.clock.now());
    let doing = "mark state groups for deletion";
    for batch in plan.to_delete.chunks(1_000) {
        ctx.transaction(progress, doing, Scope::Room, FINISHING, |tx, effects| {
            let mut freed = Freed::default();
            let mut archive = archive.as_ref().map(|archive| archive.lock());
            let archive = archive.as_deref_mut();
            let mut frame = GroupsFrame::begin(archive, tx, Kind::MarkedStateGroups, now)?;
            for group in batch {
                frame.add(tx, *group)?;
            }
            frame.finish(room, now)?;
            state_groups::mark(tx, batch, now, &mut freed)?;
            freed.add_to(&mut effects.rows);
            Ok(())
        })?
        .done()?;
        std::thread::sleep(ctx.limits.pause);
    }
    progress.state_groups_marked += plan.to_delete.len() as i64;
    ctx.ledger.decide(ctx.room.as_str(), &[])?;
    ctx.ledger.add_candidates(ctx.room.as_str(), &plan.in_use)?;
    forget_compressor(ctx, progress)
}

/// Another program's notes of the room, where they name a group that is gone or going; Synapse's own purges leave them too.
fn forget_compressor(ctx: &mut JobContext<'_>, progress: &mut Progress) -> Result<(), Error> {
    if !state_groups::has_compressor_notes(&ctx.db, ctx.room)? {
        return Ok(());
    }
    let (room, doing) = (ctx.room, "forget what the compressor noted");
    ctx.transaction(progress, doing, Scope::Room, FINISHING, |tx, effects| {
        let mut freed = Freed::default();
        state_groups::forget_compressor(tx, room, &mut freed)?;
        freed.add_to(&mut effects.rows);
        Ok(())
    })?
    .done()
    .map(drop)
}

/// A cancelled job is tidied up like any other, and what is done either way needs no stopped homeserver.
const FINISHING: Limits<'_> = Limits {
    deadline: None,
    if_started: IfStarted::GoOn,
    endures: Endurance::UntilStopping,
    log: Log::Leave,
    shows_tables: false,
    is_batch: false,
};

/// Does the steps that the ledger has for the room, and crosses each out when the database has it. A step that is
/// done again changes nothing. Ends with a sign of life where a homeserver has been started meanwhile.
fn carry_out(ctx: &mut JobContext<'_>, progress: &mut Progress) -> Result<Option<String>, Error> {
    let room = ctx.room.clone();
    let steps = ctx.ledger.steps(room.as_str())?;
    if steps.is_empty() {
        return Ok(None);
    }
    // Power that fails must not take back what the ledger has crossed out: nobody would look at those groups again.
    ctx.db.sync_commits(true)?;
    let carried = carry_out_steps(ctx, progress, &room, &steps).map_err(|e| ctx.map_constraint(e));
    ctx.db.sync_commits(false)?;
    let carried = carried?;
    if carried.is_none() {
        forget_compressor(ctx, progress)?;
    }
    Ok(carried)
}

fn carry_out_steps(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    room: &RoomId,
    steps: &[(i64, String)],
) -> Result<Option<String>, Error> {
    let doing = "delete state groups";
    let parsed: Result<Vec<Step>, _> = steps.iter().map(|(_, step)| parse(step)).collect();
    let parsed = parsed?;
    let disk = DiskBudget::new(&ctx.db);
    let (archive, clock) = (ctx.archive.clone(), ctx.clock);
    let on_file = ctx.db.engine() == Engine::Sqlite;
    let (mut at, mut most_rows) = (0, i64::MAX);
    while at < steps.len() {
        let parsed = &parsed[at..];
        let in_use = in_use(ctx, &ctx.db)?;
        let room_for = disk.rows()?.min(most_rows);
        let is_short = room_for < ROWS_OFFLINE;
        let rows = ROWS_OFFLINE.min(room_for);
        let limits = Limits {
            if_started: IfStarted::Abort,
            log: if is_short { Log::Empty } else { Log::Leave },
            ..FINISHING
        };
        let carried = ctx.transaction(progress, doing, Scope::Room, limits, |tx, effects| {
            let mut freed = Freed::default();
            let rebases = parsed.iter().map_while(|step| match *step {
                Step::Rebase { group, base } => Some(Rebase { group, base }),
                Step::Delete { .. } => None,
            });
            let most = if is_short { 1 } else { usize::MAX };
            let rebases: Vec<Rebase> = rebases.take(most).collect();
            state_groups::rebase_all(tx, room, &rebases, &mut freed)?;
            let mut done = rebases.len();
            // Where room is short, the next transaction.
            if done == 0 || !is_short {
                let to_delete = parsed[done..].iter().map_while(|step| match step {
                    Step::Delete { group } => Some(*group),
                    Step::Rebase { .. } => None,
                });
                let to_delete: Vec<i64> = to_delete.collect();
                let mut archive = archive.as_ref().map(|archive| archive.lock());
                let archive = archive.as_deref_mut();
                let mut frame = GroupsFrame::begin(archive, tx, Kind::StateGroups, clock.now())?;
                let mut each = |db: &Db, group| frame.add(db, group);
                done += state_groups::delete(
                    tx, room, &to_delete, &in_use, rows, &mut freed, &mut each,
                )?;
                frame.finish(room, clock.now())?;
            }
            effects.state_groups_freed = freed.groups;
            freed.add_to(&mut effects.rows);
            Ok(done)
        });
        let carried = match carried {
            // Nothing of it happened, and its log is gone: fewer at once may have room (S-35).
            Err(e) if e.is_full() && on_file && rows > 1 => {
                most_rows = (rows / 8).max(1);
                continue;
            }
            Err(e) if e.is_full() && ctx.release_reserve() => continue,
            Err(e) if e.is_full() && on_file => return Err(disk.full(&ctx.db, room)),
            carried => carried?,
        };
        let done = match carried {
            Outcome::Aborted(Why::HomeserverStarted(sign)) => return Ok(Some(sign)),
            carried => carried.done()?.0,
        };
        at += done;
        ctx.ledger.done_up_to(room.as_str(), steps[at - 1].0)?;
        ctx.publish(progress);
    }
    Ok(None)
}

/// Lets go of the state groups that the ledger notes for these rooms, all of them in one transaction; answers whether it did.
/// Where it did not, everything is still to be done, one room after the other.
pub(super) fn collect_together(
    ctx: &mut JobContext<'_>,
    rooms: &mut [OneOfMany<'_>],
) -> Result<bool, Error> {
    for part in rooms.iter() {
        if !ctx.ledger.steps(part.room.as_str())?.is_empty()
            || state_groups::has_compressor_notes(&ctx.db, part.room)?
        {
            return Ok(false);
        }
    }
    let is_running =
        ctx.server_state == ServerState::Running && ctx.running_homeserver()?.is_some();
    if is_running && !ctx.db.catalog().has("state_groups_pending_deletion") {
        return Ok(false);
    }
    let in_use = in_use(ctx, &ctx.db)?;
    let mut plans: Vec<(usize, Plan)> = Vec::new();
    for (at, part) in rooms.iter_mut().enumerate() {
        let candidates = ctx.ledger.candidates(part.room.as_str())?;
        if !candidates.is_empty() {
            let progress = &mut part.progress;
            let plan = plan_beside(ctx, part.room, progress, &candidates, Walk::Around, &in_use)?;
            plans.push((at, plan));
        }
    }
    if plans.is_empty() {
        return Ok(true);
    }
    match is_running {
        true => mark_together(ctx, rooms, &plans),
        false => delete_together(ctx, rooms, &plans),
    }
}

fn names(rooms: &[OneOfMany<'_>]) -> Vec<RoomId> {
    rooms.iter().map(|part| part.room.clone()).collect()
}

/// What was noted of each room is told in its own progress.
fn tell(rooms: &mut [OneOfMany<'_>], done: Vec<(usize, Effects)>, cost: Cost) {
    for (at, effects) in done {
        rooms[at].progress.add_transaction(&effects, cost.took);
    }
}

fn delete_together(
    ctx: &mut JobContext<'_>,
    rooms: &mut [OneOfMany<'_>],
    plans: &[(usize, Plan)],
) -> Result<bool, Error> {
    let rows: i64 = plans
        .iter()
        .map(|(_, plan)| plan.to_delete.len() as i64)
        .sum();
    // A small disk is worked on in small steps.
    if DiskBudget::new(&ctx.db).rows()? < ROWS_OFFLINE.max(rows) {
        return Ok(false);
    }
    let mut decided = Vec::with_capacity(plans.len());
    for (at, plan) in plans {
        let decision = Decided {
            steps: steps_of(plan)?,
            again: plan.in_use.clone(),
        };
        decided.push((rooms[*at].room, decision));
    }
    ctx.ledger.decide_all(&decided)?;
    // Power that fails must not take back what the ledger has crossed out: nobody would look at those groups again.
    ctx.db.sync_commits(true)?;
    let deleted = delete_planned(ctx, rooms, plans);
    ctx.db.sync_commits(false)?;
    let Some((done, cost)) = deleted? else {
        return Ok(false);
    };
    ctx.ledger.done_all(decided.iter().map(|(room, _)| *room))?;
    tell(rooms, done, cost);
    Ok(true)
}

type OfRooms = (Vec<(usize, Effects)>, Cost);

fn delete_planned(
    ctx: &mut JobContext<'_>,
    rooms: &[OneOfMany<'_>],
    plans: &[(usize, Plan)],
) -> Result<Option<OfRooms>, Error> {
    let in_use = in_use(ctx, &ctx.db)?;
    let limits = Limits {
        if_started: IfStarted::Abort,
        ..FINISHING
    };
    let names = names(rooms);
    let doing = "delete state groups";
    let deleted = ctx.small_transaction(doing, Scope::Together(&names), limits, |tx| {
        let mut done = Vec::with_capacity(plans.len());
        for (at, plan) in plans {
            let room = rooms[*at].room;
            let mut freed = Freed::default();
            state_groups::rebase_all(tx, room, &plan.rebases, &mut freed)?;
            let groups = &plan.to_delete;
            let each = &mut |_: &Db, _| Ok(());
            state_groups::delete(tx, room, groups, &in_use, i64::MAX / 2, &mut freed, each)?;
            let mut effects = Effects {
                state_groups_freed: freed.groups,
                ..Effects::default()
            };
            freed.add_to(&mut effects.rows);
            done.push((*at, effects));
        }
        Ok(done)
    })?;
    Ok(match deleted {
        Outcome::Done(done, cost) => Some((done, cost)),
        Outcome::TooLong | Outcome::Aborted(_) => None,
    })
}

fn mark_together(
    ctx: &mut JobContext<'_>,
    rooms: &mut [OneOfMany<'_>],
    plans: &[(usize, Plan)],
) -> Result<bool, Error> {
    let now = ctx.clock.now();
    let (names, doing) = (names(rooms), "mark state groups for deletion");
    let marked = ctx.small_transaction(doing, Scope::Together(&names), FINISHING, |tx| {
        let mut done = Vec::with_capacity(plans.len());
        for (at, plan) in plans {
            let mut freed = Freed::default();
            state_groups::mark(tx, &plan.to_delete, now, &mut freed)?;
            let mut effects = Effects::default();
            freed.add_to(&mut effects.rows);
            done.push((*at, effects));
        }
        Ok(done)
    })?;
    let Outcome::Done(done, cost) = marked else {
        return Ok(false);
    };
    let decided = plans.iter().map(|(at, plan)| {
        let decision = Decided {
            steps: Vec::new(),
            again: plan.in_use.clone(),
        };
        (rooms[*at].room, decision)
    });
    let decided: Vec<_> = decided.collect();
    ctx.ledger.decide_all(&decided)?;
    for (at, plan) in plans {
        rooms[*at].progress.state_groups_marked += plan.to_delete.len() as i64;
    }
    tell(rooms, done, cost);
    Ok(true)
}
