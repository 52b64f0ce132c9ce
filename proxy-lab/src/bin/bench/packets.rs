//! What a packet costs in the programs, as rows of the results: see [`proxy_lab::cost`].

use anyhow::Result;
use proxy_lab::cost;

use crate::paths::Extent;
use crate::sample::{Row, Rows};

/// Whose packets these are.
pub(crate) const NAME: &str = "programs";

/// With as many Services as the paths have.
pub(crate) fn run(extent: &Extent) -> Result<Rows> {
    let costs = cost::measure(&extent.sizes)?;
    let row = |cost: cost::Cost| Row {
        services: cost.services,
        figure: figure(cost.packet, cost.hook, cost.cold),
        contestant: NAME.to_owned(),
        round: 0,
        value: cost.nanoseconds,
        failed: 0,
    };
    Ok(Rows(costs.into_iter().map(row).collect()))
}

/// The figure's name: nanoseconds above an empty program.
pub(crate) fn figure(packet: &str, hook: &str, cold: bool) -> String {
    format!("packet: {packet}, {hook}, {}", if cold { "cold" } else { "warm" })
}
