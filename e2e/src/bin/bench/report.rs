//! The figures, as a table for people and as JSON for programs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    engine::{Kind, Usage},
    job::JobName,
    latency::Latency,
};

/// What came of a run.
pub struct Measured {
    pub records_per_s: f64,
    pub client_cpu_s_per_million: f64,
    pub peak_rss_mb: f64,
    pub first_row_s: f64,
    pub latency: Option<Latency>,
    /// What is wrong with its results.
    pub wrong: Vec<String>,
}

impl Measured {
    /// So many records in this time, the first result after that one.
    pub fn of(records: u64, whole: Duration, first: Duration, usage: &Usage) -> Self {
        let records = records as f64;
        Measured {
            records_per_s: records / whole.as_secs_f64(),
            client_cpu_s_per_million: usage.cpu_seconds / records * 1e6,
            peak_rss_mb: usage.peak_rss_mb,
            first_row_s: first.as_secs_f64(),
            latency: None,
            wrong: Vec::new(),
        }
    }

    pub fn with(mut self, mut latency: Latency) -> Self {
        self.wrong.extend(latency.wrong.take());
        self.latency = Some(latency);
        self
    }
}

/// The figures of a run, or the medians of several; none where the result was wrong.
#[derive(Serialize, Clone)]
pub struct Figures {
    #[serde(serialize_with = "as_text")]
    pub job: JobName,
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

fn as_text<T: std::fmt::Display, S: serde::Serializer>(
    name: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

const HEADER: [&str; 9] = [
    "job",
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
    pub fn new(job: JobName, engine: Kind, records: u64, measured: &Measured) -> Self {
        let exact = measured.wrong.is_empty();
        let figure = |value: f64| exact.then_some(value);
        let latency = measured.latency.as_ref();
        Figures {
            job,
            engine,
            records,
            records_per_s: figure(measured.records_per_s),
            client_cpu_s_per_million: figure(measured.client_cpu_s_per_million),
            peak_rss_mb: figure(measured.peak_rss_mb),
            first_row_s: figure(measured.first_row_s),
            p50_ms: latency.and_then(|latency| figure(latency.p50_ms)),
            p99_ms: latency.and_then(|latency| figure(latency.p99_ms)),
            exact,
        }
    }

    pub fn is_of(&self, job: JobName, engine: Kind) -> bool {
        self.job == job && self.engine == engine
    }

    fn cells(&self, round: &str) -> [String; 9] {
        let show = |figure: Option<f64>, decimals: usize| match figure {
            _ if !self.exact => "WRONG".into(),
            Some(figure) => format!("{figure:.decimals$}"),
            None => "-".into(),
        };
        [
            self.job.to_string(),
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
    failed: Vec<(JobName, Kind)>,
}

impl Report {
    pub fn add(&mut self, run: Figures) {
        self.runs.push(run);
    }

    /// An engine has not come to the end of a job.
    pub fn fail(&mut self, job: JobName, engine: Kind) {
        self.failed.push((job, engine));
    }

    pub fn has_failed(&self, job: JobName, engine: Kind) -> bool {
        self.failed.contains(&(job, engine))
    }

    /// What isn't as it should be, in a line each.
    pub fn complaints(&self) -> Vec<String> {
        let failed = self.failed.iter();
        let failed = failed.map(|(job, engine)| format!("{engine} failed at the job {job}"));
        let summary = self.summary().into_iter();
        let wrong = summary.filter(|figures| !figures.exact);
        let wrong =
            wrong.map(|of| format!("{}'s result of the job {} was wrong", of.engine, of.job));
        failed.chain(wrong).collect()
    }

    /// The medians of each job and engine, in the order of the runs; none where a run was wrong.
    pub fn summary(&self) -> Vec<Figures> {
        let mut summary = Vec::<Figures>::new();
        for run in &self.runs {
            if !summary.iter().any(|known| known.is_of(run.job, run.engine)) {
                summary.push(self.medians(run));
            }
        }
        summary
    }

    fn medians(&self, first: &Figures) -> Figures {
        let runs = self.runs.iter();
        let runs: Vec<_> = runs
            .filter(|run| run.is_of(first.job, first.engine))
            .collect();
        let exact = runs.iter().all(|run| run.exact);
        let median = |figure: fn(&Figures) -> Option<f64>| {
            let figures = runs.iter().filter(|_| exact);
            median(figures.filter_map(|run| figure(run)).collect())
        };
        Figures {
            records_per_s: median(|run| run.records_per_s),
            client_cpu_s_per_million: median(|run| run.client_cpu_s_per_million),
            peak_rss_mb: median(|run| run.peak_rss_mb),
            first_row_s: median(|run| run.first_row_s),
            p50_ms: median(|run| run.p50_ms),
            p99_ms: median(|run| run.p99_ms),
            exact,
            ..first.clone()
        }
    }

    /// Every run, and the medians below.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(HEADER);
        for (index, run) in self.runs.iter().enumerate() {
            let before = self.runs[..index].iter();
            let before = before.filter(|other| other.is_of(run.job, run.engine));
            table.add_row(run.cells(&(1 + before.count()).to_string()));
        }
        for median in self.summary() {
            table.add_row(median.cells("median"));
        }
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    /// Millstream next to each of the others, a line each: next to the ceiling, what it takes more;
    /// next to Spark and Flink, what those take more.
    pub fn ratios(&self) -> Vec<String> {
        let summary = self.summary();
        let ratio = |other: &Figures| {
            let mut of_job = summary.iter();
            let millstream = of_job.find(|known| known.is_of(other.job, Kind::Millstream))?;
            match other.engine {
                Kind::Millstream => None,
                Kind::Ceiling => compared(millstream, other),
                Kind::Spark | Kind::Flink => compared(other, millstream),
            }
        };
        summary.iter().filter_map(ratio).collect()
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

/// None where one of them has no figures.
fn compared(one: &Figures, other: &Figures) -> Option<String> {
    let over = |figure: fn(&Figures) -> Option<f64>| Some(figure(one)? / figure(other)?);
    let cpu = over(|run| run.client_cpu_s_per_million)?;
    let rate = over(|run| run.records_per_s)?;
    let memory = over(|run| run.peak_rss_mb)?;
    let beyond = match (one.p99_ms, other.p99_ms) {
        (Some(one), Some(other)) => format!(", p99 {:+.1} ms", one - other),
        _ => String::new(),
    };
    let (job, one, other) = (one.job, one.engine, other.engine);
    Some(format!(
        "{job}, {one} / {other}: client CPU {cpu:.2}, records/s {rate:.2}, peak memory {memory:.2}{beyond}"
    ))
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

    fn run(job: JobName, engine: Kind, cpu: f64, exact: bool) -> Figures {
        let wrong = if exact { Vec::new() } else { vec!["x".into()] };
        let measured = Measured {
            records_per_s: 1000.0,
            client_cpu_s_per_million: cpu,
            peak_rss_mb: 70.0,
            first_row_s: 0.2,
            latency: None,
            wrong,
        };
        Figures::new(job, engine, 10, &measured)
    }

    #[test]
    fn medians_and_ratios_are_of_all_rounds_of_a_job() {
        let mut report = Report::default();
        for (job, engine, cpu) in [
            (JobName::Projection, Kind::Ceiling, 3.0),
            (JobName::Projection, Kind::Millstream, 6.0),
            (JobName::Projection, Kind::Spark, 80.0),
            (JobName::Projection, Kind::Ceiling, 5.0),
            (JobName::Projection, Kind::Millstream, 10.0),
            (JobName::Counts, Kind::Millstream, 1.0),
        ] {
            report.add(run(job, engine, cpu, true));
        }
        assert_eq!(report.summary()[0].client_cpu_s_per_million, Some(4.0));
        assert_eq!(
            report.ratios(),
            [
                "projection, millstream / ceiling: client CPU 2.00, records/s 1.00, peak memory 1.00",
                "projection, spark / millstream: client CPU 10.00, records/s 1.00, peak memory 1.00",
            ]
        );
        assert!(report.complaints().is_empty());
    }

    #[test]
    fn a_wrong_result_has_no_figures() {
        let mut report = Report::default();
        for exact in [true, false] {
            report.add(run(JobName::Projection, Kind::Millstream, 1.0, exact));
        }
        report.fail(JobName::Counts, Kind::Spark);
        let [millstream] = &report.summary()[..] else {
            panic!("one engine");
        };
        assert!(!millstream.exact);
        assert_eq!(millstream.records_per_s, None);
        assert!(millstream.cells("median").contains(&"WRONG".to_string()));
        assert_eq!(
            report.complaints(),
            [
                "spark failed at the job counts",
                "millstream's result of the job projection was wrong",
            ]
        );
    }
}
