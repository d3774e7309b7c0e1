//! An API server of a lab on a loopback port, for tests.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use causeway_lab::api::controllers::{self, ControllersConfig, PodRange};
use causeway_lab::api::{
    Config, Faults, KubernetesVersion, Requests, Store, StoreConfig, Tokens, serve,
};
use tokio::task::JoinHandle;

/// The ends of what is supported: what holds for both holds for all.
pub(crate) const VERSIONS: [KubernetesVersion; 2] =
    [KubernetesVersion::OLDEST, KubernetesVersion::NEWEST];

pub(crate) struct Lab {
    pub(crate) store: Store,
    pub(crate) faults: Arc<Faults>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) ca: String,
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) kubeconfig: String,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Lab {
    /// Starts a server of the newest version with this length of history, and the controllers.
    pub(crate) fn start(history: usize) -> Self {
        Self::start_as(KubernetesVersion::NEWEST, history)
    }

    /// As [`Lab::start`], of a version.
    pub(crate) fn start_as(version: KubernetesVersion, history: usize) -> Self {
        Self::start_at("127.0.0.1:0", version, history)
    }

    /// As [`Lab::start_as`], at an address.
    pub(crate) fn start_at(address: &str, version: KubernetesVersion, history: usize) -> Self {
        let store = Store::new(StoreConfig { history, ..StoreConfig::default() });
        let mut config = Config::new("test", vec!["127.0.0.1".into(), "localhost".into()])
            .expect("a certificate");
        config.version = version;
        config.bookmarks = Duration::from_millis(200);
        let listener = TcpListener::bind(address).expect("a loopback port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let (faults, token, kubeconfig) =
            (config.faults.clone(), config.tokens.own().to_owned(), config.kubeconfig(&url));
        let (tokens, requests) = (config.tokens.clone(), config.requests.clone());
        let ca = config.identity.ca_pem.clone();
        let ranges = vec![PodRange::new("10.244.0.0/16".parse().expect("a range"))];
        let run = ControllersConfig { pod_ranges: ranges, schedule: true };
        let serving = serve(config, store.clone(), vec![listener], std::future::pending());
        let tasks = vec![
            tokio::spawn(async move { serving.await.expect("the server runs") }),
            tokio::spawn(controllers::run(store.clone(), run, std::future::pending())),
        ];
        Lab { store, faults, tokens, requests, ca, url, token, kubeconfig, tasks }
    }
}
