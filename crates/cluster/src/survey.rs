//! One look at the API and what it tells of all nodes and pods, for `causeway doctor`.
//!
//! Unlike the feeds it says at which step a connection fails, and it ends.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, StatusCode, header};
use kube::client::Body;
use kube::core::ObjectList;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::connect::{ConnectError, Connection};
use crate::convert;
use crate::objects::{NodeObject, PodObject};

/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Pods of each node whose addresses are kept.
const SAMPLE: usize = 2;

/// At which step the API cannot be asked, in the order of the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing says where it is and who we are there.
    NoCredentials,
    /// What says so cannot be used.
    Configuration,
    /// Its host's name is not found.
    Name,
    /// The connection is refused.
    Refused,
    /// Nothing comes back.
    Silent,
    /// There is no way, or a firewall rejects the connection.
    Unreachable,
    /// TLS.
    Tls,
    /// The connection is taken, and no answer comes.
    Broken,
    /// Answer 401.
    Unauthorized,
    /// Answer 403.
    Forbidden,
    /// Answer 404: the API does not have what was asked for.
    Missing,
    /// Another answer than expected.
    Answer,
}

/// Where it failed, and the words for it.
pub type Failure = (Step, String);

/// What the API told.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The server's URL, as far as known.
    pub server: String,
    /// What went wrong first; what was learned before stands.
    pub failure: Option<Failure>,
    /// The server's clock less ours, in seconds.
    pub skew: Option<i64>,
    /// All nodes; `None`: they were not told.
    pub nodes: Option<Vec<Surveyed>>,
    /// Addresses that several pods have, and the pods.
    pub shared: Vec<(IpAddr, Vec<String>)>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surveyed {
    /// Its name.
    pub name: String,
    /// What it has for a network.
    pub info: causeway_desired::input::NodeInfo,
    /// Its addresses of type Hostname.
    pub hostnames: Vec<String>,
    /// `status.nodeInfo.machineID`.
    pub machine_id: String,
    /// `status.nodeInfo.systemUUID`.
    pub system_uuid: String,
    /// `status.nodeInfo.bootID`.
    pub boot_id: String,
    /// `status.daemonEndpoints.kubeletEndpoint.Port`.
    pub kubelet_port: Option<u16>,
    /// Condition `Ready` is True.
    pub ready: bool,
    /// Condition `NetworkUnavailable` is False.
    pub network: bool,
    /// It has the label `node-role.kubernetes.io/control-plane`.
    pub control_plane: bool,
    /// Addresses of some of its running pods.
    pub pods: Vec<IpAddr>,
}

/// Asks. A step that takes longer than `patience` counts as failed.
pub fn survey(connection: &Connection, patience: Duration) -> Survey {
    let mut survey = Survey::default();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            survey.failure = runtime.block_on(look(connection, patience, &mut survey)).err();
            // A name that is being looked up still would hold up the end.
            runtime.shutdown_background();
        }
        Err(error) => survey.failure = Some((Step::Configuration, error.to_string())),
    }
    survey
}

/// A list of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// Where it is.
    pub path: &'static str,
    /// `apiVersion` of its objects.
    pub api_version: &'static str,
    /// `kind` of its objects.
    pub kind: &'static str,
    /// An API may be without it.
    pub optional: bool,
}

/// All objects of some lists, as they are written, with their `apiVersion` and `kind`. A step that takes longer
/// than `patience` counts as failed.
///
/// # Errors
/// At which step, and the words for it.
pub fn objects(
    connection: &Connection,
    lists: &[List],
    patience: Duration,
) -> Result<Vec<serde_json::Value>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| (Step::Configuration, error.to_string()))?;
    let all = runtime.block_on(async {
        let api = connected(configured(connection, patience).await?, patience).await?;
        let mut all = Vec::new();
        for list in lists {
            let take = |mut object: serde_json::Value| {
                // Objects in lists go without.
                object["apiVersion"] = list.api_version.into();
                object["kind"] = list.kind.into();
                all.push(object);
            };
            match api.each(list.path, &mut None, take).await {
                Err((Step::Missing, _)) if list.optional => {}
                other => other?,
            }
        }
        Ok(all)
    });
    // A name that is being looked up still would hold up the end.
    runtime.shutdown_background();
    all
}

async fn configured(connection: &Connection, patience: Duration) -> Result<kube::Config, Failure> {
    connection.config(patience).await.map_err(|error| match error {
        ConnectError::InCluster(_) => (Step::NoCredentials, error.to_string()),
        error => (Step::Configuration, error.to_string()),
    })
}

async fn connected(config: kube::Config, patience: Duration) -> Result<Api, Failure> {
    // A proxy is the one whom we connect to.
    let url = config.proxy_url.clone().unwrap_or_else(|| config.cluster_url.clone());
    connect(&url, patience).await?;
    let client = kube::Client::try_from(config).map_err(|e| (Step::Configuration, chain(&e)))?;
    Ok(Api { client, patience })
}

async fn look(
    connection: &Connection,
    patience: Duration,
    survey: &mut Survey,
) -> Result<(), Failure> {
    let config = configured(connection, patience).await?;
    survey.server = config.cluster_url.to_string();
    let api = connected(config, patience).await?;
    let mut nodes = BTreeMap::new();
    api.each::<NodeObject>("/api/v1/nodes", &mut survey.skew, |node| {
        if let Some((name, info)) = convert::node(&node) {
            nodes.insert(name.to_string(), surveyed(name.to_string(), info, &node));
        }
    })
    .await?;
    let mut pods: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    let all = api
        .each::<PodObject>("/api/v1/pods", &mut survey.skew, |pod| {
            count(&pod, &mut nodes, &mut pods)
        })
        .await;
    survey.nodes = Some(nodes.into_values().collect());
    survey.shared = pods.into_iter().filter(|(_, names)| names.len() > 1).collect();
    all
}

/// Takes a pod's addresses, if it has its own and uses them.
fn count(
    pod: &PodObject,
    nodes: &mut BTreeMap<String, Surveyed>,
    pods: &mut BTreeMap<IpAddr, Vec<String>>,
) {
    let Some((name, info)) = convert::pod(pod) else { return };
    // The network of a pod that is being deleted may be gone, and its address another's.
    if info.host_network || info.finished || pod.metadata.deletion_timestamp.is_some() {
        return;
    }
    for ip in &info.ips {
        pods.entry(*ip).or_default().push(name.clone());
    }
    let node = pod.spec.node_name.as_ref().and_then(|node| nodes.get_mut(node));
    if let Some(node) = node.filter(|node| node.pods.len() < SAMPLE) {
        node.pods.extend(&info.ips);
    }
}

fn surveyed(
    name: String,
    info: causeway_desired::input::NodeInfo,
    object: &NodeObject,
) -> Surveyed {
    let status = &object.status;
    let text = |field: &str| {
        let value = status.node_info.get(field).and_then(|v| v.as_str());
        value.unwrap_or_default().to_owned()
    };
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let is = |kind: &str, state: &str| {
        list(&status.conditions).iter().any(|c| c["type"] == kind && c["status"] == state)
    };
    let names = list(&status.addresses).into_iter().filter(|a| a["type"] == "Hostname");
    let labels = object.metadata.labels.as_ref();
    let port = status.daemon_endpoints.pointer("/kubeletEndpoint/Port");
    Surveyed {
        hostnames: names.filter_map(|a| Some(a["address"].as_str()?.to_owned())).collect(),
        machine_id: text("machineID"),
        system_uuid: text("systemUUID"),
        boot_id: text("bootID"),
        kubelet_port: port.and_then(|p| u16::try_from(p.as_u64()?).ok()).filter(|p| *p != 0),
        ready: is("Ready", "True"),
        network: is("NetworkUnavailable", "False"),
        control_plane: labels
            .is_some_and(|l| l.contains_key("node-role.kubernetes.io/control-plane")),
        pods: Vec::new(),
        name,
        info,
    }
}

/// Connects by TCP to find out how that ends.
async fn connect(url: &http::Uri, patience: Duration) -> Result<(), Failure> {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    let late = |what: &str| format!("{what}: nothing within {patience:?}");
    let found = timeout(patience, lookup_host((host, port)))
        .await
        .map_err(|_| (Step::Name, late(host)))?
        .map_err(|e| (Step::Name, format!("{host}: {e}")))?;
    let mut failure = (Step::Name, format!("{host} has no address"));
    for address in found {
        let refused = match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => (of_io(&error), format!("{address}: {error}")),
            Err(_) => (Step::Silent, late(&address.to_string())),
        };
        failure = refused;
    }
    Err(failure)
}

fn of_io(error: &io::Error) -> Step {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Step::Refused,
        io::ErrorKind::TimedOut => Step::Silent,
        _ => Step::Unreachable,
    }
}

/// The errors below one another, in one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        next = error.source();
    }
    words.replace('\n', " ")
}

/// Whether TLS is what failed. Errors of TLS come inside of those of input and output.
fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.is_some_and(|inner| is_tls(inner)) {
            return true;
        }
        next = error.source();
    }
    false
}

struct Api {
    client: kube::Client,
    patience: Duration,
}

impl Api {
    /// Goes through a list, page by page.
    async fn each<T: DeserializeOwned + Clone>(
        &self,
        path: &str,
        skew: &mut Option<i64>,
        mut take: impl FnMut(T),
    ) -> Result<(), Failure> {
        let mut from = String::new();
        loop {
            let url = format!("{path}?limit={PAGE}{from}");
            let page: ObjectList<T> = self.get(&url, skew).await?;
            page.items.into_iter().for_each(&mut take);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                // The server's tokens are base64 for URLs; `=` ends them.
                Some(token) => from = format!("&continue={}", token.replace('=', "%3D")),
                None => return Ok(()),
            }
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        url: &str,
        skew: &mut Option<i64>,
    ) -> Result<T, Failure> {
        let request = Request::get(url)
            .header(header::ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|e| (Step::Configuration, e.to_string()))?;
        let late = || (Step::Broken, format!("no answer within {:?}", self.patience));
        let answer = timeout(self.patience, self.client.send(request)).await;
        let answer = answer.map_err(|_| late())?.map_err(|error| match is_tls(&error) {
            true => (Step::Tls, chain(&error)),
            false => (Step::Broken, chain(&error)),
        })?;
        if let Some(there) =
            answer.headers().get(header::DATE).and_then(|d| seconds(d.to_str().ok()?))
        {
            *skew = Some(there - now());
        }
        let code = answer.status();
        let body = timeout(self.patience, answer.into_body().collect_bytes()).await;
        let body = body.map_err(|_| late())?.map_err(|e| (Step::Broken, chain(&e)))?;
        let said = || {
            let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let words = status["message"].as_str().unwrap_or_default().to_owned();
            format!("GET {}: {code}: {words}", url.split('?').next().unwrap_or(url))
        };
        match code {
            StatusCode::OK => {
                serde_json::from_slice(&body).map_err(|e| (Step::Answer, format!("GET {url}: {e}")))
            }
            StatusCode::UNAUTHORIZED => Err((Step::Unauthorized, said())),
            StatusCode::FORBIDDEN => Err((Step::Forbidden, said())),
            StatusCode::NOT_FOUND => Err((Step::Missing, said())),
            _ => Err((Step::Answer, said())),
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A date of HTTP (RFC 9110, section 5.6.7, IMF-fixdate), in seconds since 1970.
fn seconds(date: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = date.split_once(", ")?.1.split(' ');
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|m| *m == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(str::parse::<i64>);
    let mut next = || clock.next()?.ok();
    let (hour, minute, second) = (next()?, next()?, next()?);
    // Days since 1970 of the Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http() {
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        for bad in ["", "Sun, 06 Nov", "Sun, 06 Nuv 1994 08:49:37 GMT", "1994-11-06"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn tls_is_found_inside() {
        let inner = io::Error::other(rustls::Error::DecryptError);
        let outer = io::Error::other(inner);
        assert!(is_tls(&outer));
        assert!(!is_tls(&io::Error::other("closed")));
    }

    #[test]
    fn a_node_and_its_pods() {
        let object = serde_json::json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"},
                              {"type": "Hostname", "address": "N"}],
                "nodeInfo": {"machineID": "m", "systemUUID": "s", "bootID": "b"},
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "conditions": [{"type": "Ready", "status": "True"},
                               {"type": "NetworkUnavailable", "status": "False"}]}});
        let object: NodeObject = serde_json::from_value(object).unwrap();
        let (name, info) = convert::node(&object).unwrap();
        let node = surveyed(name.to_string(), info, &object);
        assert!(node.ready && node.network && node.control_plane);
        assert_eq!((node.machine_id.as_str(), node.system_uuid.as_str()), ("m", "s"));
        assert_eq!((node.boot_id.as_str(), node.kubelet_port), ("b", Some(10250)));
        assert_eq!(node.hostnames, ["N"]);

        let mut nodes = BTreeMap::from([("n".to_owned(), node)]);
        let mut pods = BTreeMap::new();
        let mut take = |name: &str, more: serde_json::Value| {
            let mut pod = serde_json::json!({
                "metadata": {"name": name, "namespace": "x"}, "spec": {"nodeName": "n"},
                "status": {"podIP": "10.244.1.2", "phase": "Running"}});
            json_patch::merge(&mut pod, &more);
            count(&serde_json::from_value(pod).unwrap(), &mut nodes, &mut pods);
        };
        take("a", serde_json::json!({}));
        take("host", serde_json::json!({"spec": {"hostNetwork": true}}));
        take("done", serde_json::json!({"status": {"phase": "Succeeded"}}));
        let going = serde_json::json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}});
        take("going", going);
        take("b", serde_json::json!({}));
        let ip: IpAddr = "10.244.1.2".parse().unwrap();
        assert_eq!(pods, BTreeMap::from([(ip, vec!["x/a".to_owned(), "x/b".to_owned()])]));
        assert_eq!(nodes["n"].pods, [ip, ip]);
    }
}
