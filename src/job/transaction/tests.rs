use support::draft::Draft;
use support::work::Site;

use super::super::super::support;
use super::super::workbench::Workbench;
use super::*;
use crate::batch::BatchLimits;
use crate::job::ServerState::{Running, Stopped};

const ROOM: &str = "!room:example.org";
const OTHER: &str = "!other:example.org";

fn site() -> Site {
    let mut draft = Draft::new("example.org", 3);
    draft.open_room(ROOM, "room", "@ann:example.org", 2);
    draft.open_room(OTHER, "other", "@ann:example.org", 20);
    Site::of(draft)
}

fn try_it(
    ctx: &mut JobContext<'_>,
    scope: Scope<'_>,
    limits: Limits<'_>,
) -> Result<Outcome<()>, Error> {
    ctx.small_transaction("try it", scope, limits, |_| Ok(()))
}

fn limits(if_started: IfStarted) -> Limits<'static> {
    Limits {
        if_started,
        ..Limits::default()
    }
}

#[test]
fn a_homeserver_that_was_started_or_stopped_meanwhile_is_met_before_anything_is_begun() {
    let site = site();
    let bench = Workbench::new(&site, ROOM, "purge_history");
    for (begins, now) in [(Stopped, Running), (Running, Stopped)] {
        let mut ctx = bench.job(begins, [now], true, BatchLimits::default());
        let outcome = ctx.small_transaction(
            "try it",
            Scope::Room,
            Limits::default(),
            |_| -> Result<(), Abort> { panic!("it was prepared for the other case") },
        );
        assert!(matches!(
            outcome,
            Ok(Outcome::Aborted(Why::ServerStateChanged))
        ));
        assert_eq!(ctx.server_state, now);
        // Prepared for that, it goes on.
        let outcome = try_it(&mut ctx, Scope::Room, Limits::default());
        assert!(matches!(outcome, Ok(Outcome::Done(..))));
    }
    let mut ctx = bench.job(Stopped, [Running], false, BatchLimits::default());
    let refused = try_it(&mut ctx, Scope::Room, Limits::default());
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    let aborted = try_it(&mut ctx, Scope::Room, limits(IfStarted::Abort));
    assert!(matches!(
        aborted,
        Ok(Outcome::Aborted(Why::HomeserverStarted(_)))
    ));
    let done = try_it(&mut ctx, Scope::Room, limits(IfStarted::GoOn));
    assert!(matches!(done, Ok(Outcome::Done(..))));
    assert_eq!(ctx.server_state, Stopped);
}

#[test]
fn another_room_is_only_tried_for_and_nothing_is_left_held() {
    let site = site();
    let bench = Workbench::new(&site, ROOM, "delete");
    let others = [RoomId::from(OTHER)];
    let both = Scope::RoomAnd(&others);
    let mut ctx = bench.job(Stopped, [Stopped], true, BatchLimits::default());
    let reader = bench.locks.read(&others[0]);
    let busy = try_it(&mut ctx, both, Limits::default());
    assert!(matches!(busy, Ok(Outcome::Aborted(Why::RoomInUse(room))) if room == others[0]));
    drop(reader);
    // So does somebody who has it in the homeserver's lock table.
    let mut theirs = bench.job(Stopped, [Stopped], true, BatchLimits::default());
    let lock = SynapseLock::try_acquire(&mut theirs.db, &[PURGE_LOCK], &others, theirs.clock);
    let lock = lock.expect("tried").expect("free");
    let busy = try_it(&mut ctx, both, Limits::default());
    assert!(matches!(busy, Ok(Outcome::Aborted(Why::RoomInUse(room))) if room == others[0]));
    lock.release(&mut theirs.db).expect("released");
    for _ in 0..2 {
        let done = ctx.small_transaction("try it", both, Limits::default(), |tx| {
            tx.ensure_held(&bench.room)?;
            Ok(tx.ensure_held(&others[0])?)
        });
        assert!(matches!(done, Ok(Outcome::Done(..))), "{done:?}");
    }
    assert!(bench.locks.try_write(&bench.room).is_some());
    assert!(bench.locks.try_write(&others[0]).is_some());
    assert!(bench.writer.try_lock().is_some());
    let rows = "SELECT count(*) FROM worker_read_write_locks";
    assert_eq!(ctx.db.count("look", rows, &[]).expect("counted"), 0);
}

#[test]
fn what_a_given_up_transaction_did_is_neither_in_the_database_nor_in_the_progress() {
    let site = site();
    let bench = Workbench::new(&site, ROOM, "delete");
    let mut ctx = bench.job(Stopped, [Stopped], true, BatchLimits::default());
    let mut progress = Progress {
        events_planned: 10,
        ..Progress::default()
    };
    let before = site.tables();
    let batch = Limits {
        is_batch: true,
        ..Limits::default()
    };
    for abort in [
        || Abort::TooLong,
        || Abort::BreaksForeignKeys,
        || Abort::Failed(Error::Stopping),
    ] {
        let outcome = ctx.transaction(
            &mut progress,
            "try it",
            Scope::Room,
            batch,
            |tx, effects| {
                tx.execute(
                    "try it",
                    "UPDATE rooms SET creator = '@eve:example.org'",
                    &[],
                )?;
                effects.rows.insert("rooms".to_owned(), 1);
                effects.events = 3;
                effects.state_groups = vec![1, 2];
                effects.duties = Some(Duties {
                    pages: SecureDelete::Fast,
                    index: true,
                });
                Err::<(), _>(abort())
            },
        );
        match outcome {
            Ok(Outcome::TooLong | Outcome::Aborted(Why::BreaksForeignKeys)) => {}
            Err(Error::Stopping) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(progress.batches, 0);
    assert_eq!(progress.events_done, 0);
    assert!(progress.rows_removed.is_empty());
    assert!(ctx.ledger.candidates(ROOM).expect("read").is_empty());
    assert!(!ctx.ledger.has_pending(overwrite::MERGE_INDEX));
    let done = ctx.transaction(&mut progress, "try it", Scope::Room, batch, |_, effects| {
        effects.rows.insert("receipts_graph".to_owned(), 2);
        effects.events = 3;
        effects.state_groups = vec![1, 2];
        Ok(())
    });
    assert!(matches!(done, Ok(Outcome::Done(..))));
    assert_eq!((progress.batches, progress.events_done), (1, 3));
    assert_eq!(ctx.ledger.candidates(ROOM).expect("read"), [1, 2]);
    drop(ctx);
    support::tables::assert_same(&before, &site.tables(), "nothing was changed");
}
