//! New numbers for what comes back and cannot have its former one, because that was given out again.

use std::collections::BTreeMap;

use super::{DOING, Look, group};
use crate::error::Error;
use crate::store::db::{Db, Engine, params};

const LEAST_ORDER: &str = "SELECT min(stream_ordering) FROM events";

/// What was given out last is not given out again, whether or not it is there.
const LEAST_ORDER_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT least((SELECT min(stream_ordering) FROM events), (SELECT -last_value FROM events_backfill_stream_seq))";

const GREATEST_GROUP: &str = "SELECT max(id) FROM state_groups";

const GREATEST_GROUP_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT greatest((SELECT max(id) FROM state_groups), (SELECT last_value FROM state_group_id_seq))";

/// Binds `$1` the greatest number in use.
const SET_GROUPS: &str = "-- PostgreSQL
    SELECT setval('state_group_id_seq', greatest($1, (SELECT last_value FROM state_group_id_seq)))";

/// Binds `$1` the least number in use, without its sign.
const SET_ORDERS: &str = "-- PostgreSQL
    SELECT setval('events_backfill_stream_seq', greatest($1, (SELECT last_value FROM events_backfill_stream_seq)))";

/// The new numbers of what cannot have its former one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// State groups.
    pub groups: BTreeMap<i64, i64>,
    /// Stream orderings.
    pub orders: BTreeMap<i64, i64>,
}

impl Numbers {
    pub(super) fn group(&self, group: i64) -> i64 {
        self.groups.get(&group).copied().unwrap_or(group)
    }
}

impl Numbers {
    /// Has a server give none of them out. Before the first transaction that goes by them.
    ///
    /// # Errors
    /// Those of the database.
    pub fn take(&self, db: &Db) -> Result<(), Error> {
        if db.engine() == Engine::Sqlite {
            return Ok(());
        }
        if let Some(group) = self.groups.values().max() {
            db.count(DOING, SET_GROUPS, params![*group])?;
        }
        if let Some(order) = self.orders.values().min() {
            db.count(DOING, SET_ORDERS, params![-*order])?;
        }
        Ok(())
    }
}

/// When every frame was looked at: what is missing is counted, and what needs a new number gets one.
///
/// # Errors
/// Those of the database.
pub fn number(db: &Db, look: &mut Look, before: &Numbers) -> Result<Numbers, Error> {
    for (id, known) in &look.needed {
        if look.known.get(id) != Some(known)
            && group(db, before.group(*id))?.as_ref() != Some(known)
        {
            look.missing_groups += 1;
        }
    }
    let mut numbers = Numbers {
        groups: before.groups.clone(),
        ..Numbers::default()
    };
    look.groups = look.coming.len() as i64;
    // A base is older than what rests on it: with a base, what comes back on it gets a new number too.
    look.edges.sort_unstable();
    for (id, base) in &look.edges {
        let is_new = |id| numbers.groups.contains_key(id) || look.taken_groups.contains(id);
        if look.coming.contains(id) && is_new(base) {
            look.taken_groups.insert(*id);
        }
    }
    let given = before.groups.values().copied().max().unwrap_or(0);
    let greatest = db.count(
        DOING,
        db.text(GREATEST_GROUP, GREATEST_GROUP_ON_POSTGRES),
        &[],
    )?;
    let mut next = greatest.max(look.greatest_group).max(given);
    for id in &look.taken_groups {
        next += 1;
        numbers.groups.insert(*id, next);
    }
    let least = db
        .count(DOING, db.text(LEAST_ORDER, LEAST_ORDER_ON_POSTGRES), &[])?
        .min(look.least_order)
        .min(0);
    // In their order, below all others: what is old must not look new to anybody.
    let first = least - look.taken_orders.len() as i64;
    let orders = look.taken_orders.iter().copied();
    numbers.orders = orders.zip(first..).collect();
    Ok(numbers)
}
