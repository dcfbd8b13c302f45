//! Pages of a room: who may read it, what they see of it, and how it is written for them.
//!
//! A page is made in one pass: the `range` says between which places it lies, `store::pages` reads its events, the
//! `load`er all that decides how they are shown, `visibility` what this reader sees, `aggregate` what others say
//! about them, and the `client_event` writer puts the stored texts together anew. Everything is fetched in sets.

mod aggregate;
mod client_event;
mod context;
mod event;
mod filter;
mod hierarchy;
mod json;
mod load;
mod media;
mod page;
mod read_access;
mod request;
mod single;
mod token_range;
mod visibility;

pub use self::context::{Around, ContextRequest, EventContext, context};
pub use self::filter::{BadFilter, Filter};
pub use self::hierarchy::{Hierarchy, HierarchyRequest, MOST_ROOMS, hierarchy};
pub use self::media::{MediaId, media_of};
pub use self::page::page;
pub use self::request::{
    DEFAULT_LIMIT, EventJson, Format, MAX_LIMIT, Page, PageRequest, Reader, Session,
};
pub use self::single::{MOST_STATE, events};
