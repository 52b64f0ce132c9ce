//! Whose a frontend is that several ServicePorts claim.
//!
//! Upstream leaves that open (spec §1.8: whichever rule comes first, or was written last). Here it never depends on who
//! came first: a ClusterIP, which the API server gave to one Service alone, goes before what anybody may write into
//! `externalIPs` or a status; then the first by name has it. Within one ServicePort a load balancer address goes before
//! an external IP, so that source ranges are not passed by when the address stands in both lists. Who loses has it as
//! soon as the winner lets go. An address that its owner leaves to a socket of the node is nobody's frontend: it goes to
//! no other claim either.

use std::collections::{BTreeMap, HashMap};

use proxy_common::layout::{FrontendKey, FrontendKind};

use super::{ServicePortName, Target, Touched};

/// All claims; of most frontends there is one.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_key: HashMap<FrontendKey, Vec<Claim>>,
}

/// What a ServicePort would have a frontend be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) target: Target,
    /// Who wins by it leaves the frontend to a socket of the node.
    pub(super) left_to_socket: bool,
}

/// Where the winners stand.
pub(super) struct Owned<'a> {
    pub(super) frontends: &'a mut HashMap<FrontendKey, Target>,
    pub(super) left_to_sockets: &'a mut BTreeMap<FrontendKey, ServicePortName>,
}

impl Claims {
    /// Replaces some claims by others. What has another owner afterwards, or another kind, goes into `owned`, and what
    /// was different there into `touched`.
    pub(super) fn replace(
        &mut self,
        old: &[(FrontendKey, Claim)],
        new: &[(FrontendKey, Claim)],
        owned: &mut Owned<'_>,
        touched: &mut Touched,
    ) {
        if old == new {
            return;
        }
        for (key, old) in old {
            let Some(claims) = self.by_key.get_mut(key) else { continue };
            if let Some(place) = claims.iter().position(|claim| claim == old) {
                claims.swap_remove(place);
            }
            if claims.is_empty() {
                self.by_key.remove(key);
            }
        }
        for (key, claim) in new {
            self.by_key.entry(*key).or_insert_with(|| Vec::with_capacity(1)).push(claim.clone());
        }
        for (key, _) in old.iter().chain(new) {
            let winner =
                self.by_key.get(key).and_then(|claims| claims.iter().min_by_key(|claim| rank(claim)));
            let (left, served) = match winner {
                Some(Claim { target, left_to_socket: true }) => (Some(&target.service), None),
                winner => (None, winner.map(|claim| &claim.target)),
            };
            if owned.frontends.get(key) != served {
                match served {
                    Some(target) => owned.frontends.insert(*key, target.clone()),
                    None => owned.frontends.remove(key),
                };
                touched.frontends.insert(*key);
            }
            if owned.left_to_sockets.get(key) != left {
                match left {
                    Some(service) => owned.left_to_sockets.insert(*key, service.clone()),
                    None => owned.left_to_sockets.remove(key),
                };
                touched.left_to_sockets = true;
            }
        }
    }
}

/// The least has the frontend.
fn rank(Claim { target: claim, .. }: &Claim) -> (bool, &ServicePortName, FrontendKind) {
    (claim.kind != FrontendKind::ClusterIp, &claim.service, claim.kind)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proxy_common::Protocol;

    use super::*;
    use crate::model::{Family, ObjectName};

    fn claim(name: &str, kind: FrontendKind) -> (FrontendKey, Claim) {
        let key = FrontendKey::new(IpAddr::from([198, 51, 100, 1]).into(), 80, Protocol::Tcp);
        let service = ServicePortName {
            service: ObjectName::new("shop", name),
            port: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let target = Target { service, kind, host_denied: false };
        (key, Claim { target, left_to_socket: false })
    }

    /// Adds and then removes claims; the owner after each.
    fn owners(add: &[&(FrontendKey, Claim)], remove: &[&(FrontendKey, Claim)]) -> Vec<Option<String>> {
        let (mut claims, mut frontends, mut left) = (Claims::default(), HashMap::new(), BTreeMap::new());
        let mut owners = Vec::new();
        let steps = add.iter().map(|c| (None, Some(*c))).chain(remove.iter().map(|c| (Some(*c), None)));
        for (old, new) in steps {
            let before = frontends.clone();
            let mut touched = Touched::default();
            let slice = |claim: Option<&(FrontendKey, Claim)>| claim.cloned().into_iter().collect::<Vec<_>>();
            let mut owned = Owned { frontends: &mut frontends, left_to_sockets: &mut left };
            claims.replace(&slice(old), &slice(new), &mut owned, &mut touched);
            assert_eq!(!touched.frontends.is_empty(), before != frontends);
            let owner = |target: &Target| format!("{} {:?}", target.service.service.name, target.kind);
            let left = left.values().next().map(|service| format!("{} left", service.service.name));
            owners.push(frontends.values().next().map(owner).or(left));
        }
        assert_eq!(claims.by_key.len(), frontends.len() + left.len());
        owners
    }

    #[test]
    fn the_cluster_ip_wins_then_the_first_by_name_in_any_order() {
        let cluster = claim("z", FrontendKind::ClusterIp);
        let first = claim("a", FrontendKind::ExternalIp);
        let second = claim("b", FrontendKind::LoadBalancer);
        for order in [[&cluster, &first, &second], [&second, &first, &cluster], [&first, &second, &cluster]] {
            let owners = owners(&order, &[&cluster, &first, &second]);
            let expected = [Some("z ClusterIp"), Some("a ExternalIp"), Some("b LoadBalancer"), None];
            let expected = expected.map(|owner| owner.map(str::to_owned));
            assert_eq!(owners[2..], expected);
        }
    }

    #[test]
    fn what_its_owner_leaves_to_a_socket_goes_to_nobody_else() {
        let (key, mut cluster) = claim("z", FrontendKind::ClusterIp);
        cluster.left_to_socket = true;
        let (left, external) = ((key, cluster), claim("a", FrontendKind::ExternalIp));
        for order in [[&left, &external], [&external, &left]] {
            let owners = owners(&order, &[&left]);
            assert_eq!(owners[1..], [Some("z left".to_owned()), Some("a ExternalIp".to_owned())]);
        }
    }

    #[test]
    fn within_a_service_the_filtered_address_goes_before_the_unfiltered_one() {
        let (load_balancer, external) =
            (claim("a", FrontendKind::LoadBalancer), claim("a", FrontendKind::ExternalIp));
        for order in [[&load_balancer, &external], [&external, &load_balancer]] {
            assert_eq!(owners(&order, &[])[1].as_deref(), Some("a LoadBalancer"));
        }
    }
}
