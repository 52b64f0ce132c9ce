//! Runs a test command and counts, line by line, while the user reads the same lines.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use xshell::Cmd;

use crate::count::Count;
use crate::progress;

/// What a command's output said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) count: Count,
    /// Tests that were left out by themselves.
    pub(super) ignored: usize,
}

/// Runs `command` and adds up what `read` finds in its lines. A command that failed and named no failure is one.
pub(super) fn run(what: &str, command: Cmd<'_>, mut read: impl FnMut(&str, &mut Said)) -> Result<Said> {
    println!("$ {command}");
    let mut command = Command::from(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {what}"))?;
    let output = child.stdout.take().context("a child's output")?;
    progress::during(what, || {
        let mut said = Said::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            read(&line, &mut said);
        }
        if !child.wait()?.success() && said.count.failed == 0 {
            said.count.failed = 1;
        }
        Ok(said)
    })
}

/// Reads the last line of a test binary.
pub(super) fn of_cargo(line: &str, said: &mut Said) {
    let Some((_, numbers)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
        return;
    };
    for part in numbers.split(';') {
        let Some((number, what)) = part.trim().split_once(' ') else { continue };
        let number = number.parse().unwrap_or(0);
        match what {
            "passed" => said.count.passed += number,
            "failed" => said.count.failed += number,
            "ignored" => said.ignored += number,
            _ => {}
        }
    }
}

/// Reads what the verb `kernels` says: a line when a machine starts, another when its story has passed.
pub(super) fn of_kernels(line: &str, said: &mut Said) {
    let Some((_, what)) = line.strip_prefix("kernel ").and_then(|rest| rest.split_once(": ")) else { return };
    if what.starts_with("passed") {
        said.count.passed += 1;
        said.count.failed = said.count.failed.saturating_sub(1);
    } else if what.starts_with(|c: char| c.is_ascii_digit()) {
        said.count.failed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xshell::{Shell, cmd};

    fn said(lines: &str, read: fn(&str, &mut Said)) -> (usize, usize, usize) {
        let mut said = Said::default();
        lines.lines().for_each(|line| read(line, &mut said));
        (said.count.passed, said.count.failed, said.ignored)
    }

    #[test]
    fn the_results_of_all_binaries_are_added_up() {
        let lines = "running 3 tests\ntest a ... ok\n\
                     test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 5 filtered out; finished in 0.1s\n\
                     test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n";
        assert_eq!(said(lines, of_cargo), (5, 4, 1));
    }

    #[test]
    fn a_machine_that_started_and_did_not_pass_has_failed() {
        let lines = "kernel 5.10: 5.10.262-1 (5.10.0-cloud)\n  step\nkernel 5.10: passed in 20 s\n\
                     kernel 6.1: 6.1.192-2 (6.1.0-cloud)\nkernel 6.1: kept in /tmp/x\n";
        assert_eq!(said(lines, of_kernels), (1, 1, 0));
    }

    #[test]
    fn a_command_that_fails_without_a_word_is_a_failure() -> Result<()> {
        let sh = Shell::new()?;
        let failed = |command| Ok::<_, anyhow::Error>(run("it", command, of_cargo)?.count.failed);
        assert_eq!(failed(cmd!(sh, "false"))?, 1);
        assert_eq!(failed(cmd!(sh, "true"))?, 0);
        Ok(())
    }
}
