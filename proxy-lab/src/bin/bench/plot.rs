//! Plots as SVG: groups of bars with their quartiles, beside a line at 1.

use std::fmt::Write;

use crate::sample::Spread;

/// The bars of one figure.
pub(crate) struct Group<'a> {
    pub(crate) title: &'a str,
    pub(crate) bars: Vec<(&'a str, Spread)>,
}

const LEFT: f64 = 330.0;
const WIDTH: f64 = 480.0;
const BAR: f64 = 13.0;
/// The value at the right end.
const MOST: f64 = 1.2;

fn colour(name: &str) -> &'static str {
    match name {
        "vipr" => "#1b7f5c",
        "packets" => "#6cc3a2",
        "iptables" => "#b4552d",
        _ => "#e0a458",
    }
}

/// One bar under the other, a group for each figure.
pub(crate) fn bars(unit: &str, groups: &[Group<'_>]) -> String {
    let mut body = String::new();
    let mut y = 30.0;
    for group in groups.iter().filter(|group| !group.bars.is_empty()) {
        let middle = y + BAR * group.bars.len() as f64 / 2.0 + 4.0;
        let _ = writeln!(
            body,
            r#"<text x="{}" y="{middle}" text-anchor="end">{}</text>"#,
            LEFT - 10.0,
            group.title
        );
        for (name, spread) in &group.bars {
            let at = |value: f64| LEFT + WIDTH * value.min(MOST) / MOST;
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y}" width="{:.1}" height="{}" fill="{}"/><line x1="{:.1}" x2="{:.1}" y1="{l}" y2="{l}" stroke="black"/><text x="{:.1}" y="{}" font-size="10">{name} {:.3}</text>"#,
                at(spread.median) - LEFT,
                BAR - 1.0,
                colour(name),
                at(spread.low),
                at(spread.high),
                at(spread.high.max(spread.median)) + 4.0,
                y + BAR - 3.0,
                spread.median,
                l = y + BAR / 2.0,
            );
            y += BAR;
        }
        y += 9.0;
    }
    let one = LEFT + WIDTH / MOST;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{y}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="18">{unit}</text>
{body}<line x1="{one}" x2="{one}" y1="22" y2="{y}" stroke="gray" stroke-dasharray="4"/></svg>
"#
    )
}
