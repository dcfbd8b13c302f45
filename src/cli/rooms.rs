//! `roomkeeper rooms`, and the words by which every command is told which rooms are meant.

use std::io::Read;
use std::process::ExitCode;

use clap::Args;

use super::{output, remote};
use crate::config::Config;
use crate::error::Error;
use crate::keeper::{self, RoomQuery, RoomReport};
use crate::plural::count;
use crate::rooms::{Condition, Selectors, Sort, Summary};
use crate::store::space::human;
use crate::time::Millis;

/// Which rooms are meant. Options of different kinds must all hold.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Which rooms")]
pub(super) struct Which {
    /// This room, by its id or alias; repeatable, `-` reads them from stdin, one a line.
    #[arg(long = "room", value_name = "ROOM")]
    rooms: Vec<String>,
    /// Rooms that nobody of this server is joined to.
    #[arg(long)]
    empty: bool,
    /// Rooms that everybody of this server has left and forgotten.
    #[arg(long)]
    forgotten: bool,
    /// Rooms that everybody of this server has left.
    #[arg(long)]
    left: bool,
    /// Rooms of which no message is held, only state.
    #[arg(long)]
    state_only: bool,
    /// Rooms that take more than this: 500M, 1G, …
    #[arg(long, value_name = "SIZE")]
    larger_than: Option<String>,
    /// Rooms in which nothing was said or done for this long: 1y, 26w, …
    #[arg(long, value_name = "DURATION")]
    inactive: Option<String>,
    /// Rooms that hold messages older than this.
    #[arg(long, value_name = "DURATION")]
    messages_older_than: Option<String>,
    /// Rooms whose name is of this form, such as 'old-*'; repeatable.
    #[arg(long = "name", value_name = "GLOB")]
    names: Vec<String>,
    /// Rooms of this version; repeatable.
    #[arg(long = "version", value_name = "VERSION")]
    versions: Vec<String>,
    /// Rooms that are encrypted.
    #[arg(long)]
    encrypted: bool,
    /// Rooms that are in the public directory.
    #[arg(long)]
    public: bool,
    /// Rooms that nobody of another server is in.
    #[arg(long)]
    local: bool,
    /// The rooms of this space, and of the spaces in it; repeatable.
    #[arg(long = "space", value_name = "ROOM")]
    spaces: Vec<String>,
    /// Not those rooms: any of the above as a word, such as `empty`, `name=ops-*`, `room=!id`; repeatable.
    #[arg(long = "not", value_name = "CONDITION")]
    not: Vec<String>,
}

impl Which {
    /// Whether any rooms were named, or any sort of them.
    pub(super) fn is_said(&self) -> bool {
        *self != Self::default()
    }

    /// What was said.
    ///
    /// # Errors
    /// [`Error::Config`] for a word that says nothing, and for a list of rooms without any: it must not mean all of them.
    pub(super) fn selectors(&self) -> Result<Selectors, Error> {
        let mut only = Vec::new();
        for (is_said, condition) in [
            (self.empty, Condition::Empty),
            (self.forgotten, Condition::Forgotten),
            (self.left, Condition::Left),
            (self.state_only, Condition::StateOnly),
            (self.encrypted, Condition::Encrypted),
            (self.public, Condition::Public),
            (self.local, Condition::Local),
        ] {
            if is_said {
                only.push(condition);
            }
        }
        let said = |word: &str, value: &str| {
            Condition::parse(&format!("{word}={value}"))
                .map_err(|why| Error::Config(format!("--{word}: {why}")))
        };
        for (word, value) in [
            ("larger-than", &self.larger_than),
            ("inactive", &self.inactive),
            ("messages-older-than", &self.messages_older_than),
        ] {
            if let Some(value) = value {
                only.push(said(word, value)?);
            }
        }
        for (word, values) in [
            ("name", &self.names),
            ("version", &self.versions),
            ("space", &self.spaces),
        ] {
            for value in values {
                only.push(said(word, value)?);
            }
        }
        let mut listed = Vec::new();
        for room in &self.rooms {
            match room.as_str() {
                "-" => listed.extend(of_stdin()?),
                room => listed.push(room.to_owned()),
            }
        }
        if !self.rooms.is_empty() && listed.is_empty() {
            return Err(Error::Config("--room -: no room was given on stdin".into()));
        }
        for room in listed {
            only.push(said("room", &room)?);
        }
        let not = self.not.iter().map(|text| {
            Condition::parse(text).map_err(|why| Error::Config(format!("--not {text}: {why}")))
        });
        Ok(Selectors {
            only,
            not: not.collect::<Result<_, _>>()?,
        })
    }
}

/// Rooms that somebody pipes in, one a line; lines that begin with `//`, and empty ones, are none.
fn of_stdin() -> Result<Vec<String>, Error> {
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map_err(|e| Error::Config(format!("--room -: stdin cannot be read: {e}")))?;
    let lines = text.lines().map(str::trim);
    Ok(lines
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .map(str::to_owned)
        .collect())
}

#[derive(Args)]
pub(super) struct Rooms {
    #[command(flatten)]
    which: Which,
    /// In which order: bytes, state, events, members, activity, oldest, over, name, id.
    #[arg(long, value_name = "BY", default_value = "bytes")]
    sort: String,
    /// Show no more than this many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Lists rooms.
pub(super) fn rooms(config: &Config, wanted: &Rooms, as_json: bool) -> Result<ExitCode, Error> {
    let query = RoomQuery {
        selectors: wanted.which.selectors()?,
        sort: Sort::parse(&wanted.sort).map_err(|why| Error::Config(format!("--sort: {why}")))?,
        limit: wanted.limit,
    };
    // A daemon has counted before; whoever may not ask it counts for themselves.
    let report = match remote::rooms(config, &query) {
        Some(report) => report?,
        None => keeper::rooms(config, &query)?,
    };
    if as_json {
        output::json(&serde_json::to_value(&report).unwrap_or_default());
    } else {
        show(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(report: &RoomReport) {
    output::say(
        "      bytes    events  state rows  here/all  last activity  over policy  flags  room",
    );
    for room in &report.rooms {
        output::say(&line(room));
    }
    let left_out = report.selected.rooms - i64::try_from(report.rooms.len()).unwrap_or(0);
    if left_out > 0 {
        output::say(&format!("… and {left_out} more (--limit)"));
    }
    let (selected, server) = (&report.selected, &report.server);
    output::say(&format!(
        "{} of {}, {} of {}, about {} of {}.",
        selected.rooms,
        count(server.rooms, "room"),
        selected.events,
        count(server.events, "event"),
        size(selected.bytes),
        size(server.bytes),
    ));
    output::say(
        "Bytes are estimated. Flags: e encrypted, p public, s space, l left by all, f forgotten by all, o only state.",
    );
}

fn size(bytes: i64) -> String {
    human(u64::try_from(bytes).unwrap_or(0))
}

fn line(room: &Summary) -> String {
    let day = |at: Option<Millis>| {
        at.map_or_else(
            || "never".to_owned(),
            |at| {
                at.as_date()
                    .split(' ')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            },
        )
    };
    let over = match &room.retention {
        Some(of) if of.events_over > 0 => size(of.estimated_bytes),
        Some(of) if of.lifetime_ms.is_some() => "nothing".to_owned(),
        _ => "-".to_owned(),
    };
    let flags: String = [
        (room.encrypted == Some(true), 'e'),
        (room.public, 'p'),
        (room.space, 's'),
        (room.is_left(), 'l'),
        (room.is_forgotten(), 'f'),
        (room.is_state_only(), 'o'),
    ]
    .iter()
    .filter(|(is_so, _)| *is_so)
    .map(|(_, flag)| *flag)
    .collect();
    let name = [&room.name, &room.alias].into_iter().flatten().next();
    let named = name.map_or_else(String::new, |name| {
        format!("  {}", crate::ids::Escaped(name))
    });
    format!(
        "{:>11}  {:>8}  {:>10}  {:>8}  {:>13}  {:>11}  {flags:<5}  {}{named}",
        size(room.bytes),
        room.events,
        room.state_rows,
        format!("{}/{}", room.joined_local_members, room.joined_members),
        day(room.last_activity_ms),
        over,
        room.room_id,
    )
}
