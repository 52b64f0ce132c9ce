//! What the loop does for tables and attachments between changes: free what is no longer used, and put right what somebody
//! else has changed.

use std::time::Instant;

use super::{Reconciler, log, pace::due};
use crate::dataplane::Dataplane;

impl<D: Dataplane> Reconciler<D> {
    /// What is due without an event; whether there is anything new to be told.
    pub(super) fn on_time(&mut self, now: Instant) -> bool {
        let mut is_new = false;
        if due(&mut self.timers.node, now) {
            tracing::warn!("the own Node was not seen: going on without zone, and without its addresses");
            self.model.give_up_waiting_for_node();
            self.pass();
            is_new = true;
        }
        if due(&mut self.timers.retry, now) {
            self.pass();
            is_new = true;
        }
        if due(&mut self.timers.reclaim, now) {
            self.reclaim();
            is_new = true;
        }
        if due(&mut self.timers.read_back, now) {
            self.read_back();
            self.timers.read_back = self.pace.read_back.map(|every| now + every);
            is_new = true;
        }
        if due(&mut self.timers.glance, now) {
            is_new |= self.glance(now);
        }
        is_new
    }

    /// Free what is no longer used.
    fn reclaim(&mut self) {
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
    fn read_back(&mut self) {
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

    /// Put back what somebody has detached, or brought out of its place; whether there was anything. Who keeps doing it is
    /// answered ever more rarely, else two agents of a kind would do nothing but this.
    fn glance(&mut self, now: Instant) -> bool {
        /// Repairs without a quiet look between them that are answered at once …
        const PATIENCE: u32 = 10;
        /// … and from then on twice as late each time, up to this often.
        const RAREST: u32 = 6;
        let found = self.dataplane.glance();
        let lost = match found {
            Ok(lost) => lost,
            Err(error) => {
                tracing::warn!("the attachments can't be looked at: {error}");
                Vec::new()
            }
        };
        self.finds = if lost.is_empty() { self.finds.saturating_sub(1) } else { self.finds + 1 };
        self.timers.glance =
            Some(now + self.pace.glance * (1 << self.finds.saturating_sub(PATIENCE).min(RAREST)));
        if lost.is_empty() {
            return false;
        }
        for what in &lost {
            tracing::warn!("found different from what was attached: {what}");
        }
        self.report.repaired += lost.len() as u64;
        if let Err(error) = self.dataplane.activate() {
            self.failed(&error);
        }
        true
    }
}
