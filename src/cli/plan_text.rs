//! Plans for people, in the order in which one decides: what goes, what becomes invisible, what stays and why, bytes, time,
//! and then the tables.

use serde_json::Value;

use super::media;
use super::output::{in_a_row, json, say, table};
use crate::deletion;
use crate::ids::Escaped;
use crate::keeper::Estimate;
use crate::plan_hash::PlanHash;
use crate::plural::{count, count_of};
use crate::purge::{self, Plan};
use crate::store::event_rows::RowCounts;
use crate::store::space::human;

/// What a purge would remove.
pub(super) fn purge(as_json: bool, plan: &Plan, cut: Option<&str>, estimate: Estimate) {
    if as_json {
        return document(serde_json::to_value(plan), estimate);
    }
    let point = plan.point.to_string();
    say(&format!(
        "A purge of room {} up to {} would remove {} and {}.",
        plan.room_id,
        cut.unwrap_or(&point),
        count(plan.events_deleted, "event"),
        count(plan.state_groups_freed, "state group"),
    ));
    if plan.local_messages_kept > 0 {
        stays(&purge::local_messages_note(plan.local_messages_kept));
    }
    if plan.events_kept_as_outliers > 0 {
        stays(&count_of(
            plan.events_kept_as_outliers,
            "event stays as an outlier: state, and what must not go",
            "events stay as outliers: state, and what must not go",
        ));
    }
    if plan.events_held > 0 {
        stays(&format!(
            "{} below the point in the timeline, held by {}",
            count_of(plan.events_held, "event stays", "events stay"),
            plan.holds.join(", ")
        ));
    }
    if plan.extremities_kept > 0 {
        stays(&purge::extremities_note(plan.extremities_kept));
    }
    for table in &plan.referring_tables {
        let what = match table.stops_delete {
            true => "it would stop there; delete them first if they are not the homeserver's own",
            false => "they go along or are changed, as their table says",
        };
        let rows = count_of(table.rows, "row refers", "rows refer");
        stays(&format!(
            "the table {} is not known; {rows} to what would go: {what}",
            Escaped(&table.table)
        ));
    }
    comes_to(estimate, &plan.rows_removed);
    plan.media.iter().for_each(media::files);
    if let Some(who) = plan.foreign_keys {
        say(&format!("Foreign keys would be {who}."));
    }
    end(plan.plan);
}

/// What a deletion would do.
pub(super) fn deletion(as_json: bool, plan: &deletion::Plan, estimate: Estimate) {
    if as_json {
        return document(serde_json::to_value(plan), estimate);
    }
    let unknown = match plan.is_known {
        true => "",
        false => ", which the homeserver does not know,",
    };
    let events = plan.rows_removed.get("events").copied().unwrap_or(0);
    let rows = match plan.rows_removed.is_empty() {
        true => "remove none of its rows".to_owned(),
        false => format!(
            "remove every row of it, {} among them",
            count(events, "event")
        ),
    };
    say(&format!(
        "A deletion of room {}{unknown} would move {} out and {rows}.",
        plan.room_id,
        count(plan.users_to_move.len() as u64, "local user")
    ));
    for (user, membership) in &plan.users_to_move {
        say(&format!("  moved out: {user} ({membership})"));
    }
    if !plan.aliases_to_move.is_empty() {
        let aliases = in_a_row(&plan.aliases_to_move);
        stays(&format!("to the new room would lead {aliases}"));
    }
    for unknown in &plan.unknown_tables {
        let what = match unknown.stops_delete {
            true => "they would stop the delete",
            false => "they go along or stay, as their table says",
        };
        stays(&format!(
            "the table {} is not known; {} of this room: {what}",
            unknown.table,
            count_of(unknown.rows, "of its rows is", "of its rows are")
        ));
    }
    for note in &plan.notes {
        stays(note);
    }
    comes_to(estimate, &plan.rows_removed);
    plan.media.iter().for_each(media::files);
    end(plan.plan);
}

/// The plan, and what it would come to.
fn document(plan: serde_json::Result<Value>, estimate: Estimate) {
    let mut plan = plan.unwrap_or_default();
    plan["estimate"] = serde_json::to_value(estimate).unwrap_or_default();
    json(&plan);
}

/// Something that stays, or that one should know before.
fn stays(text: &str) {
    say(&format!("  - {text}"));
}

/// Bytes, time, and the tables.
fn comes_to(estimate: Estimate, rows: &RowCounts) {
    if rows.is_empty() {
        return;
    }
    let size = |bytes: i64| human(u64::try_from(bytes).unwrap_or(0));
    say(&format!(
        "Of the {} that the database takes, some {} would be free inside it; `roomkeeper reclaim` gives them back to the disk.",
        size(estimate.database_bytes),
        size(estimate.bytes),
    ));
    say(&time(estimate.rows_per_second, estimate.seconds));
    table(rows);
}

/// How long it takes, as far as that is known.
pub(super) fn time(rows_per_second: Option<i64>, seconds: Option<i64>) -> String {
    match (rows_per_second, seconds) {
        (Some(rate), Some(seconds)) => format!(
            "At the rate of earlier jobs here ({} a second) that takes about {}.",
            count(rate, "row"),
            match seconds {
                0..=90 => count(seconds, "second"),
                seconds => count((seconds + 59) / 60, "minute"),
            }
        ),
        _ => "How long it takes is not known: no job of this sort has removed enough here yet."
            .into(),
    }
}

fn end(plan: Option<PlanHash>) {
    say("Nothing was changed.");
    bound(plan);
}

/// What binds a plan, and how.
pub(super) fn bound(plan: Option<PlanHash>) {
    if let Some(plan) = plan {
        say(&format!("To do this and nothing else: --plan {plan}"));
    }
}
