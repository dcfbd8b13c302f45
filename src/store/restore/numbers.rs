//! New numbers for what comes back and cannot have its former one, because that was given out again.

use std::collections::BTreeMap;

use super::{DOING, Look, group};
use crate::archive::Cell;
use crate::error::Error;
use crate::ids::RoomId;
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

const GREATEST_CHAIN: &str = "SELECT max(chain_id) FROM event_auth_chains";

const GREATEST_CHAIN_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT greatest((SELECT max(chain_id) FROM event_auth_chains), (SELECT last_value FROM event_auth_chain_id))";

/// Binds `$1` the greatest number in use.
const SET_CHAINS: &str = "-- PostgreSQL
    SELECT setval('event_auth_chain_id', greatest($1, (SELECT last_value FROM event_auth_chain_id)))";

/// Whether a chain is another room's, or nobody knows whose. Binds `$1` chain, `$2` room. Walks the key on chain.
const IS_ANOTHERS: &str = "
    SELECT EXISTS (SELECT 1 FROM event_auth_chains c
                     LEFT JOIN events e ON e.event_id = c.event_id
                    WHERE c.chain_id = $1 AND coalesce(e.room_id, '') <> $2)";

/// Whether a chain's number was given out again.
pub(super) fn is_taken(db: &Db, chain: i64, room: &RoomId) -> Result<bool, Error> {
    Ok(db.count(DOING, IS_ANOTHERS, params![chain, room.as_str()])? > 0)
}

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
    /// Chains of the auth graph.
    pub chains: BTreeMap<i64, i64>,
}

impl Numbers {
    pub(super) fn group(&self, group: i64) -> i64 {
        self.groups.get(&group).copied().unwrap_or(group)
    }

    pub(super) fn chain(&self, chain: i64) -> i64 {
        self.chains.get(&chain).copied().unwrap_or(chain)
    }

    /// Puts the new numbers into a row.
    pub(super) fn exchange(&self, columns: &[String], cells: &mut [Cell<'static>]) {
        for (column, cell) in columns.iter().zip(cells) {
            let numbers = match column.as_str() {
                "state_group" => &self.groups,
                "chain_id" | "origin_chain_id" | "target_chain_id" => &self.chains,
                "stream_ordering"
                | "event_stream_ordering"
                | "bump_stamp"
                | "last_receipt_stream_ordering"
                | "unsubscribed_at_stream_ordering"
                | "redact_end_ordering" => &self.orders,
                _ => continue,
            };
            if let Some(new) = cell.int().and_then(|number| numbers.get(&number)) {
                *cell = Cell::Int(*new);
            }
        }
    }
}

impl Numbers {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.groups.len() + self.orders.len() + self.chains.len()
    }

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
        if let Some(chain) = self.chains.values().max() {
            db.count(DOING, SET_CHAINS, params![*chain])?;
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
    numbers.chains = before.chains.clone();
    if !look.taken_chains.is_empty() {
        let sql = db.text(GREATEST_CHAIN, GREATEST_CHAIN_ON_POSTGRES);
        let given = before.chains.values().copied().max().unwrap_or(0);
        let mut next = db
            .count(DOING, sql, &[])?
            .max(look.greatest_chain)
            .max(given);
        for id in &look.taken_chains {
            next += 1;
            numbers.chains.insert(*id, next);
        }
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
