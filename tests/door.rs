//! No row of a room is written by whoever does not hold it: the compiler sees to that. Which functions write, and that every
//! one of them asks for a `Tx`, is what `layers.rs` looks at; that nothing else passes for a `Tx` is shown here.
//!
//! What the compiler says is expected word for word. Where a verb of the list changed, or the compiler did:
//! `TRYBUILD=overwrite cargo test --test door`, and read what it wrote.

use std::fs;

/// What compiles: the other one, which does not, differs from it by the lock alone.
#[path = "door/with_lock.rs"]
mod with_lock;

const WITH_LOCK: &str = "tests/door/with_lock.rs";
const WITHOUT_LOCK: &str = "tests/door/without_lock.rs";

fn text(path: &str) -> String {
    fs::read_to_string(path).expect("a file of ours")
}

#[test]
fn no_verb_that_writes_rows_compiles_without_the_lock() {
    // Compiled with this file.
    let _ = (with_lock::verbs as fn(&_), with_lock::main as fn());
    let bared = text(WITH_LOCK)
        .replace("store::tx::Tx;", "store::db::Db;")
        .replace("&Tx<'_>", "&Db");
    let without = text(WITHOUT_LOCK);
    assert_eq!(bared, without, "the two differ by more than the lock");
    trybuild::TestCases::new().compile_fail(WITHOUT_LOCK);
}
