//! `purge-history` and `delete-room` for sets of rooms: one plan, one question, one job.

use std::io::{IsTerminal, stderr, stdin};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::rooms::Which;
use super::{as_planned, finish, output, plan_text, remote, words};
use crate::config::Config;
use crate::error::Error;
use crate::ids::RoomId;
use crate::keeper::{self, Keeper, RoomPlan, SetAction, SetRequest, SetTotals, Viewer};
use crate::plan_hash::PlanHash;
use crate::plural::{count, count_of};
use crate::rooms::{Selectors, Summary, Totals};
use crate::store::space::human;

/// Rooms that are named before somebody is asked.
const NAMED: usize = 20;

/// One room, by its id or alias; or those of some sort; or all.
#[derive(Args)]
pub(super) struct Choice {
    #[command(flatten)]
    which: Which,
    /// Every room, but for those of --not.
    #[arg(long, help_heading = "Which rooms")]
    all_rooms: bool,
}

impl Choice {
    /// The rooms that are meant; none where one room is named instead.
    ///
    /// # Errors
    /// [`Error::Config`] where both are said, or neither.
    pub(super) fn selectors(&self, room: Option<&str>) -> Result<Option<Selectors>, Error> {
        let is_said = self.all_rooms || self.which.is_said();
        match room {
            Some(_) if is_said => Err(Error::Config(
                "one room is named, and rooms of some sort are: say one of the two".into(),
            )),
            Some(_) => Ok(None),
            None if is_said => self.which.selectors().map(Some),
            None => Err(Error::Config(
                "say which room: its id (!…, in single quotes) or an alias of it (#…:server); or which rooms, by what they \
                 are (--empty, --larger-than 1G, --inactive 1y, …), or --all-rooms"
                    .into(),
            )),
        }
    }

    pub(super) fn request(&self, selectors: Selectors, action: SetAction) -> SetRequest {
        SetRequest {
            selectors,
            all_rooms: self.all_rooms,
            among: None,
            action,
        }
    }
}

/// Plans a set, or carries it out.
pub(super) fn run(
    config: Config,
    mut request: SetRequest,
    plan_hash: Option<PlanHash>,
    dry_run: bool,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    if dry_run {
        return plan(&config, &request, as_json);
    }
    // A plan says which rooms, and was shown.
    if !is_said && plan_hash.is_none() {
        let (rooms, server) = keeper::rooms_of_set(&config, &request)?;
        if rooms.is_empty() {
            return Ok(nothing(as_json));
        }
        ask(&request, &rooms, &server, as_json)?;
        // What was shown is what goes.
        request.among = Some(rooms.into_iter().map(|room| room.room_id).collect());
    }
    let asked = config.clone();
    let keeper = match Keeper::open(config) {
        Err(Error::LedgerLocked(_)) => {
            if request.depends_on_time() {
                Viewer::open(asked.clone())?.refuse_clock_ahead()?;
            }
            return match remote::start_set(&asked, &request, plan_hash, as_json)? {
                Some(code) => Ok(code),
                None => Ok(nothing(as_json)),
            };
        }
        keeper => keeper?,
    };
    let keeper = as_planned(keeper, plan_hash);
    match keeper.start_set(&request)?.job_id {
        Some(id) => finish(&keeper, &id, as_json),
        None => Ok(nothing(as_json)),
    }
}

fn nothing(as_json: bool) -> ExitCode {
    if as_json {
        output::json(&json!({"job_id": null, "rooms": 0}));
    } else {
        output::done("no room is meant; nothing was to be done");
    }
    ExitCode::SUCCESS
}

/// One question for all of them. What nobody can be asked about is not done.
fn ask(
    request: &SetRequest,
    rooms: &[Summary],
    server: &Totals,
    as_json: bool,
) -> Result<(), Error> {
    let totals = Totals::of(rooms);
    let size = |bytes: i64| human(u64::try_from(bytes).unwrap_or(0));
    for room in rooms.iter().take(NAMED) {
        let name = room.name.as_ref().or(room.alias.as_ref());
        output::warn(&format!(
            "  {}  {}  {}{}",
            room.room_id,
            size(room.bytes),
            count(room.joined_local_members, "local member"),
            name.map_or_else(String::new, |name| format!("  {name}"))
        ));
    }
    if rooms.len() > NAMED {
        output::warn(&format!("  … and {} more", rooms.len() - NAMED));
    }
    let of = format!(
        "{} of {} ({}, about {} of {}; --dry-run says what exactly)",
        totals.rooms,
        count(server.rooms, "room"),
        count(totals.events, "event"),
        size(totals.bytes),
        size(server.bytes),
    );
    let question = match &request.action {
        SetAction::PurgeHistory {
            delete_local_events: true,
            ..
        } => format!("delete everybody's messages up to that time in {of}?"),
        SetAction::PurgeHistory { .. } => {
            format!("delete the messages of other servers' users up to that time in {of}?")
        }
        SetAction::DeleteRoom(request) => format!(
            "{} {of}, out of which {} would be moved?",
            match request.purge {
                true => "delete every row of",
                false => "shut down",
            },
            count(totals.joined_local_members, "local member"),
        ),
    };
    if as_json || !stdin().is_terminal() || !stderr().is_terminal() {
        output::warn(&format!(
            "{question} Nobody sits at a terminal who could be asked: say --yes, or see with --dry-run what would go. Nothing \
             was changed"
        ));
        return Err(Error::Cancelled);
    }
    words::ask(&question, false, false)
}

/// Shows the plan of every room as it is made, then the sums.
fn plan(config: &Config, request: &SetRequest, as_json: bool) -> Result<ExitCode, Error> {
    if request.depends_on_time()
        && let Err(e) = Viewer::open(config.clone())?.refuse_clock_ahead()
    {
        output::warn(&format!("nothing of this would be done now: {e}"));
    }
    let (mut left_alone, mut is_first) = (Vec::new(), true);
    if as_json {
        output::json_text("{\"rooms\": [");
    }
    let (totals, bound) = keeper::plan_set(config, request, &mut |room| {
        match room {
            Ok(plan) if as_json => {
                let plan = serde_json::to_string(&plan).unwrap_or_default();
                output::json_text(&format!("{}{plan}", if is_first { "" } else { "," }));
                is_first = false;
            }
            Ok(plan) => output::say(&line(&plan)),
            Err(left) if as_json => left_alone.push(left),
            Err(left) => output::say(&format!("  {}  is left alone: {}", left.room_id, left.why)),
        }
        Ok(())
    })?;
    if as_json {
        let left_alone = serde_json::to_string(&left_alone).unwrap_or_default();
        let totals = serde_json::to_string(&totals).unwrap_or_default();
        output::json_text(&format!(
            "], \"left_alone\": {left_alone}, \"rooms_not_told\": 0, \"totals\": {totals}, \"plan\": \"{bound}\"}}"
        ));
    } else {
        show(&totals);
        plan_text::bound(Some(bound));
    }
    Ok(ExitCode::SUCCESS)
}

fn line(plan: &RoomPlan) -> String {
    let rows: i64 = plan.rows_removed().values().sum();
    let events = plan.rows_removed().get("events").copied().unwrap_or(0);
    let people = match plan {
        RoomPlan::Purge(_) => String::new(),
        RoomPlan::Deletion(_) => format!(
            ", {} moved out",
            count(plan.people_to_move() as u64, "local user")
        ),
    };
    let room: &RoomId = plan.room_id();
    format!(
        "  {room}  {}, {}{people}",
        count(events, "event"),
        count(rows, "row")
    )
}

fn show(totals: &SetTotals) {
    let size = |bytes: i64| human(u64::try_from(bytes).unwrap_or(0));
    output::say(&format!(
        "{} of {} would go ({} in all tables, {}); {} left alone; {} would be moved out.",
        count(totals.events, "event"),
        count(totals.rooms, "room"),
        count(totals.rows, "row"),
        count(totals.state_groups, "state group"),
        count_of(totals.rooms_left_alone, "room is", "rooms are"),
        count(totals.people_to_move, "local user"),
    ));
    output::say(&format!(
        "The database takes {}; some {} of it would be free, and after `roomkeeper reclaim` it would take about {}.",
        size(totals.database_bytes),
        size(totals.estimated_bytes),
        size(totals.bytes_after_reclaim),
    ));
    if totals.media_not_counted {
        output::say(
            "Which media go with them is found out when all have gone; `media plan ROOM` says it of one room.",
        );
    }
    output::say(&plan_text::time(totals.rows_per_second, totals.seconds));
    output::say("Nothing was changed.");
}
