//! The object: embedded, its switches set, its maps placed, its programs loaded.

use std::{fs, io, os::unix::fs::MetadataExt, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{Program, ProgramError},
};
use proxy_common::names::{DEVICE_PROGRAMS, SOCKET_PROGRAMS, map};

use super::{
    Error, Options, flows,
    probe::Features,
    shapes::{FENCE, Role, Table, entries, flow_entries},
    tables::{Fence, Tables},
    traces::Traces,
};
use crate::plan::Capacity;

/// The programs, built by `cargo xtask build-ebpf`; empty in a build without them.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/vipr-ebpf.o"));

/// How often a program is given to the verifier again that a signal has stopped.
const RETRIES: u32 = 10;

/// Load the object with its maps at `places` and its programs through the verifier, those of the
/// packet plane only if there is to be one. Statements above [`Options::log_level`] cost nothing.
pub fn load(
    places: &[(Table, PathBuf)],
    need: &Capacity,
    features: &Features,
    options: &Options,
) -> Result<Ebpf, Error> {
    if OBJECT.is_empty() {
        return Err(Error::Load {
            what: "this binary was built without its BPF object: build it with `cargo xtask build`".into(),
            log: String::new(),
        });
    }
    let have_retval = u32::from(features.set_retval);
    let have_coarse = u32::from(features.coarse_clock);
    let probe_netns = u32::from(features.netns_cookie.is_none());
    let namespace_tag = namespace_tag();
    let mut loader = EbpfLoader::new();
    loader
        // Nothing of the object is relocated by the kernel's own types, and they take 20 MB.
        .btf(None)
        .override_global("HAVE_RETVAL", &have_retval, true)
        .override_global("HAVE_COARSE", &have_coarse, true)
        .override_global("PROBE_NETNS", &probe_netns, true)
        .override_global("MASQUERADE_MARK", &options.masquerade_mark, true)
        .override_global("NAMESPACE_TAG", &namespace_tag, true)
        .override_global("AYA_LOG_LEVEL", &options.log_level, true);
    for (table, path) in places.iter().filter(|(table, _)| table.name != map::FENCE) {
        loader.map_pin_path(table.name, path);
        let flows = flow_entries(table.name, options.flow_keys);
        if let Some(entries) = flows.or_else(|| (table.role == Role::Cluster).then(|| entries(table, need))) {
            loader.map_max_entries(table.name, entries);
        }
    }
    let mut object = loader.load(OBJECT).map_err(|error| Error::Load {
        what: "load the BPF object and create its maps".into(),
        log: chain(&error),
    })?;
    let of_devices = DEVICE_PROGRAMS.into_iter().filter(|_| options.packet_plane);
    for name in SOCKET_PROGRAMS.into_iter().chain(of_devices) {
        let mut loaded = verify(&mut object, name)?;
        for _ in 0..RETRIES {
            if !is_interrupted(&loaded) {
                break;
            }
            loaded = verify(&mut object, name)?;
        }
        loaded.map_err(|error| Error::Load {
            what: format!("load the program {name}"),
            log: verifier(&error),
        })?;
    }
    Ok(object)
}

/// The number of this thread's network namespace, of which programs use the last bits: namespaces that live at the same
/// time have different ones. 0 where it is not told.
fn namespace_tag() -> u32 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |namespace| namespace.ino() as u32)
}

/// One program through the verifier; what that said.
fn verify(object: &mut Ebpf, name: &str) -> Result<Result<(), ProgramError>, Error> {
    match object.program_mut(name) {
        Some(Program::CgroupSockAddr(program)) => Ok(program.load()),
        Some(Program::SchedClassifier(program)) => Ok(program.load()),
        _ => Err(Error::Load { what: format!("the BPF object has no program {name}"), log: String::new() }),
    }
}

/// A signal came while the verifier was at work: it stops then, and says so.
fn is_interrupted(loaded: &Result<(), ProgramError>) -> bool {
    matches!(loaded, Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock)
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// The last lines of what the verifier said.
fn verifier(error: &ProgramError) -> String {
    const LINES: usize = 25;
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            format!("{io_error}\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
        }
        other => chain(other),
    }
}

/// Load the object over the tables pinned at `places`; those that are not are made and pinned there.
pub(super) fn generation(
    places: &[(Table, PathBuf)],
    need: &Capacity,
    features: &Features,
    options: &Options,
) -> Result<(Ebpf, Tables, Fence, Traces), Error> {
    let path = |name: &str| {
        let place = places.iter().find(|(table, _)| table.name == name);
        place.map_or_else(PathBuf::new, |(_, path)| path.clone())
    };
    let fence = Fence::open(FENCE.shape, &path(map::FENCE))?;
    let object = load(places, need, features, options)?;
    flows::write_settings(&path(map::PACKET_PLANE), &options.timeouts)?;
    let tables = Tables::open(path)?;
    let traces = Traces::open(path)?;
    Ok((object, tables, fence, traces))
}
