//! Events by id, as an admin reads them: without what other events say about them.

use std::rc::Rc;

use super::aggregate::Bundles;
use super::client_event::Writer;
use super::load::Loader;
use super::page::add_previous;
use super::request::{EventJson, Format};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::Db;
use crate::time::Millis;

/// Most bytes of events that are answered at once: less than an answer may have.
pub(super) const MAX_WRITTEN: usize = 14 * 1024 * 1024;

/// Most events of a room's state that are answered at once.
pub const MOST_STATE: usize = 20_000;

/// Those of some events of a room that are held and may be shown, in the order asked for. `None` where they are too many for
/// one answer.
pub fn events(
    db: &Db,
    room: &RoomId,
    ids: &[String],
    now: Millis,
) -> Result<Option<Vec<EventJson>>, Error> {
    let mut loader = Loader::new(db, room)?;
    let (mut written, mut size) = (Vec::new(), 0);
    for some in ids.chunks(1000) {
        let some: Vec<Rc<str>> = some.iter().map(|id| id.as_str().into()).collect();
        loader.load(&some)?;
        let mut events: Vec<_> = some.iter().filter_map(|id| loader.show(id)).collect();
        add_previous(&mut loader, &mut events)?;
        let writer = Writer {
            now,
            format: Format::Client,
            session: None,
            is_admin: true,
            loader: &loader,
            bundles: &Bundles::new(),
        };
        for event in &events {
            let text = writer.bare(event);
            size += text.len();
            if size > MAX_WRITTEN {
                return Ok(None);
            }
            written.push(EventJson::new(text));
        }
    }
    Ok(Some(written))
}
