//! Which of the server's rooms the selectors mean.

use std::collections::BTreeSet;

use super::summary::Summary;
use crate::error::Error;
use crate::ids::RoomId;
use crate::selectors::{Condition, Selectors};
use crate::store::db::Db;
use crate::store::expiry::Expiry;
use crate::store::room_statistics;
use crate::time::Millis;

/// The rooms of `rooms` that are meant, in their order. `now` is the time ages are counted from.
///
/// # Errors
/// [`Error::BadRequest`] for a room or alias that nobody here knows: what was misspelt must not choose less than was meant.
///
/// # Locking
/// Reads the snapshot of `rooms`, which the caller holds.
pub fn select(
    db: &Db,
    rooms: Vec<Summary>,
    selectors: &Selectors,
    now: Millis,
) -> Result<Vec<Summary>, Error> {
    let known: BTreeSet<RoomId> = rooms.iter().map(|room| room.room_id.clone()).collect();
    let (mut only, mut not) = (Tests::default(), Tests::default());
    for condition in &selectors.only {
        only.add(db, condition, &known, now)?;
    }
    for condition in &selectors.not {
        not.add(db, condition, &known, now)?;
    }
    let is_meant = |room: &Summary| only.hold(room, now) && not.deny(room, now);
    Ok(rooms.into_iter().filter(is_meant).collect())
}

/// Conditions with what they had to look up. However many rooms are named, each room is looked up once.
#[derive(Default)]
struct Tests<'a> {
    /// The rooms that are named, where any is.
    named: Option<Rooms>,
    /// Of each of these kinds one must hold.
    one_of: Vec<Vec<(&'a Condition, Rooms)>>,
    /// All of these must hold.
    each: Vec<(&'a Condition, Rooms)>,
}

impl<'a> Tests<'a> {
    fn add(
        &mut self,
        db: &Db,
        condition: &'a Condition,
        known: &BTreeSet<RoomId>,
        now: Millis,
    ) -> Result<(), Error> {
        let found = match condition {
            Condition::Room(named) => {
                let room = room_of(db, named, known)?;
                self.named.get_or_insert_default().0.insert(room);
                return Ok(());
            }
            Condition::Space(named) => Rooms::of(in_space(db, room_of(db, named, known)?)?),
            Condition::Inactive(age) => {
                let after = Expiry::find(db, now - *age, now)?.live_before;
                Rooms::of(room_statistics::joined_since(db, after - 1)?)
            }
            _ => Rooms::default(),
        };
        if !matches!(
            condition,
            Condition::Name(_) | Condition::Version(_) | Condition::Space(_)
        ) {
            // What cannot be said twice must hold each time.
            self.each.push((condition, found));
            return Ok(());
        }
        let alike = self
            .one_of
            .iter_mut()
            .find(|of| of[0].0.kind() == condition.kind());
        match alike {
            Some(alike) => alike.push((condition, found)),
            None => self.one_of.push(vec![(condition, found)]),
        }
        Ok(())
    }

    fn hold(&self, room: &Summary, now: Millis) -> bool {
        let is_so = |(condition, found): &(&Condition, Rooms)| {
            holds(condition, found, room, now) == Some(true)
        };
        self.named
            .as_ref()
            .is_none_or(|named| named.0.contains(&room.room_id))
            && self.one_of.iter().all(|alike| alike.iter().any(is_so))
            && self.each.iter().all(is_so)
    }

    fn deny(&self, room: &Summary, now: Millis) -> bool {
        let named = self.named.as_ref();
        named.is_none_or(|named| !named.0.contains(&room.room_id))
            && self
                .one_of
                .iter()
                .flatten()
                .chain(&self.each)
                .all(|(condition, found)| holds(condition, found, room, now) == Some(false))
    }
}

/// What a condition had to look up.
#[derive(Default)]
struct Rooms(BTreeSet<RoomId>);

impl Rooms {
    fn of(rooms: impl IntoIterator<Item = RoomId>) -> Self {
        Self(rooms.into_iter().collect())
    }
}

fn room_of(db: &Db, named: &str, known: &BTreeSet<RoomId>) -> Result<RoomId, Error> {
    let refused = |text: String| Err(Error::bad("M_NOT_FOUND", text));
    if named.starts_with('#') {
        return match room_statistics::by_alias(db, named)? {
            Some(room) => Ok(room),
            None => refused(format!("no room here has the alias {named}")),
        };
    }
    let room = RoomId::new(named);
    match known.contains(&room) {
        true => Ok(room),
        false => refused(format!(
            "this server knows no room {room}: look at the id again (`roomkeeper rooms` lists them)"
        )),
    }
}

/// The rooms of a space and of the spaces in it; not the space itself.
fn in_space(db: &Db, space: RoomId) -> Result<BTreeSet<RoomId>, Error> {
    let mut found = BTreeSet::new();
    let mut looked_at = BTreeSet::from([space.clone()]);
    let mut next = vec![space.clone()];
    while !next.is_empty() {
        let children = room_statistics::children(db, next.iter())?;
        next = children
            .iter()
            .filter(|room| looked_at.insert((*room).clone()))
            .cloned()
            .collect();
        found.extend(children);
    }
    found.remove(&space);
    Ok(found)
}

/// Whether a condition holds; nothing where that cannot be told.
fn holds(condition: &Condition, found: &Rooms, room: &Summary, now: Millis) -> Option<bool> {
    match condition {
        Condition::Room(_) | Condition::Space(_) => Some(found.0.contains(&room.room_id)),
        Condition::Empty => Some(room.is_empty()),
        Condition::Forgotten => Some(room.is_forgotten()),
        Condition::Left => Some(room.is_left()),
        Condition::StateOnly => Some(room.is_state_only()),
        Condition::LargerThan(bytes) => Some(room.bytes > *bytes),
        Condition::Inactive(age) => room
            .last_activity_ms
            .map(|last| last < now - *age && !found.0.contains(&room.room_id)),
        Condition::MessagesOlderThan(age) => Some(
            room.oldest_message_ms
                .is_some_and(|oldest| oldest < now - *age),
        ),
        Condition::Name(form) => Some(
            room.name
                .as_ref()
                .is_some_and(|name| matches(&form.to_lowercase(), &name.to_lowercase())),
        ),
        Condition::Version(version) => room.version.as_ref().map(|of| of == version),
        Condition::Encrypted => room.encrypted,
        Condition::Public => Some(room.public),
        Condition::Local => room.is_local(),
    }
}

/// Whether a text is of a form in which `*` stands for anything and `?` for one character. Takes as long as the two are
/// long, one times the other, whatever they hold.
fn matches(form: &str, text: &str) -> bool {
    let (form, text): (Vec<char>, Vec<char>) = (form.chars().collect(), text.chars().collect());
    let (mut at, mut place) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while place < text.len() {
        match form.get(at) {
            Some('*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(c) if *c == '?' || *c == text[place] => {
                at += 1;
                place += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    at = after + 1;
                    place = from + 1;
                }
                None => return false,
            },
        }
    }
    form[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_with_stars_in_linear_time() {
        for (form, text, is_match) in [
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "abbbc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("abc", "abcd", false),
            ("*a*b*", "xxaxxbxx", true),
            ("", "a", false),
            ("ä?", "äö", true),
        ] {
            assert_eq!(matches(form, text), is_match, "{form} on {text}");
        }
        let (form, text) = ("*a".repeat(30) + "b", "a".repeat(3_000));
        assert!(!matches(&form, &text));
    }
}
