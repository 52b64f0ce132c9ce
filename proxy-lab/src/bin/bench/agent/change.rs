//! One endpoint of some Service changes, again and again: alone, and a hundred times a second.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_lab::Node;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::usage::{Reactions, processor};
use super::{Shape, name};
use crate::api::{Api, unready};
use crate::paths::Extent;

/// A second.
pub(super) const RATE: u32 = 100;
/// Changes that come alone, one every [`PAUSE`].
pub(super) const ALONE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);

/// Whom they are made to.
pub(super) struct Changes<'a> {
    pub(super) node: &'a Node,
    pub(super) api: &'a Api<'a>,
    pub(super) pid: u32,
    pub(super) shape: Shape,
    /// Changes that were made before: an endpoint is changed once.
    pub(super) made: u32,
}

impl Changes<'_> {
    /// Figures and their values.
    pub(super) fn run(&self, extent: &Extent) -> Result<Vec<(&'static str, f64)>> {
        if self.shape.services < 2 {
            return Ok(Vec::new());
        }
        let alone = self.changes(self.made, ALONE, PAUSE)?;
        let many = RATE * extent.busy_seconds;
        let busy = self.changes(self.made + ALONE, many, Duration::from_secs(1) / RATE)?;
        Ok(vec![
            ("agent-change-idle-p50", alone.median),
            ("agent-change-idle-p99", alone.most),
            ("agent-change-busy-p50", busy.median),
            ("agent-change-busy-p99", busy.most),
            ("agent-change-cpu", busy.processor),
        ])
    }

    /// So many changes, one every `pause`, each to an endpoint of another Service.
    fn changes(&self, made: u32, count: u32, pause: Duration) -> Result<Seen> {
        let before = Reactions::read(self.node)?;
        let used = processor(self.pid)?;
        let shape = self.shape;
        self.api.with(|client| async move {
            let mut ticks = interval(pause);
            // What the API server is late with is not made up for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut tasks = tokio::task::JoinSet::new();
            let start = Instant::now();
            for number in made..made + count {
                ticks.tick().await;
                let service = number.wrapping_mul(7919) % (shape.services - 1);
                let (client, endpoint) = (client.clone(), number % shape.endpoints);
                tasks.spawn(async move { unready(&client, &name(service), endpoint).await });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            let took = start.elapsed();
            if took > pause * count * 3 / 2 {
                println!(
                    "the API server took {took:.1?} for {count} changes: they came slower than they should"
                );
            }
            Ok(())
        })?;
        let used = processor(self.pid)?.saturating_sub(used);
        // The last ones are on their way.
        std::thread::sleep(Duration::from_millis(500));
        let after = Reactions::read(self.node)?;
        let seen = after.count() - before.count();
        // Several that come together are one pass.
        ensure!(seen > u64::from(count) / 4, "of {count} changes {seen} passes were seen");
        let quantile = |part| after.quantile(&before, part).map(|seconds| seconds * 1e3).context("changes");
        Ok(Seen {
            median: quantile(0.5)?,
            most: quantile(0.99)?,
            processor: (used / count * RATE).as_secs_f64() * 1e2,
        })
    }
}

/// Of a run of changes.
struct Seen {
    /// Milliseconds.
    median: f64,
    /// Of all but a hundredth.
    most: f64,
    /// Of one, in per cent, if they had come [`RATE`] a second.
    processor: f64,
}
