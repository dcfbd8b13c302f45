-- What PostgreSQL says in words of its own; see schema.sql.

-- The full-text index is a table like any other.
CREATE TABLE event_search (
    event_id TEXT, room_id TEXT, sender TEXT, key TEXT, vector TSVECTOR, origin_server_ts BIGINT, stream_ordering BIGINT);
CREATE UNIQUE INDEX event_search_event_id_idx ON event_search (event_id);
CREATE INDEX event_search_ev_ridx ON event_search (room_id);
CREATE INDEX event_search_fts_idx ON event_search USING gin (vector);

-- State groups that wait for their deletion.
CREATE TABLE state_groups_pending_deletion (
    sequence_number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state_group BIGINT NOT NULL, insertion_ts BIGINT NOT NULL);
CREATE UNIQUE INDEX state_groups_pending_deletion_state_group ON state_groups_pending_deletion (state_group);
CREATE INDEX state_groups_pending_deletion_insertion_ts ON state_groups_pending_deletion (insertion_ts);

-- Numbers that are given out.
CREATE SEQUENCE events_stream_seq;
CREATE SEQUENCE events_backfill_stream_seq;
CREATE SEQUENCE state_group_id_seq;
CREATE SEQUENCE event_auth_chain_id;

-- The homeserver's own locks.
CREATE UNLOGGED TABLE worker_read_write_locks_mode (
    lock_name TEXT NOT NULL, lock_key TEXT NOT NULL, write_lock BOOLEAN NOT NULL, token TEXT NOT NULL);
CREATE UNIQUE INDEX worker_read_write_locks_mode_key ON worker_read_write_locks_mode (lock_name, lock_key);
CREATE UNIQUE INDEX worker_read_write_locks_mode_type ON worker_read_write_locks_mode (lock_name, lock_key, write_lock);
CREATE UNLOGGED TABLE worker_read_write_locks (
    lock_name TEXT NOT NULL, lock_key TEXT NOT NULL, instance_name TEXT NOT NULL, write_lock BOOLEAN NOT NULL,
    token TEXT NOT NULL, last_renewed_ts BIGINT NOT NULL,
    FOREIGN KEY (lock_name, lock_key, write_lock)
        REFERENCES worker_read_write_locks_mode (lock_name, lock_key, write_lock));
CREATE UNIQUE INDEX worker_read_write_locks_key ON worker_read_write_locks (lock_name, lock_key, token);
CREATE UNIQUE INDEX worker_read_write_locks_write ON worker_read_write_locks (lock_name, lock_key) WHERE write_lock;
ALTER TABLE worker_read_write_locks_mode ADD FOREIGN KEY (lock_name, lock_key, token)
    REFERENCES worker_read_write_locks (lock_name, lock_key, token) DEFERRABLE INITIALLY DEFERRED;
-- The mode row exists exactly while somebody holds the lock, in that mode.
CREATE FUNCTION lock_mode_is_set() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO worker_read_write_locks_mode (lock_name, lock_key, write_lock, token)
    VALUES (NEW.lock_name, NEW.lock_key, NEW.write_lock, NEW.token)
        ON CONFLICT (lock_name, lock_key) DO NOTHING;
    RETURN NEW;
END $$;
CREATE TRIGGER lock_mode_is_set BEFORE INSERT ON worker_read_write_locks
    FOR EACH ROW EXECUTE FUNCTION lock_mode_is_set();
CREATE FUNCTION lock_mode_is_dropped() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    heir TEXT;
BEGIN
    SELECT token INTO heir FROM worker_read_write_locks
     WHERE lock_name = OLD.lock_name AND lock_key = OLD.lock_key
     LIMIT 1 FOR UPDATE;
    IF heir IS NULL THEN
        DELETE FROM worker_read_write_locks_mode
         WHERE lock_name = OLD.lock_name AND lock_key = OLD.lock_key AND token = OLD.token;
    ELSE
        UPDATE worker_read_write_locks_mode SET token = heir
         WHERE lock_name = OLD.lock_name AND lock_key = OLD.lock_key;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER lock_mode_is_dropped AFTER DELETE ON worker_read_write_locks
    FOR EACH ROW EXECUTE FUNCTION lock_mode_is_dropped();
