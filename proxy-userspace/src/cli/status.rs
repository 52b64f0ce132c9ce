//! `vipr status`: the agent's own word and what is pinned, side by side.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Result;

use super::{
    ask,
    output::{Output, Pins, Run},
};
use crate::{
    config::cgroup,
    dataplane::{self, Error, PinnedDevice, PinnedMap, PinnedProgram, PinnedSide},
    report::Moment,
    run::{Place, flow_rooms},
    text::{DeviceRow, MapRow, Outcome, ProgramRow, SideRow, Status},
};

/// Arguments of `vipr status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes:
  0  all is well
  1  the state could not be determined
  2  the command line is wrong
  3  no agent runs; the node serves from what is pinned
  4  something needs attention: the last pass failed, a source can't be heard, programs are not attached, or not in their place")]
pub struct Args {
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    run: Run,
    /// Show every device that has programs, not only those with a problem
    #[arg(long)]
    devices: bool,
    #[command(flatten)]
    output: Output,
}

/// Say how the node does.
pub fn run(args: Args) -> Result<ExitCode> {
    let pin_path = &args.pins.pin_path;
    let socket = Place::new(pin_path, &args.run.run_path).socket();
    let agent = ask::report(&socket).map_err(|error| format!("{error:#}"));
    let (maps, devices) = match dataplane::read_pinned(pin_path) {
        Ok((actual, _)) => {
            let devices = dataplane::pinned_devices(pin_path, &actual)?;
            (dataplane::pinned_maps(pin_path, &actual)?, devices)
        }
        // An agent that has just started has no tables in use yet.
        Err(Error::NothingPinned { .. }) if agent.is_ok() => (Vec::new(), Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let programs = rows(dataplane::pinned_programs(pin_path)?);
    let counters = dataplane::counters(pin_path).unwrap_or_default();
    let outcomes = counters.into_iter().filter(|(_, count)| *count > 0);
    let outcomes =
        outcomes.map(|(reason, count)| Outcome { reason: reason.name(), count, help: reason.help() });
    let now = Moment::now();
    let devices = devices.into_iter().map(device).collect();
    let maps = maps.iter().map(map).collect();
    let handover = dataplane::pinned_handover(pin_path).ok().flatten();
    let status = Status::new(agent, programs, devices, maps, outcomes.collect(), now)
        .with_handed_over(handover.map(|handover| handover.connections))
        .with_flows(flow_rooms(pin_path).unwrap_or_default());
    args.output.answer(&status, |status| status.text(now, args.devices))?;
    Ok(ExitCode::from(status.code))
}

fn rows(programs: Vec<PinnedProgram>) -> Vec<ProgramRow> {
    let mut paths = cgroups(programs.iter().filter_map(|program| Some(program.link?.cgroup)));
    let row = |program: PinnedProgram| {
        let cgroup_id = program.link.map(|link| link.cgroup).filter(|id| *id != 0);
        ProgramRow {
            name: program.name,
            pinned: program.link.is_some(),
            cgroup_id,
            cgroup: cgroup_id.and_then(|id| paths.get_mut(&id)?.clone()),
            program_id: program.link.map(|link| link.program),
            verified_instructions: program.link.map(|link| link.verified).filter(|count| *count != 0),
        }
    };
    programs.into_iter().map(row).collect()
}

fn device(device: PinnedDevice) -> DeviceRow {
    let side = |side: PinnedSide| SideRow {
        attached_by: if side.tcx { "tcx" } else { "clsact" },
        place: side.place,
        of: side.of,
        program_id: side.program,
    };
    let [ingress, egress] = device.sides.map(|found| found.map(side));
    DeviceRow { name: device.name, ifindex: device.index, ingress, egress, problem: device.problem }
}

fn map(map: &PinnedMap) -> MapRow {
    MapRow { name: map.name, used: map.used, room: (map.room != 0).then_some(map.room), bytes: map.bytes }
}

/// The paths of these cgroups, as far as they can be seen from here. The nearest to the root are found first.
fn cgroups(wanted: impl Iterator<Item = u64>) -> BTreeMap<u64, Option<String>> {
    /// A node with more of them than this is looked at no further.
    const FOLDERS: usize = 20_000;
    let mut found: BTreeMap<u64, Option<String>> = wanted.map(|id| (id, None)).collect();
    let root = fs::read_to_string("/proc/self/mountinfo").ok().and_then(|text| cgroup::mount_point(&text));
    let mut queue: VecDeque<PathBuf> = root.into_iter().collect();
    let mut seen = 0;
    while let Some(folder) = queue.pop_front() {
        seen += 1;
        if seen > FOLDERS || found.values().all(Option::is_some) {
            break;
        }
        let Ok(metadata) = fs::metadata(&folder) else { continue };
        if let Some(path) = found.get_mut(&metadata.ino()) {
            *path = Some(folder.display().to_string());
        }
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        queue.extend(below.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
    }
    found
}
