//! The list itself: a row a table. Every column stands in it; behind a colon what it holds, where that can name something
//! which is deleted ([`Holds`](super::Holds)).
//!
//! A row is held against our own schema by the tests beside this, and against the catalogue of every Synapse that the
//! oracle runs: a table or a column that nobody has decided about fails there by name.

use super::{OnPurge, Otherwise, Per, Rows, Step, Table};
use crate::store::db::Engine;

/// A table of Synapse's that names neither events nor rooms, until its row says more.
const fn table(name: &'static str, columns: &'static str) -> Table {
    Table {
        name,
        columns,
        since: None,
        until: None,
        engine: None,
        is_synapses: true,
        on_purge: OnPurge::Stays,
        with_event: None,
        by_room: None,
        otherwise: Otherwise::Unconcerned,
        per: Per::Few,
        held: None,
        held_needs: None,
        refers: false,
    }
}

impl Table {
    const fn since(mut self, schema: i64) -> Self {
        self.since = Some(schema);
        self
    }

    const fn until(mut self, schema: i64) -> Self {
        self.until = Some(schema);
        self
    }

    const fn on_postgres(mut self) -> Self {
        self.engine = Some(Engine::Postgres);
        self
    }

    /// Another program's.
    const fn of_others(mut self) -> Self {
        self.is_synapses = false;
        self
    }

    /// Rows go with their event, in a history purge as where the room goes.
    const fn with_event(self, rows: Rows) -> Self {
        self.purged_with(rows).deleted_with(rows)
    }

    const fn purged_with(mut self, rows: Rows) -> Self {
        self.on_purge = OnPurge::Removed(rows);
        self
    }

    const fn deleted_with(mut self, rows: Rows) -> Self {
        self.with_event = Some(rows);
        self
    }

    const fn corrected(mut self) -> Self {
        self.on_purge = OnPurge::Corrected;
        self
    }

    const fn by_room(mut self, step: Step) -> Self {
        self.by_room = Some(step);
        self
    }

    const fn kept(mut self, why: &'static str) -> Self {
        self.otherwise = Otherwise::Kept(why);
        self
    }

    const fn own(mut self, when: &'static str) -> Self {
        self.otherwise = Otherwise::Own(when);
        self
    }

    const fn per(mut self, per: Per) -> Self {
        self.per = per;
        self
    }

    const fn held(mut self, row: &'static str) -> Self {
        self.held = Some(row);
        self
    }

    const fn held_in(mut self, column: &'static str, row: &'static str) -> Self {
        self.held_needs = Some(column);
        self.held(row)
    }

    const fn refers(mut self) -> Self {
        self.refers = true;
        self
    }
}

/// Every table, in the order in which rows go.
#[rustfmt::skip]
pub static ALL: &[Table] = &[
    // Rows of events, in the order of P-13, which is also the lock order of P-26: first what has a foreign key on `events`,
    // even where it would cascade (P-17), so that it is counted; our own additions of P-20 last. Where a room goes, all of
    // them go before `events`.
    table("event_to_state_groups", "event_id:event state_group:group")
        .purged_with(Rows::Selected).deleted_with(Rows::Deleted).per(Per::Event),
    table("event_edges", "event_id:event prev_event_id:event room_id:room is_state")
        .with_event(Rows::Deleted).per(Per::Event).refers(),
    table("event_txn_id", "event_id:event room_id:room user_id token_id txn_id inserted_ts")
        .with_event(Rows::Deleted).refers().until(83),
    table("event_txn_id_device_id", "event_id:event room_id:room user_id device_id txn_id inserted_ts")
        .with_event(Rows::Deleted).refers().since(74),
    table("un_partial_stated_event_stream", "stream_id instance_name event_id:event rejection_status_changed")
        .with_event(Rows::Deleted).refers().since(73),
    table("thread_subscriptions", "stream_id instance_name room_id:room event_id:event user_id subscribed automatic \
        unsubscribed_at_stream_ordering:order unsubscribed_at_topological_ordering")
        .with_event(Rows::Deleted).by_room(Step::AfterEvents).refers().since(92),
    table("event_forward_extremities", "event_id:event room_id:room")
        .with_event(Rows::Deleted).by_room(Step::LiveState).refers(),
    table("events", "stream_ordering:order topological_ordering event_id:event type room_id:room content:json \
        unrecognized_keys:json processed outlier depth origin_server_ts received_ts sender contains_url instance_name \
        state_key:text rejection_reason").with_event(Rows::Itself).per(Per::Event),
    table("event_json", "event_id:event room_id:room internal_metadata:json json:json format_version")
        .with_event(Rows::Deleted).per(Per::Event),
    table("event_auth", "event_id:event auth_id:event room_id:room")
        .with_event(Rows::Deleted).held("row of the auth graph"),
    table("event_relations", "event_id:event relates_to_id:event relation_type aggregation_key:text")
        .with_event(Rows::Deleted).per(Per::ManyEvents).held("relation"),
    table("event_search", "event_id:event room_id:room sender key value:text vector:text origin_server_ts \
        stream_ordering")
        .with_event(Rows::Deleted).by_room(Step::AfterEvents).held_in("vector", "text of the full-text index"),
    table("rejections", "event_id:event reason last_check").with_event(Rows::Deleted).held("rejection"),
    table("redactions", "event_id:event redacts:event have_censored received_ts recheck")
        .with_event(Rows::Deleted).held("redaction"),
    table("event_push_actions", "room_id:room event_id:event user_id profile_tag actions topological_ordering \
        stream_ordering:order notif highlight unread thread_id:event")
        .with_event(Rows::DeletedInRoom).by_room(Step::AfterEvents).held("push action"),
    table("event_labels", "event_id:event label room_id:room topological_ordering")
        .with_event(Rows::Deleted).by_room(Step::AfterEvents),
    table("event_expiry", "event_id:event expiry_ts").with_event(Rows::Deleted),
    table("event_push_actions_staging", "event_id:event user_id actions notif highlight unread thread_id:event \
        inserted_ts").with_event(Rows::Deleted),
    // Rows of events that only go with their room: state stays, and what it is made of.
    table("event_auth_chains", "event_id:event chain_id sequence_number")
        .deleted_with(Rows::Deleted).held("auth chain position"),
    table("event_auth_chain_links", "origin_chain_id origin_sequence_number target_chain_id target_sequence_number")
        .own("before the chain positions that it starts at"),
    table("event_auth_chain_to_calculate", "event_id:event room_id:room type state_key:text")
        .deleted_with(Rows::Deleted).by_room(Step::AfterEvents),
    table("state_events", "event_id:event room_id:room type state_key:text prev_state")
        .deleted_with(Rows::Deleted).held("state event"),
    // Rows of rooms that make them live, in the order of E-9: without these the homeserver sees no room. Beyond E-8 these
    // are the leftovers of E-10 and E-11.
    table("current_state_events", "event_id:event room_id:room type state_key:text membership \
        event_stream_ordering:order").by_room(Step::LiveState).per(Per::Member).refers(),
    table("destination_rooms", "destination room_id:room stream_ordering:order").by_room(Step::LiveState).refers(),
    table("destination_rooms_sticky_events_backlog", "destination room_id:room sticky_events_stream_position")
        .by_room(Step::LiveState).refers().since(94),
    table("event_failed_pull_attempts", "room_id:room event_id:event num_attempts last_attempt_ts last_cause:text")
        .by_room(Step::LiveState).refers().since(73),
    table("partial_state_events", "room_id:room event_id:event").by_room(Step::LiveState).refers(),
    table("partial_state_rooms_servers", "room_id:room server_name").by_room(Step::LiveState).refers(),
    table("partial_state_rooms", "room_id:room device_lists_stream_id join_event_id:event joined_via")
        .by_room(Step::LiveState).refers(),
    table("local_current_membership", "room_id:room user_id event_id:event membership event_stream_ordering:order")
        .by_room(Step::LiveState).refers(),
    table("room_memberships", "event_id:event user_id sender room_id:room membership forgotten display_name \
        avatar_url event_stream_ordering:order participant")
        .deleted_with(Rows::Deleted).by_room(Step::LiveState).per(Per::Member).held("membership").refers(),
    table("sliding_sync_joined_rooms_to_recalculate", "room_id:room").by_room(Step::LiveState).refers().since(87),
    table("sliding_sync_joined_rooms", "room_id:room event_stream_ordering:order bump_stamp:order room_type room_name \
        is_encrypted tombstone_successor_room_id:room").corrected().by_room(Step::LiveState).refers().since(87),
    table("sliding_sync_membership_snapshots", "room_id:room user_id sender membership_event_id:event membership \
        forgotten event_stream_ordering:order event_instance_name has_known_state room_type room_name is_encrypted \
        tombstone_successor_room_id:room").by_room(Step::LiveState).per(Per::Member).refers().since(87),
    table("sticky_events", "stream_id instance_name event_id:event room_id:room event_stream_ordering:order sender \
        expires_at").by_room(Step::LiveState).since(93),
    table("msc4242_state_dag_forward_extremities", "room_id:room event_id:event")
        .by_room(Step::LiveState).refers().since(94),
    table("msc4242_state_dag_edges", "room_id:room event_id:event prev_state_event_id:event")
        .by_room(Step::LiveState).refers().since(94),
    table("federation_inbound_events_staging", "origin room_id:room event_id:event received_ts event_json:json \
        internal_metadata:json").by_room(Step::LiveState),
    table("room_alias_servers", "room_alias server").own("before the aliases"),
    table("room_aliases", "room_alias room_id:room creator").by_room(Step::LiveState),
    table("room_stats_state", "room_id:room name:text canonical_alias join_rules history_visibility encryption avatar \
        guest_access is_federatable topic:text room_type").by_room(Step::LiveState),
    table("room_stats_current", "room_id:room current_state_events joined_members invited_members left_members \
        banned_members local_users_in_room completed_delta_stream_id knocked_members").by_room(Step::LiveState),
    table("room_stats_earliest_token", "room_id:room token").by_room(Step::LiveState),
    table("stream_ordering_to_exterm", "stream_ordering:order room_id:room event_id:event").by_room(Step::LiveState),
    table("users_in_public_rooms", "user_id room_id:room").by_room(Step::LiveState).per(Per::Member),
    table("appservice_room_list", "appservice_id network_id room_id:room").by_room(Step::LiveState),
    table("insertion_events", "event_id:event room_id:room next_batch_id").by_room(Step::LiveState).until(83),
    table("insertion_event_extremities", "event_id:event room_id:room").by_room(Step::LiveState).until(83),
    table("insertion_event_edges", "event_id:event room_id:room insertion_prev_event_id:event")
        .by_room(Step::LiveState).until(83),
    table("batch_events", "event_id:event room_id:room batch_id").by_room(Step::LiveState).until(83),
    table("room_retention", "room_id:room event_id:event min_lifetime max_lifetime").by_room(Step::LiveState),
    table("threads", "room_id:room thread_id:event latest_event_id:event topological_ordering stream_ordering:order")
        .corrected().by_room(Step::LiveState).since(73),
    table("timeline_gaps", "room_id:room instance_name stream_ordering:order").by_room(Step::LiveState).since(82),
    table("room_ban_redactions", "room_id:room user_id redacting_event_id:event redact_end_ordering:order")
        .by_room(Step::LiveState).since(92),
    // Rows of rooms that go after the events.
    table("event_backward_extremities", "event_id:event room_id:room").corrected().by_room(Step::AfterEvents),
    table("receipts_graph", "room_id:room receipt_type user_id event_ids:json thread_id:event data:json")
        .by_room(Step::AfterEvents),
    table("receipts_linearized", "stream_id room_id:room receipt_type user_id event_id:event thread_id:event \
        event_stream_ordering:order data:json instance_name").by_room(Step::AfterEvents),
    table("users_who_share_private_rooms", "user_id other_user_id room_id:room").by_room(Step::AfterEvents),
    table("e2e_room_keys", "user_id room_id:room session_id version first_message_index forwarded_count is_verified \
        session_data").by_room(Step::AfterEvents),
    table("event_push_summary", "user_id room_id:room notif_count stream_ordering:order unread_count \
        last_receipt_stream_ordering:order thread_id:event").corrected().by_room(Step::AfterEvents),
    table("pusher_throttle", "pusher room_id:room last_sent_ts throttle_ms").by_room(Step::AfterEvents),
    table("room_account_data", "user_id room_id:room account_data_type stream_id content:json instance_name")
        .by_room(Step::AfterEvents),
    table("room_tags", "user_id room_id:room tag content:json").by_room(Step::AfterEvents),
    table("un_partial_stated_room_stream", "stream_id instance_name room_id:room")
        .by_room(Step::AfterEvents).refers().since(73),
    table("room_depth", "room_id:room min_depth").corrected().by_room(Step::AfterEvents),
    // State groups and the room itself, which have statements of their own.
    table("state_groups_state", "state_group:group room_id:room type state_key:text event_id:event")
        .own("with the state groups"),
    table("state_group_edges", "state_group:group prev_state_group:group").own("with the state groups"),
    table("state_groups_pending_deletion", "sequence_number state_group:group insertion_ts")
        .own("with the state groups").since(89),
    table("state_groups_persisting", "state_group:group instance_name inserted_ts")
        .own("what a stopped homeserver left of the room").since(89),
    table("state_groups", "id:group room_id:room event_id:event").own("with the state groups"),
    table("rooms", "room_id:room is_public creator room_version has_auth_chain_index").own("last of all"),
    // Tables of another program: the state compressor.
    table("state_compressor_state", "room_id:room level_num max_length current_length current_head:group")
        .own("with the groups that they name (P-54)").of_others(),
    table("state_compressor_progress", "room_id:room last_compressed:group")
        .own("with the groups that they name (P-54)").of_others(),
    // Tables that keep what they say of a room (E-10).
    table("blocked_rooms", "room_id:room user_id").kept("a blocked room stays blocked"),
    table("event_reports", "id received_ts room_id:room event_id:event user_id reason:text content:json")
        .kept("a record of abuse"),
    table("room_reports", "id received_ts room_id:room user_id reason:text").kept("a record of abuse").since(85),
    table("user_reports", "id received_ts target_user_id user_id reason:text").kept("a record of abuse").since(92),
    table("user_directory", "user_id room_id:room display_name avatar_url").kept("belongs to a user; its room is not used"),
    table("current_state_delta_stream", "stream_id room_id:room type state_key:text event_id:event \
        prev_event_id:event instance_name").kept("a stream, which must not be rewritten"),
    table("ex_outlier_stream", "event_stream_ordering:order event_id:event state_group:group instance_name")
        .kept("a stream, which must not be rewritten"),
    table("room_tags_revisions", "user_id room_id:room stream_id instance_name")
        .kept("a stream, which must not be rewritten"),
    table("delayed_events", "delay_id user_localpart device_id delay send_ts room_id:room event_type state_key:text \
        origin_server_ts content:json is_processed sticky_duration_ms")
        .kept("belongs to a user, and is refused when it is due").since(88),
    table("device_lists_changes_in_room", "user_id device_id room_id:room stream_id converted_to_destinations \
        opentracing_context instance_name inserted_ts").kept("a stream, which must not be rewritten"),
    table("device_lists_changes_converted_stream_position", "Lock stream_id room_id:room instance_name")
        .kept("a stream, which must not be rewritten").since(73),
    table("sliding_sync_connection_room_configs", "connection_position room_id:room timeline_limit required_state_id")
        .kept("what a client was sent; the homeserver forgets it by itself").since(87),
    table("sliding_sync_connection_streams", "connection_position stream room_id:room room_status last_token")
        .kept("what a client was sent; the homeserver forgets it by itself").since(87),
    table("sliding_sync_connection_lazy_members", "connection_key connection_position room_id:room user_id \
        last_seen_ts").kept("what a client was sent; the homeserver forgets it by itself").since(93),
    table("sliding_sync_connection_required_state", "required_state_id connection_key required_state:json")
        .kept("what a client was sent; the homeserver forgets it by itself").since(87),
    table("cache_invalidation_stream_by_instance", "stream_id instance_name cache_func keys:json invalidation_ts")
        .kept("a stream, which must not be rewritten").on_postgres(),
    table("push_rules_stream", "stream_id event_stream_ordering:order user_id rule_id:text op priority_class priority \
        conditions:json actions instance_name").kept("a stream, which must not be rewritten"),
    table("push_rules", "id user_name rule_id:text priority_class priority conditions:json actions")
        .kept("a user's own rules"),
    table("push_rules_enable", "id user_name rule_id:text enabled").kept("a user's own rules"),
    table("pushers", "id user_name access_token profile_tag kind app_id app_display_name device_display_name pushkey \
        ts lang data last_stream_ordering:order last_success failing_since enabled device_id instance_name")
        .kept("a position, not an event"),
    table("destinations", "destination retry_last_ts retry_interval failure_ts last_successful_stream_ordering:order")
        .kept("a position, not an event"),
    table("account_data", "user_id account_data_type stream_id content:json instance_name").kept("a user's own data"),
    table("user_filters", "user_id filter_id filter_json:json full_user_id").kept("a user's own filters"),
    table("device_inbox", "user_id device_id stream_id message_json:json instance_name")
        .kept("encrypted messages between devices"),
    table("device_federation_outbox", "destination stream_id queued_ts messages_json:json instance_name")
        .kept("encrypted messages between devices"),
    table("application_services_txns", "as_id txn_id event_ids:json").kept("what waits for a bridge"),
    table("received_transactions", "transaction_id origin ts response_code response_json:json has_been_referenced")
        .kept("answers to other servers; the homeserver forgets them by itself"),
    table("scheduled_tasks", "id action status timestamp resource_id:room params:json result:json error:text")
        .kept("the homeserver's own tasks").since(80),
    table("background_updates", "update_name progress_json:json depends_on ordering")
        .kept("how far the homeserver's own updates are"),
    table("worker_locks", "lock_name lock_key:room instance_name token last_renewed_ts").kept("locks of those who work"),
    table("worker_read_write_locks", "lock_name lock_key:room instance_name write_lock token last_renewed_ts")
        .kept("locks of those who work").since(79),
    table("worker_read_write_locks_mode", "lock_name lock_key:room write_lock token")
        .kept("locks of those who work").since(79),
    table("ui_auth_sessions", "session_id creation_time serverdict clientdict:json uri:text method description")
        .kept("the homeserver forgets them by itself"),
    table("local_media_repository_url_cache", "url:text response_code etag expires_ts og media_id download_ts")
        .kept("previews of links; the homeserver forgets them by itself"),
    // Tables that name neither events nor rooms.
    table("access_tokens", "id user_id device_id token valid_until_ms puppets_user_id last_validated refresh_token_id \
        used"),
    table("account_validity", "user_id expiration_ts_ms email_sent renewal_token token_used_ts_ms"),
    table("application_services_state", "as_id state read_receipt_stream_id presence_stream_id to_device_stream_id \
        device_list_stream_id last_txn"),
    table("applied_module_schemas", "module_name file"),
    table("applied_schema_deltas", "version file"),
    table("appservice_stream_position", "Lock stream_ordering"),
    table("dehydrated_devices", "user_id device_id device_data"),
    table("delayed_events_stream_pos", "Lock stream_id").since(88),
    table("deleted_pushers", "stream_id app_id pushkey user_id instance_name"),
    table("device_auth_providers", "user_id device_id auth_provider_id auth_provider_session_id"),
    table("device_federation_inbox", "origin message_id received_ts instance_name"),
    table("device_lists_changes_in_room_max_pruned_stream_id", "Lock stream_id").since(94),
    table("device_lists_outbound_last_success", "destination user_id stream_id"),
    table("device_lists_outbound_pokes", "destination stream_id user_id device_id sent ts opentracing_context \
        instance_name"),
    table("device_lists_remote_cache", "user_id device_id content"),
    table("device_lists_remote_extremeties", "user_id stream_id"),
    table("device_lists_remote_pending", "stream_id user_id device_id instance_name").since(73),
    table("device_lists_remote_resync", "user_id added_ts"),
    table("device_lists_stream", "stream_id user_id device_id instance_name"),
    table("devices", "user_id device_id display_name last_seen ip user_agent hidden"),
    table("e2e_cross_signing_keys", "user_id keytype keydata stream_id updatable_without_uia_before_ms instance_name"),
    table("e2e_cross_signing_signatures", "user_id key_id target_user_id target_device_id signature"),
    table("e2e_device_keys_json", "user_id device_id ts_added_ms key_json"),
    table("e2e_fallback_keys_json", "user_id device_id algorithm key_id key_json used"),
    table("e2e_one_time_keys_json", "user_id device_id algorithm key_id ts_added_ms key_json"),
    table("e2e_room_keys_versions", "user_id version algorithm auth_data deleted etag"),
    table("erased_users", "user_id"),
    table("event_push_summary_last_receipt_stream_id", "Lock stream_id"),
    table("event_push_summary_stream_ordering", "Lock stream_ordering"),
    table("federation_stream_position", "type stream_id instance_name"),
    table("ignored_users", "ignorer_user_id ignored_user_id"),
    table("instance_map", "instance_id instance_name").on_postgres(),
    table("local_media_repository", "media_id media_type media_length created_ts upload_name user_id quarantined_by \
        url_cache last_access_ts safe_from_quarantine authenticated sha256"),
    table("local_media_repository_thumbnails", "media_id thumbnail_width thumbnail_height thumbnail_type \
        thumbnail_method thumbnail_length"),
    table("login_tokens", "token user_id expiry_ts used_ts auth_provider_id auth_provider_session_id").since(73),
    table("monthly_active_users", "user_id timestamp"),
    table("open_id_tokens", "token ts_valid_until_ms user_id"),
    table("per_user_experimental_features", "user_id feature enabled").since(76),
    table("presence", "user_id state status_msg mtime").until(73),
    table("presence_stream", "stream_id user_id state last_active_ts last_federation_update_ts last_user_sync_ts \
        status_msg currently_active instance_name"),
    table("profile_updates", "stream_id instance_name user_id action affected_fields inserted_ts").since(94),
    table("profile_updates_per_user", "stream_id user_id inserted_ts").since(94),
    table("profiles", "user_id displayname avatar_url full_user_id fields"),
    table("quarantined_media_changes", "stream_id instance_name origin media_id quarantined").since(94),
    table("ratelimit_override", "user_id messages_per_second burst_count"),
    table("refresh_tokens", "id user_id device_id token next_token_id expiry_ts ultimate_session_expiry_ts"),
    table("registration_tokens", "token uses_allowed pending completed expiry_time"),
    table("remote_media_cache", "media_origin media_id media_type created_ts upload_name media_length filesystem_id \
        last_access_ts quarantined_by authenticated sha256"),
    table("remote_media_cache_thumbnails", "media_origin media_id thumbnail_width thumbnail_height thumbnail_method \
        thumbnail_type thumbnail_length filesystem_id"),
    table("room_forgetter_stream_pos", "Lock stream_id").since(76),
    table("schema_compat_version", "Lock compat_version"),
    table("schema_version", "Lock version upgraded"),
    table("server_keys_json", "server_name key_id from_server ts_added_ms ts_valid_until_ms key_json"),
    table("server_signature_keys", "server_name key_id from_server ts_added_ms verify_key ts_valid_until_ms"),
    table("sessions", "session_type session_id value expiry_time_ms"),
    table("sliding_sync_connection_positions", "connection_position connection_key created_ts").since(87),
    table("sliding_sync_connections", "connection_key user_id effective_device_id conn_id created_ts last_used_ts")
        .since(87),
    table("stats_incremental_position", "Lock stream_id"),
    table("stream_positions", "stream_name instance_name stream_id"),
    table("threepid_guest_access_tokens", "medium address guest_access_token first_inviter"),
    table("threepid_validation_session", "session_id medium address client_secret last_send_attempt validated_at"),
    table("threepid_validation_token", "token session_id next_link expires"),
    table("ui_auth_sessions_credentials", "session_id stage_type result"),
    table("ui_auth_sessions_ips", "session_id ip user_agent"),
    table("user_daily_visits", "user_id device_id timestamp user_agent"),
    table("user_directory_search", "user_id value vector"),
    table("user_directory_stale_remote_users", "user_id user_server_name next_try_at_ts retry_counter").since(74),
    table("user_directory_stream_pos", "Lock stream_id"),
    table("user_external_ids", "auth_provider external_id user_id"),
    table("user_ips", "user_id access_token device_id ip user_agent last_seen"),
    table("user_signature_stream", "stream_id from_user_id user_ids instance_name"),
    table("user_stats_current", "user_id joined_rooms completed_delta_stream_id"),
    table("user_threepid_id_server", "user_id medium address id_server"),
    table("user_threepids", "user_id medium address validated_at added_at"),
    table("users", "name password_hash creation_ts admin upgrade_ts is_guest appservice_id consent_version \
        consent_server_notice_sent user_type deactivated shadow_banned consent_ts approved locked suspended"),
    table("users_pending_deactivation", "user_id"),
    table("users_to_send_full_presence_to", "user_id presence_stream_id"),
];
