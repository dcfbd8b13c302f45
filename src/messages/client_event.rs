//! Events as clients read them (M-80 … M-90): stored texts with little added and little left out.

use std::rc::Rc;

use super::aggregate::{Bundle, Bundles};
use super::event::Event;
use super::json::{Object, ObjectWriter, integer, push_object, quoted};
use super::load::Loader;
use super::request::{Format, Session};
use crate::time::Millis;

/// Members of stored events that clients do not see.
const SERVERS_OWN: [&str; 7] = [
    "auth_events",
    "prev_events",
    "hashes",
    "signatures",
    "depth",
    "origin",
    "prev_state",
];

/// Members of `unsigned` that clients see at the top level, too.
const TOP_LEVEL_UNSIGNED: [&str; 4] = ["age", "redacted_because", "replaces_state", "prev_content"];

/// Members of `unsigned` that are for others.
const STRIPPED_STATE: [&str; 2] = ["invite_room_state", "knock_room_state"];

/// What of other events is shown within one. Nothing that is shown within another has more than one of its own, so an answer
/// ends, whatever a room's events say about each other (M-92).
#[derive(Clone, Copy)]
struct Shown {
    /// The thread that it began.
    thread: bool,
    /// The redaction that took its content.
    redaction: bool,
}

/// Writes the events of one answer.
pub(crate) struct Writer<'a> {
    /// One time for the whole answer (M-82).
    pub(crate) now: Millis,
    /// In which form.
    pub(crate) format: Format,
    /// Who reads, if they have a name.
    pub(crate) session: Option<&'a Session>,
    /// Whether the reader is a server admin.
    pub(crate) is_admin: bool,
    /// Where redactions are found.
    pub(crate) loader: &'a Loader<'a>,
    /// What is said about events.
    pub(crate) bundles: &'a Bundles,
}

impl<'a> Writer<'a> {
    /// In the form of clients, for somebody without a session.
    pub(crate) fn without_session(
        now: Millis,
        loader: &'a Loader<'a>,
        bundles: &'a Bundles,
    ) -> Self {
        Self {
            now,
            format: Format::Client,
            session: None,
            is_admin: false,
            loader,
            bundles,
        }
    }

    /// An event of the page, with what is said about it.
    pub(crate) fn event(&self, event: &Event, membership: Option<&str>) -> String {
        let bundle = self.bundles.get(event.id.as_ref());
        let shown = Shown {
            thread: true,
            redaction: true,
        };
        self.write(event, membership, bundle, shown)
    }

    /// The newest reply of a thread, with what is said about it, but without a thread of its own: it may have one that leads
    /// back to where it is shown (M-92).
    fn latest_reply(&self, event: &Event) -> String {
        let bundle = self.bundles.get(event.id.as_ref());
        let shown = Shown {
            thread: false,
            redaction: true,
        };
        self.write(event, None, bundle, shown)
    }

    /// An event alone.
    pub(crate) fn bare(&self, event: &Event) -> String {
        let shown = Shown {
            thread: false,
            redaction: true,
        };
        self.write(event, None, None, shown)
    }

    fn write(
        &self,
        event: &Event,
        membership: Option<&str>,
        bundle: Option<&Bundle>,
        shown: Shown,
    ) -> String {
        let stored = event.unsigned();
        let mut unsigned = self.unsigned(event, &stored);
        if let Some(membership) = membership {
            unsigned.set("membership", quoted(membership));
        }
        if let Some(by) = event.redacted_by.as_deref().filter(|_| shown.redaction) {
            unsigned.set("redacted_by", quoted(by));
            if let Some(redaction) = self.loader.show(by) {
                let shown = Shown {
                    thread: false,
                    redaction: false,
                };
                let because = self.write(&redaction, None, None, shown);
                unsigned.set("redacted_because", because);
            }
        }
        if let Some(bundle) = bundle
            && let Some(relations) = self.relations(stored.get("m.relations"), bundle, shown)
        {
            unsigned.set("m.relations", relations);
        }
        self.around(event, &unsigned)
    }

    /// The unsigned part without what comes from elsewhere.
    fn unsigned<'e>(&self, event: &'e Event, stored: &Object<'e>) -> ObjectWriter<'e> {
        let mut unsigned = ObjectWriter::default();
        for (name, value) in stored.iter() {
            match name {
                "age_ts" if integer(value).is_some() => {}
                name if STRIPPED_STATE.contains(&name) => {}
                name => unsigned.push(name.to_owned(), value),
            }
        }
        if let Some(sent) = stored.get("age_ts").and_then(integer) {
            unsigned.set("age", (self.now - Millis(sent)).0.to_string());
        }
        if let Some((content, sender)) = &event.previous {
            unsigned.set("prev_content", content.as_str());
            unsigned.set("prev_sender", sender.as_str());
        }
        let own = self
            .session
            .filter(|session| session.user_id.as_str() == event.sender());
        if let Some(session) = own {
            if let Some(name) = &event.metadata.txn_id
                && is_same_session(session, event)
            {
                unsigned.set("transaction_id", quoted(name));
            }
            if let Some(delay) = &event.metadata.delay_id {
                unsigned.set("org.matrix.msc4140.delay_id", quoted(delay));
            }
        }
        if self.is_admin && event.metadata.is_soft_failed() {
            unsigned.set("io.element.synapse.soft_failed", "true");
        }
        unsigned
    }

    /// The event around its unsigned part.
    fn around(&self, event: &Event, unsigned: &ObjectWriter<'_>) -> String {
        let is_for_clients = self.format == Format::Client;
        let mut added = ObjectWriter::default();
        added.push("event_id", quoted(&event.id));
        if is_for_clients {
            if let Some(sender) = event.document().get("sender") {
                added.push("user_id", sender);
            }
            for name in TOP_LEVEL_UNSIGNED {
                if let Some(value) = unsigned.get(name) {
                    added.push(name, value.as_ref());
                }
            }
        }
        if event.kind() == "m.room.create" && event.version.is_create_hash_room_id {
            added.push("room_id", quoted(self.loader.room().as_str()));
        }
        if event.kind() == "m.room.redaction"
            && let Some(redacts) = event.redacts_text()
        {
            if event.version.has_new_redactions {
                added.push("redacts", redacts);
            } else {
                let mut content = ObjectWriter::default();
                for (name, value) in event.content().into_members() {
                    content.push(name, value);
                }
                content.set("redacts", redacts);
                added.push("content", content.text());
            }
        }
        added.push("unsigned", unsigned.text());
        let is_kept = |name: &str| {
            let is_left_out = is_for_clients && SERVERS_OWN.contains(&name);
            !is_left_out && !added.has(name)
        };
        let stored = event.document().iter();
        let stored = stored.filter(|(name, _)| is_kept(name));
        // Enough for most: what is added is mostly shorter than what is left out.
        let mut json = String::with_capacity(event.document().len());
        push_object(&mut json, stored.chain(added.iter()));
        json
    }

    fn relations(&self, stored: Option<&str>, bundle: &Bundle, shown: Shown) -> Option<String> {
        let thread = bundle.thread.as_ref().filter(|_| shown.thread);
        if bundle.references.is_empty() && bundle.edit.is_none() && thread.is_none() {
            return None;
        }
        let mut relations = ObjectWriter::default();
        let stored = stored.and_then(Object::read).unwrap_or_default();
        for (name, value) in stored.into_members() {
            relations.push(name, value);
        }
        if !bundle.references.is_empty() {
            let events = bundle.references.iter();
            let events = events.map(|id| format!("{{\"event_id\":{}}}", quoted(id)));
            let chunk = events.collect::<Vec<_>>().join(",");
            relations.set("m.reference", format!("{{\"chunk\":[{chunk}]}}"));
        }
        if let Some(edit) = &bundle.edit {
            relations.set("m.replace", self.bare(edit));
        }
        if let Some(thread) = thread {
            let mut summary = ObjectWriter::default();
            let latest: &Rc<Event> = &thread.latest;
            summary.push("latest_event", self.latest_reply(latest));
            summary.push("count", thread.count.to_string());
            summary.push("current_user_participated", thread.has_reader.to_string());
            relations.set("m.thread", summary.text());
        }
        Some(relations.text())
    }
}

/// Whether the reader's session is the one that sent an event of theirs (M-88).
fn is_same_session(session: &Session, event: &Event) -> bool {
    match &event.metadata.device_id {
        Some(device) => session.device_id.as_ref() == Some(device),
        None => {
            let token = event.metadata.token_id;
            session.is_guest || (token.is_some() && token == session.token_id)
        }
    }
}
