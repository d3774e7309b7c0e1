//! What a packet pays for policies: connections between pods of two nodes, and of one, under as many policies as
//! there may be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::conntrack::Conntrack;
use causeway_kernel::netns::NetNs;
use causeway_lab::{Client, Pod, Road, Spec};
use http::Method;
use serde_json::{Value, json};

use super::by_hand::{self, Isolated, Manner};
use super::objects::{self, PORTS};
use super::{Labs, Size};
use crate::cni::turns;
use crate::report::Series;
use crate::traffic::{Ends, Kind, compare};

/// How long two pairs of pods are compared at a time.
const TIME: Duration = Duration::from_millis(400);
const KINDS: [Kind; 2] = [Kind::Rr, Kind::Crr];
const NODES: [&str; 2] = ["node-1", "node-2"];
/// How often an agent is asked whether it has done all.
const ASK: Duration = Duration::from_millis(100);
/// The pods of a lab's own nodes are in this block.
const OWN: &str = "10.244.0.0/16";

const NO_TABLES: &str = "no tables at all";
const NO_POLICIES: &str = "no policies";

/// A name, and the one that it is compared with.
type Compared = (String, String);

/// Two pods, and whom they are compared with.
struct Flow {
    name: String,
    base: Option<String>,
    ends: Ends,
    /// The nodes that track its connections.
    nodes: Vec<PathBuf>,
}

/// Makes all contenders, then measures them in turns.
///
/// # Errors
/// When a lab cannot be made or two pods cannot talk.
pub(crate) fn run(labs: &mut Labs, size: &Size, rounds: usize) -> Result<Vec<Series>> {
    let mut flows = Vec::new();
    flows.extend(without_tables(labs)?);
    flows.extend(without_policies(labs)?);
    let (mine, one) = one_policy(labs)?;
    flows.extend(mine);
    let (mine, flat) = many_policies(labs, size, &one)?;
    flows.extend(mine);
    for manner in [Manner::Chains, Manner::Sets] {
        flows.extend(made_by_hand(labs, size, manner)?);
    }
    let name = |kind: Kind, flow: &str| format!("{} {flow}", kind.label().0);
    let mut series = Vec::new();
    for kind in KINDS {
        for flow in &flows {
            let base = flow.base.as_deref().map(|base| name(kind, base));
            series.push(Series::new(name(kind, &flow.name), kind.label().1, base.as_deref()));
        }
    }
    let of_flows = flows.iter().filter_map(|f| Some((f.name.clone(), f.base.clone()?)));
    let compared: Vec<Compared> = of_flows.chain(flat).collect();
    let find = |name: &str| flows.iter().position(|f| f.name == name).context("no such pods");
    let mut ratios = Vec::new();
    for kind in KINDS {
        for (one, base) in &compared {
            let text = format!("{}, beside {}", name(kind, one), name(kind, base));
            ratios.push(Series::new(text, "%", None));
        }
    }
    for round in 0..rounds {
        eprintln!("bench: round {} of {rounds}", round + 1);
        for (k, kind) in KINDS.into_iter().enumerate() {
            for c in turns(compared.len(), round * KINDS.len() + k) {
                let (one, base) = &compared[c];
                let both = [find(one)?, find(base)?];
                let port = PORTS.start() + u16::try_from((round * 2 + k) % PORTS.len())?;
                // Where both are of one pod, each needs a port of its own.
                let next = PORTS.start() + u16::try_from((round * 2 + k + 1) % PORTS.len())?;
                let [a, b] = both.map(|f| &flows[f]);
                let ends = [(a, port), (b, next)].map(|(f, port)| Ends { port, ..f.ends.clone() });
                let found = compare([&ends[0], &ends[1]], kind, TIME)
                    .with_context(|| format!("{one} beside {base}"))?;
                for (f, rate) in both.into_iter().zip(found) {
                    series[k * flows.len() + f].samples.push(rate);
                }
                ratios[k * compared.len() + c].samples.push(found[0] / found[1] * 100.0);
                [a, b].into_iter().try_for_each(forget)?;
                // Others have to run as well: the kernel lets them, after a second of waiting, in the
                // middle of a measurement.
                thread::sleep(Duration::from_millis(30));
            }
        }
    }
    series.extend(ratios);
    Ok(series)
}

/// What a measurement leaves in the kernel's table of connections is not to be in the next one's way.
fn forget(flow: &Flow) -> Result<()> {
    for node in &flow.nodes {
        let ns = NetNs::open(node).map_err(|e| anyhow!("{e}"))?;
        let mut table = Conntrack::open_in(&ns).map_err(|e| anyhow!("{e}"))?;
        table.delete_for(&[flow.ends.addr], 0).map_err(|e| anyhow!("{e}"))?;
    }
    Ok(())
}

/// Two nodes, pods routed and without a tunnel.
fn lab(labs: &mut Labs, name: &str, what: &str) -> Result<(Spec, Client)> {
    let spec = Spec { name: name.into(), nodes: 2, road: Road::Direct, ..Spec::default() };
    labs.up(&spec, what)?;
    let client = Client::open(name)?;
    Ok((spec, client))
}

/// A client on the first node and a server on the second; where `near`, one beside the client too.
struct Pair {
    client: Pod,
    server: Pod,
    near: Option<Pod>,
}

impl Pair {
    /// In a namespace of their own, which is made.
    fn start(client: &Client, namespace: &str, group: usize, near: bool) -> Result<Self> {
        client.post("/api/v1/namespaces", &objects::namespace(namespace, &json!({})))?;
        let labels = json!({"group": format!("g{group}")});
        let run = |name: &str, node: &str| {
            let path = format!("/api/v1/namespaces/{namespace}/pods");
            client.post(&path, &objects::pod(namespace, name, node, &labels))?;
            objects::running(client, &format!("{namespace}/{name}"))
        };
        Ok(Self {
            client: run("c", NODES[0])?,
            server: run("s", NODES[1])?,
            near: near.then(|| run("n", NODES[0])).transpose()?,
        })
    }

    fn flow(&self, spec: &Spec, name: impl Into<String>, base: Option<&str>) -> Result<Flow> {
        self.flow_to(spec, &self.server, name.into(), base)
    }

    fn flow_to(&self, spec: &Spec, to: &Pod, name: String, base: Option<&str>) -> Result<Flow> {
        let ends = Ends {
            client: self.client.netns(&spec.name),
            server: to.netns(&spec.name),
            addr: address(to)?,
            port: 0,
            first: true,
        };
        let nodes = NODES.map(|node| spec.dirs().netns(node)).into();
        Ok(Flow { name, base: base.map(str::to_owned), ends, nodes })
    }

    /// The addresses of both ends of what goes from node to node.
    fn addresses(&self) -> Result<Vec<String>> {
        Ok(vec![address(&self.client)?.to_string(), address(&self.server)?.to_string()])
    }
}

fn address(pod: &Pod) -> Result<IpAddr> {
    pod.ips.first().copied().context("the pod has no address")
}

/// Waits until the agents of both nodes enforce so many policies.
fn settled(spec: &Spec, policies: usize) -> Result<()> {
    for node in NODES {
        let socket = spec.dirs().node(node).join("run-causeway/agent.sock");
        objects::enforced(&socket, policies, ASK).with_context(|| node.to_owned())?;
    }
    Ok(())
}

/// The bare kernel: nothing is tracked.
fn without_tables(labs: &mut Labs) -> Result<Vec<Flow>> {
    let (spec, client) = lab(labs, "pnone", NO_TABLES)?;
    let pair = Pair::start(&client, "open", 0, false)?;
    for node in spec.node_names() {
        client.control(Method::POST, &format!("/agents/{node}/stop"))?;
        let ns = NetNs::open(spec.dirs().netns(&node)).map_err(|e| anyhow!("{e}"))?;
        let flush = || Command::new("nft").args(["flush", "ruleset"]).status();
        if !ns.run(flush).map_err(|e| anyhow!("{e}"))??.success() {
            bail!("nft flush ruleset fails on {node}");
        }
    }
    Ok(vec![pair.flow(&spec, NO_TABLES, None)?])
}

/// The agent's other tables: connections are tracked for masquerade.
fn without_policies(labs: &mut Labs) -> Result<Vec<Flow>> {
    let (spec, client) = lab(labs, "pplain", NO_POLICIES)?;
    let pair = Pair::start(&client, "open", 0, false)?;
    Ok(vec![pair.flow(&spec, NO_POLICIES, Some(NO_TABLES))?])
}

/// One policy: pods that it selects beside pods that it does not. Answers the name of the former too.
fn one_policy(labs: &mut Labs) -> Result<(Vec<Flow>, String)> {
    let (spec, client) = lab(labs, "pone", "1 policy in the cluster")?;
    let open = Pair::start(&client, "open", 0, false)?;
    let one = Pair::start(&client, "one", 0, false)?;
    objects::load(&client, group_policies("one", 0..1))?;
    settled(&spec, 1)?;
    let base = "not selected, 1 policy in the cluster";
    let name = "1 policy on the pod, 1 in the cluster".to_owned();
    let flows =
        vec![open.flow(&spec, base, Some(NO_TABLES))?, one.flow(&spec, name.clone(), Some(base))?];
    Ok((flows, name))
}

/// As many as there may be in a cluster, on one pod, and in one list of blocks. Answers too which are to be as fast
/// as which: `single` is the one of a cluster without others.
fn many_policies(labs: &mut Labs, size: &Size, single: &str) -> Result<(Vec<Flow>, Vec<Compared>)> {
    let all = size.policies;
    let (spec, client) = lab(labs, "pmany", &format!("{all} policies in the cluster"))?;
    let open = Pair::start(&client, "open", 0, true)?;
    let one = Pair::start(&client, "one", 0, true)?;
    let many = Pair::start(&client, "many", size.of_pod / 2, false)?;
    let blocks = Pair::start(&client, "blocks", 0, false)?;
    let far = (0..size.of_pod * 2).map(|n| {
        let labels = json!({"group": format!("g{}", n / 2)});
        let ip = far_address(n);
        objects::far_pod("many", &format!("far-{n}"), "far", &labels, &ip)
    });
    objects::load(&client, far)?;
    let peers: Vec<Value> =
        block_list(size.blocks).iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
    let by_blocks = objects::policy("blocks", "b", &objects::both_ways(&json!({}), &peers));
    // The others are of namespaces without pods on these nodes.
    let rest = all.saturating_sub(size.of_pod + 2);
    let elsewhere: Vec<String> = (0..rest.div_ceil(100)).map(|n| format!("else-{n}")).collect();
    objects::load(&client, elsewhere.iter().map(|name| objects::namespace(name, &json!({}))))?;
    let others = (0..rest).map(|n| {
        let name = format!("p-{n}");
        let labels = json!({"app": format!("a{}", n % 10)});
        let spec =
            objects::both_ways(&json!({"matchLabels": labels}), &[objects::pods_with(&labels)]);
        objects::policy(&elsewhere[n / 100], &name, &spec)
    });
    let mine = group_policies("one", 0..1).chain(group_policies("many", 0..size.of_pod));
    objects::load(&client, mine.chain([by_blocks]).chain(others))?;
    settled(&spec, all.max(size.of_pod + 2))?;

    let base = format!("not selected, {all} policies in the cluster");
    let own = format!("1 policy on the pod, {all} in the cluster");
    let mut flows = vec![
        open.flow(&spec, base.clone(), Some(NO_TABLES))?,
        one.flow(&spec, own.clone(), Some(&base))?,
        many.flow(&spec, format!("{} policies on the pod", size.of_pod), Some(&base))?,
        blocks.flow(&spec, format!("a list of {} blocks", size.blocks), Some(&base))?,
    ];
    let near = "same node, not selected";
    for (pair, name, base) in
        [(&open, near, None), (&one, "same node, 1 policy on both", Some(near))]
    {
        let to = pair.near.as_ref().context("a pod beside the client")?;
        flows.push(pair.flow_to(&spec, to, name.to_owned(), base)?);
    }
    let flat = [(1, single), (2, own.as_str()), (3, own.as_str())];
    let flat = flat.map(|(n, base)| (flows[n].name.clone(), base.to_owned()));
    Ok((flows, flat.into()))
}

/// The same by rules of other kinds.
fn made_by_hand(labs: &mut Labs, size: &Size, manner: Manner) -> Result<Vec<Flow>> {
    let (short, what) = match manner {
        Manner::Chains => ("pchains", "by hand, rules (iptables)"),
        Manner::Sets => ("psets", "by hand, sets (nft)"),
    };
    let (spec, client) = lab(labs, short, what)?;
    let open = Pair::start(&client, "open", 0, false)?;
    let one = Pair::start(&client, "one", 0, false)?;
    let many = Pair::start(&client, "many", 0, false)?;
    let blocks = Pair::start(&client, "blocks", 0, false)?;
    let of_pod: Result<Vec<Vec<String>>> = (0..size.of_pod)
        .map(|n| match n == size.of_pod / 2 {
            true => many.addresses(),
            false => Ok(vec![far_address(2 * n), far_address(2 * n + 1)]),
        })
        .collect();
    let all = [
        ("one", &one, vec![one.addresses()?]),
        ("many", &many, of_pod?),
        ("blocks", &blocks, vec![block_list(size.blocks)]),
    ];
    for (n, node) in NODES.into_iter().enumerate() {
        let pods = all.iter().map(|(name, pair, policies)| {
            let pod = [&pair.client, &pair.server][n];
            let (address, policies) = (address(pod)?.to_string(), policies.clone());
            Ok(Isolated { name, address, policies })
        });
        let pods: Result<Vec<Isolated<'_>>> = pods.collect();
        by_hand::load(&spec.dirs().netns(node), manner, &pods?).with_context(|| what.to_owned())?;
    }
    let base = format!("{what}: not selected");
    Ok(vec![
        open.flow(&spec, base.clone(), Some(NO_TABLES))?,
        one.flow(&spec, format!("{what}: 1 policy on the pod"), Some(&base))?,
        many.flow(&spec, format!("{what}: {} policies on the pod", size.of_pod), Some(&base))?,
        blocks.flow(&spec, format!("{what}: a list of {} blocks", size.blocks), Some(&base))?,
    ])
}

/// Policies of all pods of a namespace, each for the pods of a group of it.
fn group_policies(
    namespace: &'static str,
    groups: std::ops::Range<usize>,
) -> impl Iterator<Item = Value> {
    groups.map(move |n| {
        let peers = [objects::pods_with(&json!({"group": format!("g{n}")}))];
        objects::policy(namespace, &format!("p-{n}"), &objects::both_ways(&json!({}), &peers))
    })
}

/// The addresses of pods that are objects and no more.
fn far_address(n: usize) -> String {
    format!("10.250.{}.{}", n / 250, n % 250 + 1)
}

/// Blocks that cannot be merged. The one of the lab's pods is in the middle, for who looks at one after the other.
fn block_list(number: usize) -> Vec<String> {
    let block = |n: usize| match n == number / 2 {
        true => OWN.to_owned(),
        false => format!("100.{}.{}.{}/28", 64 + n / 2048, n / 8 % 256, n % 8 * 32),
    };
    (0..number).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart() {
        let list = block_list(10_000);
        let mut nets: Vec<ipnet::IpNet> = list.iter().map(|text| text.parse().unwrap()).collect();
        nets.sort();
        nets.dedup();
        assert_eq!(ipnet::IpNet::aggregate(&nets).len(), list.len());
    }
}
