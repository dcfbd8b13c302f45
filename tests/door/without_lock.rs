//! Verbs of the storage that write rows, some of each wing, given an open transaction of whoever holds what it is about.

use roomkeeper::store::db::Db;
use roomkeeper::store::{append, history, members, restore, room_rows, search, state_groups};

/// Whatever else a verb asks for.
fn any<T>() -> T {
    unreachable!("this is compiled and never run")
}

pub fn verbs(db: &Db) {
    _ = append::insert_room(db, any(), any(), any());
    _ = history::remove(db, any(), any(), any(), any());
    _ = members::move_aliases(db, any(), any(), any());
    _ = restore::restore(db, any(), any(), any(), any());
    _ = room_rows::delete_rest_bounded(db, any(), any(), any(), any(), any());
    _ = room_rows::remove_selected(db, any(), any(), any(), any());
    _ = search::remove_room(db, any(), any(), any(), any());
    _ = search::optimize(db);
    _ = state_groups::delete(db, any(), any(), any(), any(), any(), any());
    _ = state_groups::delete_with_room(db, any(), any(), any(), any(), any());
}

pub fn main() {}
