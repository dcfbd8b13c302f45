//! State groups of a room that nothing refers to, whoever left them behind: what would go, and letting them go.

use serde::Serialize;

use super::state_groups::collect_by;
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{JobContext, Progress, Removes};
use crate::store::db::Db;
use crate::store::event_rows::{RowCounts, add};
use crate::store::state_groups::{self, References, Rules, Unreferenced, Walk};

/// Groups that are decided on at once: bounds memory, and what the ledger holds.
const PIECE: usize = 50_000;

/// What a sweep would do to one room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomSweep {
    /// The room, known or not.
    pub room_id: RoomId,
    /// State groups that would go.
    pub state_groups: i64,
    /// State groups that nothing refers to and that stay: without them others would need more rows, or an event in flight
    /// uses them, or nobody can say what they hold.
    pub state_groups_kept: i64,
    /// Rows that would be removed, by table; one that is negative is more.
    pub rows_removed: RowCounts,
    /// Whether that is exact. In a room with more than fifty thousand of them the rows of those that others rest on are
    /// not.
    pub is_exact: bool,
    /// What a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Plans a sweep of a room's groups, the youngest first, as the run goes about it. Reads only.
///
/// # Errors
/// What the run would refuse: a damaged index.
pub fn plan_sweep(
    db: &Db,
    room: &RoomId,
    unreferenced: &Unreferenced,
    groups: &[i64],
) -> Result<RoomSweep, Error> {
    let in_use = state_groups::persisting(db)?;
    let in_use = in_use.iter().map(|row| row.group).collect();
    let rules = Rules {
        room: Some(room),
        references: References::All,
        walk: Walk::Candidates,
        in_use: &in_use,
    };
    let mut sweep = RoomSweep {
        room_id: room.clone(),
        state_groups: 0,
        state_groups_kept: 0,
        rows_removed: RowCounts::new(),
        is_exact: groups.len() <= PIECE,
        notes: Vec::new(),
    };
    for piece in groups.chunks(PIECE) {
        unreferenced.confirm(db, room, piece)?;
        let plan = state_groups::plan(db, piece, rules, &mut |_| Ok(()))?;
        sweep.state_groups += plan.to_delete.len() as i64;
        sweep.state_groups_kept += piece.len() as i64 - plan.to_delete.len() as i64;
        for (table, rows) in plan.rows_removed() {
            add(&mut sweep.rows_removed, &table, rows);
        }
        sweep.notes.extend(plan.tangles.notes());
    }
    Ok(sweep)
}

/// Sweeps a room's groups, the youngest first. Beside a homeserver they are marked, as its own protocol has it.
///
/// # Errors
/// [`Error::Held`] where the whole room is held; [`Error::Refused`] for a damaged index, or where a homeserver runs that
/// has no way to be told; [`Error::Stopping`] between two transactions. What was done is whole.
///
/// # Locking
/// As [`super::run`], but for the homeserver's lock: what goes is of no use to it.
pub fn sweep_room(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    unreferenced: &Unreferenced,
    groups: &[i64],
) -> Result<(), Error> {
    ctx.heed_holds(Removes::History)?;
    for piece in groups.chunks(PIECE) {
        ctx.check_cancelled()?;
        refuse_without_protocol(ctx)?;
        unreferenced.confirm(&ctx.db, ctx.room, piece)?;
        ctx.ledger.add_candidates(ctx.room.as_str(), piece)?;
        collect_by(ctx, progress, Walk::Candidates)?;
        ctx.save_progress(progress);
    }
    Ok(())
}

/// A homeserver of an old release deletes groups without a word to anybody, and cannot be told of any.
fn refuse_without_protocol(ctx: &mut JobContext<'_>) -> Result<(), Error> {
    if ctx.db.catalog().has("state_groups_pending_deletion") {
        return Ok(());
    }
    match ctx.running_homeserver()? {
        None => Ok(()),
        Some(sign) => Err(Error::Refused(format!(
            "a homeserver runs ({sign}), and its release has no way to be told of state groups that nothing refers to: \
             stop it, and ask again"
        ))),
    }
}
