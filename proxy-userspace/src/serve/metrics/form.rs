//! The two forms of metrics: OpenMetrics for who asks for it, and the older text that kube-proxy answers with.

use std::collections::HashSet;
use std::fmt::Write;

use axum::{
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{encoding::text::encode, registry::Registry};

use crate::serve::accept::ranges;

const OPEN: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain";

/// What is registered, in the form that is asked for.
pub(super) fn respond(registry: &Registry, asked: &HeaderMap) -> Response {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, registry) {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    let (kind, text) = if prefers_open(asked) {
        (format!("{OPEN}; version=1.0.0; charset=utf-8"), text)
    } else {
        (format!("{PLAIN}; version=0.0.4; charset=utf-8"), plain(&text))
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Whether it is named, and not after the older text.
fn prefers_open(asked: &HeaderMap) -> bool {
    ranges(asked).iter().map(|range| range.kind.as_str()).find(|kind| [OPEN, PLAIN].contains(kind))
        == Some(OPEN)
}

/// OpenMetrics as text of version 0.0.4: a counter's family has the name of its samples, whole bounds of buckets have no
/// `.0`, and there is no end.
pub(super) fn plain(open: &str) -> String {
    let counters: HashSet<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open.len());
    for line in open.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let comment = ["# HELP ", "# TYPE "].into_iter().find(|start| line.starts_with(start));
        let parts = comment.and_then(|start| Some((start, line[start.len()..].split_once(' ')?)));
        // Writing to a String does not fail.
        let _ = match parts {
            Some((start, (name, rest))) => {
                let total = if counters.contains(name) { "_total" } else { "" };
                writeln!(text, "{start}{name}{total} {rest}")
            }
            None => match whole_bound(line) {
                Some((before, after)) => writeln!(text, "{before}{after}"),
                None => writeln!(text, "{line}"),
            },
        };
    }
    text
}

/// Of a bucket whose bound is a whole number: what stands before and after its `.0`.
fn whole_bound(line: &str) -> Option<(&str, &str)> {
    let (name, labels) = line.split_once('{')?;
    let bound = labels.find("le=\"").filter(|_| name.ends_with("_bucket"))? + "le=\"".len();
    let end = name.len() + 1 + bound + labels[bound..].find('"')?;
    Some((line[..end].strip_suffix(".0")?, &line[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, text.parse().unwrap())])
    }

    #[test]
    fn open_metrics_is_for_who_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for open in [prometheus, "application/openmetrics-text", "application/openmetrics-text, text/plain"] {
            assert!(prefers_open(&accept(open)), "{open}");
        }
        for plain in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text;q=0",
            "text/plain, application/openmetrics-text;q=0.9",
            "application/vnd.google.protobuf",
        ] {
            assert!(!prefers_open(&accept(plain)), "{plain}");
        }
    }

    #[test]
    fn the_older_text_has_the_same_samples() {
        let open = "# HELP a_b A counter.\n# TYPE a_b counter\n# UNIT a_b seconds\na_b_total{x=\"1.0\"} 3\n\
                    # HELP a_b_c A gauge.\n# TYPE a_b_c gauge\na_b_c 1.5\n\
                    # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1.0\",f=\"x.0\"} 2\n\
                    h_bucket{le=\"+Inf\"} 3\nh_sum 1.0\n# EOF\n";
        assert_eq!(
            plain(open),
            "# HELP a_b_total A counter.\n# TYPE a_b_total counter\na_b_total{x=\"1.0\"} 3\n\
             # HELP a_b_c A gauge.\n# TYPE a_b_c gauge\na_b_c 1.5\n\
             # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1\",f=\"x.0\"} 2\n\
             h_bucket{le=\"+Inf\"} 3\nh_sum 1.0\n"
        );
    }
}
