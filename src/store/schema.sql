-- An empty database with the tables of Synapse's schema that roomkeeper reads or writes, under the same names and
-- with the same columns, types, keys and indexes as schema 94. In our own words; a real homeserver makes more.
-- Both engines read this text (on PostgreSQL every INTEGER is a BIGINT); what differs is in a file for each.

CREATE TABLE schema_version (
    Lock CHAR(1) NOT NULL DEFAULT 'X' UNIQUE CHECK (Lock = 'X'), version INTEGER NOT NULL, upgraded BOOL NOT NULL);
CREATE TABLE schema_compat_version (
    Lock CHAR(1) NOT NULL DEFAULT 'X' UNIQUE CHECK (Lock = 'X'), compat_version INTEGER NOT NULL);
CREATE TABLE applied_schema_deltas (version INTEGER NOT NULL, file TEXT NOT NULL, UNIQUE (version, file));
CREATE TABLE background_updates (
    update_name TEXT NOT NULL UNIQUE, progress_json TEXT NOT NULL, depends_on TEXT, ordering INT NOT NULL DEFAULT 0);

-- Users and their tokens.
CREATE TABLE users (
    name TEXT UNIQUE, password_hash TEXT, creation_ts BIGINT, admin SMALLINT NOT NULL DEFAULT 0, upgrade_ts BIGINT,
    is_guest SMALLINT NOT NULL DEFAULT 0, appservice_id TEXT, consent_version TEXT, consent_server_notice_sent TEXT,
    user_type TEXT, deactivated SMALLINT NOT NULL DEFAULT 0, shadow_banned BOOLEAN, consent_ts BIGINT,
    approved BOOLEAN, locked BOOLEAN NOT NULL DEFAULT FALSE, suspended BOOLEAN NOT NULL DEFAULT FALSE);
CREATE TABLE access_tokens (
    id BIGINT PRIMARY KEY, user_id TEXT NOT NULL, device_id TEXT, token TEXT NOT NULL UNIQUE, valid_until_ms BIGINT,
    puppets_user_id TEXT, last_validated BIGINT, refresh_token_id BIGINT, used BOOLEAN);
CREATE TABLE account_validity (
    user_id TEXT PRIMARY KEY, expiration_ts_ms BIGINT NOT NULL, email_sent BOOLEAN NOT NULL, renewal_token TEXT,
    token_used_ts_ms BIGINT);
CREATE TABLE profiles (
    user_id TEXT NOT NULL UNIQUE, displayname TEXT, avatar_url TEXT, full_user_id TEXT, fields JSONB);
CREATE UNIQUE INDEX profiles_full_user_id_key ON profiles (full_user_id);
CREATE TABLE devices (
    user_id TEXT NOT NULL, device_id TEXT NOT NULL, display_name TEXT, last_seen BIGINT, ip TEXT, user_agent TEXT,
    hidden BOOLEAN DEFAULT FALSE, CONSTRAINT device_uniqueness UNIQUE (user_id, device_id));
CREATE TABLE erased_users (user_id TEXT NOT NULL UNIQUE);
CREATE TABLE ignored_users (ignorer_user_id TEXT NOT NULL, ignored_user_id TEXT NOT NULL, UNIQUE (ignorer_user_id, ignored_user_id));

-- Rooms.
CREATE TABLE rooms (
    room_id TEXT PRIMARY KEY NOT NULL, is_public BOOL, creator TEXT, room_version TEXT, has_auth_chain_index BOOLEAN);
CREATE TABLE blocked_rooms (room_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL);
CREATE TABLE room_aliases (room_alias TEXT NOT NULL UNIQUE, room_id TEXT NOT NULL, creator TEXT);
CREATE TABLE room_depth (room_id TEXT NOT NULL UNIQUE, min_depth INTEGER NOT NULL);
CREATE TABLE room_retention (
    room_id TEXT, event_id TEXT, min_lifetime BIGINT, max_lifetime BIGINT, PRIMARY KEY (room_id, event_id));

-- Events.
CREATE TABLE events (
    stream_ordering INTEGER PRIMARY KEY, topological_ordering BIGINT NOT NULL, event_id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL, room_id TEXT NOT NULL, content TEXT, unrecognized_keys TEXT, processed BOOL NOT NULL,
    outlier BOOL NOT NULL, depth BIGINT NOT NULL DEFAULT 0, origin_server_ts BIGINT, received_ts BIGINT, sender TEXT,
    contains_url BOOLEAN, instance_name TEXT, state_key TEXT, rejection_reason TEXT);
CREATE INDEX events_order_room ON events (room_id, topological_ordering, stream_ordering);
CREATE INDEX events_room_stream ON events (room_id, stream_ordering);
CREATE INDEX events_ts ON events (origin_server_ts, stream_ordering);
CREATE INDEX event_contains_url_index ON events (room_id, topological_ordering, stream_ordering)
    WHERE contains_url = true AND outlier = false;
CREATE TABLE event_json (
    event_id TEXT NOT NULL UNIQUE, room_id TEXT NOT NULL, internal_metadata TEXT NOT NULL, json TEXT NOT NULL,
    format_version INTEGER);
CREATE TABLE event_edges (
    event_id TEXT NOT NULL REFERENCES events (event_id), prev_event_id TEXT NOT NULL, room_id TEXT,
    is_state BOOL NOT NULL DEFAULT FALSE);
CREATE UNIQUE INDEX event_edges_event_id_prev_event_id_idx ON event_edges (event_id, prev_event_id);
CREATE INDEX ev_edges_prev_id ON event_edges (prev_event_id);
CREATE TABLE event_auth (event_id TEXT NOT NULL, auth_id TEXT NOT NULL, room_id TEXT NOT NULL);
CREATE INDEX evauth_edges_id ON event_auth (event_id);
CREATE TABLE event_auth_chains (event_id TEXT PRIMARY KEY, chain_id BIGINT NOT NULL, sequence_number BIGINT NOT NULL);
CREATE UNIQUE INDEX event_auth_chains_c_seq_index ON event_auth_chains (chain_id, sequence_number);
CREATE TABLE event_auth_chain_links (
    origin_chain_id BIGINT NOT NULL, origin_sequence_number BIGINT NOT NULL, target_chain_id BIGINT NOT NULL,
    target_sequence_number BIGINT NOT NULL);
CREATE INDEX event_auth_chain_links_idx ON event_auth_chain_links (origin_chain_id, target_chain_id);
CREATE TABLE event_forward_extremities (
    event_id TEXT NOT NULL REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED, room_id TEXT NOT NULL,
    UNIQUE (event_id, room_id));
CREATE INDEX ev_extrem_room ON event_forward_extremities (room_id);
CREATE INDEX ev_extrem_id ON event_forward_extremities (event_id);
CREATE TABLE event_backward_extremities (event_id TEXT NOT NULL, room_id TEXT NOT NULL, UNIQUE (event_id, room_id));
CREATE INDEX ev_b_extrem_room ON event_backward_extremities (room_id);
CREATE INDEX ev_b_extrem_id ON event_backward_extremities (event_id);
CREATE TABLE stream_ordering_to_exterm (stream_ordering BIGINT NOT NULL, room_id TEXT NOT NULL, event_id TEXT NOT NULL);
CREATE INDEX stream_ordering_to_exterm_rm_idx ON stream_ordering_to_exterm (room_id, stream_ordering);
CREATE INDEX stream_ordering_to_exterm_idx ON stream_ordering_to_exterm (stream_ordering);
CREATE TABLE ex_outlier_stream (
    event_stream_ordering BIGINT PRIMARY KEY NOT NULL, event_id TEXT NOT NULL, state_group BIGINT NOT NULL,
    instance_name TEXT);
CREATE TABLE stream_positions (stream_name TEXT NOT NULL, instance_name TEXT NOT NULL, stream_id BIGINT NOT NULL);
CREATE UNIQUE INDEX stream_positions_idx ON stream_positions (stream_name, instance_name);
CREATE TABLE instance_map (instance_id INTEGER PRIMARY KEY, instance_name TEXT NOT NULL);
CREATE UNIQUE INDEX instance_map_idx ON instance_map (instance_name);
CREATE TABLE rejections (event_id TEXT NOT NULL UNIQUE, reason TEXT NOT NULL, last_check TEXT NOT NULL);
CREATE TABLE redactions (
    event_id TEXT NOT NULL UNIQUE, redacts TEXT NOT NULL, have_censored BOOL NOT NULL DEFAULT false,
    received_ts BIGINT, recheck BOOLEAN NOT NULL DEFAULT true);
CREATE INDEX redactions_redacts ON redactions (redacts);
CREATE INDEX redactions_have_censored_ts ON redactions (received_ts) WHERE NOT have_censored;
CREATE TABLE event_relations (
    event_id TEXT NOT NULL, relates_to_id TEXT NOT NULL, relation_type TEXT NOT NULL, aggregation_key TEXT);
CREATE UNIQUE INDEX event_relations_id ON event_relations (event_id);
CREATE INDEX event_relations_relates ON event_relations (relates_to_id, relation_type, aggregation_key);
CREATE TABLE threads (
    room_id TEXT NOT NULL, thread_id TEXT NOT NULL, latest_event_id TEXT NOT NULL, topological_ordering BIGINT NOT NULL,
    stream_ordering BIGINT NOT NULL, CONSTRAINT threads_uniqueness UNIQUE (room_id, thread_id));
CREATE INDEX threads_ordering_idx ON threads (room_id, topological_ordering, stream_ordering);
CREATE TABLE event_labels (
    event_id TEXT, label TEXT, room_id TEXT NOT NULL, topological_ordering BIGINT NOT NULL, PRIMARY KEY (event_id, label));
CREATE INDEX event_labels_room_id_label_idx ON event_labels (room_id, label, topological_ordering);
CREATE TABLE event_expiry (event_id TEXT PRIMARY KEY, expiry_ts BIGINT NOT NULL);
CREATE TABLE event_reports (
    id BIGINT NOT NULL PRIMARY KEY, received_ts BIGINT NOT NULL, room_id TEXT NOT NULL, event_id TEXT NOT NULL,
    user_id TEXT NOT NULL, reason TEXT, content TEXT);

-- Unread counts and receipts.
CREATE TABLE event_push_actions (
    room_id TEXT NOT NULL, event_id TEXT NOT NULL, user_id TEXT NOT NULL, profile_tag VARCHAR(32), actions TEXT NOT NULL,
    topological_ordering BIGINT, stream_ordering BIGINT, notif SMALLINT, highlight SMALLINT, unread SMALLINT,
    thread_id TEXT CONSTRAINT event_push_actions_thread_id CHECK (thread_id IS NOT NULL),
    CONSTRAINT event_id_user_id_profile_tag_uniqueness UNIQUE (room_id, event_id, user_id, profile_tag));
CREATE INDEX event_push_actions_room_id_user_id ON event_push_actions (room_id, user_id);
CREATE INDEX event_push_actions_rm_tokens ON event_push_actions (user_id, room_id, topological_ordering, stream_ordering);
CREATE INDEX event_push_actions_stream_ordering ON event_push_actions (stream_ordering, user_id);
CREATE TABLE event_push_actions_staging (
    event_id TEXT NOT NULL, user_id TEXT NOT NULL, actions TEXT NOT NULL, notif SMALLINT NOT NULL,
    highlight SMALLINT NOT NULL, unread SMALLINT, thread_id TEXT, inserted_ts BIGINT);
CREATE INDEX event_push_actions_staging_id ON event_push_actions_staging (event_id);
CREATE TABLE event_push_summary (
    user_id TEXT NOT NULL, room_id TEXT NOT NULL, notif_count BIGINT NOT NULL, stream_ordering BIGINT NOT NULL,
    unread_count BIGINT, last_receipt_stream_ordering BIGINT,
    thread_id TEXT CONSTRAINT event_push_summary_thread_id CHECK (thread_id IS NOT NULL));
CREATE UNIQUE INDEX event_push_summary_unique_index2 ON event_push_summary (user_id, room_id, thread_id);
CREATE TABLE event_push_summary_stream_ordering (
    Lock CHAR(1) NOT NULL DEFAULT 'X' UNIQUE CHECK (Lock = 'X'), stream_ordering BIGINT NOT NULL);
CREATE TABLE receipts_linearized (
    stream_id BIGINT NOT NULL, room_id TEXT NOT NULL, receipt_type TEXT NOT NULL, user_id TEXT NOT NULL,
    event_id TEXT NOT NULL, thread_id TEXT, event_stream_ordering BIGINT, data TEXT NOT NULL, instance_name TEXT,
    CONSTRAINT receipts_linearized_uniqueness_thread UNIQUE (room_id, receipt_type, user_id, thread_id));

-- State.
CREATE TABLE state_events (
    event_id TEXT NOT NULL UNIQUE, room_id TEXT NOT NULL, type TEXT NOT NULL, state_key TEXT NOT NULL, prev_state TEXT);
CREATE TABLE current_state_events (
    event_id TEXT NOT NULL UNIQUE, room_id TEXT NOT NULL, type TEXT NOT NULL, state_key TEXT NOT NULL, membership TEXT,
    event_stream_ordering BIGINT REFERENCES events (stream_ordering), UNIQUE (room_id, type, state_key));
CREATE INDEX current_state_events_member_index ON current_state_events (state_key) WHERE type = 'm.room.member';
CREATE INDEX current_state_events_stream_ordering_idx ON current_state_events (event_stream_ordering);
CREATE TABLE current_state_delta_stream (
    stream_id BIGINT NOT NULL, room_id TEXT NOT NULL, type TEXT NOT NULL, state_key TEXT NOT NULL, event_id TEXT,
    prev_event_id TEXT, instance_name TEXT);
CREATE INDEX current_state_delta_stream_idx ON current_state_delta_stream (stream_id);
CREATE TABLE room_memberships (
    event_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL, sender TEXT NOT NULL, room_id TEXT NOT NULL,
    membership TEXT NOT NULL, forgotten INTEGER DEFAULT 0, display_name TEXT, avatar_url TEXT,
    event_stream_ordering BIGINT REFERENCES events (stream_ordering), participant BOOLEAN DEFAULT FALSE);
CREATE INDEX room_memberships_room_id ON room_memberships (room_id);
CREATE INDEX room_memberships_user_id ON room_memberships (user_id);
CREATE INDEX room_memberships_stream_ordering_idx ON room_memberships (event_stream_ordering);
CREATE TABLE local_current_membership (
    room_id TEXT NOT NULL, user_id TEXT NOT NULL, event_id TEXT NOT NULL, membership TEXT NOT NULL,
    event_stream_ordering BIGINT REFERENCES events (stream_ordering));
CREATE UNIQUE INDEX local_current_membership_idx ON local_current_membership (user_id, room_id);
CREATE INDEX local_current_membership_room_idx ON local_current_membership (room_id);
CREATE INDEX local_current_membership_stream_ordering_idx ON local_current_membership (event_stream_ordering);
CREATE TABLE event_to_state_groups (event_id TEXT NOT NULL UNIQUE, state_group BIGINT NOT NULL);
CREATE INDEX event_to_state_groups_sg_index ON event_to_state_groups (state_group);
CREATE TABLE state_groups (id BIGINT PRIMARY KEY, room_id TEXT NOT NULL, event_id TEXT NOT NULL);
CREATE INDEX state_groups_room_id_idx ON state_groups (room_id);
CREATE TABLE state_groups_state (
    state_group BIGINT NOT NULL, room_id TEXT NOT NULL, type TEXT NOT NULL, state_key TEXT NOT NULL, event_id TEXT NOT NULL);
CREATE INDEX state_groups_state_type_idx ON state_groups_state (state_group, type, state_key);
CREATE TABLE state_group_edges (state_group BIGINT NOT NULL, prev_state_group BIGINT NOT NULL);
CREATE INDEX state_group_edges_prev_idx ON state_group_edges (prev_state_group);
CREATE UNIQUE INDEX state_group_edges_unique_idx ON state_group_edges (state_group, prev_state_group);
CREATE TABLE state_groups_persisting (
    state_group BIGINT NOT NULL, instance_name TEXT NOT NULL, inserted_ts BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (state_group, instance_name));

-- What sliding sync keeps of each room.
CREATE TABLE sliding_sync_joined_rooms (
    room_id TEXT NOT NULL PRIMARY KEY REFERENCES rooms (room_id),
    event_stream_ordering BIGINT NOT NULL REFERENCES events (stream_ordering), bump_stamp BIGINT, room_type TEXT,
    room_name TEXT, is_encrypted BOOLEAN NOT NULL DEFAULT FALSE, tombstone_successor_room_id TEXT);
CREATE UNIQUE INDEX sliding_sync_joined_rooms_event_stream_ordering ON sliding_sync_joined_rooms (event_stream_ordering);
CREATE TABLE sliding_sync_membership_snapshots (
    room_id TEXT NOT NULL REFERENCES rooms (room_id), user_id TEXT NOT NULL, sender TEXT NOT NULL,
    membership_event_id TEXT NOT NULL REFERENCES events (event_id), membership TEXT NOT NULL,
    forgotten INTEGER NOT NULL DEFAULT 0, event_stream_ordering BIGINT NOT NULL REFERENCES events (stream_ordering),
    event_instance_name TEXT NOT NULL, has_known_state BOOLEAN NOT NULL DEFAULT FALSE, room_type TEXT, room_name TEXT,
    is_encrypted BOOLEAN NOT NULL DEFAULT FALSE, tombstone_successor_room_id TEXT, PRIMARY KEY (room_id, user_id));
CREATE UNIQUE INDEX sliding_sync_membership_snapshots_event_stream_ordering
    ON sliding_sync_membership_snapshots (event_stream_ordering);
CREATE INDEX sliding_sync_membership_snapshots_user_id ON sliding_sync_membership_snapshots (user_id);
CREATE INDEX sliding_sync_membership_snapshots_membership_event_id_idx
    ON sliding_sync_membership_snapshots (membership_event_id);

-- Rooms that are still being joined.
CREATE TABLE partial_state_rooms (
    room_id TEXT PRIMARY KEY REFERENCES rooms (room_id), device_lists_stream_id BIGINT NOT NULL DEFAULT 0,
    join_event_id TEXT REFERENCES events (event_id), joined_via TEXT);
CREATE TABLE partial_state_events (
    room_id TEXT NOT NULL REFERENCES partial_state_rooms (room_id),
    event_id TEXT NOT NULL UNIQUE REFERENCES events (event_id));
CREATE TABLE partial_state_rooms_servers (
    room_id TEXT NOT NULL REFERENCES partial_state_rooms (room_id), server_name TEXT NOT NULL, UNIQUE (room_id, server_name));

-- What else knows of rooms: a deletion takes its rows.
CREATE TABLE room_alias_servers (room_alias TEXT NOT NULL, server TEXT NOT NULL);
CREATE INDEX room_alias_servers_alias ON room_alias_servers (room_alias);
CREATE INDEX room_aliases_id ON room_aliases (room_id);
CREATE TABLE destination_rooms (
    destination TEXT NOT NULL, room_id TEXT NOT NULL REFERENCES rooms (room_id), stream_ordering BIGINT NOT NULL,
    PRIMARY KEY (destination, room_id));
CREATE INDEX destination_rooms_room_id ON destination_rooms (room_id);
CREATE TABLE event_failed_pull_attempts (
    room_id TEXT NOT NULL REFERENCES rooms (room_id), event_id TEXT NOT NULL, num_attempts INTEGER NOT NULL,
    last_attempt_ts BIGINT NOT NULL, last_cause TEXT NOT NULL, PRIMARY KEY (room_id, event_id));
CREATE TABLE federation_inbound_events_staging (
    origin TEXT NOT NULL, room_id TEXT NOT NULL, event_id TEXT NOT NULL, received_ts BIGINT NOT NULL,
    event_json TEXT NOT NULL, internal_metadata TEXT NOT NULL);
CREATE INDEX federation_inbound_events_staging_room ON federation_inbound_events_staging (room_id, received_ts);
CREATE TABLE event_auth_chain_to_calculate (
    event_id TEXT PRIMARY KEY, room_id TEXT NOT NULL, type TEXT NOT NULL, state_key TEXT NOT NULL);
CREATE INDEX event_auth_chain_to_calculate_rm_id ON event_auth_chain_to_calculate (room_id);
CREATE TABLE sliding_sync_joined_rooms_to_recalculate (room_id TEXT NOT NULL PRIMARY KEY REFERENCES rooms (room_id));
CREATE TABLE receipts_graph (
    room_id TEXT NOT NULL, receipt_type TEXT NOT NULL, user_id TEXT NOT NULL, event_ids TEXT NOT NULL, thread_id TEXT,
    data TEXT NOT NULL, CONSTRAINT receipts_graph_uniqueness_thread UNIQUE (room_id, receipt_type, user_id, thread_id));
CREATE TABLE room_stats_state (
    room_id TEXT PRIMARY KEY, name TEXT, canonical_alias TEXT, join_rules TEXT, history_visibility TEXT, encryption TEXT,
    avatar TEXT, guest_access TEXT, is_federatable BOOLEAN, topic TEXT, room_type TEXT);
CREATE TABLE room_stats_current (
    room_id TEXT PRIMARY KEY, current_state_events INT NOT NULL, joined_members INT NOT NULL, invited_members INT NOT NULL,
    left_members INT NOT NULL, banned_members INT NOT NULL, local_users_in_room INT NOT NULL,
    completed_delta_stream_id BIGINT NOT NULL, knocked_members INT);
CREATE TABLE room_stats_earliest_token (room_id TEXT NOT NULL UNIQUE, token BIGINT NOT NULL);
CREATE TABLE users_in_public_rooms (user_id TEXT NOT NULL, room_id TEXT NOT NULL, UNIQUE (user_id, room_id));
CREATE INDEX users_in_public_rooms_r_idx ON users_in_public_rooms (room_id);
CREATE TABLE users_who_share_private_rooms (
    user_id TEXT NOT NULL, other_user_id TEXT NOT NULL, room_id TEXT NOT NULL, UNIQUE (user_id, other_user_id, room_id));
CREATE INDEX users_who_share_private_rooms_r_idx ON users_who_share_private_rooms (room_id);
CREATE TABLE appservice_room_list (
    appservice_id TEXT NOT NULL, network_id TEXT NOT NULL, room_id TEXT NOT NULL, UNIQUE (appservice_id, network_id, room_id));
CREATE TABLE e2e_room_keys (
    user_id TEXT NOT NULL, room_id TEXT NOT NULL, session_id TEXT NOT NULL, version BIGINT NOT NULL,
    first_message_index INT, forwarded_count INT, is_verified BOOLEAN, session_data TEXT NOT NULL,
    UNIQUE (user_id, version, room_id, session_id));
CREATE TABLE pusher_throttle (
    pusher BIGINT NOT NULL, room_id TEXT NOT NULL, last_sent_ts BIGINT, throttle_ms BIGINT, PRIMARY KEY (pusher, room_id));
CREATE TABLE room_account_data (
    user_id TEXT NOT NULL, room_id TEXT NOT NULL, account_data_type TEXT NOT NULL, stream_id BIGINT NOT NULL,
    content TEXT NOT NULL, instance_name TEXT, UNIQUE (user_id, room_id, account_data_type));
CREATE TABLE room_tags (
    user_id TEXT NOT NULL, room_id TEXT NOT NULL, tag TEXT NOT NULL, content TEXT NOT NULL, UNIQUE (user_id, room_id, tag));
CREATE TABLE timeline_gaps (room_id TEXT NOT NULL, instance_name TEXT NOT NULL, stream_ordering BIGINT NOT NULL);
CREATE UNIQUE INDEX timeline_gaps_room_id ON timeline_gaps (room_id, stream_ordering);
CREATE TABLE room_ban_redactions (
    room_id TEXT NOT NULL, user_id TEXT NOT NULL, redacting_event_id TEXT NOT NULL, redact_end_ordering BIGINT,
    UNIQUE (room_id, user_id));
CREATE TABLE un_partial_stated_room_stream (
    stream_id BIGINT PRIMARY KEY NOT NULL, instance_name TEXT NOT NULL,
    room_id TEXT NOT NULL REFERENCES rooms (room_id) ON DELETE CASCADE);
CREATE TABLE room_reports (
    id BIGINT PRIMARY KEY NOT NULL, received_ts BIGINT NOT NULL, room_id TEXT NOT NULL, user_id TEXT NOT NULL,
    reason TEXT NOT NULL);

-- The homeserver's own tasks.
CREATE TABLE scheduled_tasks (
    id TEXT PRIMARY KEY, action TEXT NOT NULL, status TEXT NOT NULL, timestamp BIGINT NOT NULL, resource_id TEXT,
    params TEXT, result TEXT, error TEXT);
CREATE INDEX scheduled_tasks_status ON scheduled_tasks (status);

INSERT INTO schema_version (version, upgraded) VALUES (94, FALSE);
INSERT INTO schema_compat_version (compat_version) VALUES (84);
INSERT INTO event_push_summary_stream_ordering (stream_ordering) VALUES (0);

-- Media: what people of this server uploaded, and copies of what other servers have.
CREATE TABLE local_media_repository (
    media_id TEXT UNIQUE, media_type TEXT, media_length BIGINT, created_ts BIGINT, upload_name TEXT, user_id TEXT,
    quarantined_by TEXT, url_cache TEXT, last_access_ts BIGINT, safe_from_quarantine BOOLEAN NOT NULL DEFAULT FALSE,
    authenticated BOOLEAN NOT NULL DEFAULT FALSE, sha256 TEXT);
CREATE INDEX users_have_local_media ON local_media_repository (user_id, created_ts);
CREATE TABLE local_media_repository_thumbnails (
    media_id TEXT, thumbnail_width BIGINT, thumbnail_height BIGINT, thumbnail_type TEXT, thumbnail_method TEXT,
    thumbnail_length BIGINT, UNIQUE (media_id, thumbnail_width, thumbnail_height, thumbnail_type, thumbnail_method));
CREATE INDEX local_media_repository_thumbnails_media_id ON local_media_repository_thumbnails (media_id);
CREATE TABLE remote_media_cache (
    media_origin TEXT, media_id TEXT, media_type TEXT, created_ts BIGINT, upload_name TEXT, media_length BIGINT,
    filesystem_id TEXT, last_access_ts BIGINT, quarantined_by TEXT, authenticated BOOLEAN NOT NULL DEFAULT FALSE,
    sha256 TEXT, UNIQUE (media_origin, media_id));
CREATE TABLE remote_media_cache_thumbnails (
    media_origin TEXT, media_id TEXT, thumbnail_width BIGINT, thumbnail_height BIGINT, thumbnail_method TEXT,
    thumbnail_type TEXT, thumbnail_length BIGINT, filesystem_id TEXT,
    UNIQUE (media_origin, media_id, thumbnail_width, thumbnail_height, thumbnail_type, thumbnail_method));
