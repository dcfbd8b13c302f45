//! Pages of a room: who may read it, what they see of it, and how it is written for them.
//!
//! A page is made in one pass: the `window` says between which places it lies, `store::pages` reads its events, the
//! `load`er all that decides how they are shown, `visibility` what this reader sees, `aggregate` what others say
//! about them, and the `client_event` writer puts the stored texts together anew. Everything is fetched in sets.

mod aggregate;
mod client_event;
mod entry;
mod event;
mod filter;
mod json;
mod load;
mod page;
mod request;
mod visibility;
mod window;

pub use self::filter::{BadFilter, Filter};
pub use self::page::page;
pub use self::request::{
    DEFAULT_LIMIT, EventJson, Format, MAX_LIMIT, Page, PageRequest, Reader, Session,
};
