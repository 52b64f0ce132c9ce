//! What one source has said so far, so that only what is different is passed on. Values are shared with the model:
//! there is one copy of each.

use std::collections::BTreeMap;

use super::convert::{Kind, Value};
use crate::model::{Change, ObjectName};

/// The objects of one kind that are ours to serve.
#[derive(Debug)]
pub(super) struct Known {
    kind: Kind,
    values: BTreeMap<ObjectName, Value>,
    /// A complete list has been passed on.
    complete: bool,
}

impl Known {
    /// Nothing yet.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, values: BTreeMap::new(), complete: false }
    }

    /// What was last said of an object.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&Value> {
        self.values.get(name)
    }

    /// One object is now so, or gone or not ours. `None`: as before.
    pub(super) fn put(&mut self, name: &ObjectName, value: Option<Value>) -> Option<Change> {
        if self.values.get(name) == value.as_ref() {
            return None;
        }
        match &value {
            Some(value) => self.values.insert(name.clone(), value.clone()),
            None => self.values.remove(name),
        };
        Some(match (self.kind, value) {
            (Kind::Service, Some(Value::Service(service))) => Change::Service(name.clone(), Some(service)),
            (Kind::Slice, Some(Value::Slice(slice))) => Change::Slice(name.clone(), Some(slice)),
            (Kind::Node, Some(Value::Node(node))) => Change::Node(Some(*node)),
            (Kind::Pod, Some(Value::LeftPod(uid))) => Change::LeftPod(name.clone(), Some(uid)),
            (Kind::ServiceCidr, Some(Value::ServiceCidr(ranges))) => {
                Change::ServiceCidr(name.clone(), Some(ranges))
            }
            (Kind::Service, _) => Change::Service(name.clone(), None),
            (Kind::Slice, _) => Change::Slice(name.clone(), None),
            (Kind::Node, _) => Change::Node(None),
            (Kind::Pod, _) => Change::LeftPod(name.clone(), None),
            (Kind::ServiceCidr, _) => Change::ServiceCidr(name.clone(), None),
        })
    }

    /// These are all there are. `None`: as before, and that is not the first time.
    pub(super) fn replace(&mut self, values: BTreeMap<ObjectName, Value>) -> Option<Change> {
        tracing::info!(kind = ?self.kind, objects = values.len(), "listed");
        if self.complete && self.values == values {
            return None;
        }
        // Anew: what grew in order is half empty.
        self.values = values.into_iter().collect();
        self.complete = true;
        let named = self.values.iter();
        let values = self.values.values().cloned();
        Some(match self.kind {
            Kind::Pod => Change::LeftPods(
                self.values
                    .iter()
                    .filter_map(|(name, value)| match value {
                        Value::LeftPod(uid) => Some((name.clone(), uid.clone())),
                        _ => None,
                    })
                    .collect(),
            ),
            Kind::Service => Change::Services(
                values
                    .filter_map(|value| if let Value::Service(it) = value { Some(it) } else { None })
                    .collect(),
            ),
            Kind::Slice => Change::Slices(
                values
                    .filter_map(|value| if let Value::Slice(it) = value { Some(it) } else { None })
                    .collect(),
            ),
            Kind::Node => Change::Node(
                values.filter_map(|value| if let Value::Node(it) = value { Some(*it) } else { None }).next(),
            ),
            Kind::ServiceCidr => Change::ServiceCidrs(
                named
                    .filter_map(|(name, value)| match value {
                        Value::ServiceCidr(ranges) => Some((name.clone(), ranges.clone())),
                        _ => None,
                    })
                    .collect(),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Node;

    #[test]
    fn only_what_is_different_is_passed_on() {
        let mut known = Known::new(Kind::Node);
        let name = ObjectName::new("", "n1");
        let node = Node { leaving: true, ..Node::default() };
        let values = BTreeMap::from([(name.clone(), Value::Node(Box::new(node.clone())))]);
        assert_eq!(known.replace(values.clone()), Some(Change::Node(Some(node))));
        assert_eq!(known.replace(values), None);
        assert_eq!(known.put(&name, known.get(&name).cloned()), None);
        assert_eq!(known.put(&name, None), Some(Change::Node(None)));
        assert_eq!(known.put(&name, None), None);
    }

    #[test]
    fn an_empty_list_is_passed_on_the_first_time() {
        for (kind, change) in [
            (Kind::Service, Change::Services(Vec::new())),
            (Kind::Slice, Change::Slices(Vec::new())),
            (Kind::Node, Change::Node(None)),
            (Kind::Pod, Change::LeftPods(BTreeMap::new())),
            (Kind::ServiceCidr, Change::ServiceCidrs(BTreeMap::new())),
        ] {
            let mut known = Known::new(kind);
            assert_eq!(known.replace(BTreeMap::new()), Some(change));
            assert_eq!(known.replace(BTreeMap::new()), None);
        }
    }
}
