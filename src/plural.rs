//! Numbers with what they count, as people read them: `1 event`, `2 events`.

/// So many of something whose plural takes an s: `1 event`, `2 events`.
pub fn count(number: impl Into<i128>, what: &str) -> String {
    let number = number.into();
    count_of(number, what, &format!("{what}s"))
}

/// So many of something, by the words for one and for more: `1 room is`, `2 rooms are`.
pub fn count_of(number: impl Into<i128>, one: &str, many: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one_and_all_others_are_many() {
        let said = [0, 1, 2, -1].map(|n| count(n, "event"));
        assert_eq!(said, ["0 events", "1 event", "2 events", "-1 events"]);
        assert_eq!(count_of(1u64, "person is", "people are"), "1 person is");
        assert_eq!(count_of(21i64, "person is", "people are"), "21 people are");
    }
}
