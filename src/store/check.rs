//! The invariants I-1 … I-19 of a database (behaviour.md section 11.1). Reads only.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Instant;

use serde::Serialize;

use super::catalog::Catalog;
use super::db::{Db, Engine, Value};
use super::tables::{self, Table};
use super::{homeserver, repair, search};
use crate::error::{Chain, Error};
use crate::time::Millis;

/// A rule and how often the database breaks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Number of the rule in behaviour.md.
    pub rule: &'static str,
    /// What the rule asks.
    pub meaning: &'static str,
    /// Rows that break it.
    pub rows: i64,
    /// One of them, by id.
    pub example: String,
    /// Of a damaged file: everything that is known of the damage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<String>,
}

/// What a check found, and what it looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Rules that are broken.
    pub violations: Vec<Violation>,
    /// Rows that nobody reads any more, which the homeserver itself or other programs have left. They break nothing, and
    /// `repair` removes them.
    pub leftovers: Vec<Violation>,
    /// Tables that were read from end to end.
    pub tables: i64,
    /// Rows that these hold.
    pub rows: i64,
    /// How long it took, in milliseconds.
    pub took_ms: i64,
}

/// A rule, as a query that must return no row; its first column names what breaks it.
struct Rule {
    id: &'static str,
    meaning: &'static str,
    /// Tables and columns (`table.column`) without which the rule says nothing.
    needs: &'static [&'static str],
    query: &'static str,
}

/// I-13 of every table of the list that has rows of events: meaning and query.
static HELD: LazyLock<Vec<(&'static Table, String, String)>> = LazyLock::new(|| {
    let rule = |table: &'static Table| {
        let meaning = format!("every {} belongs to an event that is held", table.held?);
        let query = format!(
            "SELECT t.event_id FROM {} t
              WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id)",
            table.name
        );
        Some((table, meaning, query))
    };
    tables::ALL.iter().filter_map(rule).collect()
});

/// The rules that say something of a database, by their numbers.
fn rules_of(catalog: &Catalog, of_engine: &'static [Rule]) -> Vec<Asked> {
    let has = |need: &&str| match need.split_once('.') {
        Some((table, column)) => catalog.has_column(table, column),
        None => catalog.has(need),
    };
    let rules = RULES.iter().chain(of_engine);
    let rules = rules.filter(|rule| rule.needs.iter().all(has));
    let rules = rules.map(|rule| Asked {
        id: rule.id,
        meaning: rule.meaning,
        query: rule.query,
    });
    let held = HELD.iter().filter(|(table, ..)| {
        let needs = table.held_needs;
        catalog.has(table.name) && needs.is_none_or(|column| catalog.has_column(table.name, column))
    });
    let held = held.map(|(_, meaning, query)| Asked {
        id: "I-13",
        meaning,
        query,
    });
    let mut asked: Vec<Asked> = rules.chain(held).collect();
    let number = |id: &str| id.trim_start_matches("I-").parse().unwrap_or(u32::MAX);
    asked.sort_by_key(|rule| number(rule.id));
    asked
}

/// A rule that is put to a database.
struct Asked {
    id: &'static str,
    meaning: &'static str,
    query: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        id: "I-1",
        meaning: "every edge starts at an event that is held",
        needs: &[],
        query: "SELECT g.event_id FROM event_edges g
                 WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = g.event_id)",
    },
    Rule {
        id: "I-2",
        meaning: "every event has its JSON",
        needs: &[],
        query: "SELECT e.event_id FROM events e
                 WHERE NOT EXISTS (SELECT 1 FROM event_json j WHERE j.event_id = e.event_id AND j.room_id = e.room_id)",
    },
    Rule {
        id: "I-2",
        meaning: "every JSON has its event",
        needs: &[],
        query: "SELECT j.event_id FROM event_json j
                 WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = j.event_id AND e.room_id = j.room_id)",
    },
    Rule {
        id: "I-3",
        meaning: "every event of a timeline has a state group that exists",
        needs: &[],
        query: "SELECT e.event_id FROM events e
                 WHERE NOT e.outlier
                   AND NOT EXISTS (SELECT 1 FROM event_to_state_groups g JOIN state_groups s ON s.id = g.state_group
                                    WHERE g.event_id = e.event_id)",
    },
    Rule {
        id: "I-3",
        meaning: "no outlier has a state group, and every mapping has its event",
        needs: &[],
        query: "SELECT g.event_id FROM event_to_state_groups g
                 WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = g.event_id AND NOT e.outlier)",
    },
    Rule {
        id: "I-4",
        meaning: "forward extremities are held in the same room's timeline and not rejected",
        needs: &[],
        query: "SELECT f.event_id FROM event_forward_extremities f
                 WHERE NOT EXISTS (SELECT 1 FROM events e
                                    WHERE e.event_id = f.event_id AND e.room_id = f.room_id AND NOT e.outlier
                                      AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id))",
    },
    Rule {
        id: "I-4",
        meaning: "a room with joined local users has a forward extremity",
        needs: &["local_current_membership"],
        query: "SELECT DISTINCT m.room_id FROM local_current_membership m
                 WHERE m.membership = 'join'
                   AND EXISTS (SELECT 1 FROM current_state_events c WHERE c.room_id = m.room_id)
                   AND NOT EXISTS (SELECT 1 FROM event_forward_extremities f WHERE f.room_id = m.room_id)",
    },
    Rule {
        id: "I-5",
        meaning: "no backward extremity is held in a timeline",
        needs: &[],
        query: "SELECT b.event_id FROM event_backward_extremities b
                  JOIN events e ON e.event_id = b.event_id WHERE NOT e.outlier",
    },
    Rule {
        id: "I-6",
        meaning: "every backward extremity is pointed at by an event of the timeline",
        needs: &[],
        query: "SELECT b.event_id FROM event_backward_extremities b
                 WHERE NOT EXISTS (SELECT 1 FROM event_edges g JOIN events e ON e.event_id = g.event_id
                                    WHERE g.prev_event_id = b.event_id AND NOT e.outlier)",
    },
    Rule {
        id: "I-7",
        meaning: "gaps in a timeline are marked by backward extremities",
        needs: &[],
        query: "SELECT g.prev_event_id FROM event_edges g
                  JOIN events e ON e.event_id = g.event_id
                 WHERE NOT e.outlier
                   AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
                   AND NOT EXISTS (SELECT 1 FROM events p WHERE p.event_id = g.prev_event_id AND NOT p.outlier)
                   AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = g.prev_event_id)
                   AND NOT EXISTS (SELECT 1 FROM event_backward_extremities b
                                    WHERE b.event_id = g.prev_event_id AND b.room_id = e.room_id)
                   AND NOT EXISTS (SELECT 1 FROM event_json j WHERE j.event_id = g.prev_event_id
                                      AND j.internal_metadata LIKE '%soft_failed%')",
    },
    Rule {
        id: "I-8",
        meaning: "both ends of a state group's edge exist, and the base is the older",
        needs: &[],
        query: "SELECT g.state_group FROM state_group_edges g
                 WHERE g.prev_state_group >= g.state_group
                    OR NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = g.state_group)
                    OR NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = g.prev_state_group)",
    },
    Rule {
        id: "I-8",
        meaning: "a state group has at most one base",
        needs: &[],
        query: "SELECT state_group FROM state_group_edges GROUP BY state_group HAVING count(*) > 1",
    },
    Rule {
        id: "I-8",
        meaning: "a state group without base is not empty, unless it is where a room starts",
        needs: &[],
        query: "SELECT s.id FROM state_groups s
                  JOIN event_to_state_groups u ON u.state_group = s.id
                 WHERE NOT EXISTS (SELECT 1 FROM state_group_edges g WHERE g.state_group = s.id)
                   AND NOT EXISTS (SELECT 1 FROM state_groups_state t WHERE t.state_group = s.id)",
    },
    Rule {
        id: "I-9",
        meaning: "every row of state belongs to a state group",
        needs: &[],
        query: "SELECT DISTINCT t.state_group FROM state_groups_state t
                 WHERE NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = t.state_group)",
    },
    Rule {
        id: "I-10",
        meaning: "every event that a used state group names is held",
        needs: &[],
        query: "SELECT t.event_id FROM state_groups_state t
                 WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.event_id)
                   AND EXISTS (SELECT 1 FROM event_to_state_groups u WHERE u.state_group = t.state_group)",
    },
    Rule {
        id: "I-11",
        meaning: "current state names events of that room, type and state key",
        needs: &[],
        query: "SELECT c.event_id FROM current_state_events c
                 WHERE NOT EXISTS (SELECT 1 FROM state_events s JOIN events e ON e.event_id = s.event_id
                                    WHERE s.event_id = c.event_id AND s.room_id = c.room_id
                                      AND s.type = c.type AND s.state_key = c.state_key)",
    },
    Rule {
        id: "I-11",
        meaning: "current memberships are those of the member events",
        needs: &["room_memberships", "current_state_events.membership"],
        query: "SELECT c.event_id FROM current_state_events c
                  JOIN room_memberships m ON m.event_id = c.event_id
                 WHERE c.membership <> m.membership",
    },
    Rule {
        id: "I-11",
        meaning: "current state knows its events' stream orderings",
        needs: &["current_state_events.event_stream_ordering"],
        query: "SELECT c.event_id FROM current_state_events c
                  JOIN events e ON e.event_id = c.event_id
                 WHERE c.event_stream_ordering <> e.stream_ordering",
    },
    Rule {
        id: "I-12",
        meaning: "local memberships agree with the current state",
        needs: &["local_current_membership"],
        query: "SELECT l.event_id FROM local_current_membership l
                 WHERE EXISTS (SELECT 1 FROM current_state_events c WHERE c.room_id = l.room_id AND c.type = 'm.room.create')
                   AND NOT EXISTS (SELECT 1 FROM current_state_events c
                                    WHERE c.room_id = l.room_id AND c.type = 'm.room.member'
                                      AND c.state_key = l.user_id AND c.event_id = l.event_id)",
    },
    Rule {
        id: "I-12",
        meaning: "every current membership of an account of this server is among the local memberships",
        needs: &["local_current_membership", "users"],
        query: "SELECT c.event_id FROM current_state_events c
                 WHERE c.type = 'm.room.member'
                   AND EXISTS (SELECT 1 FROM users u WHERE u.name = c.state_key)
                   AND NOT EXISTS (SELECT 1 FROM local_current_membership l
                                    WHERE l.room_id = c.room_id AND l.user_id = c.state_key)",
    },
    Rule {
        id: "I-12",
        meaning: "local memberships are those of the member events",
        needs: &["local_current_membership", "room_memberships"],
        query: "SELECT l.event_id FROM local_current_membership l
                  JOIN room_memberships m ON m.event_id = l.event_id
                 WHERE l.membership <> m.membership OR l.user_id <> m.user_id OR l.room_id <> m.room_id",
    },
    Rule {
        id: "I-12",
        meaning: "every local membership has its member event",
        needs: &["local_current_membership", "room_memberships"],
        query: "SELECT l.event_id FROM local_current_membership l
                 WHERE NOT EXISTS (SELECT 1 FROM room_memberships m WHERE m.event_id = l.event_id)",
    },
    Rule {
        id: "I-12",
        meaning: "every membership of the current state has its member event",
        needs: &["room_memberships"],
        query: "SELECT c.event_id FROM current_state_events c
                 WHERE c.type = 'm.room.member'
                   AND NOT EXISTS (SELECT 1 FROM room_memberships m
                                    WHERE m.event_id = c.event_id AND m.room_id = c.room_id AND m.user_id = c.state_key)",
    },
    Rule {
        id: "I-12",
        meaning: "member events say of whom and of which room they are",
        needs: &["room_memberships"],
        query: "SELECT m.event_id FROM room_memberships m
                  JOIN state_events s ON s.event_id = m.event_id
                 WHERE s.type <> 'm.room.member' OR s.state_key <> m.user_id OR s.room_id <> m.room_id",
    },
    Rule {
        id: "I-12",
        meaning: "sliding-sync memberships are the local memberships",
        needs: &["local_current_membership", "sliding_sync_membership_snapshots"],
        query: "SELECT m.membership_event_id FROM sliding_sync_membership_snapshots m
                  JOIN local_current_membership l ON l.room_id = m.room_id AND l.user_id = m.user_id
                 WHERE m.membership_event_id <> l.event_id OR m.membership <> l.membership",
    },
    Rule {
        id: "I-13",
        meaning: "every full-text document belongs to an event that is held",
        needs: &["event_search_content.c0event_id"],
        query: "SELECT t.c0event_id FROM event_search_content t
                 WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = t.c0event_id)",
    },
    Rule {
        id: "I-14",
        meaning: "the sliding-sync list names events that are held, none newer than the newest",
        needs: &["sliding_sync_joined_rooms"],
        query: "SELECT j.room_id FROM sliding_sync_joined_rooms j
                 WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.stream_ordering = j.event_stream_ordering)
                    OR j.bump_stamp > j.event_stream_ordering",
    },
    Rule {
        id: "I-14",
        meaning: "sliding-sync memberships name events that are held",
        needs: &["sliding_sync_membership_snapshots"],
        query: "SELECT m.membership_event_id FROM sliding_sync_membership_snapshots m
                 WHERE NOT EXISTS (SELECT 1 FROM events e
                                    WHERE e.event_id = m.membership_event_id AND e.stream_ordering = m.event_stream_ordering)",
    },
    Rule {
        id: "I-15",
        meaning: "unread counts are not negative",
        needs: &["event_push_summary"],
        query: "SELECT room_id FROM event_push_summary WHERE notif_count < 0 OR unread_count < 0",
    },
    Rule {
        id: "I-16",
        meaning: "groups waiting for deletion exist and are not referred to",
        needs: &["state_groups_pending_deletion"],
        query: "SELECT p.state_group FROM state_groups_pending_deletion p
                 WHERE NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = p.state_group)
                    OR EXISTS (SELECT 1 FROM event_to_state_groups u WHERE u.state_group = p.state_group)",
    },
    Rule {
        id: "I-17",
        meaning: "every room with events in its timeline has a row of its own",
        needs: &[],
        query: "SELECT DISTINCT e.room_id FROM events e
                 WHERE NOT e.outlier AND NOT EXISTS (SELECT 1 FROM rooms r WHERE r.room_id = e.room_id)",
    },
];

/// The same for a file of SQLite's.
const RULES_OF_FILES: &[Rule] = &[Rule {
    id: "I-18",
    meaning: "foreign keys hold",
    needs: &[],
    query: "SELECT \"table\" FROM pragma_foreign_key_check",
}];

/// What SQLite finds wrong with a file; no more than a hundred things.
const INTEGRITY: &str =
    "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'";

/// Every foreign key of our tables, as the question which rows break it; for I-18 on a server. The server has it that
/// they hold, but triggers that were switched off have not looked. A standby has no content of unlogged tables.
const FOREIGN_KEYS: &str = "-- PostgreSQL
    SELECT k.conname,
           format('SELECT t.ctid::text FROM ONLY %s t WHERE %s AND NOT EXISTS (SELECT 1 FROM %s p WHERE %s)',
                  k.conrelid::regclass,
                  (SELECT string_agg(format('t.%I IS NOT NULL', a.attname), ' AND ')
                     FROM unnest(k.conkey) c(n) JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.n),
                  k.confrelid::regclass,
                  (SELECT string_agg(format('p.%I = t.%I', p.attname, a.attname), ' AND ')
                     FROM unnest(k.conkey, k.confkey) c(n, m)
                     JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.n
                     JOIN pg_attribute p ON p.attrelid = k.confrelid AND p.attnum = c.m))
      FROM pg_constraint k
      JOIN pg_class c ON c.oid = k.conrelid
      JOIN pg_class p ON p.oid = k.confrelid
     WHERE k.contype = 'f' AND pg_table_is_visible(k.conrelid)
       AND NOT (pg_is_in_recovery() AND 'u' IN (c.relpersistence, p.relpersistence))
     ORDER BY k.conname";

/// Tables of a server that this role may read; on a standby those that have content there.
const READABLE: &str = "-- PostgreSQL
    SELECT c.relname FROM pg_class c
     WHERE c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid) AND has_table_privilege(c.oid, 'SELECT')
       AND NOT (pg_is_in_recovery() AND c.relpersistence = 'u')";

/// Tests the database against every rule that applies to it, and reads every table of a homeserver's that it has. `each`
/// hears of a rule before it is tested.
///
/// # Errors
/// Only when the database cannot be read.
pub fn check(db: &Db, now: Millis, mut each: impl FnMut(&str, &str)) -> Result<CheckReport, Error> {
    let begun = Instant::now();
    let mut violations = Vec::new();
    // What could not be asked, because the file is damaged there.
    let mut unread = Vec::new();
    let mut or_unread = |what: &str, outcome: Result<(), Error>| match outcome {
        Err(e) if e.is_damage() => {
            unread.push(format!("{what} could not be tested: {}", Chain(&e)));
            Ok(())
        }
        outcome => outcome,
    };
    let of_engine: &'static [Rule] = match db.engine() {
        Engine::Sqlite => RULES_OF_FILES,
        Engine::Postgres => &[],
    };
    for rule in rules_of(db.catalog(), of_engine) {
        each(rule.id, rule.meaning);
        let (mut rows, mut example) = (0, String::new());
        let asked = db.for_each("check the database", rule.query, &[], |row| {
            rows += 1;
            if rows == 1 {
                example = match row.value(0)? {
                    Value::Text(text) => text.to_owned(),
                    Value::Int(number) => number.to_string(),
                    _ => String::new(),
                };
            }
            Ok(())
        });
        or_unread(&format!("{} ({})", rule.id, rule.meaning), asked.map(drop))?;
        if rows > 0 {
            violations.push(violation(rule.id, rule.meaning, rows, example));
        }
    }
    if db.engine() == Engine::Postgres {
        each("I-18", "foreign keys hold");
        violations.extend(broken_keys(db)?);
    }
    let readable: Option<HashSet<String>> = match db.engine() {
        Engine::Sqlite => None,
        Engine::Postgres => {
            let names = db.rows("look which tables there are", READABLE, &[], |r| r.get(0))?;
            Some(names.into_iter().collect())
        }
    };
    let may_read = |table: &str| readable.as_ref().is_none_or(|names| names.contains(table));
    let mut leftovers = Vec::new();
    for mend in repair::all(db) {
        if !mend.is_leftover || !may_read(mend.table) {
            continue;
        }
        each(mend.rule, &mend.wrong);
        let asked = mend.find(db).map(|found| {
            if let Some(first) = found.first() {
                let rows = i64::try_from(found.len()).unwrap_or(i64::MAX);
                leftovers.push(violation(mend.rule, MAY_GO, rows, first.shown.clone()));
                if let Some(told) = leftovers.last_mut() {
                    told.found = vec![mend.wrong.clone()];
                }
            }
        });
        or_unread(&format!("{} ({})", mend.rule, mend.wrong), asked)?;
    }
    let (mut tables_read, mut rows_read) = (0, 0);
    for table in tables::ALL {
        if !db.catalog().has(table.name) || !may_read(table.name) {
            continue;
        }
        each("I-18", &format!("the table {} can be read", table.name));
        let sql = format!("SELECT count(*) FROM {}", table.name);
        let asked = db.count("count the rows", &sql, &[]).map(|rows| {
            tables_read += 1;
            rows_read += rows;
        });
        or_unread(&format!("the table {}", table.name), asked)?;
    }
    let leftover = homeserver::leftover_locks(db, now).map(|leftover| {
        if leftover > 0 {
            let (meaning, example) = (NO_LOCKS, homeserver::INSTANCE_NAME.to_owned());
            violations.push(violation("I-19", meaning, leftover, example));
        }
    });
    or_unread(&format!("I-19 ({NO_LOCKS})"), leftover)?;
    if db.engine() == Engine::Sqlite {
        each("I-18", WHOLE);
        violations.extend(damage(db, unread)?);
    }
    let is_told = violations.iter().any(|v| v.meaning == INDEX_AGREES);
    if db.engine() == Engine::Sqlite && db.catalog().has("event_search") && !is_told {
        each("I-18", INDEX_AGREES);
        if let Err(e) = full_text_is_whole(db) {
            let example = Chain(&e).to_string();
            violations.push(violation("I-18", INDEX_AGREES, 1, example));
        }
    }
    Ok(CheckReport {
        violations,
        leftovers,
        tables: tables_read,
        rows: rows_read,
        took_ms: i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX),
    })
}

const MAY_GO: &str = "rows that nobody reads any more";

const NO_LOCKS: &str = "no lock of ours is left when nothing runs";

const WHOLE: &str = "SQLite finds the file whole";

const INDEX_AGREES: &str = "the full-text index agrees with its content (it is derived data: a purge or `reclaim` while the homeserver is \
     stopped builds it anew)";

fn violation(rule: &'static str, meaning: &'static str, rows: i64, example: String) -> Violation {
    let found = Vec::new();
    Violation {
        rule,
        meaning,
        rows,
        example,
        found,
    }
}

/// Everything that SQLite says of a damaged file, and what could not be asked for that.
fn damage(db: &Db, unread: Vec<String>) -> Result<Vec<Violation>, Error> {
    let mut found = Vec::new();
    let mut index_is_malformed = false;
    let asked = db.for_each("check the file", INTEGRITY, &[], |row| {
        // SQLite names a tree on a line of its own before what is wrong in it.
        let said: String = row.get(0)?;
        let lines = said
            .lines()
            .filter(|line| !line.starts_with(INDEX_IS_MALFORMED));
        found.extend(lines.map(str::to_owned));
        index_is_malformed |= said.contains(INDEX_IS_MALFORMED);
        Ok(())
    });
    match asked {
        // It does not come to the end of every file.
        Err(e) if e.is_damage() => found.push(Chain(&e).to_string()),
        asked => asked?,
    }
    let rows = i64::try_from(found.len().max(1)).unwrap_or(i64::MAX);
    found.extend(unread);
    let mut violations = Vec::new();
    if let Some(example) = found.first().cloned() {
        violations.push(Violation {
            found,
            ..violation("I-18", WHOLE, rows, example)
        });
    }
    if index_is_malformed {
        let example = format!("{INDEX_IS_MALFORMED} main.event_search");
        violations.push(violation("I-18", INDEX_AGREES, 1, example));
    }
    Ok(violations)
}

/// What SQLite says of an index that does not agree with its content: derived data, which a rebuild mends (P-55).
const INDEX_IS_MALFORMED: &str = "malformed inverted index for FTS4 table";

fn broken_keys(db: &Db) -> Result<Vec<Violation>, Error> {
    let doing = "check the foreign keys";
    let keys = db.rows(doing, FOREIGN_KEYS, &[], |r| {
        Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?))
    })?;
    let mut violations = Vec::new();
    for (name, question) in keys {
        let mut rows = 0;
        db.for_each(doing, &question, &[], |_| {
            rows += 1;
            Ok(())
        })?;
        if rows > 0 {
            violations.push(violation("I-18", "foreign keys hold", rows, name));
        }
    }
    Ok(violations)
}

/// FTS4's own check is a command to the index, and needs a connection that may write; it changes nothing.
fn full_text_is_whole(db: &Db) -> Result<(), Error> {
    if db.pragma("query_only")? != 0 || db.is_read_only() {
        return Ok(());
    }
    search::verify(db)
}
