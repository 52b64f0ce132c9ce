//! Notices as Events in the API server, under kube-proxy's name (spec §5.5). Best effort: what the server does not take
//! is dropped, and what is too much.

mod allowance;

use std::time::{Duration, Instant};

use allowance::Allowance;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Error,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc::Receiver;

use crate::report::{About, Notice, Told};

/// Dashboards and people look for Events of this one.
const CONTROLLER: &str = "kube-proxy";
/// The longest note that an API server takes, in bytes.
const NOTE: usize = 1024;

/// How long is waited for the API server.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For an answer.
    answer: Duration,
    /// Between tries while it is away.
    between: Duration,
    /// How often is tried; client-go has the same number.
    tries: u32,
}

const PATIENCE: Patience =
    Patience { answer: Duration::from_secs(10), between: Duration::from_secs(10), tries: 12 };

/// Tells the API server each notice; never returns before nobody has any more.
pub async fn tell(client: Client, node: &str, from: Receiver<Told>) {
    tell_with(client, node, from, PATIENCE).await;
}

async fn tell_with(client: Client, node: &str, mut from: Receiver<Told>, patience: Patience) {
    let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(format!("{CONTROLLER}-{node}")) };
    let recorder = Recorder::new(client, reporter);
    let mut allowance = Allowance::new(Instant::now());
    while let Some(told) = from.recv().await {
        let reason = told.notice.reason;
        if !allowance.take(Instant::now()) {
            tracing::debug!(reason, "an Event is dropped: there were too many");
            continue;
        }
        let (event, regarding) = (event(&told.notice), regarding(&told.notice.about, node));
        if let Err(why) = publish(&recorder, &event, &regarding, patience).await {
            tracing::debug!(reason, "an Event is dropped: {why}");
        }
    }
}

/// Tries again while the server is away; what it refuses stays refused.
async fn publish(
    recorder: &Recorder,
    event: &Event,
    regarding: &ObjectReference,
    patience: Patience,
) -> Result<(), String> {
    let mut why = String::new();
    for number in 0..patience.tries {
        if number > 0 {
            tokio::time::sleep(patience.between).await;
        }
        match tokio::time::timeout(patience.answer, recorder.publish(event, regarding)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Error::Api(status))) if status.code < 500 && status.code != 429 => {
                return Err(status.to_string());
            }
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = "no answer in time".into(),
        }
    }
    Err(why)
}

fn event(notice: &Notice) -> Event {
    let note = &notice.note[..notice.note.floor_char_boundary(NOTE)];
    Event {
        type_: if notice.warning { EventType::Warning } else { EventType::Normal },
        reason: notice.reason.into(),
        action: notice.action.into(),
        note: Some(note.to_owned()).filter(|note| !note.is_empty()),
        secondary: None,
    }
}

/// kube-proxy knows no object's uid and puts its name there; `kubectl describe node` looks for it.
fn regarding(about: &About, node: &str) -> ObjectReference {
    let (kind, namespace, name, uid) = match about {
        About::Node => ("Node", None, node, node.to_owned()),
        About::Service { namespace, name } => {
            ("Service", Some(namespace.clone()), name.as_str(), format!("{namespace}/{name}"))
        }
    };
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some(kind.into()),
        namespace,
        name: Some(name.into()),
        uid: Some(uid),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
