//! What the agent's process uses, under the names that Prometheus' clients have for it; read when it is asked for.

use std::{
    fmt,
    fs::{read_dir, read_to_string},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Ticks a second in /proc: part of the kernel's interface, whatever its own clock does.
const TICKS: f64 = 100.0;

/// Of this process.
#[derive(Debug)]
pub(super) struct Process;

/// What /proc says.
#[derive(Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    /// Since the epoch.
    start_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
}

impl Usage {
    /// From `stat` and `status` of the process and `stat` of the system: proc_pid_stat(5), proc_stat(5).
    fn read(stat: &str, status: &str, system: &str) -> Option<Self> {
        // The second field is the name, in parentheses, and may have blanks. What follows begins with the third.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let boot = system.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(Self {
            cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS,
            start_seconds: boot.trim().parse::<f64>().ok()? + ticks(22)? / TICKS,
            resident_bytes: kilobytes("VmRSS:")? * 1024.0,
            virtual_bytes: kilobytes("VmSize:")? * 1024.0,
        })
    }
}

/// The soft limit; `None` if there is none.
fn most_files(limits: &str) -> Option<f64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let text = |path: &str| read_to_string(path).unwrap_or_default();
        let usage = Usage::read(&text("/proc/self/stat"), &text("/proc/self/status"), &text("/proc/stat"));
        let of = |part: fn(&Usage) -> f64| usage.as_ref().map(part);
        gauge("process_start_time_seconds", "When it started, since the epoch.", of(|it| it.start_seconds))?;
        gauge("process_resident_memory_bytes", "Memory that it has in RAM.", of(|it| it.resident_bytes))?;
        gauge("process_virtual_memory_bytes", "Addresses that it has in use.", of(|it| it.virtual_bytes))?;
        // Without the one that reads this.
        let open = read_dir("/proc/self/fd").map(|files| files.count().saturating_sub(1) as f64);
        gauge("process_open_fds", "Files that it has open.", open.ok())?;
        gauge("process_max_fds", "Files that it may have open.", most_files(&text("/proc/self/limits")))?;
        if let Some(usage) = usage {
            let metric = ConstCounter::new(usage.cpu_seconds);
            let help = "Time of CPUs that it took, its own and the kernel's for it.";
            metric.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                help,
                None,
                metric.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_read_from_proc_whatever_its_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1234 9000 80 1";
        let status = "Name:\ta ) b\nVmSize:\t    2048 kB\nVmRSS:\t     512 kB\n";
        let usage = Usage::read(stat, status, "cpu 1 2 3\nbtime 1700000000\n").unwrap();
        let expected = Usage {
            cpu_seconds: 3.0,
            start_seconds: 1_700_000_012.34,
            resident_bytes: 524_288.0,
            virtual_bytes: 2_097_152.0,
        };
        assert_eq!(usage, expected);
        assert_eq!(Usage::read("", "", ""), None);
    }

    #[test]
    fn the_limit_of_files_is_the_soft_one() {
        let limits = "Limit     Soft Limit   Hard Limit   Units\nMax open files   1024   524288   files\n";
        assert_eq!(most_files(limits), Some(1024.0));
        assert_eq!(most_files("Max open files   unlimited   unlimited   files\n"), None);
    }
}
