//! `/flagz` and `/statusz`: pages for people in the form of Kubernetes' components, and for programs as objects of
//! `config.k8s.io` to who names one by `Accept` (KEP-4827, KEP-4828).

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::accept::ranges;
use crate::report::{Moment, Report};

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";
/// As which this component shows itself.
const NAME: &str = "kube-proxy";
/// Of the objects.
const GROUP: &str = "config.k8s.io";
/// Those that there are, and whether they are to be used no more.
const VERSIONS: [(&str, bool); 2] = [("v1beta1", false), ("v1alpha1", true)];

/// A page: a text, and the fields of an object.
#[derive(Clone, Debug)]
pub(super) struct Page {
    kind: &'static str,
    text: String,
    fields: Map<String, Value>,
}

/// Every flag with the value that is in effect.
pub(super) fn flags(flags: &[(&'static str, String)]) -> Page {
    let mut text = format!("\n{NAME} flagz\n{WARNING}\n\n");
    for (name, value) in flags {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}={value}");
    }
    let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    Page { kind: "Flagz", text, fields: Map::from_iter([("flags".to_owned(), Value::Object(flags))]) }
}

/// Who answers, since when, and where else.
pub(super) fn status(report: &Report, paths: &[&str], now: SystemTime) -> Page {
    let up = now.duration_since(report.started.0).unwrap_or_default();
    let (started, version) = (report.started, &report.version);
    let text = format!(
        "\n{NAME} statusz\n{WARNING}\n\nStarted: {started}\nUp: {}\nBinary version: vipr {version}\nPaths: {}\n",
        long(up),
        paths.join(" ")
    );
    let fields = [
        ("startTime", json!(whole(started))),
        ("uptimeSeconds", json!(up.as_secs())),
        // The field has to be there; there is no Go here.
        ("goVersion", json!("")),
        ("binaryVersion", json!(version)),
        ("paths", json!(paths)),
    ];
    Page {
        kind: "Statusz",
        text,
        fields: fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect(),
    }
}

fn long(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{} hr {:02} min {:02} sec", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Without fractions, as times of Kubernetes' objects are.
fn whole(moment: Moment) -> String {
    let text = moment.to_string();
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

impl Page {
    /// In the form that is asked for: the text, or one of the objects by its whole name.
    pub(super) fn respond(&self, asked: &HeaderMap) -> Response {
        let ranges = ranges(asked);
        if ranges.is_empty() {
            return self.text.clone().into_response();
        }
        for range in &ranges {
            let form = match range.kind.as_str() {
                "text/plain" | "text/*" | "*/*" => return self.text.clone().into_response(),
                form @ ("application/json" | "application/yaml") => form,
                _ => continue,
            };
            let version = VERSIONS.into_iter().find(|(version, _)| range.parameter("v") == Some(version));
            let is_it = range.parameter("g") == Some(GROUP) && range.parameter("as") == Some(self.kind);
            if let Some(version) = version.filter(|_| is_it) {
                return self.object(form, version);
            }
        }
        let message =
            "only the following media types are accepted: application/json, application/yaml, text/plain";
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": message, "reason": "NotAcceptable", "code": 406,
        });
        (StatusCode::NOT_ACCEPTABLE, Json(status)).into_response()
    }

    fn object(&self, form: &str, (version, is_old): (&str, bool)) -> Response {
        let mut object = Map::from_iter([
            ("kind".to_owned(), json!(self.kind)),
            ("apiVersion".to_owned(), json!(format!("{GROUP}/{version}"))),
            ("metadata".to_owned(), json!({ "name": NAME })),
        ]);
        object.extend(self.fields.clone());
        let text = if form == "application/json" {
            serde_json::to_string_pretty(&object).map_err(|error| error.to_string())
        } else {
            serde_yaml_ng::to_string(&object).map_err(|error| error.to_string())
        };
        let text = match text {
            Ok(text) => text,
            Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
        };
        let kind = format!("{form};g={GROUP};v={version};as={}", self.kind);
        let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
        let page = self.kind.to_lowercase();
        let warning = format!("299 - \"{page} {version} is deprecated, {} is not\"", VERSIONS[0].0);
        if let Some(warning) = is_old.then(|| warning.parse().ok()).flatten() {
            response.headers_mut().insert(header::WARNING, warning);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[test]
    fn the_pages_say_what_was_given_and_who_answers() {
        let page = flags(&[("proxy-mode", "nftables".into()), ("v", "2".into())]).text;
        assert!(page.contains("flagz") && page.ends_with("\n\nproxy-mode=nftables\nv=2\n"), "{page}");

        let report = Report::new("node-1", &[]);
        let page =
            status(&report, &["/flagz", "/metrics"], report.started.0 + Duration::from_secs(93_784)).text;
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

    /// Code, content type, and what was said.
    async fn ask(page: &Page, accept: &str) -> (u16, String, String, Option<String>) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        let (parts, body) = page.respond(&headers).into_parts();
        let text = |name| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let body = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
        (parts.status.as_u16(), text(header::CONTENT_TYPE).unwrap(), body, text(header::WARNING))
    }

    #[tokio::test]
    async fn who_names_an_object_is_given_it_and_everybody_else_the_text() {
        let page = flags(&[("v", "2".into())]);
        // What real kube-proxy 1.37 answers to each of these.
        for accept in
            ["", "*/*", "text/plain", "text/plain, application/json;v=v1beta1;g=config.k8s.io;as=Flagz"]
        {
            let (code, kind, body, _) = ask(&page, accept).await;
            assert_eq!(
                (code, kind.as_str(), body.as_str()),
                (200, "text/plain; charset=utf-8", page.text.as_str())
            );
        }
        for accept in [
            "application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
            "application/json;v=v1beta1;g=config.k8s.io;as=Flagz, text/plain",
            "text/plain;q=0.5, application/json;as=Flagz;g=config.k8s.io;v=v1beta1",
        ] {
            let (code, kind, body, warning) = ask(&page, accept).await;
            assert_eq!((code, kind.as_str()), (200, "application/json;g=config.k8s.io;v=v1beta1;as=Flagz"));
            let expected = json!({"kind": "Flagz", "apiVersion": "config.k8s.io/v1beta1",
                                  "metadata": {"name": "kube-proxy"}, "flags": {"v": "2"}});
            assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
            assert_eq!(warning, None);
        }
        let (_, kind, body, _) = ask(&page, "application/yaml;v=v1beta1;g=config.k8s.io;as=Flagz").await;
        assert_eq!(kind, "application/yaml;g=config.k8s.io;v=v1beta1;as=Flagz");
        assert!(body.contains("\n  v: '2'\n") && body.contains("kind: Flagz\n"), "{body}");
        let (code, _, body, warning) =
            ask(&page, "application/json;v=v1alpha1;g=config.k8s.io;as=Flagz").await;
        assert!(code == 200 && body.contains("config.k8s.io/v1alpha1"), "{body}");
        assert!(warning.is_some_and(|warning| warning.starts_with("299 - ")));
        for accept in ["application/json", "text/html", "application/json;v=v9;g=config.k8s.io;as=Flagz"] {
            let (code, kind, body, _) = ask(&page, accept).await;
            assert_eq!((code, kind.as_str()), (406, "application/json"), "{accept}");
            assert!(body.contains("NotAcceptable"), "{body}");
        }
    }

    #[tokio::test]
    async fn the_status_is_an_object_too() {
        let report = Report::new("node-1", &[]);
        let page = status(&report, &["/flagz"], report.started.0 + Duration::from_secs(7));
        let (_, _, body, _) = ask(&page, "application/json;v=v1beta1;g=config.k8s.io;as=Statusz").await;
        let object = serde_json::from_str::<Value>(&body).unwrap();
        assert_eq!(object["uptimeSeconds"], 7);
        assert_eq!(object["binaryVersion"], env!("CARGO_PKG_VERSION"));
        assert_eq!(object["paths"], json!(["/flagz"]));
        let started = object["startTime"].as_str().unwrap();
        assert!(started.len() == "2026-01-02T03:04:05Z".len() && started.ends_with('Z'), "{started}");
    }
}
