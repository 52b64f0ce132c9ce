//! The order of a plan: one in which every prefix is safe, so that a program that runs between two steps, or an agent
//! that dies there, finds each frontend leading to the endpoints of the old or the new state.
//!
//! | | what | because |
//! |---|---|---|
//! | 1 | frontends go whose service changes in this plan | else they would lead to endpoints they never had |
//! | 2 | services change: an extent, then the word | nothing waits before the commonest change |
//! | 3 | addresses of the node come; what programs know of devices | |
//! | 4 | new services: extent, name, word | before anything leads there |
//! | 5 | ports and addresses come into use | they are asked first |
//! | 6 | frontends move to another service | their new one is served, their old one still the old |
//! | 7 | services change that frontends have moved away from | |
//! | 8 | frontends come | |
//! | 9 | frontends go | |
//! | 10 | ports and addresses go out of use; services go: word, name, ranges; addresses go | nothing leads there any more |
//! | 11 | programs leave devices, and come to others | these find everything as it should be |
//!
//! A service's source ranges change with it: those that come before its word, those that go after it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proxy_common::layout::Service;

use super::{
    Actual, Capacity, Step,
    addresses::Word,
    diff::{Diff, Led, Serves},
    extents::Draft,
    ids::{self, Ids},
    leads::Leads,
    node::{self, Difference},
    slots,
};

/// A table without room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Frontends,
    Services,
    Backends,
    LocalAddresses,
    Devices,
    SourceRanges,
    Masquerade,
}

/// The plan that is being made.
struct Order<'a> {
    actual: &'a Actual,
    draft: Draft<'a>,
    steps: Vec<Step>,
    /// To go at last: ranges that no word leads to any more, but a program that runs may still read.
    unread: Vec<Step>,
    /// There is a fence among the steps.
    fenced: bool,
}

/// Turn differences into steps.
pub(super) fn order(
    diff: Diff<'_>,
    actual: &Actual,
    capacity: &Capacity,
    ids: &Ids,
    leads: &Leads,
    draft: Draft<'_>,
    every_word: bool,
) -> Result<Vec<Step>, Full> {
    let (frontends, addresses) = (actual.frontends.len(), actual.local_addresses.len());
    if frontends + diff.inserted.len() > capacity.frontends as usize + diff.deleted.len() {
        return Err(Full::Frontends);
    }
    let came = diff.local_put.iter().filter(|(key, _)| !actual.local_addresses.contains_key(key)).count();
    if addresses + came > capacity.local_addresses as usize {
        return Err(Full::LocalAddresses);
    }
    if actual.devices.len() + diff.node.new_devices(actual) > capacity.devices as usize {
        return Err(Full::Devices);
    }
    if actual.masquerade.len() + diff.node.new_masquerade(actual) > capacity.masquerade as usize {
        return Err(Full::Masquerade);
    }
    let serves = diff.changed.iter().chain(&diff.fresh);
    let ranges = serves.map(|s| Difference::of(actual, s.index, &s.serving.source_ranges).coming());
    if actual.ranges() + diff.node.new_ranges() + ranges.sum::<usize>() > capacity.source_ranges as usize {
        return Err(Full::SourceRanges);
    }
    let ports = ports(&diff, actual, leads, every_word);
    let came = diff.inserted.iter().map(|led| &led.key);
    let went = diff.deleted.iter().map(|led| &led.key);
    let addresses = leads.addresses().differing(actual, came, went, every_word);
    let names: HashMap<u32, String> =
        diff.unnamed.iter().map(|(index, name)| (*index, ids::text(name))).collect();
    let left: HashSet<u32> = diff.moved.iter().filter_map(Led::leaves).collect();
    let changing: HashSet<u32> = diff.changed.iter().map(|serves| serves.index).collect();
    let (last, first): (Vec<_>, Vec<_>) =
        diff.changed.into_iter().partition(|serves| left.contains(&serves.index));
    let is_full = frontends + diff.inserted.len() > capacity.frontends as usize;
    let (early, late): (Vec<_>, Vec<_>) = diff
        .deleted
        .into_iter()
        .partition(|led| is_full || led.leaves().is_some_and(|service| changing.contains(&service)));

    let mut order = Order { actual, draft, steps: Vec::new(), unread: Vec::new(), fenced: false };
    order.delete(&early);
    order.serve(&first, &HashMap::new())?;
    order.steps.extend(diff.local_put.into_iter().map(|(key, value)| Step::PutLocalAddress { key, value }));
    order.steps.extend(diff.node.first());
    if diff.fresh.iter().any(|serves| ids.waits(serves.index)) && !order.fenced {
        order.steps.push(Step::Fence);
    }
    order.serve(&diff.fresh, &names)?;
    let served: HashSet<u32> = diff.fresh.iter().map(|serves| serves.index).collect();
    let mut renamed: Vec<_> = names.into_iter().filter(|(index, _)| !served.contains(index)).collect();
    renamed.sort_unstable();
    order.steps.extend(renamed.into_iter().map(|(index, name)| Step::NameService { index, name }));
    order.set_bits(&ports, |word, bits| Step::SetPorts { word, bits });
    order.set_bits(&addresses, |word, bits| Step::SetAddresses { word, bits });
    order.lead_elsewhere(&diff.moved);
    order.serve(&last, &HashMap::new())?;
    order.steps.extend(diff.node.attach());
    order.insert(&diff.inserted);
    order.delete(&late);
    order.clear_bits(&ports, |word, bits| Step::SetPorts { word, bits });
    order.clear_bits(&addresses, |word, bits| Step::SetAddresses { word, bits });
    order.empty(&diff.leaving);
    order.steps.extend(diff.local_deleted.into_iter().map(|key| Step::DeleteLocalAddress { key }));
    order.steps.extend(diff.node.last());
    Ok(order.steps)
}

impl Order<'_> {
    /// Ranges, extent, name and word of each service, or those of them that differ.
    fn serve(&mut self, services: &[Serves<'_>], names: &HashMap<u32, String>) -> Result<(), Full> {
        for Serves { index, serving, .. } in services {
            let index = *index;
            let word = self.actual.services.get(&index).copied().unwrap_or_default();
            let same = word.extent != 0 && slots::says(self.actual, index, word, serving);
            let ranges = Difference::of(self.actual, index, &serving.source_ranges);
            self.steps.extend(ranges.put());
            let extent = if same {
                word.extent
            } else {
                let base = self.take(slots::length(serving))?;
                self.draft.unlink(index);
                self.steps.push(Step::WriteExtent { base, slots: slots::slots(index, serving).collect() });
                base
            };
            if let Some(name) = names.get(&index) {
                self.steps.push(Step::NameService { index, name: name.clone() });
            }
            let service = Service { extent, affinity_seconds: serving.affinity_seconds };
            if service != word {
                self.steps.push(Step::PointService { index, service });
            }
            let deleted = ranges.deleted();
            if node::is_filtered(serving) { self.steps.extend(deleted) } else { self.unread.extend(deleted) }
        }
        Ok(())
    }

    /// Free slots, if need be made free by the plan itself.
    fn take(&mut self, length: u32) -> Result<u32, Full> {
        loop {
            if let Some(base) = self.draft.take(length) {
                return Ok(base);
            }
            let reclaimed = self.draft.reclaim().ok_or(Full::Backends)?;
            self.fenced |= reclaimed.contains(&Step::Fence);
            self.steps.extend(reclaimed);
        }
    }

    /// Of a bitmap, the bits that come.
    fn set_bits(&mut self, words: &BTreeMap<u32, Word>, step: impl Fn(u32, u64) -> Step) {
        let grow = words.iter().filter(|(_, word)| word.after & !word.before != 0);
        self.steps.extend(grow.map(|(index, word)| step(*index, word.before | word.after)));
    }

    /// Of a bitmap in which those that come are set, the bits that go.
    fn clear_bits(&mut self, words: &BTreeMap<u32, Word>, step: impl Fn(u32, u64) -> Step) {
        let shrink = words.iter().filter(|(_, word)| word.before & !word.after != 0);
        self.steps.extend(shrink.map(|(index, word)| step(*index, word.after)));
    }

    /// The element of an entry that is overwritten is handed to the next write at once, which must then not come
    /// before a fence. A run of writes is one batch, without any: hence one fence each.
    fn lead_elsewhere(&mut self, moved: &[Led]) {
        for (i, led) in moved.iter().enumerate() {
            if i > 0 {
                self.steps.push(Step::Fence);
                self.fenced = true;
            }
            self.steps.extend(led.to.map(|value| Step::PutFrontend { key: led.key, value }));
        }
    }

    fn insert(&mut self, inserted: &[Led]) {
        // Of no batch with the last that moved.
        if matches!(self.steps.last(), Some(Step::PutFrontend { .. })) && !inserted.is_empty() {
            self.steps.push(Step::Fence);
            self.fenced = true;
        }
        let put = inserted.iter().filter_map(|led| Some((led.key, led.to?)));
        self.steps.extend(put.map(|(key, value)| Step::PutFrontend { key, value }));
    }

    fn delete(&mut self, deleted: &[Led]) {
        self.steps.extend(deleted.iter().map(|led| Step::DeleteFrontend { key: led.key }));
    }

    fn empty(&mut self, leaving: &BTreeSet<u32>) {
        for &index in leaving {
            if self.actual.services.contains_key(&index) {
                self.steps.push(Step::PointService { index, service: Service::default() });
            }
            if self.actual.names.contains_key(&index) {
                self.steps.push(Step::UnnameService { index });
            }
            self.unread.extend(Difference::of(self.actual, index, []).deleted());
        }
        self.steps.append(&mut self.unread);
    }
}

/// The words that the plan's frontends are in, or all.
fn ports(diff: &Diff<'_>, actual: &Actual, leads: &Leads, every_port: bool) -> BTreeMap<u32, Word> {
    let mut using: HashMap<u16, u32> = HashMap::new();
    for led in &diff.inserted {
        *using.entry(led.key.port).or_insert_with(|| leads.using(led.key.port)) += 1;
    }
    for led in &diff.deleted {
        *using.entry(led.key.port).or_insert_with(|| leads.using(led.key.port)) -= 1;
    }
    let words: BTreeSet<u16> =
        if every_port { (0..1024).collect() } else { using.keys().map(|port| port / 64).collect() };
    let word = |word: u16| {
        let ports = (0..64).map(|bit| word * 64 + bit);
        let in_use = ports.map(|port| using.get(&port).copied().unwrap_or_else(|| leads.using(port)) > 0);
        let after = in_use.enumerate().fold(0, |bits, (bit, used)| bits | u64::from(used) << bit);
        let before = actual.ports.get(&u32::from(word)).copied().unwrap_or(0);
        (u32::from(word), Word { before, after })
    };
    words.into_iter().map(word).collect()
}
