-- What SQLite says in words of its own; see schema.sql.

-- The full-text index.
CREATE VIRTUAL TABLE event_search USING fts4 (tokenize=porter, event_id, room_id, sender, key, value);

-- State groups that wait for their deletion.
CREATE TABLE state_groups_pending_deletion (
    sequence_number INTEGER PRIMARY KEY AUTOINCREMENT, state_group BIGINT NOT NULL, insertion_ts BIGINT NOT NULL);
CREATE UNIQUE INDEX state_groups_pending_deletion_state_group ON state_groups_pending_deletion (state_group);
CREATE INDEX state_groups_pending_deletion_insertion_ts ON state_groups_pending_deletion (insertion_ts);

-- The homeserver's own locks.
CREATE TABLE worker_read_write_locks_mode (
    lock_name TEXT NOT NULL, lock_key TEXT NOT NULL, write_lock BOOLEAN NOT NULL, token TEXT NOT NULL,
    FOREIGN KEY (lock_name, lock_key, token) REFERENCES worker_read_write_locks (lock_name, lock_key, token)
        DEFERRABLE INITIALLY DEFERRED);
CREATE UNIQUE INDEX worker_read_write_locks_mode_key ON worker_read_write_locks_mode (lock_name, lock_key);
CREATE UNIQUE INDEX worker_read_write_locks_mode_type ON worker_read_write_locks_mode (lock_name, lock_key, write_lock);
CREATE TABLE worker_read_write_locks (
    lock_name TEXT NOT NULL, lock_key TEXT NOT NULL, instance_name TEXT NOT NULL, write_lock BOOLEAN NOT NULL,
    token TEXT NOT NULL, last_renewed_ts BIGINT NOT NULL,
    FOREIGN KEY (lock_name, lock_key, write_lock)
        REFERENCES worker_read_write_locks_mode (lock_name, lock_key, write_lock));
CREATE UNIQUE INDEX worker_read_write_locks_key ON worker_read_write_locks (lock_name, lock_key, token);
CREATE UNIQUE INDEX worker_read_write_locks_write ON worker_read_write_locks (lock_name, lock_key) WHERE write_lock;
-- The mode row exists exactly while somebody holds the lock, in that mode.
CREATE TRIGGER lock_mode_is_set BEFORE INSERT ON worker_read_write_locks
BEGIN
    DELETE FROM worker_read_write_locks_mode
     WHERE lock_name = NEW.lock_name AND lock_key = NEW.lock_key
       AND NOT EXISTS (SELECT 1 FROM worker_read_write_locks l
                        WHERE l.lock_name = NEW.lock_name AND l.lock_key = NEW.lock_key);
    INSERT INTO worker_read_write_locks_mode (lock_name, lock_key, write_lock, token)
    VALUES (NEW.lock_name, NEW.lock_key, NEW.write_lock, NEW.token)
        ON CONFLICT (lock_name, lock_key) DO UPDATE SET write_lock = excluded.write_lock, token = excluded.token;
END;
CREATE TRIGGER lock_mode_is_dropped AFTER DELETE ON worker_read_write_locks
BEGIN
    DELETE FROM worker_read_write_locks_mode
     WHERE lock_name = OLD.lock_name AND lock_key = OLD.lock_key
       AND NOT EXISTS (SELECT 1 FROM worker_read_write_locks l
                        WHERE l.lock_name = OLD.lock_name AND l.lock_key = OLD.lock_key);
    UPDATE worker_read_write_locks_mode
       SET token = (SELECT l.token FROM worker_read_write_locks l
                     WHERE l.lock_name = OLD.lock_name AND l.lock_key = OLD.lock_key)
     WHERE lock_name = OLD.lock_name AND lock_key = OLD.lock_key;
END;
