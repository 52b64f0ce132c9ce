//! One kind of objects: listed, then watched from there on, and again after whatever went wrong.
//!
//! What was passed on is kept as `known` (values are shared with the model), so that a list made after a break shows
//! what was deleted meanwhile, and what can't be read stays as it was.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    time::{Duration, SystemTime},
};

use futures::{AsyncBufRead, AsyncBufReadExt};
use http::Request;
use kube::Client;
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    answer::{Line, Page},
    ask::{Selection, Since},
    fault::Fault,
};
use crate::{
    model::{Change, ObjectName},
    watch::{
        Event, What,
        backoff::Backoff,
        convert::{Converter, Kind, Value},
        known::Known,
    },
};

/// How long is waited for what.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Bound of the first wait after a failure, and of all.
    pub(super) retry: (Duration, Duration),
    /// The head of an answer, or the next bytes of a list.
    pub(super) answer: Duration,
    /// The next bytes of a watch. Servers send a bookmark about every minute; a connection that is dead but not
    /// closed is noticed by their absence.
    pub(super) silence: Duration,
    /// Before a server is asked again that has no such resource.
    pub(super) missing: Duration,
    /// How long the server shall let a watch live: between these, as client-go has it.
    pub(super) life: (Duration, Duration),
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            retry: (Duration::from_millis(500), seconds(30)),
            answer: seconds(30),
            silence: seconds(100),
            missing: seconds(600),
            life: (seconds(300), seconds(600)),
        }
    }
}

/// What to do next.
#[derive(Clone, Debug)]
enum Next {
    List(Since),
    Watch(String),
}

/// Follows one kind.
pub(super) struct Stream {
    client: Client,
    converter: Converter,
    selection: Selection,
    pace: Pace,
    to: Sender<Event>,
    known: Known,
    backoff: Backoff,
    next: Next,
    /// The server sends lists as streams, as far as we know.
    streams: bool,
    relist: Option<Duration>,
    relist_at: Option<Instant>,
}

type Body = Pin<Box<dyn AsyncBufRead + Send>>;

/// An object that was read.
struct Read {
    version: Option<String>,
    name: ObjectName,
    /// `None`: not ours.
    value: Option<Value>,
    trigger: Option<SystemTime>,
}

impl Stream {
    pub(super) fn new(
        client: Client,
        converter: Converter,
        kind: Kind,
        relist: Option<Duration>,
        pace: Pace,
        to: Sender<Event>,
    ) -> Self {
        // Nodes that started together shall not ask together.
        let mut hasher = DefaultHasher::new();
        (&converter.node_name, kind).hash(&mut hasher);
        let spread = 0.5 + hasher.finish() as f64 / u64::MAX as f64;
        Self {
            selection: Selection::new(kind, &converter.node_name),
            known: Known::new(kind),
            backoff: Backoff::new(pace.retry.0, pace.retry.1),
            next: Next::List(Since::Any),
            streams: true,
            relist_at: relist.map(|period| Instant::now() + period.mul_f64(spread)),
            client,
            converter,
            pace,
            to,
            relist,
        }
    }

    /// Until nobody listens.
    pub(super) async fn follow(mut self) {
        let to = self.to.clone();
        tokio::select! {
            () = to.closed() => {}
            () = self.run() => {}
        }
    }

    async fn run(&mut self) {
        loop {
            let result = match self.next.clone() {
                Next::List(from) if self.streams => self.watch(Some(from), "").await,
                Next::List(from) => self.list(from).await,
                Next::Watch(version) => self.watch(None, &version).await,
            };
            let wait = match result {
                Ok(()) => continue,
                Err(Fault::Expired) => {
                    self.next = Next::List(match &self.next {
                        Next::Watch(version) => Since::Version(version.clone()),
                        Next::List(_) => Since::Newest,
                    });
                    // A server that forgets faster than it is asked is not asked in a circle.
                    self.backoff.failed()
                }
                Err(Fault::TooNew) => {
                    self.next = Next::List(Since::Newest);
                    self.backoff.failed()
                }
                Err(Fault::NotTaken(why)) => {
                    if self.can_ask_otherwise(&why) {
                        continue;
                    }
                    let what = self.selection.resource();
                    self.broken(format!("the API server does not take our request for {what}: {why}")).await;
                    self.next = Next::List(Since::Newest);
                    self.backoff.failed()
                }
                Err(Fault::NoResource(_)) if self.selection.may_be_missing() => {
                    // Then there are no objects of it, until the server is upgraded.
                    self.replace(BTreeMap::new()).await;
                    self.pace.missing
                }
                Err(Fault::NoResource(why)) => {
                    self.broken(why).await;
                    self.backoff.failed()
                }
                Err(Fault::Later { why, after }) => {
                    self.broken(why).await;
                    self.backoff.failed().max(after)
                }
            };
            sleep(wait).await;
        }
    }

    fn can_ask_otherwise(&mut self, why: &str) -> bool {
        if why.contains("field label not supported") {
            return self.selection.drop_field_selector();
        }
        matches!(self.next, Next::List(_)) && std::mem::replace(&mut self.streams, false)
    }

    /// A complete list, page by page.
    async fn list(&mut self, from: Since) -> Result<(), Fault> {
        let mut all = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let mut body = self.ask(self.selection.list(&from, after.as_deref())).await?;
            let text = self.read_to_end(&mut body).await?;
            let page = Page::parse(&text);
            let page = page.map_err(|error| Fault::later(format!("the API server's list: {error}")))?;
            for object in page.items.unwrap_or_default() {
                if let Read { name, value: Some(value), .. } = self.read(object).await {
                    all.insert(name, value);
                }
            }
            if page.metadata.next.is_empty() {
                self.replace(all).await;
                self.next = Next::Watch(page.metadata.resource_version);
                self.backoff.works();
                return Ok(());
            }
            after = Some(page.metadata.next);
        }
    }

    /// What changes after `version`; or, with `from`, everything before that.
    async fn watch(&mut self, from: Option<Since>, version: &str) -> Result<(), Fault> {
        let life = rand::random_range(self.pace.life.0..=self.pace.life.1);
        let mut initial = from.as_ref().map(|_| BTreeMap::new());
        let request = match &from {
            Some(from) => self.selection.watch_list(from, life),
            None => self.selection.watch(version, life),
        };
        let mut body = self.ask(request).await?;
        let mut line = Vec::new();
        let (began, mut has_said) = (Instant::now(), false);
        if initial.is_none() {
            self.tell(What::Alive).await;
        }
        loop {
            line.clear();
            let patience = if initial.is_some() { self.pace.answer } else { self.pace.silence };
            let silence = Instant::now() + patience;
            let relist_at = self.relist_at.filter(|_| initial.is_none());
            let end = relist_at.map_or(silence, |at| at.min(silence));
            match timeout_at(end, body.read_until(b'\n', &mut line)).await {
                Ok(Ok(_)) if line.ends_with(b"\n") => {}
                Err(_) if relist_at.is_some_and(|at| at <= Instant::now()) => {
                    self.relist();
                    return Ok(());
                }
                result if initial.is_some() => {
                    // A server that does not know what we ask for may answer without ever coming to an end.
                    self.streams = result.is_ok();
                    return Err(Fault::later("the API server's list ended before it was complete"));
                }
                // The end, in the middle of a line or not, or a silence in which it may have ended unseen.
                _ => break,
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match Line::parse(&line) {
                Ok(Line::Error(status)) => return Err(Fault::of_status(&status, self.selection.resource())),
                Ok(Line::Bookmark { version, is_initial_end }) => {
                    if is_initial_end && let Some(all) = initial.take() {
                        self.replace(all).await;
                    } else {
                        self.tell(What::Alive).await;
                    }
                    if initial.is_none() {
                        self.next = Next::Watch(version);
                    }
                }
                Ok(Line::Is(object)) => self.is(object, &mut initial).await,
                Ok(Line::Gone(object)) => self.gone(object, &mut initial).await,
                Err(why) => self.malformed(ObjectName::new("", ""), format!("an event: {why}")).await,
            }
            if initial.is_none() {
                has_said = true;
                self.backoff.works();
            }
        }
        // A server that hangs up at once is not asked in a circle.
        if !has_said && began.elapsed() < self.pace.retry.1 {
            sleep(self.backoff.failed()).await;
        }
        Ok(())
    }

    async fn is(&mut self, object: &RawValue, initial: &mut Option<BTreeMap<ObjectName, Value>>) {
        let Read { version, name, value, trigger } = self.read(object).await;
        if let Some(all) = initial {
            if let Some(value) = value {
                all.insert(name, value);
            }
            return;
        }
        let what = match self.known.put(&name, value) {
            Some(change) => What::Change { change, trigger },
            None => What::Alive,
        };
        self.tell(what).await;
        self.seen(version);
    }

    async fn gone(&mut self, object: &RawValue, initial: &mut Option<BTreeMap<ObjectName, Value>>) {
        // Who it was is all that counts now.
        let (name, version) = match self.converter.convert(self.selection.kind, object.get().as_bytes()) {
            Ok(converted) => (converted.name, converted.resource_version),
            Err(malformed) => (malformed.name, malformed.resource_version),
        };
        if let Some(all) = initial {
            all.remove(&name);
            return;
        }
        let change = self.known.put(&name, None);
        self.tell(change.map_or(What::Alive, |change| What::Change { change, trigger: None })).await;
        self.seen(version);
    }

    /// What can't be read is told, and is as it was known.
    async fn read(&self, object: &RawValue) -> Read {
        match self.converter.convert(self.selection.kind, object.get().as_bytes()) {
            Ok(converted) => {
                for why in converted.notes {
                    self.tell(What::Note { name: converted.name.clone(), why }).await;
                }
                Read {
                    version: converted.resource_version,
                    name: converted.name,
                    value: converted.value,
                    trigger: converted.trigger,
                }
            }
            Err(malformed) => {
                self.malformed(malformed.name.clone(), malformed.why).await;
                let value = self.known.get(&malformed.name).cloned();
                Read { version: malformed.resource_version, name: malformed.name, value, trigger: None }
            }
        }
    }

    async fn replace(&mut self, all: BTreeMap<ObjectName, Value>) {
        let change = self.known.replace(all);
        self.tell(change.map_or(What::Alive, |change| What::Change { change, trigger: None })).await;
    }

    /// The next watch begins here.
    fn seen(&mut self, version: Option<String>) {
        if let Some(version) = version {
            self.next = Next::Watch(version);
        }
    }

    /// Asks for a complete list, and the next time a period later.
    fn relist(&mut self) {
        self.relist_at = self.relist.map(|period| Instant::now() + period);
        if let Next::Watch(version) = &self.next {
            self.next = Next::List(Since::Version(version.clone()));
        }
    }

    async fn ask(&self, request: http::Result<Request<Vec<u8>>>) -> Result<Body, Fault> {
        let request =
            request.map_err(|error| Fault::later(format!("the request to the API server: {error}")))?;
        match timeout(self.pace.answer, self.client.request_stream(request)).await {
            Ok(Ok(body)) => Ok(Box::pin(body)),
            Ok(Err(error)) => Err(Fault::of(&error, self.selection.resource())),
            Err(_) => Err(self.silent()),
        }
    }

    async fn read_to_end(&self, body: &mut Body) -> Result<Vec<u8>, Fault> {
        let mut text = Vec::new();
        loop {
            let more = match timeout(self.pace.answer, body.fill_buf()).await {
                Ok(Ok(more)) => more,
                Ok(Err(error)) => {
                    return Err(Fault::later(format!("the API server's list broke off: {error}")));
                }
                Err(_) => return Err(self.silent()),
            };
            if more.is_empty() {
                return Ok(text);
            }
            text.extend_from_slice(more);
            let length = more.len();
            body.as_mut().consume(length);
        }
    }

    fn silent(&self) -> Fault {
        Fault::later(format!("the API server does not answer within {:?}", self.pace.answer))
    }

    async fn malformed(&self, name: ObjectName, why: String) {
        let source = self.selection.kind.source();
        self.tell(What::Change { change: Change::Malformed { source, name, why }, trigger: None }).await;
    }

    async fn broken(&self, why: String) {
        self.tell(What::Broken { why }).await;
    }

    /// If nobody listens, following ends by itself.
    async fn tell(&self, what: What) {
        let _ = self.to.send(Event::now(self.selection.kind.source(), what)).await;
    }
}
