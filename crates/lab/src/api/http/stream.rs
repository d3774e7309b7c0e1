//! The stream of a watch: one JSON document per event and line.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::body::Body;
use super::handle::Call;
use super::negotiate::{Form, in_version};
use crate::api::error::ApiError;
use crate::api::faults::{Faults, Interrupt, Interrupts};
use crate::api::registry::Resource;
use crate::api::store::{Event, Watch};
use crate::api::table::{partial, table};

/// Watches without a timeout end after this time, as those of a real API server do (30 to 60 minutes).
const LONGEST: Duration = Duration::from_secs(45 * 60);

/// So much is sent at once of what is there, in bytes.
const AT_ONCE: usize = 32 * 1024;

struct Stream {
    watch: Watch,
    encoder: Encoder,
    faults: Arc<Faults>,
    interrupts: Interrupts,
    /// Time between bookmarks, if the client takes any.
    bookmarks: Option<Duration>,
    next_bookmark: Instant,
    end: Instant,
    ended: bool,
}

pub(super) fn answer(
    call: &Call,
    watch: Watch,
    bookmarks: bool,
    timeout: Option<u64>,
) -> Response<Body> {
    let config = &call.context.config;
    let length = timeout.filter(|t| *t > 0).map_or(LONGEST, Duration::from_secs);
    let now = Instant::now();
    let gone = config.faults.gone()
        && call.query.given("resourceVersion")
        && call.query.text("resourceVersion") != "0";
    let mut interrupts = config.faults.interrupts();
    if gone {
        interrupts.interrupt();
    }
    let state = Stream {
        watch,
        encoder: Encoder {
            resource: call.resource.clone(),
            version: call.target.version.clone(),
            form: call.form,
        },
        interrupts,
        faults: config.faults.clone(),
        bookmarks: bookmarks.then_some(config.bookmarks),
        next_bookmark: now + config.bookmarks,
        end: now + length.min(LONGEST),
        ended: false,
    };
    let events = stream::unfold(state, |mut state| async move {
        let text = state.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(text)), state))
    });
    let mut response = Response::new(StreamBody::new(events).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Stream {
    /// The next lines, or `None` at the end of the watch: with one that was waited for come those that are there
    /// already, as a real API server sends when nothing more is there.
    async fn next(&mut self) -> Option<Bytes> {
        let mut lines = Vec::new();
        while lines.is_empty() {
            if self.ended {
                return None;
            }
            let event = self.wait().await?;
            self.faults.watches_stalled().await;
            self.put(&mut lines, &event);
        }
        while lines.len() < AT_ONCE && !self.ended {
            let Some(event) = self.watch.ready() else { break };
            self.put(&mut lines, &event);
        }
        Some(lines.into())
    }

    fn put(&self, lines: &mut Vec<u8>, event: &Event) {
        if !matches!(event, Event::Bookmark { .. }) || self.bookmarks.is_some() {
            self.encoder.put(lines, event);
        }
    }

    async fn wait(&mut self) -> Option<Event> {
        let pause =
            if self.bookmarks.is_some() { self.next_bookmark.min(self.end) } else { self.end };
        tokio::select! {
            biased;
            why = self.interrupts.watch() => {
                self.ended = true;
                let message = "too old resource version: the lab's API was told to forget its history";
                (why == Interrupt::Gone).then(|| Event::Error(ApiError::expired(message)))
            }
            event = self.watch.next() => event,
            () = sleep_until(pause) => {
                // The last bookmark saves the client from reading again what it has seen.
                self.ended = Instant::now() >= self.end;
                self.next_bookmark = Instant::now() + self.bookmarks.unwrap_or(LONGEST);
                match self.watch.bookmark() {
                    Some(bookmark) => Some(bookmark),
                    None => self.watch.next().await,
                }
            }
        }
    }
}

struct Encoder {
    resource: Arc<Resource>,
    version: String,
    form: Form,
}

impl Encoder {
    /// Puts the line of an event behind others.
    fn put(&self, lines: &mut Vec<u8>, event: &Event) {
        let (kind, object) = match event {
            Event::Added(object) => ("ADDED", self.object(object)),
            Event::Modified(object) => ("MODIFIED", self.object(object)),
            Event::Deleted(object) => ("DELETED", self.object(object)),
            Event::Bookmark { version, initial_end } => {
                let bookmark = self.bookmark(*version, *initial_end);
                ("BOOKMARK", Cow::Owned(self.object(&bookmark).into_owned()))
            }
            Event::Error(error) => ("ERROR", Cow::Owned(error.status())),
        };
        lines.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        serde_json::to_writer(&mut *lines, &*object).expect("a value can be written to memory");
        lines.extend_from_slice(b"}\n");
    }

    /// An empty object of the type, with the version and maybe the mark of the end of the list.
    fn bookmark(&self, version: u64, initial_end: bool) -> Value {
        let mut metadata =
            json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let api_version = self.resource.api_version(&self.version);
        json!({ "kind": self.resource.kind, "apiVersion": api_version, "metadata": metadata })
    }

    fn object<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        match self.form {
            Form::Whole | Form::Discovery(_) if self.resource.preferred().name == self.version => {
                Cow::Borrowed(object)
            }
            Form::Whole | Form::Discovery(_) => {
                Cow::Owned(in_version(object, &self.resource.api_version(&self.version)))
            }
            Form::Partial => Cow::Owned(partial(object)),
            Form::Table(include) => {
                let version =
                    self.resource.version(&self.version).unwrap_or(self.resource.preferred());
                let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                // A bookmark has no name and is no row.
                let rows = Some(object).filter(|o| o["metadata"].get("name").is_some());
                Cow::Owned(table(&version.columns, rows.into_iter(), include, metadata))
            }
        }
    }
}
