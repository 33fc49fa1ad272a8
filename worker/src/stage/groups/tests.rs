use std::collections::BTreeMap;

use datafusion::arrow::util::display::array_value_to_string;
use millstream_plan::{MAX_STATE_BYTES, RecordSchema};
use serde_json::json;

use super::*;
use crate::{dead_letter::Replayed, transform::Transform};

const MIB: usize = 1024 * 1024;

/// States as they are kept, by their groups' keys.
type Kept = HashMap<Vec<u8>, State>;

/// What came of a batch.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    /// By group: its count, and the record that its row comes from.
    rows: BTreeMap<String, (String, usize)>,
    /// By record.
    rejected: BTreeMap<usize, String>,
}

fn plan() -> (SinkPlan, TableSpec) {
    let schema = RecordSchema::parse("g TEXT, t TEXT").unwrap();
    let sql = "SELECT g, array_agg(t) AS texts, count(*) AS n FROM records GROUP BY g";
    let table = json!({
        "name": "rows",
        "columns": [
            {"name": "g", "type": "text"},
            {"name": "texts", "type": "frozen<list<text>>"},
            {"name": "n", "type": "bigint"},
        ],
        "primaryKey": {"partitionKey": ["g"]},
    });
    let plan = SinkPlan::new(&schema, "rows", sql).unwrap();
    (plan, serde_json::from_value(table).unwrap())
}

/// Records of groups, each with a text of so many bytes; one of no group has no key.
fn batch(first: i64, records: &[(Option<usize>, usize)]) -> Batch {
    let mut batch = Batch::default();
    for (offset, (group, bytes)) in (first..).zip(records) {
        let group = group.map(|group| format!("g{group}"));
        let record = json!({"g": group, "t": "x".repeat(*bytes)}).to_string();
        batch.push_record(0, offset, None, None, Some(record.as_bytes()));
    }
    batch
}

/// Folds a batch in parts of about so many bytes, and keeps the states; what came of it, and how many
/// bytes of states were loaded for each part.
async fn fold(kept: &mut Kept, batch: &Batch, room: usize) -> (Outcome, Vec<usize>) {
    let (plan, table) = plan();
    let shape = Shape::new(&plan, &table, 7, "").unwrap();
    let rows = Transform::new(&plan).unwrap().run(batch).unwrap().rows;
    let mut work = Work::new(&shape, batch, &rows).unwrap();
    let mut cache = Cache::new(MIB, None);
    let (mut outcome, mut loaded, mut next) = (Outcome::default(), Vec::new(), 0);
    while next < work.groups.len() {
        let read = |key: Vec<u8>| std::future::ready(kept.get(&key).cloned());
        let part = load(&mut cache, &mut work, next, room, read).await;
        loaded.push(work.bytes(part.clone()));
        let number = cache.begin();
        work.fold(part.clone()).unwrap();
        work.keep(part.clone(), number, &mut cache);
        for group in work.groups[part.clone()]
            .iter()
            .filter(|group| group.changed)
        {
            kept.insert(group.key.clone(), group.state(shape.base).unwrap());
        }
        next = part.end;
        let folded = work.finish(part, number).unwrap();
        assert_eq!(work.bytes(0..work.groups.len()), 0, "nothing is held");
        cache.settle(number);
        for rejected in folded.rejected {
            outcome.rejected.insert(rejected.record, rejected.reason);
        }
        for rows in folded.rows {
            for (row, record) in rows.records.into_iter().enumerate() {
                let cell =
                    |column| array_value_to_string(rows.columns.column(column), row).unwrap();
                outcome.rows.insert(cell(0), (cell(2), record));
            }
        }
    }
    (outcome, loaded)
}

/// States of about 957,000 bytes: two texts each, and what their encoding adds.
fn large() -> Vec<(Option<usize>, usize)> {
    (0..24).map(|record| (Some(record % 12), 450_000)).collect()
}

/// One more for each of them, and one that would make a state too large.
fn more() -> Vec<(Option<usize>, usize)> {
    let mut records = vec![(Some(3), 100_000), (None, 1), (Some(12), 5)];
    records.extend((0..12).map(|group| (Some(group), 10)));
    records.push((Some(3), 11));
    records
}

#[tokio::test]
async fn parts_give_what_the_whole_gives() {
    let (first, second) = (batch(0, &large()), batch(24, &more()));
    let mut whole = Kept::default();
    let expected = [
        fold(&mut whole, &first, 64 * MIB).await.0,
        fold(&mut whole, &second, 64 * MIB).await.0,
        // Read again, after the states were kept.
        fold(&mut whole, &second, 64 * MIB).await.0,
    ];
    assert!(expected[1].rejected[&0].contains("the limit is 1048576"));
    assert!(expected[1].rejected[&1].contains("`g` is null"));
    assert_eq!(expected[1].rejected.len(), 2);
    assert_eq!(expected[1].rows["g3"], ("4".to_owned(), 15));
    assert_eq!(expected[2].rows, expected[1].rows);
    for room in [1, 2 * MIB, 5 * MIB] {
        let mut kept = Kept::default();
        for (batch, expected) in [&first, &second, &second].into_iter().zip(&expected) {
            let (found, loaded) = fold(&mut kept, batch, room).await;
            assert_eq!(found, *expected, "parts of {room} bytes");
            let most = loaded.into_iter().max().unwrap();
            assert!(most <= room.max(MAX_STATE_BYTES), "{most} of {room} bytes");
        }
        assert_eq!(kept, whole, "parts of {room} bytes");
    }
}

#[tokio::test]
async fn small_states_are_folded_at_once() {
    let records: Vec<_> = (0..5_000).map(|record| (Some(record % 4_000), 3)).collect();
    let mut kept = Kept::default();
    for (first, known) in [(0, false), (5_000, true)] {
        let (outcome, loaded) = fold(&mut kept, &batch(first, &records), 8 * MIB).await;
        assert_eq!(outcome.rows.len(), 4_000);
        assert_eq!(loaded.len(), 1, "{loaded:?}");
        assert_eq!(loaded[0] > 0, known);
    }
    // As soon as it is known that they are small, also with little memory.
    let (_, loaded) = fold(&mut kept, &batch(10_000, &records), 512 * 1024).await;
    assert!(loaded.len() < 70, "{} parts", loaded.len());
}

/// Records of one group. Of those that were replayed, their first offsets, and whether its state had
/// them.
fn with_replayed(first: i64, records: &[Option<(i64, bool)>]) -> Batch {
    let mut batch = Batch::default();
    for (offset, replayed) in (first..).zip(records) {
        let record = json!({"g": "g0", "t": offset.to_string()}).to_string();
        batch.push_record(0, offset, None, None, Some(record.as_bytes()));
        if let Some((offset, folded)) = *replayed {
            batch.mark(&Replayed {
                sink: "rows".to_owned(),
                offset,
                folded,
            });
        }
    }
    batch
}

#[tokio::test]
async fn what_a_state_has_is_not_folded_again_however_the_batches_fall() {
    let known: [Option<(i64, bool)>; 6] = [
        None,
        None,
        Some((1, true)),
        Some((0, false)),
        Some((1, true)),
        None,
    ];
    // Where the state has expired, the first that comes is in none.
    let expired: [Option<(i64, bool)>; 5] = [
        Some((1, true)),
        None,
        Some((1, true)),
        Some((2, true)),
        None,
    ];
    for (first, records, count) in [(0, known.as_slice(), "4"), (100, expired.as_slice(), "3")] {
        let mut states = Vec::new();
        for size in 1..=records.len() {
            let (mut kept, mut last) = (Kept::default(), Outcome::default());
            for (index, part) in records.chunks(size).enumerate() {
                let batch = with_replayed(first + (index * size) as i64, part);
                last = fold(&mut kept, &batch, MIB).await.0;
            }
            let row = (count.to_owned(), (records.len() - 1) % size);
            assert_eq!(last.rows["g0"], row, "batches of {size}");
            states.extend(kept.into_values());
        }
        assert_eq!(states.len(), records.len());
        assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
        assert_eq!(states[0].offset, first + records.len() as i64 - 1);
    }
}

#[test]
fn a_record_of_which_no_row_can_be_made_is_in_the_state() {
    let (_, table) = plan();
    let schema = RecordSchema::parse("g TEXT, n INT").unwrap();
    let sql = "SELECT g, 100 / sum(n) AS share FROM records GROUP BY g";
    let plan = SinkPlan::new(&schema, "rows", sql).unwrap();
    let records = [
        json!({"g": "a", "n": 0}),
        json!({"g": null, "n": 1}),
        json!({"g": "b", "n": 5}),
    ];
    let mut batch = Batch::default();
    for (offset, record) in (0..).zip(records) {
        batch.push_record(0, offset, None, None, Some(record.to_string().as_bytes()));
    }
    let rows = Transform::new(&plan).unwrap().run(&batch).unwrap().rows;
    let (_, rejected) = rows_of(&plan, &table, &batch, &rows).unwrap();
    let folded = rejected.iter().map(|dead| (dead.record, dead.folded));
    let expected = BTreeMap::from([(0, true), (1, false)]);
    assert_eq!(folded.collect::<BTreeMap<_, _>>(), expected, "{rejected:?}");
}
