//! The loop that makes the tables say what the sources say: fold events into the model, plan, apply, publish.
//!
//! What fails stays in the next difference: after a failure the tables are read back and compared as a whole, and that
//! is the only retry there is. Nothing is written, so nothing deleted, before every source has told everything once.

mod pace;
mod sockets;
mod upkeep;

use std::{
    future::Future,
    pin::pin,
    time::{Instant, SystemTime},
};

pub use pace::Pace;

use tokio::sync::{mpsc::Receiver, watch};

use self::pace::Timers;
use crate::{
    dataplane::{Dataplane, Error},
    model::{Change, Model, Questions, Source, Touched},
    plan::{Actual, Capacity, Planner, Step},
    report::{self, Checks, Fill, LeftPod, LeftToSocket, Measures, Moment, NodeState, Report, Sync, Written},
    watch::{Event, What},
};

/// The loop and all that it knows.
pub struct Reconciler<D> {
    model: Model,
    dataplane: D,
    /// What the tables said at the start, until the first pass: nobody else writes them.
    first: Option<Actual>,
    /// `None`: what the tables hold is not known for certain and is read back first.
    planner: Option<Planner>,
    pace: Pace,
    report: Report,
    to: watch::Sender<Report>,
    /// To who answers what only the kernel can tell.
    asks: Option<watch::Sender<Questions>>,
    measures: Measures,
    /// Of the changes that wait to be written.
    triggers: Vec<SystemTime>,
    /// What load balancers may ask is newer than what was published.
    checks_changed: bool,
    /// So is what is left to sockets of the node, or to packets.
    left_changed: bool,
    /// Endpoints that were left since sockets were last looked at.
    left: sockets::Left,
    /// When the oldest of them reached us.
    oldest: Option<Instant>,
    timers: Timers,
    failures: u32,
    /// Looks at the attachments that found something, less those that found nothing since.
    finds: u32,
    /// Last told of.
    waiting_for: Vec<Source>,
}

impl<D: Dataplane> Reconciler<D> {
    /// Publishes to `to` after each pass. What the tables say of the API server's own Service is remembered: an agent that
    /// starts while that has no endpoints must not take away the last one.
    pub fn new(
        mut model: Model,
        mut dataplane: D,
        pace: Pace,
        to: watch::Sender<Report>,
        measures: Measures,
    ) -> Self {
        let report = to.borrow().clone();
        let now = Instant::now();
        // An error here is met again, and reported, when the tables are to be written.
        let first = dataplane.read().ok();
        for (index, name) in first.iter().flat_map(|actual| &actual.names) {
            if let Some(serving) = first.as_ref().and_then(|actual| actual.serving(*index)) {
                model.remember(name, serving);
            }
        }
        Self {
            model,
            dataplane,
            first,
            planner: None,
            pace,
            report,
            to,
            asks: None,
            measures,
            triggers: Vec::new(),
            checks_changed: false,
            left_changed: false,
            left: None,
            oldest: None,
            timers: Timers { read_back: pace.read_back.map(|every| now + every), ..Timers::default() },
            failures: 0,
            finds: 0,
            waiting_for: Vec::new(),
        }
    }

    /// Somebody follows `to` and answers.
    #[must_use]
    pub fn asking(mut self, to: watch::Sender<Questions>) -> Self {
        self.model = self.model.asking();
        self.asks = Some(to);
        self
    }

    /// Until `stop`, or until all sources are gone. Leaves everything as it is.
    pub async fn run(mut self, mut events: Receiver<Event>, stop: impl Future<Output = ()>) -> D {
        /// Events folded in before a pass: bounds how long one pass can starve the others.
        const BATCH: usize = 10_000;
        let mut stop = pin!(stop);
        let mut batch = Vec::new();
        loop {
            let timer = self.timers.next();
            let sleep = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut stop => break,
                count = events.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    for event in batch.drain(..) {
                        self.take(event);
                    }
                    self.pass();
                }
                () = sleep => if !self.on_time(Instant::now()) {
                    continue;
                },
            }
            self.publish();
        }
        self.dataplane
    }

    /// Fold one event in.
    fn take(&mut self, event: Event) {
        let Event { source, at, what } = event;
        let state = self.report.source(source);
        let was_broken = state.and_then(|state| {
            let broken = std::mem::take(&mut state.broken);
            if !matches!(what, What::Broken { .. }) {
                state.heard = Some(Moment::now());
            }
            if let What::Change { change, .. } = &what {
                state.changes += 1;
                state.synced |= change.is_whole();
            }
            broken
        });
        match what {
            What::Change { change, trigger } => {
                self.oldest.get_or_insert(at);
                self.triggers.extend(trigger);
                match &change {
                    Change::Service(..) | Change::Services(_) => self.measures.service_change(),
                    Change::Slice(..) | Change::Slices(_) => self.measures.endpoint_change(),
                    Change::Node(node) => {
                        self.report.node = node.as_ref().map(|node| NodeState { leaving: node.leaving });
                    }
                    Change::Malformed { source, name, why } => {
                        tracing::warn!(?source, object = %name, "an object is left out: {why}");
                        self.report.note(*source, name, why, true);
                    }
                    Change::LocalRoutes(_)
                    | Change::LeftPod(..)
                    | Change::LeftPods(_)
                    | Change::Groups(_)
                    | Change::ApiServers(_)
                    | Change::Links(_)
                    | Change::HostSources(_)
                    | Change::Listeners(_)
                    | Change::ServiceCidr(..)
                    | Change::ServiceCidrs(_) => {}
                }
                self.model.fold(change);
            }
            What::Alive => {}
            What::Broken { why } => {
                if was_broken.as_ref() != Some(&why) {
                    tracing::warn!(?source, "can't be heard, what it said stays: {why}");
                }
                if let Some(state) = self.report.source(source) {
                    state.broken = Some(why);
                }
                // Without what these know there is an answer too, and a better one than none.
                if matches!(source, Source::HostSources | Source::Listeners) {
                    self.model.give_up_asking();
                }
                if source == Source::Pods {
                    self.model.give_up_waiting_for_pods();
                }
                return;
            }
            What::Note { name, why } => {
                tracing::warn!(?source, object = %name, "{why}");
                self.report.note(source, &name, &why, false);
            }
        }
        if was_broken.is_some() {
            tracing::info!(?source, "is heard again");
        }
    }

    /// Bring the tables up to what is known; a failure is reported and tried again later.
    fn pass(&mut self) {
        let start = Instant::now();
        // Nothing counts as waiting before all sources have spoken: an agent that starts is healthy (spec §4.1).
        let touched = self.model.update();
        self.ask();
        let Some(touched) = touched else { return self.wait() };
        self.timers.node = None;
        let since = *self.report.pending_since.get_or_insert_with(Moment::now);
        self.to.send_modify(|report| report.pending_since = Some(since));
        self.checks_changed |= touched.health_checks;
        self.left_changed |= touched.left_to_sockets || touched.devices;
        match self.write(&touched) {
            Ok((sync, steps)) => {
                self.failures = 0;
                self.timers.retry = None;
                self.report.error = None;
                self.report.pending_since = None;
                self.succeeded(sync, steps, start);
                self.release();
            }
            Err(error) => self.failed(&error),
        }
    }

    /// What only the kernel can tell.
    fn ask(&self) {
        let questions = &self.model.desired().questions;
        if let Some(to) = &self.asks {
            to.send_if_modified(|last| {
                let is_new = last != questions;
                if is_new {
                    last.clone_from(questions);
                }
                is_new
            });
        }
    }

    /// Tell for whom. The own Node has its time from when it is the last: an API server that is away at the start does
    /// not say that there is none.
    fn wait(&mut self) {
        let waiting_for = self.model.waiting_for();
        if waiting_for == self.waiting_for {
            return;
        }
        let names: Vec<_> = waiting_for.iter().map(|source| report::name(*source)).collect();
        tracing::info!("waiting for {}: until then the tables stay as they are", names.join(", "));
        if waiting_for == [Source::Node] {
            self.timers.node = Some(Instant::now() + self.pace.node);
        }
        self.waiting_for = waiting_for;
    }

    fn succeeded(&mut self, sync: Sync, steps: usize, start: Instant) {
        let duration = start.elapsed();
        let waited = self.oldest.take().map(|at| at.elapsed());
        self.measures.pass(sync, duration, &self.triggers, waited);
        self.measures.no_local_endpoints(&self.model.desired().no_local_endpoints);
        self.triggers.clear();
        if sync == Sync::Full && steps > 0 {
            crate::dataplane::sys::trim_heap();
        }
        if std::mem::take(&mut self.checks_changed) {
            self.report.checks = Checks::of(self.model.desired()).into();
        }
        if std::mem::take(&mut self.left_changed) {
            self.report.left_pods = LeftPod::all(self.model.desired());
            self.report.left_to_sockets = LeftToSocket::all(self.model.desired());
        }
        let Some(planner) = &self.planner else { return };
        if steps > 0 {
            let services = self.model.desired().services.len();
            tracing::info!(services, steps, microseconds = duration.as_micros() as u64, "tables written");
        }
        let last = self.report.applied.take().unwrap_or_default();
        self.report.applied = Some(Written {
            at: Moment::now(),
            passes: last.passes + 1,
            steps: if steps > 0 { steps } else { last.steps },
            microseconds: if steps > 0 { duration.as_micros() as u64 } else { last.microseconds },
            fill: Fill::new(&planner.actual().used(), &self.dataplane.capacity()),
        });
        let glance = self.pace.glance;
        self.timers.glance.get_or_insert_with(|| Instant::now() + glance);
        if planner.retired() > 0 {
            self.timers.reclaim.get_or_insert_with(|| Instant::now() + self.pace.reclaim);
        }
    }

    fn failed(&mut self, error: &Error) {
        self.planner = None;
        let wait = self.pace.retry.saturating_mul(1 << self.failures.min(16)).min(self.pace.retry_most);
        self.failures += 1;
        self.timers.retry = Some(Instant::now() + wait);
        tracing::error!("the tables could not be written, trying again in {wait:?}: {error}");
        self.report.error = Some(error.to_string());
    }

    /// Plan and apply, in larger tables if need be. Gives how much was looked at, and how many steps were carried out.
    fn write(&mut self, touched: &Touched) -> Result<(Sync, usize), Error> {
        let mut count = 0;
        let mut touched = Some(touched);
        if self.planner.is_none() {
            touched = None;
            let actual = match self.first.take() {
                Some(actual) => actual,
                None => self.dataplane.read()?,
            };
            self.planner = Some(Planner::new(actual, self.dataplane.capacity()));
        }
        // Twice at most: a fresh generation has room for all that is desired.
        for _ in 0..3 {
            let Some(planner) = &mut self.planner else { break };
            let need = match planner.plan(self.model.desired(), touched) {
                Ok(steps) => {
                    log(&steps);
                    let applied = self.dataplane.apply(&steps);
                    if let Some(left) = &mut self.left {
                        left.extend(planner.left_by(&steps[..applied.done]));
                    }
                    planner.done(&steps[..applied.done]);
                    count += applied.done;
                    match applied.error {
                        None => {
                            self.dataplane.activate()?;
                            let sync = if touched.is_some() { Sync::Partial } else { Sync::Full };
                            return Ok((sync, count));
                        }
                        Some(Error::Full { map, entries }) => {
                            tracing::info!(map, entries, "a table is full");
                            crate::plan::need(self.model.desired())
                        }
                        Some(error) => return Err(error),
                    }
                }
                Err(no_room) => no_room.need,
            };
            self.grow(need)?;
            touched = None;
        }
        Err(Error::Full { map: "backends", entries: self.dataplane.capacity().backends })
    }

    /// Go on in empty tables with room for `need`, beside the running ones; they are swapped in once they are filled.
    fn grow(&mut self, need: Capacity) -> Result<(), Error> {
        tracing::info!(?need, "building larger tables beside the running ones");
        self.dataplane.rebuild(need)?;
        self.report.grown += 1;
        let capacity = self.dataplane.capacity();
        self.planner = self.planner.take().map(|planner| planner.next_generation(capacity));
        Ok(())
    }

    fn publish(&mut self) {
        self.report.generation += 1;
        self.report.published = Moment::now();
        self.to.send_replace(self.report.clone());
    }
}

fn log(steps: &[Step]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for step in steps {
            tracing::debug!("{step}");
        }
    }
}

#[cfg(test)]
mod tests;
