//! The kernel's connection tracking, as KubeProxyConfiguration has it (spec §2.12).

use std::{fs, io, path::Path, time::Duration};

use crate::config::Conntrack;

/// Write what differs below `proc` (`/proc/sys/net/netfilter`). A kernel that tracks nothing has nothing to set. What can't be
/// set is named and left: unlike kube-proxy, vipr does not need it.
pub(super) fn set(conntrack: &Conntrack, proc: &Path) {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    for (name, value) in conntrack.sysctls(cpus) {
        let path = proc.join(name);
        match set_one(&path, value) {
            Ok(None) => {}
            Ok(Some(old)) => tracing::info!(old, new = value, "set net.netfilter.{name}"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!("net.netfilter.{name} stays as it is, {value} is configured: {error}")
            }
        }
    }
}

/// As [`set`], once the kernel tracks connections that tracked none before: its module comes with the first rule that needs
/// it. Never returns.
pub(super) async fn set_when_loaded(conntrack: &Conntrack, proc: &Path) {
    const WAIT: Duration = Duration::from_secs(1);
    let is_loaded = || proc.join("nf_conntrack_count").exists();
    if !is_loaded() {
        while !is_loaded() {
            tokio::time::sleep(WAIT).await;
        }
        set(conntrack, proc);
    }
    std::future::pending().await
}

/// The value there was, if it was another.
fn set_one(path: &Path, value: u64) -> io::Result<Option<u64>> {
    let old = fs::read_to_string(path)?.trim().parse::<u64>().unwrap_or(0);
    if old == value {
        return Ok(None);
    }
    fs::write(path, value.to_string())?;
    Ok(Some(old))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        set(&conntrack, folder.path());
        assert_eq!(read("nf_conntrack_tcp_timeout_close_wait")?, "3600");
        assert_eq!(read("nf_conntrack_udp_timeout")?, "30\n", "0 leaves it");
        assert!(
            read("nf_conntrack_tcp_timeout_established").is_err(),
            "nothing is made that the kernel has not"
        );
        Ok(())
    }

    #[tokio::test]
    async fn what_is_configured_is_set_once_the_kernel_begins_to_track() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
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
            () = set_when_loaded(&conntrack, folder.path()) => panic!("it never returns"),
        }
    }
}
