//! A history purge as behaviour.md tells it, done on tables in memory: slow, plain, and sharing nothing with the engine.
//!
//! Rules are named by their numbers. State groups have a file of their own.

use std::collections::{BTreeMap, BTreeSet};

use roomkeeper::hold::HeldEvents;

use super::arrivals;
use super::state_model::{self, Collected};
use super::tables::{Row, Tables, Value};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub room: &'a str,
    pub below: i64,
    pub delete_local_events: bool,
    pub keep_received_after: Option<i64>,
    /// P-51: a homeserver runs beside us.
    pub keep_extremities: bool,
    /// What holds keep.
    pub held: &'a [HeldEvents],
    pub server_name: &'a str,
}

/// Why a purge is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// P-2.
    WouldEmptyRoom,
    /// P-18.
    PartialState(String),
}

/// What a purge did.
pub struct Purged {
    /// The tables afterwards; of the state tables, what must hold is in `state`.
    pub tables: Tables,
    /// Rows that went, by table, the state tables apart.
    pub removed: BTreeMap<String, i64>,
    pub deleted: BTreeSet<String>,
    pub outliered: BTreeSet<String>,
    pub state: Collected,
}

type Ids = BTreeSet<String>;

/// Purges.
pub fn purge(before: &Tables, wanted: &Wanted<'_>) -> Result<Purged, Refused> {
    guard(before, wanted)?;
    let (deleted, outliered) = select(before, wanted);
    for row in before.rows("partial_state_events") {
        if deleted.contains(row.word("event_id")) {
            return Err(Refused::PartialState(row.word("event_id").to_owned()));
        }
    }
    let mut purge = Purge {
        now: before.clone(),
        removed: BTreeMap::new(),
        wanted,
        deleted,
        outliered,
    };
    // P-7: an empty selection touches nothing.
    let candidates = if purge.deleted.is_empty() && purge.outliered.is_empty() {
        BTreeSet::new()
    } else {
        purge.carry_out(before)
    };
    purge.now.sort();
    let state = state_model::collect(&purge.now, &candidates);
    Ok(Purged {
        tables: purge.now,
        removed: purge.removed,
        deleted: purge.deleted,
        outliered: purge.outliered,
        state,
    })
}

/// P-2.
fn guard(tables: &Tables, wanted: &Wanted<'_>) -> Result<(), Refused> {
    let held = |id: &str| {
        let mut events = tables.rows("events").iter();
        events.find(|e| e.word("event_id") == id && e.word("room_id") == wanted.room)
    };
    let mut depths = Vec::new();
    for row in tables.rows("event_forward_extremities") {
        if row.word("room_id") == wanted.room
            && let Some(event) = held(row.word("event_id"))
        {
            depths.push(event.number("depth"));
        }
    }
    if !depths.is_empty() && depths.iter().all(|d| *d < wanted.below) {
        return Err(Refused::WouldEmptyRoom);
    }
    Ok(())
}

/// Whether a hold keeps an event: by either clock, and where nobody can tell.
pub fn is_held(event: &Row, held: &HeldEvents) -> bool {
    let is_within = |ts: i64| held.since.0 <= ts && ts <= held.until.0;
    let is_of = match (&held.sender, event.text("sender")) {
        (None, _) | (Some(_), None) => true,
        (Some(wanted), Some(sender)) => wanted.as_str() == sender,
    };
    let received = event.int("received_ts");
    let sent = event.int("origin_server_ts");
    is_of && (received.is_none_or(is_within) || sent.is_some_and(is_within))
}

/// P-4 to P-6 and P-21: what is deleted, and what becomes an outlier.
fn select(tables: &Tables, wanted: &Wanted<'_>) -> (Ids, Ids) {
    let state: BTreeSet<&str> = tables
        .rows("state_events")
        .iter()
        .map(|s| s.word("event_id"))
        .collect();
    let is_local = |event: &Row| {
        let sender = event.text("sender");
        sender
            .and_then(|s| s.split_once(':'))
            .is_some_and(|(_, d)| d == wanted.server_name)
    };
    let extremities: BTreeSet<&str> = tables
        .rows("event_forward_extremities")
        .iter()
        .map(|f| f.word("event_id"))
        .collect();
    // Samples have no stamps in the future.
    let expired = wanted
        .keep_received_after
        .map(|after| arrivals::expired(tables, after + 1, i64::MAX / 2));
    let below: Vec<&Row> = tables
        .rows("events")
        .iter()
        .filter(|e| {
            e.word("room_id") == wanted.room && e.number("topological_ordering") < wanted.below
        })
        .filter(|e| {
            expired
                .as_ref()
                .is_none_or(|all| all.contains(e.word("event_id")))
        })
        .filter(|e| !wanted.held.iter().any(|held| is_held(e, held)))
        .filter(|e| !(wanted.keep_extremities && extremities.contains(e.word("event_id"))))
        .collect();
    let mut deletable: Ids = below
        .iter()
        .filter(|e| !state.contains(e.word("event_id")))
        .filter(|e| wanted.delete_local_events || !is_local(e))
        .map(|e| e.word("event_id").to_owned())
        .collect();
    // P-52: only what is held in the same room.
    let held: BTreeSet<&str> = tables
        .rows("events")
        .iter()
        .filter(|e| e.word("room_id") == wanted.room)
        .map(|e| e.word("event_id"))
        .collect();
    loop {
        let kept: Vec<&str> = tables
            .rows("redactions")
            .iter()
            .filter(|r| deletable.contains(r.word("event_id")))
            .filter(|r| held.contains(r.word("redacts")) && !deletable.contains(r.word("redacts")))
            .map(|r| r.word("event_id"))
            .collect();
        if kept.is_empty() {
            break;
        }
        for id in kept {
            deletable.remove(id);
        }
    }
    let outliered = below
        .iter()
        .filter(|e| !e.is("outlier"))
        .map(|e| e.word("event_id").to_owned())
        .filter(|id| !deletable.contains(id))
        .collect();
    (deletable, outliered)
}

/// Tables that lose the rows of deleted events, by `event_id` (P-13, P-15, P-17, P-20).
const LOSE_DELETED: &[&str] = &[
    "event_edges",
    "event_forward_extremities",
    "events",
    "event_json",
    "event_auth",
    "event_relations",
    "rejections",
    "redactions",
    "event_push_actions",
    "event_labels",
    "event_expiry",
    "event_push_actions_staging",
];

struct Purge<'a> {
    now: Tables,
    removed: BTreeMap<String, i64>,
    wanted: &'a Wanted<'a>,
    deleted: Ids,
    outliered: Ids,
}

impl Purge<'_> {
    /// Everything but the state groups; answers those to look at (P-12).
    fn carry_out(&mut self, before: &Tables) -> BTreeSet<i64> {
        let selected: Ids = self.deleted.union(&self.outliered).cloned().collect();
        let groups = before.rows("event_to_state_groups").iter();
        let candidates = groups
            .filter(|g| selected.contains(g.word("event_id")))
            .map(|g| g.number("state_group"))
            .collect();
        self.lose("event_to_state_groups", |r| {
            selected.contains(r.word("event_id"))
        });
        self.lower_unread_counts(before);
        self.drop_forward_extremities(&selected);
        let deleted = self.deleted.clone();
        for table in LOSE_DELETED {
            self.lose(table, |r| deleted.contains(r.word("event_id")));
        }
        self.lose("event_search_content", |r| {
            deleted.contains(r.word("c0event_id"))
        });
        let outliered = self.outliered.clone();
        for event in self.now.rows_mut("events") {
            if outliered.contains(event.word("event_id")) {
                event.set("outlier", true);
            }
        }
        self.replace_backward_extremities(before, &selected);
        self.repair_threads();
        self.move_newest(before);
        self.raise_depth();
        candidates
    }

    fn lose(&mut self, table: &str, goes: impl Fn(&Row) -> bool) {
        let gone = self.now.retain(table, |row| !goes(row));
        self.count(table, gone);
    }

    fn count(&mut self, table: &str, rows: i64) {
        // People know the index by its name.
        let table = if table == "event_search_content" {
            "event_search"
        } else {
            table
        };
        if rows > 0 {
            *self.removed.entry(table.to_owned()).or_default() += rows;
        }
    }

    fn in_room(&self, table: &str) -> Vec<Row> {
        let rows = self.now.rows(table).iter();
        rows.filter(|r| r.text("room_id") == Some(self.wanted.room))
            .cloned()
            .collect()
    }

    /// Events of the room's timeline that survive.
    fn timeline(&self) -> Vec<Row> {
        self.in_room("events")
            .into_iter()
            .filter(|e| !e.is("outlier"))
            .collect()
    }

    /// P-3: an event that leaves the timeline is no extremity when another remains.
    fn drop_forward_extremities(&mut self, selected: &Ids) {
        let remains = |r: &Row| !selected.contains(r.word("event_id"));
        if self
            .in_room("event_forward_extremities")
            .iter()
            .any(remains)
        {
            let room = self.wanted.room;
            let selected = selected.clone();
            self.lose("event_forward_extremities", move |r| {
                r.word("room_id") == room && selected.contains(r.word("event_id"))
            });
        }
    }

    /// P-9 and P-10. The tables are those after the deletions.
    fn replace_backward_extremities(&mut self, before: &Tables, selected: &Ids) {
        let timeline: Ids = self
            .timeline()
            .iter()
            .map(|e| e.word("event_id").to_owned())
            .collect();
        let pointed_at: Ids = self
            .now
            .rows("event_edges")
            .iter()
            .filter(|g| timeline.contains(g.word("event_id")))
            .map(|g| g.word("prev_event_id").to_owned())
            .collect();
        let former: Ids = before
            .rows("event_backward_extremities")
            .iter()
            .filter(|b| b.word("room_id") == self.wanted.room)
            .map(|b| b.word("event_id").to_owned())
            .collect();
        let extremities: Ids = selected
            .iter()
            .chain(former.iter().filter(|b| !timeline.contains(*b)))
            .filter(|id| pointed_at.contains(*id))
            .cloned()
            .collect();
        let room = self.wanted.room.to_owned();
        let stays = extremities.clone();
        self.lose("event_backward_extremities", move |b| {
            b.word("room_id") == room && !stays.contains(b.word("event_id"))
        });
        for id in extremities.difference(&former) {
            let cells = [("event_id", id.as_str()), ("room_id", self.wanted.room)];
            let row = Row(cells
                .map(|(c, v)| (c.to_owned(), Value::from(v)))
                .into_iter()
                .collect());
            self.now.rows_mut("event_backward_extremities").push(row);
        }
    }

    /// P-11.
    fn raise_depth(&mut self) {
        let extremities: Ids = self
            .in_room("event_backward_extremities")
            .iter()
            .map(|b| b.word("event_id").to_owned())
            .collect();
        let pointing: Ids = self
            .now
            .rows("event_edges")
            .iter()
            .filter(|g| extremities.contains(g.word("prev_event_id")))
            .map(|g| g.word("event_id").to_owned())
            .collect();
        let depths = self.now.rows("events").iter();
        let depths = depths
            .filter(|e| pointing.contains(e.word("event_id")))
            .map(|e| e.number("depth"));
        let least = depths.min().unwrap_or(0);
        for row in self.now.rows_mut("room_depth") {
            if row.word("room_id") == self.wanted.room {
                row.set("min_depth", least);
            }
        }
    }

    /// P-14.
    fn lower_unread_counts(&mut self, before: &Tables) {
        let rotated =
            before.rows("event_push_summary_stream_ordering")[0].number("stream_ordering");
        let (room, deleted) = (self.wanted.room, &self.deleted);
        for summary in self.now.rows_mut("event_push_summary") {
            if summary.word("room_id") != room {
                continue;
            }
            let read = summary.int("last_receipt_stream_ordering");
            let counted: Vec<&Row> = before
                .rows("event_push_actions")
                .iter()
                .filter(|a| {
                    ["user_id", "room_id", "thread_id"]
                        .iter()
                        .all(|c| a.get(c) == summary.get(c))
                })
                .filter(|a| deleted.contains(a.word("event_id")))
                .filter(|a| a.number("stream_ordering") <= rotated)
                .filter(|a| read.is_none_or(|read| a.number("stream_ordering") > read))
                .collect();
            if counted.is_empty() {
                continue;
            }
            let less = |column: &str| {
                i64::try_from(counted.iter().filter(|a| a.is(column)).count()).expect("few")
            };
            let (notif, unread) = (less("notif"), less("unread"));
            let had = |column: &str| summary.int(column).unwrap_or(0);
            let left = (
                (had("notif_count") - notif).max(0),
                (had("unread_count") - unread).max(0),
            );
            summary.set("notif_count", left.0);
            summary.set("unread_count", left.1);
        }
    }

    /// P-20. The tables are those after the deletions.
    fn repair_threads(&mut self) {
        let events: BTreeMap<String, Row> = self
            .in_room("events")
            .into_iter()
            .map(|e| (e.word("event_id").to_owned(), e))
            .collect();
        let replies: Vec<Row> = self
            .now
            .rows("event_relations")
            .iter()
            .filter(|r| r.word("relation_type") == "m.thread")
            .cloned()
            .collect();
        let deleted = self.deleted.clone();
        let mut dropped = 0;
        for mut thread in std::mem::take(self.now.rows_mut("threads")) {
            let root = thread.word("thread_id").to_owned();
            let of_room = thread.word("room_id") == self.wanted.room;
            if of_room && deleted.contains(&root) {
                dropped += 1;
                continue;
            }
            if of_room && deleted.contains(thread.word("latest_event_id")) {
                let of_thread = replies.iter().filter(|r| r.word("relates_to_id") == root);
                let surviving = of_thread.filter_map(|r| events.get(r.word("event_id")));
                let order = |e: &&Row| {
                    (
                        e.number("topological_ordering"),
                        e.number("stream_ordering"),
                    )
                };
                let Some(latest) = surviving.max_by_key(order) else {
                    dropped += 1;
                    continue;
                };
                thread.set("latest_event_id", latest.word("event_id"));
                thread.set(
                    "topological_ordering",
                    latest.number("topological_ordering"),
                );
                thread.set("stream_ordering", latest.number("stream_ordering"));
            }
            self.now.rows_mut("threads").push(thread);
        }
        self.count("threads", dropped);
    }

    /// P-19. The tables are those after the deletions.
    fn move_newest(&mut self, before: &Tables) {
        let gone: BTreeSet<i64> = before
            .rows("events")
            .iter()
            .filter(|e| self.deleted.contains(e.word("event_id")))
            .map(|e| e.number("stream_ordering"))
            .collect();
        let held: BTreeSet<i64> = self
            .now
            .rows("events")
            .iter()
            .map(|e| e.number("stream_ordering"))
            .collect();
        let timeline = self.timeline();
        let newest = timeline.iter().map(|e| e.number("stream_ordering")).max();
        let bumping = timeline
            .iter()
            .filter(|e| super::draft::BUMPING.contains(&e.word("type")));
        let newest_bump = bumping.map(|e| e.number("stream_ordering")).max();
        for row in self.now.rows_mut("sliding_sync_joined_rooms") {
            let is_gone = gone.contains(&row.number("event_stream_ordering"));
            if row.word("room_id") != self.wanted.room || !is_gone {
                continue;
            }
            let Some(newest) = newest else { continue };
            row.set("event_stream_ordering", newest);
            if let Some(bump) = row.int("bump_stamp")
                && (!held.contains(&bump) || bump > newest)
            {
                row.set("bump_stamp", newest_bump);
            }
        }
    }
}
