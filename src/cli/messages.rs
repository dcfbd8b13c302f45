//! `roomkeeper messages`: look at a room, as anybody sees it, before something happens to it.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{output, timeline, words};
use crate::config::Config;
use crate::error::Error;
use crate::ids::UserId;
use crate::keeper::Viewer;
use crate::messages::{Filter, Format, Page, PageRequest, Reader};
use crate::plural::count;
use crate::point::{Direction, StreamToken};

/// Which way to page.
#[derive(Clone, Copy, ValueEnum)]
enum Way {
    /// From the newest backwards.
    B,
    /// From the oldest forwards.
    F,
}

#[derive(Args)]
pub(super) struct Messages {
    /// The room's id, or an alias of it.
    room: String,
    /// b: the newest first; f: the oldest first.
    #[arg(long, value_name = "b|f", default_value = "b")]
    dir: Way,
    /// Go on from this token, which a page before named.
    #[arg(long, value_name = "TOKEN")]
    from: Option<String>,
    /// Go no further than this token.
    #[arg(long, value_name = "TOKEN")]
    to: Option<String>,
    /// At most this many events, of 1000.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Only events that pass a room event filter, as /messages takes it.
    #[arg(long, value_name = "JSON")]
    filter: Option<String>,
    /// What this user sees; without it, everything but what was rejected.
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
}

impl Messages {
    fn request(&self, config: &Config) -> Result<PageRequest, Error> {
        let token = |name: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => text
                .parse::<StreamToken>()
                .map(Some)
                .map_err(|_| Error::Config(format!("--{name} '{text}' is not a pagination token"))),
        };
        let filter = match &self.filter {
            Some(text) => Filter::parse(text, config.relation_type_filters)
                .map_err(|e| Error::Config(format!("--filter: {e}")))?,
            None => None,
        };
        let is_federation = filter.as_ref().is_some_and(Filter::is_federation_format);
        Ok(PageRequest {
            direction: match self.dir {
                Way::B => Direction::Backwards,
                Way::F => Direction::Forwards,
            },
            from: token("from", &self.from)?,
            to: token("to", &self.to)?,
            limit: self.limit,
            filter,
            format: if is_federation {
                Format::Federation
            } else {
                Format::Client
            },
        })
    }
}

/// Shows a page: for people a timeline, oldest at the top; for machines a line for each event in the order that was
/// asked for, and a last one with the tokens.
pub(super) fn messages(
    config: Config,
    wanted: &Messages,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let request = wanted.request(&config)?;
    let reader = match &wanted.user {
        Some(user) => Reader::user(&UserId::from(user.as_str())),
        None => Reader::Admin,
    };
    let room = words::known_room(&config, &wanted.room)?;
    // A snapshot needs no lock, and so no daemon is in the way.
    let page = Viewer::open(config)?.messages(&room, &reader, &request)?;
    if as_json {
        for event in page.state.iter().chain(&page.chunk) {
            output::json_text(event.as_str());
        }
        output::json(&tokens(&page));
    } else {
        show(&page, request.direction);
    }
    Ok(ExitCode::SUCCESS)
}

fn tokens(page: &Page) -> Value {
    let mut tokens = json!({"start": page.start.to_string()});
    if let Some(end) = &page.end {
        tokens["end"] = end.to_string().into();
    }
    if page.damaged > 0 {
        tokens["damaged"] = page.damaged.into();
    }
    tokens
}

fn show(page: &Page, direction: Direction) {
    let events = page.chunk.iter();
    let mut lines: Vec<String> = events
        .map(|event| timeline::line(&event.outline()))
        .collect();
    if direction == Direction::Backwards {
        lines.reverse();
    }
    for line in &lines {
        output::say(line);
    }
    match (&page.end, direction) {
        (Some(end), Direction::Backwards) => output::say(&format!("Older ones: --from {end}")),
        (Some(end), Direction::Forwards) => {
            output::say(&format!("Newer ones: --dir f --from {end}"))
        }
        (None, _) if lines.is_empty() => output::say("There is nothing to see."),
        (None, _) => {}
    }
    if page.damaged > 0 {
        output::say(&format!(
            "damaged and left out: {}.",
            count(page.damaged as u64, "event")
        ));
    }
}
