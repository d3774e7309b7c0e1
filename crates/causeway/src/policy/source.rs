//! Where policies come from: manifests, or a cluster.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_cluster::Connection;
use causeway_cluster::survey::{self, List};
use causeway_lab::documents;
use causeway_policy::expect::{self, Expectation};
use causeway_policy::read::Object;
use causeway_policy::{Labels, Pod, Text, World};
use ipnet::IpNet;
use serde_json::Value;

/// How long a step on the way to the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What policies go by.
const LISTS: [List; 5] = [
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

/// Whose policies.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Manifests: files (YAML or JSON), or directories of them. Without this the cluster is asked.
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

impl Source {
    /// Of manifests where some are named, else of the cluster.
    pub(crate) fn read(&self) -> Result<Read> {
        if self.files.is_empty() { self.cluster() } else { from_files(&self.files) }
    }

    /// Of the cluster: `cluster`, or of a file or directory.
    pub(crate) fn named(&self, name: &str) -> Result<Read> {
        if name == "cluster" { self.cluster() } else { from_files(&[PathBuf::from(name)]) }
    }

    /// Whether it is the cluster that is asked.
    pub(crate) fn is_cluster(&self) -> bool {
        self.files.is_empty()
    }

    pub(crate) fn cluster(&self) -> Result<Read> {
        let connection =
            Connection { kubeconfig: self.kubeconfig.clone(), ..Connection::default() };
        let objects = survey::objects(&connection, &LISTS, PATIENCE).map_err(|(_, why)| {
            anyhow!(
                "the cluster cannot be asked: {why}; name its kubeconfig with --kubeconfig, or \
                 manifests with --file"
            )
        })?;
        let mut read = Read::default();
        for object in &objects {
            read.take("the cluster", object)?;
        }
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
        match Object::read(value).with_context(|| from.to_owned())? {
            Some(object) => object.put(&mut self.world),
            // What a Deployment or Job makes are pods; of themselves they are none.
            None => {
                if let Some(pod) = template(value) {
                    pod.put(&mut self.world);
                }
            }
        }
        Ok(())
    }
}

/// The pod that a workload of a manifest makes, with addresses of its own: who reads manifests asks about
/// pods that are not there yet.
fn template(value: &Value) -> Option<Object> {
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
    Object::read(&pod).ok().flatten()
}

/// Everything in files and directories. Pods without an address get one: policies go by addresses, and
/// manifests of pods have none yet.
fn from_files(paths: &[PathBuf]) -> Result<Read> {
    let mut read = Read::default();
    for path in paths {
        let all = files(path)?;
        if all.is_empty() {
            bail!("{} has no files that end in .yaml, .yml or .json", path.display());
        }
        for file in all {
            let from = file.display().to_string();
            let text = std::fs::read_to_string(&file).with_context(|| from.clone())?;
            for value in documents(&text).with_context(|| from.clone())? {
                read.take(&from, &value)?;
            }
        }
    }
    give_addresses(&mut read.world);
    name_namespaces(&mut read.world);
    Ok(read)
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
/// them by chance.
fn give_addresses(world: &mut World) {
    let bare = |pod: &&Pod| pod.addresses.is_empty() && !pod.host_network && !pod.ended;
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
