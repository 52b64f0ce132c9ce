//! The kernel's connection tracking, as KubeProxyConfiguration has it (spec §2.12).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::config::Conntrack;

/// Where the kernel has it.
pub(super) struct Places {
    /// The folder of its sysctls.
    sysctls: PathBuf,
    /// The number of its table's buckets, which all network namespaces share.
    buckets: PathBuf,
}

impl Places {
    /// Of this machine.
    pub(super) fn here() -> Self {
        Self {
            sysctls: super::NETFILTER.into(),
            buckets: "/sys/module/nf_conntrack/parameters/hashsize".into(),
        }
    }
}

/// Write what differs. A kernel that tracks nothing has nothing to set. What can't be set is named and left: unlike
/// kube-proxy, vipr does not need it.
pub(super) fn set(conntrack: &Conntrack, places: &Places) {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    for (name, value) in conntrack.sysctls(cpus) {
        told(&format!("net.netfilter.{name}"), value, set_unless(&places.sysctls.join(name), value, u64::eq));
    }
    if let Some(least) = conntrack.buckets(cpus) {
        // The kernel has rounded up what was written, and refuses other namespaces than its first.
        told("nf_conntrack's hashsize", least, set_unless(&places.buckets, least, u64::ge));
    }
}

fn told(name: &str, value: u64, set: io::Result<Option<u64>>) {
    match set {
        Ok(None) => {}
        Ok(Some(old)) => tracing::info!(old, new = value, "set {name}"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("{name} stays as it is, {value} is configured: {error}"),
    }
}

/// As [`set`], once the kernel tracks connections that tracked none before: its module comes with the first rule that needs
/// it. Never returns.
pub(super) async fn set_when_loaded(conntrack: &Conntrack, places: &Places) {
    const WAIT: Duration = Duration::from_secs(1);
    let is_loaded = || places.sysctls.join("nf_conntrack_count").exists();
    if !is_loaded() {
        while !is_loaded() {
            tokio::time::sleep(WAIT).await;
        }
        set(conntrack, places);
    }
    std::future::pending().await
}

/// The value there was, if it did not do.
fn set_unless(path: &Path, value: u64, does: impl Fn(&u64, &u64) -> bool) -> io::Result<Option<u64>> {
    let old = fs::read_to_string(path)?.trim().parse::<u64>().unwrap_or(0);
    if does(&old, &value) {
        return Ok(None);
    }
    fs::write(path, value.to_string())?;
    Ok(Some(old))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(folder: &Path) -> Places {
        Places { sysctls: folder.into(), buckets: folder.join("hashsize") }
    }

    #[test]
    fn what_differs_is_set_and_what_does_not_exist_is_left() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        fs::write(folder.path().join("nf_conntrack_tcp_timeout_close_wait"), "60\n")?;
        fs::write(folder.path().join("nf_conntrack_udp_timeout"), "30\n")?;
        let conntrack = Conntrack {
            tcp_close_wait: Duration::from_secs(3600),
            tcp_established: Duration::from_secs(86_400),
            ..Conntrack::default()
        };
        set(&conntrack, &places(folder.path()));
        assert_eq!(read("nf_conntrack_tcp_timeout_close_wait")?, "3600");
        assert_eq!(read("nf_conntrack_udp_timeout")?, "30\n", "0 leaves it");
        assert!(
            read("nf_conntrack_tcp_timeout_established").is_err(),
            "nothing is made that the kernel has not"
        );
        Ok(())
    }

    #[test]
    fn the_table_gets_a_bucket_for_each_four_connections_and_never_loses_one() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("hashsize");
        let buckets = |max_per_core, before| {
            fs::write(&path, before)?;
            let conntrack = Conntrack { max_per_core, min: 2 << 20, ..Conntrack::default() };
            set(&conntrack, &places(folder.path()));
            fs::read_to_string(&path)
        };
        assert_eq!(buckets(1, "65536\n")?, "524288");
        assert_eq!(buckets(1, "524800\n")?, "524800\n", "rounded up to whole pages by the kernel");
        assert_eq!(buckets(0, "65536\n")?, "65536\n", "the size is left alone");
        Ok(())
    }

    #[tokio::test]
    async fn what_is_configured_is_set_once_the_kernel_begins_to_track() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let places = places(folder.path());
        let conntrack = Conntrack { tcp_close_wait: Duration::from_secs(3600), ..Conntrack::default() };
        let value = folder.path().join("nf_conntrack_tcp_timeout_close_wait");
        let loaded = async {
            // It has looked once, and waits.
            tokio::task::yield_now().await;
            for name in ["nf_conntrack_tcp_timeout_close_wait", "nf_conntrack_count"] {
                fs::write(folder.path().join(name), "60\n")?;
            }
            while fs::read_to_string(&value)? != "3600" {
                tokio::task::yield_now().await;
            }
            io::Result::Ok(())
        };
        tokio::select! {
            done = tokio::time::timeout(Duration::from_secs(60), loaded) => done?,
            () = set_when_loaded(&conntrack, &places) => panic!("it never returns"),
        }
    }
}
