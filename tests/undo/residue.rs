//! What receipts say of what is left: nothing of the rows of what went, what others say of it told apart from that, and what
//! somebody left behind is found in tables that nobody knows.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::archives::archiving;
use crate::support::rooms::Recipe;
use crate::support::samples::{any_cut, for_each_sample};
use crate::support::tables::Tables;
use crate::support::work::{Ask, Site};
use roomkeeper::keeper::{self, ResidueReport};
use roomkeeper::receipt::Entry;
use roomkeeper::{Config, Error, JobId, Keeper, RoomId};
use serde_json::Value;

also_on_postgres!(
    nothing_of_the_rows_of_what_went_is_left_and_what_others_say_of_it_is_told_apart,
    what_somebody_left_behind_is_found_wherever_it_is,
);

fn receipts(config: &Config, job: &JobId) -> Vec<Entry> {
    let reader = keeper::recorded_receipts(config).expect("read");
    reader
        .expect("nobody has it")
        .of(job.as_str())
        .expect("there are some")
}

/// What the receipt of a job's end says.
fn receipt(config: &Config, job: &JobId) -> Value {
    let line = receipts(config, job)[0].line.clone().expect("a line");
    serde_json::from_str(&line).expect("JSON")
}

fn purge(config: Config, ask: &Ask) -> JobId {
    let keeper = Keeper::open(config).expect("opens");
    let room = RoomId::new(&*ask.room);
    let id = keeper
        .purge_history(&room, ask.point(), ask.options())
        .expect("begun");
    let _ = keeper.wait(&id);
    keeper.stop();
    id
}

fn delete(config: Config, room: &str) -> JobId {
    let keeper = Keeper::open(config).expect("opens");
    let done = keeper
        .purge_room(&RoomId::new(room), true)
        .expect("deleted");
    keeper.stop();
    done.id
}

fn scan(config: &Config, job: &JobId) -> Result<ResidueReport, Error> {
    let mut tables = BTreeSet::new();
    let receipts = receipts(config, job);
    let found = keeper::residue(config, job.as_str(), &receipts, &[], &mut |table| {
        tables.insert(table.to_owned())
    });
    if found.is_ok() {
        assert!(tables.contains("events") && tables.contains("event_json"));
    }
    found
}

fn events(tables: &Tables) -> BTreeSet<String> {
    let rows = tables.rows("events").iter();
    rows.map(|row| row.word("event_id").to_owned()).collect()
}

/// How many rows of a column name one of these, by reading all of them.
fn named(tables: &Tables, table: &str, column: &str, ids: &BTreeSet<String>) -> i64 {
    let rows = tables.rows(table).iter();
    let texts = rows.filter_map(|row| row.text(column));
    texts
        .filter(|text| ids.iter().any(|id| text.contains(&**id)))
        .count() as i64
}

#[test]
fn nothing_of_the_rows_of_what_went_is_left_and_what_others_say_of_it_is_told_apart() {
    let mut looked = BTreeMap::new();
    for_each_sample(24, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let ask = any_cut(&before, rng);
        let config = archiving(&site, site.in_batches_of(7));
        let is_whole = seed % 3 == 0;
        let job = match is_whole {
            true => delete(config.clone(), &ask.room),
            false => purge(config.clone(), &ask),
        };
        let about = format!("seed {seed}, whole: {is_whole}, {ask:?}");
        let after = site.tables();
        let gone: BTreeSet<String> = &events(&before) - &events(&after);
        let said = receipt(&config, &job);
        if gone.is_empty() && !is_whole {
            assert_eq!(said["residue"], Value::Null, "{about}");
            return;
        }
        let residue = &said["residue"];
        assert_eq!(residue["by"], "index", "{about}");
        assert!(
            residue["columns_scanned"].as_u64() > Some(20),
            "{about}: {residue}"
        );
        let ids: Vec<String> = serde_json::from_value(residue["ids"].clone()).expect("ids");
        assert_eq!(
            ids.len(),
            residue["events"].as_u64().expect("a number") as usize
        );
        assert!(
            ids.len() >= gone.len().min(5) && ids.len() <= 20,
            "{about}: {ids:?}"
        );
        assert!(ids.iter().all(|id| gone.contains(id)), "{about}: {ids:?}");
        for found in residue["found"].as_array().expect("a list") {
            assert!(found["why"].is_string(), "{about}: {found}");
            let (table, column) = (&found["table"], &found["column"]);
            *looked.entry(format!("{table}.{column}")).or_insert(0) += 1;
        }
        let found = scan(&config, &job).unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(
            (found.events, found.is_whole, found.from_archive),
            (gone.len(), is_whole, true),
            "{about}"
        );
        assert_eq!(
            found.residue.surprises().collect::<Vec<_>>(),
            Vec::<&_>::new(),
            "{about}"
        );
        if !is_whole {
            // The same as whoever reads every row finds, in columns whose ids are not words of others.
            for (table, column) in [
                ("event_edges", "prev_event_id"),
                ("event_backward_extremities", "event_id"),
                ("event_relations", "relates_to_id"),
                ("receipts_linearized", "event_id"),
                ("event_json", "json"),
            ] {
                let of = found
                    .residue
                    .found
                    .iter()
                    .find(|f| f.table == table && f.column == column);
                assert_eq!(
                    of.map_or(0, |f| f.count),
                    named(&after, table, column, &gone),
                    "{about}: {table}.{column}"
                );
            }
        }
        assert_eq!(
            receipts(&config, &job).len(),
            2,
            "{about}: the scan has a receipt"
        );
        assert!(site.tables() == after, "{about}: it only reads");
    });
    // What follows the cut names what went before it, in every room.
    assert!(!looked.is_empty(), "{looked:?}");
}

#[test]
fn what_somebody_left_behind_is_found_wherever_it_is() {
    let site = Site::random(3, &Recipe::default());
    let before = site.tables();
    let ask = crate::support::samples::deepest_cut(&before);
    let config = archiving(&site, site.config());
    let job = purge(config.clone(), &ask);
    let gone = &events(&before) - &events(&site.tables());
    let (first, last) = (gone.first().expect("some"), gone.last().expect("some"));
    let clean = scan(&config, &job).expect("looked");
    // A module's own table, its words among others; and a row of ours that should have gone.
    site.run("CREATE TABLE of_a_module (note TEXT, n BIGINT)");
    site.run(&format!("INSERT INTO of_a_module VALUES ('{{\"seen\": [\"{first}\", 5]}}', 1), ('{first}0', 2), ('{last}', 3)"));
    site.run(&format!(
        "INSERT INTO rejections (event_id, reason, last_check) VALUES ('{last}', '', '')"
    ));
    let found = scan(&config, &job).expect("looked");
    let surprises: Vec<_> = found.residue.surprises().collect();
    let told: Vec<_> = surprises
        .iter()
        .map(|f| (&*f.table, &*f.column, f.count))
        .collect();
    assert_eq!(
        told,
        [("of_a_module", "note", 2), ("rejections", "event_id", 1)]
    );
    assert_eq!(
        found.residue.columns_scanned,
        clean.residue.columns_scanned + 1
    );
    // What has no archive is looked for by what its receipt names.
    std::fs::remove_dir_all(crate::support::archives::directory(&site)).expect("removed");
    let found = scan(&config, &job).expect("looked");
    assert!(!found.from_archive && found.events <= 20 && found.events > 0);
}

#[test]
fn what_was_restored_or_is_of_many_rooms_is_not_looked_for() {
    let site = Site::random(3, &Recipe::default());
    let ask = crate::support::samples::deepest_cut(&site.tables());
    let job = purge(archiving(&site, site.config()), &ask);
    crate::support::archives::restore(&site, &job, false).expect("restored");
    let refused = scan(&site.config(), &job).expect_err("refused");
    assert!(refused.to_string().contains("was restored"), "{refused}");
}
