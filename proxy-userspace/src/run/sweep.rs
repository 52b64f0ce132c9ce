//! Sweeps the tables of flows as long as the agent runs.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    dataplane::{self, Pass, Sweeper},
    report::Report,
    text::FlowRoom,
};

/// Between two passes …
const WAIT: Duration = Duration::from_secs(1);
/// … and where the table of established flows is more than half full: it may fill within a second.
const SHORT_WAIT: Duration = Duration::from_millis(200);
/// Of one CPU's time, passes take at most one part in so many more.
const SHARE: u32 = 4;
/// That there is too little room is said at most so often.
const PATIENCE: Duration = Duration::from_secs(60);

/// How full the tables of flows are, and who left them: whether or not an agent runs.
///
/// # Errors
/// Nothing is pinned there, or this process may not look.
pub fn flow_rooms(pin_path: &Path) -> Result<Vec<FlowRoom>, dataplane::Error> {
    let tables = dataplane::flow_tables(pin_path)?;
    let room = |table: &dataplane::FlowTable| {
        FlowRoom::new(table.name, table.used(), table.room, |what| table.counts.of(what))
    };
    Ok(tables.iter().map(room).collect())
}

/// From the first time that the tables are written. Never returns.
pub(super) async fn follow(pin_path: PathBuf, mut report: watch::Receiver<Report>) {
    if report.wait_for(|report| report.applied.is_some()).await.is_err() {
        return std::future::pending().await;
    }
    let mut sweeper = Sweeper::new(&pin_path);
    let mut pressure = Pressure::default();
    loop {
        let swept = tokio::task::spawn_blocking(move || {
            let pass = sweeper.pass();
            (sweeper, pass)
        });
        let (next, pass) = match swept.await {
            Ok((next, pass)) => (next, pass),
            Err(error) => {
                tracing::error!("sweeping the flows: {error}");
                (Sweeper::new(&pin_path), Ok(Pass::default()))
            }
        };
        sweeper = next;
        let wait = match pass {
            Ok(pass) => {
                pressure.note(&pass);
                let wait = if pass.is_filling { SHORT_WAIT } else { WAIT };
                wait.max(pass.took * SHARE)
            }
            Err(error) => {
                tracing::debug!("flows that are over stay a little longer: {error}");
                WAIT
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// What had to leave for want of room, since it was last said.
#[derive(Default)]
struct Pressure {
    made_room: u64,
    evicted: u64,
    told: Option<Instant>,
}

impl Pressure {
    fn note(&mut self, pass: &Pass) {
        self.made_room += pass.made_room;
        self.evicted += pass.evicted;
        let may_tell = self.told.is_none_or(|told| told.elapsed() >= PATIENCE);
        if self.made_room + self.evicted > 0 && may_tell {
            tracing::warn!(
                made_room = self.made_room,
                evicted = self.evicted,
                in_use = pass.used,
                "the tables of flows are full: keys of flows left before their time (`vipr status` says of which; \
                 --flow-table-size gives more room)"
            );
            *self = Self { told: Some(Instant::now()), ..Self::default() };
        }
        if pass.expired > 0 {
            tracing::debug!(keys = pass.expired, in_use = pass.used, took = ?pass.took, "swept");
        }
    }
}
