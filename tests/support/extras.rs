//! What a server keeps around its events: unread counts, receipts, threads, labels, the full-text index; and state
//! groups that nothing refers to.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::rngs::StdRng;

use super::draft::{Draft, Event, FIRST_TS};
use super::ids::People;
use super::tables::{Value, row};

/// Adds state groups that nothing refers to: descendants of those in use, and of each other, some of them waiting
/// for deletion, few of them in use by an event in flight.
pub fn groups(draft: &mut Draft, rng: &mut StdRng) {
    let known: Vec<i64> = draft.groups.groups.keys().copied().collect();
    if known.is_empty() {
        return;
    }
    for n in 0..rng.random_range(0..8) {
        let mut base = known[rng.random_range(0..known.len())];
        for depth in 0..rng.random_range(1..4) {
            let user = format!("@ghost{n}{depth}:example.org");
            let key = if rng.random() {
                ("m.room.member", user.as_str())
            } else {
                ("m.room.topic", "")
            };
            base = draft
                .groups
                .store_unused(base, key, &format!("$ghost{n}{depth}"));
        }
    }
    for group in draft.groups.unused() {
        if rng.random_ratio(1, 5) {
            draft.row(
                "state_groups_pending_deletion",
                row([
                    ("state_group", group.into()),
                    ("insertion_ts", (FIRST_TS + group).into()),
                ]),
            );
        }
        if rng.random_ratio(1, 30) {
            draft.row(
                "state_groups_persisting",
                row([
                    ("state_group", group.into()),
                    ("instance_name", "master".into()),
                ]),
            );
        }
    }
}

/// Adds rows to the tables around the events.
pub fn rows(draft: &mut Draft, people: &People, rng: &mut StdRng) {
    let events = draft.events.clone();
    let newest = events.iter().map(|e| e.stream).max().unwrap_or(2);
    let rotated = rng.random_range(0..=newest);
    threads(draft, &events);
    unread_counts(draft, &events, people, rotated, rng);
    receipts(draft, &events, people, rng);
    for event in &events {
        belongings(draft, event, rng);
    }
    draft.row(
        "stream_positions",
        row([
            ("stream_name", "events".into()),
            ("instance_name", "master".into()),
            ("stream_id", newest.into()),
        ]),
    );
}

fn threads(draft: &mut Draft, events: &[Event]) {
    let mut latest: BTreeMap<(&str, &str), &Event> = BTreeMap::new();
    for event in events.iter().filter(|e| e.is_sound()) {
        let Some(relation) = event.relates.as_ref().filter(|r| r.kind == "m.thread") else {
            continue;
        };
        let seen = latest.entry((&event.room, &relation.to)).or_insert(event);
        if (event.depth, event.stream) > (seen.depth, seen.stream) {
            *seen = event;
        }
    }
    for ((room, root), reply) in latest {
        draft.row(
            "threads",
            row([
                ("room_id", room.into()),
                ("thread_id", root.into()),
                ("latest_event_id", (&reply.id).into()),
                ("topological_ordering", reply.depth.into()),
                ("stream_ordering", reply.stream.into()),
            ]),
        );
    }
}

fn unread_counts(
    draft: &mut Draft,
    events: &[Event],
    people: &People,
    rotated: i64,
    rng: &mut StdRng,
) {
    let mut counted: BTreeMap<(String, String, String), (i64, i64)> = BTreeMap::new();
    for event in events
        .iter()
        .filter(|e| e.state_key.is_none() && !e.rejected)
    {
        for user in &people.local {
            if !rng.random_ratio(1, 3) {
                continue;
            }
            let thread = match &event.relates {
                Some(relation) if relation.kind == "m.thread" => relation.to.clone(),
                _ => "main".into(),
            };
            let (notif, unread) = (rng.random_ratio(2, 3), rng.random_ratio(2, 3));
            let count = counted
                .entry((user.clone(), event.room.clone(), thread.clone()))
                .or_default();
            count.0 += i64::from(notif);
            count.1 += i64::from(unread);
            draft.row(
                "event_push_actions",
                row([
                    ("room_id", (&event.room).into()),
                    ("event_id", (&event.id).into()),
                    ("user_id", user.into()),
                    ("actions", "[]".into()),
                    ("topological_ordering", event.depth.into()),
                    ("stream_ordering", event.stream.into()),
                    ("notif", notif.into()),
                    ("highlight", false.into()),
                    ("unread", unread.into()),
                    ("thread_id", thread.into()),
                ]),
            );
        }
    }
    for ((user, room, thread), (notif, unread)) in counted {
        if rng.random_ratio(1, 8) {
            continue;
        }
        // Counts can be lower than what is there: they must not become negative.
        let short = rng.random_range(0..3);
        draft.row(
            "event_push_summary",
            row([
                ("user_id", user.into()),
                ("room_id", room.into()),
                ("thread_id", thread.into()),
                ("notif_count", (notif - short).max(0).into()),
                (
                    "unread_count",
                    rng.random_ratio(4, 5)
                        .then_some((unread - short).max(0))
                        .into(),
                ),
                ("stream_ordering", rotated.into()),
                (
                    "last_receipt_stream_ordering",
                    rng.random_ratio(2, 3)
                        .then(|| rng.random_range(-5..rotated + 1))
                        .into(),
                ),
            ]),
        );
    }
    draft.rotated_to = rotated;
}

fn receipts(draft: &mut Draft, events: &[Event], people: &People, rng: &mut StdRng) {
    let mut seen = BTreeSet::new();
    for (at, event) in events.iter().enumerate() {
        let user = people.any(rng);
        if rng.random_ratio(1, 5) && seen.insert((event.room.clone(), user.clone())) {
            draft.row(
                "receipts_linearized",
                row([
                    ("stream_id", i64::try_from(at).expect("few").into()),
                    ("room_id", (&event.room).into()),
                    ("receipt_type", "m.read".into()),
                    ("user_id", user.into()),
                    ("event_id", (&event.id).into()),
                    ("event_stream_ordering", event.stream.into()),
                    ("data", "{}".into()),
                ]),
            );
        }
    }
}

fn belongings(draft: &mut Draft, event: &Event, rng: &mut StdRng) {
    let (id, room) = (Value::from(&event.id), Value::from(&event.room));
    if event.kind == "m.room.retention" && !event.rejected {
        draft.row(
            "room_retention",
            row([
                ("room_id", room.clone()),
                ("event_id", id.clone()),
                ("max_lifetime", 86_400_000.into()),
            ]),
        );
    }
    if matches!(
        event.kind.as_str(),
        "m.room.message" | "m.room.topic" | "m.room.name"
    ) && !event.rejected
    {
        // Now and then twice: the index knows no key.
        for _ in 0..rng.random_range(1..8) / 6 + 1 {
            draft.row(
                "event_search",
                row([
                    ("event_id", id.clone()),
                    ("room_id", room.clone()),
                    ("key", "content.body".into()),
                    ("value", (&event.body).into()),
                ]),
            );
        }
    }
    if event.state_key.is_some() {
        draft.row(
            "event_auth",
            row([
                ("event_id", id.clone()),
                ("auth_id", format!("$auth-{}", event.depth).into()),
                ("room_id", room.clone()),
            ]),
        );
        draft.row(
            "event_auth_chains",
            row([
                ("event_id", id.clone()),
                ("chain_id", event.stream.into()),
                ("sequence_number", 1.into()),
            ]),
        );
    }
    if event.stream > 0 && !event.outlier && rng.random_ratio(1, 3) {
        draft.row(
            "stream_ordering_to_exterm",
            row([
                ("stream_ordering", event.stream.into()),
                ("room_id", room.clone()),
                ("event_id", id.clone()),
            ]),
        );
    }
    if rng.random_ratio(1, 6) {
        draft.row(
            "event_labels",
            row([
                ("event_id", id.clone()),
                ("label", "#fun".into()),
                ("room_id", room.clone()),
                ("topological_ordering", event.depth.into()),
            ]),
        );
    }
    if rng.random_ratio(1, 8) {
        let at = FIRST_TS + event.stream;
        draft.row(
            "event_expiry",
            row([("event_id", id.clone()), ("expiry_ts", at.into())]),
        );
    }
    if rng.random_ratio(1, 8) {
        draft.row(
            "event_push_actions_staging",
            row([
                ("event_id", id.clone()),
                ("user_id", "@ann:example.org".into()),
                ("actions", "[]".into()),
                ("notif", 1.into()),
                ("highlight", 0.into()),
            ]),
        );
    }
    if rng.random_ratio(1, 12) {
        draft.row(
            "event_reports",
            row([
                ("id", event.stream.into()),
                ("received_ts", FIRST_TS.into()),
                ("room_id", room),
                ("event_id", id),
                ("user_id", "@bob:example.org".into()),
            ]),
        );
    }
}
