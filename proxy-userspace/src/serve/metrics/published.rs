//! What stands in the report and in the programs' counters, read when it is asked for.

use std::{fmt, sync::Arc, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{serve::Face, text::FlowRoom};

/// Of this agent.
pub(super) struct Published(pub(super) Arc<Face>);

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Published")
    }
}

impl Collector for Published {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Ok(counters) = (self.0.counters)() {
            let mut family = encoder.encode_descriptor(
                "vipr_outcomes",
                "Calls and packets that the programs saw, by outcome.",
                None,
                MetricType::Counter,
            )?;
            for (reason, count) in counters {
                let labels = [("reason", reason.name())];
                let metric = family.encode_family(&labels)?;
                ConstCounter::new(count).encode(metric)?;
            }
        }
        let rooms = (self.0.flows)().unwrap_or_default();
        if !rooms.is_empty() {
            let mut family = encoder.encode_descriptor(
                "vipr_flow_keys_removed",
                "Keys of flows that left otherwise than by a packet, two to four for each flow.",
                None,
                MetricType::Counter,
            )?;
            for room in &rooms {
                for removal in &room.removed {
                    let labels = [("table", room.table), ("reason", removal.reason)];
                    ConstCounter::new(removal.keys).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let report = self.0.report.borrow();
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Some(age) = report.age(SystemTime::now()) {
            gauge(
                "vipr_view_age_seconds",
                "Longest silence of a source of the cluster's state.",
                age.as_secs_f64(),
            )?;
        }
        gauge(
            "vipr_objects_left_out",
            "Objects and parts of objects that could not be read.",
            report.odd_total as f64,
        )?;
        gauge(
            "vipr_repaired",
            "Entries and attachments found different and put right.",
            report.repaired as f64,
        )?;
        for FlowRoom { table, used, room, .. } in rooms {
            gauge(&format!("vipr_{table}_used"), "Keys in use.", used.into())?;
            gauge(&format!("vipr_{table}_room"), "Keys there is room for.", room.into())?;
        }
        if let Some(written) = &report.applied {
            let fill = written.fill;
            for (map, [used, room]) in [
                ("frontends", fill.frontends),
                ("services", fill.services),
                ("backends", fill.backends),
                ("local_addresses", fill.local_addresses),
            ] {
                gauge(&format!("vipr_{map}_used"), "Entries in use.", used.into())?;
                gauge(&format!("vipr_{map}_room"), "Entries there is room for.", room.into())?;
            }
        }
        Ok(())
    }
}
