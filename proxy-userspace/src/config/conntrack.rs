//! What KubeProxyConfiguration says of the kernel's connection tracking (spec §2.12): vipr's own flows do without it, what
//! else runs on the node does not, and kube-proxy is what has always set it.

use std::time::Duration;

use anyhow::Result;
use proxy_common::layout::Timeouts;

use super::values::Values;

/// `conntrack`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections for each CPU; 0: the size is left as it is.
    pub max_per_core: u64,
    /// Connections at least.
    pub min: u64,
    /// Zero ones are left as they are.
    pub tcp_established: Duration,
    /// See there.
    pub tcp_close_wait: Duration,
    /// See there.
    pub udp: Duration,
    /// See there.
    pub udp_stream: Duration,
    /// Segments out of the window are tracked, too.
    pub tcp_be_liberal: bool,
}

impl Conntrack {
    /// The most that CPUs can multiply to.
    const MOST: u64 = 1 << 20;

    pub(super) fn from_values(values: &Values) -> Result<Self> {
        let number = |key| Ok::<_, anyhow::Error>(u64::try_from(values.number(key)?).unwrap_or(0));
        Ok(Self {
            max_per_core: number("conntrack-max-per-core")?,
            min: number("conntrack-min")?,
            tcp_established: values.duration("conntrack-tcp-timeout-established")?,
            tcp_close_wait: values.duration("conntrack-tcp-timeout-close-wait")?,
            udp: values.duration("conntrack-udp-timeout")?,
            udp_stream: values.duration("conntrack-udp-timeout-stream")?,
            tcp_be_liberal: values.switch("conntrack-tcp-be-liberal")?,
        })
    }

    /// How long flows are remembered where there is no netfilter to be set: as it would be.
    pub fn timeouts(&self) -> Timeouts {
        let or = |timeout: Duration, default| {
            let seconds = u32::try_from(timeout.as_secs().max(1)).unwrap_or(u32::MAX);
            if timeout.is_zero() { default } else { seconds }
        };
        let d = Timeouts::DEFAULT;
        Timeouts {
            tcp_established: or(self.tcp_established, d.tcp_established),
            tcp_close_wait: or(self.tcp_close_wait, d.tcp_close_wait),
            udp: or(self.udp, d.udp),
            udp_stream: or(self.udp_stream, d.udp_stream),
            ..d
        }
    }

    /// Names below `net.netfilter` and what they are to be, on a machine with so many CPUs.
    pub fn sysctls(&self, cpus: u64) -> Vec<(&'static str, u64)> {
        let mut sysctls = Vec::new();
        sysctls.extend(self.max(cpus).map(|max| ("nf_conntrack_max", max)));
        let timeouts = [
            ("nf_conntrack_tcp_timeout_established", self.tcp_established),
            ("nf_conntrack_tcp_timeout_close_wait", self.tcp_close_wait),
            ("nf_conntrack_udp_timeout", self.udp),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream),
        ];
        let set = timeouts.into_iter().filter(|(_, timeout)| !timeout.is_zero());
        sysctls.extend(set.map(|(name, timeout)| (name, timeout.as_secs().max(1))));
        if self.tcp_be_liberal {
            sysctls.push(("nf_conntrack_tcp_be_liberal", 1));
        }
        sysctls
    }

    /// Buckets that the table is to have at least, of four connections each (kube-proxy's ratio).
    pub fn buckets(&self, cpus: u64) -> Option<u64> {
        self.max(cpus).map(|max| max / 4)
    }

    fn max(&self, cpus: u64) -> Option<u64> {
        let scaled = self.max_per_core.saturating_mul(cpus).min(Self::MOST);
        (self.max_per_core > 0).then(|| scaled.max(self.min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_last_as_configured_where_netfilter_is_absent_and_zero_leaves_the_default() {
        let d = Timeouts::DEFAULT;
        assert_eq!(Conntrack::default().timeouts(), d);
        let conntrack = Conntrack {
            tcp_established: Duration::from_secs(7200),
            udp_stream: Duration::from_millis(500),
            ..Conntrack::default()
        };
        assert_eq!(conntrack.timeouts(), Timeouts { tcp_established: 7200, udp_stream: 1, ..d });
    }

    #[test]
    fn the_table_grows_with_the_cpus_between_its_bounds_and_zero_leaves_everything_alone() {
        assert_eq!(Conntrack::default().sysctls(8), []);
        let max = |max_per_core, min, cpus| {
            Conntrack { max_per_core, min, ..Conntrack::default() }.sysctls(cpus)[0]
        };
        assert_eq!(max(32_768, 131_072, 2), ("nf_conntrack_max", 131_072));
        assert_eq!(max(32_768, 131_072, 8), ("nf_conntrack_max", 262_144));
        assert_eq!(max(32_768, 131_072, 256), ("nf_conntrack_max", 1_048_576));
    }
}
