//! The mark that what is masqueraded bears in the host's firewall.

use anyhow::Result;

use super::values::Values;
use crate::model::Profile;

/// Its bits: `iptables.masqueradeBit` in the modes whose FORWARD chain accepts by it, none in mode nftables.
pub(super) fn masquerade(values: &Values, profile: Profile) -> Result<u32> {
    Ok(match profile {
        Profile::Nftables => 0,
        Profile::Iptables | Profile::Ipvs => 1 << values.number("iptables-masquerade-bit")?,
    })
}
