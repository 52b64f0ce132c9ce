//! Which frontend was dialled: the exact address first, then the wildcard of NodePorts (peers: a ClusterIP whose port
//! lies in the NodePort range is a ClusterIP), the latter only on addresses of this node that serve NodePorts. At others
//! it may be found shut: kube-proxy's iptables mode refuses there what it would refuse everywhere (spec §2.4).

use super::{Call, Tables};
use crate::{
    Reason,
    layout::{Frontend, FrontendKey, FrontendKind, LocalAddress},
};

/// The frontend that `call` names, or why there is none.
#[inline(always)]
pub fn lookup<T: Tables>(tables: &T, call: &Call) -> Result<Frontend, Reason> {
    // Port 0 is nobody's: entries that have it are marks.
    if call.port == 0 || !tables.port_in_use(call.port) {
        return Err(Reason::NotService);
    }
    // 0.0.0.0 and :: reach loopback; they must not be taken for the wildcard keys.
    let unspecified = call.address.is_unspecified();
    if !unspecified
        && tables.address_in_use(&call.address)
        && let Some(frontend) = tables.frontend(&FrontendKey::new(call.address, call.port, call.protocol))
    {
        return Ok(frontend);
    }
    let Some(frontend) = tables.frontend(&FrontendKey::new(call.address.any(), call.port, call.protocol))
    else {
        return Err(Reason::NotService);
    };
    let address = if unspecified { call.address.loopback() } else { call.address };
    match tables.local_address(&address) {
        Some(local) if local.node_port == LocalAddress::SERVED => Ok(frontend),
        Some(local) if local.node_port == LocalAddress::REFUSED => {
            Ok(Frontend { kind: FrontendKind::ShutNodePort, ..frontend })
        }
        _ => Err(Reason::NotNodePort),
    }
}
