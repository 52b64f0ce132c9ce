//! What the page has beside the ratios: the agent, what single packets cost, and how soon a change is met.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::packets;
use crate::sample::Rows;
use crate::switch;

/// Figures of the agent: name, title, unit.
pub(crate) const AGENT: &[(&str, &str, &str)] = &[
    ("agent-start", "from exec() to all in the tables, programs attached", "ms"),
    ("agent-fill", "from the end of the last list to the same", "ms"),
    ("agent-rss", "resident memory, after the start", "MB"),
    ("agent-rss-changed", "resident memory, after the changes", "MB"),
    ("agent-group", "memory of its cgroup with all maps, after the start", "MB"),
    ("agent-group-changed", "memory of its cgroup with all maps, after the changes", "MB"),
    ("agent-change-idle-p50", "a change that comes alone, from its event to the tables, median", "ms"),
    ("agent-change-idle-p99", "the same, 99 of 100", "ms"),
    ("agent-change-busy-p50", "a change among 100 a second, from its event to the tables, median", "ms"),
    ("agent-change-busy-p99", "the same, 99 of 100", "ms"),
    ("agent-change-cpu", "of one core, at 100 changes a second", "%"),
];

/// Whose figures are told of, and what they are called.
const CONTESTANTS: [(&str, &str); 4] = [
    ("vipr", "vipr"),
    ("packets", "vipr, sockets not served"),
    ("iptables", "kube-proxy iptables"),
    ("nftables", "kube-proxy nftables"),
];

/// As precise as it is worth.
pub(crate) fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// All of them; empty where nothing was measured.
pub(crate) fn all(rows: &Rows) -> String {
    [flat(rows), agent(rows), switches(rows), costs(rows)].concat()
}

/// How much the rate of connections differs between the numbers of Services.
fn flat(rows: &Rows) -> String {
    let ratio = |size| rows.ratio(size, "connections", "vipr", "direct").map(|it| it.median);
    let ratios: Vec<_> = rows.sizes().into_iter().filter_map(ratio).collect();
    let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(a, b), it| (a.min(*it), b.max(*it)));
    if ratios.len() < 2 {
        return String::new();
    }
    let spread = (most - least) / most * 1e2;
    let verdict = if spread <= 3.0 { "" } else { "**not reached**: " };
    format!(
        "\nTCP connections via ClusterIP ÷ direct differ between {} numbers of Services by {verdict}{spread:.1} % (must: ≤ 3 %).\n",
        ratios.len()
    )
}

fn head(page: &mut String, first: &str, columns: impl Iterator<Item = String>) {
    let columns: Vec<_> = columns.collect();
    let _ = writeln!(page, "| {first} | {} |\n|---{}|", columns.join(" | "), "|---".repeat(columns.len()));
}

/// Which numbers of Services have one of these figures.
fn sizes<'a>(rows: &Rows, figures: impl Iterator<Item = &'a str>) -> Vec<u32> {
    let figures: BTreeSet<_> = figures.collect();
    let sizes = rows.0.iter().filter(|row| figures.contains(row.figure.as_str())).map(|row| row.services);
    sizes.collect::<BTreeSet<_>>().into_iter().collect()
}

fn agent(rows: &Rows) -> String {
    let sizes = sizes(rows, AGENT.iter().map(|(figure, ..)| *figure));
    if sizes.is_empty() {
        return String::new();
    }
    let mut page = "\n## The agent\n\n".to_owned();
    let column = |size: &u32| format!("{size} × {}", if *size > 10_000 { 5 } else { 20 });
    head(&mut page, "Services × endpoints", sizes.iter().map(column));
    for (figure, title, unit) in AGENT {
        let _ = write!(page, "| {title}, {unit} |");
        for &size in &sizes {
            let value = rows.values(size, figure, "vipr").map(|it| number(it.median)).unwrap_or_default();
            let _ = write!(page, " {value} |");
        }
        page.push('\n');
    }
    page
}

fn switches(rows: &Rows) -> String {
    let sizes = sizes(rows, std::iter::once(switch::NAME));
    if sizes.is_empty() {
        return String::new();
    }
    let mut page = "\n## A change of endpoints as a client meets it\n\n".to_owned();
    head(&mut page, "ms, median and worst", sizes.iter().map(|size| format!("{size} Services")));
    for (name, title) in CONTESTANTS {
        let _ = write!(page, "| {title} |");
        for &size in &sizes {
            let spread = rows.values(size, switch::NAME, name);
            let text = spread.map(|it| format!("{} / {}", number(it.median), number(it.worst)));
            let _ = write!(page, " {} |", text.unwrap_or_default());
        }
        page.push('\n');
    }
    page
}

fn costs(rows: &Rows) -> String {
    let of = || rows.0.iter().filter(|row| row.contestant == packets::NAME);
    let mut figures: Vec<&str> = Vec::new();
    for row in of() {
        if !figures.contains(&row.figure.as_str()) {
            figures.push(&row.figure);
        }
    }
    let sizes = sizes(rows, figures.iter().copied());
    if sizes.is_empty() {
        return String::new();
    }
    let mut page =
        "\n## What a packet costs\n\nNanoseconds in the loaded programs above an empty one.\n\n".to_owned();
    head(&mut page, "packet, program, tables", sizes.iter().map(|size| format!("{size} Services")));
    for figure in figures {
        let _ = write!(page, "| {} |", figure.trim_start_matches("packet: "));
        for &size in &sizes {
            let value = rows.values(size, figure, packets::NAME).map(|it| format!("{:.0}", it.median));
            let _ = write!(page, " {} |", value.unwrap_or_default());
        }
        page.push('\n');
    }
    page
}
