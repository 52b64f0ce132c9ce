//! One outcome, one count.

use proxy_common::Reason;

use crate::maps::COUNTERS;

/// Add one to `reason` on this CPU.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the pointer is this CPU's own slot, valid while the program runs; a socket hook can be interrupted
        // by another one on the same CPU, which at worst loses a count.
        unsafe { *counter += 1 };
    }
}
