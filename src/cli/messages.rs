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
use crate::point::{Direction, RoomToken, StreamToken};
use crate::time::{Millis, When, parse_when};

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
    /// Go on from this token, which a page before named; or from what was received by then: 2026-01-01, 2026-01-01T12:00Z, or so long ago: 90d.
    #[arg(long, value_name = "TOKEN_OR_TIME")]
    from: Option<String>,
    /// Go no further than this token, or this time.
    #[arg(long, value_name = "TOKEN_OR_TIME")]
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
            from: None,
            to: None,
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

/// Where a page begins or ends.
enum Place {
    Token(StreamToken),
    Time(Millis),
}

impl Place {
    fn read(option: &str, text: Option<&str>, now: Millis) -> Result<Option<Self>, Error> {
        let Some(text) = text else { return Ok(None) };
        if let Ok(token) = text.parse() {
            return Ok(Some(Self::Token(token)));
        }
        match parse_when(text) {
            Ok(When::At(moment)) => Ok(Some(Self::Time(moment))),
            Ok(When::Ago(age)) => Ok(Some(Self::Time(now - age))),
            Err(said) => Err(Error::Config(format!(
                "{option}: '{text}' is not a pagination token, and no time either: {said}"
            ))),
        }
    }

    fn token(self, viewer: &Viewer) -> Result<StreamToken, Error> {
        Ok(match self {
            Self::Token(token) => token,
            Self::Time(moment) => StreamToken::new(RoomToken::Live(viewer.arrival_before(moment)?)),
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
    let mut request = wanted.request(&config)?;
    let now = config.clock.now();
    let from = Place::read("--from", wanted.from.as_deref(), now)?;
    let to = Place::read("--to", wanted.to.as_deref(), now)?;
    let reader = match &wanted.user {
        Some(user) if !user.starts_with('@') || !user.contains(':') => {
            return Err(Error::Config(format!(
                "--as: '{user}' is no user: say the whole id, such as @alice:{}",
                config.server_name
            )));
        }
        Some(user) => Reader::user(&UserId::from(user.as_str())),
        None => Reader::Admin,
    };
    let room = words::known_room(&config, &wanted.room)?;
    // A snapshot needs no lock, and so no daemon is in the way.
    let viewer = Viewer::open(config)?;
    request.from = from.map(|from| from.token(&viewer)).transpose()?;
    request.to = to.map(|to| to.token(&viewer)).transpose()?;
    let page = viewer.messages(&room, &reader, &request)?;
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
