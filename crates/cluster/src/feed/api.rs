//! An API server in memory that tells one history of objects, in as many ways as an API may: lists
//! in pages, streaming lists, watches that end at any event, versions that are gone, answers from a
//! cache that is behind, errors.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Notify;

/// Numbers that a seed determines (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// True in one of `n` cases.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

/// One line of a watch: its type, the object's name, the object.
pub(super) type Event = (&'static str, String, Value);

/// How the history is told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manners {
    /// How many events have happened before the first list, at least.
    pub(super) begins: usize,
    /// How many answers may go wrong or end early.
    pub(super) faults: usize,
    /// `sendInitialEvents` is refused.
    pub(super) paged: bool,
}

/// One kind's collection.
pub(super) struct Server {
    kind: &'static str,
    events: Vec<Event>,
    manners: Manners,
    rng: Rng,
    /// Events that have happened.
    now: usize,
    /// The rest of a list that is read in pages, by its token.
    page: Option<Vec<Value>>,
    /// Everything has been told, and taken in.
    told: bool,
    /// Called whenever the client asks for more: what it has got so far must be right.
    look: Box<dyn Fn() + Send>,
    idle: Arc<Notify>,
    pub(super) requests: usize,
}

type Shared = Arc<Mutex<Server>>;
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What follows the lines of a watch.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Silence,
    /// All has been told.
    Told,
}

impl Server {
    pub(super) fn start(
        kind: &'static str,
        events: Vec<Event>,
        manners: Manners,
        rng: Rng,
        look: Box<dyn Fn() + Send>,
        idle: Arc<Notify>,
    ) -> (kube::Client, Shared) {
        let now = manners.begins;
        let server = Self {
            kind,
            events,
            manners,
            rng,
            now,
            page: None,
            told: false,
            look,
            idle,
            requests: 0,
        };
        let shared: Shared = Arc::new(Mutex::new(server));
        let handle = Arc::clone(&shared);
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = answer(&handle, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        (kube::Client::new(service, "default"), shared)
    }

    pub(super) fn told(&self) -> bool {
        self.told
    }

    fn fault(&mut self) -> bool {
        let happens = self.manners.faults > 0 && self.rng.one_in(2);
        self.manners.faults -= usize::from(happens);
        happens
    }

    /// The objects after the first `n` events, in any order.
    fn objects(&mut self, n: usize) -> Vec<Value> {
        let mut all: BTreeMap<&str, &Value> = BTreeMap::new();
        for (what, name, object) in &self.events[..n] {
            if *what == "DELETED" {
                all.remove(name.as_str());
            } else {
                all.insert(name, object);
            }
        }
        let mut all: Vec<Value> = all.into_values().cloned().collect();
        self.rng.shuffle(&mut all);
        all
    }

    /// Time goes on between two requests.
    fn pass_time(&mut self) {
        let left = self.events.len() - self.now;
        self.now += self.rng.below(left + 1);
    }

    fn list(&mut self, token: bool) -> Answer {
        let items = match self.page.take().filter(|_| token) {
            Some(rest) => rest,
            None if token => return refuse(410, "Expired"),
            None => {
                self.pass_time();
                // From a cache that is behind; the watch that follows tells the rest.
                let back = if self.fault() { self.now - self.manners.begins } else { 0 };
                self.now -= self.rng.below(back + 1);
                self.objects(self.now)
            }
        };
        let mut meta = json!({"resourceVersion": version(self.now)});
        let mut items = items;
        if items.len() > 1 && self.rng.one_in(2) {
            self.page = Some(items.split_off(items.len() / 2));
            meta["continue"] = json!("rest");
        }
        let kind = format!("{}List", self.kind);
        whole(200, &json!({"apiVersion": "v1", "kind": kind, "metadata": meta, "items": items}))
    }

    fn bookmark(&self, at: usize, ends_list: bool) -> Value {
        let mut meta = json!({"resourceVersion": version(at)});
        if ends_list {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        line("BOOKMARK", &json!({"apiVersion": "v1", "kind": self.kind, "metadata": meta}))
    }

    /// The list as a stream: objects, the mark of the end, then events.
    fn streaming_list(&mut self) -> (Vec<Value>, End) {
        self.pass_time();
        let mut lines: Vec<Value> =
            self.objects(self.now).iter().map(|object| line("ADDED", object)).collect();
        if self.fault() {
            lines.truncate(self.rng.below(lines.len() + 1));
            let silent = self.rng.one_in(3);
            return (lines, if silent { End::Silence } else { End::Close });
        }
        lines.push(self.bookmark(self.now, true));
        let (more, end) = self.watch(self.now);
        lines.extend(more);
        (lines, end)
    }

    /// What happened after an event, up to the end or a fault.
    fn watch(&mut self, from: usize) -> (Vec<Value>, End) {
        let breaks = self.fault();
        let left = self.events.len() - from;
        let to = if breaks { from + self.rng.below(left + 1) } else { self.events.len() };
        let mut lines = Vec::new();
        for at in from..to {
            let (what, _, object) = &self.events[at];
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(version(at + 1));
            lines.push(line(what, &object));
            if self.rng.one_in(5) {
                lines.push(self.bookmark(at + 1, false));
            }
        }
        self.now = self.now.max(to);
        if !breaks {
            return (lines, End::Told);
        }
        if self.rng.one_in(2) {
            // Whoever lists again misses what happens until then.
            lines.push(line("ERROR", &status(410, "Expired")));
        }
        (lines, End::Close)
    }
}

/// Versions are names that mean something to the server alone: here they fall.
fn version(at: usize) -> String {
    (VERSIONS - at).to_string()
}

const VERSIONS: usize = 1_000_000;

fn event_of(version: &str) -> Option<usize> {
    Some(VERSIONS - version.parse::<usize>().ok()?)
}

fn line(what: &str, object: &Value) -> Value {
    json!({"type": what, "object": object})
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
           "reason": reason, "message": reason})
}

fn whole(code: u16, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

fn refuse(code: u16, reason: &str) -> Answer {
    whole(code, &status(code, reason))
}

fn answer(shared: &Shared, request: &Request<Body>) -> Answer {
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut server = shared.lock().unwrap();
    (server.look)();
    server.requests += 1;
    let streaming = query.contains_key("sendInitialEvents");
    if streaming && server.manners.paged {
        return refuse(422, "Invalid");
    }
    if server.fault() {
        let code = [410, 429, 500][server.rng.below(3)];
        return refuse(code, "scripted");
    }
    let (lines, end) = match query.get("resourceVersion").map(|v| event_of(v)) {
        _ if query.get("watch").is_none_or(|w| w != "true") => {
            return server.list(query.contains_key("continue"));
        }
        _ if streaming => server.streaming_list(),
        Some(Some(from)) => server.watch(from),
        other => panic!("a watch from {other:?}"),
    };
    drop(server);
    told(Arc::clone(shared), lines, end)
}

/// A body of lines. That the next one is asked for says that those before have been taken in.
fn told(shared: Shared, lines: Vec<Value>, end: End) -> Answer {
    let mut lines: VecDeque<Value> = lines.into();
    let body = stream::poll_fn(move |_| {
        let mut server = shared.lock().unwrap();
        (server.look)();
        if let Some(line) = lines.pop_front() {
            let data = Bytes::from(format!("{line}\n"));
            return Poll::Ready(Some(Ok(http_body::Frame::data(data))));
        }
        match end {
            End::Close => Poll::Ready(None),
            End::Silence => Poll::Pending,
            End::Told => {
                server.told = true;
                server.idle.notify_one();
                Poll::Pending
            }
        }
    });
    Response::new(StreamBody::new(body).boxed_unsync())
}
