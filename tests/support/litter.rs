//! What a room can have in any table.

use super::tables::{Value, row};
use super::work::Site;

/// Rows of every table that knows of rooms, for each room; in all of them `room` is the room's id.
pub fn litter(site: &Site) -> Vec<String> {
    let tables = site.tables();
    let rooms: Vec<String> = tables
        .rows("rooms")
        .iter()
        .map(|r| r.word("room_id").to_owned())
        .collect();
    for (n, room) in (1_i64..).zip(&rooms) {
        let (user, alias) = (format!("@u:{}", site.server_name), format!("#a{n}:x"));
        let events = tables.rows("events").iter();
        let event = events
            .filter(|e| e.word("room_id") == room)
            .map(|e| e.word("event_id").to_owned())
            .next()
            .expect("a room has events");
        let add = |table: &str, cells: &[(&str, Value)]| {
            let mut row = row([("room_id", room.into())]);
            for (column, value) in cells {
                row.set(column, value.clone());
            }
            site.insert(table, &row);
        };
        let (text, one): (Value, Value) = ("x".into(), n.into());
        let (who, what) = (
            ("user_id", Value::from(&user)),
            ("event_id", Value::from(&event)),
        );
        add(
            "destination_rooms",
            &[
                ("destination", text.clone()),
                ("stream_ordering", one.clone()),
            ],
        );
        add(
            "event_failed_pull_attempts",
            &[
                ("event_id", format!("$unknown{n}").into()),
                ("num_attempts", one.clone()),
                ("last_attempt_ts", one.clone()),
                ("last_cause", text.clone()),
            ],
        );
        add(
            "federation_inbound_events_staging",
            &[
                ("origin", text.clone()),
                ("event_id", format!("$staged{n}").into()),
                ("received_ts", one.clone()),
                ("event_json", "{}".into()),
                ("internal_metadata", "{}".into()),
            ],
        );
        add(
            "event_auth_chain_to_calculate",
            &[
                what.clone(),
                ("type", text.clone()),
                ("state_key", text.clone()),
            ],
        );
        add("sliding_sync_joined_rooms_to_recalculate", &[]);
        add(
            "receipts_graph",
            &[
                ("receipt_type", text.clone()),
                who.clone(),
                ("event_ids", "[]".into()),
                ("data", "{}".into()),
            ],
        );
        add("room_stats_state", &[("name", text.clone())]);
        let stats = [
            "current_state_events",
            "joined_members",
            "invited_members",
            "left_members",
            "banned_members",
            "local_users_in_room",
            "completed_delta_stream_id",
        ];
        add(
            "room_stats_current",
            &stats.map(|column| (column, one.clone())),
        );
        add("room_stats_earliest_token", &[("token", one.clone())]);
        add("users_in_public_rooms", std::slice::from_ref(&who));
        add(
            "users_who_share_private_rooms",
            &[who.clone(), ("other_user_id", text.clone())],
        );
        add(
            "appservice_room_list",
            &[
                ("appservice_id", text.clone()),
                ("network_id", text.clone()),
            ],
        );
        add(
            "e2e_room_keys",
            &[
                who.clone(),
                ("session_id", text.clone()),
                ("version", one.clone()),
                ("session_data", text.clone()),
            ],
        );
        add("pusher_throttle", &[("pusher", one.clone())]);
        add(
            "room_account_data",
            &[
                who.clone(),
                ("account_data_type", text.clone()),
                ("stream_id", one.clone()),
                ("content", "{}".into()),
            ],
        );
        add(
            "room_tags",
            &[who.clone(), ("tag", text.clone()), ("content", "{}".into())],
        );
        add(
            "timeline_gaps",
            &[
                ("instance_name", text.clone()),
                ("stream_ordering", one.clone()),
            ],
        );
        add(
            "room_ban_redactions",
            &[who.clone(), ("redacting_event_id", (&event).into())],
        );
        add(
            "un_partial_stated_room_stream",
            &[("stream_id", one.clone()), ("instance_name", text.clone())],
        );
        add(
            "room_retention",
            &[
                ("event_id", format!("$policy{n}").into()),
                ("max_lifetime", one.clone()),
            ],
        );
        add("room_aliases", &[("room_alias", (&alias).into())]);
        add(
            "room_reports",
            &[
                ("id", one.clone()),
                ("received_ts", one.clone()),
                who.clone(),
                ("reason", text.clone()),
            ],
        );
        let mut server = row([("room_alias", (&alias).into())]);
        server.set("server", "x");
        site.insert("room_alias_servers", &server);
    }
    // Every place in a chain has a link, most to another place.
    for place in tables.rows("event_auth_chains") {
        let chain = place.number("chain_id");
        let link = row([
            ("origin_chain_id", chain.into()),
            (
                "origin_sequence_number",
                place.number("sequence_number").into(),
            ),
            ("target_chain_id", (chain % 7).into()),
            ("target_sequence_number", 1.into()),
        ]);
        site.insert("event_auth_chain_links", &link);
    }
    rooms
}
