//! What is asked of the API server: lists and watches, with kube-proxy's selectors (spec §1.1).

use std::time::Duration;

use form_urlencoded::Serializer;
use http::{Request, header};

use crate::watch::convert::Kind;

/// How many objects a page of a list holds, as client-go has it.
const PAGE: &str = "500";

/// Whose objects are wanted.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) kind: Kind,
    path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
}

/// Where a list begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// Any state that the server has at hand, however old: cheap for it.
    Any,
    /// Not older than this version.
    Version(String),
    /// The newest: when the server does not know the version that we know.
    Newest,
}

impl Since {
    fn version(&self) -> &str {
        match self {
            Self::Any => "0",
            Self::Version(version) => version,
            Self::Newest => "",
        }
    }
}

impl Selection {
    /// All Services and slices that are ours, or the Node of this name.
    pub(super) fn new(kind: Kind, node: &str) -> Self {
        let (path, labels, fields) = match kind {
            Kind::Service => (
                "/api/v1/services",
                Some("!service.kubernetes.io/service-proxy-name"),
                Some("spec.clusterIP!=None".to_owned()),
            ),
            Kind::Slice => {
                ("/apis/discovery.k8s.io/v1/endpointslices", Some("!service.kubernetes.io/headless"), None)
            }
            Kind::Node => ("/api/v1/nodes", None, Some(format!("metadata.name={node}"))),
            Kind::Pod => ("/api/v1/pods", None, Some(format!("spec.nodeName={node}"))),
            Kind::ServiceCidr => ("/apis/networking.k8s.io/v1/servicecidrs", None, None),
        };
        Self { kind, path, labels, fields }
    }

    /// For people: what it is, as RBAC calls it.
    pub(super) fn resource(&self) -> &'static str {
        match self.kind {
            Kind::Service => "services",
            Kind::Slice => "endpointslices.discovery.k8s.io",
            Kind::Node => "nodes",
            Kind::Pod => "pods",
            Kind::ServiceCidr => "servicecidrs.networking.k8s.io",
        }
    }

    /// Whether a server may have no such resource: of ServiceCIDRs there are none before 1.33.
    pub(super) fn may_be_missing(&self) -> bool {
        self.kind == Kind::ServiceCidr
    }

    /// Without the selector that servers before 1.32 may not know; what comes then is left out when it is read.
    /// `false`: there was none.
    pub(super) fn drop_field_selector(&mut self) -> bool {
        self.kind == Kind::Service && self.fields.take().is_some()
    }

    /// One page of a list; `after`: what the page before said.
    pub(super) fn list(&self, from: &Since, after: Option<&str>) -> http::Result<Request<Vec<u8>>> {
        let version = from.version();
        self.request(|query| {
            query.append_pair("limit", PAGE);
            match after {
                Some(after) => {
                    query.append_pair("continue", after);
                }
                None if !version.is_empty() => {
                    query.append_pair("resourceVersion", version);
                    if version != "0" {
                        // Otherwise a limit means exactly this version.
                        query.append_pair("resourceVersionMatch", "NotOlderThan");
                    }
                }
                None => {}
            }
        })
    }

    /// What changes after `version`.
    pub(super) fn watch(&self, version: &str, limit: Duration) -> http::Result<Request<Vec<u8>>> {
        self.request(|query| {
            query.append_pair("watch", "true");
            query.append_pair("allowWatchBookmarks", "true");
            query.append_pair("timeoutSeconds", &limit.as_secs().to_string());
            query.append_pair("resourceVersion", version);
        })
    }

    /// Everything, and then what changes, in one stream (KEP-3157).
    pub(super) fn watch_list(&self, from: &Since, limit: Duration) -> http::Result<Request<Vec<u8>>> {
        self.request(|query| {
            query.append_pair("watch", "true");
            query.append_pair("allowWatchBookmarks", "true");
            query.append_pair("sendInitialEvents", "true");
            query.append_pair("resourceVersionMatch", "NotOlderThan");
            query.append_pair("timeoutSeconds", &limit.as_secs().to_string());
            query.append_pair("resourceVersion", from.version());
        })
    }

    fn request(&self, more: impl FnOnce(&mut Serializer<'_, String>)) -> http::Result<Request<Vec<u8>>> {
        let mut query = Serializer::new(String::new());
        if let Some(labels) = self.labels {
            query.append_pair("labelSelector", labels);
        }
        if let Some(fields) = &self.fields {
            query.append_pair("fieldSelector", fields);
        }
        more(&mut query);
        Request::get(format!("{}?{}", self.path, query.finish()))
            .header(header::ACCEPT, "application/json")
            // Servers compress each event by itself, which clients read as the end of the stream.
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Vec::new())
    }
}
