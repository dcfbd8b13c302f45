//! One-shot commands while a daemon owns the ledger: they ask the daemon, over its socket, and say so.

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::jobs::Action;
use super::output;
use super::serve::{Owner, owner_file};
use crate::client::{Client, Reply};
use crate::config::Config;
use crate::deletion::Request;
use crate::error::{Error, HELD, PLAN_DRIFTED};
use crate::hold::Hold;
use crate::ids::RoomId;
use crate::job::MediaFate;
use crate::jobs::ledger::{JobRecord, State};
use crate::keeper::repair::RepairRequest;
use crate::keeper::{
    self, CompressRequest, MediaRequest, PurgeOptions, RoomQuery, RoomReport, SetAction,
    SetRequest, Viewer,
};
use crate::plan_hash::PlanHash;
use crate::point::PurgePoint;
use crate::policy::LifetimeRange;
use crate::receipt::{Entry, Proof, Verified};
use crate::time::Millis;

/// How often a running job is asked after.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// What a daemon answers with, besides `M_UNKNOWN`.
const ERRCODES: &[&str] = &[
    "M_BAD_JSON",
    "M_FORBIDDEN",
    "M_INVALID_PARAM",
    "M_LIMIT_EXCEEDED",
    "M_MISSING_PARAM",
    "M_MISSING_TOKEN",
    "M_NOT_FOUND",
    "M_NOT_JSON",
    "M_TOO_LARGE",
    "M_UNKNOWN_TOKEN",
    "M_UNRECOGNIZED",
    HELD,
    PLAN_DRIFTED,
];

/// The daemon that owns the ledger; says that it is asked.
fn daemon(config: &Config) -> Result<Client, Error> {
    let (client, pid) = owner_of(config)?;
    output::note(&format!("a daemon (process {pid}) is at work; asking it"));
    Ok(client)
}

fn owner_of(config: &Config) -> Result<(Client, u32), Error> {
    let owned = Error::LedgerLocked(config.ledger.clone());
    let Ok(text) = fs::read_to_string(owner_file(&config.ledger)) else {
        return Err(owned);
    };
    let Ok(owner) = serde_json::from_str::<Owner>(&text) else {
        return Err(owned);
    };
    // What is asked of it would be done to another database than the one that was named.
    if owner.database != keeper::identity_of(config)? {
        return Err(Error::Refused(format!(
            "a daemon (process {}) owns the ledger {} and works on another database: say another ledger \
             (roomkeeper.ledger) for this one",
            owner.pid,
            config.ledger.display()
        )));
    }
    match owner.sockets.first() {
        Some(socket) => Ok((Client::unix(socket), owner.pid)),
        None => Err(Error::Refused(format!(
            "a daemon (process {}) is at work and listens on no Unix socket: ask it over HTTP",
            owner.pid
        ))),
    }
}

fn answer(reply: Result<Reply, crate::client::ClientError>) -> Result<Value, Error> {
    let reply = reply.map_err(|e| Error::Refused(e.to_string()))?;
    if (200..300).contains(&reply.status) {
        return Ok(reply.body);
    }
    let word = |key| reply.body.get(key).and_then(Value::as_str);
    let errcode = word("errcode").unwrap_or_default();
    Err(Error::Remote {
        status: reply.status,
        errcode: ERRCODES
            .iter()
            .find(|known| **known == errcode)
            .unwrap_or(&"M_UNKNOWN"),
        code: word("error_code").map(str::to_owned),
        said: word("error").unwrap_or("no reason given").to_owned(),
    })
}

fn quoted(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// What the daemon says of rooms; nothing where there is none that can be asked, and whoever asks can look themselves.
pub(super) fn rooms(config: &Config, query: &RoomQuery) -> Option<Result<RoomReport, Error>> {
    let text = fs::read_to_string(owner_file(&config.ledger)).ok()?;
    let owner: Owner = serde_json::from_str(&text).ok()?;
    if owner.database != keeper::identity_of(config).ok()? {
        return None;
    }
    let mut parameters = vec![("sort".to_owned(), query.sort.word().to_owned())];
    if let Some(limit) = query.limit {
        parameters.push(("limit".into(), limit.to_string()));
    }
    for (word, conditions) in [
        ("only", &query.selectors.only),
        ("not", &query.selectors.not),
    ] {
        for condition in conditions {
            parameters.push((word.into(), condition.to_string()));
        }
    }
    let parameters: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", quoted(value)))
        .collect();
    let path = format!("/_roomkeeper/v1/rooms?{}", parameters.join("&"));
    // Its socket may be somebody else's, or it may have ended without a word.
    let reply = Client::unix(owner.sockets.first()?).get(&path).ok()?;
    let report = answer(Ok(reply)).and_then(|body| {
        serde_json::from_value(body)
            .map_err(|e| Error::Bug(format!("the daemon's answer is no list of rooms: {e}")))
    });
    Some(report)
}

/// Has media go with their messages, where they do: a daemon that does not know of them is not asked for anything new.
fn say_media(fate: MediaFate, body: &mut Map<String, Value>) {
    if fate.goes() {
        body.insert("with_media".into(), true.into());
    }
    if fate == MediaFate::GoUnarchived {
        body.insert("media_not_archived".into(), true.into());
    }
}

/// Has the daemon purge, and waits for it.
pub(super) fn purge_history(
    config: &Config,
    room: &RoomId,
    point: &PurgePoint,
    options: PurgeOptions,
    now: Millis,
    plan: Option<PlanHash>,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let client = daemon(config)?;
    let mut body = Map::new();
    body.insert(
        "delete_local_events".into(),
        options.delete_local_events.into(),
    );
    if options.strict {
        body.insert("strict".into(), true.into());
    }
    say_media(options.media, &mut body);
    if let Some(plan) = plan {
        body.insert("plan".into(), plan.to_string().into());
    }
    match point {
        PurgePoint::BeforeEvent(event) => {
            body.insert("purge_up_to_event_id".into(), event.as_str().into())
        }
        PurgePoint::BeforeTs(ts) => body.insert("purge_up_to_ts".into(), ts.0.into()),
        PurgePoint::OlderThan(age) => body.insert("purge_up_to_ts".into(), (now - *age).0.into()),
        PurgePoint::BeforeToken(token) => {
            body.insert("purge_up_to_token".into(), token.as_str().into())
        }
    };
    let path = format!("/_synapse/admin/v1/purge_history/{}", quoted(room.as_str()));
    let started = answer(client.post(&path, &body.into()))?;
    let id = started
        .get("purge_id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    follow(&client, &id, as_json)
}

/// Has the daemon delete a room, and waits for it.
pub(super) fn delete_room(
    config: &Config,
    room: &RoomId,
    request: &Request,
    plan: Option<PlanHash>,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let client = daemon(config)?;
    // As without a daemon. Whoever may ask it may not be allowed to read the database; then its notes tell afterwards.
    let viewer = Viewer::open(config.clone());
    let said = viewer.and_then(|viewer| viewer.warnings_before_deletion(room, request));
    let said = said.unwrap_or_default();
    for note in &said {
        output::note(note);
    }
    let mut body = json!({
        "block": request.block, "purge": request.purge, "force_purge": request.force_purge,
        "new_room_user_id": request.new_room_user_id, "room_name": request.room_name, "message": request.message,
        "plan": plan,
    });
    if let Some(body) = body.as_object_mut() {
        say_media(request.media, body);
    }
    let path = format!("/_synapse/admin/v2/rooms/{}", quoted(room.as_str()));
    let started = answer(client.request("DELETE", &path, Some(&body)))?;
    let id = started.get("delete_id").and_then(Value::as_str);
    let job = attend(&client, id.unwrap_or_default(), as_json)?;
    Ok(super::ended(&job, &said, as_json))
}

/// Has the daemon purge or delete a set of rooms, and waits for it; nothing where no room is meant.
pub(super) fn start_set(
    config: &Config,
    request: &SetRequest,
    plan: Option<PlanHash>,
    as_json: bool,
) -> Result<Option<ExitCode>, Error> {
    let client = daemon(config)?;
    let mut body = match &request.action {
        SetAction::PurgeHistory {
            point,
            delete_local_events,
            ..
        } => {
            let mut body = json!({
                "action": "purge_history", "delete_local_events": delete_local_events,
            });
            match point {
                PurgePoint::OlderThan(age) => body["older_than"] = format!("{}ms", age.0).into(),
                point => {
                    let before = point.keep_received_from(config.clock.now());
                    body["purge_up_to_ts"] = before.map(|ts| ts.0).into();
                }
            }
            body
        }
        SetAction::DeleteRoom(request) => json!({
            "action": "delete_room", "block": request.block, "purge": request.purge,
            "force_purge": request.force_purge, "new_room_user_id": request.new_room_user_id,
            "room_name": request.room_name, "message": request.message,
        }),
    };
    let fate = match &request.action {
        SetAction::PurgeHistory { media, .. } => *media,
        SetAction::DeleteRoom(request) => request.media,
    };
    if let Some(body) = body.as_object_mut() {
        say_media(fate, body);
    }
    body["selectors"] = serde_json::to_value(&request.selectors).unwrap_or_default();
    body["plan"] = json!(plan);
    body["all_rooms"] = request.all_rooms.into();
    body["rooms"] = serde_json::to_value(&request.among).unwrap_or_default();
    let started = answer(client.post("/_roomkeeper/v1/sets", &body))?;
    match started.get("job_id").and_then(Value::as_str) {
        Some(id) => follow(&client, id, as_json).map(Some),
        None => Ok(None),
    }
}

/// Has the daemon sweep state groups, and waits for it.
pub(super) fn sweep_state(config: &Config, as_json: bool) -> Result<ExitCode, Error> {
    let client = daemon(config)?;
    let started = answer(client.post("/_roomkeeper/v1/state/sweep", &json!({})))?;
    let id = started.get("job_id").and_then(Value::as_str);
    follow(&client, id.unwrap_or_default(), as_json)
}

/// Has the daemon store states in fewer rows, and waits for it.
pub(super) fn compress_state(
    config: &Config,
    request: &CompressRequest,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let client = daemon(config)?;
    let body = serde_json::to_value(request).unwrap_or_default();
    let started = answer(client.post("/_roomkeeper/v1/state/compress", &body))?;
    let id = started.get("job_id").and_then(Value::as_str);
    follow(&client, id.unwrap_or_default(), as_json)
}

/// Has the daemon remove media, and waits for it.
pub(super) fn remove_media(
    config: &Config,
    older_than: &str,
    request: &MediaRequest,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let client = daemon(config)?;
    let body = json!({
        "older_than": older_than, "include_unattributable": request.include_unattributable,
        "media_not_archived": request.media_not_archived,
    });
    let started = answer(client.post("/_roomkeeper/v1/media", &body))?;
    let id = started.get("job_id").and_then(Value::as_str);
    follow(&client, id.unwrap_or_default(), as_json)
}

/// Has the daemon mend what a check finds, and waits for it.
pub(super) fn repair(
    config: &Config,
    request: &RepairRequest,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let client = daemon(config)?;
    let body = json!({ "rules": request.rules });
    let started = answer(client.post("/_roomkeeper/v1/repair", &body))?;
    let id = started.get("job_id").and_then(Value::as_str);
    let job = attend(&client, id.unwrap_or_default(), as_json)?;
    Ok(super::repair::ended(&job, as_json))
}

/// A daemon on this database that can be asked.
fn reachable(config: &Config) -> Option<Client> {
    let text = fs::read_to_string(owner_file(&config.ledger)).ok()?;
    let owner: Owner = serde_json::from_str(&text).ok()?;
    let client = Client::unix(owner.sockets.first()?);
    let is_it = owner.database == keeper::identity_of(config).ok()?;
    let answers = || {
        client
            .get("/_roomkeeper/v1/holds")
            .is_ok_and(|r| r.status == 200)
    };
    (is_it && answers()).then_some(client)
}

fn hold_of(answered: Result<Value, Error>) -> Result<Hold, Error> {
    serde_json::from_value(answered?)
        .map_err(|e| Error::Bug(format!("the daemon's answer is no hold: {e}")))
}

/// Has a daemon lay a hold; nothing where none can be asked.
pub(super) fn add_hold(config: &Config, hold: &Hold) -> Option<Result<Hold, Error>> {
    let client = reachable(config)?;
    let mut body = json!(hold);
    if let Some(members) = body.as_object_mut() {
        members.remove("at_ms");
    }
    Some(hold_of(answer(client.post("/_roomkeeper/v1/holds", &body))))
}

/// Has a daemon release a hold; nothing where none can be asked.
pub(super) fn release_hold(
    config: &Config,
    name: &str,
    reason: &str,
) -> Option<Result<Hold, Error>> {
    let client = reachable(config)?;
    let path = format!("/_roomkeeper/v1/holds/{}/release", quoted(name));
    let body = json!({ "reason": reason });
    Some(hold_of(answer(client.post(&path, &body))))
}

/// Has the daemon block a room, or unblock it.
pub(super) fn set_block(config: &Config, room: &RoomId, block: bool) -> Result<(), Error> {
    let path = format!("/_synapse/admin/v1/rooms/{}/block", quoted(room.as_str()));
    let body = json!({"block": block});
    answer(daemon(config)?.request("PUT", &path, Some(&body))).map(drop)
}

/// Shows the progress of the daemon's job until it has ended.
fn follow(client: &Client, id: &str, as_json: bool) -> Result<ExitCode, Error> {
    Ok(super::ended(&attend(client, id, as_json)?, &[], as_json))
}

/// Has the daemon run retention, one range after the other, and waits for it.
pub(super) fn retention(
    config: &Config,
    ranges: &[LifetimeRange],
    policies: &[String],
    plan: Option<PlanHash>,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let client = daemon(config)?;
    let mut runs = Vec::new();
    for range in ranges {
        let bound = |bound: Option<Millis>| bound.map(Millis::in_words);
        let body = json!({
            "shortest_max_lifetime": bound(range.shortest), "longest_max_lifetime": bound(range.longest),
            "plan": plan,
        });
        let started = answer(client.post("/_roomkeeper/v1/retention", &body))?;
        let id = started["job_ids"][0].as_str().unwrap_or_default();
        runs.push(attend(&client, id, as_json)?);
    }
    for name in policies {
        let body = json!({ "policy": name });
        let started = answer(client.post("/_roomkeeper/v1/retention", &body))?;
        match started["job_ids"][0].as_str() {
            Some(id) => runs.push(attend(&client, id, as_json)?),
            None => super::policies::takes_nothing(name, as_json),
        }
    }
    Ok(super::retention::ended(&runs, as_json))
}

/// Waits for one of the daemon's jobs.
fn attend(client: &Client, id: &str, as_json: bool) -> Result<JobRecord, Error> {
    let mut bar = output::Bar::new(as_json);
    let stop = super::signals()?;
    loop {
        if stop.load(Ordering::SeqCst) {
            bar.clear();
            output::warn(&format!(
                "not waiting any longer; the daemon goes on with it (`roomkeeper jobs --cancel {id}` ends it)"
            ));
            return Err(Error::Stopping);
        }
        let job = answer(client.get(&format!("/_roomkeeper/v1/jobs/{}", quoted(id))))?;
        let job: JobRecord = serde_json::from_value(job)
            .map_err(|e| Error::Bug(format!("the daemon's answer is no job: {e}")))?;
        match job.state {
            State::Paused => {
                bar.clear();
                output::warn(&format!(
                    "not waiting any longer: the job is paused (`roomkeeper jobs --continue {id}` goes on with it)"
                ));
                return Err(Error::Stopping);
            }
            State::Queued | State::Running | State::Waiting => bar.show(&job),
            State::Complete | State::Failed => {
                bar.clear();
                return Ok(job);
            }
        }
        thread::sleep(ASK_EVERY);
    }
}

/// Has the daemon do something with a job, or with all that wait.
pub(super) fn act(config: &Config, action: &Action<'_>) -> Result<(), Error> {
    let client = daemon(config)?;
    match action {
        Action::Resume => {
            let answered = answer(client.post("/_roomkeeper/v1/jobs/resume", &json!({})))?;
            let resumed = answered["job_ids"].as_array().map_or(0, Vec::len);
            if resumed == 0 {
                output::note(
                    "nothing is to be resumed: the daemon has taken up what was interrupted",
                );
            }
        }
        Action::To(word, id) => {
            let path = format!("/_roomkeeper/v1/jobs/{}/{word}", quoted(id));
            answer(client.post(&path, &json!({})))?;
        }
    }
    Ok(())
}

/// The jobs that the daemon has on record. `is_said`: that it is asked was told already.
pub(super) fn jobs(config: &Config, is_said: bool) -> Result<Vec<JobRecord>, Error> {
    let client = match is_said {
        true => owner_of(config)?.0,
        false => daemon(config)?,
    };
    let listed = answer(client.get("/_roomkeeper/v1/jobs"))?;
    serde_json::from_value(listed.get("jobs").cloned().unwrap_or_default())
        .map_err(|e| Error::Bug(format!("the daemon's answer is no list of jobs: {e}")))
}

/// The receipts of the daemon that has the ledger.
pub(super) struct ReceiptsOfDaemon(Client);

impl ReceiptsOfDaemon {
    /// Its daemon, which is asked without a word: somebody may write what comes into a file.
    pub(super) fn of(config: &Config) -> Result<Self, Error> {
        Ok(Self(owner_of(config)?.0))
    }

    fn ask(&self, path: &str) -> Result<Value, Error> {
        answer(self.0.get(&format!("/_roomkeeper/v1/receipts{path}")))
    }

    pub(super) fn page(&self, from: u64, most: usize) -> Result<Vec<Entry>, Error> {
        let page = self.ask(&format!("?from={from}&limit={most}"))?;
        understood(page.get("receipts"))
    }

    pub(super) fn of_reference(&self, reference: &str) -> Result<Vec<Entry>, Error> {
        let found = self.ask(&format!("/{}", quoted(reference)))?;
        understood(found.get("receipts"))
    }

    pub(super) fn prove(&self, reference: &str) -> Result<Vec<Proof>, Error> {
        let found = self.ask(&format!("/{}/proof", quoted(reference)))?;
        understood(found.get("proofs"))
    }

    pub(super) fn verify(&self) -> Result<Verified, Error> {
        understood(Some(&self.ask("/verify")?))
    }

    /// A checkpoint of now, and of how many receipts it is.
    pub(super) fn checkpoint(&self) -> Result<(String, u64), Error> {
        let page = self.ask("?limit=0")?;
        let note: String = understood(page.get("checkpoint"))?;
        match crate::receipt::note::claimed(&note) {
            Some((size, _)) => Ok((note, size)),
            None => Err(Error::Bug("the daemon's answer is no checkpoint".into())),
        }
    }

    pub(super) fn forget(&self, reference: &str, reason: &str) -> Result<Vec<u64>, Error> {
        let path = format!("/_roomkeeper/v1/receipts/{}/forget", quoted(reference));
        let forgotten = answer(self.0.post(&path, &json!({ "reason": reason })))?;
        understood(forgotten.get("forgotten"))
    }
}

fn understood<T: serde::de::DeserializeOwned>(said: Option<&Value>) -> Result<T, Error> {
    serde_json::from_value(said.cloned().unwrap_or_default())
        .map_err(|e| Error::Bug(format!("the daemon's answer is not understood: {e}")))
}
