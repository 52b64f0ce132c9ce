//! Pods of the own node that ask for something: no others are kept.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::{Converted, Converter, Kind, Value};
use crate::watch::object::{Object, PodSpec};

impl Converter {
    pub(super) fn pod(&self, object: Object<PodSpec, IgnoredAny>) -> Result<Converted, String> {
        let mut converted = self.start(Kind::Pod, &object.metadata)?;
        let spec = object.spec.unwrap_or_default();
        if spec.node_name.as_deref() != Some(&self.node_name) {
            return Ok(converted);
        }
        let annotations = object.metadata.annotations.unwrap_or_default();
        match annotations.socket_plane.as_deref() {
            None => {}
            // Its sockets are the node's.
            Some("off") if spec.host_network == Some(true) => {
                let why = "metadata.annotations[vipr/socket-plane]: of no effect on a pod with hostNetwork";
                converted.notes.push(why.into());
            }
            Some("off") => {
                // A static pod is called otherwise by its kubelet than by the API server.
                let uid = annotations.mirror.or(object.metadata.uid).filter(|uid| !uid.is_empty());
                let uid = uid.ok_or("metadata.uid is missing")?;
                converted.value = Some(Value::LeftPod(Arc::from(uid)));
            }
            Some(other) => {
                let why = format!("metadata.annotations[vipr/socket-plane]: {other:?} is not \"off\"");
                converted.notes.push(why);
            }
        }
        Ok(converted)
    }
}
