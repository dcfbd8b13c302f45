//! Rows of one table that a condition tells, and what becomes of them. The condition is asked twice: to find them, and by
//! the statement that mends them.

use super::{Act, CACHES, How, Mend};
use crate::store::catalog::Catalog;
use crate::store::db::{Db, Engine};
use crate::store::tables::{self, Rows, Table};

/// Rows that a condition tells. In the condition the row is `t`, and `t.ADDRESS` where it is stored.
struct Condition {
    rule: &'static str,
    wrong: &'static str,
    table: &'static str,
    /// Tables and columns (`table.column`) without which it says nothing.
    needs: &'static [&'static str],
    /// The room, as an expression.
    room: &'static str,
    /// What a person knows the row by, as an expression that is a text.
    shown: &'static str,
    is_so: &'static str,
    /// What is written; nothing where the row goes.
    set: Option<&'static str>,
    needs_stopped: Option<&'static str>,
    has_text: bool,
    is_leftover: bool,
}

const NO_ROOM: &str = "CAST(NULL AS TEXT)";

const BASE: Condition = Condition {
    rule: "",
    wrong: "",
    table: "",
    needs: &[],
    room: "t.room_id",
    shown: "t.event_id",
    is_so: "",
    set: None,
    needs_stopped: None,
    has_text: false,
    is_leftover: false,
};

const CONDITIONS: &[Condition] = &[
    Condition {
        rule: "I-1",
        wrong: "an edge of an event that is not held",
        table: "event_edges",
        room: NO_ROOM,
        is_so: "NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id)",
        ..BASE
    },
    Condition {
        rule: "I-2",
        wrong: "the JSON of an event that is not held, which keeps it from ever being received again",
        table: "event_json",
        is_so: "NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id)",
        has_text: true,
        ..BASE
    },
    Condition {
        rule: "I-3",
        wrong: "a state group of an event that is not held",
        table: "event_to_state_groups",
        room: NO_ROOM,
        is_so: "NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id)",
        ..BASE
    },
    Condition {
        rule: "I-4",
        wrong: "a forward extremity that is no event of the timeline, in a room that has another one",
        table: "event_forward_extremities",
        is_so: "NOT EXISTS (SELECT 1 FROM events e
                             WHERE e.event_id = t.event_id AND e.room_id = t.room_id AND NOT e.outlier
                               AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id))
                AND EXISTS (SELECT 1 FROM event_forward_extremities f
                              JOIN events e ON e.event_id = f.event_id AND e.room_id = f.room_id
                             WHERE f.room_id = t.room_id AND NOT e.outlier
                               AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id))",
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        rule: "I-5",
        wrong: "a backward extremity that is held in a timeline",
        table: "event_backward_extremities",
        is_so: "EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id AND NOT e.outlier)",
        ..BASE
    },
    Condition {
        rule: "I-6",
        wrong: "a backward extremity that nothing in a timeline points at",
        table: "event_backward_extremities",
        is_so: "NOT EXISTS (SELECT 1 FROM event_edges g JOIN events e ON e.event_id = g.event_id
                             WHERE g.prev_event_id = t.event_id AND NOT e.outlier)",
        ..BASE
    },
    Condition {
        rule: "I-8",
        wrong: "an edge of a state group that is not there",
        table: "state_group_edges",
        room: NO_ROOM,
        shown: "CAST(t.state_group AS TEXT)",
        is_so: "NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = t.state_group)",
        ..BASE
    },
    Condition {
        rule: "I-8",
        wrong: "an edge of a state group that stands there twice",
        table: "state_group_edges",
        room: "(SELECT s.room_id FROM state_groups s WHERE s.id = t.state_group)",
        shown: "CAST(t.state_group AS TEXT)",
        is_so: "EXISTS (SELECT 1 FROM state_group_edges o
                         WHERE o.state_group = t.state_group AND o.prev_state_group = t.prev_state_group
                           AND o.ADDRESS < t.ADDRESS)",
        ..BASE
    },
    Condition {
        rule: "I-9",
        wrong: "state of a state group that is not there",
        table: "state_groups_state",
        shown: "CAST(t.state_group AS TEXT)",
        is_so: "NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = t.state_group)",
        ..BASE
    },
    Condition {
        rule: "I-16",
        wrong: "a state group that waits for its deletion and is not there any more",
        table: "state_groups_pending_deletion",
        room: NO_ROOM,
        shown: "CAST(t.state_group AS TEXT)",
        is_so: "NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = t.state_group)",
        ..BASE
    },
    Condition {
        rule: "I-16",
        wrong: "a state group that waits for its deletion and that an event has",
        table: "state_groups_pending_deletion",
        room: "(SELECT s.room_id FROM state_groups s WHERE s.id = t.state_group)",
        shown: "CAST(t.state_group AS TEXT)",
        is_so: "EXISTS (SELECT 1 FROM event_to_state_groups u WHERE u.state_group = t.state_group)
                AND EXISTS (SELECT 1 FROM state_groups s WHERE s.id = t.state_group)",
        ..BASE
    },
    Condition {
        rule: "I-15",
        wrong: "an unread count below nothing",
        table: "event_push_summary",
        shown: "t.user_id",
        is_so: "(t.notif_count < 0 OR t.unread_count < 0)",
        set: Some(
            "notif_count = CASE WHEN notif_count < 0 THEN 0 ELSE notif_count END,
             unread_count = CASE WHEN unread_count < 0 THEN 0 ELSE unread_count END",
        ),
        ..BASE
    },
    Condition {
        rule: "I-11",
        wrong: "current state with another stream ordering than its event",
        table: "current_state_events",
        needs: &["current_state_events.event_stream_ordering"],
        is_so: OTHER_ORDERING,
        set: Some(ORDERING),
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        rule: "I-11",
        wrong: "a membership with another stream ordering than its event",
        table: "room_memberships",
        needs: &["room_memberships.event_stream_ordering"],
        is_so: OTHER_ORDERING,
        set: Some(ORDERING),
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        rule: "I-11",
        wrong: "a local membership with another stream ordering than its event",
        table: "local_current_membership",
        needs: &["local_current_membership.event_stream_ordering"],
        is_so: OTHER_ORDERING,
        set: Some(ORDERING),
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        rule: "I-14",
        wrong: "a room whose newest event in sliding sync is not held, or older than what lifted it",
        table: "sliding_sync_joined_rooms",
        shown: "t.room_id",
        is_so: "(NOT EXISTS (SELECT 1 FROM events e WHERE e.stream_ordering = t.event_stream_ordering)
                 OR t.bump_stamp > t.event_stream_ordering)
                AND EXISTS (SELECT 1 FROM events e WHERE e.room_id = t.room_id AND NOT e.outlier)",
        set: Some(
            "event_stream_ordering = (SELECT max(e.stream_ordering) FROM events e
                                       WHERE e.room_id = t.room_id AND NOT e.outlier),
             bump_stamp = CASE
                 WHEN bump_stamp <= (SELECT max(e.stream_ordering) FROM events e
                                      WHERE e.room_id = t.room_id AND NOT e.outlier) THEN bump_stamp
                 ELSE (SELECT max(e.stream_ordering) FROM events e
                        WHERE e.room_id = t.room_id AND NOT e.outlier
                          AND e.type IN ('m.room.create', 'm.room.message', 'm.room.encrypted', 'm.sticker',
                                         'm.call.invite', 'm.poll.start', 'm.beacon_info'))
                 END",
        ),
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        rule: "I-14",
        needs: &["local_current_membership"],
        wrong: "a sliding-sync membership with another stream ordering than its event",
        table: "sliding_sync_membership_snapshots",
        shown: "t.membership_event_id",
        is_so: "t.event_stream_ordering
                <> (SELECT e.stream_ordering FROM events e WHERE e.event_id = t.membership_event_id)
                AND NOT EXISTS (SELECT 1 FROM local_current_membership l
                                 WHERE l.room_id = t.room_id AND l.user_id = t.user_id
                                   AND l.event_id <> t.membership_event_id)",
        set: Some(
            "event_stream_ordering = (SELECT e.stream_ordering FROM events e WHERE e.event_id = t.membership_event_id)",
        ),
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        needs: &["local_current_membership"],
        rule: "I-14",
        wrong: "a sliding-sync membership whose event is not held, of somebody who has no membership there",
        table: "sliding_sync_membership_snapshots",
        shown: "t.membership_event_id",
        is_so: "NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.membership_event_id)
                AND NOT EXISTS (SELECT 1 FROM local_current_membership l
                                 WHERE l.room_id = t.room_id AND l.user_id = t.user_id)",
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        rule: "I-12",
        wrong: "a local membership whose event is not held, in a room of which nothing is",
        table: "local_current_membership",
        is_so: "NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id)
                AND NOT EXISTS (SELECT 1 FROM events e WHERE e.room_id = t.room_id)
                AND NOT EXISTS (SELECT 1 FROM rooms r WHERE r.room_id = t.room_id)",
        needs_stopped: Some(CACHES),
        ..BASE
    },
    Condition {
        rule: "I-13",
        wrong: "notes of the state compressor on a state group that is not there",
        table: "state_compressor_state",
        shown: "CAST(t.current_head AS TEXT)",
        is_so: "t.current_head IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = t.current_head)",
        needs_stopped: Some("the state compressor may be at work"),
        is_leftover: true,
        ..BASE
    },
];

const OTHER_ORDERING: &str = "t.event_stream_ordering <> (SELECT e.stream_ordering FROM events e WHERE e.event_id = t.event_id)";

const ORDERING: &str = "event_stream_ordering = (SELECT e.stream_ordering FROM events e WHERE e.event_id = t.event_id)";

/// Tables of events that have a condition of their own, or are the events.
const OWN: [&str; 5] = [
    "events",
    "event_edges",
    "event_json",
    "event_to_state_groups",
    "event_forward_extremities",
];

/// Tables whose rows of rooms that nobody knows stay: they are people's own, or wait to be worked on.
const PEOPLES: [&str; 10] = [
    "e2e_room_keys",
    "room_account_data",
    "room_tags",
    "receipts_graph",
    "receipts_linearized",
    "room_aliases",
    "appservice_room_list",
    "thread_subscriptions",
    "federation_inbound_events_staging",
    "local_current_membership",
];

const NOT_HELD: &str = "NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id)";

const UNKNOWN_ROOM: &str = "NOT EXISTS (SELECT 1 FROM rooms r WHERE r.room_id = t.room_id)
       AND NOT EXISTS (SELECT 1 FROM events e WHERE e.room_id = t.room_id)
       AND NOT EXISTS (SELECT 1 FROM local_current_membership l WHERE l.room_id = t.room_id)
       AND t.room_id IS NOT NULL";

/// Whether rows of the table go where their event does, in a history purge as where the room goes.
pub(crate) fn goes_with_events(table: &Table) -> bool {
    let goes = |rows: Option<Rows>| rows.is_some_and(|rows| rows != Rows::Itself);
    table.is_synapses
        && !OWN.contains(&table.name)
        && table.columns().any(|(column, _)| column == "event_id")
        && (table.held.is_some() || goes(table.purged()) || goes(table.with_event))
}

/// Whether rows of the table say nothing any more where nobody knows their room.
pub(crate) fn goes_with_room(table: &Table) -> bool {
    table.is_synapses
        && table.by_room.is_some()
        && !PEOPLES.contains(&table.name)
        && !goes_with_events(table)
}

/// The columns of a full-text index of SQLite's, as its content has them.
const DOCUMENTS: &str = "event_search_content";

/// All that say something of this database.
pub(super) fn all(db: &Db) -> Vec<Mend> {
    let catalog = db.catalog();
    let mut all: Vec<Mend> = CONDITIONS
        .iter()
        .filter(|one| catalog.has(one.table) && one.needs.iter().all(|need| has(catalog, need)))
        .map(|one| mend(db, one, one.wrong.to_owned()))
        .collect();
    all.extend(outliers(db));
    for table in tables::ALL.iter().filter(|table| catalog.has(table.name)) {
        let room = match catalog.has_column(table.name, "room_id") {
            true => "t.room_id",
            false => NO_ROOM,
        };
        let is_asked = |column| catalog.has_column(table.name, column);
        if goes_with_events(table)
            && is_asked("event_id")
            && table.held_needs.is_none_or(is_asked)
            && !(table.name == "event_search" && db.engine() == Engine::Sqlite)
        {
            let one = Condition {
                rule: "I-13",
                table: table.name,
                room,
                is_so: NOT_HELD,
                // A running homeserver puts what it will notify of there before the event.
                needs_stopped: match table.name {
                    "event_push_actions_staging" => {
                        Some("a running homeserver writes it before the event")
                    }
                    "event_auth_chain_to_calculate" => Some(CACHES),
                    _ => None,
                },
                has_text: table.name == "event_search",
                is_leftover: table.held.is_none(),
                ..BASE
            };
            let wrong = match table.held {
                Some(row) => format!("a {row} of an event that is not held"),
                None => format!("a row of {} of an event that is not held", table.name),
            };
            all.push(mend(db, &one, wrong));
        }
        if goes_with_room(table) && catalog.has("local_current_membership") {
            let one = Condition {
                rule: "I-13",
                table: table.name,
                shown: "t.room_id",
                is_so: UNKNOWN_ROOM,
                needs_stopped: Some("a running homeserver may be about to join the room"),
                is_leftover: true,
                ..BASE
            };
            let wrong = format!("a row of {} of a room that nobody knows", table.name);
            all.push(mend(db, &one, wrong));
        }
    }
    if db.engine() == Engine::Sqlite && catalog.has_column(DOCUMENTS, "c0event_id") {
        let is_so = "NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.c0event_id)";
        all.push(Mend {
            rule: "I-13",
            wrong: "a full-text document of an event that is not held".to_owned(),
            act: Act::Deletes,
            table: "event_search",
            needs_stopped: None,
            has_text: true,
            is_leftover: false,
            how: How::Rows {
                find: format!(
                    "SELECT CAST(t.docid AS TEXT), t.c1room_id, t.c0event_id FROM {DOCUMENTS} t WHERE {is_so} LIMIT $1"
                ),
                act: format!(
                    "DELETE FROM event_search
                      WHERE docid IN (SELECT t.docid FROM {DOCUMENTS} t WHERE t.docid = CAST($1 AS INTEGER) AND {is_so})"
                ),
            },
        });
    }
    all
}

/// Events outside every timeline have a state group only in rooms whose state is a graph of its own.
fn outliers(db: &Db) -> Option<Mend> {
    const OF_OUTLIER: &str =
        "EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id AND e.outlier)
        AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = t.event_id)";
    let any = format!("SELECT count(*) FROM (SELECT 1 FROM {STATE_DAGS} LIMIT 1) AS any_of_them");
    if db.catalog().has(STATE_DAGS) && db.count("look at the rooms", &any, &[]).ok()? > 0 {
        return None;
    }
    let one = Condition {
        rule: "I-3",
        wrong: "a state group of an event outside every timeline",
        table: "event_to_state_groups",
        room: "(SELECT e.room_id FROM events e WHERE e.event_id = t.event_id)",
        is_so: OF_OUTLIER,
        needs_stopped: Some(CACHES),
        ..BASE
    };
    Some(mend(db, &one, one.wrong.to_owned()))
}

const STATE_DAGS: &str = "msc4242_state_dag_edges";

fn has(catalog: &Catalog, need: &str) -> bool {
    match need.split_once('.') {
        Some((table, column)) => catalog.has_column(table, column),
        None => catalog.has(need),
    }
}

/// A row is found where it is stored: not every table has a key. Whoever moved it meanwhile, the condition is asked again.
fn mend(db: &Db, one: &Condition, wrong: String) -> Mend {
    let (address, is_there) = match db.engine() {
        Engine::Sqlite => ("rowid", "t.rowid = CAST($1 AS INTEGER)"),
        Engine::Postgres => ("ctid", "t.ctid = CAST(CAST($1 AS TEXT) AS TID)"),
    };
    let is_so = one.is_so.replace("ADDRESS", address);
    let Condition {
        table, room, shown, ..
    } = one;
    let find = format!(
        "SELECT CAST(t.{address} AS TEXT), {room}, {shown} FROM {table} t WHERE {is_so} LIMIT $1"
    );
    let act = match one.set {
        Some(set) => format!("UPDATE {table} AS t SET {set} WHERE {is_there} AND {is_so}"),
        None => format!("DELETE FROM {table} AS t WHERE {is_there} AND {is_so}"),
    };
    Mend {
        rule: one.rule,
        wrong,
        act: match one.set {
            Some(_) => Act::Corrects,
            None => Act::Deletes,
        },
        table: one.table,
        needs_stopped: one.needs_stopped,
        has_text: one.has_text,
        is_leftover: one.is_leftover,
        how: How::Rows { find, act },
    }
}
