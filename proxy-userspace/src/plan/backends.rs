//! The slots of the table `backends` that are not free, page by page: a map of single ones would take twice as much for
//! each, and there is one for each endpoint of the cluster.

use std::{
    collections::BTreeMap,
    ops::{Bound, Index, RangeBounds},
};

use proxy_common::layout::{Backend, Role};

/// Slots of a page: few enough that a lone extent wastes little.
const PAGE: u32 = 32;

/// By index. A free slot is as good as none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    pages: BTreeMap<u32, Box<Page>>,
    used: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    slots: [Backend; PAGE as usize],
    used: u32,
}

const NOTHING: Page = Page { slots: [Backend::FREE; PAGE as usize], used: 0 };

impl Backends {
    /// How many are not free.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether all are free.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// One that is not free.
    pub fn get(&self, slot: u32) -> Option<&Backend> {
        let found = &self.pages.get(&(slot / PAGE))?.slots[(slot % PAGE) as usize];
        is_used(found).then_some(found)
    }

    /// Put something in the place of what is there.
    pub fn insert(&mut self, slot: u32, backend: Backend) {
        if !is_used(&backend) {
            self.remove(slot);
            return;
        }
        let page = self.pages.entry(slot / PAGE).or_insert_with(|| Box::new(NOTHING));
        let old = std::mem::replace(&mut page.slots[(slot % PAGE) as usize], backend);
        if !is_used(&old) {
            page.used += 1;
            self.used += 1;
        }
    }

    /// Free one.
    pub fn remove(&mut self, slot: u32) {
        let Some(page) = self.pages.get_mut(&(slot / PAGE)) else { return };
        let old = std::mem::replace(&mut page.slots[(slot % PAGE) as usize], Backend::FREE);
        if is_used(&old) {
            page.used -= 1;
            self.used -= 1;
            if page.used == 0 {
                self.pages.remove(&(slot / PAGE));
            }
        }
    }

    /// Those of a range, in order.
    pub fn range(&self, slots: impl RangeBounds<u32>) -> impl Iterator<Item = (u32, &Backend)> {
        let first = match slots.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        // None: up to the last there is.
        let end = match slots.end_bound() {
            Bound::Included(last) => last.checked_add(1),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => None,
        };
        let is_before = move |slot: u32| end.is_none_or(|end| slot < end);
        let pages = self.pages.range(first / PAGE..).take_while(move |(page, _)| is_before(**page * PAGE));
        let all = pages.flat_map(|(page, slots)| (page * PAGE..).zip(&slots.slots));
        all.filter(move |(slot, backend)| *slot >= first && is_before(*slot) && is_used(backend))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Backend)> {
        self.range(..)
    }
}

fn is_used(backend: &Backend) -> bool {
    backend.role != Role::Free
}

impl Extend<(u32, Backend)> for Backends {
    fn extend<I: IntoIterator<Item = (u32, Backend)>>(&mut self, all: I) {
        all.into_iter().for_each(|(slot, backend)| self.insert(slot, backend));
    }
}

impl Index<u32> for Backends {
    type Output = Backend;

    fn index(&self, slot: u32) -> &Backend {
        self.get(slot).unwrap_or(&Backend::FREE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_as_a_map_of_slots_would_be(
            changes in prop::collection::vec((0..200_u32, prop::option::of(1..9_u16)), 0..300),
            (first, length) in (0..200_u32, 0..200_u32),
        ) {
            let (mut backends, mut map) = (Backends::default(), BTreeMap::new());
            for (slot, port) in changes {
                match port {
                    Some(port) => {
                        let backend = Backend::endpoint(0, std::net::IpAddr::from([10, 0, 0, 1]).into(), port);
                        backends.insert(slot, backend);
                        map.insert(slot, backend);
                    }
                    None => {
                        backends.remove(slot);
                        map.remove(&slot);
                    }
                }
            }
            prop_assert_eq!(backends.len(), map.len());
            prop_assert_eq!(backends.iter().map(|(slot, it)| (slot, *it)).collect::<BTreeMap<_, _>>(), map.clone());
            let range = first..first + length;
            prop_assert!(backends.range(range.clone()).eq(map.range(range).map(|(slot, it)| (*slot, it))));
            for slot in 0..210 {
                prop_assert_eq!(backends.get(slot), map.get(&slot));
            }
            let mut again = Backends::default();
            again.extend(map);
            prop_assert_eq!(again, backends);
        }
    }
}
