//! Requests to the API server, told to whoever counts them: a layer around the client, so that none goes uncounted.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tower::{BoxError, Layer, Service};

/// One request, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// GET and so on.
    pub method: Method,
    /// The server, as its address has it: name or address, and port.
    pub host: Arc<str>,
    /// What it answered; `None`: nothing, or it could not be reached.
    pub code: Option<StatusCode>,
    /// From the request to the end of the answer. A watch has none: it lasts until somebody ends it, and is told when it begins.
    pub took: Option<Duration>,
    /// Bytes sent and received, of what was answered and is no watch.
    pub bytes: Option<[u64; 2]>,
}

/// Hears of each request.
pub type Heard = Arc<dyn Fn(Exchange) + Send + Sync>;

/// Tells of the requests of the client that it is laid around.
#[derive(Clone)]
pub(super) struct Telling {
    pub(super) host: Arc<str>,
    pub(super) heard: Heard,
}

impl<S> Layer<S> for Telling {
    type Service = Told<S>;

    fn layer(&self, inner: S) -> Told<S> {
        Told { inner, telling: self.clone() }
    }
}

/// See [`Telling`].
#[derive(Clone)]
pub(super) struct Told<S> {
    inner: S,
    telling: Telling,
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

impl<S, Sent, Received> Service<Request<Sent>> for Told<S>
where
    Sent: Body,
    S: Service<Request<Sent>, Response = Response<Received>, Error = BoxError>,
    S::Future: Send + 'static,
    Received: Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    type Response = Answer;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Sent>) -> Self::Future {
        let is_watch =
            request.uri().query().is_some_and(|query| query.split('&').any(|it| it == "watch=true"));
        let mut open = Open {
            heard: self.telling.heard.clone(),
            exchange: Exchange {
                method: request.method().clone(),
                host: self.telling.host.clone(),
                code: None,
                took: None,
                bytes: None,
            },
            sent: request.body().size_hint().exact().unwrap_or(0),
            received: 0,
            began: (!is_watch).then(Instant::now),
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // Where there is no answer, or nobody waits for it any more, `open` ends here.
            let (parts, body) = answer.await?.into_parts();
            open.exchange.code = Some(parts.status);
            let body = if is_watch {
                drop(open);
                body.boxed_unsync()
            } else {
                let counted = body.map_frame(move |frame| {
                    // A call, so that the closure holds all of it until the body is gone.
                    open.received(frame.data_ref().map_or(0, |data| data.len()));
                    frame
                });
                counted.boxed_unsync()
            };
            Ok(Response::from_parts(parts, body))
        })
    }
}

/// A request under way; told of when it is over.
struct Open {
    heard: Heard,
    exchange: Exchange,
    sent: u64,
    received: u64,
    /// `None`: a watch.
    began: Option<Instant>,
}

impl Open {
    fn received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            self.exchange.took = Some(began.elapsed());
            self.exchange.bytes = self.exchange.code.map(|_| [self.sent, self.received]);
        }
        (self.heard)(self.exchange.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http_body_util::Full;
    use kube::Client;

    use super::*;

    /// A client of a server that answers 404 to all but watches, and those that it can't be reached for, and what was told of it.
    fn client() -> (Client, Arc<Mutex<Vec<Exchange>>>) {
        let server = tower::service_fn(|request: Request<kube::client::Body>| async move {
            if request.uri().path() == "/away" {
                return Err(BoxError::from("connection refused"));
            }
            let is_watch = request.uri().query() == Some("a=b&watch=true");
            let code = if is_watch { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let body = Full::new(Bytes::from_static(b"12345")).map_err(|never| match never {});
            Ok(Response::builder().status(code).body(body).expect("it is complete"))
        });
        let all = Arc::new(Mutex::new(Vec::new()));
        let heard = all.clone();
        let telling =
            Telling { host: "server:6443".into(), heard: Arc::new(move |it| heard.lock().unwrap().push(it)) };
        (Client::new(telling.layer(server), "default"), all)
    }

    #[tokio::test]
    async fn each_request_is_told_with_its_answer_its_size_and_its_time_and_watches_when_they_begin() {
        let (client, all) = client();
        let ask = |method: Method, path: &str, body: &[u8]| {
            client.send(Request::builder().method(method).uri(path).body(body.to_vec().into()).unwrap())
        };
        let answer = ask(Method::POST, "/events", b"1234567").await.unwrap();
        assert_eq!(*all.lock().unwrap(), [], "the answer is not yet read");
        answer.into_body().collect_bytes().await.unwrap();
        let told = all.lock().unwrap().pop().expect("the request");
        assert!(told.took.is_some());
        assert_eq!(
            told,
            Exchange {
                method: Method::POST,
                host: "server:6443".into(),
                code: Some(StatusCode::NOT_FOUND),
                took: told.took,
                bytes: Some([7, 5]),
            }
        );

        let watch = ask(Method::GET, "/services?a=b&watch=true", b"").await.unwrap();
        let told = all.lock().unwrap().pop().expect("the watch");
        assert_eq!((told.code, told.took, told.bytes), (Some(StatusCode::OK), None, None));
        drop(watch);

        assert!(ask(Method::GET, "/away", b"").await.is_err());
        let told = all.lock().unwrap().pop().expect("the failed one");
        assert_eq!((told.code, told.bytes), (None, None));
        assert!(told.took.is_some());
        assert_eq!(*all.lock().unwrap(), [], "each is told once");
    }
}
