//! What people read: a table on the terminal, and docs/benchmarks.md with its plots.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::figure::FIGURES;
use crate::packets;
use crate::plot;
use crate::sample::{Rows, Spread};
use crate::tables;
use crate::target::{Of, TARGETS};

/// A ratio this much below another revision's is a regression.
const TOLERANCE: f64 = 0.05;

/// Who is measured, in the order of tables.
const NAMES: [&str; 7] = ["direct", "vipr", "packets", "iptables", "nftables", "vipr-old", "packets-old"];

/// Prints all figures and targets.
pub(crate) fn print(rows: &Rows) {
    for size in rows.sizes() {
        println!("\n{size} Services");
        for figure in FIGURES {
            for name in NAMES {
                let Some(values) = rows.values(size, figure.name, name) else { continue };
                let failed = rows.failed(size, figure.name, name);
                let failed = if failed > 0 { format!("  {failed} failed") } else { String::new() };
                let against = if figure.is_time() {
                    rows.added(size, figure.name, name, "direct").map(|it| format!("{:+.0} ns", it.median))
                } else {
                    rows.ratio(size, figure.name, name, "direct").map(|it| ratio(&it))
                };
                let against = against.unwrap_or_default();
                println!("  {:20} {name:12} {:>14.0}  {against}{failed}", figure.name, values.median);
            }
        }
        for (figure, title, unit) in tables::AGENT {
            if let Some(values) = rows.values(size, figure, "vipr") {
                println!("  {title:72} {:>8} {unit}", tables::number(values.median));
            }
        }
        for row in rows.0.iter().filter(|row| row.services == size && row.contestant == packets::NAME) {
            println!("  {:72} {:>8.0} ns", row.figure, row.value);
        }
        for target in TARGETS {
            let Some(got) = target.judge(rows, size) else { continue };
            let verdict = if got.reached { "reached    " } else { "NOT reached" };
            println!(
                "  {verdict} {:58} {:>8} {}",
                target.title,
                target.wanted(),
                text(&got.spread, target.of)
            );
        }
    }
}

/// Prints how this revision compares with the other; false if a ratio is worse by more than [`TOLERANCE`].
pub(crate) fn compare(rows: &Rows) -> bool {
    let mut good = true;
    for size in rows.sizes() {
        println!("\n{size} Services, this revision ÷ the other");
        for figure in FIGURES {
            for (new, old) in [("vipr", "vipr-old"), ("packets", "packets-old")] {
                let Some(spread) = rows.ratio(size, figure.name, new, old) else { continue };
                let worse = if figure.is_time() { spread.median - 1.0 } else { 1.0 - spread.median };
                let is_worse = worse > TOLERANCE;
                good &= !is_worse;
                let verdict = if is_worse { "  WORSE" } else { "" };
                println!("  {:20} {new:8} {}{verdict}", figure.name, ratio(&spread));
            }
        }
    }
    good
}

fn ratio(spread: &Spread) -> String {
    format!("{:.3} ({:.3} to {:.3})", spread.median, spread.low, spread.high)
}

fn text(spread: &Spread, of: Of) -> String {
    match of {
        Of::Ratio(..) => ratio(spread),
        Of::Added(..) => format!("{:.0} ({:.0} to {:.0})", spread.median, spread.low, spread.high),
        Of::AtMost(_) if spread.count == 1 => tables::number(spread.median),
        Of::AtMost(_) => {
            let [median, low, high] = [spread.median, spread.low, spread.high].map(tables::number);
            format!("{median} ({low} to {high})")
        }
        Of::Worst(_) => format!("{:.1} of {}", spread.worst, spread.count),
    }
}

/// Writes the page and its plots.
pub(crate) fn write(rows: &Rows, folder: &Path) -> Result<()> {
    let mut page = include_str!("method.txt").to_owned();
    page += &machine();
    page += "\n## Targets\n\n";
    let sizes = rows.sizes();
    page += "| figure | must reach |";
    sizes.iter().for_each(|size| page += &format!(" {size} Services |"));
    page += "\n|---|---|";
    page += &"---|".repeat(sizes.len());
    page += "\n";
    for target in TARGETS {
        page += &format!("| {} | {} |", target.title, target.wanted());
        for &size in &sizes {
            page += &match target.judge(rows, size) {
                Some(got) if got.reached => format!(" {} |", text(&got.spread, target.of)),
                Some(got) => format!(" **not reached**: {} |", text(&got.spread, target.of)),
                None => " |".to_owned(),
            };
        }
        page += "\n";
    }
    page += &tables::all(rows);
    let of_paths = |size: &u32| FIGURES.iter().any(|it| rows.values(*size, it.name, "direct").is_some());
    for size in sizes.into_iter().filter(of_paths) {
        page += &format!("\n## {size} Services\n\n");
        let file = format!("benchmarks-{size}.svg");
        let bars: Vec<_> = FIGURES
            .iter()
            .filter(|figure| !figure.is_time())
            .map(|figure| {
                let ratio = |name| rows.ratio(size, figure.name, name, "direct").map(|it| (name, it));
                plot::Group {
                    title: figure.title,
                    bars: NAMES[1..].iter().filter_map(|name| ratio(*name)).collect(),
                }
            })
            .collect();
        fs::write(folder.join(&file), plot::bars("÷ direct", &bars))?;
        page += &format!("![Ratios to direct]({file})\n\n");
        page += "| figure | direct | vipr | vipr, sockets not served | kube-proxy iptables | kube-proxy nftables |\n|---|---|---|---|---|---|\n";
        for figure in FIGURES {
            if rows.values(size, figure.name, "direct").is_none() {
                continue;
            }
            page += &format!("| {} |", figure.title);
            for name in &NAMES[..5] {
                page += &cell(rows, size, figure.name, name, figure.is_time());
            }
            page += "\n";
        }
    }
    fs::write(folder.join("benchmarks.md"), page)?;
    Ok(())
}

fn cell(rows: &Rows, size: u32, figure: &str, name: &str, is_time: bool) -> String {
    let Some(values) = rows.values(size, figure, name) else { return " |".to_owned() };
    let failed = match rows.failed(size, figure, name) {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    if is_time {
        return format!(" {:.0} ns{failed} |", values.median);
    }
    let rate = match values.median {
        rate if rate > 1e7 => format!("{:.2} GB/s", rate / 1e9),
        rate => format!("{rate:.0}/s"),
    };
    match rows.ratio(size, figure, name, "direct") {
        Some(ratio) if name != "direct" => format!(" **{:.3}** ({rate}{failed}) |", ratio.median),
        _ => format!(" {rate}{failed} |"),
    }
}

/// What it was measured on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores of {model}, Linux {}.\n", read("/proc/sys/kernel/osrelease").trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Row;

    /// Whether a revision passes whose figure is `new` where the other's is `old`.
    fn passes(figure: &str, new: f64, old: f64) -> bool {
        let row = |contestant: &str, value| Row {
            services: 1,
            figure: figure.into(),
            contestant: contestant.into(),
            round: 0,
            value,
            failed: 0,
        };
        compare(&Rows(vec![row("vipr", new), row("vipr-old", old)]))
    }

    #[test]
    fn what_is_worse_by_more_than_a_twentieth_is_a_regression() {
        assert!(passes("connections", 96.0, 100.0));
        assert!(!passes("connections", 94.0, 100.0));
        // Of times less is better.
        assert!(passes("connect", 104.0, 100.0));
        assert!(!passes("connect", 106.0, 100.0));
    }
}
