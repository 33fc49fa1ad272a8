use millstream_plan::RecordSchema;
use mongodb::bson::doc;

use super::*;
use crate::transform::Transform;

const BASE: i64 = 1_000;

fn bind(sql: &str, records: &[&str]) -> (Vec<Vec<Upsert>>, Vec<Rejected>) {
    let schema = RecordSchema::parse("id TEXT, name TEXT, venue STRUCT<city TEXT>").unwrap();
    let plan = SinkPlan::new(&schema, "users", sql).unwrap();
    let mut batch = Batch::default();
    for (offset, record) in (0..).zip(records) {
        batch.push_record(0, offset, None, None, Some(record.as_bytes()));
    }
    let transformed = Transform::new(&plan).unwrap().run(&batch).unwrap();
    let binder = Binder::new(&plan, "id", BASE).unwrap();
    binder.bind(&batch, &transformed.rows)
}

#[test]
fn null_is_written_and_absent_is_left_alone() {
    let sql = "SELECT id, name, venue.city AS city FROM records";
    for (record, expected) in [
        (
            r#"{"id": "a", "name": "Zoë", "venue": {"city": "x"}}"#,
            doc! {"_id": "a", "id": "a", "name": "Zoë", "city": "x", "_version": BASE},
        ),
        (
            r#"{"id": "a", "name": null, "venue": {}}"#,
            doc! {"_id": "a", "id": "a", "name": null, "_version": BASE},
        ),
        (
            r#"{"id": "a", "venue": null}"#,
            doc! {"_id": "a", "id": "a", "city": null, "_version": BASE},
        ),
    ] {
        let (rounds, rejected) = bind(sql, &[record]);
        assert_eq!(rejected, []);
        assert_eq!(rounds[0][0].document(), expected);
    }
}

#[test]
fn records_of_one_document_are_put_together_and_can_be_taken_apart() {
    let sql = "SELECT id, name, venue.city AS city FROM records";
    let records = [
        r#"{"id": "a", "name": "1", "venue": {"city": "x"}}"#,
        r#"{"id": "b", "name": "2"}"#,
        r#"{"id": "a", "name": "3"}"#,
    ];
    let (rounds, _) = bind(sql, &records);
    let [a, b] = rounds[0].as_slice() else {
        panic!("{rounds:?}");
    };
    let both = doc! {"id": "a", "name": "3", "city": "x", "_version": BASE + 2};
    assert_eq!((a.fields(), a.version()), (both, BASE + 2));
    assert_eq!(b.version(), BASE + 1);
    let [older, newer] = a.halves().unwrap();
    assert_eq!((older.version(), newer.version()), (BASE, BASE + 2));
    assert_eq!(
        newer.fields(),
        doc! {"id": "a", "name": "3", "_version": BASE + 2}
    );
    assert_eq!(newer.halves(), None);
}

#[test]
fn a_record_that_was_replayed_stays_alone() {
    let part = |version: i64, replayed: bool| Part {
        version,
        replayed,
        fields: doc! {"n": version},
        record: 0,
    };
    let bound = [(1, true), (2, false), (3, false), (4, true), (5, false)];
    let bound =
        bound.map(|(version, replayed)| (b"a".to_vec(), Bson::from("a"), part(version, replayed)));
    let rounds: Vec<Vec<_>> = rounds(bound.into())
        .iter()
        .map(|round| round[0].parts.iter().map(|part| part.version).collect())
        .collect();
    assert_eq!(rounds, [vec![1], vec![2, 3], vec![4], vec![5]]);
}

#[test]
fn a_document_without_an_id_is_named() {
    let records = [r#"{"name": "x"}"#, r#"{"id": null}"#];
    let (rounds, rejected) = bind("SELECT id, name FROM records", &records);
    assert!(rounds.is_empty());
    let reasons = rejected.iter().map(|rejected| rejected.reason.as_str());
    assert_eq!(
        reasons.collect::<Vec<_>>(),
        ["the document's id `id` is null"; 2]
    );
}
