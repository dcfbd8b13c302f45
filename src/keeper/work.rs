//! What a job is to do: its kind and parameters in the ledger, as values.

use super::{PURGE_HISTORY, deletion, retention, retention_room, room_set, room_set_part};
use super::{repair, state_sweep};
use crate::ids::RoomId;
use crate::jobs::ledger::{JobRecord, Subject};
use crate::purge::Request;

/// One kind of job, with what it needs to know.
pub(super) enum Work {
    PurgeHistory(Request),
    Retention(retention_room::RetentionRun),
    RetentionOfRoom(RoomId, Box<retention_room::RoomPurge>),
    DeleteRoom(deletion::Deletion),
    RoomSet(room_set::RoomSet),
    RoomOfSet(Box<room_set_part::RoomOfSet>),
    StateSweep,
    Repair(repair::RepairRequest),
}

impl Work {
    /// What a job on record was to do; `None` when this roomkeeper does not know.
    pub(super) fn of_record(record: JobRecord) -> Option<Self> {
        match record.kind.as_str() {
            PURGE_HISTORY => serde_json::from_value(record.params)
                .ok()
                .map(Self::PurgeHistory),
            retention::RETENTION_PURGE => {
                let Subject::Room(room) = record.subject else {
                    return None;
                };
                let purge = serde_json::from_value(record.params).ok();
                purge.map(|purge| Self::RetentionOfRoom(room, purge))
            }
            retention::RETENTION => serde_json::from_value(record.params)
                .ok()
                .map(Self::Retention),
            room_set::ROOM_SET => serde_json::from_value(record.params)
                .ok()
                .map(Self::RoomSet),
            room_set::PURGE_IN_SET | room_set::DELETE_IN_SET => {
                let part = room_set_part::RoomOfSet::of_record(&record);
                part.map(|part| Self::RoomOfSet(Box::new(part)))
            }
            state_sweep::STATE_SWEEP => Some(Self::StateSweep),
            repair::REPAIR => serde_json::from_value(record.params).ok().map(Self::Repair),
            _ => deletion::Deletion::of_record(record).map(Self::DeleteRoom),
        }
    }
}
