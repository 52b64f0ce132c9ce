//! `vipr status`: how old the view is, how the agent does, what runs in the kernel.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;

use super::{DeviceRow, FlowRoom, bytes, count, devices::devices, duration, facts, room::rooms, table};
use crate::report::{LeftPod, LeftToSocket, Moment, Odd, Report, SourceState};

/// All that `vipr status` says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What [`Self::code`] gives.
    pub code: u8,
    /// How old the view of the cluster is; `None`: nobody knows.
    pub view_age_seconds: Option<f64>,
    /// What the agent says; `None`: none answers.
    pub agent: Option<Report>,
    /// Why it does not answer.
    pub agent_error: Option<String>,
    /// Connections that another proxy began and that are left to netfilter; `None`: no handover goes on.
    pub handed_over: Option<usize>,
    /// What somebody should look at.
    pub attention: Vec<String>,
    /// The programs of the socket plane.
    pub programs: Vec<ProgramRow>,
    /// The devices that are to have the packet plane's programs.
    pub devices: Vec<DeviceRow>,
    /// The pinned maps.
    pub maps: Vec<MapRow>,
    /// The tables of flows, and who left them.
    pub flows: Vec<FlowRoom>,
    /// What the programs did so far; only what came to pass.
    pub outcomes: Vec<Outcome>,
}

/// A program of the socket plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramRow {
    /// As in the object.
    pub name: &'static str,
    /// Its link is pinned.
    pub pinned: bool,
    /// Inode of the cgroup it is attached at.
    pub cgroup_id: Option<u64>,
    /// The path of that cgroup, if it can be seen from here.
    pub cgroup: Option<String>,
    /// The program's id.
    pub program_id: Option<u32>,
    /// Instructions that the verifier walked.
    pub verified_instructions: Option<u32>,
}

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapRow {
    /// Of map and pin.
    pub name: &'static str,
    /// Entries in use; `None`: not counted.
    pub used: Option<u32>,
    /// Entries there is room for; `None`: as many as there are sockets.
    pub room: Option<u32>,
    /// Memory that it takes.
    pub bytes: Option<u64>,
}

/// An outcome and how often it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Of the reason.
    pub reason: &'static str,
    /// Since the map was made.
    pub count: u64,
    /// What it means.
    pub help: &'static str,
}

/// Left-out objects that are shown to people; programs get all that the agent remembers.
const SHOWN: usize = 10;

impl Status {
    /// Judge what was found.
    pub fn new(
        agent: Result<Report, String>,
        programs: Vec<ProgramRow>,
        devices: Vec<DeviceRow>,
        maps: Vec<MapRow>,
        outcomes: Vec<Outcome>,
        now: Moment,
    ) -> Self {
        let (agent, agent_error) = match agent {
            Ok(report) => (Some(report), None),
            Err(why) => (None, Some(why)),
        };
        let attention = attention(agent.as_ref(), &programs, &devices);
        let code = match (&agent, attention.is_empty()) {
            (_, false) => Self::ATTENTION,
            (None, true) => Self::NO_AGENT,
            (Some(_), true) => 0,
        };
        let age = agent.as_ref().and_then(|report| report.age(now.0));
        let view_age_seconds = age.map(|age| age.as_secs_f64());
        Self {
            code,
            view_age_seconds,
            agent,
            agent_error,
            handed_over: None,
            attention,
            programs,
            devices,
            maps,
            flows: Vec::new(),
            outcomes,
        }
    }

    /// With the tables of flows.
    pub fn with_flows(self, flows: Vec<FlowRoom>) -> Self {
        Self { flows, ..self }
    }

    /// While connections of another proxy are left to netfilter.
    pub fn with_handed_over(self, connections: Option<usize>) -> Self {
        Self { handed_over: connections, ..self }
    }

    /// Exit code: no agent runs, and the node serves from what is pinned.
    pub const NO_AGENT: u8 = 3;
    /// Exit code: somebody should look.
    pub const ATTENTION: u8 = 4;

    /// For people; `every_device` or only those with a problem.
    pub fn text(&self, now: Moment, every_device: bool) -> String {
        let mut text = self.head(now);
        if let Some(report) = &self.agent {
            text.push('\n');
            text.push_str(&sources(&report.sources, now));
            text.push_str(&left_out(report, now));
            text.push_str(&left_to_sockets(&report.left_to_sockets));
            text.push_str(&left_pods(&report.left_pods));
        }
        text.push('\n');
        text.push_str(&programs(&self.programs));
        let devices = devices(&self.devices, every_device);
        if !devices.is_empty() {
            text.push('\n');
            text.push_str(&devices);
        }
        if !self.maps.is_empty() {
            text.push('\n');
            text.push_str(&maps(&self.maps));
        }
        let rooms = rooms(&self.flows);
        if !rooms.is_empty() {
            text.push('\n');
            text.push_str(&rooms);
        }
        if !self.outcomes.is_empty() {
            text.push('\n');
            let rows = self.outcomes.iter();
            let rows = rows.map(|row| [row.reason.into(), row.count.to_string(), row.help.into()]);
            text.push_str(&table(["OUTCOME", "COUNT", "MEANING"], rows));
        }
        text
    }

    fn head(&self, now: Moment) -> String {
        let left = |connections| {
            let connections = count(connections, "connection", "connections");
            (
                "handover",
                format!(
                    "{connections} of another proxy left to netfilter: no `kube-proxy --cleanup` before they end"
                ),
            )
        };
        let attention = self.attention.iter().map(|why| ("attention", why.clone()));
        let rest = self.handed_over.map(left).into_iter().chain(attention);
        let Some(report) = &self.agent else {
            let why = self.agent_error.as_deref().unwrap_or("no agent answers");
            let view = format!("unknown: no agent answers ({why})");
            let serves = self.programs.iter().all(|program| program.cgroup_id.is_some());
            let agent = if serves { "none: the node serves from what is pinned" } else { "none" }.to_owned();
            return facts([("view", view), ("agent", agent)].into_iter().chain(rest));
        };
        let since = ago(report.started, now);
        let agent = format!(
            "process {}, version {}, since {} ({since})",
            report.pid,
            report.version,
            when(report.started)
        );
        let node = match report.node {
            None => format!("{} (its Node object was never seen)", report.node_name),
            Some(node) if node.leaving => format!("{} (leaving the cluster)", report.node_name),
            Some(_) => report.node_name.clone(),
        };
        let written = report.applied.as_ref().map_or("nothing yet".into(), |written| {
            let steps = count(written.steps, "step", "steps");
            let (took, at) = (written.microseconds, ago(written.at, now));
            format!("{steps} in {took} µs, {at} ago (pass {})", written.passes)
        });
        let pending = report.pending_since.map(|since| format!("a change, for {}", ago(since, now)));
        let repaired = (report.repaired > 0 || report.grown > 0).then(|| {
            let entries = count(report.repaired as usize, "difference", "differences");
            format!("{entries} put right, tables grown {}", times(report.grown))
        });
        let lines = [
            ("view", self.view(report)),
            ("agent", agent),
            ("node", node),
            ("written", written),
            ("pending", pending.unwrap_or_else(|| "nothing".into())),
            ("error", report.error.clone().unwrap_or_else(|| "none".into())),
        ];
        let repaired = repaired.map(|repaired| ("repaired", repaired));
        facts(lines.into_iter().chain(repaired).chain(rest))
    }

    fn view(&self, report: &Report) -> String {
        let Some(age) = self.view_age_seconds else {
            let waiting: Vec<_> =
                report.sources.iter().filter(|s| !s.synced).map(|s| s.source.as_str()).collect();
            return format!("unknown: {} not told everything yet", has_have(&waiting));
        };
        let unsynced: Vec<_> =
            report.sources.iter().filter(|s| !s.synced).map(|s| s.source.as_str()).collect();
        let synced = if unsynced.is_empty() {
            "synced".into()
        } else {
            format!("waiting for {}", unsynced.join(", "))
        };
        let age = duration(Duration::from_secs_f64(age.max(0.0)));
        format!("{age} old (services, slices heard from; {synced})")
    }
}

/// What somebody should look at.
fn attention(agent: Option<&Report>, programs: &[ProgramRow], devices: &[DeviceRow]) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(report) = agent {
        found.extend(report.error.as_ref().map(|error| format!("the last pass failed: {error}")));
        let broken = report.sources.iter().filter_map(|s| Some((&s.source, s.broken.as_ref()?)));
        found.extend(broken.map(|(source, why)| format!("{source} can't be heard: {why}")));
    }
    let missing: Vec<_> =
        programs.iter().filter(|program| !program.pinned).map(|program| program.name).collect();
    if !missing.is_empty() {
        found.push(format!("not attached: {}", missing.join(", ")));
    }
    let detached = programs.iter().filter(|program| program.pinned && program.cgroup_id.is_none());
    found.extend(detached.map(|program| format!("{} was detached from its cgroup", program.name)));
    let mut troubled = devices.iter().filter_map(|device| Some((&device.name, device.problem.as_ref()?)));
    if let Some((name, problem)) = troubled.next() {
        let more = troubled.count();
        let more = if more == 0 { String::new() } else { format!(", and {more} more devices") };
        found.push(format!("{name}: {problem}{more}"));
    }
    found
}

fn sources(sources: &[SourceState], now: Moment) -> String {
    let rows = sources.iter().map(|state| {
        [
            state.source.clone(),
            if state.synced { "yes" } else { "no" }.into(),
            state.heard.map_or("never".into(), |heard| format!("{} ago", ago(heard, now))),
            state.changes.to_string(),
            state.broken.clone().unwrap_or_default(),
        ]
    });
    table(["SOURCE", "SYNCED", "HEARD", "CHANGES", "BROKEN"], rows)
}

fn left_out(report: &Report, now: Moment) -> String {
    if report.odd_total == 0 {
        return String::new();
    }
    let row = |odd: &Odd| {
        let what = if odd.whole { "all of it" } else { "a part" };
        [
            format!("{} ago", ago(odd.at, now)),
            odd.source.clone(),
            odd.object.clone(),
            what.into(),
            odd.why.clone(),
        ]
    };
    let newest = report.odd.iter().rev().take(SHOWN);
    let text = table(["LEFT OUT", "SOURCE", "OBJECT", "WHAT", "WHY"], newest.clone().map(row));
    let more = report.odd_total - newest.count() as u64;
    let more = if more > 0 { format!("and {more} before\n") } else { String::new() };
    format!("\n{text}{more}")
}

fn left_to_sockets(all: &[LeftToSocket]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let rows = all.iter().map(|left| {
        let at = match left.address {
            IpAddr::V4(v4) => format!("{v4}:{}/{}", left.port, left.protocol),
            IpAddr::V6(v6) => format!("[{v6}]:{}/{}", left.port, left.protocol),
        };
        [at, left.service.clone(), "a socket of this node listens there".into()]
    });
    format!("\n{}", table(["NOT SERVED", "SERVICE", "BECAUSE"], rows))
}

fn left_pods(all: &[LeftPod]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let rows = all.iter().map(|left| {
        let served = match left.cgroup {
            Some(id) => [format!("inode {id}"), "by packets, as it asks".into()],
            None => ["not found".into(), "at their sockets, though it asks for packets".into()],
        };
        let [cgroup, served] = served;
        [left.pod.clone(), cgroup, served]
    });
    format!("\n{}", table(["POD", "CGROUP", "SERVED"], rows))
}

fn programs(rows: &[ProgramRow]) -> String {
    let number = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
    let rows = rows.iter().map(|row| {
        let cgroup = match (row.pinned, row.cgroup_id, &row.cgroup) {
            (false, ..) => "not attached".into(),
            (true, None, _) => "detached".into(),
            (true, Some(_), Some(path)) => path.clone(),
            (true, Some(id), None) => format!("inode {id}"),
        };
        [row.name.into(), cgroup, number(row.program_id), number(row.verified_instructions)]
    });
    table(["PROGRAM", "CGROUP", "ID", "VERIFIED"], rows)
}

fn maps(rows: &[MapRow]) -> String {
    let number = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
    let rows = rows.iter().map(|row| {
        let fill = match (row.used, row.room) {
            (Some(used), Some(room)) if room > 0 => format!("{}%", u64::from(used) * 100 / u64::from(room)),
            _ => "-".into(),
        };
        [row.name.into(), number(row.used), number(row.room), fill, row.bytes.map_or("-".into(), bytes)]
    });
    table(["MAP", "USED", "ROOM", "FILL", "MEMORY"], rows)
}

fn ago(then: Moment, now: Moment) -> String {
    duration(now.0.duration_since(then.0).unwrap_or_default())
}

/// Without fractions of a second.
fn when(moment: Moment) -> String {
    let text = moment.to_string();
    text.split_once('.').map_or_else(|| text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

fn times(number: u64) -> String {
    if number == 1 { "once".into() } else { format!("{number} times") }
}

fn has_have(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "has" } else { "have" };
    format!("{} {verb}", names.join(", "))
}
