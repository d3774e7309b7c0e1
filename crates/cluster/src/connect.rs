//! How the API is reached.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::feed::WATCH_SECONDS;

/// Where the API is and who we are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// A kubeconfig file; `None`: the service account of the pod that we run in.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's host in place of the configured one. On nodes whose service addresses
    /// depend on us, the address in the pod's environment cannot be reached yet.
    pub host: Option<String>,
    /// The API server's port, used with `host`; `None`: 6443.
    pub port: Option<u16>,
}

/// Why no connection could be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read or makes no sense.
    #[error("kubeconfig {path}: {error}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<kube::config::KubeconfigError>,
    },
    /// Not inside a pod, or a pod without a service account.
    #[error("no kubeconfig is configured and this is no pod with a service account: {0}")]
    InCluster(Box<kube::config::InClusterError>),
    /// The host or port given does not make a URL.
    #[error("API server {0:?} does not make a URL: {1}")]
    Host(String, http::Error),
    /// The client could not be made (certificates, keys).
    #[error("kubernetes client: {0}")]
    Client(Box<kube::Error>),
}

impl Connection {
    /// Reads the configuration anew, as certificates and tokens may have been replaced.
    pub(crate) async fn client(&self) -> Result<kube::Client, ConnectError> {
        // A request that is never answered must end some day; a watch is ended by the server
        // well before this.
        let mut config = self.config(Duration::from_secs(u64::from(WATCH_SECONDS) + 15)).await?;
        config.reset_reader_on_write = true;
        kube::Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
    }

    /// The configuration, with a limit for the silence of an answer.
    pub(crate) async fn config(&self, silence: Duration) -> Result<kube::Config, ConnectError> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let wrap =
                    |error| ConnectError::Kubeconfig { path: path.clone(), error: Box::new(error) };
                let file = Kubeconfig::read_from(path).map_err(wrap)?;
                let options = KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(file, &options).await.map_err(wrap)?
            }
            None => kube::Config::incluster()
                .map_err(|error| ConnectError::InCluster(Box::new(error)))?,
        };
        if let Some(host) = &self.host {
            config.cluster_url = self.url(host, config.cluster_url.scheme_str())?;
        }
        config.read_timeout = Some(silence);
        // Retries are ours: they show in health, and they stop when the task does.
        config.default_retry = false;
        Ok(config)
    }

    fn url(&self, host: &str, scheme: Option<&str>) -> Result<http::Uri, ConnectError> {
        // An IPv6 address stands in brackets in a URL.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let host = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
        let authority = format!("{host}:{}", self.port.unwrap_or(6443));
        http::Uri::builder()
            .scheme(scheme.unwrap_or("https"))
            .authority(authority.as_str())
            .path_and_query("/")
            .build()
            .map_err(|error| ConnectError::Host(authority, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_make_a_url() {
        let url = |host: &str, port| {
            let c = Connection { kubeconfig: None, host: None, port };
            c.url(host, None).map(|u| u.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(url("192.0.2.1", None).unwrap(), "https://192.0.2.1:6443/");
        assert_eq!(url("fd00::1", Some(443)).unwrap(), "https://[fd00::1]:443/");
        assert_eq!(url("[fd00::1]", Some(443)).unwrap(), "https://[fd00::1]:443/");
        assert!(url("no host", None).unwrap_err().contains("no host:6443"));
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let c = Connection { kubeconfig: Some("/nonexistent/kubeconfig".into()), ..<_>::default() };
        let error = c.client().await.err().expect("no such file").to_string();
        assert!(error.contains("/nonexistent/kubeconfig"), "{error}");
    }
}
