//! What other events say about those of a page: references, edits, threads (M-70 … M-74). Fetched in sets.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use super::event::Event;
use super::load::Loader;
use crate::error::Error;
use crate::ids::UserId;
use crate::point::Point;
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

/// Most references of one event that are told, the oldest first: more of them fill no page.
const MAX_REFERENCES: usize = 20_000;

/// Most bytes of stored events that are shown within others of one page.
const MAX_ATTACHED: usize = 6 * 1024 * 1024;

/// How many of these are read at a time, so that the bound is not passed by far.
const ATTACHED_AT_A_TIME: usize = 100;

/// An event that others relate to, and what is told of these.
struct Parent {
    kind: String,
    sender: String,
    may_be_root: bool,
    is_redacted: bool,
    /// By their places, so that the oldest come first.
    references: BTreeSet<(Point, String)>,
    /// The newest edit by the same sender, of the same type.
    edit: Option<Related>,
    /// The newest reply of the thread that it began, as far as the reader hears of it; and how many there are.
    latest: Option<Related>,
    count: usize,
    /// Whether the reader replied.
    has_replied: bool,
}

impl Parent {
    fn new(kind: &str, sender: &str, may_be_root: bool, is_redacted: bool) -> Self {
        Self {
            kind: kind.to_owned(),
            sender: sender.to_owned(),
            may_be_root,
            is_redacted,
            references: BTreeSet::new(),
            edit: None,
            latest: None,
            count: 0,
            has_replied: false,
        }
    }

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
        let may_be_root = relation.is_none();
        Some(Self::new(
            event.kind(),
            event.sender(),
            may_be_root,
            event.is_redacted,
        ))
    }

    /// Takes note of an event that relates to this one.
    fn take(&mut self, related: Related, requester: &Requester<'_>) {
        match related.relation.as_str() {
            "m.reference" if !requester.ignores(&related) => {
                self.references.insert((related.point, related.event_id));
                if self.references.len() > MAX_REFERENCES {
                    self.references.pop_last();
                }
            }
            "m.replace" => {
                let newness = |edit: &Related| (edit.origin_server_ts, edit.event_id.clone());
                let is_edit = related.kind == self.kind
                    && related.sender.as_deref() == Some(self.sender.as_str());
                if is_edit
                    && self
                        .edit
                        .as_ref()
                        .is_none_or(|edit| newness(edit) < newness(&related))
                {
                    self.edit = Some(related);
                }
            }
            "m.thread" if self.may_be_root => {
                self.has_replied |= requester.is(related.sender.as_deref());
                if !requester.ignores(&related) {
                    self.count += 1;
                    let latest = self.latest.as_ref();
                    if latest.is_none_or(|latest| latest.point < related.point) {
                        self.latest = Some(related);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Those who are related to.
type Parents = HashMap<String, Parent>;

/// What other events of the room say about `events`, and about the newest replies of their threads. Answers as well how many
/// of `events`, from the first on, it said all about: what is said about an event can be many times its size, and the rest
/// has to wait for the next page.
pub(crate) fn bundles(
    db: &Db,
    loader: &mut Loader<'_>,
    events: &[Rc<Event>],
    requester: &Requester<'_>,
) -> Result<(Bundles, usize), Error> {
    let parent = |event: &Rc<Event>| Some((event.id.as_ref().to_owned(), Parent::of(event)?));
    let mut parents: Parents = events.iter().filter_map(parent).collect();
    let asked: Vec<String> = parents.keys().cloned().collect();
    relate(db, loader, &mut parents, &asked, requester)?;

    // The newest replies are shown with what is said about them, too; but not with threads of their own, or a thread in a
    // circle would be shown without end (M-92).
    let latest = parents.values().filter_map(|parent| parent.latest.as_ref());
    let latest: Vec<Related> = latest.cloned().collect();
    let mut asked = Vec::new();
    for reply in latest {
        if let Entry::Vacant(place) = parents.entry(reply.event_id) {
            let sender = reply.sender.as_deref().unwrap_or_default();
            asked.push(place.key().clone());
            place.insert(Parent::new(&reply.kind, sender, false, false));
        }
    }
    relate(db, loader, &mut parents, &asked, requester)?;

    let fitting = load_attached(loader, &parents, events)?;
    let mut bundles = Bundles::new();
    for (id, parent) in parents {
        let is_redacted =
            parent.is_redacted || loader.show(&id).is_some_and(|event| event.is_redacted);
        let edit = parent.edit.filter(|_| !is_redacted);
        let has_reader = requester.is(Some(&parent.sender)) || parent.has_replied;
        let thread = parent.latest.and_then(|latest| {
            Some(Thread {
                latest: loader.show(&latest.event_id)?,
                count: parent.count,
                has_reader,
            })
        });
        let bundle = Bundle {
            references: parent.references.into_iter().map(|(_, id)| id).collect(),
            edit: edit.and_then(|edit| loader.show(&edit.event_id)),
            thread,
        };
        if !bundle.references.is_empty() || bundle.edit.is_some() || bundle.thread.is_some() {
            bundles.insert(id, bundle);
        }
    }
    Ok((bundles, fitting))
}

/// Reads what is shown within the events, in their order, until that is enough for one page; answers for how many of them.
fn load_attached(
    loader: &mut Loader<'_>,
    parents: &Parents,
    events: &[Rc<Event>],
) -> Result<usize, Error> {
    let mut wanted: Vec<(usize, Rc<str>)> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        let Some(parent) = parents.get(event.id.as_ref()) else {
            continue;
        };
        let reply = parent.latest.as_ref();
        let of_reply = reply.and_then(|reply| parents.get(&reply.event_id)?.edit.as_ref());
        for related in [parent.edit.as_ref(), reply, of_reply]
            .into_iter()
            .flatten()
        {
            wanted.push((at, related.event_id.as_str().into()));
        }
    }
    let mut attached = 0;
    for some in wanted.chunks(ATTACHED_AT_A_TIME) {
        let ids: Vec<Rc<str>> = some.iter().map(|(_, id)| id.clone()).collect();
        loader.load(&ids)?;
        for (at, id) in some {
            attached += loader.size_of(id);
            if attached > MAX_ATTACHED {
                // One event at least, whatever is said about it.
                return Ok((*at).max(1));
            }
        }
    }
    Ok(events.len())
}

/// Reads what relates to some of the parents.
fn relate(
    db: &Db,
    loader: &Loader<'_>,
    parents: &mut Parents,
    asked: &[String],
    requester: &Requester<'_>,
) -> Result<(), Error> {
    relations::each_related(db, loader.room(), asked, |related| {
        if let Some(parent) = parents.get_mut(&related.parent) {
            parent.take(related, requester);
        }
    })
}
