//! Bounds of one transaction beside a live server; the configuration sets them, the purge keeps them.

/// Bounds of strides beside a live server, from the configuration (`stride: {events, millis}`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrideBounds {
    /// Most events of one transaction.
    pub events: i64,
    /// How long one transaction should take.
    pub millis: i64,
}

impl Default for StrideBounds {
    fn default() -> Self {
        Self {
            events: 5_000,
            millis: 500,
        }
    }
}
