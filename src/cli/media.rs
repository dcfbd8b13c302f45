//! `roomkeeper media`: files that nothing refers to any more.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{finish, output, remote, words};
use crate::config::Config;
use crate::error::Error;
use crate::job::{MediaFate, MediaPlan};
use crate::keeper::{Keeper, MediaRequest, Viewer};
use crate::plural::{count, count_of};
use crate::store::space::human;
use crate::time::{Millis, parse_duration_with_unit};

/// What is done with them.
#[derive(Subcommand)]
pub(super) enum Media {
    /// Say which uploads and copies nothing refers to, or would refer to if a room or its messages went; reads, and takes no lock.
    Plan(PlanOf),
    /// Remove them, with their rows and thumbnails.
    Run(Which),
}

/// Whether media go with their messages.
#[derive(Args)]
pub(super) struct WithMedia {
    /// Also remove media that nothing refers to but the messages that go. Of an encrypted room none goes: nobody can tell which
    /// its messages mean.
    #[arg(long)]
    with_media: bool,
    /// Do so although archives are kept: media are no part of them, and do not come back.
    #[arg(long, requires = "with_media")]
    media_not_archived: bool,
}

impl WithMedia {
    pub(super) fn fate(&self) -> MediaFate {
        // The one does not go without the other.
        MediaFate::of(self.with_media, self.media_not_archived).unwrap_or_default()
    }
}

/// What is said of a plan and of a run.
#[derive(Args)]
struct Manner {
    /// Also what an encrypted message might refer to, where nobody has looked at it for so long either.
    #[arg(long)]
    include_unattributable: bool,
    /// Go on although archives are kept: media are no part of them, and do not come back.
    #[arg(long)]
    media_not_archived: bool,
    /// The clock is right, although nothing says so: for this command.
    #[arg(long)]
    trust_clock: bool,
}

impl Manner {
    fn request(&self, older_than: &str, config: &Config) -> Result<MediaRequest, Error> {
        let request = MediaRequest::older_than(age(older_than)?, config.clock.now());
        Ok(MediaRequest {
            include_unattributable: self.include_unattributable,
            media_not_archived: self.media_not_archived,
            ..request.map_err(wrong_age)?
        })
    }
}

fn wrong_age(said: String) -> Error {
    Error::Config(format!("--older-than: {said}"))
}

fn age(older_than: &str) -> Result<Millis, Error> {
    parse_duration_with_unit(older_than).map_err(wrong_age)
}

#[derive(Args)]
pub(super) struct PlanOf {
    /// A room, by its id or an alias: what would go with it, or with those of its messages that are so old.
    #[arg(conflicts_with = "include_unattributable")]
    room: Option<String>,
    /// Only what was uploaded, or fetched from another server, so long ago: 90d, 1y, …; of a room the messages that are so old.
    #[arg(long, value_name = "DURATION", required_unless_present = "room")]
    older_than: Option<String>,
    #[command(flatten)]
    manner: Manner,
}

impl PlanOf {
    fn plan(&self, mut config: Config) -> Result<MediaPlan, Error> {
        config.check_clock &= !self.manner.trust_clock;
        let older_than = self.older_than.as_deref();
        let Some(words) = &self.room else {
            let request = (self.manner).request(older_than.unwrap_or_default(), &config)?;
            return Viewer::open(config)?.plan_media(&request);
        };
        let room = words::known_room(&config, words)?;
        let age = older_than.map(age).transpose()?;
        let fate = MediaFate::of(true, self.manner.media_not_archived).unwrap_or_default();
        Viewer::open(config)?.plan_media_of_room(&room, age, fate)
    }
}

#[derive(Args)]
pub(super) struct Which {
    /// Only what was uploaded, or fetched from another server, so long ago: 90d, 1y, …
    #[arg(long, value_name = "DURATION")]
    older_than: String,
    #[command(flatten)]
    manner: Manner,
}

/// Does it, by the daemon where one is at work.
pub(super) fn media(
    mut config: Config,
    wanted: &Media,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let which = match wanted {
        Media::Plan(of) => {
            show(&of.plan(config)?, as_json);
            return Ok(ExitCode::SUCCESS);
        }
        Media::Run(which) => which,
    };
    config.check_clock &= !which.manner.trust_clock;
    let request = which.manner.request(&which.older_than, &config)?;
    let question = "remove every file that nothing refers to any more and that is so old? `media plan` says which";
    words::ask(question, is_said, as_json)?;
    let asked = config.clone();
    let keeper = match Keeper::open(config) {
        Err(Error::LedgerLocked(_)) => {
            return remote::remove_media(&asked, &which.older_than, &request, as_json);
        }
        keeper => keeper?,
    };
    let id = keeper.remove_media(&request)?;
    finish(&keeper, &id, as_json)
}

fn bytes(n: i64) -> String {
    human(n.unsigned_abs())
}

fn show(plan: &MediaPlan, as_json: bool) {
    if as_json {
        output::json(&serde_json::to_value(plan).unwrap_or_default());
        return;
    }
    files(plan);
    output::say("Nothing was changed.");
}

/// Which media would go, and which stay.
pub(super) fn files(plan: &MediaPlan) {
    for file in &plan.largest {
        let who = file
            .user_id
            .as_deref()
            .map_or(String::new(), |user| format!("  by {user}"));
        output::say(&format!(
            "  {}  {}{who}  {}",
            file.uri,
            bytes(file.bytes),
            file.created_ms.as_date()
        ));
    }
    let untold = plan.files - i64::try_from(plan.largest.len()).unwrap_or(i64::MAX);
    if untold > 0 {
        output::say(&format!("  and {}", count(untold, "smaller file")));
    }
    output::say(&format!(
        "{} of {} would go, {} of other servers among them, with {}: {}",
        plan.files,
        count(plan.stays.files_looked_at, "file"),
        count_of(plan.remote_files, "copy", "copies"),
        count(plan.thumbnails, "thumbnail"),
        bytes(plan.bytes)
    ));
    plan.stays
        .what_stays()
        .iter()
        .for_each(|line| output::say(line));
    for note in &plan.notes {
        output::say(&format!("Note: {note}"));
    }
}
