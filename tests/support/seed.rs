//! What decides which random samples a run takes, and how many.

/// The seed of this run: `ROOMKEEPER_SEED` repeats one, otherwise it is new every time. Tests print it when they fail.
pub fn seed() -> u64 {
    match std::env::var("ROOMKEEPER_SEED") {
        Ok(text) => text.parse().expect("ROOMKEEPER_SEED is a number"),
        Err(_) => rand::random::<u32>().into(),
    }
}

/// How many cases to try: `ROOMKEEPER_CASES`, or the few that every run affords.
pub fn cases(few: u64) -> u64 {
    std::env::var("ROOMKEEPER_CASES").map_or(few, |text| {
        text.parse().expect("ROOMKEEPER_CASES is a number")
    })
}
