//! Groups that events in flight use (P-42, P-45).

use crate::error::Error;
use crate::store::db::Db;
use crate::time::Millis;

/// A row of `state_groups_persisting`: the homeserver uses the group for an event in flight, or died in that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persisting {
    /// The group.
    pub group: i64,
    /// Which of the homeserver's processes.
    pub instance: String,
    /// Since when, where the row says so (schema 94).
    pub since: Option<Millis>,
}

/// The groups that are being used by events in flight, those of homeservers that died among them. Few.
pub fn persisting(db: &Db) -> Result<Vec<Persisting>, Error> {
    const WITH_TIME: &str =
        "SELECT state_group, instance_name, inserted_ts FROM state_groups_persisting";
    const WITHOUT: &str = "SELECT state_group, instance_name, 0 FROM state_groups_persisting";
    if !db.catalog().has("state_groups_persisting") {
        return Ok(Vec::new());
    }
    let has_time = db
        .catalog()
        .has_column("state_groups_persisting", "inserted_ts");
    let sql = if has_time { WITH_TIME } else { WITHOUT };
    db.rows("read the state groups in use", sql, &[], |r| {
        let since = r.get::<_, i64>(2)?;
        Ok(Persisting {
            group: r.get(0)?,
            instance: r.get(1)?,
            since: (since != 0).then_some(Millis(since)),
        })
    })
}
