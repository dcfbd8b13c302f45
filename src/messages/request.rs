//! What a reader asks for, and what they get.

use super::filter::Filter;
use super::json::outline;
use crate::ids::UserId;
use crate::point::{Direction, StreamToken};
use crate::store::users::Requester;

/// Most events of a page (M-7).
pub const MAX_LIMIT: u32 = 1000;

/// Events of a page whose size is not said.
pub const DEFAULT_LIMIT: u32 = 10;

/// A user, and how they are logged in: the events they sent from there carry `transaction_id` (M-88).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The user.
    pub user_id: UserId,
    /// Their device.
    pub device_id: Option<String>,
    /// The number of their access token.
    pub token_id: Option<i64>,
    /// Whether they are a guest.
    pub is_guest: bool,
    /// Whether they are a server admin.
    pub is_admin: bool,
}

impl From<UserId> for Session {
    /// The user on no device.
    fn from(user_id: UserId) -> Self {
        Self {
            user_id,
            device_id: None,
            token_id: None,
            is_guest: false,
            is_admin: false,
        }
    }
}

impl From<Requester> for Session {
    fn from(requester: Requester) -> Self {
        Self {
            user_id: requester.user_id,
            device_id: requester.device_id,
            token_id: requester.token_id,
            is_guest: requester.is_guest,
            is_admin: requester.is_admin,
        }
    }
}

/// Who reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Whoever may read everything, and is nobody in particular: ignored, soft-failed, expired and erased events are
    /// shown, rejected ones are not (M-60).
    Admin,
    /// The same, with a name: whose own threads and transactions are known.
    NamedAdmin(Session),
    /// A user, who sees what they may see.
    User(Session),
}

impl Reader {
    /// A user on no device.
    pub fn user(user_id: &UserId) -> Self {
        Self::User(user_id.clone().into())
    }

    /// Who it is, if they have a name.
    pub fn session(&self) -> Option<&Session> {
        match self {
            Self::Admin => None,
            Self::NamedAdmin(session) | Self::User(session) => Some(session),
        }
    }

    /// Whether they may read everything.
    pub fn sees_everything(&self) -> bool {
        !matches!(self, Self::User(_))
    }
}

/// In which form events are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As clients read them (M-80).
    #[default]
    Client,
    /// As servers send them to each other (M-81).
    Federation,
}

/// What a reader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Which way.
    pub direction: Direction,
    /// From where; without, from the room's end or its beginning, whichever is behind.
    pub from: Option<StreamToken>,
    /// Up to where.
    pub to: Option<StreamToken>,
    /// At most this many events; [`MAX_LIMIT`] is the most.
    pub limit: u32,
    /// Which events.
    pub filter: Option<Filter>,
    /// In which form.
    pub format: Format,
}

impl PageRequest {
    /// The newest `limit` events, newest first.
    pub fn backwards(limit: u32) -> Self {
        Self {
            direction: Direction::Backwards,
            from: None,
            to: None,
            limit,
            filter: None,
            format: Format::Client,
        }
    }

    /// The oldest `limit` events, oldest first.
    pub fn forwards(limit: u32) -> Self {
        Self {
            direction: Direction::Forwards,
            ..Self::backwards(limit)
        }
    }

    /// From a token: a page's `start` or `end`.
    #[must_use]
    pub fn from(mut self, token: StreamToken) -> Self {
        self.from = Some(token);
        self
    }
}

/// How deep what people are shown of an event is nested at most: what an edit says about relations is five deep.
const OUTLINE_DEPTH: usize = 12;

/// An event, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventJson(String);

impl EventJson {
    pub(crate) fn new(json: String) -> Self {
        Self(json)
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The event as a value, without what is nested deeper than anything that people are shown: that is null.
    pub fn outline(&self) -> serde_json::Value {
        outline(&self.0, OUTLINE_DEPTH)
    }

    /// The JSON text, to keep.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// A page of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The events, in the order that was asked for. There may be fewer than wanted, even none, and yet more to come.
    pub chunk: Vec<EventJson>,
    /// Where the page begins: where it was asked to, or where a departed user's sight does (M-12).
    pub start: StreamToken,
    /// From where to go on; `None` at the end of what there is to see.
    pub end: Option<StreamToken>,
    /// The members who speak in the page, where they were asked for.
    pub state: Vec<EventJson>,
    /// How many events were left out because they are damaged; the log names them.
    pub damaged: usize,
}

impl Page {
    /// The page as `/messages` answers it (M-40).
    pub fn to_json(&self) -> String {
        let size: usize = self
            .chunk
            .iter()
            .chain(&self.state)
            .map(|e| e.0.len() + 1)
            .sum();
        let mut json = String::with_capacity(size + 256);
        json.push_str("{\"chunk\":");
        push_list(&mut json, &self.chunk);
        // Tokens have no characters that JSON escapes.
        json.push_str(&format!(",\"start\":\"{}\"", self.start));
        if let Some(end) = &self.end {
            json.push_str(&format!(",\"end\":\"{end}\""));
        }
        if !self.state.is_empty() {
            json.push_str(",\"state\":");
            push_list(&mut json, &self.state);
        }
        json.push('}');
        json
    }
}

fn push_list(json: &mut String, events: &[EventJson]) {
    json.push('[');
    for (n, event) in events.iter().enumerate() {
        if n > 0 {
            json.push(',');
        }
        json.push_str(&event.0);
    }
    json.push(']');
}
