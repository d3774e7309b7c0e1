//! The feeds against a server that answers each request from a script.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use causeway_cluster::{Announcement, Cluster, Connection, NetworkState, Snapshot};
use causeway_types::NodeName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One answer: a status, the lines of the body, and whether the connection then stays open.
struct Answer {
    code: u16,
    lines: Vec<Value>,
    stay: bool,
}

type Script = dyn Fn(&str) -> Answer + Send + Sync;

fn once(code: u16, body: Value) -> Answer {
    Answer { code, lines: vec![body], stay: false }
}

fn events(lines: Vec<Value>) -> Answer {
    Answer { code: 200, lines, stay: true }
}

fn refuse(code: u16, reason: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                      "reason": reason, "message": format!("scripted {reason}")});
    once(code, body)
}

async fn serve(mut stream: TcpStream, script: Arc<Script>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |n| n.parse().expect("a length"))];
    stream.read_exact(&mut body).await?;
    let answer = script(&path);
    let top = format!(
        "HTTP/1.1 {} X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
        answer.code
    );
    stream.write_all(top.as_bytes()).await?;
    for line in answer.lines {
        stream.write_all(format!("{line}\n").as_bytes()).await?;
    }
    if answer.stay {
        // Until the client goes.
        let _ = stream.read_u8().await;
    }
    Ok(())
}

/// Starts a server and the feeds of node `n1` on it.
async fn start(script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> (Cluster, Kept) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let script: Arc<Script> = Arc::new(script);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&script)));
        }
    });
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    file.write_all(kubeconfig.to_string().as_bytes()).expect("written");
    let connection = Connection { kubeconfig: Some(file.path().to_owned()), ..<_>::default() };
    (Cluster::watch(connection, NodeName::new("n1").unwrap()), Kept(file))
}

struct Kept(#[allow(dead_code)] tempfile::NamedTempFile);

async fn until(cluster: &mut Cluster, what: &str, good: impl FnMut(&Snapshot) -> bool) -> Snapshot {
    let wait = tokio::time::timeout(Duration::from_secs(10), cluster.snapshots.wait_for(good));
    let found = wait.await.map(|r| r.expect("the feeds run").clone());
    found.unwrap_or_else(|_| {
        panic!("not in time: {what}; {:?}, {:?}", cluster.snapshots, cluster.health)
    })
}

fn node(name: &str, version: u64, cidr: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node",
           "metadata": {"name": name, "resourceVersion": version.to_string()},
           "spec": {"podCIDRs": [cidr]},
           "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.11"}]}})
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn end_of_list(version: u64, kind: &str) -> Value {
    event(
        "BOOKMARK",
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": version.to_string(),
               "annotations": {"k8s.io/initial-events-end": "true"}}}),
    )
}

fn list(kind: &str, version: u64, items: Vec<Value>) -> Answer {
    once(
        200,
        json!({"apiVersion": "v1", "kind": format!("{kind}List"),
               "metadata": {"resourceVersion": version.to_string()}, "items": items}),
    )
}

fn is_watch(path: &str) -> bool {
    path.contains("watch=true")
}

fn is_nodes(path: &str) -> bool {
    path.starts_with("/api/v1/nodes")
}

#[tokio::test]
async fn streaming_lists_and_later_events() {
    let (mut cluster, _kept) = start(|path| {
        assert!(is_watch(path) && path.contains("sendInitialEvents=true"), "{path}");
        if is_nodes(path) {
            events(vec![
                event("ADDED", node("n1", 1, "10.244.1.0/24")),
                event("ADDED", node("n2", 2, "10.244.2.0/24")),
                end_of_list(2, "Node"),
                event("ADDED", node("n3", 3, "10.244.3.7/24")),
                event("DELETED", node("n2", 4, "10.244.2.0/24")),
            ])
        } else {
            assert!(path.contains("fieldSelector=spec.nodeName%3Dn1"), "{path}");
            let pod = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "namespace": "default", "resourceVersion": "2"}});
            events(vec![event("ADDED", pod), end_of_list(2, "Pod")])
        }
    })
    .await;
    let n = |t: &str| NodeName::new(t).unwrap();
    let end = until(&mut cluster, "all events", |s| {
        s.synced() && s.view.nodes.keys().map(NodeName::as_str).eq(["n1", "n3"])
    })
    .await;
    assert_eq!(end.view.nodes[&n("n1")].pod_cidrs.len(), 1);
    assert!(end.view.nodes[&n("n3")].problems[0].contains("did you mean"));
    assert!(end.view.pods.contains_key("default/a"));
    assert!(cluster.health.nodes().last_contact.is_some() && cluster.health.nodes().restarts == 0);
}

/// The API server streams what its cache holds, and then what has changed since, until that is as new as
/// the request: only then comes the mark (`cacheWatcher` in apiserver/pkg/storage/cacher).
#[tokio::test]
async fn what_changes_during_a_streaming_list() {
    let (mut cluster, _kept) = start(|path| {
        if is_nodes(path) {
            events(vec![
                event("ADDED", node("n1", 1, "10.244.1.0/24")),
                event("ADDED", node("n2", 2, "10.244.2.0/24")),
                event("ADDED", node("n3", 3, "10.244.3.0/24")),
                event("DELETED", node("n2", 4, "10.244.2.0/24")),
                event("MODIFIED", node("n3", 5, "10.244.9.0/24")),
                end_of_list(5, "Node"),
            ])
        } else {
            events(vec![end_of_list(5, "Pod")])
        }
    })
    .await;
    let end = until(&mut cluster, "the list", Snapshot::synced).await;
    assert!(end.view.nodes.keys().map(NodeName::as_str).eq(["n1", "n3"]), "{:?}", end.view.nodes);
    let n3 = &end.view.nodes[&NodeName::new("n3").unwrap()];
    assert_eq!(n3.pod_cidrs, ["10.244.9.0/24".parse().unwrap()]);
}

#[tokio::test]
async fn an_api_without_streaming_lists() {
    let (mut cluster, _kept) = start(|path| match (is_watch(path), is_nodes(path)) {
        (true, _) if path.contains("sendInitialEvents") => refuse(422, "Invalid"),
        (true, true) => events(vec![event("MODIFIED", node("n1", 9, "10.244.9.0/24"))]),
        (true, false) => events(vec![]),
        (false, true) => list("Node", 5, vec![node("n1", 5, "10.244.1.0/24")]),
        (false, false) => list("Pod", 5, vec![]),
    })
    .await;
    until(&mut cluster, "the event", |s| {
        s.synced() && s.view.nodes.values().any(|n| n.pod_cidrs[0].to_string() == "10.244.9.0/24")
    })
    .await;
    assert_eq!(cluster.health.nodes().restarts, 0, "the fallback is no failure");
}

/// A version that is gone, as an HTTP answer and as an event: everything is listed again, and
/// what went away meanwhile goes.
#[tokio::test]
async fn gone_means_listing_again() {
    for as_event in [false, true] {
        let lists = Mutex::new(0);
        let (mut cluster, _kept) = start(move |path| match (is_watch(path), is_nodes(path)) {
            (true, _) if path.contains("sendInitialEvents") => refuse(400, "BadRequest"),
            (true, false) => events(vec![]),
            (false, false) => list("Pod", 5, vec![]),
            (true, true) if path.contains("resourceVersion=9") => events(vec![]),
            (true, true) if as_event => {
                let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410,
                    "status": "Failure", "reason": "Expired", "message": "too old"});
                events(vec![event("ERROR", gone)])
            }
            (true, true) => refuse(410, "Expired"),
            (false, true) => {
                let mut count = lists.lock().unwrap();
                *count += 1;
                if *count == 1 {
                    list(
                        "Node",
                        5,
                        vec![node("n1", 5, "10.244.1.0/24"), node("n2", 5, "10.244.2.0/24")],
                    )
                } else {
                    list("Node", 9, vec![node("n1", 9, "10.244.1.0/24")])
                }
            }
        })
        .await;
        until(&mut cluster, "n2 seen", |s| s.view.nodes.len() == 2).await;
        until(&mut cluster, "n2 gone", |s| s.synced() && s.view.nodes.len() == 1).await;
    }
}

/// Refused requests do not sync and do not end anything; the API's words are kept.
#[tokio::test]
async fn a_missing_permission_is_waited_out() {
    let tries = Mutex::new(0);
    let (mut cluster, _kept) = start(move |path| {
        if is_nodes(path) {
            return events(vec![end_of_list(1, "Node")]);
        }
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        if *tries < 5 { refuse(403, "Forbidden") } else { events(vec![end_of_list(1, "Pod")]) }
    })
    .await;
    until(&mut cluster, "nodes", |s| s.nodes_synced).await;
    let health = cluster.health.clone();
    let seen = async {
        while health.pods().error.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        health.pods().error.expect("just seen").1
    };
    let text = tokio::time::timeout(Duration::from_secs(5), seen).await.expect("an error");
    assert!(text.contains("403") && text.contains("scripted Forbidden"), "{text}");
    until(&mut cluster, "pods", |s| s.pods_synced).await;
    assert!(cluster.health.pods().error.is_none() && cluster.health.pods().restarts >= 4);
}

/// The parameters of a streaming list mean nothing to the server, and it says so by a bookmark that
/// has no mark: paged lists are used at once.
#[tokio::test]
async fn an_api_that_passes_over_the_wish_for_a_streaming_list() {
    let (mut cluster, _kept) = start(|path| match (is_watch(path), is_nodes(path)) {
        (true, _) if path.contains("sendInitialEvents") => events(vec![
            event("ADDED", node("n9", 4, "10.244.9.0/24")),
            event(
                "BOOKMARK",
                json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"resourceVersion": "4"}}),
            ),
        ]),
        (true, _) => events(vec![]),
        (false, true) => list("Node", 5, vec![node("n1", 5, "10.244.1.0/24")]),
        (false, false) => list("Pod", 5, vec![]),
    })
    .await;
    let end = until(&mut cluster, "the list in pages", Snapshot::synced).await;
    assert!(end.view.nodes.keys().map(NodeName::as_str).eq(["n1"]), "{end:?}");
    assert_eq!(cluster.health.nodes().restarts, 0, "the fallback is no failure");
}

/// Watches, and streaming lists, that are over as soon as they begin: a proxy that takes no long
/// answers, say. The server is asked less and less, and what lists tell counts.
#[tokio::test]
async fn an_api_that_ends_its_watches_at_once_is_not_asked_without_a_pause() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let (mut cluster, _kept) = start(move |path| match (is_watch(path), is_nodes(path)) {
        (true, _) => {
            let seconds = path.split(['?', '&']).find_map(|p| p.strip_prefix("timeoutSeconds="));
            seen.lock().unwrap().push(seconds.unwrap_or_default().parse::<u32>().unwrap());
            Answer { code: 200, lines: vec![], stay: false }
        }
        (false, true) => list("Node", 5, vec![node("n1", 5, "10.244.1.0/24")]),
        (false, false) => list("Pod", 5, vec![]),
    })
    .await;
    until(&mut cluster, "lists", Snapshot::synced).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Pauses from 0.05 to 0.1 s on, doubled each time: at most six in 2 s, for each of two feeds.
    let mut asked = asked.lock().unwrap().clone();
    assert!(asked.len() <= 16, "{} watches in 2 s", asked.len());
    // Each is to last another time: all agents come anew together when an API server was restarted.
    assert!(asked.iter().all(|seconds| (120..=180).contains(seconds)), "{asked:?}");
    asked.sort_unstable();
    asked.dedup();
    assert!(asked.len() > 2, "{asked:?}");
    let text = cluster.health.nodes().error.map(|(_, text)| text).unwrap_or_default();
    assert!(text.contains("ended at once"), "{text}");
}

/// A page that is refused is asked for again; those before it are not.
#[tokio::test]
async fn a_page_that_is_refused_is_asked_for_again() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let (mut cluster, _kept) = start(move |path| match (is_watch(path), is_nodes(path)) {
        (true, _) if path.contains("sendInitialEvents") => refuse(422, "Invalid"),
        (true, _) => events(vec![]),
        (false, false) => list("Pod", 5, vec![]),
        (false, true) => {
            let mut seen = seen.lock().unwrap();
            let token =
                path.split('&').find_map(|p| p.strip_prefix("continue=")).map(str::to_owned);
            seen.push(token.clone().unwrap_or_default());
            let page = |name, next: &str| {
                let mut answer = list("Node", 5, vec![node(name, 5, "10.244.1.0/24")]);
                answer.lines[0]["metadata"]["continue"] = json!(next);
                answer
            };
            match (token.as_deref(), seen.iter().filter(|t| *t == "two").count()) {
                (None, _) => page("n1", "two"),
                (Some("two"), 1) => refuse(500, "InternalError"),
                (Some("two"), 2) => {
                    // As an overloaded server says it: not a Status at all.
                    let text = json!("Too many requests, please try again later.");
                    Answer { code: 429, lines: vec![text], stay: false }
                }
                (Some("two"), _) => page("n2", "three"),
                _ => page("n3", ""),
            }
        }
    })
    .await;
    let end = until(&mut cluster, "three pages", |s| s.nodes_synced).await;
    assert_eq!(end.view.nodes.len(), 3);
    assert_eq!(*asked.lock().unwrap(), ["", "two", "two", "two", "three"]);
}

/// A server with the Node `n1`, whose every watch tells that the Node has changed, and whose condition
/// somebody writes with words of their own. `patch` answers requests that change it.
async fn with_own_node(
    patch: impl Fn(usize) -> Answer + Send + Sync + 'static,
) -> (Cluster, Kept, Arc<Mutex<usize>>) {
    let (versions, patches) = (Mutex::new(1), Arc::new(Mutex::new(0)));
    let count = Arc::clone(&patches);
    let (cluster, kept) = start(move |path| match (is_watch(path), is_nodes(path)) {
        (_, false) => events(vec![end_of_list(1, "Pod")]),
        (false, true) => {
            assert!(path.starts_with("/api/v1/nodes/n1/status"), "{path}");
            let mut count = count.lock().unwrap();
            *count += 1;
            patch(*count)
        }
        (true, true) => {
            let mut version = versions.lock().unwrap();
            *version += 1;
            let mut own = node("n1", *version, "10.244.1.0/24");
            own["status"]["conditions"] = json!([{"type": "NetworkUnavailable", "status": "False",
                "reason": "RouteCreated", "message": "RouteController created a route"}]);
            let first = path.contains("sendInitialEvents");
            let end = first.then(|| end_of_list(*version, "Node"));
            let lines = [event("MODIFIED", own)].into_iter().chain(end).collect();
            Answer { code: 200, lines, stay: false }
        }
    })
    .await;
    (cluster, kept, patches)
}

fn ready() -> tokio::sync::watch::Receiver<Announcement> {
    let network = Some(NetworkState::Ready("pods get addresses".to_owned()));
    tokio::sync::watch::channel(Announcement { network, ..<_>::default() }).1
}

/// Two that change one another's words again and again do it less and less often.
#[tokio::test]
async fn what_somebody_changes_back_is_not_written_without_a_pause() {
    let (mut cluster, _kept, patches) =
        with_own_node(|_| once(200, node("n1", 1, "10.244.1.0/24"))).await;
    cluster.announce(ready());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let patches = *patches.lock().unwrap();
    // Pauses from 0.05 to 0.1 s on, doubled each time.
    assert!((2..=7).contains(&patches), "{patches} in 2 s");
}

/// A request that nobody answers, as from an address that the node has lost, holds up nothing for long.
#[tokio::test]
async fn what_is_not_answered_is_written_again() {
    let (mut cluster, _kept, patches) = with_own_node(|n| match n {
        1 => events(vec![]),
        _ => once(200, node("n1", 1, "10.244.1.0/24")),
    })
    .await;
    cluster.announce(ready());
    let again = async {
        while *patches.lock().unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(14), again).await.expect("written again");
}
