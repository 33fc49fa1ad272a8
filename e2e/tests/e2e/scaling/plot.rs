//! Load, lag and pods over time, one above the other.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::Second;

const SIZE: (u32, u32) = (900, 720);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Caption, colour, and what is drawn of a second.
type Curve = (&'static str, RGBColor, fn(&Second) -> i64);

/// Draws the course as an SVG file.
pub fn draw(path: &Path, course: &[Second]) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: String| anyhow!("{}: {error}", path.display());
    area.fill(&WHITE)
        .map_err(|error| failed(error.to_string()))?;
    let panels = area.split_evenly((3, 1));
    let curves: [Curve; 3] = [
        ("records produced per second", BLUE, |second| second.load),
        ("lag in records", RED, |second| second.lag),
        ("process pods", BLACK, |second| i64::from(second.replicas)),
    ];
    for (panel, (caption, colour, value)) in panels.iter().zip(curves) {
        let values: Vec<_> = course.iter().map(value).collect();
        curve(panel, caption, colour, &values).map_err(failed)?;
    }
    area.present().map_err(|error| failed(error.to_string()))
}

fn curve(panel: &Area<'_>, caption: &str, colour: RGBColor, values: &[i64]) -> Result<(), String> {
    let highest = values.iter().copied().max().unwrap_or(0).max(1);
    let mut chart = ChartBuilder::on(panel)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(24)
        .y_label_area_size(64)
        .build_cartesian_2d(0..values.len(), 0..highest + highest / 10 + 1)
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .draw()
        .map_err(|error| error.to_string())?;
    // Steps: a number holds until the next one.
    let steps = values
        .iter()
        .enumerate()
        .flat_map(|(second, value)| [(second, *value), (second + 1, *value)]);
    chart
        .draw_series(LineSeries::new(steps, colour.stroke_width(2)))
        .map_err(|error| error.to_string())?;
    Ok(())
}
