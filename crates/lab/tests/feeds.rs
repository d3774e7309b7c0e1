//! The agent's feeds against API servers of the oldest and of the newest Kubernetes: what they show
//! is what is there, whatever the server does to them.

mod api_support;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use api_support::{Lab, VERSIONS};
use causeway_cluster::{Cluster, Connection, Snapshot};
use causeway_lab::api::{
    DeleteOptions, FaultSettings, Key, KubernetesVersion, ListOptions, Part, Store,
};
use causeway_types::NodeName;
use serde_json::{Value, json};

/// The node whose feeds these are; it is there from the beginning to the end.
const ME: &str = "n0";

/// Nodes with their subnets, and this node's pods with what tells one from its heir.
type View = (BTreeMap<String, Vec<String>>, BTreeMap<String, (String, Vec<IpAddr>)>);

/// What the registry holds.
fn held(store: &Store) -> View {
    let all = |kind| store.list(kind, "", &ListOptions::default()).unwrap().items;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let texts = |v: &Value| v.as_array().into_iter().flatten().map(text).collect();
    let nodes = all("nodes")
        .iter()
        .map(|n| (text(&n["metadata"]["name"]), texts(&n["spec"]["podCIDRs"])))
        .collect();
    let ips = |p: &Value| {
        let all = p["status"]["podIPs"].as_array().into_iter().flatten();
        all.map(|e| text(&e["ip"]).parse().unwrap()).collect()
    };
    let mine = |p: &Value| p["spec"]["nodeName"] == ME;
    let pods = all("pods")
        .iter()
        .filter(|p| mine(p))
        .map(|p| {
            (
                format!("default/{}", text(&p["metadata"]["name"])),
                (text(&p["metadata"]["uid"]), ips(p)),
            )
        })
        .collect();
    (nodes, pods)
}

/// What the feeds show.
fn shown(snapshot: &Snapshot) -> View {
    let nodes = snapshot.view.nodes.iter();
    let nodes = nodes
        .map(|(name, n)| (name.to_string(), n.pod_cidrs.iter().map(ToString::to_string).collect()))
        .collect();
    let pods = snapshot.view.pods.iter();
    let pods = pods
        .map(|(name, p)| (name.clone(), (p.pod.uid.clone().unwrap_or_default(), p.ips.clone())))
        .collect();
    (nodes, pods)
}

fn node(store: &Store, name: &str) {
    let node = json!({"metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"}]}});
    store.create("nodes", "", node, false).unwrap();
}

fn pod(store: &Store, name: &str) {
    let pod = json!({"metadata": {"name": name},
        "spec": {"nodeName": ME, "containers": [{"name": "c", "image": "c"}]}});
    store.create("pods", "default", pod, false).unwrap();
}

fn delete(store: &Store, kind: &str, name: &str) {
    let now = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    let namespace = if kind == "pods" { "default" } else { "" };
    store.delete(kind, &Key::new(namespace, name), &now).unwrap();
}

/// Starts feeds with a kubeconfig.
fn follow(kubeconfig: &Path) -> Cluster {
    let connection = Connection { kubeconfig: Some(kubeconfig.to_owned()), ..Default::default() };
    Cluster::watch(connection, NodeName::new(ME).unwrap())
}

fn kubeconfig(lab: &Lab) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &lab.kubeconfig).unwrap();
    file
}

/// Waits until the feeds show what is held.
#[track_caller]
fn equal(what: String, cluster: &Cluster, store: &Store) -> impl Future<Output = ()> {
    let (mut snapshots, health, store) =
        (cluster.snapshots.clone(), cluster.health.clone(), store.clone());
    async move {
        let good = snapshots.wait_for(|s| s.synced() && shown(s) == held(&store));
        if tokio::time::timeout(Duration::from_secs(20), good).await.is_err() {
            let (now, there) = (shown(&cluster_now(&snapshots)), held(&store));
            panic!("{what}: not in time: shown {now:?}, held {there:?}, {health:?}");
        }
    }
}

fn cluster_now(snapshots: &tokio::sync::watch::Receiver<Snapshot>) -> Snapshot {
    snapshots.borrow().clone()
}

/// Runs a test on both versions at once.
async fn on_both<F: Future<Output = ()> + Send + 'static>(test: impl Fn(KubernetesVersion) -> F) {
    let tests: Vec<_> = VERSIONS.map(|v| (v, tokio::spawn(test(v)))).into();
    for (version, test) in tests {
        test.await.unwrap_or_else(|error| panic!("Kubernetes {version}: {error}"));
    }
}

/// Numbers that a seed determines (SplitMix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// One random change of the registry.
fn change(rng: &mut Rng, store: &Store, made: &mut BTreeSet<String>) {
    let name = format!("x{}", rng.below(6));
    let (kind, namespace) = if rng.below(3) == 0 { ("nodes", "") } else { ("pods", "default") };
    match (store.get(kind, namespace, &name).is_ok(), rng.below(2)) {
        (false, _) if kind == "nodes" => node(store, &name),
        (false, _) => {
            pod(store, &name);
            let made_now = store.get(kind, namespace, &name).unwrap();
            made.insert(made_now["metadata"]["uid"].as_str().unwrap().to_owned());
        }
        (true, 0) => delete(store, kind, &name),
        (true, _) => {
            let ip = format!("10.244.0.{}", 2 + rng.below(200));
            let change = |o: &mut Value| match kind {
                "pods" => o["status"] = json!({"phase": "Running", "podIPs": [{"ip": ip}]}),
                _ => o["status"]["addresses"][0]["address"] = json!(ip),
            };
            store.modify(kind, &Key::new(namespace, &name), Part::Status, change).unwrap();
        }
    }
}

fn fault(rng: &mut Rng) -> FaultSettings {
    let some = FaultSettings::default();
    match rng.below(8) {
        0 | 1 => FaultSettings { cut_watches: true, ..some },
        2 => FaultSettings { gone_seconds: 0.2, ..some },
        3 => FaultSettings { too_many_requests_seconds: 0.3, cut_watches: true, ..some },
        4 => FaultSettings { stall_seconds: 0.2, ..some },
        5 => FaultSettings { refuse_seconds: 0.2, ..some },
        6 => FaultSettings { latency_ms: 15, cut_watches: true, ..some },
        _ => some,
    }
}

/// Whatever the server does, in any order: what is always there is never missing, what never was is
/// never shown, and in the end all is as it is. `CAUSEWAY_SEED` repeats a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_in_any_order_lose_and_invent_nothing() {
    let seed = std::env::var("CAUSEWAY_SEED").ok().map(|n| n.parse().unwrap());
    let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    println!("CAUSEWAY_SEED={seed}");
    on_both(move |version| faults(version, seed)).await;
}

async fn faults(version: KubernetesVersion, seed: u64) {
    const ROUNDS: usize = 25;
    let mut rng = Rng(seed);
    // A history so short that watches fall out of it by themselves.
    let lab = Lab::start_as(version, 12);
    node(&lab.store, ME);
    pod(&lab.store, "stays");
    let mut made = BTreeSet::new();
    let file = kubeconfig(&lab);
    let cluster = follow(file.path());
    equal("the first list".into(), &cluster, &lab.store).await;
    let stays = shown(&cluster_now(&cluster.snapshots)).1["default/stays"].0.clone();
    made.insert(stays);
    let mut snapshots = cluster.snapshots.clone();
    let look = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            let (nodes, pods) = shown(&snapshot);
            assert!(nodes.contains_key(ME) && pods.contains_key("default/stays"), "{snapshot:?}");
            seen.extend(pods.into_values().map(|(uid, _)| uid));
        }
        seen
    });
    for round in 0..ROUNDS {
        let fault = fault(&mut rng);
        lab.faults.set(&fault);
        for _ in 0..rng.below(20) {
            change(&mut rng, &lab.store, &mut made);
            if rng.below(4) == 0 {
                tokio::time::sleep(Duration::from_millis(rng.below(30) as u64)).await;
            }
        }
        // Sometimes the next fault comes before this one is dealt with.
        if rng.below(3) > 0 {
            equal(format!("round {round}, {fault:?}, seed {seed}"), &cluster, &lab.store).await;
        }
    }
    lab.faults.set(&FaultSettings::default());
    equal(format!("the end, seed {seed}"), &cluster, &lab.store).await;
    drop(cluster);
    let seen = look.await.unwrap();
    assert!(seen.is_subset(&made), "{seen:?} {made:?}");
    assert!(seen.len() > 5, "{seen:?}");
}

/// 10,000 pods come as one stream, or in pages of 500; nobody asks for all of them at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pods_come_as_a_stream_or_in_pages() {
    on_both(async |version| {
        let lab = Lab::start_as(version, 30_000);
        node(&lab.store, ME);
        for i in 0..10_000 {
            pod(&lab.store, &format!("p{i}"));
        }
        let file = kubeconfig(&lab);
        let cluster = follow(file.path());
        equal("all".into(), &cluster, &lab.store).await;
        assert_eq!(cluster_now(&cluster.snapshots).view.pods.len(), 10_000);
        let oldest = version == KubernetesVersion::OLDEST;
        let streams = |r: &String| r.contains("sendInitialEvents=true");
        // The pages are followed by a watch, the stream is one.
        let watches = |r: &String| {
            r.contains("/pods?") && r.contains("watch=true") && !(oldest && streams(r))
        };
        let begun = async {
            let mut asked = Vec::new();
            while !asked.iter().any(watches) {
                asked.extend(lab.requests.take());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            asked
        };
        let asked = tokio::time::timeout(Duration::from_secs(10), begun).await.unwrap();
        let pods: Vec<&String> = asked.iter().filter(|r| r.contains("/pods?")).collect();
        let streams = pods.iter().filter(|r| streams(r)).count();
        let lists = pods.iter().filter(|r| !r.contains("watch=true"));
        assert!(lists.clone().all(|r| r.contains("limit=500")), "{pods:?}");
        let later = pods.iter().filter(|r| r.contains("continue=")).count();
        let expected = if oldest { (1, 20, 19) } else { (1, 0, 0) };
        assert_eq!((streams, lists.count(), later), expected, "{pods:?}");
    })
    .await;
}

/// The version of the pages has left the history before the last of them: the list begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_next_page_may_expire() {
    let lab = Lab::start_as(KubernetesVersion::OLDEST, 40);
    node(&lab.store, ME);
    for i in 0..1_200 {
        pod(&lab.store, &format!("p{i:04}"));
    }
    lab.faults.set(&FaultSettings { latency_ms: 100, ..Default::default() });
    let file = kubeconfig(&lab);
    let cluster = follow(file.path());
    let mut asked: Vec<String> = Vec::new();
    let next_page = |r: &String| r.contains("/pods?") && r.contains("continue=");
    // While the second page is on its way, more happens than the history holds.
    let second_page = async {
        while !asked.iter().any(next_page) {
            asked.extend(lab.requests.take());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), second_page).await.expect("a second page");
    for i in 0..50 {
        delete(&lab.store, "pods", &format!("p{i:04}"));
    }
    equal("after a token that expired".into(), &cluster, &lab.store).await;
    asked.extend(lab.requests.take());
    let lists = asked.iter().filter(|r| r.contains("/pods?") && !r.contains("watch=true"));
    let begun = lists.filter(|r| !next_page(r)).count();
    assert!(begun >= 2, "{asked:?}");
}

/// While a server turns requests away it is asked as seldom as it wishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_too_much_to_do_is_left_alone() {
    on_both(async |version| {
        let lab = Lab::start_as(version, 1000);
        node(&lab.store, ME);
        let file = kubeconfig(&lab);
        let cluster = follow(file.path());
        equal("the first list".into(), &cluster, &lab.store).await;
        lab.requests.take();
        lab.faults.set(&FaultSettings {
            too_many_requests_seconds: 2.5,
            retry_after_seconds: 1,
            cut_watches: true,
            ..Default::default()
        });
        pod(&lab.store, "a");
        equal("afterwards".into(), &cluster, &lab.store).await;
        // Two feeds, once a second: at 0, 1, 2 and 3 s, and the list after a new connection.
        let asked = lab.requests.take();
        assert!(asked.len() <= 12, "{asked:#?}");
        assert!(cluster.health.pods().restarts >= 2, "{:?}", cluster.health);
    })
    .await;
}

/// How a client of the API is told who it is.
#[derive(Clone, Copy, Debug)]
enum Credential {
    /// A kubeconfig with the token in it.
    Inline,
    /// A kubeconfig that names a file with the token.
    File,
}

/// Writes what a client reads: all of it, or nothing.
fn put(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join("aside"), text).unwrap();
    std::fs::rename(dir.join("aside"), dir.join(name)).unwrap();
}

impl Credential {
    fn write(self, lab: &Lab, dir: &Path, token: &str) {
        put(dir, "token", token);
        let line = match self {
            Credential::Inline => format!("token: {token}"),
            Credential::File => format!("tokenFile: {}", dir.join("token").display()),
        };
        put(dir, "kubeconfig", &lab.kubeconfig.replace(&format!("token: {}", lab.token), &line));
    }
}

/// A token that ends is refused, and that shows; the next one, from the same place, is taken at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_has_ended_is_replaced_by_the_next() {
    for credential in [Credential::Inline, Credential::File] {
        on_both(move |version| one_after_another(version, credential)).await;
    }
}

async fn one_after_another(version: KubernetesVersion, credential: Credential) {
    let lab = Lab::start_as(version, 1000);
    node(&lab.store, ME);
    let dir = tempfile::tempdir().unwrap();
    let first = lab.tokens.issue(Duration::from_secs(600));
    credential.write(&lab, dir.path(), &first);
    let cluster = follow(&dir.path().join("kubeconfig"));
    rotate(&lab, &cluster, first, |token| credential.write(&lab, dir.path(), token)).await;
}

/// Ends a token twice: once after the next was written, once before.
async fn rotate(lab: &Lab, cluster: &Cluster, first: String, write: impl Fn(&str)) {
    equal("with the first token".into(), cluster, &lab.store).await;
    let second = lab.tokens.issue(Duration::from_secs(600));
    write(&second);
    lab.tokens.revoke(&first);
    lab.faults.set(&FaultSettings { cut_watches: true, ..Default::default() });
    node(&lab.store, "in-time");
    equal("with the second token".into(), cluster, &lab.store).await;

    lab.tokens.revoke(&second);
    let refused = async {
        let all = |health: &causeway_cluster::Health| [health.nodes(), health.pods()];
        let says = |feed: &causeway_cluster::FeedHealth| {
            feed.error.as_ref().is_some_and(|(_, text)| text.contains("401"))
        };
        while !all(&cluster.health).iter().all(says) {
            // Again and again: as with any API, a watch that was admitted just before the token
            // ended goes on, also one that began only just after a cut.
            lab.faults.set(&FaultSettings { cut_watches: true, ..Default::default() });
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("401 shows");
    node(&lab.store, "late");
    assert!(!shown(&cluster_now(&cluster.snapshots)).0.contains_key("late"));
    write(&lab.tokens.issue(Duration::from_secs(600)));
    equal("with the third token".into(), cluster, &lab.store).await;
}

/// Set for the process that is to be the pod.
const VERSION: &str = "CAUSEWAY_TEST_VERSION";
/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// As in a pod: the service account's files and the two variables tell where the API is and who we
/// are. They are the same for a whole process, so that each version has one of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_account_of_a_pod_is_followed() {
    if let Ok(version) = std::env::var(VERSION) {
        return inside_a_pod(version.parse().unwrap()).await;
    }
    on_both(async |version| {
        let child = tokio::task::spawn_blocking(move || {
            let me = std::env::current_exe().unwrap();
            // A file system of its own on /run, where /var/run leads.
            let mount =
                format!("mount -t tmpfs tmpfs /run && mkdir -p {ACCOUNT} && exec \"$0\" \"$@\"");
            let port =
                std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            Command::new("unshare")
                .args(["--mount", "sh", "-c", &mount])
                .arg(me)
                .args(["--exact", "the_service_account_of_a_pod_is_followed", "--nocapture"])
                .env(VERSION, version.to_string())
                .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
                .env("KUBERNETES_SERVICE_PORT", port.to_string())
                .output()
                .unwrap()
        });
        let output = child.await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    })
    .await;
}

async fn inside_a_pod(version: KubernetesVersion) {
    let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap();
    let lab = Lab::start_at(&format!("127.0.0.1:{port}"), version, 1000);
    node(&lab.store, ME);
    let dir = Path::new(ACCOUNT);
    let first = lab.tokens.issue(Duration::from_secs(600));
    put(dir, "token", &first);
    put(dir, "ca.crt", &lab.ca);
    put(dir, "namespace", "kube-system");
    let cluster = Cluster::watch(Connection::default(), NodeName::new(ME).unwrap());
    rotate(&lab, &cluster, first, |token| put(dir, "token", token)).await;
}
