//! Delta Lake tables as another engine reads them: delta-rs from Python. Skipped where
//! `MILLSTREAM_READBACK` doesn't name the folder with its package `deltalake`.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::Value;

const SCRIPT: &str = include_str!("../../../xtask/readback/rows.py");

/// Asserts that the table has these rows, in whatever order.
pub fn assert_read_back(table: &Path, expected: impl IntoIterator<Item = Value>) {
    let Ok(packages) = std::env::var("MILLSTREAM_READBACK") else {
        eprintln!("skipped: MILLSTREAM_READBACK names no folder with Python's deltalake");
        return;
    };
    let mut python = Command::new("python3");
    python.args(["-c", SCRIPT, "deltalake"]).arg(table);
    let read = python.env("PYTHONPATH", packages).output().unwrap();
    let said = String::from_utf8_lossy(&read.stderr);
    assert!(read.status.success(), "{said}");
    let text = String::from_utf8(read.stdout).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
    assert_eq!(sorted(rows), sorted(expected));
}

/// Rows as text, with their columns by name.
fn sorted(rows: impl IntoIterator<Item = Value>) -> Vec<String> {
    let text = |row: Value| {
        let columns: BTreeMap<_, _> = row.as_object().unwrap().iter().collect();
        serde_json::to_string(&columns).unwrap()
    };
    let mut rows: Vec<_> = rows.into_iter().map(text).collect();
    rows.sort();
    rows
}
