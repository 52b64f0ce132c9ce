//! The real dataplane: generations of pinned tables, and the programs that read them.

use std::{collections::HashSet, os::fd::AsFd, path::PathBuf, time::Instant};

use aya::Ebpf;
use proxy_common::{
    layout::{Backend, Connected, Frontend, FrontendKey, Node, SocketPlane, Timeouts},
    names::{DEVICE_PROGRAMS, LAYOUT_VERSION, SOCKET_PROGRAMS, map},
};

use super::{
    Applied, Dataplane, Error, Peers,
    attach::{self, Attached},
    flows,
    grow::carry_flows,
    handover,
    load::generation,
    log::Lines,
    pins::Pins,
    probe::{self, Features},
    sockets,
    sys::{self, ProgramState},
    tables::{Fence, Tables},
    tc::Hooks,
    traces::Traces,
    within,
};
use crate::plan::{Actual, Capacity, Step};

/// What the configuration says about tables and programs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a bpf filesystem.
    pub pin_path: PathBuf,
    /// Root of cgroup2, or of the node's sub-tree.
    pub cgroup: PathBuf,
    /// Which sockets are served.
    pub socket_plane: SocketPlane,
    /// Unconnected UDP sockets that were silent this long may get another backend.
    pub udp_timeout_seconds: u32,
    /// How long flows are remembered where netfilter does not tell.
    pub timeouts: Timeouts,
    /// Keys that the table of confirmed flows has room for, two to four for each; the others follow from it.
    pub flow_keys: u32,
    /// Bits of the mark that what is masqueraded bears in the host's firewall; 0: none.
    pub masquerade_mark: u32,
    /// What is judged beside what tables lead to: bits of [`Node::guards`].
    pub guards: u32,
    /// Programs for network devices are loaded; which devices is said by steps.
    pub packet_plane: bool,
    /// Devices are opened for what the node's own sockets send from loopback.
    pub localnet: bool,
    /// Log level of the programs: 0 off, 3 info, 4 debug, 5 trace.
    pub log_level: u8,
}

/// The dataplane in the kernel.
pub struct Kernel {
    options: Options,
    pins: Pins,
    features: Features,
    object: Ebpf,
    tables: Tables,
    fence: Fence,
    traces: Traces,
    /// An entry of `frontends` was freed since the last fence: the next insert waits for one.
    freed: bool,
    active: bool,
    /// No device has programs yet: another proxy's connections may have to be left to it.
    takes_over: bool,
    hooks: Hooks,
    log: Option<Box<dyn Fn(Lines) + Send>>,
}

impl Kernel {
    /// Use what is pinned where it fits, else begin a new generation beside it; load the programs. Nothing is attached
    /// or changed for running connections before [`Dataplane::activate`].
    pub fn open(options: &Options, need: &Capacity) -> Result<Self, Error> {
        let features = Features::probe();
        tracing::debug!(?features, "probed the kernel");
        Self::open_with(options, need, features)
    }

    /// The same for a kernel that can do no more than `features`.
    pub fn open_with(options: &Options, need: &Capacity, features: Features) -> Result<Self, Error> {
        sys::lift_memory_lock_limit();
        let pins = Pins::new(&options.pin_path).with_flow_keys(options.flow_keys);
        pins.prepare()?;
        let (places, left) = pins.choose(need);
        for why in &left {
            tracing::info!("a pinned table does not fit and is built anew: {why}");
        }
        let (object, tables, fence, traces) = generation(&places, need, &features, options)?;
        let hooks = Hooks::found(&pins)?;
        let kernel = Self {
            options: options.clone(),
            pins,
            features,
            object,
            tables,
            fence,
            traces,
            freed: true,
            active: false,
            takes_over: hooks.devices().is_empty(),
            hooks,
            log: None,
        };
        kernel.write_node()?;
        Ok(kernel)
    }

    /// What the programs log, if they were told to: each loaded object's lines can be taken once, so again after a
    /// [`Dataplane::rebuild`].
    pub fn log_lines(&mut self) -> Result<Option<Lines>, Error> {
        if self.options.log_level == 0 { Ok(None) } else { Lines::of(&mut self.object).map(Some) }
    }

    /// Give what the programs log to `to`, now and after each [`Dataplane::rebuild`]; never if they log nothing.
    pub fn pass_log_to(&mut self, to: impl Fn(Lines) + Send + 'static) -> Result<(), Error> {
        self.log = Some(Box::new(to));
        self.pass_log()
    }

    fn pass_log(&mut self) -> Result<(), Error> {
        let lines = self.log_lines()?;
        if let (Some(to), Some(lines)) = (&self.log, lines) {
            to(lines);
        }
        Ok(())
    }

    /// The loaded programs, in the order in which they are attached.
    pub fn programs(&self) -> Result<Vec<(&'static str, ProgramState)>, Error> {
        let state = |name: &'static str| {
            let failed = |log: String| Error::Load { what: format!("look at the program {name}"), log };
            let program =
                self.object.program(name).ok_or_else(|| failed("it is not in the object".into()))?;
            let fd = program.fd().map_err(|error| failed(error.to_string()))?;
            let state = sys::program_state(fd.as_fd()).map_err(|error| failed(error.to_string()))?;
            Ok((name, state))
        };
        let of_devices = DEVICE_PROGRAMS.into_iter().filter(|_| self.options.packet_plane);
        SOCKET_PROGRAMS.into_iter().chain(of_devices).map(state).collect()
    }

    /// What this kernel can do.
    pub fn features(&self) -> Features {
        self.features
    }

    fn write_node(&self) -> Result<(), Error> {
        // Until a probe has answered, what an earlier agent learnt is still true: the cookie is the namespace's.
        let own = self.tables.node()?;
        let known = own.filter(|node| node.netns_cookie != 0).or_else(|| self.pins.node());
        let known = known.map_or(0, |node| node.netns_cookie);
        self.tables.set_node(&Node {
            netns_cookie: self.features.netns_cookie.unwrap_or(known),
            layout_version: LAYOUT_VERSION,
            socket_plane: self.options.socket_plane,
            udp_timeout_seconds: self.options.udp_timeout_seconds,
            owner: std::process::id(),
            probe_address: 0,
            probe_port: 0,
            // Who is left alone stands in this generation's tables.
            left_levels: own.map_or(0, |node| node.left_levels),
            guards: self.options.guards,
        })
    }

    fn write(&mut self, step: &Step) -> Result<(), Error> {
        let tables = &self.tables;
        match step {
            Step::WriteExtent { base, slots } => {
                within(map::BACKENDS, *base, slots.len(), tables.backends.len())?;
                for (place, slot) in (*base..).zip(slots.iter()) {
                    tables.set_slot(place, slot)?;
                }
                tables.backends.flush();
                Ok(())
            }
            Step::PointService { index, service } => {
                within(map::SERVICES, *index, 1, tables.services.len())?;
                tables.services.set(*index as usize, *service);
                Ok(())
            }
            Step::NameService { index, name } => tables.set_name(*index, Some(name)),
            Step::UnnameService { index } => tables.set_name(*index, None),
            Step::PutFrontend { key, value } => self.put_frontends(&[(*key, *value)]).map(drop),
            Step::DeleteFrontend { key } => {
                self.freed = true;
                tables.delete_frontend(key)
            }
            Step::PutLocalAddress { key, value } => tables.set_local_address(key, Some(value)),
            Step::DeleteLocalAddress { key } => tables.set_local_address(key, None),
            Step::PutDevice { index, device } => tables.set_device(*index, Some(device)),
            Step::DeleteDevice { index } => tables.set_device(*index, None),
            Step::PutRange { key } => tables.set_range(key, true),
            Step::DeleteRange { key } => tables.set_range(key, false),
            Step::PutMasquerade { key, value } => tables.set_masquerade(key, Some(value)),
            Step::DeleteMasquerade { key } => tables.set_masquerade(key, None),
            Step::SetLeftLevels { levels } => tables.set_left_levels(*levels),
            Step::Attach { index, name } => {
                self.hooks.add(*index, name);
                Ok(())
            }
            Step::Detach { index } => self.hooks.remove(&self.pins, *index),
            Step::SetPorts { word, bits } => {
                within(map::PORTS, *word, 1, tables.ports.len())?;
                tables.ports.set(*word as usize, *bits);
                Ok(())
            }
            Step::SetAddresses { word, bits } => {
                within(map::ADDRESSES, *word, 1, tables.addresses.len())?;
                tables.addresses.set(*word as usize, *bits);
                Ok(())
            }
            Step::Fence => self.pass_fence(),
            Step::ClearExtent { base, length } => {
                within(map::BACKENDS, *base, *length as usize, tables.backends.len())?;
                (*base..base + length).try_for_each(|slot| tables.set_slot(slot, &Backend::FREE))
            }
        }
    }

    /// Writes the first of `entries`, or the first few at once, and gives how many. A freed entry is reused at once,
    /// under the eyes of a program that still reads it: hence the fence. One that is overwritten is freed too, so only
    /// new ones are written together.
    fn put_frontends(&mut self, entries: &[(FrontendKey, Frontend)]) -> Result<usize, Error> {
        if self.freed {
            self.pass_fence()?;
        }
        let mut seen = HashSet::new();
        let mut fresh = 0;
        for (key, _) in entries {
            if !seen.insert(*key) || self.tables.has_frontend(key)? {
                break;
            }
            fresh += 1;
        }
        match (fresh, entries) {
            (0, [(key, value), ..]) => {
                self.freed = true;
                self.tables.put_frontend(key, value).map(|()| 1)
            }
            _ => self.tables.insert_frontends(&entries[..fresh]),
        }
    }

    /// Attach before an address is dialled, which takes milliseconds for each device: tables that lead nowhere serve nobody,
    /// so what is served is served in both planes from the same moment on. Not beside a generation that runs: that one
    /// serves until this one is filled. What fails here fails again, and is reported, in [`Dataplane::activate`].
    fn attach_early(&mut self) {
        let nothing_runs = || SOCKET_PROGRAMS.iter().all(|name| !self.pins.link(name).exists());
        let attached = if self.active {
            self.attach_to_devices()
        } else if nothing_runs() {
            self.activate()
        } else {
            Ok(())
        };
        if let Err(error) = attached {
            tracing::debug!("attaching before the first address: {error}");
        }
    }

    fn attach_to_devices(&mut self) -> Result<(), Error> {
        if self.options.packet_plane {
            if self.takes_over {
                handover::begin(&self.pins);
            }
            self.takes_over = false;
            self.hooks.attach(&self.object, &self.pins, self.features.tcx, self.options.localnet)?;
        }
        Ok(())
    }

    fn pass_fence(&mut self) -> Result<(), Error> {
        self.fence.wait()?;
        self.freed = false;
        Ok(())
    }
}

impl Dataplane for Kernel {
    fn capacity(&self) -> Capacity {
        self.tables.capacity()
    }

    fn read(&mut self) -> Result<Actual, Error> {
        Ok(Actual { attached: self.hooks.devices(), ..self.tables.read()? })
    }

    fn apply(&mut self, steps: &[Step]) -> Applied {
        let mut done = 0;
        while done < steps.len() {
            let frontend = |step: &Step| match step {
                Step::PutFrontend { key, value } => Some((*key, *value)),
                _ => None,
            };
            let frontends: Vec<_> = steps[done..].iter().map_while(frontend).collect();
            let written = if frontends.is_empty() {
                self.write(&steps[done]).map(|()| 1)
            } else {
                self.attach_early();
                self.put_frontends(&frontends)
            };
            match written {
                Ok(count) => done += count,
                Err(error) => return Applied { done, error: Some(error) },
            }
        }
        Applied { done, error: None }
    }

    fn rebuild(&mut self, capacity: Capacity) -> Result<(), Error> {
        // What an unfinished generation had is of no use any more; the running one is untouched.
        self.pins.discard_next()?;
        self.pins.prepare()?;
        let places = self.pins.anew();
        (self.object, self.tables, self.fence, self.traces) =
            generation(&places, &capacity, &self.features, &self.options)?;
        (self.freed, self.active) = (false, false);
        self.write_node()?;
        self.pass_log()
    }

    fn activate(&mut self) -> Result<(), Error> {
        if self.active {
            return self.attach_to_devices();
        }
        carry_flows(&self.pins);
        // Packets before sockets: whoever sees by a socket of the node that a Service answers may count on the rest.
        self.hooks.renew();
        let devices = self.attach_to_devices();
        let done = attach::attach(&mut self.object, &self.pins, &self.options.cgroup)?;
        let made = done.iter().filter(|(_, what)| *what == Attached::Made).count();
        tracing::info!(made, swapped = done.len() - made, cgroup = %self.options.cgroup.display(), "programs attached");
        carry_flows(&self.pins);
        self.pins.promote()?;
        if self.features.netns_cookie.is_none() {
            probe::netns(&self.tables, &self.options.cgroup)?;
        }
        self.active = true;
        devices
    }

    fn release(&mut self, left: Option<&Peers>, gone: &dyn Fn(&Connected) -> bool) -> Result<usize, Error> {
        sockets::release(&self.pins, &mut self.object, left, gone)
    }

    fn glance(&mut self) -> Result<Vec<String>, Error> {
        if !self.active {
            return Ok(Vec::new());
        }
        if let Some(traces) = self.traces.tidy(&self.fence, Instant::now())? {
            tracing::debug!(traces, "looked for what flows have left behind");
        }
        let mut lost = attach::lost(&self.object, &self.pins, &self.options.cgroup)?;
        self.active = lost.is_empty();
        if self.options.packet_plane {
            lost.extend(self.hooks.glance(&self.object, &self.pins, self.features.tcx)?);
            flows::follow_settings(&self.pins.map(map::PACKET_PLANE), &self.options.timeouts)?;
        }
        Ok(lost)
    }

    fn verify(&mut self) -> Result<Vec<String>, Error> {
        let mut lost = attach::lost(&self.object, &self.pins, &self.options.cgroup)?;
        if self.options.packet_plane {
            lost.extend(self.hooks.lost(&self.object, &self.pins, self.features.tcx)?);
        }
        let node = self.tables.node()?;
        if node.is_none_or(|node| node.layout_version != LAYOUT_VERSION || node.owner != std::process::id()) {
            lost.push("the map node was written by somebody else".into());
            self.write_node()?;
        }
        self.active &= lost.is_empty();
        Ok(lost)
    }
}
