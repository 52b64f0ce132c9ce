//! The devices that have the packet plane's programs: how, at which place among others, and what is wrong.

use serde::Serialize;

use super::{count, table};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRow {
    /// Its name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// What comes in; `None`: no program.
    pub ingress: Option<SideRow>,
    /// What goes out.
    pub egress: Option<SideRow>,
    /// What is wrong; `None`: nothing.
    pub problem: Option<String>,
}

/// A program on a side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SideRow {
    /// `tcx` or `clsact`.
    pub attached_by: &'static str,
    /// Which it is among those attached in its way, from 1.
    pub place: usize,
    /// How many those are.
    pub of: usize,
    /// The program's id.
    pub program_id: u32,
}

/// A line for all, and one for each with a problem, or for each.
pub(super) fn devices(rows: &[DeviceRow], all: bool) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let by = |how: &str| {
        let is = |side: Option<SideRow>| side.is_some_and(|side| side.attached_by == how);
        rows.iter().filter(|row| is(row.ingress) && is(row.egress)).count()
    };
    let (tcx, clsact) = (by("tcx"), by("clsact"));
    let troubled = rows.iter().filter(|row| row.problem.is_some()).count();
    let ways = [("tcx", tcx), ("clsact", clsact), ("both", rows.len() - tcx - clsact)];
    let ways = ways.into_iter().filter(|(_, number)| *number > 0);
    let ways: Vec<_> = ways.map(|(way, number)| format!("{number} by {way}")).collect();
    let problems = if troubled == 0 { "no problem".into() } else { count(troubled, "problem", "problems") };
    let head = format!("{}: {}, {problems}\n", count(rows.len(), "device", "devices"), ways.join(", "));
    let shown = rows.iter().filter(|row| all || row.problem.is_some()).map(|row| {
        let side = |side: Option<SideRow>| match side {
            Some(SideRow { attached_by, place, of, .. }) => format!("{attached_by}, {place} of {of}"),
            None => "-".into(),
        };
        let problem = row.problem.clone().unwrap_or_default();
        [row.name.clone(), row.ifindex.to_string(), side(row.ingress), side(row.egress), problem]
    });
    let shown: Vec<_> = shown.collect();
    if shown.is_empty() {
        return head;
    }
    head + &table(["DEVICE", "IFINDEX", "INGRESS", "EGRESS", "PROBLEM"], shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, by: [&'static str; 2], problem: Option<&str>) -> DeviceRow {
        let side = |attached_by| Some(SideRow { attached_by, place: 1, of: 2, program_id: 7 });
        let [ingress, egress] = by.map(side);
        DeviceRow { name: name.into(), ifindex: 3, ingress, egress, problem: problem.map(Into::into) }
    }

    #[test]
    fn many_devices_are_one_line_and_those_with_a_problem_are_named() {
        let mut rows: Vec<_> =
            (0..250).map(|number| row(&format!("veth{number}"), ["tcx", "tcx"], None)).collect();
        assert_eq!(devices(&rows, false), "250 devices: 250 by tcx, no problem\n");
        rows.push(row("eth0", ["clsact", "tcx"], Some("the program at ingress was detached")));
        let text = devices(&rows, false);
        insta::assert_snapshot!(text, @r"
        251 devices: 250 by tcx, 1 by both, 1 problem
        DEVICE   IFINDEX   INGRESS          EGRESS        PROBLEM
        eth0     3         clsact, 1 of 2   tcx, 1 of 2   the program at ingress was detached
        ");
        assert_eq!(devices(&rows, true).lines().count(), 2 + rows.len());
        assert_eq!(devices(&[], true), "");
    }
}
