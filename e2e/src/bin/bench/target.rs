//! What is aimed at (docs/benchmarks.md), and whether the figures meet it.

use std::fmt;

use crate::{engine::Kind, job::JobName, report::Figures};

struct Target {
    job: JobName,
    figure: Figure,
    bound: Bound,
}

enum Figure {
    /// One of the worker's, by its name.
    Own(&'static str, fn(&Figures) -> Option<f64>),
    /// The client CPU of one engine over that of another.
    Cpu(Kind, Kind),
}

enum Bound {
    AtMost(f64),
    Under(f64),
    AtLeast(f64),
}

const TARGETS: [Target; 8] = [
    Target {
        job: JobName::Projection,
        figure: Figure::Cpu(Kind::Millstream, Kind::Ceiling),
        bound: Bound::AtMost(1.5),
    },
    Target {
        job: JobName::Projection,
        figure: Figure::Cpu(Kind::Spark, Kind::Millstream),
        bound: Bound::AtLeast(15.0),
    },
    Target {
        job: JobName::Projection,
        figure: Figure::Cpu(Kind::Flink, Kind::Millstream),
        bound: Bound::AtLeast(6.0),
    },
    Target {
        job: JobName::Projection,
        figure: Figure::Own("p99 ms", |run| run.p99_ms),
        bound: Bound::Under(60.0),
    },
    Target {
        job: JobName::Projection,
        figure: Figure::Own("peak MB", |run| run.peak_rss_mb),
        bound: Bound::Under(150.0),
    },
    Target {
        job: JobName::Projection,
        figure: Figure::Own("first row s", |run| run.first_row_s),
        bound: Bound::AtMost(1.0),
    },
    Target {
        job: JobName::Counts,
        figure: Figure::Cpu(Kind::Millstream, Kind::Ceiling),
        bound: Bound::AtMost(3.0),
    },
    Target {
        job: JobName::Counts,
        figure: Figure::Cpu(Kind::Spark, Kind::Millstream),
        bound: Bound::AtLeast(10.0),
    },
];

/// What is aimed at for the jobs that have figures, a line each, with what was measured.
pub fn verdicts(figures: &[Figures]) -> Vec<String> {
    let targets = TARGETS.iter();
    let targets = targets.filter(|target| figures.iter().any(|of| of.job == target.job));
    targets.map(|target| target.verdict(figures)).collect()
}

impl Target {
    fn verdict(&self, figures: &[Figures]) -> String {
        let Target { job, figure, bound } = self;
        match figure.of(figures, *job) {
            None => format!("{job}, {figure} {bound}: not measured"),
            Some(value) if bound.holds(value) => {
                format!("{job}, {figure} {bound}: {value:.2}, met")
            }
            Some(value) => format!("{job}, {figure} {bound}: {value:.2}, not met"),
        }
    }
}

impl Figure {
    fn of(&self, figures: &[Figures], job: JobName) -> Option<f64> {
        let run = |engine| figures.iter().find(|run| run.is_of(job, engine));
        match self {
            Figure::Own(_, figure) => figure(run(Kind::Millstream)?),
            Figure::Cpu(one, other) => {
                let one = run(*one)?.client_cpu_s_per_million?;
                Some(one / run(*other)?.client_cpu_s_per_million?)
            }
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Figure::Own(name, _) => f.write_str(name),
            Figure::Cpu(one, other) => write!(f, "client CPU of {one} / {other}"),
        }
    }
}

impl Bound {
    fn holds(&self, value: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= *bound,
            Bound::Under(bound) => value < *bound,
            Bound::AtLeast(bound) => value >= *bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::AtMost(bound) => write!(f, "at most {bound}"),
            Bound::Under(bound) => write!(f, "under {bound}"),
            Bound::AtLeast(bound) => write!(f, "at least {bound}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{latency::Latency, report::Measured};

    #[test]
    fn what_is_aimed_at_is_met_or_not_or_not_measured() {
        let figures = |engine, cpu, first_row_s| {
            let measured = Measured {
                records_per_s: 1000.0,
                client_cpu_s_per_million: cpu,
                peak_rss_mb: 150.0,
                first_row_s,
                latency: None,
                wrong: Vec::new(),
            };
            let latency = Latency {
                p50_ms: 4.0,
                p99_ms: 59.9,
                wrong: None,
            };
            Figures::new(JobName::Projection, engine, 10, &measured.with(latency))
        };
        let figures = [
            figures(Kind::Ceiling, 4.0, 0.4),
            figures(Kind::Millstream, 6.0, 1.0),
            figures(Kind::Spark, 60.0, 9.0),
        ];
        assert_eq!(
            verdicts(&figures),
            [
                "projection, client CPU of millstream / ceiling at most 1.5: 1.50, met",
                "projection, client CPU of spark / millstream at least 15: 10.00, not met",
                "projection, client CPU of flink / millstream at least 6: not measured",
                "projection, p99 ms under 60: 59.90, met",
                "projection, peak MB under 150: 150.00, not met",
                "projection, first row s at most 1: 1.00, met",
            ]
        );
        assert!(verdicts(&[]).is_empty());
    }
}
