//! What the loop does for tables and attachments between changes: free what is no longer used, and put right what somebody
//! else has changed.

use super::{Reconciler, log};
use crate::dataplane::Dataplane;

impl<D: Dataplane> Reconciler<D> {
    /// Free what is no longer used.
    pub(super) fn reclaim(&mut self) {
        let Some(planner) = &mut self.planner else { return };
        let steps = planner.reclaim();
        log(&steps);
        let applied = self.dataplane.apply(&steps);
        planner.done(&steps[..applied.done]);
        if let Some(error) = applied.error {
            self.failed(&error);
        }
    }

    /// Compare the tables and attachments with what was written, and put right what differs.
    pub(super) fn read_back(&mut self) {
        let Some(planner) = &self.planner else { return };
        let found = self.dataplane.read().and_then(|actual| {
            let lost = self.dataplane.verify()?;
            Ok((actual, lost))
        });
        match found {
            Ok((actual, lost)) => {
                for what in &lost {
                    tracing::warn!("found different from what was attached: {what}");
                }
                let differences = actual.differences(planner.actual());
                if differences == 0 && lost.is_empty() {
                    return;
                }
                if differences > 0 {
                    tracing::warn!(differences, "the tables were found different from what was written");
                }
                self.report.repaired += (differences + lost.len()) as u64;
                self.planner = None;
                self.pass();
            }
            Err(error) => self.failed(&error),
        }
    }
}
