//! What other events say about those of a page: references, edits, threads (M-70 … M-74). Fetched in sets.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::event::Event;
use super::load::Loader;
use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::store::db::Db;
use crate::store::relations::{self, Related};

/// What is put into an event's `unsigned["m.relations"]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bundle {
    /// The events that refer to it, oldest first.
    pub(crate) references: Vec<String>,
    /// Its newest edit.
    pub(crate) edit: Option<Rc<Event>>,
    /// The thread it began.
    pub(crate) thread: Option<Thread>,
}

/// A thread in few words.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    /// Its newest reply.
    pub(crate) latest: Rc<Event>,
    /// How many there are.
    pub(crate) count: usize,
    /// Whether the reader began it, or replied.
    pub(crate) has_reader: bool,
}

/// Bundles by event.
pub(crate) type Bundles = HashMap<String, Bundle>;

/// Who asks, as far as it matters here.
pub(crate) struct Asker<'a> {
    pub(crate) user: Option<&'a UserId>,
    pub(crate) ignored: &'a HashSet<String>,
}

impl Asker<'_> {
    fn ignores(&self, related: &Related) -> bool {
        let sender = related.sender.as_ref();
        sender.is_some_and(|sender| self.ignored.contains(sender))
    }

    fn is(&self, sender: Option<&str>) -> bool {
        self.user.is_some() && self.user.map(UserId::as_str) == sender
    }
}

/// An event that may have a bundle.
struct Parent {
    kind: String,
    sender: String,
    may_be_root: bool,
}

/// What other events of the room say about `events`, and about the newest replies of their threads.
pub(crate) fn bundles(
    db: &Db,
    room: &RoomId,
    loader: &mut Loader<'_>,
    events: &[Rc<Event>],
    asker: &Asker<'_>,
) -> Result<Bundles, Error> {
    let mut parents: HashMap<&str, Parent> = HashMap::new();
    for event in events.iter().filter(|event| !event.is_state()) {
        let relation = event.relation();
        let kind = relation.as_ref().map(|relation| relation.kind.as_str());
        if matches!(kind, Some("m.annotation" | "m.replace")) {
            continue;
        }
        let parent = Parent {
            kind: event.kind().to_owned(),
            sender: event.sender().to_owned(),
            may_be_root: relation.is_none(),
        };
        parents.insert(&event.id, parent);
    }
    let ids: Vec<&str> = parents.keys().copied().collect();
    let mut related = by_parent(relations::related(db, room, &ids)?);

    let mut threads: HashMap<String, (Related, usize, bool)> = HashMap::new();
    for (id, parent) in parents.iter().filter(|(_, parent)| parent.may_be_root) {
        let replies = related.get(*id).map_or(&[][..], Vec::as_slice).iter();
        let replies: Vec<&Related> = replies.filter(|r| r.relation == "m.thread").collect();
        let heard = replies.iter().filter(|reply| !asker.ignores(reply));
        let Some(latest) = heard.clone().next_back() else {
            continue;
        };
        let replied = replies
            .iter()
            .any(|reply| asker.is(reply.sender.as_deref()));
        let has_reader = replied || asker.is(Some(&parent.sender));
        threads.insert(
            (*id).to_owned(),
            (Related::clone(latest), heard.count(), has_reader),
        );
    }
    // The newest replies are shown with what is said about them, too.
    let latest: Vec<Related> = threads
        .values()
        .map(|(latest, ..)| latest.clone())
        .collect();
    let is_new = |reply: &&Related| !parents.contains_key(reply.event_id.as_str());
    let also: Vec<&Related> = latest.iter().filter(is_new).collect();
    let ids: Vec<&str> = also.iter().map(|reply| reply.event_id.as_str()).collect();
    related.extend(by_parent(relations::related(db, room, &ids)?));
    for reply in also {
        let parent = Parent {
            kind: reply.kind.clone(),
            sender: reply.sender.clone().unwrap_or_default(),
            may_be_root: false,
        };
        parents.insert(&reply.event_id, parent);
    }

    let edits: HashMap<&str, String> = parents
        .iter()
        .filter_map(|(id, parent)| Some((*id, newest_edit(related.get(*id)?, parent)?)))
        .collect();
    let mut wanted: Vec<String> = latest.iter().map(|reply| reply.event_id.clone()).collect();
    wanted.extend(edits.values().cloned());
    loader.load(&wanted)?;

    let redacted: HashSet<&str> = events
        .iter()
        .filter(|event| event.is_redacted)
        .map(|event| event.id.as_str())
        .collect();
    let mut bundles = Bundles::new();
    for id in parents.keys() {
        let references = related.get(*id).map_or(&[][..], Vec::as_slice).iter();
        let references = references.filter(|r| r.relation == "m.reference" && !asker.ignores(r));
        let is_redacted =
            redacted.contains(id) || loader.show(id).is_some_and(|event| event.is_redacted);
        let edit = edits.get(id).filter(|_| !is_redacted);
        let thread = threads.get(*id).and_then(|(latest, count, has_reader)| {
            Some(Thread {
                latest: loader.show(&latest.event_id)?,
                count: *count,
                has_reader: *has_reader,
            })
        });
        let bundle = Bundle {
            references: references.map(|r| r.event_id.clone()).collect(),
            edit: edit.and_then(|edit| loader.show(edit)),
            thread,
        };
        if !bundle.references.is_empty() || bundle.edit.is_some() || bundle.thread.is_some() {
            bundles.insert((*id).to_owned(), bundle);
        }
    }
    Ok(bundles)
}

fn by_parent(related: Vec<Related>) -> HashMap<String, Vec<Related>> {
    let mut by_parent: HashMap<String, Vec<Related>> = HashMap::new();
    for related in related {
        by_parent
            .entry(related.parent.clone())
            .or_default()
            .push(related);
    }
    by_parent
}

/// The newest edit by the same sender, of the same type.
fn newest_edit(related: &[Related], parent: &Parent) -> Option<String> {
    let is_edit = |r: &&Related| {
        r.relation == "m.replace"
            && r.kind == parent.kind
            && r.sender.as_deref() == Some(parent.sender.as_str())
    };
    let newest = related
        .iter()
        .filter(is_edit)
        .max_by(|a, b| (a.origin_server_ts, &a.event_id).cmp(&(b.origin_server_ts, &b.event_id)));
    newest.map(|edit| edit.event_id.clone())
}
