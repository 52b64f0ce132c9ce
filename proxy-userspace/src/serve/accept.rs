//! What a client asks for by `Accept` (RFC 9110 §12.5.1).

use axum::http::{HeaderMap, header};

/// One media range.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Range {
    /// Like `application/json` or `*/*`, in small letters.
    pub(super) kind: String,
    /// Its parameters but for `q`, in the order in which they stand.
    pub(super) parameters: Vec<(String, String)>,
    /// From 0, which is "not this", to 1.
    pub(super) quality: f64,
}

impl Range {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let kind = parts.next().filter(|kind| !kind.is_empty())?.to_ascii_lowercase();
        let mut range = Self { kind, parameters: Vec::new(), quality: 1.0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name {
                "q" => range.quality = value.parse().unwrap_or(0.0),
                _ => range.parameters.push((name.to_owned(), value.to_owned())),
            }
        }
        Some(range)
    }

    /// What a parameter says.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}

/// What is asked for, what is liked best first.
pub(super) fn ranges(headers: &HeaderMap) -> Vec<Range> {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges: Vec<_> = lines.flat_map(|line| line.split(',')).filter_map(Range::read).collect();
    ranges.retain(|range| range.quality > 0.0);
    // The order among equals stays.
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_by_their_quality_and_then_as_they_stand() {
        let mut headers = HeaderMap::new();
        headers
            .append(header::ACCEPT, "text/plain;q=0.5, Application/JSON;v=v1beta1;as=Flagz".parse().unwrap());
        headers.append(header::ACCEPT, "a/b;q=0, ,*/*; q=x, application/yaml".parse().unwrap());
        let ranges = ranges(&headers);
        let kinds: Vec<_> = ranges.iter().map(|range| range.kind.as_str()).collect();
        assert_eq!(kinds, ["application/json", "application/yaml", "text/plain"]);
        assert_eq!(ranges[0].parameter("as"), Some("Flagz"));
        assert_eq!(ranges[0].parameter("g"), None);
    }
}
