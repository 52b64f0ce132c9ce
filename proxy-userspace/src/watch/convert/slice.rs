//! EndpointSlices (spec §1.3).

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Converted, Converter, Kind, Value, port, protocol};
use crate::{
    model::{Endpoint, Family, Placement, Slice, SlicePort},
    watch::{
        address::parse_address,
        object::{self, EndpointPort, EndpointSlice, Named},
    },
};

impl Converter {
    pub(super) fn slice(&self, slice: EndpointSlice) -> Result<Converted, String> {
        let mut converted = self.start(Kind::Slice, &slice.metadata)?;
        let annotations = slice.metadata.annotations.unwrap_or_default();
        converted.trigger = annotations.trigger_time.as_deref().and_then(time);
        let labels = slice.metadata.labels.unwrap_or_default();
        let family = match slice.address_type.as_deref() {
            Some("IPv4") => Family::V4,
            Some("IPv6") => Family::V6,
            _ => return Ok(converted),
        };
        if labels.headless.is_some() {
            return Ok(converted);
        }
        let Some(service) = labels.service_name.filter(|name| !name.is_empty()) else {
            converted.notes.push("is left out: it has no label kubernetes.io/service-name".into());
            return Ok(converted);
        };
        let notes = &mut converted.notes;
        let entries = slice.endpoints.unwrap_or_default();
        // As long as they are: there are many slices.
        let mut endpoints = Vec::with_capacity(entries.len());
        for entry in entries {
            endpoints.extend(self.endpoint(entry, family, notes));
        }
        let slice = Slice {
            name: converted.name.clone(),
            service: self.name(&converted.name.namespace, &service),
            family,
            ports: self.slice_ports(slice.ports.unwrap_or_default(), notes)?,
            endpoints,
        };
        converted.value = Some(Value::Slice(Arc::new(slice)));
        Ok(converted)
    }

    fn endpoint(&self, entry: object::Endpoint, family: Family, notes: &mut Vec<String>) -> Option<Endpoint> {
        let text = entry.addresses?.into_iter().next()?;
        let Some(address) = parse_address(&text) else {
            notes.push(format!("the endpoint {text:?} is left out: no IP address"));
            return None;
        };
        if Family::of(address) != family {
            notes.push(format!("the endpoint {text} is left out: the slice's addressType is {family}"));
            return None;
        }
        let conditions = entry.conditions.unwrap_or_default();
        let hints = entry.hints.unwrap_or_default();
        Some(Endpoint {
            address,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            placement: self.names.placement(Placement {
                node: entry.node_name.map(|node| self.names.get(&node)),
                for_zones: self.set(hints.for_zones),
                for_nodes: self.set(hints.for_nodes),
            }),
        })
    }

    fn set(&self, entries: Option<Vec<Named>>) -> BTreeSet<Arc<str>> {
        let entries = entries.unwrap_or_default();
        entries.into_iter().map(|entry| self.names.get(entry.name.as_deref().unwrap_or(""))).collect()
    }

    fn slice_ports(
        &self,
        entries: Vec<EndpointPort>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<SlicePort>, String> {
        let mut ports = Vec::with_capacity(entries.len());
        for (i, entry) in entries.into_iter().enumerate() {
            let Some(name) = entry.name else { continue };
            let Some(number) = port(entry.port).map_err(|why| format!("ports[{i}].port: {why}"))? else {
                continue;
            };
            match protocol(entry.protocol.as_deref()) {
                Ok(protocol) => ports.push(SlicePort { name: self.names.get(&name), protocol, port: number }),
                Err(why) => notes.push(format!("ports[{i}] is left out: {why}")),
            }
        }
        Ok(ports)
    }
}

/// RFC 3339 with nanoseconds; times before 1970 are no trigger.
fn time(text: &str) -> Option<SystemTime> {
    let time: jiff::Timestamp = text.parse().ok()?;
    let nanoseconds = u64::try_from(time.as_nanosecond()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds))
}
