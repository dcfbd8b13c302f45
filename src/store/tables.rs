//! Every table that a homeserver's database can have, as a value: what happens to its rows in a history purge and where a
//! room goes, and which of its columns can name an event or a room.
//!
//! Purges, deletions, foreign keys, the refusals of unknown tables and `check` derive from the one [list](ALL). A table of
//! a Synapse of tomorrow is one row in it; what has statements of its own (state groups, threads, unread counts, the
//! full-text index of a file) says so there.

mod list;

use super::db::Engine;
pub use list::ALL;

/// How a table's rows are found by the events that were selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Rows of events to delete, by `event_id`.
    Deleted,
    /// Rows of all selected events, by `event_id` (P-12).
    Selected,
    /// Rows of events to delete, by room and event: the only index there is.
    DeletedInRoom,
    /// The events themselves.
    Itself,
}

/// When rows go that are found by their room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// With what makes the room live: the homeserver sees no room afterwards.
    LiveState,
    /// After the events have gone.
    AfterEvents,
}

/// What a history purge does to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPurge {
    /// Nothing.
    Stays,
    /// Removes the rows of selected events.
    Removed(Rows),
    /// Repairs what pointed at deleted events, with statements of its own.
    Corrected,
}

/// Of how many things a table holds rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Of nearly every event: walked from the selection, without asking how large the table is.
    Event,
    /// Of many events: worth writing anew where nearly all of them go.
    ManyEvents,
    /// Of every member of a room, who may be a hundred thousand.
    Member,
    /// Of few.
    Few,
}

/// What becomes of rows that are found neither by their event nor by their room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// There is nothing to be decided: no column names an event or a room.
    Unconcerned,
    /// They stay where a room goes, for this reason (E-10).
    Kept(&'static str),
    /// They go with the room by statements of their own, at this moment.
    Own(&'static str),
}

/// What a column holds, as far as it can name something that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// The id of an event.
    Event,
    /// The stream ordering of an event.
    Order,
    /// The id of a room.
    Room,
    /// The number of a state group.
    Group,
    /// JSON, or a list, in which ids can stand.
    Json,
    /// Text of people or of servers, in which ids can stand.
    Text,
    /// Something else.
    Plain,
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its columns in any release, on either engine; see [`Table::columns`].
    columns: &'static str,
    /// The schema with which it appeared, where that is newer than the oldest that we work on.
    pub since: Option<i64>,
    /// The schema without it.
    pub until: Option<i64>,
    /// The only engine that has it, if there is one.
    pub engine: Option<Engine>,
    /// Whether it is Synapse's own.
    pub is_synapses: bool,
    /// What a history purge does to it.
    pub on_purge: OnPurge,
    /// How rows go with the events of a room that goes.
    pub with_event: Option<Rows>,
    /// When rows go by their room.
    pub by_room: Option<Step>,
    /// What becomes of them otherwise.
    pub otherwise: Otherwise,
    /// Of how many things it holds rows.
    pub per: Per,
    /// What a row is called of which `check` asks that its event is held (I-13).
    pub held: Option<&'static str>,
    /// The column without which that is not asked.
    pub held_needs: Option<&'static str>,
    /// Whether foreign keys of Synapse's own start here, on `events`, `rooms` or `partial_state_rooms`: our rules know them.
    pub refers: bool,
}

impl Table {
    /// Its columns, each with what it holds.
    pub fn columns(&self) -> impl Iterator<Item = (&'static str, Holds)> + use<> {
        self.columns.split(' ').map(|column| {
            let (name, holds) = column.split_once(':').unwrap_or((column, ""));
            (name, Holds::named(holds))
        })
    }

    /// Whether a history purge removes rows or writes to them.
    pub fn is_written_by_purge(&self) -> bool {
        self.on_purge != OnPurge::Stays
    }

    /// How a history purge finds the rows that it removes.
    pub fn purged(&self) -> Option<Rows> {
        match self.on_purge {
            OnPurge::Removed(rows) => Some(rows),
            OnPurge::Stays | OnPurge::Corrected => None,
        }
    }
}

impl Holds {
    fn named(word: &str) -> Self {
        match word {
            "event" => Self::Event,
            "order" => Self::Order,
            "room" => Self::Room,
            "group" => Self::Group,
            "json" => Self::Json,
            "text" => Self::Text,
            _ => Self::Plain,
        }
    }
}

/// What we know of a table of this name.
pub fn named(name: &str) -> Option<&'static Table> {
    ALL.iter().find(|table| table.name == name)
}

/// The tables that a history purge removes rows from, in its order.
pub fn purged() -> impl Iterator<Item = &'static Table> {
    ALL.iter().filter(|table| table.purged().is_some())
}

/// The tables of which rows go with the events of a room that goes: `events` last, because of what refers to it.
pub fn with_events_of_room() -> impl Iterator<Item = &'static Table> {
    let with = |is_last: bool| {
        ALL.iter().filter(move |table| {
            table
                .with_event
                .is_some_and(|rows| (rows == Rows::Itself) == is_last)
        })
    };
    with(false).chain(with(true))
}

/// The tables of which rows go by their room in a step, in its order.
pub fn by_room(step: Step) -> impl Iterator<Item = &'static Table> {
    ALL.iter().filter(move |table| table.by_room == Some(step))
}

/// Suffixes of the tables in which SQLite keeps a full-text index.
const SHADOWS: [&str; 5] = ["_content", "_segments", "_segdir", "_docsize", "_stat"];

/// Whether a table of this name stands in the list, or is a part of one that does.
pub fn is_known(name: &str) -> bool {
    let is_shadow = || {
        SHADOWS.iter().any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|index| index.ends_with("_search") && named(index).is_some())
        })
    };
    named(name).is_some() || is_shadow()
}

#[cfg(test)]
mod tests;
