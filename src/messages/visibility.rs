//! What a reader may see of a room: its history visibility at each event, and who they were then (M-41 … M-50).

use std::collections::{HashMap, HashSet};

use super::event::Event;
use crate::ids::UserId;
use crate::time::Millis;

/// The state at an event, as far as it decides who may see it: contents, as text.
#[derive(Clone, Debug, Default)]
pub(crate) struct StateAt {
    /// Of `m.room.history_visibility`.
    pub(crate) visibility: Option<String>,
    /// The reader's membership.
    pub(crate) membership: Option<String>,
    /// Of `m.room.join_rules`; only looked up for calls.
    pub(crate) join_rule: Option<String>,
}

/// Who reads.
pub(crate) struct Viewer<'a> {
    /// Their id.
    pub(crate) user: &'a UserId,
    /// Whether they never were here and look in through an open range.
    pub(crate) is_peeking: bool,
    /// Whom they ignore.
    pub(crate) ignored: &'a HashSet<String>,
    /// Who asked for their data to be erased.
    pub(crate) erased: &'a HashSet<String>,
    /// Messages from before this have expired.
    pub(crate) hides_before: Option<Millis>,
}

/// What a reader sees of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// Nothing.
    Nothing,
    /// Only that there was one.
    Redacted,
    /// All of it.
    Whole,
}

/// From the laxest to the strictest.
const VISIBILITIES: [&str; 4] = ["world_readable", "shared", "invited", "joined"];

/// From the most joined to the least.
const MEMBERSHIPS: [&str; 5] = ["join", "invite", "knock", "leave", "ban"];

/// A value of a list, or what stands for any other.
fn among<'a>(list: &[&'a str], value: Option<&str>, otherwise: &'a str) -> &'a str {
    let known = list.iter().find(|known| Some(**known) == value);
    known.copied().unwrap_or(otherwise)
}

/// The one of two that comes first in a list.
fn first<'a>(list: &[&'a str], one: &'a str, other: &'a str) -> &'a str {
    let place = |value| list.iter().position(|known| *known == value);
    if place(other) < place(one) {
        other
    } else {
        one
    }
}

impl Viewer<'_> {
    /// What the reader sees of an event. `state` is the one after it.
    pub(crate) fn sees(&self, event: &Event, state: &StateAt) -> Visibility {
        if self.is_withheld(event) {
            return Visibility::Nothing;
        }
        let visibility = among(&VISIBILITIES, state.visibility.as_deref(), "shared");
        let is_erased = self.erased.contains(event.sender());
        let mut lax = visibility;
        if event.kind() == "m.room.history_visibility" {
            let before = event.previous("history_visibility");
            lax = first(
                &VISIBILITIES,
                visibility,
                among(&VISIBILITIES, before.as_deref(), "shared"),
            );
        }
        let is_open = lax == "world_readable" || (lax == "shared" && !self.is_peeking);
        let sight = match (is_open, is_erased) {
            (true, false) => Visibility::Whole,
            _ => self.sees_as_member(event, visibility, state, is_erased),
        };
        let is_call = event.kind() == "m.call.invite" && !event.is_state();
        if is_call && state.join_rule.as_deref() == Some("public") {
            return Visibility::Nothing;
        }
        sight
    }

    /// Whether the event is shown to nobody, or not to this reader, whatever the state of the room was.
    fn is_withheld(&self, event: &Event) -> bool {
        if event.metadata.is_soft_failed()
            || event.kind() == "org.matrix.dummy_event"
            || event.kind() == "m.room.aliases"
        {
            return true;
        }
        if event.is_state() {
            return false;
        }
        let has_expired = |before: Millis| event.origin_server_ts().is_none_or(|ts| ts < before.0);
        self.ignored.contains(event.sender()) || self.hides_before.is_some_and(has_expired)
    }

    fn sees_as_member(
        &self,
        event: &Event,
        visibility: &str,
        state: &StateAt,
        is_erased: bool,
    ) -> Visibility {
        let membership = if event.is("m.room.member", self.user.as_str()) {
            let content = event.content().text("membership");
            let new = among(&MEMBERSHIPS, content.as_deref(), "leave");
            let before = event.previous("membership");
            let old = among(&MEMBERSHIPS, before.as_deref(), "leave");
            if new == "leave" && (old == "join" || old == "invite") {
                return if is_erased {
                    Visibility::Redacted
                } else {
                    Visibility::Whole
                };
            }
            Some(first(&MEMBERSHIPS, new, old))
        } else {
            state.membership.as_deref()
        };
        let is_allowed = match visibility {
            _ if membership == Some("join") => return Visibility::Whole,
            "joined" => false,
            "invited" => membership == Some("invite"),
            "shared" => !self.is_peeking,
            _ => true,
        };
        match (is_allowed, is_erased) {
            (false, _) => Visibility::Nothing,
            (true, true) => Visibility::Redacted,
            (true, false) => Visibility::Whole,
        }
    }

    /// The reader's membership after an event (M-89).
    pub(crate) fn membership_after(&self, event: &Event, state: &StateAt) -> String {
        let own = event.is("m.room.member", self.user.as_str());
        let said = if own {
            event
                .content()
                .text("membership")
                .map(|text| text.into_owned())
        } else {
            state.membership.clone()
        };
        said.unwrap_or_else(|| "leave".into())
    }
}

/// The states after the events of a page, by state group.
pub(crate) type States = HashMap<i64, StateAt>;
