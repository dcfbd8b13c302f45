//! I-12: what five tables say of who is in a room, held against each other. Each of them alone can be wrong.

use crate::support::draft::{Draft, Event};
use crate::support::work::Site;
use roomkeeper::store::check::Violation;

const ROOM: &str = "!room:example.org";
const ANN: &str = "@ann:example.org";
const BOB: &str = "@bob:example.org";

/// Ann made the room, Bob joined it.
fn together() -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", ANN, 2);
    let joins = Event::message("$bob", ROOM, BOB, 3, 4).member(BOB, "join");
    draft.add(joins.after(&["$a-join"]));
    draft.add(Event::message("$last", ROOM, ANN, 4, 5).after(&["$bob"]));
    let site = Site::of(draft);
    site.run(&format!(
        "DELETE FROM users; INSERT INTO users (name) VALUES ('{ANN}'), ('{BOB}')"
    ));
    site
}

fn found(site: &Site) -> Vec<Violation> {
    roomkeeper::keeper::check_offline(&site.config(), |_, _| ()).expect("checked")
}

#[test]
fn every_table_of_memberships_is_held_against_every_other() {
    let site = together();
    assert_eq!(found(&site), [], "sound as it is");
    let cases = [
        format!("DELETE FROM local_current_membership WHERE user_id = '{BOB}'"),
        format!("UPDATE local_current_membership SET membership = 'leave' WHERE user_id = '{BOB}'"),
        format!("UPDATE local_current_membership SET event_id = '$a-join' WHERE user_id = '{BOB}'"),
        "DELETE FROM room_memberships WHERE event_id = '$bob'".to_owned(),
        format!("UPDATE room_memberships SET user_id = '{ANN}' WHERE event_id = '$bob'"),
        "UPDATE room_memberships SET membership = 'leave' WHERE event_id = '$bob'".to_owned(),
        "DELETE FROM current_state_events WHERE event_id = '$bob'".to_owned(),
        format!(
            "UPDATE sliding_sync_membership_snapshots SET membership = 'leave' WHERE user_id = '{BOB}'"
        ),
        format!(
            "UPDATE sliding_sync_membership_snapshots SET membership_event_id = '$a-join' WHERE user_id = '{BOB}'"
        ),
    ];
    for sql in cases {
        let broken = site.copy();
        broken.run(&sql);
        let told = found(&broken);
        assert!(told.iter().any(|v| v.rule == "I-12"), "{sql}: {told:#?}");
    }
}

also_on_postgres!(every_table_of_memberships_is_held_against_every_other);
