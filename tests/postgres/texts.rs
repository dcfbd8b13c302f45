//! Every statement of ours is understood by PostgreSQL, in the words that the dialect makes of it.

use crate::source::sources;
use crate::support::cluster::cluster;
use roomkeeper::store::dialect::to_postgres;

/// What only SQLite has: a statement that says one of these has a twin for PostgreSQL, or none is needed.
const ONLY_SQLITE: &[&str] = &[
    "pragma_",
    "sqlite_",
    "rowid",
    "ROWID",
    "event_search_",
    "event_search(",
    "rk_search",
    "temp.",
    "NOT INDEXED",
    "key, value)",
];

/// How the text of a statement for PostgreSQL alone begins.
const FOR_POSTGRES: &str = "-- PostgreSQL";

const VERBS: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];

#[test]
fn every_statement_is_understood_by_postgresql() {
    let Some(cluster) = cluster() else { return };
    let name = cluster.create(cluster.empty());
    let mut client = cluster.client_of_role(&name);
    // Not those of the ledger, which is a file whatever the homeserver has.
    let texts: Vec<(String, String)> = sources()
        .into_iter()
        .filter(|s| s.module() != Some("jobs"))
        .flat_map(|s| s.texts.into_iter().map(move |t| (s.path.clone(), t)))
        .collect();
    for (path, text) in &texts {
        let is_twin = text.contains("rk_selected") && !text.starts_with(FOR_POSTGRES);
        if text.contains("CREATE TEMPORARY TABLE IF") && !text.contains('{') && !is_twin {
            client
                .batch_execute(&to_postgres(text))
                .unwrap_or_else(|e| panic!("{path}: {e:?}: {text}"));
        }
    }
    let mut count = 0;
    let mut wrong = Vec::new();
    for (path, text) in &texts {
        let is_ours = text.starts_with(FOR_POSTGRES);
        let verb = text
            .strip_prefix(FOR_POSTGRES)
            .unwrap_or(text)
            .split_whitespace()
            .next();
        let is_statement = verb.is_some_and(|v| VERBS.contains(&v))
            && text.split_whitespace().count() > 1
            && !text.contains('{')
            && !text.contains(';');
        if !is_statement || (!is_ours && ONLY_SQLITE.iter().any(|word| text.contains(word))) {
            continue;
        }
        count += 1;
        if let Err(e) = client.prepare(&to_postgres(text)) {
            let said = e
                .as_db_error()
                .map_or_else(|| e.to_string(), |e| e.message().to_owned());
            wrong.push(format!("{path}: {said}: {text}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count}: {}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(count > 100, "only {count} statements were found");
}
