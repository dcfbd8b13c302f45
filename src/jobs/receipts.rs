//! Receipts in the ledger: each is written in the transaction that notes the end it tells of, so that there is none without
//! the other; and checkpoints of their tree in a file beside it.
//!
//! The tree's whole subtrees are kept as rows, so that an append reads and writes no more rows than the tree is high.
//! A checkpoint is signed with a key that is made when the first receipt is, in a file beside the ledger that nobody else
//! can read; the public key lies beside it for everybody. What cannot be signed is a receipt all the same, and the
//! next checkpoint covers it.

mod files;
mod inbox;
mod offline;

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value, json};

use self::files::{Notes, append, key, last_checkpoint, take_torn_away, told};
pub use self::files::{checkpoints_of, public_keys};
pub use self::inbox::leave;
pub use self::offline::ReceiptReader;
use super::ledger::{Ended, Ledger, RECORD, record};
use super::record::JobRecord;
use crate::error::{Chain, Context, Error};
use crate::ids::JobId;
use crate::receipt::note::{Checkpoint, NoteKey, PublicKey};
use crate::receipt::tree::{self, Frontier, Hash};
use crate::receipt::{self, Draft, Entry, Proof, Verified};
use crate::time::Millis;

/// Receipts of a page, where many are read.
const PAGE: usize = 500;

const NEXT: &str = "SELECT coalesce(max(seq), -1) + 1 FROM receipt";

const IDENTITY: &str = "SELECT identity FROM subject_database";

const INSERT: &str = "INSERT INTO receipt (seq, about, leaf, line) VALUES ($1, $2, $3, $4)";

const LEAF: &str = "SELECT leaf FROM receipt WHERE seq = $1";

const SUBTREE: &str = "SELECT hash FROM receipt_tree WHERE level = $1 AND place = $2";

const PUT_SUBTREE: &str = "
    INSERT INTO receipt_tree (level, place, hash) VALUES ($1, $2, $3)
        ON CONFLICT (level, place) DO UPDATE SET hash = excluded.hash";

const ENTRIES: &str = "SELECT seq, leaf, line FROM receipt WHERE seq >= $1 ORDER BY seq LIMIT $2";

const OF_REFERENCE: &str = "SELECT seq, leaf, line FROM receipt WHERE about = $1 ORDER BY seq";

const FORGET: &str = "UPDATE receipt SET line = NULL, about = NULL WHERE seq = $1";

/// The receipts of an open ledger, whoever owns it.
#[derive(Clone, Copy)]
struct Receipts<'a>(&'a Connection);

impl Receipts<'_> {
    fn size(self) -> rusqlite::Result<u64> {
        let size: i64 = self.0.query_row(NEXT, [], |row| row.get(0))?;
        Ok(size.unsigned_abs())
    }

    fn subtree(self, level: u32, place: u64) -> rusqlite::Result<Hash> {
        let place = place as i64;
        match level {
            0 => self
                .0
                .prepare_cached(LEAF)?
                .query_row([place], |row| row.get(0)),
            _ => self
                .0
                .prepare_cached(SUBTREE)?
                .query_row(params![level, place], |row| row.get(0)),
        }
    }

    fn root(self, size: u64) -> rusqlite::Result<Hash> {
        tree::root(size, &mut |level, place| self.subtree(level, place))
    }

    fn page(self, from: u64, most: usize) -> rusqlite::Result<Vec<Entry>> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.0
            .prepare_cached(ENTRIES)?
            .query_map(params![from as i64, most], entry)?
            .collect()
    }

    fn of(self, reference: &str) -> rusqlite::Result<Vec<Entry>> {
        self.0
            .prepare_cached(OF_REFERENCE)?
            .query_map([reference], entry)?
            .collect()
    }

    /// Writes one; in a transaction.
    fn append(self, draft: &Draft) -> rusqlite::Result<u64> {
        let seq = self.size()?;
        let database: Option<String> = self
            .0
            .query_row(IDENTITY, [], |row| row.get(0))
            .optional()?;
        let line = draft
            .line(seq, database.as_deref())
            .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
        let mut hash = tree::leaf(line.as_bytes());
        self.0
            .prepare_cached(INSERT)?
            .execute(params![seq as i64, draft.reference, hash, line])?;
        let mut level = 0;
        while (seq >> level) & 1 == 1 {
            let left = self.subtree(level, (seq >> level) - 1)?;
            hash = tree::node(&left, &hash);
            level += 1;
            self.0.prepare_cached(PUT_SUBTREE)?.execute(params![
                level,
                (seq >> level) as i64,
                hash
            ])?;
        }
        Ok(seq)
    }
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        seq: row.get::<_, i64>(0)?.unsigned_abs(),
        leaf: row.get(1)?,
        line: row.get(2)?,
    })
}

/// Notes the end of a job, in the transaction that writes it down. A part of a job that has removed nothing has nothing to
/// tell: its job tells of it.
pub(super) fn note_end(
    conn: &Connection,
    id: &JobId,
    ended: Ended<'_>,
    is_part: bool,
) -> rusqlite::Result<()> {
    let job = conn
        .query_row(&format!("{RECORD} WHERE id = $1"), [id.as_str()], record)
        .optional()?;
    let Some(job) = job else {
        return Ok(());
    };
    if is_part && !has_removed(&job.progress) {
        return Ok(());
    }
    Receipts(conn).append(&of_job(&job, ended)).map(drop)
}

fn has_removed(progress: &Value) -> bool {
    let is_some = |value: &Value| value.as_i64().is_some_and(|n| n > 0);
    let rows = progress["rows_removed"].as_object();
    rows.is_some_and(|rows| rows.values().any(is_some))
        || is_some(&progress["state_groups_freed"])
        || is_some(&progress["state_groups_marked"])
}

/// Who asks for the retention that is configured.
pub const SCHEDULED: &str = "retention of the configuration";

/// Of what was asked, what is neither somebody's words nor told elsewhere in a receipt.
const ASKED: &[&str] = &[
    "delete_local_events",
    "keep_received_after",
    "strict",
    "block",
    "purge",
    "force_purge",
    "set",
];

/// Of what was done, the counts.
const AFTER: &[&str] = &[
    "events_done",
    "events_deleted",
    "local_messages_kept",
    "extremities_kept",
    "rows_removed",
    "state_groups_freed",
    "state_groups_marked",
    "rooms_planned",
    "rooms_purged",
    "rooms_done",
    "rooms_skipped",
    "rooms_failed",
    "rooms_left_alone",
    "people_moved",
];

const POLICY: &[&str] = &[
    "shortest_max_lifetime",
    "longest_max_lifetime",
    "keep_received_after",
];

fn members_of(value: &Value, names: &[&str]) -> Map<String, Value> {
    let mut found = Map::new();
    for name in names {
        if let Some(value) = value.get(*name).filter(|value| !value.is_null()) {
            found.insert((*name).to_owned(), value.clone());
        }
    }
    found
}

fn of_job(job: &JobRecord, ended: Ended<'_>) -> Draft {
    // Those of a room of a set, and of a set that deletes, lie one deeper.
    let asked = ["purge", "deletion", "request"]
        .iter()
        .find_map(|name| job.params.get(*name).filter(|value| value.is_object()))
        .unwrap_or(&job.params);
    let mut options = members_of(&job.params, &["set"]);
    options.extend(members_of(asked, ASKED));
    let who = match (&job.asked_by, &job.params["scheduled"], options.get("set")) {
        (Some(who), _, _) => json!(who),
        (None, Value::Bool(true), _) => json!(SCHEDULED),
        (None, _, Some(set)) => json!(format!("set {}", set.as_str().unwrap_or_default())),
        (None, _, None) => json!("command line, or a program"),
    };
    let is_retention = job.kind.starts_with("retention") || job.params.get("scheduled").is_some();
    let policy = match is_retention {
        true => json!(members_of(&job.params, POLICY)),
        false => Value::Null,
    };
    let progress = ended.progress;
    let point = ["point", "before_ts"]
        .iter()
        .find_map(|name| asked.get(*name))
        .cloned();
    let or_null = |value: &Value, name: &str| value.get(name).cloned().unwrap_or(Value::Null);
    let draft = Draft::new(&job.kind, job.id.as_str(), ended.at);
    let draft = match progress.get("media") {
        Some(media) => draft.say("media", media.clone()),
        None => draft,
    };
    draft
        .say("who", who)
        .say("subject", json!(job.subject))
        .say("asked", json!(options))
        .say("point", point)
        .say("policy", policy)
        .say("plan", or_null(&job.params, "plan"))
        .say("before", members_of(progress, &["events_planned"]))
        .say("after", members_of(progress, AFTER))
        .say("archive", or_null(progress, "archive"))
        .say("residue", or_null(progress, "residue"))
        .say(
            "outcome",
            match ended.error {
                None => json!("complete"),
                Some((_, code)) => json!(code),
            },
        )
}

/// What keeps checkpoints: the key, and of how many receipts the last one was.
#[derive(Default)]
pub(super) struct Signer {
    key: Option<NoteKey>,
    signed: Option<u64>,
}

impl Ledger {
    /// Writes a receipt of something that is no job, and a checkpoint.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn note_receipt(&self, draft: &Draft) -> Result<u64, Error> {
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            let seq = Receipts(&tx).append(draft)?;
            tx.commit().map(|()| seq)
        };
        let seq = run().context("write a receipt")?;
        self.checkpoint(draft.at);
        Ok(seq)
    }

    /// In a transaction of something else, which the receipt tells of.
    pub(super) fn append_receipt(conn: &Connection, draft: &Draft) -> rusqlite::Result<()> {
        Receipts(conn).append(draft).map(drop)
    }

    /// So many receipts from a number on.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn receipts(&self, from: u64, most: usize) -> Result<Vec<Entry>, Error> {
        let conn = self.conn.lock();
        Receipts(&conn).page(from, most).context("read receipts")
    }

    /// How many receipts there are.
    ///
    /// # Errors
    /// Those of the ledger.
    #[cfg(test)]
    pub fn count_receipts(&self) -> Result<u64, Error> {
        Receipts(&self.conn.lock()).size().context("read receipts")
    }

    /// The receipts of a job, a hold, or the one of a number.
    ///
    /// # Errors
    /// [`Error::NoSuchReceipt`] where there is none; those of the ledger.
    pub fn receipts_of(&self, reference: &str) -> Result<Vec<Entry>, Error> {
        receipts_of(&self.conn.lock(), reference)
    }

    /// The tree of this moment, signed.
    ///
    /// # Errors
    /// [`Error::Refused`] where the key cannot be read or made; those of the ledger.
    pub fn sign_receipts(&self, at: Millis) -> Result<(String, PublicKey), Error> {
        let checkpoint = self.tree_of(at)?;
        self.sign(checkpoint)
    }

    fn tree_of(&self, at: Millis) -> Result<Checkpoint, Error> {
        let conn = self.conn.lock();
        let read = || {
            let size = Receipts(&conn).size()?;
            let root = Receipts(&conn).root(size)?;
            Ok::<_, rusqlite::Error>(Checkpoint { size, root, at })
        };
        read().context("read receipts")
    }

    fn sign(&self, checkpoint: Checkpoint) -> Result<(String, PublicKey), Error> {
        let mut signer = self.signer.lock();
        let key = match &signer.key {
            Some(key) => key,
            None => signer.key.insert(key(self.path())?),
        };
        Ok((key.sign(checkpoint), key.public()))
    }

    /// What proves each of the receipts of a job, a hold, or the one of a number.
    ///
    /// # Errors
    /// As [`Ledger::receipts_of`] and [`Ledger::sign_receipts`].
    pub fn prove_receipts(&self, reference: &str, at: Millis) -> Result<Vec<Proof>, Error> {
        let entries = self.receipts_of(reference)?;
        let checkpoint = self.tree_of(at)?;
        let mut proofs = Vec::new();
        let (note, key) = self.sign(checkpoint)?;
        let conn = self.conn.lock();
        for entry in entries {
            let path = tree::prove(entry.seq, checkpoint.size, &mut |level, place| {
                Receipts(&conn).subtree(level, place)
            });
            let path = path.context("read receipts")?;
            proofs.push(Proof::new(entry, &path, note.clone(), &key));
        }
        Ok(proofs)
    }

    /// Forgets what receipts say: their hashes stay, and with them the proofs of all others. That it was done has a receipt.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn forget_receipts(&self, entries: &[Entry], draft: &Draft) -> Result<(), Error> {
        let run = || {
            let mut conn = self.conn.lock();
            conn.execute_batch("PRAGMA secure_delete = ON")?;
            let tx = conn.transaction()?;
            for entry in entries {
                tx.execute(FORGET, [entry.seq as i64])?;
            }
            Receipts(&tx).append(draft)?;
            tx.commit()?;
            // Nor does the log of the ledger say it any longer.
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        run().context("forget receipts")?;
        self.checkpoint(draft.at);
        Ok(())
    }

    /// Holds every receipt against its hash, the tree against the receipts, and every checkpoint against the tree.
    ///
    /// # Errors
    /// Those of the ledger. What is wrong with receipts is no error, and stands in the answer.
    pub fn verify_receipts(&self) -> Result<Verified, Error> {
        // Page by page: whoever ends a job meanwhile does not wait for all of it.
        let mut verifier = Verifier::default();
        while verifier.page(&self.conn.lock())? {}
        verifier.checkpoints(&self.conn.lock(), self.path())
    }

    /// Writes a checkpoint of the receipts, unless there are no more of them than at the last one. What hinders it is told
    /// in the log: the next one covers it.
    pub fn checkpoint(&self, at: Millis) {
        self.take_what_was_left();
        if let Err(e) = self.write_checkpoint(at) {
            log::warn!("no checkpoint of the receipts was written: {}", Chain(&e));
        }
    }

    fn write_checkpoint(&self, at: Millis) -> Result<(), Error> {
        let checkpoint = self.tree_of(at)?;
        let path = checkpoints_of(self.path());
        let before = match self.signer.lock().signed {
            Some(size) => size,
            None => last_checkpoint(self.path(), &path)?.map_or(0, |(_, last)| last.size),
        };
        if checkpoint.size > before {
            let (note, _) = self.sign(checkpoint)?;
            take_torn_away(&path)
                .and_then(|()| append(self.path(), &path, &format!("{note}\n")))
                .map_err(|e| told(&path, e))?;
            let line = note.trim_end().replace('\n', " | ");
            log::info!("checkpoint of the receipts: {line}");
        }
        self.signer.lock().signed = Some(checkpoint.size);
        Ok(())
    }

    /// At a start: a checkpoint for what ended without one, and a word where the ledger has fewer receipts than it had, or
    /// others.
    pub(super) fn look_at_receipts(&self) -> Result<(), Error> {
        self.take_what_was_left();
        let path = checkpoints_of(self.path());
        let last = last_checkpoint(self.path(), &path)?.map(|(_, last)| last);
        let now = self.tree_of(Millis(0))?;
        if let Some(last) = last {
            let is_before = last.size <= now.size && {
                let root = Receipts(&self.conn.lock()).root(last.size);
                root.context("read receipts")? == last.root
            };
            if !is_before {
                log::error!(
                    "the receipts in the ledger are not those of the last checkpoint ({} of them at {}): the ledger was lost, \
                     put back, or changed. `roomkeeper receipts verify` says more",
                    last.size,
                    last.at.as_date()
                );
                // From here on there are others.
                self.signer.lock().signed = Some(now.size);
                return Ok(());
            }
        }
        if now.size > last.map_or(0, |last| last.size) {
            let newest = self.receipts(now.size - 1, 1)?;
            let said = newest.first().and_then(|entry| entry.line.as_deref());
            let said: Option<Value> = said.and_then(|line| serde_json::from_str(line).ok());
            let at = said.and_then(|said| said["at"].as_i64()).unwrap_or(0);
            self.write_checkpoint(Millis(at))?;
        }
        Ok(())
    }
}

/// Looks at all receipts, page by page.
#[derive(Default)]
struct Verifier {
    tree: Frontier,
    found: Verified,
}

impl Verifier {
    /// Looks at a page more; answers whether there may be another.
    fn page(&mut self, conn: &Connection) -> Result<bool, Error> {
        let receipts = Receipts(conn);
        let page = receipts.page(self.tree.size(), PAGE);
        let page = page.context("read receipts")?;
        for entry in &page {
            let mut wholes = Vec::new();
            self.found
                .look(entry, &mut self.tree, |whole| wholes.push(whole));
            for whole in wholes {
                let kept = receipts.subtree(whole.level, whole.place).optional();
                if kept.context("read receipts")? != Some(whole.hash) {
                    self.found.fault(format!(
                        "the tree does not belong to the receipts: level {}, place {}",
                        whole.level, whole.place
                    ));
                }
            }
        }
        Ok(page.len() == PAGE)
    }

    fn checkpoints(mut self, conn: &Connection, ledger: &Path) -> Result<Verified, Error> {
        self.found.set_root(&self.tree);
        let keys = public_keys(ledger);
        let is_sound = self.found.faults.is_empty();
        for note in Notes::open(&checkpoints_of(ledger))? {
            let note = note.map_err(|e| told(&checkpoints_of(ledger), e))?;
            self.found.checkpoints += 1;
            let number = self.found.checkpoints;
            let checkpoint = match receipt::open(&note, &keys) {
                Ok(checkpoint) => checkpoint,
                Err(why) => {
                    self.found
                        .fault(format!("checkpoint {number} does not hold: {why}"));
                    continue;
                }
            };
            let (size, at) = (checkpoint.size, checkpoint.at.as_date());
            if size > self.tree.size() {
                self.found.fault(format!(
                    "checkpoint {number} of {at} knows {size} receipts, and there are {}: the ledger was lost or put back",
                    self.tree.size()
                ));
            } else if is_sound
                && Receipts(conn).root(size).context("read receipts")? != checkpoint.root
            {
                self.found.fault(format!(
                    "checkpoint {number} of {at} is of {size} other receipts"
                ));
            }
        }
        Ok(self.found)
    }
}

fn receipts_of(conn: &Connection, reference: &str) -> Result<Vec<Entry>, Error> {
    let found = Receipts(conn).of(reference).context("read receipts")?;
    if !found.is_empty() {
        return Ok(found);
    }
    if let Ok(seq) = reference.parse::<u64>() {
        let page = Receipts(conn).page(seq, 1).context("read receipts")?;
        if page.first().is_some_and(|entry| entry.seq == seq) {
            return Ok(page);
        }
    }
    Err(Error::NoSuchReceipt(reference.to_owned()))
}

#[cfg(test)]
mod tests;
