//! What a change must pass: lint, tidy, all tests.

use anyhow::Result;
use xshell::Shell;

use crate::{test, tidy};

/// Runs tidy first, since it takes no time; lint is a tier of the tests.
pub(crate) fn run(sh: &Shell) -> Result<()> {
    tidy::run(sh)?;
    test::run(sh, &test::Options::default())
}
