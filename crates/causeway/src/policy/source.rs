//! Where policies come from: manifests, or a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_cluster::Connection;
use causeway_cluster::survey::{self, List};
use causeway_lab::documents;
use causeway_policy::expect::{self, Expectation};
use causeway_policy::read::Object;
use causeway_policy::{Labels, Pod, PodName, Text, World};
use ipnet::IpNet;
use serde_json::Value;

/// How long a step on the way to the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What policies go by.
pub(crate) const LISTS: [List; 5] = [
    List { path: "/api/v1/namespaces", api_version: "v1", kind: "Namespace", optional: false },
    List { path: "/api/v1/nodes", api_version: "v1", kind: "Node", optional: false },
    List { path: "/api/v1/pods", api_version: "v1", kind: "Pod", optional: false },
    List {
        path: "/apis/networking.k8s.io/v1/networkpolicies",
        api_version: "networking.k8s.io/v1",
        kind: "NetworkPolicy",
        optional: false,
    },
    List {
        path: "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
        api_version: "policy.networking.k8s.io/v1alpha2",
        kind: "ClusterNetworkPolicy",
        optional: true,
    },
];

/// The word for the cluster where manifests could be named.
const CLUSTER: &str = "cluster";

/// Whose policies.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Manifests: files (YAML or JSON), or directories of them; `cluster` is what the cluster has. Without
    /// this the cluster is asked.
    #[arg(short = 'f', long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// The cluster's kubeconfig; by default that of the environment, or the pod's own.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// Who is there, and the policies.
    pub(crate) world: World,
    /// What is expected of them: where that is written, and what.
    pub(crate) expected: Vec<(String, Expectation)>,
    /// The ranges of pods' addresses, as far as nodes tell.
    pub(crate) ranges: Vec<IpNet>,
}

/// Objects as they are written.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    cluster: Vec<Value>,
    /// Of manifests, each with its file. In the place of a workload is the pod that it makes.
    files: Vec<(String, Value)>,
}

impl Source {
    /// Of manifests where some are named, else of the cluster.
    pub(crate) fn read(&self) -> Result<Read> {
        self.objects()?.read()
    }

    /// The same, as it is written.
    pub(crate) fn objects(&self) -> Result<Objects> {
        match self.files.as_slice() {
            [] => Objects::of(&[PathBuf::from(CLUSTER)], self.kubeconfig.as_deref()),
            files => Objects::of(files, self.kubeconfig.as_deref()),
        }
    }

    /// Of the cluster: `cluster`, or of a file or directory.
    pub(crate) fn named(&self, name: &str) -> Result<Read> {
        Objects::of(&[PathBuf::from(name)], self.kubeconfig.as_deref())?.read()
    }

    /// Whether it is the cluster alone that is asked.
    pub(crate) fn is_cluster(&self) -> bool {
        self.files.iter().all(|name| name == Path::new(CLUSTER))
    }
}

impl Objects {
    /// Of the cluster (`cluster`), of files, and of directories.
    pub(crate) fn of(names: &[PathBuf], kubeconfig: Option<&Path>) -> Result<Self> {
        let mut objects = Self::default();
        for name in names {
            match name == Path::new(CLUSTER) {
                true => objects.cluster = of_cluster(kubeconfig)?,
                false => objects.files.extend(of_files(name)?),
            }
        }
        Ok(objects)
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Value> {
        self.cluster.iter().chain(self.files.iter().map(|(_, value)| value))
    }

    /// What policies go by. Pods of manifests get addresses: policies go by those, and manifests have none
    /// yet.
    pub(crate) fn read(&self) -> Result<Read> {
        let mut read = Read::default();
        for value in &self.cluster {
            read.take("the cluster", value)?;
        }
        let there: BTreeSet<PodName> = read.world.pods().map(|pod| pod.name.clone()).collect();
        for (from, value) in &self.files {
            read.take(from, value)?;
        }
        give_addresses(&mut read.world, &there);
        name_namespaces(&mut read.world);
        Ok(read)
    }
}

impl Read {
    fn take(&mut self, from: &str, value: &Value) -> Result<()> {
        if expect::is_test(value) {
            let expected = expect::read(value).with_context(|| from.to_owned())?;
            self.expected.extend(expected.into_iter().map(|one| (from.to_owned(), one)));
            return Ok(());
        }
        if value["kind"] == "Node" {
            let cidrs = value["spec"]["podCIDRs"].as_array().into_iter().flatten();
            let cidrs = cidrs.chain([&value["spec"]["podCIDR"]]).filter_map(Value::as_str);
            self.ranges.extend(cidrs.filter_map(|cidr| cidr.parse::<IpNet>().ok()));
            self.ranges.sort();
            self.ranges.dedup();
        }
        if let Some(object) = Object::read(value).with_context(|| from.to_owned())? {
            object.put(&mut self.world);
        }
        Ok(())
    }
}

/// The pod that a workload of a manifest makes: who reads manifests asks about pods that are not there yet.
/// What a Deployment or Job makes are pods; of themselves they are none.
fn template(value: &Value) -> Option<Value> {
    let spec = match value["kind"].as_str()? {
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "Job"
        | "ReplicationController" => &value["spec"]["template"],
        "CronJob" => &value["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    let mut pod = spec.clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = value["metadata"]["name"].clone();
    pod["metadata"]["namespace"] = value["metadata"]["namespace"].clone();
    Object::read(&pod).ok().flatten()?;
    Some(pod)
}

fn of_cluster(kubeconfig: Option<&Path>) -> Result<Vec<Value>> {
    let kubeconfig = kubeconfig.map(Path::to_owned);
    let connection = Connection { kubeconfig, ..Connection::default() };
    survey::objects(&connection, &LISTS, PATIENCE).map_err(|(_, why)| {
        anyhow!(
            "the cluster cannot be asked: {why}; name its kubeconfig with --kubeconfig, or manifests in \
             its place (--file PATH, of a lab --from PATH)"
        )
    })
}

/// Everything in a file, or in a directory and those below it.
fn of_files(path: &Path) -> Result<Vec<(String, Value)>> {
    let files = files(path)?;
    if files.is_empty() {
        bail!("{} has no files that end in .yaml, .yml or .json", path.display());
    }
    let mut all = Vec::new();
    for file in files {
        let from = file.display().to_string();
        let text = std::fs::read_to_string(&file).with_context(|| from.clone())?;
        for value in documents(&text).with_context(|| from.clone())? {
            all.push((from.clone(), template(&value).unwrap_or(value)));
        }
    }
    Ok(all)
}

/// The files of a directory and those below it, in order; or the one file.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        let path = entry?.path();
        let is_manifest = path
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(|e| ["yaml", "yml", "json"].contains(&e));
        if path.is_dir() {
            all.extend(files(&path)?);
        } else if is_manifest {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// Addresses that are for nothing else (RFC 2544, RFC 5180), so that no block of addresses in a policy means
/// them by chance. Pods of the cluster that are `there` have those that they have.
fn give_addresses(world: &mut World, there: &BTreeSet<PodName>) {
    let bare = |pod: &&Pod| {
        let none = pod.addresses.is_empty() && !pod.host_network && !pod.ended;
        none && !there.contains(&pod.name)
    };
    let bare: Vec<Pod> = world.pods().filter(bare).cloned().collect();
    for (n, mut pod) in (1..).zip(bare) {
        let four = Ipv4Addr::from_bits(0xc612_0000 | (n & 0x1_ffff));
        let six = Ipv6Addr::from_bits((0x2001_0002_u128 << 96) | u128::from(n));
        pod.addresses = vec![four.into(), six.into()];
        world.set_pod(pod);
    }
}

/// The label that the API gives each namespace, be it in the manifests or not.
fn name_namespaces(world: &mut World) {
    let named = world.pods().map(|pod| pod.name.namespace.clone());
    let mut all: BTreeMap<Text, Labels> = named.map(|name| (name, Labels::new())).collect();
    all.extend(world.namespaces().map(|(name, labels)| (name.clone(), labels.clone())));
    for (name, mut labels) in all {
        labels.insert("kubernetes.io/metadata.name".into(), name.clone());
        world.set_namespace(name, labels);
    }
}
