//! The bitmap of the frontends' addresses: how many frontends set each bit. What only some words have is kept for those
//! only.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::layout::{FrontendKey, Spot};

use super::Actual;

/// How many frontends set each bit of a word. One that was full is never told empty again: its bit stays.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts([u16; 64]);

impl Counts {
    const NONE: Self = Self([0; 64]);

    fn of_bits(&mut self, bits: u64) -> impl Iterator<Item = &mut u16> {
        let is_set = move |(bit, _): &(usize, _)| bits >> bit & 1 != 0;
        self.0.iter_mut().enumerate().filter(is_set).map(|(_, count)| count)
    }

    fn add(&mut self, bits: u64) {
        self.of_bits(bits).for_each(|count| *count = count.saturating_add(1));
    }

    fn remove(&mut self, bits: u64) {
        self.of_bits(bits)
            .filter(|count| **count != u16::MAX)
            .for_each(|count| *count = count.saturating_sub(1));
    }

    fn word(&self) -> u64 {
        self.0.iter().enumerate().fold(0, |word, (bit, count)| word | u64::from(*count != 0) << bit)
    }
}

/// A word of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// What it is.
    pub(super) before: u64,
    /// What it is to be.
    pub(super) after: u64,
}

/// The bits that the frontends in the table set.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    words: BTreeMap<u32, Box<Counts>>,
}

/// Where a frontend's address stands; a wildcard stands nowhere.
fn spot(key: &FrontendKey) -> Option<Spot> {
    let address = key.address();
    (!address.is_unspecified()).then(|| Spot::of(&address))
}

impl Addresses {
    /// A frontend came.
    pub(super) fn add(&mut self, key: &FrontendKey) {
        if let Some(spot) = spot(key) {
            self.words.entry(spot.word).or_insert_with(|| Box::new(Counts::NONE)).add(spot.bits);
        }
    }

    /// A frontend went.
    pub(super) fn remove(&mut self, key: &FrontendKey) {
        if let Some(spot) = spot(key)
            && let Some(counts) = self.words.get_mut(&spot.word)
        {
            counts.remove(spot.bits);
            if counts.word() == 0 {
                self.words.remove(&spot.word);
            }
        }
    }

    /// The words that differ once these have come and those have gone. `every`: also those that none of them is in.
    pub(super) fn differing<'a>(
        &self,
        actual: &Actual,
        inserted: impl Iterator<Item = &'a FrontendKey>,
        deleted: impl Iterator<Item = &'a FrontendKey>,
        every: bool,
    ) -> BTreeMap<u32, Word> {
        let mut then: BTreeMap<u32, Counts> = BTreeMap::new();
        let now = |word: u32| self.words.get(&word).map_or(Counts::NONE, |counts| (**counts).clone());
        for spot in inserted.filter_map(spot) {
            then.entry(spot.word).or_insert_with(|| now(spot.word)).add(spot.bits);
        }
        for spot in deleted.filter_map(spot) {
            then.entry(spot.word).or_insert_with(|| now(spot.word)).remove(spot.bits);
        }
        let mut words: BTreeSet<u32> = then.keys().copied().collect();
        if every {
            words.extend(self.words.keys().chain(actual.addresses.keys()));
        }
        let differs = words.into_iter().map(|word| {
            let before = actual.addresses.get(&word).copied().unwrap_or(0);
            let after = then.get(&word).or_else(|| self.words.get(&word).map(|counts| &**counts));
            (word, Word { before, after: after.map_or(0, Counts::word) })
        });
        differs.filter(|(_, word)| word.before != word.after).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proxy_common::{Address, Protocol};

    use super::*;

    /// Frontends whose addresses stand in few words: several set the same bits.
    fn crowd() -> Vec<FrontendKey> {
        let all = (0_u32..).map(|number| Address::from_v4_word((0x0a60_0000 + number).to_be()));
        let near = all.filter(|address| Spot::of(address).word < 3).take(60);
        let ports = |address| [80, 443].map(|port| FrontendKey::new(address, port, Protocol::Tcp));
        let wildcard = FrontendKey::new(Address::ANY_V4, 30_080, Protocol::Tcp);
        near.flat_map(ports).chain([wildcard]).collect()
    }

    /// The words that these frontends' addresses set, one after another.
    fn words(frontends: &BTreeSet<FrontendKey>) -> BTreeMap<u32, u64> {
        let mut words = BTreeMap::new();
        for address in frontends.iter().map(FrontendKey::address).filter(|one| *one != Address::ANY_V4) {
            let Spot { word, bits } = Spot::of(&address);
            *words.entry(word).or_default() |= bits;
        }
        words
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_just_the_bits_of_those_that_are_there_are_set(
            turns in prop::collection::vec(prop::collection::btree_set(0..121_usize, 0..40), 1..12),
            every in any::<bool>(),
        ) {
            let crowd = crowd();
            let (mut there, mut addresses, mut actual) = (BTreeSet::new(), Addresses::default(), Actual::default());
            for turn in turns {
                // Whoever is there goes, and whoever is not comes.
                let turn: BTreeSet<FrontendKey> = turn.into_iter().map(|number| crowd[number]).collect();
                let then: BTreeSet<FrontendKey> = there.symmetric_difference(&turn).copied().collect();
                let (came, went) = (then.difference(&there), there.difference(&then));
                let differing = addresses.differing(&actual, came.clone(), went.clone(), every);
                for (word, Word { before, after }) in differing {
                    prop_assert_eq!(actual.addresses.get(&word).copied().unwrap_or(0), before);
                    actual.addresses.insert(word, after);
                }
                actual.addresses.retain(|_, bits| *bits != 0);
                came.for_each(|key| addresses.add(key));
                went.for_each(|key| addresses.remove(key));
                there = then;
                prop_assert_eq!(&actual.addresses, &words(&there));
            }
        }
    }

    #[test]
    fn a_bit_of_more_frontends_than_can_be_counted_stays() {
        let mut addresses = Addresses::default();
        let key = crowd()[0];
        for _ in 0..=u32::from(u16::MAX) {
            addresses.add(&key);
        }
        for _ in 0..=u32::from(u16::MAX) {
            addresses.remove(&key);
        }
        let every = addresses.differing(&Actual::default(), [].into_iter(), [].into_iter(), true);
        assert_eq!(every.len(), 1, "its word is still to be set");
    }
}
