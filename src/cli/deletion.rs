//! `delete-room`, `block`, `unblock`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{as_planned, finish_said, output, plan_text, remote, room_set, words};
use crate::config::Config;
use crate::deletion::Request;
use crate::error::Error;
use crate::ids::{Escaped, UserId};
use crate::keeper::{Keeper, SetAction, Viewer};
use crate::plan_hash::PlanHash;

#[derive(Args)]
pub(super) struct DeleteRoom {
    /// The room's id, or an alias of it; or choose rooms by what they are.
    room: Option<String>,
    #[command(flatten)]
    choice: room_set::Choice,
    /// Let nobody join the room any more; done first.
    #[arg(long)]
    block: bool,
    /// Only shut the room down; its rows stay. Delete them later, when other servers have heard that our users left.
    #[arg(long, conflicts_with = "force_purge")]
    no_purge: bool,
    /// Delete the room's rows even if local users are in it who cannot be moved out.
    #[arg(long)]
    force_purge: bool,
    #[command(flatten)]
    media: super::media::WithMedia,
    /// A local user who makes a new room, into which the people are moved and to which the aliases lead.
    #[arg(long, value_name = "USER")]
    new_room_user: Option<String>,
    /// The new room's name.
    #[arg(long, value_name = "NAME", requires = "new_room_user")]
    room_name: Option<String>,
    /// What is said in the new room.
    #[arg(long, value_name = "TEXT", requires = "new_room_user")]
    message: Option<String>,
    /// Only say who would be moved and which rows would go; reads, and takes no lock.
    #[arg(long)]
    dry_run: bool,
    /// Only as planned: what a dry run said behind "plan". Where anything else would go by now, nothing goes.
    #[arg(long, value_name = "HASH", conflicts_with = "dry_run")]
    plan: Option<PlanHash>,
    /// The clock is right, although nothing says so: for this command. It matters where rooms are chosen by an age.
    #[arg(long)]
    trust_clock: bool,
}

impl DeleteRoom {
    fn request(&self) -> Request {
        Request {
            requester: None,
            new_room_user_id: self.new_room_user.clone().map(UserId::new),
            room_name: self.room_name.clone(),
            message: self.message.clone(),
            block: self.block,
            purge: !self.no_purge,
            force_purge: self.force_purge,
            media: self.media.fate(),
        }
    }
}

pub(super) fn delete_room(
    mut config: Config,
    wanted: &DeleteRoom,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let request = wanted.request();
    config.check_clock &= !wanted.trust_clock;
    if let Some(selectors) = wanted.choice.selectors(wanted.room.as_deref())? {
        let action = SetAction::DeleteRoom(request);
        let request = wanted.choice.request(selectors, action);
        return room_set::run(
            config,
            request,
            wanted.plan,
            wanted.dry_run,
            is_said,
            as_json,
        );
    }
    let (room, _) = words::any_room(&config, wanted.room.as_deref().unwrap_or_default())?;
    if wanted.dry_run {
        let viewer = Viewer::open(config)?;
        let plan = viewer.plan_deletion(&room, &request)?;
        plan_text::deletion(
            as_json,
            &plan,
            viewer.estimate_deletion(&plan.rows_removed)?,
        );
        return Ok(ExitCode::SUCCESS);
    }
    let what = match (request.purge, &request.new_room_user_id) {
        (false, _) => "move everybody of this server out of",
        (true, None) => "move everybody of this server out of, and delete every row of,",
        (true, Some(_)) => {
            "move everybody of this server to a new room from, and delete every row of,"
        }
    };
    words::ask(&format!("{what} room {room}?"), is_said, as_json)?;
    let asked = config.clone();
    let keeper = match Keeper::open_for(config, &room) {
        Err(Error::LedgerLocked(_)) => {
            return remote::delete_room(&asked, &room, &request, wanted.plan, as_json);
        }
        keeper => keeper?,
    };
    // What a person should know before the first row goes.
    let said = keeper.warnings_before_deletion(&room, &request)?;
    for note in &said {
        output::note(note);
    }
    let keeper = as_planned(keeper, wanted.plan);
    let id = keeper.shutdown_and_purge_room(&room, request)?;
    finish_said(&keeper, &id, &said, as_json)
}

pub(super) fn set_block(
    config: Config,
    room: &str,
    block: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let (room, is_known) = words::any_room(&config, room)?;
    if !is_known && !room.is_valid() {
        return Err(Error::Config(format!(
            "{} is not a legal room ID, and no such room is known here: look at the id again (`roomkeeper rooms` lists them)",
            Escaped(room.as_str())
        )));
    }
    let asked = config.clone();
    let operator = config.admin_user.clone();
    // W-20: a homeserver that is not told believes what it remembers.
    let is_unheard = config.homeserver_api.is_none()
        && Viewer::open(config.clone())?
            .running_homeserver()?
            .is_some();
    match Keeper::open(config) {
        Err(Error::LedgerLocked(_)) => remote::set_block(&asked, &room, block)?,
        keeper if block => keeper?.block(&room, &operator)?,
        keeper => keeper?.unblock(&room)?,
    }
    if as_json {
        output::json(&json!({"room_id": room, "block": block}));
    } else if block && is_unheard {
        output::say(&format!(
            "room {room} is blocked in the database: the homeserver that runs heeds it when it looks there again, at the \
             latest when it starts anew"
        ));
    } else if block && !is_known {
        output::say(&format!(
            "room {room} is blocked: nobody can join it. It is not known here; if one of yours was meant, look at the id again"
        ));
    } else if block {
        output::done(&format!("room {room} is blocked: nobody can join it"));
    } else if !is_known {
        output::say(&format!(
            "room {room} is not blocked. It is not known here; if one of yours was meant, look at the id again"
        ));
    } else {
        output::done(&format!("room {room} is not blocked"));
    }
    Ok(ExitCode::SUCCESS)
}
