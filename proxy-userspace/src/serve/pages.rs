//! `/flagz` and `/statusz`: pages for people, in the form of Kubernetes' components.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use crate::report::Report;

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// Every flag with the value that is in effect.
pub(super) fn flags(flags: &[(&'static str, String)]) -> String {
    let mut text = format!("\nkube-proxy flagz\n{WARNING}\n\n");
    for (name, value) in flags {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

/// Who answers, since when, and where else.
pub(super) fn status(report: &Report, paths: &[&str], now: SystemTime) -> String {
    let up = now.duration_since(report.started.0).unwrap_or_default();
    format!(
        "\nkube-proxy statusz\n{WARNING}\n\nStarted: {}\nUp: {}\nBinary version: vipr {}\nPaths: {}\n",
        report.started,
        long(up),
        report.version,
        paths.join(" ")
    )
}

fn long(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{} hr {:02} min {:02} sec", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_say_what_was_given_and_who_answers() {
        let page = flags(&[("proxy-mode", "nftables".into()), ("v", "2".into())]);
        assert!(page.contains("flagz") && page.ends_with("\n\nproxy-mode=nftables\nv=2\n"), "{page}");

        let report = Report::new("node-1", &[]);
        let page = status(&report, &["/flagz", "/metrics"], report.started.0 + Duration::from_secs(93_784));
        let rest = page.split_once("\n\n").unwrap().1;
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            rest,
            format!(
                "Started: {}\nUp: 26 hr 03 min 04 sec\nBinary version: vipr {version}\nPaths: /flagz /metrics\n",
                report.started
            )
        );
    }
}
