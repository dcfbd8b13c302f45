//! Documents of few events: a walk over all documents costs by what is there, a look-up in the index by what goes.
//!
//! An event id that is a hash, and the name of a room, are words of the index like any other. It is asked for the longest of
//! them; the rows say whether it is the event, or the room, that was meant. What has no such word is walked for.

use super::super::db::{Db, Row, params};
use crate::error::Error;
use crate::ids::RoomId;

/// One look-up takes as long as walking so many documents (0.2 ms; 0.4 µs).
const LOOKUP_COSTS: i64 = 500;

/// Most ids that a walk is made with: beyond, each document's event is looked up.
const MOST_IDS: i64 = 20_000;

const IDS: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_search_ids (
        event_id TEXT PRIMARY KEY, stream_ordering INTEGER NOT NULL) WITHOUT ROWID;
    DELETE FROM rk_search_ids;";

const ADD_ID: &str =
    "INSERT OR IGNORE INTO rk_search_ids (event_id, stream_ordering) VALUES ($1, $2)";

/// Walks the content table once. Few ids are looked at much faster than the events of all documents.
const NOTE_IDS: &str = "
    INSERT OR IGNORE INTO rk_search (stream_ordering, docid)
    SELECT i.stream_ordering, c.docid
      FROM event_search_content c
     CROSS JOIN rk_search_ids i
     WHERE i.event_id = c.c0event_id";

/// Events of a room below a depth. Binds `$1` room, `$2` depth that survives, `$3` most. Walks `events_order_room`.
const EVENTS_BELOW: &str = "
    SELECT event_id, stream_ordering FROM events
     WHERE room_id = $1 AND topological_ordering < $2
     LIMIT $3";

/// The same for many rooms. Binds `$1` most.
const EVENTS_OF_MANY: &str = "
    SELECT e.event_id, e.stream_ordering
      FROM rk_search_cuts k
     CROSS JOIN events e
     WHERE e.room_id = k.room_id AND e.topological_ordering < k.depth
     LIMIT $1";

/// Binds `$1` order of arrival, `$2` a word, `$3` event.
const NOTE_EVENT: &str = "
    INSERT OR IGNORE INTO rk_search (stream_ordering, docid)
    SELECT $1, s.docid FROM event_search s
     WHERE s.event_id MATCH $2 AND s.event_id = $3";

/// Binds `$1` a word, `$2` room.
const NOTE_ROOM: &str = "
    INSERT OR IGNORE INTO rk_search (stream_ordering, docid)
    SELECT 0, s.docid FROM event_search s
     WHERE s.room_id MATCH $1 AND s.room_id = $2";

/// Binds `$1` a word, `$2` room.
const NOTE_ONE_OF_ROOMS: &str = "
    INSERT OR IGNORE INTO rk_search_of_rooms (room_id, docid)
    SELECT s.room_id, s.docid FROM event_search s
     WHERE s.room_id MATCH $1 AND s.room_id = $2";

/// Events of a room, up to `$2`. Binds `$1` room.
const COUNT_EVENTS: &str =
    "SELECT count(*) FROM (SELECT 1 FROM events WHERE room_id = $1 LIMIT $2) AS n";

/// Whether words end where [`longest_word`] has them end.
const IS_PORTER: &str = "
    SELECT count(*) FROM sqlite_master WHERE name = 'event_search' AND sql LIKE '%tokenize=porter%'";

/// How many look-ups cost less than walking all documents, of which there are no more than `newest`.
fn affordable(db: &Db, newest: i64) -> Result<i64, Error> {
    let most = (newest / LOOKUP_COSTS).clamp(0, MOST_IDS);
    match most > 0 && db.count("look at the full-text index", IS_PORTER, &[])? == 1 {
        true => Ok(most),
        false => Ok(0),
    }
}

/// Notes the documents of the events below a depth of one room, or of the rooms of `rk_search_cuts`; answers whether it did:
/// where there are many, nothing is noted.
pub(super) fn note(db: &Db, one: Option<(&RoomId, i64)>, newest: i64) -> Result<bool, Error> {
    let doing = "look documents up in the full-text index";
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
    let events = match one {
        Some((room, below)) => db.rows(
            doing,
            EVENTS_BELOW,
            params![room.as_str(), below, MOST_IDS + 1],
            read,
        )?,
        None => db.rows(doing, EVENTS_OF_MANY, params![MOST_IDS + 1], read)?,
    };
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    if count > MOST_IDS {
        return Ok(false);
    }
    let words: Option<Vec<String>> = match count <= affordable(db, newest)? {
        true => events.iter().map(|(id, _)| word_of_event(id)).collect(),
        false => None,
    };
    match words {
        Some(words) => {
            for ((event, stream), word) in events.iter().zip(&words) {
                let values = params![stream, word.as_str(), event.as_str()];
                db.execute(doing, NOTE_EVENT, values)?;
            }
        }
        None => {
            db.batch("make the temporary tables", IDS)?;
            for (event, stream) in &events {
                db.execute(doing, ADD_ID, params![event.as_str(), stream])?;
            }
            db.execute("read the full-text index", NOTE_IDS, &[])?;
            db.batch(doing, "DELETE FROM rk_search_ids")?;
        }
    }
    Ok(true)
}

/// Notes all documents of a room; answers whether it did.
pub(super) fn note_room(db: &Db, room: &RoomId, newest: i64) -> Result<bool, Error> {
    let doing = "look documents up in the full-text index";
    let most = affordable(db, newest)?;
    let Some(word) = word_of_room(room).filter(|_| most > 0) else {
        return Ok(false);
    };
    if db.count(doing, COUNT_EVENTS, params![room.as_str(), most + 1])? > most {
        return Ok(false);
    }
    db.execute(doing, NOTE_ROOM, params![word.as_str(), room.as_str()])?;
    Ok(true)
}

/// Notes all documents of many rooms; answers whether it did.
pub(super) fn note_rooms(db: &Db, rooms: &[&RoomId], newest: i64) -> Result<bool, Error> {
    let doing = "look documents up in the full-text index";
    let mut left = affordable(db, newest)?;
    let words: Option<Vec<String>> = rooms.iter().map(|room| word_of_room(room)).collect();
    let Some(words) = words else {
        return Ok(false);
    };
    for room in rooms {
        // The look-up itself, and each row.
        left -= 1 + db.count(doing, COUNT_EVENTS, params![room.as_str(), left.max(1)])?;
        if left <= 0 {
            return Ok(false);
        }
    }
    for (room, word) in rooms.iter().zip(&words) {
        db.execute(
            doing,
            NOTE_ONE_OF_ROOMS,
            params![word.as_str(), room.as_str()],
        )?;
    }
    Ok(true)
}

/// Characters of the hash that is an event's id, and of which nobody can make many that are alike; rooms of the first two
/// versions have ids that other servers choose.
const HASH_LENGTH: usize = 43;

/// The longest word of an event id, if it is a hash.
fn word_of_event(id: &str) -> Option<String> {
    let hash = id.strip_prefix('$')?;
    let is_hash = hash.len() == HASH_LENGTH
        && hash
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_+/".contains(&b));
    longest_word(hash).filter(|_| is_hash)
}

/// The longest word of a room's own part of its id.
fn word_of_room(room: &RoomId) -> Option<String> {
    let id = room.as_str().strip_prefix('!')?;
    let own = id.split_once(':').map_or(id, |(own, _)| own);
    longest_word(own)
}

/// As a phrase of one word, as the tokenizer has words.
fn longest_word(text: &str) -> Option<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let longest = words.max_by_key(|word| word.len())?;
    let is_word = longest.bytes().any(|b| b.is_ascii_alphanumeric());
    (is_word && text.is_ascii()).then(|| format!("\"{longest}\""))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::{self as search, Documents};
    use super::*;
    use crate::store::db::OpenOptions;
    use crate::store::schema;

    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    fn name(rng: &mut StdRng, length: usize) -> String {
        let letter = |_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]);
        (0..length).map(letter).collect()
    }

    fn add(db: &Db, event: &str, room: &str, words: &str) {
        let sql = "INSERT INTO event_search (event_id, room_id, sender, key, value)
                   VALUES ($1, $2, '@a:x', 'content.body', $3)";
        db.execute("add a document", sql, params![event, room, words])
            .expect("added");
    }

    /// Documents of others; so many that a few are looked up.
    fn others(db: &Db) {
        let sql = "INSERT INTO event_search (event_id, room_id, sender, key, value)
                   WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 9000)
                   SELECT '$' || lower(hex(randomblob(20))) || 'abc', '!others:example.org', '@a:x', 'content.body', 'words'
                     FROM n";
        db.batch("add documents", sql).expect("added");
    }

    fn noted(db: &Db) -> Vec<(i64, i64)> {
        let sql = "SELECT stream_ordering, docid FROM rk_search ORDER BY 1, 2";
        db.rows("read the notes", sql, &[], |r| Ok((r.get(0)?, r.get(1)?)))
            .expect("read")
    }

    fn walked(db: &Db, sql: &str, values: super::super::super::db::Params<'_>) -> Vec<(i64, i64)> {
        db.batch("forget", "DELETE FROM rk_search")
            .expect("forgotten");
        db.execute("walk", sql, values).expect("walked");
        noted(db)
    }

    #[test]
    fn what_is_looked_up_is_what_a_walk_finds() {
        for seed in 0..5 {
            let mut rng = StdRng::seed_from_u64(seed);
            let dir = tempfile::tempdir().expect("directory");
            let path = dir.path().join("homeserver.db");
            schema::create(&path).expect("makes");
            let db = Db::open(&path, &OpenOptions::default()).expect("opens");
            db.batch("begin", "BEGIN").expect("begins");
            let rooms = [
                format!("!{}:example.org", name(&mut rng, 18)),
                format!("!{}", name(&mut rng, HASH_LENGTH)),
                "!the:example.org".to_owned(),
            ];
            let (mut ids, mut stream) = (Vec::new(), 1_i64);
            others(&db);
            for room in &rooms {
                for depth in 0..rng.random_range(1_i64..20) {
                    let id = format!("${}", name(&mut rng, HASH_LENGTH));
                    stream += 1;
                    let sql = "INSERT INTO events (stream_ordering, topological_ordering, depth, event_id, type, room_id,
                                                   processed, outlier)
                               VALUES ($1, $2, $2, $3, 'm.room.message', $4, TRUE, FALSE)";
                    db.execute(
                        "add",
                        sql,
                        params![stream, depth, id.as_str(), room.as_str()],
                    )
                    .expect("added");
                    // None, one, or more; and others name it.
                    for _ in 0..rng.random_range(0..3) {
                        add(&db, &id, room, "the words");
                    }
                    add(
                        &db,
                        "$other",
                        "!others:example.org",
                        &format!("see {id} in {room}"),
                    );
                    ids.push(id);
                }
                // Of events that are not held.
                add(&db, "$gone", room, "old words");
            }
            others(&db);
            // Some go, and their numbers may be used again.
            for id in &ids {
                if rng.random_bool(0.1) {
                    let sql = "DELETE FROM event_search WHERE docid IN (
                                   SELECT docid FROM event_search_content WHERE c0event_id = $1)";
                    db.execute("delete", sql, params![id.as_str()])
                        .expect("deleted");
                }
            }
            db.batch("commit", "COMMIT").expect("commits");
            if rng.random_bool(0.5) {
                let merge = "INSERT INTO event_search(event_search) VALUES ('optimize')";
                db.batch("merge", merge).expect("merged");
            }
            let newest = db
                .count("look", search::NEWEST_DOCUMENT, &[])
                .expect("newest");
            for room in rooms.each_ref().map(|room| RoomId::from(room.as_str())) {
                let below = rng.random_range(0..20);
                Documents::new(&db).expect("tables");
                assert!(note(&db, Some((&room, below)), newest).expect("looked up"));
                let found = noted(&db);
                let values = params![i64::MIN, room.as_str(), below];
                assert_eq!(
                    found,
                    walked(&db, search::NOTE_DOCUMENTS, values),
                    "seed {seed}"
                );

                Documents::new(&db).expect("tables");
                assert!(note_room(&db, &room, newest).expect("looked up"));
                let found = noted(&db);
                let values = params![i64::MIN, room.as_str()];
                assert_eq!(found, walked(&db, search::NOTE_ROOM, values), "seed {seed}");
                assert!(!found.is_empty());
            }
            let rooms: Vec<RoomId> = rooms
                .iter()
                .map(|room| RoomId::from(room.as_str()))
                .collect();
            search::note_rooms(&db, rooms.iter()).expect("noted");
            for room in &rooms {
                search::note_one_of_rooms(&db, room).expect("noted");
                let found = noted(&db);
                let values = params![i64::MIN, room.as_str()];
                assert_eq!(found, walked(&db, search::NOTE_ROOM, values), "seed {seed}");
            }
            let cuts: Vec<(&RoomId, i64)> = rooms
                .iter()
                .map(|room| (room, rng.random_range(0..20)))
                .collect();
            Documents::note_many(&db, cuts.iter().copied()).expect("noted");
            let found = noted(&db);
            let walked = walked(&db, search::NOTE_DOCUMENTS_OF_MANY, params![i64::MIN]);
            assert_eq!(found, walked, "seed {seed}");
        }
    }

    #[test]
    fn ids_that_others_choose_are_not_looked_up() {
        let hash = "a".repeat(HASH_LENGTH);
        assert_eq!(
            word_of_event(&format!("${hash}")),
            Some(format!("\"{hash}\""))
        );
        for id in [
            "$1:example.org",
            "$",
            "",
            "$\"",
            &format!("${}*", &hash[1..]),
            &format!("${}é", &hash[2..]),
        ] {
            assert_eq!(word_of_event(id), None, "{id}");
        }
        for (room, word) in [
            ("!abc-defg_h.i:example.org", Some("\"defg_h\"")),
            ("!\"* OR a:x", Some("\"OR\"")),
            ("!:example.org", None),
            ("!__:example.org", None),
            ("!é:example.org", None),
        ] {
            assert_eq!(word_of_room(&RoomId::from(room)).as_deref(), word, "{room}");
        }
    }
}
