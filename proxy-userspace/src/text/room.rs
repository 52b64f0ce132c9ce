//! How full the tables of flows are, and who had to leave them: a row for each table and reason in `vipr status`.

use proxy_common::layout::FlowCount;
use serde::Serialize;

use super::table;

/// A table of flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRoom {
    /// Of map and pin.
    pub table: &'static str,
    /// Keys in use.
    pub used: u32,
    /// Keys there is room for.
    pub room: u32,
    /// Keys that left it otherwise than by a packet, by why; since the table was made.
    pub removed: Vec<Removal>,
}

/// Why keys left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// Short.
    pub reason: &'static str,
    /// Keys.
    pub keys: u64,
    /// What it means.
    pub help: &'static str,
}

impl FlowRoom {
    /// From the counts of a table.
    pub fn new(table: &'static str, used: u32, room: u32, count: impl Fn(FlowCount) -> u64) -> Self {
        let removal = |what: FlowCount| Removal { reason: what.name(), keys: count(what), help: what.help() };
        Self { table, used, room, removed: FlowCount::REMOVALS.map(removal).into() }
    }
}

/// Only what came to pass.
pub(super) fn rooms(rows: &[FlowRoom]) -> String {
    let all = rows.iter().flat_map(|row| row.removed.iter().map(move |removal| (row, removal)));
    let rows: Vec<_> = all
        .filter(|(_, removal)| removal.keys > 0)
        .map(|(row, removal)| {
            [row.table.into(), removal.reason.into(), removal.keys.to_string(), removal.help.into()]
        })
        .collect();
    if rows.is_empty() { String::new() } else { table(["TABLE", "REMOVED", "KEYS", "MEANING"], rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_left_a_table_is_shown_by_why_and_what_did_not_happen_is_not() {
        let room = |table, keys: [u64; 2]| {
            FlowRoom::new(table, 900, 2048, move |what| match what {
                FlowCount::Expired => keys[0],
                FlowCount::Evicted => keys[1],
                _ => 0,
            })
        };
        insta::assert_snapshot!(rooms(&[room("flows", [12, 0]), room("flows_new_tcp", [3, 70_000])]), @r"
        TABLE           REMOVED   KEYS    MEANING
        flows           expired   12      Silent for longer than netfilter would remember it.
        flows_new_tcp   expired   3       Silent for longer than netfilter would remember it.
        flows_new_tcp   evicted   70000   Evicted by the kernel, because the table had no room: whoever was not looked up for longest.
        ");
        assert_eq!(rooms(&[room("flows", [0, 0])]), "");
    }
}
