//! Runs the tests, tier by tier, each with what it needs set up first.

mod stream;
mod tiers;

use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use tiers::{Outcome, Tier};
use xshell::Shell;

use crate::build_ebpf;
use crate::count::{Count, Reported};

/// Run the tests, after setting up what they need
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Only these tiers; by default all
    tiers: Vec<Tier>,
    /// Only tests whose names contain this
    #[arg(long)]
    filter: Option<String>,
}

/// A row of the table at the end.
struct Row {
    tier: Tier,
    seconds: f32,
    count: Count,
    /// What did not run, and why.
    left_out: Option<String>,
}

/// Runs all tiers asked for, also after one failed.
pub(crate) fn run(sh: &Shell, options: &Options) -> Result<()> {
    // First, since the agent that embeds it is compiled in every tier.
    if let Err(error) = build_ebpf::run(sh) {
        eprintln!("the kernel's half cannot be built: {error:#}");
    }
    let rows: Vec<_> =
        chosen(options).into_iter().map(|tier| row(sh, tier, options.filter.as_deref())).collect();
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let (text, total) = summary(&rows, in_ci);
    print!("{text}");
    if total.failed > 0 { Err(Reported.into()) } else { Ok(()) }
}

/// A filter names tests, which lint and the kernels' story have none of.
fn chosen(options: &Options) -> Vec<Tier> {
    let has_names = |tier: &Tier| options.filter.is_none() || !matches!(tier, Tier::Lint | Tier::Kernels);
    let all = if options.tiers.is_empty() { Tier::value_variants() } else { &options.tiers };
    all.iter().copied().filter(has_names).collect()
}

fn row(sh: &Shell, tier: Tier, filter: Option<&str>) -> Row {
    println!("\n── {} ──", tier.name());
    let start = Instant::now();
    let (count, left_out) = match tiers::run(sh, tier, filter) {
        Ok(Outcome::Ran(said)) => {
            (said.count, (said.ignored > 0).then(|| format!("{} tests are marked as ignored", said.ignored)))
        }
        Ok(Outcome::CouldNot(error)) => (Count::default(), Some(format!("{error:#}"))),
        Err(error) => {
            eprintln!("{}: {error:#}", tier.name());
            (Count { passed: 0, failed: 1 }, None)
        }
    };
    Row { tier, seconds: start.elapsed().as_secs_f32(), count, left_out }
}

/// The table, what could not run, and the sum; in CI what could not run has failed.
fn summary(rows: &[Row], in_ci: bool) -> (String, Count) {
    let mut text = format!("\n{:<8} {:>8} {:>7} {:>7}\n", "tier", "seconds", "passed", "failed");
    let mut total = Count::default();
    for row in rows {
        let Count { passed, failed } = row.count;
        text += &format!("{:<8} {:>8.1} {passed:>7} {failed:>7}\n", row.tier.name(), row.seconds);
        total += row.count;
    }
    for row in rows {
        if let Some(reason) = &row.left_out {
            text += &format!("could not run: {}: {reason}\n", row.tier.name());
            total.failed += usize::from(in_ci);
        }
    }
    (text + &format!("{total}\n"), total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |tier, passed, left_out: Option<&str>| Row {
            tier,
            seconds: 1.0,
            count: Count { passed, failed: 0 },
            left_out: left_out.map(str::to_owned),
        };
        vec![row(Tier::Host, 7, None), row(Tier::Cluster, 0, Some("no Go"))]
    }

    #[test]
    fn what_could_not_run_is_named_and_the_last_line_is_the_sum() {
        let (text, total) = summary(&rows(), false);
        assert!(text.contains("could not run: cluster: no Go\n"));
        assert_eq!(text.lines().last(), Some("7 passed, 0 failed"));
        assert_eq!(total.failed, 0);
    }

    #[test]
    fn in_ci_what_could_not_run_has_failed() {
        let (text, total) = summary(&rows(), true);
        assert_eq!(text.lines().last(), Some("7 passed, 1 failed"));
        assert_eq!(total.failed, 1);
    }

    #[test]
    fn a_filter_leaves_out_what_has_no_names() {
        let options = Options { tiers: Vec::new(), filter: Some("x".to_owned()) };
        assert!(!chosen(&options).contains(&Tier::Lint));
        assert!(chosen(&Options { tiers: Vec::new(), filter: None }).contains(&Tier::Lint));
    }
}
