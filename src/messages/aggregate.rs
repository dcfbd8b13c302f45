//! What other events say about those of a page: references, edits, threads (M-70 … M-74). Fetched in sets.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::event::Event;
use super::load::Loader;
use crate::error::Error;
use crate::ids::UserId;
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
pub(crate) struct Requester<'a> {
    pub(crate) user: Option<&'a UserId>,
    pub(crate) ignored: &'a HashSet<String>,
}

impl Requester<'_> {
    fn ignores(&self, related: &Related) -> bool {
        let sender = related.sender.as_ref();
        sender.is_some_and(|sender| self.ignored.contains(sender))
    }

    fn is(&self, sender: Option<&str>) -> bool {
        self.user.is_some() && self.user.map(UserId::as_str) == sender
    }
}

/// An event that others relate to.
struct Parent {
    kind: String,
    sender: String,
    may_be_root: bool,
    is_redacted: bool,
    related: Vec<Related>,
}

impl Parent {
    /// An event of the page, if it may have a bundle (M-70).
    fn of(event: &Event) -> Option<Self> {
        if event.is_state() || !event.has_relations {
            return None;
        }
        let relation = event.relation();
        let kind = relation.as_ref().map(|relation| relation.kind.as_str());
        if matches!(kind, Some("m.annotation" | "m.replace")) {
            return None;
        }
        Some(Self {
            kind: event.kind().to_owned(),
            sender: event.sender().to_owned(),
            may_be_root: relation.is_none(),
            is_redacted: event.is_redacted,
            related: Vec::new(),
        })
    }

    /// The events that relate to it in a way, oldest first.
    fn by(&self, relation: &str) -> impl DoubleEndedIterator<Item = &Related> + Clone {
        let related = self.related.iter();
        related.filter(move |related| related.relation == relation)
    }

    /// Its newest edit by the same sender, of the same type.
    fn newest_edit(&self) -> Option<&Related> {
        let is_edit =
            |r: &&Related| r.kind == self.kind && r.sender.as_deref() == Some(self.sender.as_str());
        let edits = self.by("m.replace").filter(is_edit);
        edits.max_by_key(|edit| (edit.origin_server_ts, &edit.event_id))
    }

    /// The thread that it began, as far as the reader hears of it: its newest reply, how many there are, and whether
    /// they took part.
    fn thread(&self, requester: &Requester<'_>) -> Option<(&Related, usize, bool)> {
        if !self.may_be_root {
            return None;
        }
        let replies = self.by("m.thread");
        let heard = replies.clone().filter(|reply| !requester.ignores(reply));
        let latest = heard.clone().next_back()?;
        let replied = || {
            let mut replies = replies;
            replies.any(|reply| requester.is(reply.sender.as_deref()))
        };
        let has_reader = requester.is(Some(&self.sender)) || replied();
        Some((latest, heard.count(), has_reader))
    }
}

/// Those who are related to.
type Parents = HashMap<String, Parent>;

/// What other events of the room say about `events`, and about the newest replies of their threads.
pub(crate) fn bundles(
    db: &Db,
    loader: &mut Loader<'_>,
    events: &[Rc<Event>],
    requester: &Requester<'_>,
) -> Result<Bundles, Error> {
    let parent = |event: &Rc<Event>| Some((event.id.as_ref().to_owned(), Parent::of(event)?));
    let mut parents: Parents = events.iter().filter_map(parent).collect();
    let asked: Vec<String> = parents.keys().cloned().collect();
    relate(db, loader, &mut parents, &asked)?;

    // The newest replies are shown with what is said about them, too.
    let latest = |parent: &Parent| parent.thread(requester).map(|(latest, ..)| latest.clone());
    let latest: Vec<Related> = parents.values().filter_map(latest).collect();
    let mut asked = Vec::new();
    for reply in &latest {
        if !parents.contains_key(&reply.event_id) {
            asked.push(reply.event_id.clone());
            let parent = Parent {
                kind: reply.kind.clone(),
                sender: reply.sender.clone().unwrap_or_default(),
                may_be_root: false,
                is_redacted: false,
                related: Vec::new(),
            };
            parents.insert(reply.event_id.clone(), parent);
        }
    }
    relate(db, loader, &mut parents, &asked)?;

    let edits = parents.values().filter_map(Parent::newest_edit);
    let wanted = latest.iter().chain(edits);
    let wanted: Vec<Rc<str>> = wanted.map(|r| r.event_id.as_str().into()).collect();
    loader.load(&wanted)?;

    let mut bundles = Bundles::new();
    for (id, parent) in parents {
        let references = parent.by("m.reference").filter(|r| !requester.ignores(r));
        let is_redacted =
            parent.is_redacted || loader.show(&id).is_some_and(|event| event.is_redacted);
        let edit = parent.newest_edit().filter(|_| !is_redacted);
        let thread = parent
            .thread(requester)
            .and_then(|(latest, count, has_reader)| {
                Some(Thread {
                    latest: loader.show(&latest.event_id)?,
                    count,
                    has_reader,
                })
            });
        let bundle = Bundle {
            references: references.map(|r| r.event_id.clone()).collect(),
            edit: edit.and_then(|edit| loader.show(&edit.event_id)),
            thread,
        };
        if !bundle.references.is_empty() || bundle.edit.is_some() || bundle.thread.is_some() {
            bundles.insert(id, bundle);
        }
    }
    Ok(bundles)
}

/// Reads what relates to some of the parents.
fn relate(
    db: &Db,
    loader: &Loader<'_>,
    parents: &mut Parents,
    asked: &[String],
) -> Result<(), Error> {
    for related in relations::related(db, loader.room(), asked)? {
        if let Some(parent) = parents.get_mut(&related.parent) {
            parent.related.push(related);
        }
    }
    Ok(())
}
