//! One collection, followed: a list, streamed or in pages, then a watch, for ever. What fails is told,
//! and the next call goes on from where it was; how long to wait before that is the caller's business.
//!
//! This is our own and not `kube::runtime::watcher`, because that one asks again without a pause when
//! a server ends its watches at once, begins a list in pages anew when one page is refused, cannot
//! tell that a server passes over `sendInitialEvents`, and takes a streaming list of any age.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::backoff::random;

/// `timeoutSeconds` of a watch, at most. The server ends it then.
pub(crate) const WATCH_SECONDS: u32 = 180;
/// So much less it may be: the agents that came to a restarted API together do not come together for ever.
const SPREAD_SECONDS: u32 = 60;
/// A watch that says nothing for this much longer than it may last is dead.
const MARGIN: Duration = Duration::from_secs(5);
/// Objects in a page, as client-go asks for.
const PAGE: u32 = 500;
/// How long a page may take.
const PAGE_SILENCE: Duration = Duration::from_secs(20);
/// How long a streaming list may say nothing. A server that passes over `sendInitialEvents` never
/// sends the mark that ends it; one that knows it has its objects at hand.
const STREAM_SILENCE: Duration = Duration::from_secs(5);
/// A watch that ends sooner, without a word, has failed.
const SHORT: Duration = Duration::from_secs(1);
/// The mark on the bookmark that ends a streaming list (`k8s.io/apimachinery/pkg/apis/meta/v1`).
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// What happens to the collection.
#[derive(Debug)]
pub(super) enum Event<K> {
    /// A list begins.
    Init,
    /// The list has this object.
    InitApply(K),
    /// The list is complete.
    InitDone,
    /// An object is there, or has changed.
    Apply(K),
    /// An object is gone.
    Delete(K),
    /// Nothing happened.
    Idle,
}

/// Why it does not go on by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The request failed, or its answer broke off.
    #[error("{0}")]
    Request(#[from] kube::Error),
    /// The API says in a watch what is wrong.
    #[error("{}", .0.message)]
    Told(Box<Status>),
    /// A list said nothing in this time.
    #[error("a list said nothing for {0:?}")]
    Silence(Duration),
    /// A list was not told to its end.
    #[error("a list ended before it was complete")]
    HalfList,
    /// The API gives an object or a list no version, so that nothing can follow it.
    #[error("the API gave no resourceVersion")]
    NoVersion,
    /// A watch was over before it told anything.
    #[error("a watch ended at once")]
    Short,
    /// `sendInitialEvents` is refused or passed over.
    #[error("the API has no streaming lists")]
    NotStreaming,
}

impl Failure {
    /// The API's own answer, where there is one.
    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Failure::Request(kube::Error::Api(status)) | Failure::Told(status) => Some(status),
            _ => None,
        }
    }

    /// Whether what this stands on is gone (410).
    fn gone(&self) -> bool {
        self.status().is_some_and(|status| status.code == 410)
    }
}

type Events<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

enum State<K> {
    Start,
    /// In the middle of a list in pages.
    Page(Page<K>),
    /// In the middle of a streaming list.
    Streaming(Events<K>),
    /// A watch from here is to be begun.
    Listed(String),
    Watching(Watching<K>),
}

struct Page<K> {
    /// Of the next page.
    token: Option<String>,
    /// What is left of the last one.
    read: VecDeque<K>,
    /// The version of the list.
    version: Option<String>,
}

impl<K> Default for Page<K> {
    fn default() -> Self {
        Page { token: None, read: VecDeque::new(), version: None }
    }
}

struct Watching<K> {
    /// Up to here everything has been told.
    version: String,
    events: Events<K>,
    begun: Instant,
    told: bool,
}

pub(super) struct Source<K> {
    api: Api<K>,
    selector: Option<String>,
    streaming: bool,
    state: State<K>,
}

impl<K> Source<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    pub(super) fn new(api: Api<K>, selector: Option<&str>) -> Self {
        let selector = selector.map(str::to_owned);
        Self { api, selector, streaming: true, state: State::Start }
    }

    /// The next thing that happens. May be dropped only for good.
    pub(super) async fn next(&mut self) -> Result<Event<K>, Failure> {
        loop {
            // Until a step says otherwise, everything begins anew.
            let state = std::mem::replace(&mut self.state, State::Start);
            let step = match state {
                State::Start if self.streaming => self.begin_stream().await.map(Some),
                State::Start => {
                    self.state = State::Page(Page::default());
                    Ok(Some(Event::Init))
                }
                State::Page(page) => self.page(page).await,
                State::Streaming(events) => self.streaming(events).await.map(Some),
                State::Listed(version) => self.begin_watch(version).await.map(|()| None),
                State::Watching(watch) => self.watching(watch).await,
            };
            match step {
                Ok(None) => {}
                Ok(Some(event)) => return Ok(event),
                Err(failure) => {
                    if failure.gone() {
                        self.state = State::Start;
                    }
                    return Err(failure);
                }
            }
        }
    }

    fn watch_params(&self, list: bool) -> WatchParams {
        WatchParams {
            field_selector: self.selector.clone(),
            timeout: Some(WATCH_SECONDS - (f64::from(SPREAD_SECONDS) * random()) as u32),
            bookmarks: true,
            send_initial_events: list,
            ..WatchParams::default()
        }
    }

    /// Without a version: a list that is as new as the request, as one in pages is.
    async fn begin_stream(&mut self) -> Result<Event<K>, Failure> {
        let params = self.watch_params(true);
        let Ok(asked) = timeout(STREAM_SILENCE, self.api.watch(&params, "")).await else {
            return Err(self.other_way(Failure::Silence(STREAM_SILENCE)));
        };
        match asked {
            Ok(events) => {
                self.state = State::Streaming(events.boxed());
                Ok(Event::Init)
            }
            // Without the feature gate WatchList it is 422; servers and proxies that do not know the
            // parameters answer one of the others.
            Err(kube::Error::Api(status)) if [400, 405, 422].contains(&status.code) => {
                Err(self.other_way(Failure::NotStreaming))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The two ways of listing take turns: a fault may be of either.
    fn other_way(&mut self, failure: Failure) -> Failure {
        self.streaming = !self.streaming;
        failure
    }

    async fn streaming(&mut self, mut events: Events<K>) -> Result<Event<K>, Failure> {
        let event = match timeout(STREAM_SILENCE, events.next()).await {
            Err(_) => return Err(self.other_way(Failure::Silence(STREAM_SILENCE))),
            Ok(None) => return Err(self.other_way(Failure::HalfList)),
            Ok(Some(event)) => event?,
        };
        let event = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Event::InitApply(object),
            // The list may be older than the request at first; what went since is told before its end.
            WatchEvent::Deleted(object) => Event::Delete(object),
            WatchEvent::Error(status) => return Err(Failure::Told(status.boxed())),
            WatchEvent::Bookmark(bookmark) => {
                if !bookmark.metadata.annotations.contains_key(END_OF_LIST) {
                    // The first bookmark has the mark, where the server knows of it at all
                    // (`cacheWatcher` in apiserver/pkg/storage/cacher).
                    return Err(self.other_way(Failure::NotStreaming));
                }
                self.watch_on(bookmark.metadata.resource_version, events)?;
                return Ok(Event::InitDone);
            }
        };
        self.state = State::Streaming(events);
        Ok(event)
    }

    /// The end of a streaming list is the beginning of a watch.
    fn watch_on(&mut self, version: String, events: Events<K>) -> Result<(), Failure> {
        if version.is_empty() {
            return Err(Failure::NoVersion);
        }
        let begun = Instant::now();
        self.state = State::Watching(Watching { version, events, begun, told: true });
        Ok(())
    }

    /// One object of a page that was read, or the next page.
    async fn page(&mut self, page: Page<K>) -> Result<Option<Event<K>>, Failure> {
        let Page { token, mut read, version } = page;
        if let Some(object) = read.pop_front() {
            self.state = State::Page(Page { token, read, version });
            return Ok(Some(Event::InitApply(object)));
        }
        if let Some(version) = version.filter(|_| token.is_none()) {
            self.state = State::Listed(version);
            return Ok(Some(Event::InitDone));
        }
        let params = ListParams {
            field_selector: self.selector.clone(),
            limit: Some(PAGE),
            continue_token: token.clone(),
            ..ListParams::default()
        };
        // A page that is refused is asked for again: those before it stay good for as long as the
        // token is.
        self.state = State::Page(Page { token, ..Page::default() });
        let Ok(list) = timeout(PAGE_SILENCE, self.api.list(&params)).await else {
            self.state = State::Start;
            return Err(self.other_way(Failure::Silence(PAGE_SILENCE)));
        };
        let list = list?;
        let there = |text: Option<String>| text.filter(|text| !text.is_empty());
        let token = there(list.metadata.continue_);
        let version = there(list.metadata.resource_version);
        if version.is_none() && token.is_none() {
            self.state = State::Start;
            return Err(Failure::NoVersion);
        }
        self.state = State::Page(Page { token, read: list.items.into(), version });
        Ok(None)
    }

    async fn begin_watch(&mut self, version: String) -> Result<(), Failure> {
        self.state = State::Listed(version.clone());
        let params = self.watch_params(false);
        let events = self.api.watch(&params, &version).await?.boxed();
        let begun = Instant::now();
        self.state = State::Watching(Watching { version, events, begun, told: false });
        Ok(())
    }

    async fn watching(&mut self, watch: Watching<K>) -> Result<Option<Event<K>>, Failure> {
        let Watching { version, mut events, begun, told } = watch;
        // Whatever ends the watch, the next one goes on here.
        self.state = State::Listed(version);
        let idle = Duration::from_secs(WATCH_SECONDS.into()) + MARGIN;
        let Some(event) = timeout(idle, events.next()).await.unwrap_or_default() else {
            let short = !told && begun.elapsed() < SHORT;
            return if short { Err(Failure::Short) } else { Ok(None) };
        };
        let (version, event) = match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (object.resource_version(), Event::Apply(object))
            }
            WatchEvent::Deleted(object) => (object.resource_version(), Event::Delete(object)),
            WatchEvent::Bookmark(bookmark) => {
                (Some(bookmark.metadata.resource_version), Event::Idle)
            }
            WatchEvent::Error(status) => return Err(Failure::Told(status.boxed())),
        };
        let Some(version) = version.filter(|version| !version.is_empty()) else {
            self.state = State::Start;
            return Err(Failure::NoVersion);
        };
        self.state = State::Watching(Watching { version, events, begun, told: true });
        Ok(Some(event))
    }
}
