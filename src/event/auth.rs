//! Which state allows an event (D-42).

use super::{CREATE, MEMBER};

/// The state, by type and state key, whose events allow another; those that the room does not have are left out.
///
/// `membership` is the one that the event gives, where it is a membership. Restricted joins are not among what is made
/// here, nor are invitations of third parties.
pub fn auth_event_keys<'a>(
    kind: &str,
    sender: &'a str,
    state_key: Option<&'a str>,
    membership: Option<&str>,
) -> Vec<(&'static str, &'a str)> {
    if kind == CREATE {
        return Vec::new();
    }
    let mut keys = vec![(CREATE, ""), ("m.room.power_levels", ""), (MEMBER, sender)];
    if kind == MEMBER {
        if let Some(target) = state_key.filter(|target| *target != sender) {
            keys.push((MEMBER, target));
        }
        if matches!(membership, Some("join" | "invite" | "knock")) {
            keys.push(("m.room.join_rules", ""));
        }
    }
    keys
}

/// Whether a user may leave a room by themself (D-25): only who is in it, invited or knocking. Bans stay.
pub fn may_leave(membership: Option<&str>) -> bool {
    matches!(membership, Some("join" | "invite" | "knock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leave_is_allowed_by_the_rooms_rules_and_by_having_been_there() {
        let keys = auth_event_keys(MEMBER, "@a:b", Some("@a:b"), Some("leave"));
        assert_eq!(
            keys,
            [(CREATE, ""), ("m.room.power_levels", ""), (MEMBER, "@a:b")]
        );
    }

    #[test]
    fn a_join_asks_the_join_rules_as_well_and_a_create_event_nobody() {
        let keys = auth_event_keys(MEMBER, "@a:b", Some("@a:b"), Some("join"));
        assert!(keys.contains(&("m.room.join_rules", "")));
        let keys = auth_event_keys(MEMBER, "@a:b", Some("@c:b"), Some("invite"));
        assert!(keys.contains(&(MEMBER, "@c:b")));
        assert_eq!(auth_event_keys(CREATE, "@a:b", Some(""), None), []);
    }

    #[test]
    fn who_was_banned_or_never_came_does_not_leave() {
        for membership in [None, Some("ban"), Some("leave")] {
            assert!(!may_leave(membership));
        }
        assert!(may_leave(Some("knock")));
    }
}
