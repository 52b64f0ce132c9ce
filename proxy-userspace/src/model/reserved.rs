//! What no Service takes by claiming it in `externalIPs` or in a load balancer's status (CVE-2020-8554): where the node's
//! health is asked for, and where its agents find the API server. kube-proxy serves these claims too, and can't hear of
//! their end then.

use std::{collections::BTreeSet, net::SocketAddr};

use proxy_common::{Protocol, layout::FrontendKind};

use super::{LocalRoute, ObjectName, frontends::Dialled, is_api_server, questions::is_on_a_device};

/// What a node lives by, over TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Ports of the node's own addresses: the agent's and kubelet's health.
    pub ports: BTreeSet<u16>,
    /// Where the agent finds the API server.
    pub api_servers: BTreeSet<SocketAddr>,
}

/// kubelet's own server, which is asked for its health too, and its `/healthz`.
const KUBELET: [u16; 2] = [10_250, 10_248];

impl Reserved {
    /// The agent's own servers, as far as it has them, and kubelet's.
    pub fn with_health(servers: [Option<SocketAddr>; 2]) -> Self {
        let own = servers.into_iter().flatten().map(|server| server.port());
        Self { ports: own.chain(KUBELET).collect(), api_servers: BTreeSet::new() }
    }

    /// Whether `dialled` stays what it is, though a Service claims it.
    pub(super) fn holds(
        &self,
        service: &ObjectName,
        dialled: &Dialled,
        routes: &BTreeSet<LocalRoute>,
    ) -> bool {
        if !matches!(dialled.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp) {
            return false;
        }
        let (key, address) = (&dialled.key, dialled.key.address().ip());
        // A mark speaks of all ports.
        let is_port = |port: u16| key.is_mark() || key.port == port && key.protocol == Protocol::Tcp;
        let of_server = self.api_servers.iter().any(|it| it.ip() == address && is_port(it.port()));
        let of_node =
            !key.is_mark() && self.ports.iter().any(|port| is_port(*port)) && is_on_a_device(address, routes);
        of_node || of_server && !may_front_servers(service)
    }
}

/// Load balancers in front of API servers are Services too in some clusters: of those who may do anything anyway.
fn may_front_servers(service: &ObjectName) -> bool {
    is_api_server(service) || &*service.namespace == "kube-system"
}
