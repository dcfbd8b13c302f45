//! From the one text of a statement to PostgreSQL's words. Our texts are written so that little is to be done: what
//! really differs stands as two texts beside each other.

/// Set-returning functions over a JSON array of texts; both call their column `value`.
const JSON_EACH: &str = "json_each(";

/// The place of a text in a text, counted from 1.
const INSTR: &str = "instr(";

/// How a temporary table is made, and what SQLite says of its columns.
const TEMPORARY: &str = "TEMPORARY TABLE";
const TABLES: [(&str, &str); 2] = [(" INTEGER", " BIGINT"), (" WITHOUT ROWID", "")];

/// The text as PostgreSQL reads it.
pub fn to_postgres(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len() + 32);
    let mut rest = sql;
    while let Some(at) = rest.find(JSON_EACH) {
        text.push_str(&rest[..at]);
        let inside = &rest[at + JSON_EACH.len()..];
        let end = inside.find(')').unwrap_or(inside.len());
        text.push_str("json_array_elements_text(CAST(");
        text.push_str(&inside[..end]);
        text.push_str(" AS JSON)");
        rest = &inside[end..];
    }
    text.push_str(rest);
    if text.contains(TEMPORARY) {
        for (from, to) in TABLES {
            text = text.replace(from, to);
        }
    }
    text.replace(INSTR, "strpos(")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_places_and_temporary_tables_are_put_in_other_words_and_nothing_else_is() {
        let sql =
            "SELECT a FROM t WHERE b IN (SELECT value FROM json_each($1)) AND instr(c, ':') > 0
                   AND d IN (SELECT CAST(value AS BIGINT) FROM json_each($2)) AND NOT e";
        let found = to_postgres(sql);
        assert_eq!(
            found,
            "SELECT a FROM t WHERE b IN (SELECT value FROM json_array_elements_text(CAST($1 AS JSON))) AND strpos(c, ':') > 0
                   AND d IN (SELECT CAST(value AS BIGINT) FROM json_array_elements_text(CAST($2 AS JSON))) AND NOT e"
        );
        assert_eq!(to_postgres("SELECT 1"), "SELECT 1");
        assert_eq!(
            to_postgres(
                "CREATE TEMPORARY TABLE t (n INTEGER PRIMARY KEY) WITHOUT ROWID; DELETE FROM t;"
            ),
            "CREATE TEMPORARY TABLE t (n BIGINT PRIMARY KEY); DELETE FROM t;"
        );
    }
}
