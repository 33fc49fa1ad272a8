use millstream_plan::{RecordSchema, SchemaField, SchemaType};

use crate::assert_told;

fn outcome(text: &str) -> String {
    match RecordSchema::parse(text) {
        Ok(schema) => schema
            .fields()
            .iter()
            .map(shown)
            .collect::<Vec<_>>()
            .join("; "),
        Err(error) => error.to_string(),
    }
}

fn shown(field: &SchemaField) -> String {
    format!("{} {}", field.name, shown_type(&field.data_type))
}

fn shown_type(data_type: &SchemaType) -> String {
    match data_type {
        SchemaType::Struct(fields) => {
            let fields: Vec<_> = fields.iter().map(shown).collect();
            format!("{{{}}}", fields.join("; "))
        }
        SchemaType::Array(element) => format!("[{}]", shown_type(element)),
        other => format!("{other:?}"),
    }
}

#[test]
fn accepts() {
    assert_told!(
        [
            "gender TEXT, name STRUCT<first TEXT, last TEXT>, tags ARRAY<TEXT>, at TIMESTAMP",
            "a boolean, b Bool, c tinyint, d SMALLINT, e INT, f INTEGER, g BIGINT, h LONG",
            "a FLOAT, b REAL, c DOUBLE, d DOUBLE PRECISION, e DECIMAL, f DECIMAL(5), g NUMERIC(38, 38)",
            "a STRING, b VARCHAR, c VARCHAR(10), d CHAR(1), e UUID, f DATE",
            "a TIMESTAMP(3), b TIMESTAMP WITH TIME ZONE, c TIMESTAMP(6) WITHOUT TIME ZONE, d TIMESTAMP_LTZ(3), e TIMESTAMPTZ, f TIMESTAMP WITH LOCAL TIME ZONE",
            // As Spark and Flink write them.
            "name STRUCT<first: STRING, last: STRING>, place ROW<city STRING>",
            "deep STRUCT<a ARRAY<ARRAY<STRUCT<b INT>>>>, after INT",
            // Any word is a field, and case counts.
            "date DATE, timestamp TIMESTAMP, order INT, group TEXT, postCode TEXT, postcode TEXT",
            r#""with space" TEXT, `tick` TEXT, "quo""te" INT, ünïcode TEXT"#,
            "a INT -- the first\n, /* and */ b INT",
        ],
        outcome
    );
}

#[test]
fn refuses() {
    let deep = format!("a {}INT{}", "ARRAY<".repeat(17), ">".repeat(17));
    let many: Vec<_> = (0..2_001).map(|n| format!("a{n} INT")).collect();
    let many = many.join(",");
    assert_told!(
        [
            "",
            "a",
            "a INT,",
            "a INT\nb INT",
            "a INT NOT NULL",
            "a INT, b TEXT PRIMARY KEY",
            "a VARIANT",
            "a MAP<TEXT, INT>",
            "a INT,\n  payload BYTES",
            "a INT, a TEXT",
            "s STRUCT<a INT, a INT>",
            "_offset BIGINT",
            "_row BIGINT",
            "a STRUCT<>",
            "a STRUCT<b INT",
            "a STRUCT b INT",
            "a ARRAY",
            "a ARRAY<INT>>",
            "a DECIMAL(39, 2)",
            "a DECIMAL(5, 6)",
            "a DECIMAL(1, 2, 3)",
            "a DECIMAL(x)",
            "2fa TEXT",
            "\"\" TEXT",
            "a 'TEXT'",
            "a \"unclosed",
            "a TIMESTAMP WITH ZONE",
        ],
        outcome
    );
    for (text, says) in [
        (deep, "16 levels"),
        (many, "2000 fields"),
        (" ".repeat(65_537), "65536 bytes"),
    ] {
        let told = outcome(&text);
        assert!(told.contains(says), "{told}");
    }
}

#[test]
fn arrow_types() {
    let schema = RecordSchema::parse(
        "id UUID, at TIMESTAMP, born DATE, price DECIMAL(10, 2), place STRUCT<tags ARRAY<TEXT>>",
    )
    .unwrap();
    let expected = [
        "Utf8",
        "Timestamp(µs, \"+00:00\")",
        "Date32",
        "Decimal128(10, 2)",
        "Struct(\"tags\": List(Utf8))",
    ];
    let schema = schema.arrow();
    let found = schema
        .fields()
        .iter()
        .map(|field| field.data_type().to_string());
    assert_eq!(found.collect::<Vec<_>>(), expected);
}
