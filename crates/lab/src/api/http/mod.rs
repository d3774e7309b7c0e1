//! The HTTPS server: several listening sockets, HTTP/1.1 and HTTP/2, one task per connection.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::faults::{Faults, Interrupts};
use super::store::Store;
use super::tls::{Identity, TlsError};
use super::tokens::Tokens;
use super::version::KubernetesVersion;

mod body;
mod guard;
mod handle;
mod negotiate;
mod protobuf;
mod read;
mod route;
mod stream;
mod sub;
mod write;

/// A client that has not finished its TLS handshake after this time is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The lab's name, for messages.
    pub lab: String,
    /// The version of Kubernetes that is played.
    pub version: KubernetesVersion,
    /// The bearer tokens, of which every request needs one.
    pub tokens: Arc<Tokens>,
    /// Names and addresses under which clients may call the server (their `Host` header, without
    /// the port). Give the same names to [`Identity::new`].
    pub hosts: Vec<String>,
    /// Certificate and key.
    pub identity: Identity,
    /// Faults, changed here or through `/causeway.lab/faults`.
    pub faults: Arc<Faults>,
    /// Time between bookmarks of an idle watch that asked for them.
    pub bookmarks: Duration,
    /// What was asked.
    pub requests: Arc<Requests>,
}

impl Config {
    /// Settings with a random token, the newest version and a bookmark every minute.
    pub fn new(lab: &str, hosts: Vec<String>) -> Result<Self, TlsError> {
        Ok(Config {
            lab: lab.into(),
            version: KubernetesVersion::default(),
            tokens: Arc::new(Tokens::new(super::random_token())),
            identity: Identity::new(lab, &hosts)?,
            hosts,
            faults: Arc::default(),
            bookmarks: Duration::from_secs(60),
            requests: Arc::default(),
        })
    }

    /// The kubeconfig for a server URL such as `https://127.0.0.1:6443`.
    pub fn kubeconfig(&self, server: &str) -> String {
        super::kubeconfig(&self.lab, server, &self.identity.ca_pem, self.tokens.own())
    }
}

/// The requests that were answered, the newest ones, for who wants to know how a client asks.
#[derive(Debug, Default)]
pub struct Requests(Mutex<VecDeque<String>>);

impl Requests {
    /// How many are kept.
    const KEPT: usize = 10_000;

    fn note(&self, request: &Request<Incoming>) {
        let path = request.uri().path_and_query().map_or("", |p| p.as_str());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= Self::KEPT {
            all.pop_front();
        }
        all.push_back(format!("{} {path}", request.method()));
    }

    /// Takes them out: method and path with its query, oldest first.
    pub fn take(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A listening socket cannot be used.
    #[error(
        "cannot listen on the lab's API socket: {0}: pass a socket that is bound and listening"
    )]
    Listen(#[from] io::Error),
}

/// What every request needs.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) store: Store,
    /// The faults that requests read and set; those that requests suffer are the configuration's.
    pub(crate) faults: Arc<Faults>,
}

/// Serves the API on sockets that listen already (they may belong to different network namespaces)
/// until `shutdown` is done; then all connections are closed.
///
/// Errors: a certificate or a socket that cannot be used.
pub async fn serve(
    config: Config,
    store: Store,
    listeners: Vec<StdListener>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(config.identity.server()?);
    let faults = config.faults.clone();
    let context = Arc::new(Context { config, store, faults });
    let mut tasks = JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        tasks.spawn(accept(listener, acceptor.clone(), context.clone()));
    }
    shutdown.await;
    // The accepting tasks own the tasks of their connections: dropping them closes everything.
    tasks.shutdown().await;
    Ok(())
}

/// Serves the API without TLS on a unix socket, whose mode is what guards it beside the token; the
/// host by which it is called is `localhost`. Faults do not concern it: what sets a fault must be
/// able to take it back.
///
/// Never returns by itself; dropping the future closes all connections.
pub async fn serve_local(mut config: Config, store: Store, listener: UnixListener) {
    let faults = std::mem::take(&mut config.faults);
    let context = Arc::new(Context { config, store, faults });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(answer(stream, context.clone()))),
                Err(error) => {
                    tracing::warn!("cannot accept a connection to the lab's API: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, context: Arc<Context>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // First the ear: a refusal that begins now is seen here or heard there.
                    let interrupts = context.config.faults.interrupts();
                    if !context.config.faults.refusing() {
                        let (acceptor, context) = (acceptor.clone(), context.clone());
                        connections.spawn(connection(stream, acceptor, context, interrupts));
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection to the lab's API: {error}");
                    // Out of file descriptors: they come back as connections end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    context: Arc<Context>,
    mut interrupts: Interrupts,
) {
    // Small answers and watch events must not wait for each other.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
    let Ok(Ok(stream)) = handshake.await else {
        tracing::debug!("a connection to the lab's API ended in the TLS handshake");
        return;
    };
    tokio::select! {
        () = answer(stream, context) => {}
        () = interrupts.connection() => {}
    }
}

/// Answers the requests of one connection until it ends.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, context: Arc<Context>) {
    let service = service_fn(move |request| {
        let context = context.clone();
        async move { Ok::<_, std::convert::Infallible>(handle::handle(context, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("a connection to the lab's API ended: {error}");
    }
}
