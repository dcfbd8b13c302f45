//! `roomkeeper demo`: what it does, shown on a made-up homeserver in a temporary directory. Every command that is shown is run,
//! by this same program, and what it says is what it says.

use std::fs::{self, DirBuilder, OpenOptions as FileOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};

use super::output;
use crate::config::{Config, file};
use crate::error::{Context, EXIT_FAILED, Error};
use crate::ids::JobId;
use crate::keeper::recorded_jobs;
use crate::store::db::{Db, OpenOptions};
use crate::store::{sample, schema};

/// Messages in each room of the sample: some seven weeks, one an hour.
const MESSAGES: i64 = 1_200;

/// The sample's server.
const SERVER: &str = "example.org";

/// The longest that the first transaction of a purge is waited for.
const TO_BEGIN: Duration = Duration::from_secs(60);

/// A directory that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Error> {
        let name = format!("roomkeeper-demo-{}", JobId::random());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .context("make a temporary directory")?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A made-up homeserver, and whoever types at it.
struct Demo {
    scratch: Scratch,
    program: PathBuf,
    as_json: bool,
    /// What was typed and answered, for machines.
    answers: Vec<Value>,
    failed: u32,
}

/// Purges, is killed in it and goes on, looks, undoes, deletes, and shows what changed and what did not.
pub(super) fn demo(as_json: bool) -> Result<ExitCode, Error> {
    let scratch = Scratch::new()?;
    let database = scratch.0.join("homeserver.db");
    schema::create(&database)?;
    let config = Config::for_sqlite(&database, SERVER);
    let rooms = sample::fill(
        &mut Db::open(&database, &OpenOptions::default())?,
        SERVER,
        MESSAGES,
        config.clock.now(),
    )?;
    let (garden, workshop) = (&format!("'{}'", rooms[0]), &format!("'{}'", rooms[1]));
    let mut demo = Demo {
        scratch,
        program: std::env::current_exe().context("find this program")?,
        as_json,
        answers: Vec::new(),
        failed: 0,
    };
    demo.write_configuration()?;
    demo.tell(&format!(
        "A made-up homeserver, {SERVER}, with two rooms of {MESSAGES} messages each, one an hour. Below, `roomkeeper` is \
         `roomkeeper -c homeserver.yaml`."
    ));
    demo.run("rooms")?;

    demo.tell("\nWhat would a purge remove? A plan changes nothing.");
    let purge = format!("purge-history {garden} --older-than 7d --delete-local-events");
    demo.run(&format!("{purge} --dry-run"))?;

    demo.tell(
        "\nThe purge itself, in the small transactions that it uses beside a running homeserver. It is killed on the way.",
    );
    let before = demo.events()?;
    demo.kill(&purge)?;
    demo.run("check")?;
    demo.tell("\nThe room is whole all the same, and the purge goes on where it was.");
    demo.run("jobs --resume")?;
    demo.run(&format!("messages {garden} --limit 3"))?;
    let after = demo.events()?;

    demo.tell("\nThat was the wrong room? With an archive a job can be undone; a hold then keeps the room as it is.");
    let job = recorded_jobs(&demo.config()?)?
        .and_then(|jobs| jobs.last().map(|job| job.id.clone()))
        .ok_or_else(|| Error::Bug("the purge is not on record".into()))?;
    demo.run(&format!("restore {job} --yes"))?;
    demo.run(&format!("{purge} --yes"))?;

    demo.tell("\nWhat do the retention policies of this server say?");
    demo.run("retention plan")?;

    demo.tell("\nA room that nobody needs any more: its people are moved out, and its rows go.");
    demo.run(&format!("delete-room {workshop} --block --yes"))?;
    let deleted = demo.events()?;

    demo.tell("\nIs everything whole, and can it be shown what was done?");
    demo.run("check")?;
    demo.run("receipts verify")?;
    demo.finish(&[before, after, deleted])
}

impl Demo {
    /// What the homeserver is configured with, and we.
    fn write_configuration(&self) -> Result<(), Error> {
        let seed = STANDARD_NO_PAD.encode(rand::random::<[u8; 32]>());
        let text = format!(
            "server_name: {SERVER}\n\
             database: {{name: sqlite3, args: {{database: {}}}}}\n\
             signing_key: \"ed25519 a_demo {seed}\"\n\
             retention: {{enabled: true, default_policy: {{max_lifetime: 14d}}}}\n\
             roomkeeper:\n  \
               archive: {{directory: archive, keep: 30d}}\n  \
               batch: {{events: 100, millis: 100}}\n",
            json!(self.database())
        );
        FileOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.file())
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .context("write the sample's configuration")
    }

    fn database(&self) -> PathBuf {
        self.scratch.0.join("homeserver.db")
    }

    fn file(&self) -> PathBuf {
        self.scratch.0.join("homeserver.yaml")
    }

    fn config(&self) -> Result<Config, Error> {
        file::load(&[self.file()], None)
    }

    fn tell(&self, text: &str) {
        if !self.as_json {
            output::say(text);
        }
    }

    /// This program, with these words; they are quoted as a shell quotes ids of rooms.
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.file());
        if self.as_json {
            command.arg("--json");
        }
        let words = words.split(' ').map(|word| word.trim_matches('\''));
        command
            .args(words)
            .current_dir(&self.scratch.0)
            .stdin(Stdio::null());
        command
    }

    /// Shows a command and what it says.
    fn run(&mut self, words: &str) -> Result<(), Error> {
        self.tell(&format!("\n$ roomkeeper {words}"));
        let mut command = self.command(words);
        let said = match self.as_json {
            true => command.output().context("run a command")?,
            false => {
                let status = command.status().context("run a command")?;
                let (stdout, stderr) = (Vec::new(), Vec::new());
                std::process::Output {
                    status,
                    stdout,
                    stderr,
                }
            }
        };
        let code = said.status.code();
        // What is held is refused: that is shown, too.
        let is_expected =
            code == Some(0) || (words.starts_with("purge-history") && code == Some(3));
        self.failed += u32::from(!is_expected);
        if self.as_json {
            let lines = String::from_utf8_lossy(&said.stdout).into_owned();
            let answer: Vec<Value> = serde_json::Deserializer::from_str(&lines)
                .into_iter()
                .map_while(Result::ok)
                .collect();
            self.answers
                .push(json!({"command": words, "exit": code, "answers": answer}));
        }
        Ok(())
    }

    /// Begins a purge and kills it after its first transaction.
    fn kill(&self, words: &str) -> Result<(), Error> {
        self.tell(&format!("\n$ roomkeeper {words} --beside=assume"));
        let count =
            || -> Result<i64, Error> { Ok(self.events()?.iter().map(|(_, events)| events).sum()) };
        let before = count()?;
        let mut child = self
            .command(&format!("{words} --beside=assume --yes"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run a command")?;
        let begun = Instant::now();
        while count()? == before
            && begun.elapsed() < TO_BEGIN
            && child.try_wait().context("wait for a command")?.is_none()
        {
            sleep(Duration::from_millis(5));
        }
        child.kill().context("kill a command")?;
        child.wait().context("wait for a command")?;
        self.tell(&format!(
            "Killed (SIGKILL) after {} events.",
            before - count()?
        ));
        Ok(())
    }

    /// Events of the timeline, by room.
    fn events(&self) -> Result<Vec<(String, i64)>, Error> {
        let db = Db::open(self.database(), &OpenOptions::default())?;
        sample::events_by_room(&db)
    }

    fn finish(self, events: &[Vec<(String, i64)>; 3]) -> Result<ExitCode, Error> {
        let [before, purged, deleted] = events;
        let of = |rooms: &[(String, i64)], name: &str| {
            rooms
                .iter()
                .find(|(room, _)| room == name)
                .map_or(0, |(_, events)| *events)
        };
        if self.as_json {
            output::json(&json!({
                "commands": self.answers, "events_before": before, "events_purged": purged, "events_deleted": deleted,
            }));
        } else {
            output::say("\nEvents by room: before, after the purge, after undo and deletion");
            for (room, count) in before {
                let (purged, deleted) = (of(purged, room), of(deleted, room));
                output::say(&format!("  {room:<22} {count:>5} {purged:>5} {deleted:>5}"));
            }
            output::say(
                "\nThe sample is deleted again. On your own server, begin with a copy (the README says how to make one):\n  \
                 roomkeeper --database copy.db --server-name YOUR.SERVER rooms\n  \
                 roomkeeper --database copy.db --server-name YOUR.SERVER purge-history '!ROOM' --older-than 90d --dry-run",
            );
        }
        Ok(match self.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::from(EXIT_FAILED),
        })
    }
}
