//! Holds: what nobody may delete for now, whatever else asks for it.
//!
//! A court, a regulator or a colleague says "nothing of this goes", and from then on no purge, policy or deletion takes it.
//! Several holds may lie on one thing; it is free when all of them are released. Pure: where holds are kept, and what they
//! mean in a database, is for the modules above.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Escaped, RoomId, UserId, is_control_or_bidi};
use crate::time::Millis;

/// Longest name of a hold, in bytes.
pub const LONGEST_NAME: usize = 100;

/// Longest reason, in bytes.
const LONGEST_REASON: usize = 4_000;

/// Most rooms, or users, of one hold.
const MOST_SUBJECTS: usize = 10_000;

/// One hold, as it is written down. What this roomkeeper does not know in it makes it one that is not understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// By which it is released and named to people; no other hold ever had it.
    pub name: String,
    /// These rooms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rooms: Vec<RoomId>,
    /// These users: what they wrote, and the rooms that they are or were in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserId>,
    /// Of the users no more than what they wrote.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub written: bool,
    /// Every room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub everything: bool,
    /// Of that, what was sent or received from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<Millis>,
    /// Of that, what was sent or received up to then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_ms: Option<Millis>,
    /// Why.
    pub reason: String,
    /// The matter that it belongs to, in the words of whoever keeps those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matter: Option<String>,
    /// From then on it is asked whether the hold is still needed. It never lapses by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review_ms: Option<Millis>,
    /// Who laid it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When.
    pub at_ms: Millis,
    /// That it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Release>,
    /// Why it is not understood, where it is not: then it holds everything.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub not_understood: Option<String>,
}

/// The end of a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// When.
    pub at_ms: Millis,
    /// Why.
    pub reason: String,
    /// Who released it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// Events of one room that a hold keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HeldEvents {
    /// Those of this user; `None` is everybody's.
    pub sender: Option<UserId>,
    /// Of these, what was sent or received from then on…
    pub since: Millis,
    /// …up to then, this moment included.
    pub until: Millis,
}

impl HeldEvents {
    /// Whether that is the room as it stands.
    pub fn is_all(&self) -> bool {
        self.sender.is_none() && self.since.0 == i64::MIN && self.until.0 == i64::MAX
    }
}

impl Hold {
    /// Reads what is written down. What cannot be read holds everything, under the name `called`.
    pub fn read(text: &str, called: &str) -> Self {
        let read = serde_json::from_str::<Self>(text);
        match read
            .map_err(|e| e.to_string())
            .and_then(|hold| hold.validate().map(|()| hold))
        {
            Ok(hold) => hold,
            Err(why) => Self::not_understood(called, &why),
        }
    }

    /// A hold that holds everything, because nobody can say what it holds.
    pub fn not_understood(name: &str, why: &str) -> Self {
        Self {
            name: name.to_owned(),
            everything: true,
            not_understood: Some(why.to_owned()),
            ..Self::default()
        }
    }

    /// What is wrong with it.
    ///
    /// # Errors
    /// A sentence.
    pub fn validate(&self) -> Result<(), String> {
        validate_name(&self.name)?;
        validate_reason(&self.reason)?;
        if self.rooms.is_empty() && self.users.is_empty() && !self.everything {
            return Err("a hold is on rooms, on users, or on everything".into());
        }
        if self.rooms.len() > MOST_SUBJECTS || self.users.len() > MOST_SUBJECTS {
            return Err(format!(
                "a hold is on {MOST_SUBJECTS} rooms or users at most: lay several"
            ));
        }
        let is_room = |room: &RoomId| {
            room.as_str().starts_with('!') && !room.as_str().chars().any(is_control_or_bidi)
        };
        if let Some(room) = self.rooms.iter().find(|room| !is_room(room)) {
            return Err(format!("{room} is no room id (!…)"));
        }
        let is_user =
            |user: &&UserId| user.as_str().starts_with('@') && user.as_str().contains(':');
        if let Some(user) = self.users.iter().find(|user| !is_user(user)) {
            return Err(format!("{user} is no user id (@name:server)"));
        }
        if self.written && self.users.is_empty() {
            return Err("what somebody wrote is held by naming the user".into());
        }
        match (self.from_ms, self.to_ms) {
            (Some(from), Some(to)) if from > to => {
                Err("the time from which it holds lies after the one up to which it holds".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether it still holds.
    pub fn is_active(&self) -> bool {
        self.released.is_none()
    }

    /// Whether somebody should ask if it is still needed.
    pub fn is_due_for_review(&self, now: Millis) -> bool {
        self.is_active() && self.review_ms.is_some_and(|review| review <= now)
    }

    /// What it keeps of a room. `was_joined` knows whether a user is or ever was in it.
    ///
    /// # Errors
    /// Those of `was_joined`.
    pub fn events_of<E>(
        &self,
        room: &RoomId,
        was_joined: &mut dyn FnMut(&UserId) -> Result<bool, E>,
    ) -> Result<Vec<HeldEvents>, E> {
        let (since, until) = (
            self.from_ms.unwrap_or(Millis(i64::MIN)),
            self.to_ms.unwrap_or(Millis(i64::MAX)),
        );
        let of = |sender| HeldEvents {
            sender,
            since,
            until,
        };
        if self.everything || self.rooms.contains(room) {
            return Ok(vec![of(None)]);
        }
        let mut held = Vec::new();
        for user in &self.users {
            if !self.written && was_joined(user)? {
                return Ok(vec![of(None)]);
            }
            held.push(of(Some(user.clone())));
        }
        Ok(held)
    }
}

/// For people, without its reason: that is for `hold list`.
impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.name))?;
        match &self.not_understood {
            Some(_) => f.write_str(" (not understood, so it holds everything)"),
            None => Ok(()),
        }
    }
}

/// A name is a word of an address, a log and a command line.
///
/// # Errors
/// A sentence.
pub fn validate_name(name: &str) -> Result<(), String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._:@-".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_good) {
        return Err(format!(
            "the name of a hold is a word of letters, digits, '.', '_', ':', '@' and '-', of {LONGEST_NAME} characters at most"
        ));
    }
    Ok(())
}

/// A reason says something, on one line.
///
/// # Errors
/// A sentence.
pub fn validate_reason(reason: &str) -> Result<(), String> {
    if reason.trim().is_empty() {
        return Err("say the reason".into());
    }
    if reason.len() > LONGEST_REASON || reason.chars().any(is_control_or_bidi) {
        return Err(format!(
            "a reason is one line of {LONGEST_REASON} bytes at most"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold() -> Hold {
        Hold {
            name: "case-7".into(),
            rooms: vec![RoomId::from("!a:b")],
            reason: "because".into(),
            ..Hold::default()
        }
    }

    fn written(hold: &Hold) -> String {
        serde_json::to_string(hold).expect("written")
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let released = Hold {
            released: Some(Release {
                at_ms: Millis(5),
                reason: "over".into(),
                by: None,
            }),
            users: vec![UserId::from("@u:s")],
            from_ms: Some(Millis(1)),
            to_ms: Some(Millis(1)),
            ..hold()
        };
        for hold in [hold(), released] {
            assert_eq!(Hold::read(&written(&hold), "line 1"), hold);
        }
    }

    #[test]
    fn a_hold_that_is_not_understood_holds_everything() {
        let good = written(&hold());
        let newer = good.replace("\"reason\"", "\"but_not\":[\"!a:b\"],\"reason\"");
        let no_room = good.replace("!a:b", "a:b");
        let nothing = good.replace("\"rooms\":[\"!a:b\"],", "");
        let posing = good.replace("\"reason\"", "\"not_understood\":null,\"reason\"");
        for text in [
            "",
            "{",
            "[]",
            &good[1..],
            &newer,
            &no_room,
            &nothing,
            &posing,
        ] {
            let read = Hold::read(text, "line 3");
            assert_eq!(read.name, "line 3", "{text}");
            assert!(read.not_understood.is_some() && read.is_active(), "{text}");
            let held = read.events_of(&RoomId::from("!x:y"), &mut |_| Ok::<_, ()>(false));
            assert!(held.expect("pure").iter().any(HeldEvents::is_all), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_sentence() {
        let wrong: [fn(&mut Hold); 9] = [
            |h| h.name = "two words".into(),
            |h| h.name = "x".repeat(LONGEST_NAME + 1),
            |h| h.name = String::new(),
            |h| h.reason = " ".into(),
            |h| h.reason = "two\nlines".into(),
            |h| h.rooms.clear(),
            |h| h.rooms.push(RoomId::from("#alias:b")),
            |h| h.written = true,
            |h| (h.from_ms, h.to_ms) = (Some(Millis(2)), Some(Millis(1))),
        ];
        for (number, wrong) in wrong.into_iter().enumerate() {
            let mut hold = hold();
            wrong(&mut hold);
            assert!(hold.validate().is_err(), "{number}");
        }
        let mut of_user = hold();
        of_user.users = vec![UserId::from("nobody")];
        assert!(of_user.validate().is_err());
    }

    #[test]
    fn a_user_is_held_with_the_rooms_that_they_were_in_unless_only_what_they_wrote_is() {
        let mut of_user = hold();
        of_user.rooms.clear();
        of_user.users = vec![UserId::from("@u:s"), UserId::from("@v:s")];
        let room = RoomId::from("!a:b");
        let mut was = |user: &UserId| Ok::<_, ()>(user.as_str() == "@v:s");
        let held = of_user.events_of(&room, &mut was).expect("pure");
        assert!(matches!(&held[..], [all] if all.is_all()), "{held:?}");
        let mut never = |_: &UserId| Ok::<_, ()>(false);
        let held = of_user.events_of(&room, &mut never).expect("pure");
        let senders: Vec<_> = held.iter().map(|h| h.sender.clone()).collect();
        assert_eq!(senders, [Some("@u:s".into()), Some("@v:s".into())]);
        of_user.written = true;
        assert_eq!(of_user.events_of(&room, &mut was), Ok(held));
    }
}
