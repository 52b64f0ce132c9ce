//! What can go wrong between us and the API server, what to do next, and what people are told.

use std::{error::Error as _, time::Duration};

use kube::{Error, core::Status};

/// Why a list or watch ended.
#[derive(Debug)]
pub(super) enum Fault {
    /// 410: the server has forgotten the version that we know.
    Expired,
    /// The server is behind the version that we know: it was restored, or is another one.
    TooNew,
    /// 400 and 422: it does not take this request.
    NotTaken(String),
    /// 404: it has nothing of this kind.
    NoResource(String),
    /// The rest: later again.
    Later {
        /// For people.
        why: String,
        /// Not before.
        after: Duration,
    },
}

impl Fault {
    /// Later, as soon as the back-off says.
    pub(super) fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), after: Duration::ZERO }
    }

    /// Of what the client says about a request for `resource`.
    pub(super) fn of(error: &Error, resource: &str) -> Self {
        match error {
            Error::Api(status) => Self::of_status(status, resource),
            error => Self::later(unreachable(error)),
        }
    }

    /// Of what the server says.
    pub(super) fn of_status(status: &Status, resource: &str) -> Self {
        let said = if status.message.is_empty() { &status.reason } else { &status.message };
        let after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let is_too_new = causes.into_iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
            || status.message.contains("Too large resource version");
        let fix = match status.code {
            410 => return Self::Expired,
            _ if is_too_new => return Self::TooNew,
            400 | 422 => return Self::NotTaken(said.clone()),
            401 => {
                "it does not know us: the token or client certificate of the kubeconfig or service account is wrong \
                 or has expired"
            }
            403 => "we may not: the agent's ClusterRole needs list and watch on it",
            404 => "it has no such resource: is this the address of a Kubernetes API server?",
            429 => "it is busy",
            _ => "it has a problem of its own",
        };
        let why = format!("the API server answers {} for {resource}: {said} ({fix})", status.code);
        if status.code == 404 {
            return Self::NoResource(why);
        }
        Self::Later { why, after: Duration::from_secs(after.into()) }
    }
}

/// All that the chain of errors says, and the likely fix.
fn unreachable(error: &Error) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        // Most repeat what they are caused by.
        if !chain.contains(&text) {
            chain = format!("{chain}: {text}");
        }
        source = error.source();
    }
    let small = chain.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| small.contains(word));
    let fix = if has(&["certificate", "tls", "unknownissuer", "handshake"]) {
        "the server's certificate does not fit: is the CA that of this cluster, and the address one that the \
         certificate names?"
    } else if has(&["dns", "lookup", "resolve", "name or service not known"]) {
        "the server's name has no address: is it spelled right, and does the host's resolver work without cluster DNS?"
    } else if has(&["refused"]) {
        "nobody listens there: is the API server running, and are address and port right?"
    } else if has(&["unreachable", "timed out", "timeout", "deadline"]) {
        "there is no way there: is the address one that works without Services, unlike kubernetes.default?"
    } else {
        "is the address right, and the server up?"
    };
    format!("the API server can't be reached: {chain} ({fix})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(fault: Fault) -> String {
        match fault {
            Fault::Later { why, .. } | Fault::NoResource(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_answer_says_its_fix() {
        for (code, fix) in [
            (401, "token or client certificate"),
            (403, "ClusterRole needs list and watch"),
            (404, "address of a Kubernetes API server"),
            (429, "busy"),
            (500, "problem of its own"),
        ] {
            let said = why(Fault::of_status(&Status::failure("no", "Reason").with_code(code), "services"));
            assert!(said.contains(fix) && said.contains("services: no"), "{code}: {said}");
        }
        for (words, fix) in [
            ("invalid peer certificate: UnknownIssuer", "is the CA that of this cluster"),
            ("dns error: failed to lookup address information", "the server's name has no address"),
            ("Connection refused (os error 111)", "nobody listens there"),
            ("operation timed out", "there is no way there"),
        ] {
            let error = Error::Service(std::io::Error::other(words).into());
            let said = why(Fault::of(&error, "services"));
            assert!(said.contains(fix) && said.contains(words), "{said}");
        }
    }

    #[test]
    fn versions_that_the_server_does_not_know_are_told_from_each_other() {
        let of =
            |code, message: &str| Fault::of_status(&Status::failure(message, "").with_code(code), "nodes");
        assert!(matches!(of(410, "too old resource version"), Fault::Expired));
        assert!(matches!(of(504, "Timeout: Too large resource version: 9, current: 3"), Fault::TooNew));
        assert!(matches!(of(422, "sendInitialEvents is forbidden"), Fault::NotTaken(_)));
    }

    #[test]
    fn the_server_says_how_long_to_wait() {
        let text = r#"{"code": 429, "message": "x", "details": {"retryAfterSeconds": 7}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        let Fault::Later { after, .. } = Fault::of_status(&status, "nodes") else { panic!("not later") };
        assert_eq!(after, Duration::from_secs(7));
    }
}
