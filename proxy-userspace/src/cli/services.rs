//! `vipr services`: what the tables serve now, whether or not an agent runs.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use super::output::{Output, Pins};
use crate::{dataplane, text};

/// Arguments of `vipr services`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these: `namespace/name`, or a name in any namespace
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    output: Output,
}

/// List the services.
pub fn run(args: Args) -> Result<ExitCode> {
    let (actual, _) = dataplane::read_pinned(&args.pins.pin_path)?;
    let rows = only(text::services(&actual), &args.services, |row| &row.service)?;
    args.output.answer(&rows, |rows| text::services_text(rows))?;
    Ok(ExitCode::SUCCESS)
}

/// The rows of the services that are named; all, if none is.
pub(super) fn only<T>(rows: Vec<T>, wanted: &[String], service: impl Fn(&T) -> &str) -> Result<Vec<T>> {
    for wanted in wanted {
        ensure!(
            rows.iter().any(|row| is(service(row), wanted)),
            "no service {wanted:?} in the tables: write `namespace/name` as `vipr services` does"
        );
    }
    let keep = |row: &T| wanted.is_empty() || wanted.iter().any(|wanted| is(service(row), wanted));
    Ok(rows.into_iter().filter(keep).collect())
}

/// Whether a service is called so, with its namespace or without.
pub(super) fn is(service: &str, wanted: &str) -> bool {
    service == wanted || service.split_once('/').is_some_and(|(_, name)| name == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: &[&str]) -> Result<Vec<&'static str>> {
        let wanted: Vec<_> = wanted.iter().map(|text| (*text).to_owned()).collect();
        only(vec!["shop/web", "shop/api", "test/web"], &wanted, |row| row)
    }

    #[test]
    fn a_service_is_named_with_its_namespace_or_in_all_of_them() {
        assert_eq!(chosen(&[]).unwrap().len(), 3);
        assert_eq!(chosen(&["shop/web"]).unwrap(), ["shop/web"]);
        assert_eq!(chosen(&["web", "shop/api"]).unwrap(), ["shop/web", "shop/api", "test/web"]);
    }

    #[test]
    fn a_service_that_is_not_there_is_named() {
        assert_eq!(
            chosen(&["web", "shop/webb"]).unwrap_err().to_string(),
            "no service \"shop/webb\" in the tables: write `namespace/name` as `vipr services` does"
        );
    }
}
