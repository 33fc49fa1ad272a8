//! A bar plot of the rows, as SVG.

use std::fmt::Display;

use millstream_api::serve::Endpoint;
use plotters::prelude::*;
use serde_json::Value;

use super::{problem::Problem, value::Table};
use crate::cassandra::value::text_of;

const BARS: usize = 50;
const WIDTH: u32 = 900;
const BAR_HEIGHT: u32 = 30;
/// Room above and below the bars: for the title and the numbers.
const MARGINS: u32 = 110;
const LONGEST_NAME: usize = 36;
const BLUE: RGBColor = RGBColor(0x1f, 0x6f, 0xeb);
const GREY: RGBColor = RGBColor(0x66, 0x70, 0x85);

/// Draws the first rows, from top to bottom: names take less room beside a bar than below it.
pub fn svg(endpoint: &Endpoint, table: &Table) -> Result<String, Problem> {
    let Some(plot) = &endpoint.plot else {
        return Err(Problem::parameter(
            "format",
            "is `svg`, and this endpoint has no plot",
        ));
    };
    let column = |name: &str| {
        let place = table.columns.iter().position(|column| column == name);
        place.ok_or_else(|| Problem::internal("the plot's column isn't there", name))
    };
    let (label, value) = (column(&plot.label)?, column(&plot.value)?);
    let bars: Vec<(String, f64)> = table
        .rows
        .iter()
        .take(BARS)
        .map(|row| (name(&row[label]), length(&row[value])))
        .collect();
    let mut title = plot.title.clone().unwrap_or_else(|| endpoint.name.clone());
    if table.rows.len() > BARS {
        title += &format!(" (the first {BARS} of {})", table.rows.len());
    }
    draw(&title, &plot.value, &bars)
        .map_err(|error| Problem::internal("the plot can't be drawn", error))
}

/// Decimals come as text, digit by digit.
fn length(value: &Value) -> f64 {
    let text = || value.as_str()?.parse().ok();
    value.as_f64().or_else(text).unwrap_or(0.0)
}

fn name(value: &Value) -> String {
    let text = match value {
        Value::Null => "–".into(),
        other => text_of(other.clone()),
    };
    match text.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn draw(title: &str, axis: &str, bars: &[(String, f64)]) -> Result<String, Box<dyn Display>> {
    fn say<E: Display + 'static>(error: E) -> Box<dyn Display> {
        Box::new(error.to_string())
    }
    let mut svg = String::new();
    let count = i32::try_from(bars.len()).map_err(say)?;
    let height = MARGINS + BAR_HEIGHT * bars.len().max(1) as u32;
    let values = || bars.iter().map(|(_, value)| *value);
    let (low, high) = (values().fold(0.0, f64::min), values().fold(0.0, f64::max));
    let room = if high > low { (high - low) * 0.08 } else { 1.0 };
    let low = if low < 0.0 { low - room } else { 0.0 };
    let longest = bars
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(say)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(24 + 8 * longest as u32)
            // Segments have their end in them; one bar has an empty one above it.
            .build_cartesian_2d(low..high + room, (0..(count - 1).max(1)).into_segmented())
            .map_err(say)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .axis_style(GREY)
            .y_labels(bars.len())
            .y_label_formatter(&|place| match place {
                SegmentValue::CenterOf(place) | SegmentValue::Exact(place) => {
                    let bar = usize::try_from(count - 1 - place).ok();
                    let bar = bar.and_then(|bar| bars.get(bar));
                    bar.map(|(name, _)| name.clone()).unwrap_or_default()
                }
                SegmentValue::Last => String::new(),
            })
            .x_label_formatter(&|value| number(*value))
            .x_desc(axis)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(say)?;
        let ends = |place: i32| (SegmentValue::Exact(place), SegmentValue::Exact(place + 1));
        let placed = || bars.iter().zip((0..count).rev());
        let rectangles = placed().map(|((_, value), place)| {
            let (from, to) = ends(place);
            let mut bar = Rectangle::new([(0.0, from), (*value, to)], BLUE.filled());
            bar.set_margin(5, 5, 0, 0);
            bar
        });
        chart.draw_series(rectangles).map_err(say)?;
        let labels = placed().map(|((_, value), place)| {
            EmptyElement::at((value.max(0.0), SegmentValue::CenterOf(place)))
                + Text::new(
                    number(*value),
                    (6, -6),
                    ("sans-serif", 13).into_font().color(&GREY),
                )
        });
        chart.draw_series(labels).map_err(say)?;
        area.present().map_err(say)?;
    }
    Ok(svg)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_have_their_length_too() {
        for (value, expected) in [
            (Value::from("-12.50"), -12.5),
            (Value::from(3), 3.0),
            (Value::Null, 0.0),
        ] {
            assert_eq!(length(&value), expected, "{value}");
        }
    }

    #[test]
    fn every_bar_has_its_name_once() {
        for count in 0..4 {
            let bars = (0..count).map(|bar| (format!("bar-{bar}"), f64::from(bar)));
            let bars: Vec<_> = bars.collect();
            let drawn = draw("title", "axis", &bars);
            let svg = drawn.unwrap_or_else(|error| panic!("{error}"));
            for (name, _) in &bars {
                assert_eq!(
                    svg.matches(name.as_str()).count(),
                    1,
                    "{name} of {count}: {svg}"
                );
            }
        }
    }
}
