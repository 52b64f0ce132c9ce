//! ServiceCIDRs (spec §1.7).

use super::{Converted, Converter, IgnoredAny, Kind, Value};
use crate::watch::{
    address::parse_cidr,
    object::{Object, ServiceCidrSpec},
};

impl Converter {
    /// The status is not asked: a range counts from the beginning to the end of its object.
    pub(super) fn service_cidr(
        &self,
        object: Object<ServiceCidrSpec, IgnoredAny>,
    ) -> Result<Converted, String> {
        let mut converted = self.start(Kind::ServiceCidr, &object.metadata)?;
        let mut ranges = Vec::new();
        for text in object.spec.and_then(|spec| spec.cidrs).unwrap_or_default() {
            match parse_cidr(&text) {
                Some(range) => ranges.push(range),
                None => converted.notes.push(format!("spec.cidrs: {text:?} is left out: no range")),
            }
        }
        converted.value = Some(Value::ServiceCidr(ranges.into()));
        Ok(converted)
    }
}
