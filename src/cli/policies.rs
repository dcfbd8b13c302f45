//! What the policies of our own would do, for people.

use super::output;
use crate::error::Error;
use crate::keeper::{PolicyPlan, Viewer};
use crate::plural::{count, count_of};
use crate::rooms::WhyNot;
use crate::store::space::human;

/// Rooms that are named in a plan, of those that are left alone for one reason.
const TOLD: usize = 20;

/// The plans of the policies of these names, in the order of the configuration.
pub(super) fn plans(viewer: &Viewer, names: &[String]) -> Result<Vec<PolicyPlan>, Error> {
    match names {
        [] => Ok(Vec::new()),
        [name] => viewer.plan_policies(Some(name)),
        _ => viewer.plan_policies(None),
    }
}

/// That a policy has nothing to do.
pub(super) fn takes_nothing(name: &str, as_json: bool) {
    if !as_json {
        output::say(&format!("The policy {name} takes no room now."));
    }
}

/// What a person is asked about these plans; nothing where they do nothing.
pub(super) fn question(plans: &[PolicyPlan]) -> String {
    let asked = plans.iter().map(|plan| {
        let people = match plan.people_to_move {
            0 => String::new(),
            people => format!(", {} moved out", count(people, "local user")),
        };
        format!(
            "by the policy {}: {} in {}, some {}{people}",
            plan.policy.name,
            count(plan.events, "event"),
            count(plan.rooms.len() as u64, "room"),
            bytes(plan.estimated_bytes)
        )
    });
    match plans.is_empty() {
        true => String::new(),
        false => format!("delete {}", asked.collect::<Vec<_>>().join("; ")),
    }
}

/// One plan.
pub(super) fn show(plan: &PolicyPlan) {
    let policy = &plan.policy;
    output::say(&format!(
        "The policy {}: {}:",
        policy.name,
        policy.in_words()
    ));
    for room in &plan.rooms {
        let since = room
            .since_ms
            .map_or_else(String::new, |since| format!("  since {}", since.as_date()));
        let people = match room.people_to_move {
            0 => String::new(),
            people => format!("; {} moved out", count(people, "local user")),
        };
        output::say(&format!(
            "  {}{since}  {}, some {}{people}",
            room.room_id,
            count(room.events, "event"),
            bytes(room.estimated_bytes)
        ));
    }
    let mut at = 0;
    while let Some(first) = plan.left_alone.get(at) {
        let alike = plan.left_alone[at..].iter();
        let alike = alike.take_while(|room| room.reason == first.reason).count();
        let rooms = &plan.left_alone[at..at + alike];
        at += alike;
        output::say(&format!(
            "Left alone ({}), because {}{}",
            count(alike as u64, "room"),
            first.reason.in_words(),
            if first.reason == WhyNot::NotMeant {
                "."
            } else {
                ":"
            }
        ));
        // What a policy is not for is most of a server.
        if first.reason == WhyNot::NotMeant {
            continue;
        }
        for room in rooms.iter().take(TOLD) {
            let since = room.since_ms.map_or_else(String::new, |since| {
                let until = since + policy.after;
                match room.reason {
                    WhyNot::NotYet => {
                        format!("  since {}, until {}", since.as_date(), until.as_date())
                    }
                    _ => format!("  since {}", since.as_date()),
                }
            });
            let by = room
                .by
                .as_ref()
                .map_or_else(String::new, |by| format!("  {by}"));
            output::say(&format!("  {}{since}{by}", room.room_id));
        }
        if alike > TOLD {
            output::say(&format!("  and {} more (--json names all)", alike - TOLD));
        }
    }
    output::say(&format!(
        "{} in {} would go, some {}; {} left alone.",
        count(plan.events, "event"),
        count(plan.rooms.len() as u64, "room"),
        bytes(plan.estimated_bytes),
        count_of(plan.left_alone.len() as u64, "room is", "rooms are")
    ));
}

fn bytes(bytes: i64) -> String {
    human(u64::try_from(bytes).unwrap_or(0))
}
