//! State groups, once the events are gone: deciding what nothing refers to any more, noting the decision in the
//! ledger, carrying it out in bounded transactions.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{JobContext, Phase, Progress, ServerState, renew_lock, renew_lock_if_due};
use crate::store::homeserver::SynapseLock;
use crate::store::state_groups::{self, Freed, Plan, Rebase, References};

/// Rows of state that one transaction deletes beside a live server: some 0.1 s.
const ROWS_BESIDE: i64 = 5_000;

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

/// Lets go of the state groups that the ledger notes for the room and that nothing refers to (P-30 … P-46).
///
/// Where the homeserver is stopped they go at once. Where one may be running they are marked, by the protocol of
/// its own tables; where it has no such tables, they wait in the ledger for a purge while it is stopped.
///
/// # Locking
/// The homeserver's lock on the room is held on, and looked at in every transaction (W-4).
pub(super) fn collect(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    lock: &mut Option<&mut SynapseLock>,
) -> Result<(), Error> {
    progress.phase = Phase::StateGroups;
    ctx.publish(progress);
    let room = ctx.room.as_str();
    let candidates = ctx.ledger.candidates(room)?;
    if ctx.server_state == ServerState::Running {
        return leave_to_homeserver(ctx, progress, &candidates, lock);
    }
    // What an interrupted run decided is finished first.
    carry_out(ctx, progress, lock)?;
    if candidates.is_empty() {
        return Ok(());
    }
    let plan = plan(ctx, &candidates, lock)?;
    if plan.kept_as_base > 0 {
        log::info!(
            "room {room}: {} unreferenced state groups stay: without them others would need more rows",
            plan.kept_as_base
        );
    }
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
    let steps = steps.map_err(|e| Error::Bug(format!("writing down what to do: {e}")))?;
    ctx.ledger.decide(room, &steps)?;
    carry_out(ctx, progress, lock)
}

/// What is to go. To find that out in a large room takes minutes.
fn plan(
    ctx: &JobContext<'_>,
    candidates: &[i64],
    lock: &mut Option<&mut SynapseLock>,
) -> Result<Plan, Error> {
    state_groups::plan(&ctx.db, candidates, References::All, &mut |_| {
        renew_lock_if_due(ctx, lock)
    })
}

fn leave_to_homeserver(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    candidates: &[i64],
    lock: &mut Option<&mut SynapseLock>,
) -> Result<(), Error> {
    if candidates.is_empty() {
        return Ok(());
    }
    if !ctx.db.catalog().has("state_groups_pending_deletion") {
        progress.notes.push(
            "state groups that nothing refers to any more are noted in the ledger; they go with the next purge of this \
             room while the homeserver is stopped (this release of it has no way to be told of them)"
                .into(),
        );
        return Ok(());
    }
    let plan = plan(ctx, candidates, lock)?;
    let (clock, now) = (ctx.clock, ctx.clock.now());
    for batch in plan.to_delete.chunks(1_000) {
        let _writer = ctx.writer.lock();
        ctx.db.write("mark state groups for deletion", |db| {
            renew_lock(db, lock, clock)?;
            state_groups::mark(db, batch, now)
        })?;
        std::thread::sleep(ctx.limits.pause);
    }
    progress.state_groups_marked += plan.to_delete.len() as i64;
    ctx.ledger.decide(ctx.room.as_str(), &[])
}

/// Does the steps that the ledger has for the room, and crosses each out when the database has it. A step that is
/// done again changes nothing.
fn carry_out(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    lock: &mut Option<&mut SynapseLock>,
) -> Result<(), Error> {
    let room = ctx.room.clone();
    let steps = ctx.ledger.steps(room.as_str())?;
    if steps.is_empty() {
        return Ok(());
    }
    // Power that fails must not take back what the ledger has crossed out: nobody would look at those groups again.
    ctx.db.sync_commits(true)?;
    let carried = carry_out_steps(ctx, progress, &room, &steps, lock);
    ctx.db.sync_commits(false)?;
    carried
}

fn carry_out_steps(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    room: &RoomId,
    steps: &[(i64, String)],
    lock: &mut Option<&mut SynapseLock>,
) -> Result<(), Error> {
    let doing = "delete state groups";
    let clock = ctx.clock;
    let mut at = 0;
    while at < steps.len() {
        if (ctx.is_stopping)() {
            return Err(Error::Stopping);
        }
        let parsed: Result<Vec<Step>, _> = steps[at..]
            .iter()
            .map(|(_, step)| serde_json::from_str(step))
            .collect();
        let parsed =
            parsed.map_err(|e| Error::Bug(format!("the ledger holds a step that is none: {e}")))?;
        let mut started = Instant::now();
        let mut freed = Freed::default();
        let done = {
            let _alone = ctx.locks.write(room);
            let _writer = ctx.writer.lock();
            ctx.db.write(doing, |db| {
                // From here on others wait for us; before, we waited for them.
                started = Instant::now();
                renew_lock(db, lock, clock)?;
                freed = Freed::default();
                let mut done = 0;
                for step in &parsed {
                    let Step::Rebase { group, base } = step else {
                        break;
                    };
                    state_groups::rebase(
                        db,
                        room,
                        Rebase {
                            group: *group,
                            base: *base,
                        },
                        &mut freed,
                    )?;
                    done += 1;
                    if started.elapsed().as_millis() > 200
                        && ctx.server_state == ServerState::Running
                    {
                        return Ok(done);
                    }
                }
                let to_delete: Vec<i64> = parsed[done..]
                    .iter()
                    .map_while(|step| match step {
                        Step::Delete { group } => Some(*group),
                        Step::Rebase { .. } => None,
                    })
                    .collect();
                let rows = if ctx.server_state == ServerState::Running {
                    ROWS_BESIDE
                } else {
                    ROWS_OFFLINE
                };
                Ok(done + state_groups::delete(db, room, &to_delete, rows, &mut freed)?)
            })?
        };
        at += done;
        ctx.ledger.done_up_to(room.as_str(), steps[at - 1].0)?;
        progress.state_groups_freed += freed.groups;
        for (table, rows) in [
            ("state_groups", freed.groups),
            ("state_groups_state", freed.entries),
            ("state_group_edges", freed.edges),
            ("state_groups_pending_deletion", freed.pending),
        ] {
            if rows != 0 {
                *progress.rows_removed.entry(table.into()).or_default() += rows;
            }
        }
        let took = i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX);
        progress.longest_transaction_ms = progress.longest_transaction_ms.max(took);
        ctx.publish(progress);
    }
    Ok(())
}
