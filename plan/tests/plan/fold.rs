//! Groups that are folded in any number of batches, with replays and with their states written and
//! read between them, hold what the engine's own GROUP BY says over all records at once.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    arrow::{
        array::{
            ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch,
            StringArray, TimestampMicrosecondArray, UInt64Array,
        },
        compute::{concat_batches, take, take_record_batch},
        datatypes::{Field, Schema},
        util::display::array_value_to_string,
    },
    datasource::MemTable,
    prelude::{SessionConfig, SessionContext},
};
use millstream_plan::{ExecError, Fold, MAX_STATE_BYTES, RecordSchema, SinkPlan};
use proptest::{
    prelude::*,
    sample::{Index, select},
};

const SCHEMA: &str =
    "g TEXT, n BIGINT, x DOUBLE, t TEXT, at TIMESTAMP, f BOOLEAN, d DECIMAL(10, 2)";

/// What is folded, and how the engine is asked the same at once: it has no order of records.
const QUERIES: [(&str, &str); 12] = [
    (
        "SELECT g, count(*) AS a, count(n) AS b, sum(n) AS c, min(t) AS d, max(x) AS e, avg(n) AS f2, avg(d) AS h FROM records GROUP BY g",
        "",
    ),
    (
        "SELECT g, sum(x) AS a, avg(x) AS b, sum(d) AS c, min(at) AS e FROM records WHERE n IS NOT NULL GROUP BY g",
        "",
    ),
    (
        "SELECT g, count(DISTINCT t) AS a, count(DISTINCT n) AS b, sum(DISTINCT n) AS c, approx_distinct(t) AS d2 FROM records GROUP BY g",
        "",
    ),
    (
        "SELECT g, first_value(t ORDER BY at) AS a, last_value(n ORDER BY at) AS b, last_value(t ORDER BY f DESC, n) AS c, first_value(x ORDER BY at DESC NULLS FIRST) AS e FROM records GROUP BY g",
        "SELECT g, first_value(t ORDER BY at, _offset) AS a, last_value(n ORDER BY at, _offset) AS b, last_value(t ORDER BY f DESC, n, _offset) AS c, first_value(x ORDER BY at DESC NULLS FIRST, _offset) AS e FROM records GROUP BY g",
    ),
    (
        "SELECT g, first_value(t ORDER BY _offset) AS a, last_value(n ORDER BY n, _offset DESC, n) AS b FROM records GROUP BY g",
        "SELECT g, first_value(t ORDER BY _offset) AS a, last_value(n ORDER BY n, _offset DESC) AS b FROM records GROUP BY g",
    ),
    (
        "SELECT g, first_value(t) AS a, last_value(n) AS b, array_agg(n) FILTER (WHERE f) AS c, string_agg(t, ',') AS e FROM records GROUP BY g",
        "SELECT g, first_value(t ORDER BY _offset) AS a, last_value(n ORDER BY _offset) AS b, array_agg(n ORDER BY _offset) FILTER (WHERE f) AS c, string_agg(t, ',' ORDER BY _offset) AS e FROM records GROUP BY g",
    ),
    (
        "SELECT g, array_agg(DISTINCT n) AS a, string_agg(DISTINCT t, ',') AS b, array_agg(DISTINCT upper(t)) FILTER (WHERE f) AS c FROM records GROUP BY g",
        "SELECT g, array_agg(DISTINCT n ORDER BY n) AS a, string_agg(DISTINCT t, ',' ORDER BY t) AS b, array_agg(DISTINCT upper(t) ORDER BY upper(t)) FILTER (WHERE f) AS c FROM records GROUP BY g",
    ),
    (
        "SELECT g, first_value(t) IGNORE NULLS AS a, last_value(x) IGNORE NULLS AS b FROM records GROUP BY g",
        "SELECT g, first_value(t ORDER BY _offset) IGNORE NULLS AS a, last_value(x ORDER BY _offset) IGNORE NULLS AS b FROM records GROUP BY g",
    ),
    (
        "SELECT g, bool_and(f) AS a, bool_or(f) AS b, bit_xor(n) AS c, count(*) FILTER (WHERE f) AS e, max(n) FILTER (WHERE x > 0) AS h FROM records GROUP BY g",
        "",
    ),
    (
        "SELECT g, upper(g) AS u, sum(n) * 2 + count(*) AS a, CASE WHEN count(*) > 3 THEN 'many' ELSE 'few' END AS b FROM records GROUP BY g HAVING count(*) > 2 AND max(n) > 0",
        "",
    ),
    (
        "SELECT g, f, date_bin(INTERVAL '2 seconds', at) AS w, count(*) AS a, median(n) AS b FROM records WHERE f IS NOT NULL AND at IS NOT NULL GROUP BY g, f, w",
        "SELECT g, f, date_bin(INTERVAL '2 seconds', at) AS w, count(*) AS a, median(n) AS b FROM records WHERE f IS NOT NULL AND at IS NOT NULL GROUP BY g, f, date_bin(INTERVAL '2 seconds', at)",
    ),
    // The engine's own GROUP BY divides by zero before it filters.
    (
        "SELECT g, sum(10 / n) FILTER (WHERE n <> 0) AS a, last_value(t ORDER BY 10 / n) FILTER (WHERE n <> 0) AS b, count(*) AS c FROM records GROUP BY g",
        "SELECT g, sum(CASE WHEN n <> 0 THEN 10 / n END) AS a, last_value(t ORDER BY CASE WHEN n <> 0 THEN 10 / n END, _offset) FILTER (WHERE n <> 0) AS b, count(*) AS c FROM records GROUP BY g",
    ),
];

type Record = (
    u8,
    Option<i64>,
    Option<i32>,
    Option<u8>,
    Option<i64>,
    Option<bool>,
    Option<i16>,
);

fn records() -> impl Strategy<Value = Vec<Record>> {
    let record = (
        0..4_u8,
        proptest::option::weighted(0.8, -5..5_i64),
        proptest::option::weighted(0.8, -20..20_i32),
        proptest::option::weighted(0.8, 0..6_u8),
        // Few, so that many are equal.
        proptest::option::weighted(0.8, 0..5_i64),
        proptest::option::weighted(0.8, any::<bool>()),
        proptest::option::weighted(0.8, any::<i16>()),
    );
    proptest::collection::vec(record, 1..60)
}

/// All columns, with the offsets.
fn batch(records: &[Record]) -> RecordBatch {
    let texts = [
        "",
        "a",
        "b",
        "ä",
        "a long text that has more than one block",
        "z",
    ];
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "g",
            Arc::new(StringArray::from_iter_values(
                records.iter().map(|r| format!("g{}", r.0)),
            )),
        ),
        (
            "n",
            Arc::new(Int64Array::from_iter(records.iter().map(|r| r.1))),
        ),
        (
            "x",
            Arc::new(Float64Array::from_iter(
                records.iter().map(|r| r.2.map(|x| f64::from(x) / 4.0)),
            )),
        ),
        (
            "t",
            Arc::new(StringArray::from_iter(
                records.iter().map(|r| r.3.map(|t| texts[usize::from(t)])),
            )),
        ),
        (
            "at",
            Arc::new(
                TimestampMicrosecondArray::from_iter(
                    records.iter().map(|r| r.4.map(|at| at * 1_000_000)),
                )
                .with_timezone("+00:00"),
            ),
        ),
        (
            "f",
            Arc::new(BooleanArray::from_iter(records.iter().map(|r| r.5))),
        ),
        (
            "d",
            Arc::new(
                Decimal128Array::from_iter(records.iter().map(|r| r.6.map(i128::from)))
                    .with_precision_and_scale(10, 2)
                    .unwrap(),
            ),
        ),
        (
            "_offset",
            Arc::new(Int64Array::from_iter_values(0..records.len() as i64)),
        ),
    ];
    let fields = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    RecordBatch::try_new(
        Arc::new(schema),
        columns.into_iter().map(|(_, array)| array).collect(),
    )
    .unwrap()
}

fn planned(sql: &str) -> SinkPlan {
    let schema = RecordSchema::parse(SCHEMA).unwrap();
    SinkPlan::new(&schema, "s", sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Groups as a sink keeps them: by their keys, the offset that was applied, and the state.
#[derive(Default)]
struct Kept {
    groups: BTreeMap<String, (i64, Arc<[u8]>, RecordBatch)>,
}

fn row_text(columns: &[ArrayRef], row: usize) -> String {
    let cells = columns
        .iter()
        .map(|column| array_value_to_string(column, row).unwrap());
    cells.collect::<Vec<_>>().join("|")
}

/// What the executor gives of records; the last column has their indexes.
fn executed(plan: &SinkPlan, records: &RecordBatch) -> RecordBatch {
    let names = plan.input_schema();
    let names = names
        .fields()
        .iter()
        .map(|field| records.schema().index_of(field.name()).unwrap());
    let input = records.project(&names.collect::<Vec<_>>()).unwrap();
    plan.executor().execute(&input).unwrap()
}

impl Kept {
    /// Folds the records of a range of offsets, those that aren't in yet.
    fn fold(&mut self, plan: &SinkPlan, fold: &Fold, all: &RecordBatch, start: usize, end: usize) {
        let mut rows = executed(plan, &all.slice(start, end - start));
        let index = rows.remove_column(rows.num_columns() - 1);
        let index = index
            .as_any()
            .downcast_ref::<datafusion::arrow::array::UInt32Array>()
            .unwrap();
        let keys = &rows.columns()[..plan.group_keys()];
        let mut new = Vec::new();
        let mut touched: Vec<String> = Vec::new();
        let mut group_of = Vec::new();
        for row in 0..rows.num_rows() {
            let key = row_text(keys, row);
            let offset = (start + index.value(row) as usize) as i64;
            if self
                .groups
                .get(&key)
                .is_some_and(|(applied, ..)| offset <= *applied)
            {
                continue;
            }
            let place = touched
                .iter()
                .position(|known| *known == key)
                .unwrap_or_else(|| {
                    touched.push(key);
                    touched.len() - 1
                });
            new.push(row as u64);
            group_of.push(place);
        }
        let states: Vec<_> = touched
            .iter()
            .map(|key| self.groups.get(key).map(|group| &*group.1))
            .collect();
        let taken = take_record_batch(&rows, &UInt64Array::from(new.clone())).unwrap();
        let states = fold.fold(&taken, &group_of, &states).unwrap();
        for (group, state) in states.into_iter().enumerate() {
            let last = group_of.iter().rposition(|place| *place == group).unwrap();
            let offset = (start + index.value(new[last] as usize) as usize) as i64;
            let key = rows
                .slice(new[last] as usize, 1)
                .project(&(0..plan.group_keys()).collect::<Vec<_>>());
            self.groups
                .insert(touched[group].clone(), (offset, state, key.unwrap()));
        }
    }

    /// The rows of all groups, sorted.
    fn rows(&self, fold: &Fold) -> Vec<String> {
        let keys: Vec<_> = self.groups.values().map(|group| group.2.clone()).collect();
        let Some(first) = keys.first() else {
            return Vec::new();
        };
        let keys = concat_batches(&first.schema(), &keys).unwrap();
        let states: Vec<_> = self.groups.values().map(|group| &*group.1).collect();
        let results = fold.results(keys.columns(), &states).unwrap();
        let absent = results.absent;
        let rows = (0..states.len())
            .filter(|row| absent.as_ref().is_none_or(|absent| !absent.value(*row)));
        let mut rows: Vec<_> = rows
            .map(|row| row_text(results.columns.columns(), row))
            .collect();
        rows.sort();
        rows
    }
}

/// What the engine says over all records at once.
fn at_once(plan: &SinkPlan, sql: &str, all: &RecordBatch) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let context =
            SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let table = MemTable::try_new(all.schema(), vec![vec![all.clone()]]).unwrap();
        context.register_table("records", Arc::new(table)).unwrap();
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let mut rows = Vec::new();
        for batch in batches {
            let columns = batch.columns().iter().zip(&plan.columns);
            let columns = columns.map(|(array, column)| {
                datafusion::arrow::compute::cast(array, &column.data_type).unwrap()
            });
            let columns: Vec<_> = columns.collect();
            rows.extend((0..batch.num_rows()).map(|row| row_text(&columns, row)));
        }
        rows.sort();
        rows
    })
}

/// Folds in batches of these sizes; before some of them goes back, as after a crash.
fn folded(plan: &SinkPlan, fold: &Fold, all: &RecordBatch, steps: &[(usize, usize)]) -> Kept {
    let mut kept = Kept::default();
    let mut start = 0;
    let mut steps = steps.iter().cycle();
    while start < all.num_rows() {
        let (size, back) = steps.next().unwrap();
        let from = start - back.min(&start);
        start = (start + size).min(all.num_rows());
        kept.fold(plan, fold, all, from, start);
    }
    kept
}

fn steps() -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((1..20_usize, select(vec![0, 0, 0, 3, 17])), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_batches_give_what_the_engine_gives_at_once(
        records in records(),
        steps in steps(),
        query in select(QUERIES.to_vec()),
    ) {
        let (sql, oracle) = query;
        let plan = planned(sql);
        let fold = plan.fold().unwrap();
        let all = batch(&records);
        let kept = folded(&plan, &fold, &all, &steps);
        let oracle = if oracle.is_empty() { sql } else { oracle };
        prop_assert_eq!(kept.rows(&fold), at_once(&plan, oracle, &all), "{}", sql);
    }

    /// Whatever became of a state where it was kept, nothing panics.
    #[test]
    fn a_spoilt_state_is_refused_or_taken_up(
        records in records(),
        query in select(QUERIES.to_vec()),
        bytes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        end in proptest::option::of(any::<Index>()),
    ) {
        let plan = planned(query.0);
        let fold = plan.fold().unwrap();
        let all = batch(&records);
        let mut rows = executed(&plan, &all);
        rows.remove_column(rows.num_columns() - 1);
        let kept = folded(&plan, &fold, &all, &[(records.len(), 0)]);
        for (_, state, key) in kept.groups.values() {
            let mut state = state.to_vec();
            for (index, byte) in &bytes {
                let index = index.index(state.len());
                state[index] = *byte;
            }
            state.truncate(end.map_or(state.len(), |end| end.index(state.len())));
            let _ = fold.results(key.columns(), &[&state]);
            let _ = fold.fold(&rows, &vec![0; rows.num_rows()], &[Some(&state)]);
        }
    }

    /// Bit for bit, also where numbers are rounded: two workers with other batches write the same.
    #[test]
    fn how_records_fall_into_batches_changes_nothing(
        values in proptest::collection::vec((0..3_u8, -1e9..1e9_f64), 1..60),
        one in steps(),
        other in steps(),
    ) {
        let plan = planned("SELECT g, sum(x) AS s, avg(x) AS a, min(x) AS lo FROM records GROUP BY g");
        let fold = plan.fold().unwrap();
        let records: Vec<Record> = values.iter().map(|(g, _)| (*g, None, None, None, None, None, None)).collect();
        let all = batch(&records);
        let mut columns = all.columns().to_vec();
        columns[2] = Arc::new(Float64Array::from_iter_values(values.iter().map(|(_, x)| *x)));
        let all = RecordBatch::try_new(all.schema(), columns).unwrap();
        let one = folded(&plan, &fold, &all, &one);
        let other = folded(&plan, &fold, &all, &other);
        let states = |kept: &Kept| -> Vec<_> {
            kept.groups.values().map(|group| (group.0, group.1.clone())).collect()
        };
        prop_assert_eq!(states(&one), states(&other));
    }
}

/// Should this fail after an upgrade, states that were written before can't be read any more: see
/// `VERSION` in the worker's `state.rs`.
#[test]
fn the_bytes_of_states_stay_the_same() {
    let plan = planned(
        "SELECT g, count(*) AS a, sum(x) AS b, last_value(t ORDER BY at) AS c, count(DISTINCT t) AS d2, max(d) AS e FROM records GROUP BY g",
    );
    let fold = plan.fold().unwrap();
    let all = batch(&[(0, Some(1), Some(3), Some(1), Some(2), Some(true), Some(-5))]);
    let kept = folded(&plan, &fold, &all, &[(1, 0)]);
    let bytes = kept.groups["g0"].1.iter().map(|byte| format!("{byte:02x}"));
    insta::assert_snapshot!(bytes.collect::<String>(), @"01800000000000000101bfe8000000000000026100000000000000010180000000001e84800180000000000000000101020261000000000000ff00010000000000000201017ffffffffffffffffffffffffffffffb");
}

#[test]
fn no_state_has_less_than_one_of_a_record_that_says_nothing() {
    let all = batch(&[(0, Some(1), Some(3), Some(1), Some(2), Some(true), Some(-5))]);
    for (sql, _) in QUERIES {
        let plan = planned(sql);
        let fold = plan.fold().unwrap();
        let kept = folded(&plan, &fold, &all, &[(1, 0)]);
        let state = kept.groups.values().map(|group| group.1.len()).min();
        let least = fold.least_state();
        assert!(
            least > 0 && Some(least) <= state,
            "{sql}: {least}, {state:?}"
        );
    }
}

#[test]
fn a_state_has_a_limit() {
    let plan = planned("SELECT g, array_agg(t) AS a FROM records GROUP BY g");
    let fold = plan.fold().unwrap();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(MAX_STATE_BYTES / 2)]));
    let key: ArrayRef = Arc::new(StringArray::from(vec!["g"]));
    let schema = Schema::new(vec![
        Field::new("g", key.data_type().clone(), true),
        Field::new("t", text.data_type().clone(), true),
    ]);
    let rows = RecordBatch::try_new(Arc::new(schema), vec![key, text]).unwrap();
    let state = fold.fold(&rows, &[0], &[None]).unwrap();
    let error = fold.fold(&rows, &[0], &[Some(&state[0])]).unwrap_err();
    assert!(matches!(error, ExecError::State(_)), "{error}");
    assert!(
        error.to_string().contains("the limit is 1048576"),
        "{error}"
    );
}

#[test]
fn a_group_whose_row_cannot_be_made_is_named() {
    let plan = planned("SELECT g, CAST(max(t) AS INT) AS a FROM records GROUP BY g");
    let fold = plan.fold().unwrap();
    let all = batch(&[(0, None, None, Some(1), None, None, None)]);
    let mut kept = Kept::default();
    kept.fold(&plan, &fold, &all, 0, 1);
    let group = kept.groups.values().next().unwrap();
    let keys = take(group.2.column(0), &UInt64Array::from(vec![0]), None).unwrap();
    let error = fold.results(&[keys], &[&group.1]).unwrap_err().to_string();
    assert!(error.contains("column `a`"), "{error}");
}

/// What a FILTER excludes can't fail, and so costs no record.
#[test]
fn an_argument_is_computed_only_for_what_its_filter_takes() {
    let plan = planned(
        "SELECT g, avg(6 / n) FILTER (WHERE n > 0) AS a, last_value(t ORDER BY 6 / n) FILTER (WHERE n > 0) AS b, count(*) AS c FROM records GROUP BY g",
    );
    let fold = plan.fold().unwrap();
    let record = |n, t| (0, n, None, Some(t), None, None, None);
    for (records, row) in [
        (vec![record(Some(0), 1), record(None, 1)], "g0|||2"),
        (vec![record(Some(0), 1), record(Some(3), 2)], "g0|2.0|b|2"),
    ] {
        let kept = folded(&plan, &fold, &batch(&records), &[(2, 0)]);
        assert_eq!(kept.rows(&fold), [row]);
    }
}

/// Some functions take nothing but a constant.
#[test]
fn a_constant_column_takes_no_other_constants_place() {
    let select = "SELECT g, 'minute' AS unit, date_trunc('minute', max(at)) AS last FROM records";
    let all = batch(&[(0, None, None, None, Some(2), None, None)]);
    for keys in ["g", "g, 'minute' HAVING unit <> g"] {
        let plan = planned(&format!("{select} GROUP BY {keys}"));
        let fold = plan.fold().unwrap();
        let kept = folded(&plan, &fold, &all, &[(1, 0)]);
        let oracle = format!("{select} GROUP BY g");
        assert_eq!(kept.rows(&fold), at_once(&plan, &oracle, &all), "{keys}");
    }
}
