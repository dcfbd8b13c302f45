//! Everything that is known of each room of a server.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::statistics::Statistics;
use crate::error::Error;
use crate::ids::RoomId;
use crate::policy::Policy;
use crate::store::db::Db;
use crate::store::room_statistics::{self, Description, LocalMembers, RowSizes, StateMembers};
use crate::time::Millis;

/// One room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The room.
    pub room_id: RoomId,
    /// Its name.
    pub name: Option<String>,
    /// Its canonical alias, or else one of this server's that leads there.
    pub alias: Option<String>,
    /// Users of this server that are joined.
    pub joined_local_members: i64,
    /// Users that are joined, as far as this server knows. In a room that all of its users left it knows of nobody.
    pub joined_members: i64,
    /// Users of this server that are invited, or have knocked.
    pub waiting_local_members: i64,
    /// Users of this server that have left, or are banned.
    pub left_local_members: i64,
    /// Of these, the ones that have forgotten the room.
    pub forgotten_by: i64,
    /// Events that are held, state that is in no timeline included.
    pub events: i64,
    /// State groups.
    pub state_groups: i64,
    /// Rows that the states of these groups take.
    pub state_rows: i64,
    /// Bytes that the room takes in the database, rows and indexes.
    pub bytes: i64,
    /// Of these, the bytes of its state groups.
    pub state_bytes: i64,
    /// Whether the bytes are estimated from a sample and the average row.
    pub bytes_are_estimated: bool,
    /// When the oldest message that is held came.
    pub oldest_message_ms: Option<Millis>,
    /// When the newest message came.
    pub newest_message_ms: Option<Millis>,
    /// When the newest event that is no membership came.
    pub last_activity_ms: Option<Millis>,
    /// Its version.
    pub version: Option<String>,
    /// Whether it is encrypted; nothing where that cannot be told.
    pub encrypted: Option<bool>,
    /// Whether it is in the public directory.
    pub public: bool,
    /// Whether it is a space.
    pub space: bool,
    /// Whether it has current state here.
    pub has_current_state: bool,
    /// What its retention policy says, and what that would free.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retention: Option<PolicyOf>,
}

/// A room's retention policy and what is over it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyOf {
    /// The policy the room has itself.
    pub own: Option<Policy>,
    /// How long its messages stay: the room's word or the default's, within the limits. Nothing where they stay for ever.
    pub lifetime_ms: Option<Millis>,
    /// Events that a purge by that policy would remove now.
    pub events_over: i64,
    /// The bytes that this would free, estimated.
    pub estimated_bytes: i64,
    /// Why nothing would go.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left_alone: Option<String>,
}

/// The retention policies of rooms, as a plan has found them.
pub type Policies = BTreeMap<RoomId, PolicyOf>;

impl Summary {
    /// Whether nobody of this server is joined.
    pub fn is_empty(&self) -> bool {
        self.joined_local_members == 0
    }

    /// Whether somebody of this server was in it, and nobody is joined, invited or knocking.
    pub fn is_left(&self) -> bool {
        self.is_empty() && self.waiting_local_members == 0 && self.left_local_members > 0
    }

    /// Whether it is left, and everybody who left has forgotten it.
    pub fn is_forgotten(&self) -> bool {
        self.is_left() && self.forgotten_by == self.left_local_members
    }

    /// Whether no message of it is held.
    pub fn is_state_only(&self) -> bool {
        self.newest_message_ms.is_none() && self.oldest_message_ms.is_none()
    }

    /// Whether nobody of another server is joined; nothing where that cannot be told.
    pub fn is_local(&self) -> Option<bool> {
        self.has_current_state
            .then_some(self.joined_members <= self.joined_local_members)
    }
}

/// Everything that is known of every room: those the homeserver knows, and those of which only rows are left.
///
/// # Locking
/// Reads one snapshot, which the caller holds.
pub fn summarize(
    db: &Db,
    statistics: &Statistics,
    server_name: &str,
) -> Result<Vec<Summary>, Error> {
    let state = room_statistics::state_members(db, server_name)?;
    let local = room_statistics::local_members(db)?;
    let described = room_statistics::descriptions(db, state.keys())?;
    let rooms: BTreeSet<&RoomId> = described
        .keys()
        .chain(statistics.rooms.keys())
        .chain(state.keys())
        .chain(local.keys())
        .collect();
    let total = |count: fn(&super::StatisticsOf) -> i64| -> i64 {
        statistics.rooms.values().map(count).sum()
    };
    let sizes = room_statistics::row_sizes(
        db,
        total(|of| of.events.events),
        total(|of| of.state_rows),
        total(|of| of.groups.groups),
        state.values().map(|members| members.entries).sum(),
    )?;
    let summaries = rooms.into_iter().map(|room| {
        let of = Of {
            statistics: statistics.rooms.get(room).copied().unwrap_or_default(),
            state: state.get(room).copied(),
            local: local.get(room).copied().unwrap_or_default(),
            description: described.get(room).cloned().unwrap_or_default(),
        };
        of.summary(room, &sizes)
    });
    let mut summaries: Vec<Summary> = summaries.collect();
    // A file cannot hold more than it has: then its rows are smaller than they usually are.
    let estimated: f64 = summaries.iter().map(|room| room.bytes as f64).sum();
    if let Some(used) = room_statistics::used_bytes(db)?
        && estimated > used as f64
    {
        for room in &mut summaries {
            let share = |bytes: i64| (bytes as f64 * used as f64 / estimated) as i64;
            (room.bytes, room.state_bytes) = (share(room.bytes), share(room.state_bytes));
        }
    }
    Ok(summaries)
}

struct Of {
    statistics: super::StatisticsOf,
    state: Option<StateMembers>,
    local: LocalMembers,
    description: Description,
}

impl Of {
    fn summary(self, room: &RoomId, sizes: &RowSizes) -> Summary {
        let Self {
            statistics,
            state,
            local,
            description,
        } = self;
        let members = state.unwrap_or_default();
        let (events, times) = (statistics.events.events, statistics.times);
        let state_bytes = sizes.state_row * statistics.state_rows as f64
            + sizes.group * statistics.groups.groups as f64;
        let bytes = state_bytes
            + events as f64 * (sizes.event + sizes.json_byte * times.json_bytes as f64)
            + sizes.entry * members.entries as f64;
        Summary {
            room_id: room.clone(),
            name: description.name,
            alias: description.alias,
            // Where the two disagree, nobody is overlooked.
            joined_local_members: local.joined.max(members.joined_here),
            joined_members: members.joined.max(local.joined),
            waiting_local_members: local.waiting,
            left_local_members: local.left,
            forgotten_by: local.forgotten,
            events,
            state_groups: statistics.groups.groups,
            state_rows: statistics.state_rows,
            bytes: bytes as i64,
            state_bytes: state_bytes as i64,
            bytes_are_estimated: true,
            oldest_message_ms: times.oldest_message,
            newest_message_ms: times.newest_message,
            last_activity_ms: times.last_activity,
            version: description.version,
            encrypted: description.encrypted,
            public: description.public,
            space: description.room_type.as_deref() == Some("m.space"),
            has_current_state: state.is_some(),
            retention: None,
        }
    }
}

/// By what rooms are put in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// The bytes they take, the largest first.
    #[default]
    Bytes,
    /// The bytes of their state groups, the largest first.
    State,
    /// Their events, the most first.
    Events,
    /// Their members here, the most first.
    Members,
    /// Their last activity, the longest ago first; rooms without any before them.
    Activity,
    /// Their oldest message, the oldest first; rooms without messages last.
    Oldest,
    /// What their retention policy would free, the most first.
    Over,
    /// Their names, then aliases, then ids.
    Name,
    /// Their ids.
    Id,
}

impl Sort {
    /// All of them, with the words they are asked for by.
    pub const ALL: &'static [(&'static str, Self)] = &[
        ("bytes", Self::Bytes),
        ("state", Self::State),
        ("events", Self::Events),
        ("members", Self::Members),
        ("activity", Self::Activity),
        ("oldest", Self::Oldest),
        ("over", Self::Over),
        ("name", Self::Name),
        ("id", Self::Id),
    ];

    /// The word it is asked for by.
    pub fn word(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, sort)| *sort == self);
        found.map_or("bytes", |(word, _)| word)
    }

    /// By a word.
    ///
    /// # Errors
    /// A sentence that names the words there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(word, _)| *word == text);
        found.map(|(_, sort)| *sort).ok_or_else(|| {
            let words: Vec<&str> = Self::ALL.iter().map(|(word, _)| *word).collect();
            format!(
                "rooms cannot be sorted by '{text}': say one of {}",
                words.join(", ")
            )
        })
    }

    /// Puts rooms in order; rooms that are equal are in the order of their ids.
    pub fn sort(self, rooms: &mut [Summary]) {
        let over = |room: &Summary| room.retention.as_ref().map_or(0, |of| of.estimated_bytes);
        let named = |room: &Summary| {
            let name = room.name.as_ref().or(room.alias.as_ref());
            (name.is_none(), name.map(|name| name.to_lowercase()))
        };
        let order = |a: &Summary, b: &Summary| -> Ordering {
            match self {
                Self::Bytes => b.bytes.cmp(&a.bytes),
                Self::State => b.state_bytes.cmp(&a.state_bytes),
                Self::Events => b.events.cmp(&a.events),
                Self::Members => Reverse((a.joined_local_members, a.joined_members))
                    .cmp(&Reverse((b.joined_local_members, b.joined_members))),
                Self::Activity => a.last_activity_ms.cmp(&b.last_activity_ms),
                Self::Oldest => (a.oldest_message_ms.is_none(), a.oldest_message_ms)
                    .cmp(&(b.oldest_message_ms.is_none(), b.oldest_message_ms)),
                Self::Over => over(b).cmp(&over(a)),
                Self::Name => named(a).cmp(&named(b)),
                Self::Id => Ordering::Equal,
            }
        };
        rooms.sort_by(|a, b| order(a, b).then_with(|| a.room_id.cmp(&b.room_id)));
    }
}

/// Sums over rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// How many rooms.
    pub rooms: i64,
    /// Their events.
    pub events: i64,
    /// Their state groups.
    pub state_groups: i64,
    /// Rows of their states.
    pub state_rows: i64,
    /// The bytes they take, estimated.
    pub bytes: i64,
    /// Users of this server that are joined to one of them, counted once for each.
    pub joined_local_members: i64,
}

impl Totals {
    /// Of these rooms.
    pub fn of<'a>(rooms: impl IntoIterator<Item = &'a Summary>) -> Self {
        let mut totals = Self::default();
        for room in rooms {
            totals.rooms += 1;
            totals.events += room.events;
            totals.state_groups += room.state_groups;
            totals.state_rows += room.state_rows;
            totals.bytes = totals.bytes.saturating_add(room.bytes);
            totals.joined_local_members += room.joined_local_members;
        }
        totals
    }
}
