//! What the agent asks of the API server, under the names that Kubernetes' components have for it (`k8s.io/component-base`).

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    code: String,
    method: String,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: String,
    host: String,
}

type Histograms = Family<Verb, Histogram>;

/// Of all requests, watches too.
#[derive(Clone, Debug)]
pub struct Requests {
    total: Family<Outcome, Counter>,
    durations: Histograms,
    sent: Histograms,
    received: Histograms,
}

impl Default for Requests {
    fn default() -> Self {
        let sizes = || Histograms::new_with_constructor(size_histogram as fn() -> Histogram);
        Self {
            total: Family::default(),
            durations: Histograms::new_with_constructor(duration_histogram as fn() -> Histogram),
            sent: sizes(),
            received: sizes(),
        }
    }
}

/// Seconds, from 5 ms to a minute.
fn duration_histogram() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

/// Bytes, from 64 to 16 MiB.
fn size_histogram() -> Histogram {
    let small = [64, 256, 512].map(f64::from);
    let large = (5..=12).map(|power| f64::from(1_u32 << (2 * power)));
    Histogram::new(small.into_iter().chain(large))
}

impl Requests {
    /// A request with this method was answered with `code`, or not at all. `took` and `bytes` (sent, received) count if they
    /// are known, which of a watch they are not.
    pub fn request(
        &self,
        method: &str,
        host: &str,
        code: Option<u16>,
        took: Option<Duration>,
        bytes: Option<[u64; 2]>,
    ) {
        let verb = Verb { verb: method.to_owned(), host: host.to_owned() };
        if let Some(took) = took {
            self.durations.get_or_create(&verb).observe(took.as_secs_f64());
        }
        if let Some([sent, received]) = bytes {
            self.sent.get_or_create(&verb).observe(sent as f64);
            self.received.get_or_create(&verb).observe(received as f64);
        }
        let Verb { verb: method, host } = verb;
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.total.get_or_create(&Outcome { code, method, host }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let client = registry.sub_registry_with_prefix("rest_client");
        client.register("requests", "Requests to the API server, by what it answered", self.total.clone());
        client.register(
            "request_duration_seconds",
            "From a request to the end of its answer; without watches",
            self.durations.clone(),
        );
        client.register("request_size_bytes", "What a request carries; without watches", self.sent.clone());
        client.register(
            "response_size_bytes",
            "What its answer carries; without watches",
            self.received.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn requests_are_counted_by_answer_and_watches_have_no_time() {
        let requests = Requests::default();
        let second = Some(Duration::from_secs(1));
        requests.request("GET", "a:6443", Some(200), second, Some([0, 5000]));
        requests.request("GET", "a:6443", Some(200), None, None);
        requests.request("POST", "a:6443", None, second, None);
        let mut registry = Registry::default();
        requests.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"a:6443\"} 2",
            "rest_client_requests_total{code=\"<error>\",method=\"POST\",host=\"a:6443\"} 1",
            "rest_client_request_duration_seconds_count{verb=\"GET\",host=\"a:6443\"} 1",
            "rest_client_request_duration_seconds_bucket{le=\"0.5\",verb=\"GET\",host=\"a:6443\"} 0",
            "rest_client_request_duration_seconds_count{verb=\"POST\",host=\"a:6443\"} 1",
            "rest_client_response_size_bytes_bucket{le=\"4096.0\",verb=\"GET\",host=\"a:6443\"} 0",
            "rest_client_response_size_bytes_bucket{le=\"16384.0\",verb=\"GET\",host=\"a:6443\"} 1",
            "rest_client_response_size_bytes_bucket{le=\"16777216.0\",verb=\"GET\",host=\"a:6443\"} 1",
            "rest_client_request_size_bytes_count{verb=\"GET\",host=\"a:6443\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
        }
    }
}
