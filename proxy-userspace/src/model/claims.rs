//! Whose a frontend is that several ServicePorts claim.
//!
//! Upstream leaves that open (spec §1.8: whichever rule comes first, or was written last). Here it never depends on who
//! came first: a ClusterIP, which the API server gave to one Service alone, goes before what anybody may write into
//! `externalIPs` or a status; then the first by name has it. Within one ServicePort a load balancer address goes before
//! an external IP, so that source ranges are not passed by when the address stands in both lists. Who loses has it as
//! soon as the winner lets go.

use std::collections::{BTreeSet, HashMap};

use proxy_common::layout::{FrontendKey, FrontendKind};

use super::{ServicePortName, Target};

/// All claims; of most frontends there is one.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_key: HashMap<FrontendKey, Vec<Target>>,
}

impl Claims {
    /// Replaces some claims by others. What has another owner afterwards, or another kind, goes into `frontends`, its
    /// key into `touched`.
    pub(super) fn replace(
        &mut self,
        old: &[(FrontendKey, Target)],
        new: &[(FrontendKey, Target)],
        frontends: &mut HashMap<FrontendKey, Target>,
        touched: &mut BTreeSet<FrontendKey>,
    ) {
        if old == new {
            return;
        }
        for (key, target) in old {
            let Some(claims) = self.by_key.get_mut(key) else { continue };
            if let Some(place) = claims.iter().position(|claim| claim == target) {
                claims.swap_remove(place);
            }
            if claims.is_empty() {
                self.by_key.remove(key);
            }
        }
        for (key, target) in new {
            self.by_key.entry(*key).or_default().push(target.clone());
        }
        for (key, _) in old.iter().chain(new) {
            let winner =
                self.by_key.get(key).and_then(|claims| claims.iter().min_by_key(|claim| rank(claim)));
            if frontends.get(key) == winner {
                continue;
            }
            match winner {
                Some(winner) => frontends.insert(*key, winner.clone()),
                None => frontends.remove(key),
            };
            touched.insert(*key);
        }
    }
}

/// The least has the frontend.
fn rank(claim: &Target) -> (bool, &ServicePortName, FrontendKind) {
    (claim.kind != FrontendKind::ClusterIp, &claim.service, claim.kind)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proxy_common::Protocol;

    use super::*;
    use crate::model::{Family, ObjectName};

    fn claim(name: &str, kind: FrontendKind) -> (FrontendKey, Target) {
        let key = FrontendKey::new(IpAddr::from([198, 51, 100, 1]).into(), 80, Protocol::Tcp);
        let service = ServicePortName {
            service: ObjectName::new("shop", name),
            port: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        (key, Target { service, kind, host_denied: false })
    }

    /// Adds and then removes claims; the owner after each.
    fn owners(add: &[&(FrontendKey, Target)], remove: &[&(FrontendKey, Target)]) -> Vec<Option<String>> {
        let (mut claims, mut frontends) = (Claims::default(), HashMap::new());
        let mut owners = Vec::new();
        let steps = add.iter().map(|c| (None, Some(*c))).chain(remove.iter().map(|c| (Some(*c), None)));
        for (old, new) in steps {
            let before = frontends.clone();
            let mut touched = BTreeSet::new();
            let slice =
                |claim: Option<&(FrontendKey, Target)>| claim.cloned().into_iter().collect::<Vec<_>>();
            claims.replace(&slice(old), &slice(new), &mut frontends, &mut touched);
            assert_eq!(!touched.is_empty(), before != frontends);
            let owner = |target: &Target| format!("{} {:?}", target.service.service.name, target.kind);
            owners.push(frontends.values().next().map(owner));
        }
        assert_eq!(claims.by_key.len(), frontends.len());
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
    fn within_a_service_the_filtered_address_goes_before_the_unfiltered_one() {
        let (load_balancer, external) =
            (claim("a", FrontendKind::LoadBalancer), claim("a", FrontendKind::ExternalIp));
        for order in [[&load_balancer, &external], [&external, &load_balancer]] {
            assert_eq!(owners(&order, &[])[1].as_deref(), Some("a LoadBalancer"));
        }
    }
}
