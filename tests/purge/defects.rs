//! Small rooms made by hand, one for each thing that the originals get wrong (behaviour.md section 13) or that a
//! purge must refuse.

use crate::support::draft::{Draft, Event};
use crate::support::tables::{Row, Tables, assert_same, row};
use crate::support::work::{Ask, Site};
use roomkeeper::Error;

const ROOM: &str = "!room:example.org";
const ANN: &str = "@ann:example.org";
const RITA: &str = "@rita:remote.example";

/// A room of `count` messages, `$m3` at depth 3 and so on, each after the one before; `$a-create` and `$a-join` come
/// first.
fn plain_room(count: i64) -> Draft {
    let mut draft = Draft::new("example.org", 1);
    draft.groups.full_one_in = 0;
    draft.open_room(ROOM, "a", ANN, 2);
    for depth in 3..3 + count {
        let before = if depth == 3 {
            "$a-join".to_owned()
        } else {
            format!("$m{}", depth - 1)
        };
        draft.add(message(&format!("$m{depth}"), depth, depth + 1).after(&[&before]));
    }
    draft
}

fn message(id: &str, depth: i64, stream: i64) -> Event {
    Event::message(id, ROOM, RITA, depth, stream)
}

fn find<'a>(tables: &'a Tables, table: &str, column: &str, value: &str) -> Option<&'a Row> {
    tables
        .rows(table)
        .iter()
        .find(|r| r.text(column) == Some(value))
}

fn event<'a>(tables: &'a Tables, id: &str) -> Option<&'a Row> {
    find(tables, "events", "event_id", id)
}

fn backward_extremities(tables: &Tables) -> Vec<&str> {
    tables
        .rows("event_backward_extremities")
        .iter()
        .map(|r| r.word("event_id"))
        .collect()
}

#[test]
fn a_point_beyond_every_forward_extremity_is_refused_and_nothing_changes() {
    let site = Site::of(plain_room(5));
    let before = site.tables();
    let refused = site
        .purge(&Ask::all_of(ROOM, 8))
        .expect_err("no event would remain");
    assert_eq!(
        refused.to_string(),
        "400: topological_ordering is greater than forward extremities"
    );
    assert_same(&before, &site.tables(), "refused");
    assert!(matches!(
        site.plan(&Ask::all_of(ROOM, 8)),
        Err(Error::WouldEmptyRoom)
    ));
    site.purge(&Ask::all_of(ROOM, 7))
        .expect("the newest event is at the point and stays");
    assert!(event(&site.tables(), "$m7").is_some() && event(&site.tables(), "$m6").is_none());
    site.assert_sound("purged up to the extremity");
}

#[test]
fn a_room_that_does_not_exist_is_purged_of_nothing() {
    let site = Site::of(plain_room(5));
    let before = site.tables();
    let done = site
        .purge(&Ask::all_of("!nowhere:example.org", 100))
        .expect("there is nothing to refuse");
    assert_eq!((done.events_deleted, done.rows_removed.len()), (0, 0));
    assert_same(&before, &site.tables(), "nothing");
}

/// Defect H (P-7).
#[test]
fn a_purge_of_nothing_leaves_the_extremities_and_the_depth_alone() {
    let mut draft = Draft::new("example.org", 1);
    draft.add(
        Event::message("$c", ROOM, RITA, 1, 2)
            .state("m.room.create", "")
            .outside(),
    );
    draft.add(message("$first", 10, 3).after(&["$missing"]));
    draft.add(message("$last", 11, 4).after(&["$first"]));
    let site = Site::of(draft);
    let before = site.tables();
    assert_eq!(backward_extremities(&before), ["$missing"]);
    site.purge(&Ask::all_of(ROOM, 10))
        .expect("there is nothing below");
    assert_same(&before, &site.tables(), "nothing below");
}

/// Defect K (P-10).
#[test]
fn a_gap_above_the_cut_stays_marked() {
    let mut draft = plain_room(3);
    draft.add(message("$after-gap", 9, 20).after(&["$m5", "$not-held"]));
    draft.add(message("$last", 10, 21).after(&["$after-gap"]));
    let site = Site::of(draft);
    site.purge(&Ask::all_of(ROOM, 9)).expect("purged");
    let after = site.tables();
    assert_eq!(backward_extremities(&after), ["$m5", "$not-held"]);
    assert_eq!(
        find(&after, "room_depth", "room_id", ROOM).map(|r| r.number("min_depth")),
        Some(9)
    );
    site.assert_sound("gap");
}

/// P-10 (b): an event that is not in the timeline makes no extremity.
#[test]
fn an_outlier_that_points_below_the_cut_makes_no_extremity() {
    let mut draft = plain_room(6);
    draft.add(message("$outside", 20, 30).after(&["$m4"]).outside());
    let site = Site::of(draft);
    site.purge(&Ask::all_of(ROOM, 7)).expect("purged");
    assert_eq!(backward_extremities(&site.tables()), ["$m6"]);
}

/// Defect G (P-6).
#[test]
fn local_users_messages_stay_whatever_their_event_ids_look_like() {
    let mut draft = Draft::new("example.org:8448", 1);
    draft.open_room(ROOM, "a", "@ann:example.org:8448", 2);
    let senders = [
        ("$local", Some("@ann:example.org:8448")),
        (
            "$id-elsewhere:remote.example",
            Some("@Ann:example.org:8448"),
        ),
        ("$id-here:example.org:8448", Some("@rita:remote.example")),
        ("$other-port", Some("@ann:example.org")),
        ("$other-case", Some("@ann:Example.org:8448")),
        ("$longer-name", Some("@ann:an.example.org:8448")),
        ("$colon-in-name", Some("@ann:x:example.org:8448")),
        ("$nobody", None),
    ];
    let mut before = "$a-join";
    for (depth, (id, sender)) in (3..).zip(senders) {
        let mut event = Event::message(id, ROOM, "", depth, depth + 1).after(&[before]);
        event.sender = sender.map(str::to_owned);
        draft.add(event);
        before = id;
    }
    draft.add(message("$last", 20, 50).after(&[before]));
    let site = Site::of(draft);
    let ask = Ask {
        delete_local_events: false,
        ..Ask::all_of(ROOM, 20)
    };
    site.purge(&ask).expect("purged");
    let after = site.tables();
    let mut left: Vec<&str> = after
        .rows("events")
        .iter()
        .map(|e| e.word("event_id"))
        .collect();
    left.sort_unstable();
    assert_eq!(
        left,
        [
            "$a-create",
            "$a-join",
            "$id-elsewhere:remote.example",
            "$last",
            "$local"
        ]
    );
    assert!(event(&after, "$local").is_some_and(|e| e.is("outlier")));
    site.assert_sound("local events kept");
}

/// Defect E (P-21, I-39).
#[test]
fn what_was_redacted_stays_redacted() {
    let mut draft = plain_room(2);
    draft.add(
        message("$topic", 5, 6)
            .state("m.room.topic", "")
            .after(&["$m4"]),
    );
    draft.add(
        message("$hides-topic", 6, 7)
            .redacting("$topic")
            .after(&["$topic"]),
    );
    draft.add(message("$kept", 12, 8).after(&["$hides-topic"]));
    // Its redaction comes from below the cut, and is itself redacted.
    draft.add(
        message("$hides-kept", 7, 9)
            .redacting("$kept")
            .after(&["$hides-topic"]),
    );
    draft.add(
        message("$hides-that", 8, 10)
            .redacting("$hides-kept")
            .after(&["$hides-kept"]),
    );
    // These two have no survivor to hide.
    draft.add(
        message("$hides-m4", 9, 11)
            .redacting("$m4")
            .after(&["$hides-that"]),
    );
    draft.add(
        message("$hides-nothing", 10, 12)
            .redacting("$unknown")
            .after(&["$hides-m4"]),
    );
    draft.add(message("$last", 13, 13).after(&["$kept", "$hides-nothing"]));
    let site = Site::of(draft);
    let ask = Ask::all_of(ROOM, 12);
    let batches = site.copy();
    site.purge(&ask).expect("purged");
    let after = site.tables();
    let mut redactions: Vec<&str> = after
        .rows("redactions")
        .iter()
        .map(|r| r.word("event_id"))
        .collect();
    redactions.sort_unstable();
    assert_eq!(redactions, ["$hides-kept", "$hides-that", "$hides-topic"]);
    for id in redactions {
        assert!(
            event(&after, id).is_some_and(|e| e.is("outlier")),
            "{id} is held outside the timeline"
        );
        assert!(
            find(&after, "event_json", "event_id", id).is_some(),
            "{id} has its JSON"
        );
    }
    site.assert_sound("redactions");
    batches
        .purge_with(batches.in_batches_of(1), &ask)
        .expect("purged");
    assert_same(&after, &batches.tables(), "in batches of one");
    let again = site.purge(&ask).expect("purged again");
    assert_eq!(again.rows_removed.len(), 0, "{again:?}");
    assert_same(&after, &site.tables(), "again");
}

/// A local user's message that is kept, redacted by a remote moderator.
#[test]
fn a_kept_message_of_a_local_user_stays_redacted() {
    let mut draft = plain_room(2);
    draft.add(Event::message("$mine", ROOM, ANN, 5, 6).after(&["$m4"]));
    draft.add(
        message("$hides-mine", 6, 7)
            .redacting("$mine")
            .after(&["$mine"]),
    );
    draft.add(message("$last", 7, 8).after(&["$hides-mine"]));
    let site = Site::of(draft);
    site.purge(&Ask {
        delete_local_events: false,
        ..Ask::all_of(ROOM, 7)
    })
    .expect("purged");
    assert!(find(&site.tables(), "redactions", "redacts", "$mine").is_some());
    // When the message goes, so does what hid it.
    site.purge(&Ask::all_of(ROOM, 7)).expect("purged");
    let after = site.tables();
    assert!(after.rows("redactions").is_empty() && event(&after, "$hides-mine").is_none());
    site.assert_sound("both gone");
}

/// The room's newest event by arrival, of low depth; and the newest that lifts the room in the list, even lower.
fn late_arrivals() -> Draft {
    let mut draft = plain_room(12);
    draft.add(message("$late-bump", 4, 90).after(&["$m3"]));
    let mut newest = message("$late", 9, 100).after(&["$m8"]);
    newest.kind = "org.example.note".into();
    draft.add(newest);
    draft
}

/// Defect D (P-19).
#[test]
fn the_newest_event_by_arrival_may_lie_below_the_cut() {
    let site = Site::of(late_arrivals());
    let list = |tables: &Tables| {
        let row = &tables.rows("sliding_sync_joined_rooms")[0];
        (row.number("event_stream_ordering"), row.int("bump_stamp"))
    };
    assert_eq!(list(&site.tables()), (100, Some(90)));
    let batches = site.copy();
    let ask = Ask::all_of(ROOM, 12);
    site.purge(&ask).expect("purged");
    assert_eq!(list(&site.tables()), (15, Some(15)));
    site.assert_sound("in one rewrite");
    // The event that lifts the room goes in an earlier batch than the newest one.
    batches
        .purge_with(batches.in_batches_of(2), &ask)
        .expect("purged");
    assert_same(&site.tables(), &batches.tables(), "in batches");
}

/// P-3, I-4.
#[test]
fn extremities_below_the_cut_go_when_another_remains_state_or_not() {
    let mut draft = plain_room(8);
    draft.add(message("$side", 4, 30).after(&["$m3"]));
    draft.add(
        message("$side-topic", 5, 31)
            .state("m.room.topic", "")
            .after(&["$m4"]),
    );
    let site = Site::of(draft);
    assert_eq!(site.tables().rows("event_forward_extremities").len(), 3);
    let done = site.purge(&Ask::all_of(ROOM, 9)).expect("purged");
    assert_eq!(done.rows_removed["event_forward_extremities"], 2);
    assert_eq!(site.tables().rows("event_forward_extremities").len(), 1);
    site.assert_sound("one extremity left");
}

/// P-18.
#[test]
fn a_room_that_is_still_being_joined_keeps_the_events_it_needs() {
    let mut draft = plain_room(8);
    draft.row(
        "partial_state_rooms",
        row([
            ("room_id", ROOM.into()),
            ("join_event_id", "$a-join".into()),
        ]),
    );
    draft.row(
        "partial_state_events",
        row([("room_id", ROOM.into()), ("event_id", "$m6".into())]),
    );
    let site = Site::of(draft);
    let before = site.tables();
    let refused = site.purge(&Ask::all_of(ROOM, 9)).expect_err("m6 is needed");
    assert!(
        refused
            .to_string()
            .contains("event $m6 has only partial state"),
        "{refused}"
    );
    assert_same(&before, &site.tables(), "refused");
    assert!(matches!(
        site.plan(&Ask::all_of(ROOM, 9)),
        Err(Error::PartialState(_))
    ));
    // In batches the refusal comes before anything is touched as well.
    site.purge_with(site.in_batches_of(1), &Ask::all_of(ROOM, 9))
        .expect_err("m6 is needed");
    assert_same(&before, &site.tables(), "refused in strides");
    site.purge(&Ask::all_of(ROOM, 6)).expect("m6 stays");
    site.assert_sound("up to the event that is needed");
}

/// Defect J (P-34): edges go with their groups, and edges that an older Synapse left behind are no groups.
#[test]
fn edges_of_groups_that_are_gone_neither_stay_nor_count() {
    let mut draft = plain_room(1);
    for n in 0..6 {
        let (depth, before) = (
            4 + n,
            if n == 0 {
                "$m3".to_owned()
            } else {
                format!("$t{}", n - 1)
            },
        );
        draft.add(
            message(&format!("$t{n}"), depth, 10 + n)
                .state("m.room.topic", "")
                .after(&[&before]),
        );
    }
    draft.add(message("$last", 20, 30).after(&["$t5"]));
    draft.settle();
    let base = draft.groups.of_event["$t1"];
    draft.row(
        "state_group_edges",
        row([
            ("state_group", 999.into()),
            ("prev_state_group", base.into()),
        ]),
    );
    let site = Site::of(draft);
    let before = site.tables();
    let ask = Ask::all_of(ROOM, 20);
    let planned = site.plan(&ask).expect("planned");
    let done = site.purge(&ask).expect("purged");
    assert_eq!(planned.rows_removed, done.rows_removed);
    let after = site.tables();
    assert_eq!(
        after.rows("state_groups").len(),
        1,
        "only the newest event's group is left"
    );
    assert!(
        after.rows("state_group_edges").is_empty(),
        "{:?}",
        after.rows("state_group_edges")
    );
    let orphans = after
        .rows("state_groups_state")
        .iter()
        .filter(|r| r.number("state_group") == 999)
        .count();
    assert_eq!(
        orphans, 0,
        "no state is stored for a group that does not exist"
    );
    let count = |t: &Tables| i64::try_from(t.rows("state_group_edges").len()).expect("few");
    assert_eq!(
        planned.rows_removed["state_group_edges"],
        count(&before) - count(&after)
    );
    site.assert_sound("edges");
}

also_on_postgres! {
    a_point_beyond_every_forward_extremity_is_refused_and_nothing_changes,
    a_room_that_does_not_exist_is_purged_of_nothing,
    a_purge_of_nothing_leaves_the_extremities_and_the_depth_alone,
    a_gap_above_the_cut_stays_marked,
    an_outlier_that_points_below_the_cut_makes_no_extremity,
    local_users_messages_stay_whatever_their_event_ids_look_like,
    what_was_redacted_stays_redacted,
    a_kept_message_of_a_local_user_stays_redacted,
    the_newest_event_by_arrival_may_lie_below_the_cut,
    extremities_below_the_cut_go_when_another_remains_state_or_not,
    a_room_that_is_still_being_joined_keeps_the_events_it_needs,
    edges_of_groups_that_are_gone_neither_stay_nor_count,
}
