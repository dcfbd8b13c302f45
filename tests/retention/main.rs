//! Retention: the rules against a plain model of them, many rooms, and time.

mod many;
mod time;
mod town;
mod upsets;
