//! A sample on a PostgreSQL server: drawn into a file like every other, then moved there table by table.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use postgres::Client;
use roomkeeper::database::Database;

use super::cluster::{Cluster, cluster};
use super::tables::{Row, Tables, Value};

/// A database of its own, gone when this is.
pub struct OnServer {
    pub name: String,
}

impl Drop for OnServer {
    fn drop(&mut self) {
        // A test that failed may have left sessions.
        the_cluster().drop(&self.name);
    }
}

fn the_cluster() -> &'static Cluster {
    cluster().expect("a test on the server runs only where there is one")
}

/// Our tables, and in the full-text index what a file has: the text itself, as often as it comes.
fn template() -> &'static str {
    static TEMPLATE: OnceLock<String> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let name = the_cluster().create(the_cluster().empty());
        the_cluster()
            .client_of_role(&name)
            .batch_execute(
                "DROP INDEX event_search_event_id_idx;
                 CREATE INDEX event_search_event_id_idx ON event_search (event_id);
                 ALTER TABLE event_search ADD docid BIGINT, ADD value TEXT;",
            )
            .expect("changed");
        name
    })
}

impl OnServer {
    /// Moves what a file holds.
    pub fn of(tables: &Tables) -> Self {
        let made = Self {
            name: the_cluster().create(template()),
        };
        let mut client = the_cluster().client(&made.name);
        client
            .batch_execute("SET session_replication_role = replica")
            .expect("an administrator may");
        // What a new database has of its own.
        client
            .batch_execute(
                "TRUNCATE schema_version, schema_compat_version, event_push_summary_stream_ordering",
            )
            .expect("emptied");
        for table in names(&mut client) {
            let rows = match table.as_str() {
                "event_search" => tables
                    .rows("event_search_content")
                    .iter()
                    .map(indexed)
                    .collect(),
                _ => tables.rows(&table).to_vec(),
            };
            if rows.is_empty() {
                continue;
            }
            insert(&mut client, &table, &rows);
        }
        client
            .batch_execute(
                "SELECT setval(pg_get_serial_sequence('state_groups_pending_deletion', 'sequence_number'),
                               (SELECT coalesce(max(sequence_number), 0) + 1 FROM state_groups_pending_deletion), FALSE);
                 SELECT setval('events_stream_seq', (SELECT greatest(1, max(stream_ordering)) FROM events));
                 SELECT setval('events_backfill_stream_seq', (SELECT greatest(1, -min(stream_ordering)) FROM events));
                 SELECT setval('state_group_id_seq', (SELECT greatest(1, max(id)) FROM state_groups));
                 SELECT setval('event_auth_chain_id', (SELECT greatest(1, max(chain_id)) FROM event_auth_chains));
                 ANALYZE",
            )
            .expect("set");
        made
    }

    /// A second one that is the same. Nobody may have the first open.
    pub fn copy(&self) -> Self {
        Self {
            name: the_cluster().create(&self.name),
        }
    }

    /// Puts another one in its place, under its name, as restoring a backup does.
    pub fn put_back(&self, backup: &Self) {
        the_cluster().drop(&self.name);
        let made = the_cluster().create(&backup.name);
        the_cluster().run(&format!("ALTER DATABASE {made} RENAME TO {}", self.name));
    }

    /// How to get there.
    pub fn database(&self) -> Database {
        the_cluster().database(&self.name)
    }

    /// Rows go into a table.
    pub fn insert(&self, table: &str, rows: &[Row]) {
        insert(&mut self.client(), table, rows);
    }

    /// A connection past roomkeeper.
    pub fn client(&self) -> Client {
        the_cluster().client(&self.name)
    }

    /// Rows whose foreign key leads nowhere, key by key: what the server believes of its constraints is not asked.
    pub fn orphans(&self) -> Vec<String> {
        let mut client = self.client();
        let keys = client.query(KEYS, &[]).expect("keys");
        assert!(keys.len() >= 16, "{} keys", keys.len());
        let orphans = keys.iter().filter_map(|key| {
            let (name, sql): (String, String) = (key.get(0), key.get(1));
            let rows: i64 = client.query_one(&sql, &[]).expect(&sql).get(0);
            (rows > 0).then(|| format!("{rows} rows break {name}"))
        });
        orphans.collect()
    }

    /// Everything the database holds, as a file would have it.
    pub fn tables(&self) -> Tables {
        let mut client = self.client();
        let mut tables = BTreeMap::new();
        for table in names(&mut client) {
            let json: String = client
                .query_one(
                    &format!("SELECT coalesce(json_agg(t), '[]')::TEXT FROM {table} t"),
                    &[],
                )
                .expect(&table)
                .get(0);
            let rows: Vec<BTreeMap<String, serde_json::Value>> =
                serde_json::from_str(&json).expect("rows");
            let rows = rows
                .into_iter()
                .map(|row| Row(row.into_iter().map(|(c, v)| (c, of_json(v))).collect()));
            let (name, mut rows): (_, Vec<Row>) = match table.as_str() {
                "event_search" => ("event_search_content", rows.map(as_content).collect()),
                table => (table, rows.collect()),
            };
            rows.sort();
            tables.insert(name.to_owned(), rows);
        }
        Tables(tables)
    }
}

/// Every foreign key, and the question how many rows it leads nowhere from. A key with a NULL in it leads nowhere by right.
const KEYS: &str = "
    SELECT k.conrelid::regclass::TEXT || ' (' || k.conname || ')',
           'SELECT count(*) FROM ' || k.conrelid::regclass || ' c WHERE '
           || string_agg(format('c.%I IS NOT NULL', a.attname), ' AND ')
           || ' AND NOT EXISTS (SELECT 1 FROM ' || k.confrelid::regclass || ' p WHERE '
           || string_agg(format('p.%I = c.%I', b.attname, a.attname), ' AND ') || ')'
      FROM pg_constraint k
     CROSS JOIN LATERAL unnest(k.conkey, k.confkey) AS x (child, parent)
      JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.child
      JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = x.parent
     WHERE k.contype = 'f'
     GROUP BY k.oid, k.conrelid, k.confrelid, k.conname
     ORDER BY 1";

fn insert(client: &mut Client, table: &str, rows: &[Row]) {
    let json: Vec<serde_json::Value> = rows.iter().map(to_json).collect();
    let columns: Vec<String> = rows[0]
        .0
        .keys()
        .map(|c| format!("\"{}\"", c.to_lowercase()))
        .collect();
    let columns = columns.join(", ");
    client
        .execute(
            &format!(
                "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
                 SELECT {columns} FROM json_populate_recordset(NULL::{table}, $1::TEXT::JSON)"
            ),
            &[&serde_json::Value::from(json).to_string()],
        )
        .unwrap_or_else(|e| panic!("{table}: {e:?}"));
}

fn names(client: &mut Client) -> Vec<String> {
    let rows = client.query(
        "SELECT tablename::TEXT FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
        &[],
    );
    rows.expect("tables").iter().map(|r| r.get(0)).collect()
}

/// The columns of the index's content table in a file, and on a server.
const CONTENT: [(&str, &str); 6] = [
    ("docid", "docid"),
    ("c0event_id", "event_id"),
    ("c1room_id", "room_id"),
    ("c2sender", "sender"),
    ("c3key", "key"),
    ("c4value", "value"),
];

fn indexed(content: &Row) -> Row {
    let cells = CONTENT.map(|(file, server)| (server.to_owned(), content.get(file).clone()));
    Row(cells.into_iter().collect())
}

fn as_content(indexed: Row) -> Row {
    let cells = CONTENT.map(|(file, server)| (file.to_owned(), indexed.get(server).clone()));
    Row(cells.into_iter().collect())
}

fn to_json(row: &Row) -> serde_json::Value {
    let cells = row.0.iter().map(|(column, value)| {
        let value = match value {
            Value::Null => serde_json::Value::Null,
            Value::Int(n) => (*n).into(),
            Value::Text(text) => text.clone().into(),
            Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into(),
        };
        (column.to_lowercase(), value)
    });
    cells.collect::<serde_json::Map<_, _>>().into()
}

fn of_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Int(b.into()),
        serde_json::Value::Number(n) => Value::Int(n.as_i64().expect("a whole number")),
        serde_json::Value::String(text) => Value::Text(text),
        other => Value::Text(other.to_string()),
    }
}
