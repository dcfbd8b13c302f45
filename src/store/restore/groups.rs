//! State groups that come back.

use std::collections::HashSet;

use super::{DOING, Fields, Item, Numbers, Restored, group, walk};
use crate::archive::Records;
use crate::error::Error;
use crate::store::db::params;
use crate::store::event_rows::add;
use crate::store::tx::Tx;

/// Binds `$1` group, `$2` room, `$3` event.
const INSERT_GROUP: &str = "INSERT INTO state_groups (id, room_id, event_id) VALUES ($1, $2, $3)";

/// Binds `$1` group, `$2` the one that it is a delta on.
const INSERT_EDGE: &str = "
    INSERT INTO state_group_edges (state_group, prev_state_group)
    SELECT $1, $2
     WHERE NOT EXISTS (SELECT 1 FROM state_group_edges WHERE state_group = $1 AND prev_state_group = $2)";

/// Binds `$1` group, `$2` room, `$3` type, `$4` state key, `$5` event.
const INSERT_ENTRY: &str = "
    INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id) VALUES ($1, $2, $3, $4, $5)";

/// Binds `$1` group.
const KEEP_GROUP: &str = "DELETE FROM state_groups_pending_deletion WHERE state_group = $1";

/// Puts the state groups of a frame back, in one transaction. `records` opens the frame: it is read twice, because a group
/// can rest on one that stands behind it.
///
/// # Errors
/// Those of the archive and of the database; nothing has come back then.
pub(super) fn restore_groups(
    db: &Tx<'_>,
    records: &dyn Fn() -> Result<Records, Error>,
    numbers: &Numbers,
) -> Result<Restored, Error> {
    let mut restored = Restored::default();
    let mut back = HashSet::new();
    let can_wait = db.catalog().has("state_groups_pending_deletion");
    walk(&mut records()?, &mut |item| {
        let Item::Row("state_groups", columns, cells) = item else {
            return Ok(());
        };
        let (id, known) = Fields(columns, &cells).known()?;
        let target = numbers.group(id);
        match group(db, target)? {
            Some(stands) if stands == known => {
                if can_wait {
                    db.execute(DOING, KEEP_GROUP, params![target])?;
                }
            }
            Some(_) => {
                return Err(Error::Refused(format!(
                    "state group {target} was given out meanwhile: try again"
                )));
            }
            None => {
                db.execute(DOING, INSERT_GROUP, params![target, known.0, known.1])?;
                back.insert(target);
                restored.groups += 1;
                add(&mut restored.rows, "state_groups", 1);
            }
        }
        Ok(())
    })?;
    walk(&mut records()?, &mut |item| {
        let Item::Row(table, columns, cells) = item else {
            return Ok(());
        };
        if table != "state_group_edges" && table != "state_groups_state" {
            return Ok(());
        }
        let row = Fields(columns, &cells);
        let target = numbers.group(row.int("state_group")?);
        if !back.contains(&target) {
            return Ok(());
        }
        if table == "state_group_edges" {
            let base = numbers.group(row.int("prev_state_group")?);
            db.execute(DOING, INSERT_EDGE, params![target, base])?;
        } else {
            let entry = params![
                target,
                row.text("room_id")?,
                row.text("type")?,
                row.text("state_key")?,
                row.text("event_id")?
            ];
            db.execute(DOING, INSERT_ENTRY, entry)?;
        }
        add(&mut restored.rows, table, 1);
        Ok(())
    })?;
    Ok(restored)
}
