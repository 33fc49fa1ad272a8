//! The figures, as a table for people and as JSON for programs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::engine::Kind;

/// The figures of a run, or the medians of several; none where the result was wrong.
#[derive(Serialize, Clone)]
pub struct Figures {
    pub job: &'static str,
    #[serde(serialize_with = "as_text")]
    pub engine: Kind,
    pub records: u64,
    pub records_per_s: Option<f64>,
    pub client_cpu_s_per_million: Option<f64>,
    pub peak_rss_mb: Option<f64>,
    pub first_row_s: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub exact: bool,
}

fn as_text<S: serde::Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(kind)
}

const HEADER: [&str; 8] = [
    "engine",
    "round",
    "records/s",
    "client CPU s per million",
    "peak MB",
    "first row s",
    "p50 ms",
    "p99 ms",
];

impl Figures {
    fn cells(&self, round: &str) -> [String; 8] {
        let show = |figure: Option<f64>, decimals: usize| match figure {
            _ if !self.exact => "WRONG".into(),
            Some(figure) => format!("{figure:.decimals$}"),
            None => "-".into(),
        };
        [
            self.engine.to_string(),
            round.into(),
            show(self.records_per_s, 0),
            show(self.client_cpu_s_per_million, 2),
            show(self.peak_rss_mb, 0),
            show(self.first_row_s, 2),
            show(self.p50_ms, 1),
            show(self.p99_ms, 1),
        ]
    }
}

/// The figures of all rounds.
#[derive(Default)]
pub struct Report {
    runs: Vec<Figures>,
}

impl Report {
    pub fn add(&mut self, run: Figures) {
        self.runs.push(run);
    }

    /// The medians of each engine; exact where every run was.
    pub fn summary(&self) -> Vec<Figures> {
        [Kind::Ceiling, Kind::Millstream]
            .into_iter()
            .filter_map(|kind| {
                let runs: Vec<_> = self.runs.iter().filter(|run| run.engine == kind).collect();
                let median = |figure: fn(&Figures) -> Option<f64>| {
                    median(runs.iter().filter_map(|run| figure(run)).collect())
                };
                let first = (*runs.first()?).clone();
                Some(Figures {
                    records_per_s: median(|run| run.records_per_s),
                    client_cpu_s_per_million: median(|run| run.client_cpu_s_per_million),
                    peak_rss_mb: median(|run| run.peak_rss_mb),
                    first_row_s: median(|run| run.first_row_s),
                    p50_ms: median(|run| run.p50_ms),
                    p99_ms: median(|run| run.p99_ms),
                    exact: runs.iter().all(|run| run.exact),
                    ..first
                })
            })
            .collect()
    }

    /// Every run, and the medians below.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(HEADER);
        let mut rounds = std::collections::HashMap::<String, u32>::new();
        for run in &self.runs {
            let round = rounds.entry(run.engine.to_string()).or_default();
            *round += 1;
            table.add_row(run.cells(&round.to_string()));
        }
        for median in self.summary() {
            table.add_row(median.cells("median"));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    /// Millstream next to the ceiling in one line.
    pub fn ratios(&self) -> Option<String> {
        let summary = self.summary();
        let [ceiling, millstream] = summary.as_slice() else {
            return None;
        };
        let over =
            |figure: fn(&Figures) -> Option<f64>| Some(figure(millstream)? / figure(ceiling)?);
        let cpu = over(|run| run.client_cpu_s_per_million)?;
        let rate = over(|run| run.records_per_s)?;
        let beyond = match (millstream.p99_ms, ceiling.p99_ms) {
            (Some(millstream), Some(ceiling)) => {
                format!(", p99 {:+.1} ms", millstream - ceiling)
            }
            _ => String::new(),
        };
        Some(format!(
            "millstream / ceiling: client CPU {cpu:.2}, records/s {rate:.2}{beyond}"
        ))
    }

    /// Writes the medians, making the folder where it isn't there.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let json = serde_json::to_vec_pretty(&self.summary())?;
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(engine: Kind, cpu: f64, exact: bool) -> Figures {
        Figures {
            job: "projection",
            engine,
            records: 10,
            records_per_s: exact.then_some(1000.0),
            client_cpu_s_per_million: exact.then_some(cpu),
            peak_rss_mb: exact.then_some(70.0),
            first_row_s: exact.then_some(0.2),
            p50_ms: None,
            p99_ms: None,
            exact,
        }
    }

    #[test]
    fn medians_and_ratios_are_of_all_rounds() {
        let mut report = Report::default();
        for (engine, cpu) in [
            (Kind::Ceiling, 3.0),
            (Kind::Millstream, 6.0),
            (Kind::Ceiling, 5.0),
            (Kind::Millstream, 10.0),
        ] {
            report.add(run(engine, cpu, true));
        }
        assert_eq!(report.summary()[0].client_cpu_s_per_million, Some(4.0));
        assert_eq!(
            report.ratios().unwrap(),
            "millstream / ceiling: client CPU 2.00, records/s 1.00"
        );
    }

    #[test]
    fn a_wrong_result_has_no_figures() {
        let mut report = Report::default();
        report.add(run(Kind::Ceiling, 3.0, true));
        report.add(run(Kind::Millstream, 1.0, true));
        report.add(run(Kind::Millstream, 1.0, false));
        let [_, millstream] = &report.summary()[..] else {
            panic!("two engines");
        };
        assert!(!millstream.exact);
        assert!(millstream.cells("median").contains(&"WRONG".to_string()));
    }
}
