//! The one text form of what vipr holds and says: rows that serialize to JSON for programs, tables for people. Names in
//! JSON are stable. Pure: ages are given a present.

mod backends;
mod devices;
mod explain;
mod flows;
mod room;
mod served;
mod services;
mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};

pub use backends::{BackendRow, backends, backends_text};
pub use devices::{DeviceRow, SideRow};
pub use explain::{CallRow, EndpointRow, Explanation, LeftOut, SetRow};
pub use flows::{FlowEntry, FlowList, FlowRow, flows};
pub use room::{FlowRoom, Removal};
pub use served::split_name;
pub use services::{FrontendRow, ServiceRow, services, services_text};
pub use status::{MapRow, Outcome, ProgramRow, Status};

/// Columns without borders, as kubectl has them; nothing is cut, whatever the terminal's width.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// Lines of a name and what it is.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let lines = facts.into_iter().map(|(name, fact)| {
        let mut lines = fact.lines();
        let first = format!("{name:<11}{}", lines.next().unwrap_or_default());
        let more = lines.map(|line| format!("{:11}{line}", ""));
        [first].into_iter().chain(more).map(|line| format!("{}\n", line.trim_end())).collect::<String>()
    });
    lines.collect()
}

/// Two units at most: how a person would say it.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    let two = |large: u64, unit: &str, small: u64, sub: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {sub}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(minutes, "min", seconds % 60, "s"),
        3600..86400 => two(hours, "h", minutes, "min"),
        _ => two(days, "d", hours, "h"),
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A number of things.
pub fn count(number: usize, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}
