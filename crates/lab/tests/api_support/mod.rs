//! An API server of a lab on a loopback port, for tests.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use causeway_lab::api::controllers::{self, ControllersConfig, PodRange};
use causeway_lab::api::{Config, Faults, Store, StoreConfig, serve};
use tokio::task::JoinHandle;

pub(crate) struct Lab {
    pub(crate) store: Store,
    pub(crate) faults: Arc<Faults>,
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
    /// Starts a server with this length of history, and the controllers.
    pub(crate) fn start(history: usize) -> Self {
        let store = Store::new(StoreConfig { history, ..StoreConfig::default() });
        let mut config = Config::new("test", vec!["127.0.0.1".into(), "localhost".into()])
            .expect("a certificate");
        config.bookmarks = Duration::from_millis(200);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let (faults, token, kubeconfig) =
            (config.faults.clone(), config.token.clone(), config.kubeconfig(&url));
        let ranges = vec![PodRange::new("10.244.0.0/16".parse().expect("a range"))];
        let run = ControllersConfig { pod_ranges: ranges, schedule: true };
        let serving = serve(config, store.clone(), vec![listener], std::future::pending());
        let tasks = vec![
            tokio::spawn(async move { serving.await.expect("the server runs") }),
            tokio::spawn(controllers::run(store.clone(), run, std::future::pending())),
        ];
        Lab { store, faults, url, token, kubeconfig, tasks }
    }
}
