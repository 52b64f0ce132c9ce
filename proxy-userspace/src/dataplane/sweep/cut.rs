//! Who leaves a full table: a census of whose turn it is, and where to cut so that enough room is made. Pure.

use std::{cmp::Reverse, collections::BTreeMap};

use proxy_common::datapath::sweep::Turn;

/// In the order in which flows leave: by turn, and there whoever was silent for longest.
type Rank = (Turn, Reverse<u32>);

/// How many keys the flows of each rank have.
#[derive(Debug, Default)]
pub(super) struct Census(BTreeMap<Rank, u64>);

impl Census {
    /// A flow whose turn it is, silent for so many seconds, with so many keys.
    pub(super) fn add(&mut self, turn: Turn, silence: u32, keys: u32) {
        *self.0.entry((turn, Reverse(silence))).or_default() += u64::from(keys);
    }

    /// Where to cut to be rid of at least so many keys, or of all that can be spared.
    pub(super) fn cut(&self, keys: u64) -> Cut {
        let mut left = keys;
        for (rank, count) in &self.0 {
            if *count >= left {
                return Cut { last: (left > 0).then_some(*rank), of_last: left };
            }
            left -= count;
        }
        Cut { last: self.0.last_key_value().map(|(rank, _)| *rank), of_last: u64::MAX }
    }
}

/// All that rank before the last one leave, and as many of it as are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    last: Option<Rank>,
    /// Keys.
    of_last: u64,
}

impl Cut {
    /// Whether such a flow leaves.
    pub(super) fn takes(&self, turn: Turn, silence: u32) -> bool {
        let rank = (turn, Reverse(silence));
        self.last.is_some_and(|last| rank < last || rank == last && self.of_last > 0)
    }

    /// One has left, and so many keys with it.
    pub(super) fn took(&mut self, turn: Turn, silence: u32, keys: u32) {
        if self.last == Some((turn, Reverse(silence))) {
            self.of_last = self.of_last.saturating_sub(keys.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TURNS: [Turn; 4] = [Turn::Expired, Turn::Closing, Turn::Datagrams, Turn::Idle];

    fn flows() -> impl Strategy<Value = Vec<(Turn, u32, u32)>> {
        prop::collection::vec((prop::sample::select(&TURNS[..]), 0..6_u32, 2..5_u32), 0..60)
    }

    proptest! {
        #[test]
        fn nobody_stays_who_ranks_before_one_that_left_and_no_more_leave_than_are_needed(flows in flows(), need in 0..120_u64) {
            let mut census = Census::default();
            for (turn, silence, keys) in &flows {
                census.add(*turn, *silence, *keys);
            }
            let mut cut = census.cut(need);
            let (mut left, mut stayed) = (Vec::new(), Vec::new());
            for flow @ (turn, silence, keys) in &flows {
                if cut.takes(*turn, *silence) {
                    cut.took(*turn, *silence, *keys);
                    left.push(*flow);
                } else {
                    stayed.push(*flow);
                }
            }
            // As a person would: sort them, and let the first ones go until it is enough.
            let place = |(turn, silence, _): &(Turn, u32, u32)| {
                (TURNS.iter().position(|it| it == turn), u32::MAX - silence)
            };
            if let (Some(last), Some(first)) = (left.iter().map(place).max(), stayed.iter().map(place).min()) {
                prop_assert!(last <= first, "{:?} left and {:?} stayed", left, stayed);
            }
            let keys = |all: &[(Turn, u32, u32)]| all.iter().map(|flow| u64::from(flow.2)).sum::<u64>();
            prop_assert!(keys(&left) >= need.min(keys(&flows)), "too few");
            let largest = left.iter().map(|flow| u64::from(flow.2)).max().unwrap_or(0);
            prop_assert!(keys(&left) < need + largest.max(1), "{} left for {need}", keys(&left));
        }
    }
}
