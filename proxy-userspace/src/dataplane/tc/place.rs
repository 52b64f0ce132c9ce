//! One side of one device: how a program is put there, and whether it is still in its place.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya_obj::generated::{BPF_F_AFTER, BPF_F_BEFORE, bpf_attach_type};

use super::{
    super::{Error, pins::Pins, sys},
    PinnedSide,
    filters::{Filter, Netlink, Side},
};

/// `vipr` in ASCII: cls_bpf takes any 32 bits, and nobody else picks these.
const HANDLE: u32 = 0x7669_7072;

impl Side {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The program's name in the object, and the end of its pin's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// `bpf_attach_type`.
    pub fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
            Self::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
        }
    }

    /// `BPF_F_AFTER` and `BPF_F_BEFORE` with nothing to be after or before: all.
    pub fn order(self) -> u32 {
        match self {
            Self::Ingress => BPF_F_AFTER,
            Self::Egress => BPF_F_BEFORE,
        }
    }

    pub(super) fn filter(self) -> Filter {
        let priority = match self {
            Self::Ingress => u16::MAX,
            Self::Egress => 1,
        };
        Filter { handle: HANDLE, priority, program: 0 }
    }

    /// Whether what is ours stands where it should among all.
    fn is_in_place<T>(self, all: &[T], ours: impl Fn(&T) -> bool) -> bool {
        let end = match self {
            Self::Ingress => all.last(),
            Self::Egress => all.first(),
        };
        end.is_some_and(ours)
    }
}

pub(super) fn is_ours(filter: &Filter) -> bool {
    filter.handle == HANDLE && Side::ALL.iter().any(|side| side.filter().priority == filter.priority)
}

/// Where programs are put.
pub(super) struct Place<'a> {
    pub(super) pins: &'a Pins,
    pub(super) netlink: &'a Netlink,
    pub(super) tcx: bool,
}

impl Place<'_> {
    /// Make `program` the one that runs; what is not how it should be attached goes afterwards.
    pub(super) fn put(&self, index: u32, side: Side, program: BorrowedFd<'_>) -> Result<(), Error> {
        let failed = |what: &str| {
            let what = format!("{what} at {} of device {index}", side.name());
            move |source| Error::Kernel { what, source }
        };
        let filters = self.netlink.filters(index, side).map_err(failed("read the filters"))?;
        if self.wants_link(side, &filters) {
            self.put_link(index, side, program).map_err(failed("attach a tcx link"))?;
            if filters.iter().any(is_ours) {
                self.netlink.delete(index, side, side.filter()).map_err(failed("remove the filter"))?;
                self.netlink.remove_empty_clsact(index).map_err(failed("remove the clsact qdisc"))?;
            }
            return Ok(());
        }
        let is_whole = self.netlink.add_clsact(index).map_err(failed("add the clsact qdisc"))?;
        if !is_whole && side == Side::Egress {
            let source =
                io::Error::other("its qdisc `ingress` is somebody else's: clsact does the same and more");
            return Err(failed("attach a filter")(source));
        }
        let is_there = filters.iter().any(is_ours);
        let is_in_place = side.is_in_place(&filters, is_ours);
        if is_there && !is_in_place {
            self.netlink.delete(index, side, side.filter()).map_err(failed("move the filter"))?;
        }
        let fd = program.as_raw_fd() as u32;
        let is_new = !(is_there && is_in_place);
        self.netlink
            .put(index, side, side.filter(), fd, side.name(), is_new)
            .map_err(failed("attach a filter (is its priority taken by one of another kind or protocol?)"))?;
        remove_link(&self.pin(index, side)).map_err(failed("remove the tcx link"))
    }

    /// Filters run behind all of tcx: there a link is too early at ingress, and early enough at egress.
    fn wants_link(&self, side: Side, filters: &[Filter]) -> bool {
        self.tcx && (side == Side::Egress || filters.iter().all(is_ours))
    }

    fn put_link(&self, index: u32, side: Side, program: BorrowedFd<'_>) -> io::Result<()> {
        let pin = self.pin(index, side);
        if let Some(link) = running(&pin, index)? {
            let id = sys::link_state(link.as_fd())?.id;
            let all = sys::tcx_query(index, side.attach_type())?;
            if side.is_in_place(&all, |(_, link)| *link == id) {
                return sys::link_update(link.as_fd(), program);
            }
            // The kernel moves no link, and takes no program twice.
            sys::link_detach(link.as_fd())?;
        }
        remove_file(&pin)?;
        fs::create_dir_all(self.pins.device_links())?;
        let link = sys::link_create_tcx(program, index, side.attach_type(), side.order())?;
        sys::object_pin(link.as_fd(), &pin)
    }

    /// What is wrong with a device's program, if anything is.
    pub(super) fn why_not(
        &self,
        index: u32,
        side: Side,
        program: u32,
    ) -> Result<Option<&'static str>, Error> {
        let (found, why) = self.state(index, side)?;
        let is_other = found.is_some_and(|found| found.program != program);
        Ok(if is_other { Some("is another one") } else { why })
    }

    /// How the program of a side is attached, and what is wrong with that.
    pub(super) fn state(
        &self,
        index: u32,
        side: Side,
    ) -> Result<(Option<PinnedSide>, Option<&'static str>), Error> {
        let failed = |source| Error::Kernel {
            what: format!("look at what is attached at {} of device {index}", side.name()),
            source,
        };
        let filters = self.netlink.filters(index, side).map_err(failed)?;
        let ours = filters.iter().position(is_ours);
        let link = running(&self.pin(index, side), index).map_err(failed)?;
        let wants_link = self.wants_link(side, &filters);
        let found = match (&link, ours) {
            (Some(link), ours) if wants_link || ours.is_none() => {
                let state = sys::link_state(link.as_fd()).map_err(failed)?;
                let all = sys::tcx_query(index, side.attach_type()).map_err(failed)?;
                let place = all.iter().position(|(_, link)| *link == state.id);
                place.map(|place| PinnedSide {
                    tcx: true,
                    place: place + 1,
                    of: all.len(),
                    program: state.program,
                })
            }
            (_, Some(place)) => {
                let program = filters[place].program;
                Some(PinnedSide { tcx: false, place: place + 1, of: filters.len(), program })
            }
            _ => None,
        };
        let last = side == Side::Ingress;
        let why = match found {
            None => Some("was detached"),
            Some(found) if found.tcx != wants_link => {
                Some(if wants_link { "is a filter" } else { "has no filter where there are others" })
            }
            Some(PinnedSide { place, of, .. }) if place != if last { of } else { 1 } => {
                Some("is not in its place among others")
            }
            Some(_) if link.is_some() && ours.is_some() => Some("runs twice"),
            Some(_) => None,
        };
        Ok((found, why))
    }

    fn pin(&self, index: u32, side: Side) -> PathBuf {
        self.pins.device_link(index, side.name())
    }
}

/// The link pinned at `pin` if it is attached to this device: that of a deleted device stays, and leads nowhere.
fn running(pin: &Path, index: u32) -> io::Result<Option<OwnedFd>> {
    let link = match sys::object_get(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok((sys::link_state(link.as_fd())?.device == index).then_some(link))
}

/// Detach what is pinned, then remove the pin; of a deleted device nothing is attached any more.
pub(super) fn remove_link(pin: &Path) -> io::Result<()> {
    let detached = sys::object_get(pin).and_then(|link| sys::link_detach(link.as_fd()));
    if let Err(error) = detached
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!("detach {}: {error}", pin.display());
    }
    remove_file(pin)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
