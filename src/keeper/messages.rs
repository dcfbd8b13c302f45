//! Pages of rooms: readers wait for the purge of their room, but not all of them, and not for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Keeper, Shared, Viewer};
use crate::error::Error;
use crate::ids::RoomId;
use crate::locks::RoomRead;
use crate::messages::{self, Page, PageRequest, Reader};
use crate::store::db::Db;
use crate::store::read_limit::ReadLimit;

/// How many readers wait for rooms at a time. Half of the handlers that slow requests may have, so that readers of other
/// rooms always find one.
const MOST_WAITING: usize = 3;

/// How long a reader waits for a room: longer than the batches beside a running server take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Readers who wait for a room.
#[derive(Debug, Default)]
pub(super) struct ReaderLimit(AtomicUsize);

impl Shared {
    /// The room among readers, in order of arrival (L-9, L-10). `None` when too many wait already, or it takes too long:
    /// such a reader sees the room as it was before the batch that is going on. That is a whole room as well, since a
    /// page is one snapshot of the database; they only do not wait for the newer one.
    fn wait_for_room(&self, room: &RoomId) -> Option<RoomRead> {
        if let Some(free) = self.locks.try_read(room) {
            return Some(free);
        }
        let ReaderLimit(waiting) = &self.queue;
        let turn = if waiting.fetch_add(1, Ordering::SeqCst) < MOST_WAITING {
            self.locks.read_within(room, PATIENCE)
        } else {
            None
        };
        waiting.fetch_sub(1, Ordering::SeqCst);
        turn
    }
}

impl Keeper {
    /// A page of a room, as `/messages` has it.
    ///
    /// ```
    /// # fn read(keeper: &roomkeeper::Keeper, room: &roomkeeper::RoomId) -> Result<(), roomkeeper::Error> {
    /// use roomkeeper::{PageRequest, Reader};
    /// let mut request = PageRequest::backwards(100);
    /// loop {
    ///     let page = keeper.messages(room, &Reader::Admin, &request)?;
    ///     for event in &page.chunk {
    ///         println!("{}", event.as_str());
    ///     }
    ///     let Some(end) = page.end else { break };
    ///     request = request.from(end);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotInRoom`] when the reader may not read the room; [`Error::BadRequest`] for a token that names writers
    /// of another server. Unknown rooms are empty for admins.
    /// # Locking
    /// Waits, as a reader, for a batch of a purge of the room, but at most some seconds; the page is one snapshot of the
    /// database in any case.
    pub fn messages(
        &self,
        room: &RoomId,
        reader: &Reader,
        request: &PageRequest,
    ) -> Result<Page, Error> {
        self.read_messages(room, reader, request, None)
    }

    /// As [`Keeper::messages`], within a limit.
    ///
    /// # Errors
    /// As there, and [`Error::ReadTooLong`].
    pub fn messages_within(
        &self,
        room: &RoomId,
        reader: &Reader,
        request: &PageRequest,
        limit: &Arc<ReadLimit>,
    ) -> Result<Page, Error> {
        self.read_messages(room, reader, request, Some(limit))
    }

    fn read_messages(
        &self,
        room: &RoomId,
        reader: &Reader,
        request: &PageRequest,
        limit: Option<&Arc<ReadLimit>>,
    ) -> Result<Page, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        let _turn = self.shared.wait_for_room(room);
        self.shared.read_within(limit, |db| {
            page(db, &self.shared.config, room, reader, request)
        })
    }
}

impl Viewer {
    /// As [`Keeper::messages`], without waiting for anybody.
    ///
    /// # Errors
    /// As there, without [`Error::Stopping`].
    pub fn messages(
        &self,
        room: &RoomId,
        reader: &Reader,
        request: &PageRequest,
    ) -> Result<Page, Error> {
        page(&self.db, &self.config, room, reader, request)
    }
}

fn page(
    db: &Db,
    config: &crate::config::Config,
    room: &RoomId,
    reader: &Reader,
    request: &PageRequest,
) -> Result<Page, Error> {
    let now = config.clock.now();
    db.read("read a page", |db| {
        messages::page(db, room, reader, request, &config.retention, now)
    })
}
