//! Plots as SVG, drawn on the server: lines over versions, bars over time. Colours come from the style sheet.

use maud::{Markup, html};

/// One version in a plot.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) label: String,
    pub(super) value: u64,
    pub(super) href: String,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;

#[expect(clippy::cast_precision_loss, reason = "pixels")]
fn float(value: u64) -> f64 {
    value as f64
}

/// `points` from left to right, the oldest first, with `show` for the values.
pub(super) fn line(title: &str, points: &[Point], scale: Scale, show: fn(u64) -> String) -> Markup {
    let Some((first, last)) = points.first().zip(points.last()) else {
        return html! {};
    };
    let top = nice(points.iter().map(|point| point.value).max().unwrap_or(1).max(1), scale);
    let x = |place: usize| {
        let steps = float(points.len().saturating_sub(1).max(1) as u64);
        let inside = WIDTH - LEFT - RIGHT;
        if points.len() == 1 { LEFT + inside / 2.0 } else { LEFT + inside * float(place as u64) / steps }
    };
    let y = |value: u64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - float(value) / float(top));
    let place = |(place, point): (usize, &Point)| format!("{:.1},{:.1}", x(place), y(point.value));
    let path = points.iter().enumerate().map(place).collect::<Vec<_>>().join(" L");
    let floor = HEIGHT - BOTTOM;
    let area = format!("M{:.1},{floor} L{path} L{:.1},{floor} Z", x(0), x(points.len() - 1));
    html! {
        figure.plot {
            figcaption { span { (title) } strong { (show(last.value)) } }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("{title}: {} now", show(last.value))) {
                @for part in 0..=2_u64 {
                    @let value = top / 2 * part;
                    @let height = format!("{:.1}", y(value));
                    line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(height) y2=(height) {}
                    text.tick x=(LEFT - 8.0) y=(format!("{:.1}", y(value) + 4.0)) text-anchor="end" { (show(value)) }
                }
                path.area d=(area) {}
                @if points.len() > 1 { path.line d=(format!("M{path}")) {} }
                @for (number, point) in points.iter().enumerate() {
                    a href=(point.href) {
                        circle.dot cx=(format!("{:.1}", x(number))) cy=(format!("{:.1}", y(point.value))) r=(if points.len() > 40 { 2.5 } else { 4.0 }) {
                            title { (point.label) ": " (show(point.value)) }
                        }
                    }
                }
                text.tick x=(LEFT) y=(HEIGHT - 6.0) { (first.label) }
                @if points.len() > 1 {
                    text.tick x=(WIDTH - RIGHT) y=(HEIGHT - 6.0) text-anchor="end" { (last.label) }
                }
            }
        }
    }
}

/// What the values are, for round numbers at the axis.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    Bytes,
    /// Milliseconds.
    Time,
}

/// The smallest round number that is not below `value`, and that halves to another.
fn nice(value: u64, scale: Scale) -> u64 {
    let base = match scale {
        Scale::Bytes => 1 << (value.ilog2() / 10 * 10),
        Scale::Time if value > 60_000 => 60_000,
        Scale::Time => 10_u64.pow(value.ilog10()),
    };
    let steps = [1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 800, 1024, 2000, 4000, 8000];
    steps.into_iter().map(|step| base.saturating_mul(step)).find(|top| *top >= value).unwrap_or(value)
}

/// One bar of a timeline.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) note: String,
    pub(super) milliseconds: u64,
    /// It was not run but taken from a checkpoint, or the like.
    pub(super) faint: bool,
    pub(super) failed: bool,
}

/// `bars` one behind the other, as they ran.
pub(super) fn timeline(bars: &[Bar], show: fn(u64) -> String) -> Markup {
    let whole = bars.iter().map(|bar| bar.milliseconds).sum::<u64>().max(1);
    let mut at = 0;
    let placed: Vec<_> = bars
        .iter()
        .map(|bar| {
            let start = at;
            at += bar.milliseconds;
            (bar, 100.0 * float(start) / float(whole), (100.0 * float(bar.milliseconds) / float(whole)).max(0.4))
        })
        .collect();
    html! {
        ol.timeline {
            @for (bar, start, width) in placed {
                li.faint[bar.faint].failed[bar.failed] {
                    span.name { (bar.name) }
                    svg.bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
                        rect.track x="0" y="0" width="100" height="8" {}
                        rect.run x=(format!("{:.2}", start.min(99.6))) y="0" width=(format!("{width:.2}")) height="8" {}
                    }
                    span.time { (show(bar.milliseconds)) }
                    @if !bar.note.is_empty() { span.note { (bar.note) } }
                }
            }
        }
    }
}

/// A small line without axes.
pub(super) fn spark(values: &[u64]) -> Markup {
    let top = float(values.iter().copied().max().unwrap_or(1).max(1));
    let step = 96.0 / float(values.len().saturating_sub(1).max(1) as u64);
    let place = |(number, value): (usize, &u64)| {
        format!("{:.1},{:.1}", 2.0 + step * float(number as u64), 22.0 - 20.0 * float(*value) / top)
    };
    let points = values.iter().enumerate().map(place).collect::<Vec<_>>().join(" ");
    html! {
        @if values.len() > 1 {
            svg.spark viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true" { polyline points=(points) {} }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_above_the_values() {
        for (value, expected) in [(1, 1), (9, 10), (47, 60), (41_200, 60_000), (60_001, 120_000), (700_000, 1_200_000)]
        {
            assert_eq!(nice(value, Scale::Time), expected, "{value}");
        }
        for (value, expected) in [(448 << 10, 600 << 10), (3 << 20, 4 << 20), (900 << 20, 1 << 30)] {
            assert_eq!(nice(value, Scale::Bytes), expected, "{value}");
        }
        for shift in 0..64 {
            assert!(nice(1 << shift, Scale::Bytes) >= 1 << shift && nice(1 << shift, Scale::Time) >= 1 << shift);
        }
        assert!(nice(u64::MAX, Scale::Bytes) == u64::MAX);
    }
}
