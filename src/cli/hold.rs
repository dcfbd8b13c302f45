//! `roomkeeper hold`: what nobody may delete for now.

use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;

use super::{output, remote};
use crate::config::Config;
use crate::error::Error;
use crate::hold::Hold;
use crate::ids::{Escaped, RoomId, UserId};
use crate::keeper::{self, Viewer};
use crate::sqlite_file;
use crate::time::{Millis, When, parse_when};

#[derive(Subcommand)]
pub(super) enum HoldCommand {
    /// Lay a hold: from now on nothing that it keeps is deleted, whatever asks for it.
    Add(Add),
    /// The holds, and why they are.
    List {
        /// Those that are released, too.
        #[arg(long)]
        all: bool,
    },
    /// End a hold.
    Release {
        /// Its name.
        name: String,
        /// Why; it stays on record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Args)]
#[command(group(ArgGroup::new("subject").required(true).args(["rooms", "users", "everything"])))]
pub(super) struct Add {
    /// A word that no other hold has or had, such as case-2026-7.
    name: String,
    /// This room, by its id or an alias; repeatable.
    #[arg(long = "room", value_name = "ROOM")]
    rooms: Vec<String>,
    /// What this user wrote, and the rooms that they are or were in; repeatable.
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,
    /// Every room.
    #[arg(long)]
    everything: bool,
    /// Of the users no more than what they wrote.
    #[arg(long, requires = "users")]
    written: bool,
    /// Of that, what was sent or received from then on: 2026-01-01, 2026-01-01T12:00Z, or so long ago: 90d.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Of that, what was sent or received up to then; a day is meant whole.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The matter that it belongs to.
    #[arg(long, value_name = "ID")]
    matter: Option<String>,
    /// From that day on every run says that somebody should ask whether it is still needed. It never lapses by itself.
    #[arg(long, value_name = "DATE")]
    review: Option<String>,
}

impl Add {
    fn hold(&self, config: &Config) -> Result<Hold, Error> {
        let now = config.clock.now();
        let at = |option: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => match parse_when(text) {
                Ok(When::At(moment)) => Ok(Some(moment)),
                Ok(When::Ago(age)) => Ok(Some(now - age)),
                Err(said) => Err(Error::Config(format!("{option}: {said}"))),
            },
        };
        let review = match &self.review {
            Some(text)
                if text
                    .trim()
                    .ends_with(|c: char| c.is_ascii_alphabetic() && c != 'Z') =>
            {
                return Err(Error::Config(format!(
                    "--review: '{text}' is no date, such as 2026-12-31"
                )));
            }
            review => at("--review", review)?,
        };
        let to = at("--to", &self.to)?;
        let is_day = self
            .to
            .as_ref()
            .is_some_and(|text| text.trim().len() == 10 && text.contains('-'));
        let hold = Hold {
            name: self.name.clone(),
            rooms: self.room_ids(config)?,
            users: self
                .users
                .iter()
                .map(|user| UserId::new(user.trim()))
                .collect(),
            everything: self.everything,
            written: self.written,
            from_ms: at("--from", &self.from)?,
            to_ms: match is_day {
                true => to.map(|day| day + Millis(86_400_000 - 1)),
                false => to,
            },
            reason: self.reason.clone(),
            matter: self.matter.clone(),
            review_ms: review,
            ..Hold::default()
        };
        hold.validate().map_err(Error::Config)?;
        Ok(hold)
    }

    /// Rooms need not be known: a hold may be there before the room is.
    fn room_ids(&self, config: &Config) -> Result<Vec<RoomId>, Error> {
        let mut rooms = Vec::new();
        let mut viewer = None;
        for words in &self.rooms {
            let words = words.trim();
            if words.starts_with('!') {
                rooms.push(RoomId::new(words));
                continue;
            }
            let viewer = match &viewer {
                Some(viewer) => viewer,
                None => viewer.insert(Viewer::open(config.clone())?),
            };
            rooms.push(viewer.room_of(words)?);
        }
        Ok(rooms)
    }
}

/// Lays, lists, releases.
pub(super) fn hold(
    config: &Config,
    wanted: &HoldCommand,
    as_json: bool,
) -> Result<ExitCode, Error> {
    match wanted {
        HoldCommand::Add(add) => {
            let hold = add.hold(config)?;
            let is_at_work = sqlite_file::holder(&config.ledger).is_some();
            // A daemon is asked where one can be; else whoever is at work finds the file.
            let laid = match remote::add_hold(config, &hold) {
                Some(laid) => laid?,
                None => keeper::add_hold(config, hold)?,
            };
            if as_json {
                output::json(&json!(laid));
            } else {
                output::done(&format!("The hold {laid} is laid."));
                if is_at_work {
                    output::note(
                        "what is being deleted at this moment is not stopped by it: it counts from the next transaction on",
                    );
                }
                warn_of_unknown(config, &laid);
            }
        }
        HoldCommand::Release { name, reason } => {
            let released = match remote::release_hold(config, name, reason) {
                Some(released) => released?,
                None => keeper::release_hold(config, name, reason)?,
            };
            if as_json {
                output::json(&json!(released));
            } else {
                output::done(&format!("The hold {released} is released."));
            }
        }
        HoldCommand::List { all } => {
            let mut holds = keeper::holds(config);
            holds.retain(|hold| *all || hold.is_active());
            if as_json {
                output::json(&json!({ "holds": holds }));
            } else {
                show(&holds, config.clock.now());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A room that is misspelt is not held.
fn warn_of_unknown(config: &Config, hold: &Hold) {
    let Ok(viewer) = Viewer::open(config.clone()) else {
        return;
    };
    for room in &hold.rooms {
        if matches!(viewer.knows(room), Ok(false)) {
            output::warn(&format!(
                "this server knows no room {room}: if one of yours was meant, look at the id again"
            ));
        }
    }
}

fn show(holds: &[Hold], now: Millis) {
    if holds.is_empty() {
        output::say("Nothing is held.");
    }
    for hold in holds {
        let of = |what: &str, all: Vec<String>| match all.len() {
            0 => None,
            _ => Some(format!("{what} {}", all.join(", "))),
        };
        let users = hold.users.iter().map(ToString::to_string).collect();
        let what = match hold.written {
            true => "what was written by",
            false => "what was written by, and the rooms of,",
        };
        let mut parts = vec![
            hold.everything.then(|| "everything".to_owned()),
            of("room", hold.rooms.iter().map(ToString::to_string).collect()),
            of(what, users),
            hold.from_ms
                .map(|from| format!("from {} on", from.as_date())),
            hold.to_ms.map(|to| format!("up to {}", to.as_date())),
        ];
        parts.retain(Option::is_some);
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        output::say(&format!("{hold}: {}", parts.join("; ")));
        if let Some(why) = &hold.not_understood {
            output::say(&format!("  cannot be read: {}", Escaped(why)));
            continue;
        }
        let by = hold.by.as_deref().unwrap_or("somebody");
        output::say(&format!(
            "  since {}, by {}: {}",
            hold.at_ms.as_date(),
            Escaped(by),
            Escaped(&hold.reason)
        ));
        if let Some(matter) = &hold.matter {
            output::say(&format!("  matter {}", Escaped(matter)));
        }
        if let Some(review) = hold.review_ms {
            let due = match hold.is_due_for_review(now) {
                true => " (due: is it still needed?)",
                false => "",
            };
            output::say(&format!("  to be reviewed by {}{due}", review.as_date()));
        }
        if let Some(released) = &hold.released {
            output::say(&format!(
                "  released {} by {}: {}",
                released.at_ms.as_date(),
                Escaped(released.by.as_deref().unwrap_or("somebody")),
                Escaped(&released.reason)
            ));
        }
    }
}
