//! Which slots of `backends` are whose: free, written, current, retired. A run of slots leaves `retired` only through
//! a fence and a clearing (ADR 0003), and nothing here changes before a step was carried out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proxy_common::layout::{Backend, Role};

use super::{Actual, Step};

/// Consecutive slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) base: u32,
    pub(super) length: u32,
}

/// Every slot but slot 0.
#[derive(Debug)]
pub(super) struct Extents {
    free: Free,
    /// Written, and no service points there yet.
    written: BTreeMap<u32, u32>,
    /// By service index: what its word points at.
    current: HashMap<u32, Run>,
    /// No service points there any more, but a program may still read it.
    retired: BTreeMap<u32, u32>,
    /// Retired before the last fence: to be cleared.
    fenced: BTreeMap<u32, u32>,
}

impl Extents {
    /// What was read back. Slots that no service points at, or that don't fit together with the word that does, are
    /// orphans: retired, since a program may still read them.
    pub(super) fn adopt(actual: &Actual, capacity: u32) -> Self {
        let mut extents = Self {
            free: Free::default(),
            written: BTreeMap::new(),
            current: HashMap::new(),
            retired: BTreeMap::new(),
            fenced: BTreeMap::new(),
        };
        let mut unclaimed = Free::default();
        unclaimed.give(1, capacity.saturating_sub(1));
        let mut broken = Vec::new();
        for (&index, word) in &actual.services {
            match whole(actual, index, word.extent) {
                Some(length) if unclaimed.carve(word.extent, length) => {
                    extents.current.insert(index, Run { base: word.extent, length });
                }
                _ => broken.push((index, word.extent)),
            }
        }
        // A word that leads to nothing whole still keeps its slot from being given away before it is replaced.
        for (index, base) in broken {
            if unclaimed.carve(base, 1) {
                extents.current.insert(index, Run { base, length: 1 });
            }
        }
        extents.free = unclaimed.clone();
        for (base, length) in unclaimed.by_base {
            let mut orphan: Option<Run> = None;
            for slot in actual.backends.range(base..base + length).map(|(slot, _)| slot) {
                match &mut orphan {
                    Some(run) if run.base + run.length == slot => run.length += 1,
                    _ => {
                        extents.orphaned(orphan);
                        orphan = Some(Run { base: slot, length: 1 });
                    }
                }
            }
            extents.orphaned(orphan);
        }
        extents
    }

    fn orphaned(&mut self, run: Option<Run>) {
        if let Some(Run { base, length }) = run
            && self.free.carve(base, length)
        {
            self.retired.insert(base, length);
        }
    }

    /// Before a plan: what an earlier one wrote, and never made current, is of no use.
    pub(super) fn begin(&mut self) {
        self.retired.append(&mut self.written);
    }

    /// [`Step::WriteExtent`] was carried out.
    pub(super) fn wrote(&mut self, base: u32, length: u32) {
        if self.free.carve(base, length) {
            self.written.insert(base, length);
        }
    }

    /// [`Step::PointService`] was carried out.
    pub(super) fn pointed(&mut self, index: u32, base: u32) {
        if self.current.get(&index).is_some_and(|run| run.base == base) {
            return;
        }
        if let Some(old) = self.current.remove(&index) {
            self.retired.insert(old.base, old.length);
        }
        if let Some(length) = self.written.remove(&base) {
            self.current.insert(index, Run { base, length });
        }
    }

    /// [`Step::Fence`] was carried out.
    pub(super) fn fence(&mut self) {
        self.fenced.append(&mut self.retired);
    }

    /// [`Step::ClearExtent`] was carried out.
    pub(super) fn cleared(&mut self, base: u32) {
        if let Some(length) = self.fenced.remove(&base) {
            self.free.give(base, length);
        }
    }

    /// Whether something waits for a fence.
    pub(super) fn wants_fence(&self) -> bool {
        !self.retired.is_empty()
    }

    /// What a fence makes clearable, and what an earlier one did.
    pub(super) fn to_clear(&self) -> impl Iterator<Item = Step> {
        self.fenced.iter().chain(&self.retired).map(|(&base, &length)| Step::ClearExtent { base, length })
    }

    /// Slots that wait for a fence or for being cleared.
    pub(super) fn retired(&self) -> usize {
        self.retired.values().chain(self.fenced.values()).map(|length| *length as usize).sum()
    }

    /// The slots as a plan will leave them.
    pub(super) fn draft(&mut self) -> Draft<'_> {
        Draft { extents: self, taken: Vec::new(), before: None, unlinked: Vec::new() }
    }
}

/// Length of the extent at `base`, if it is one of `index` and whole.
fn whole(actual: &Actual, index: u32, base: u32) -> Option<u32> {
    let header =
        actual.backends.get(base).filter(|slot| slot.role == Role::Extent && slot.service == index)?;
    let endpoints = u32::from(header.cluster_only) + u32::from(header.both) + u32::from(header.local_only);
    let end = base.checked_add(1 + endpoints)?;
    let is_own = |slot: &Backend| slot.role == Role::Endpoint && slot.service == index;
    let found = actual.backends.range(base + 1..end).filter(|(_, slot)| is_own(slot)).count();
    (found == endpoints as usize).then_some(1 + endpoints)
}

/// What a plan takes and unlinks. Dropped, it leaves [`Extents`] as they were: what happens is told by the steps that
/// are carried out.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    extents: &'a mut Extents,
    /// Taken, while `before` is none.
    taken: Vec<Run>,
    /// What is really free, once the plan has reclaimed something.
    before: Option<Free>,
    /// What the plan's steps have unlinked since its last fence.
    unlinked: Vec<Run>,
}

impl Draft<'_> {
    /// Free slots; none if there is no run of that length.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        let base = self.extents.free.take(length)?;
        self.taken.push(Run { base, length });
        Some(base)
    }

    /// The plan points this service elsewhere.
    pub(super) fn unlink(&mut self, index: u32) {
        self.unlinked.extend(self.extents.current.get(&index));
    }

    /// Make room out of what is retired: a fence and the clearing of everything unlinked before it. None: there is
    /// nothing to make room of.
    pub(super) fn reclaim(&mut self) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        let mut clear: Vec<_> =
            self.unlinked.drain(..).map(|Run { base, length }| Step::ClearExtent { base, length }).collect();
        let mut fence = !clear.is_empty();
        if self.before.is_none() {
            let mut before = self.extents.free.clone();
            self.taken.drain(..).for_each(|run| before.give(run.base, run.length));
            self.before = Some(before);
            clear.extend(self.extents.to_clear());
            fence |= self.extents.wants_fence();
        }
        if clear.is_empty() {
            return None;
        }
        if fence {
            steps.push(Step::Fence);
        }
        for step in &clear {
            if let Step::ClearExtent { base, length } = step {
                self.extents.free.give(*base, *length);
            }
        }
        steps.append(&mut clear);
        Some(steps)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        match self.before.take() {
            Some(before) => self.extents.free = before,
            None => self.taken.drain(..).for_each(|run| self.extents.free.give(run.base, run.length)),
        }
    }
}

/// Free runs; neighbours are one run.
#[derive(Clone, Debug, Default)]
struct Free {
    by_base: BTreeMap<u32, u32>,
    /// Length and base.
    by_length: BTreeSet<(u32, u32)>,
}

impl Free {
    /// Of the shortest run that is long enough, the lowest slots.
    fn take(&mut self, length: u32) -> Option<u32> {
        let (_, base) = *self.by_length.range((length, 0)..).next()?;
        self.carve(base, length).then_some(base)
    }

    /// Take just these slots; false if they are not all free.
    fn carve(&mut self, base: u32, length: u32) -> bool {
        let Some((&start, &run)) = self.by_base.range(..=base).next_back() else { return false };
        let (end, run_end) = (u64::from(base) + u64::from(length), start + run);
        if end > u64::from(run_end) {
            return false;
        }
        self.remove(start, run);
        self.insert(start, base - start);
        self.insert(base + length, run_end - base - length);
        true
    }

    fn give(&mut self, mut base: u32, mut length: u32) {
        if let Some((&start, &run)) = self.by_base.range(..base).next_back()
            && start + run == base
        {
            self.remove(start, run);
            (base, length) = (start, run + length);
        }
        if let Some(&run) = self.by_base.get(&(base + length)) {
            self.remove(base + length, run);
            length += run;
        }
        self.insert(base, length);
    }

    fn insert(&mut self, base: u32, length: u32) {
        if length > 0 {
            self.by_base.insert(base, length);
            self.by_length.insert((length, base));
        }
    }

    fn remove(&mut self, base: u32, length: u32) {
        self.by_base.remove(&base);
        self.by_length.remove(&(length, base));
    }
}
