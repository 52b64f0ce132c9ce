//! What a running agent uses, and what its log and its metrics say of how long something took.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use proxy_lab::{Node, Waiting};
use vipr::report::Moment;

/// Where the agent tells its metrics.
const METRICS: u16 = 10_249;

/// Bytes that a process has in RAM.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// A number that is the same, but for a hundredth, for two seconds.
pub(crate) fn settled(mut read: impl FnMut() -> Result<u64>) -> Result<u64> {
    let began = Instant::now();
    let mut last = read()?;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = read()?;
        if now.abs_diff(last) * 100 <= now {
            return Ok(now);
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "it does not settle: {last}, {now}");
        last = now;
    }
}

/// Time of CPUs that all threads of a process took.
pub(crate) fn processor(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        sum += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// What the agent's log says of a start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Filled {
    /// The last list was complete.
    pub(crate) listed: SystemTime,
    /// The first pass that wrote something was over.
    pub(crate) written: SystemTime,
}

/// By the agent's log.
pub(crate) fn filled(log: &str) -> Result<Filled> {
    let at = |line: &str| -> Result<SystemTime> {
        let time = line.split_whitespace().next().unwrap_or_default();
        let moment: Moment =
            serde_json::from_value(time.into()).with_context(|| format!("no time before {line:?}"))?;
        Ok(moment.0)
    };
    let lines: Vec<_> = log.lines().collect();
    let written =
        lines.iter().position(|line| line.contains("tables written")).context("nothing was written")?;
    let listed = lines[..written].iter().rfind(|line| line.contains("listed"));
    Ok(Filled { listed: at(listed.context("nothing was listed")?)?, written: at(lines[written])? })
}

/// How long events took to be in the tables: a histogram of Prometheus.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reactions {
    /// Upper bounds in seconds, and how many events took no longer.
    buckets: Vec<(f64, u64)>,
}

impl Reactions {
    /// Of the agent on `node`, so far.
    pub(crate) fn read(node: &Node) -> Result<Self> {
        const BUCKET: &str = "vipr_event_to_tables_seconds_bucket{le=\"";
        let connection = node.connect(([127, 0, 0, 1], METRICS).into(), Waiting::Blocking)?;
        let mut stream: &TcpStream = connection.socket();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let mut buckets = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix(BUCKET)) {
            let (bound, count) = line.split_once("\"} ").context("a bucket without a count")?;
            buckets.push((bound.parse().unwrap_or(f64::INFINITY), count.parse()?));
        }
        ensure!(!buckets.is_empty(), "no histogram in {text}");
        Ok(Self { buckets })
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.last().map_or(0, |(_, count)| *count)
    }

    /// What part of those since `before` took no longer, in seconds: within a bucket as if they were spread evenly, as
    /// Prometheus has it.
    pub(crate) fn quantile(&self, before: &Self, part: f64) -> Result<f64> {
        let counts =
            self.buckets.iter().zip(&before.buckets).map(|((bound, now), (_, then))| (*bound, now - then));
        let wanted = (self.count() - before.count()) as f64 * part;
        let (mut low, mut below) = (0.0, 0);
        for (bound, count) in counts {
            if count as f64 >= wanted && count > below {
                return Ok(low + (bound - low) * (wanted - below as f64) / (count - below) as f64);
            }
            (low, below) = (bound, count);
        }
        bail!("nothing happened")
    }
}

/// A group of the memory controller (version 1) for the agent alone.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// `None` where there is no such controller that we may use.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.split_once(":memory:"));
        let path = Path::new("/sys/fs/cgroup/memory").join(own?.1.trim_start_matches('/')).join(name);
        fs::create_dir(&path).ok()?;
        Some(Self { path })
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What its processes use, their maps included.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let path = self.path.join("memory.usage_in_bytes");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The memory of maps that are still pinned goes on to the group above.
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_within_its_bucket_by_those_that_came_since() {
        let of = |counts: [u64; 3]| Reactions {
            buckets: [0.001, 0.002, f64::INFINITY].into_iter().zip(counts).collect(),
        };
        let (before, now) = (of([10, 10, 10]), of([20, 30, 30]));
        assert_eq!(now.quantile(&before, 0.25).unwrap(), 0.0005);
        assert_eq!(now.quantile(&before, 0.75).unwrap(), 0.0015);
        assert!(before.quantile(&before, 0.5).is_err());
    }

    #[test]
    fn the_fill_is_from_the_last_list_to_the_first_write() {
        let log = "2026-01-01T00:00:01.000000Z  INFO vipr: listed services\n\
                   2026-01-01T00:00:01.500000Z  INFO vipr: listed slices\n\
                   2026-01-01T00:00:01.540000Z  INFO vipr: tables written services=3\n\
                   2026-01-01T00:00:02.000000Z  INFO vipr: tables written services=4\n";
        let Filled { listed, written } = filled(log).unwrap();
        assert_eq!(written.duration_since(listed).unwrap(), Duration::from_millis(40));
        assert!(filled("").is_err());
    }
}
