//! Traffic between pods: same node and across nodes, on every attachment and road, beside traffic
//! between the nodes themselves and beside a bridge that Debian's reference plugin made.
//!
//! All contenders are up at the same time and take turns, round by round.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns::{self, NetNs};
use causeway_lab::{Binaries, Client, Plugin, Road, Spec, create_pod};
use causeway_types::Family;
use causeway_types::state::Attach;

use crate::Args;
use crate::report::{Series, publish};
use crate::traffic::{Ends, Kind, measure};

/// How long one measurement takes.
const TIME: Duration = Duration::from_millis(700);
/// What ratios are taken to.
const BASE: &str = "node to node";

/// Two ends whose traffic is measured.
struct Route {
    name: String,
    ends: Ends,
}

/// Runs the benchmark.
///
/// # Errors
/// When a lab cannot be made or two ends cannot talk.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rounds = args.count.unwrap_or(5);
    // Names and state of this run end with it, also when it is killed.
    causeway_lab::isolate()?;
    let mut labs = Vec::new();
    let result = measure_all(args, rounds, &mut labs);
    for lab in &labs {
        causeway_lab::down(lab)?;
    }
    result
}

fn measure_all(args: &Args, rounds: usize, labs: &mut Vec<String>) -> Result<()> {
    let binaries =
        Binaries { causeway: args.bin.join("causeway"), cni: args.bin.join("causeway-cni") };
    let mut paths = Vec::new();
    let wanted = [
        ("bd", "bridge, direct", Attach::Bridge, Road::Direct),
        ("rd", "routed, direct", Attach::Routed, Road::Direct),
        ("bv", "bridge, vxlan", Attach::Bridge, Road::Vxlan),
        ("rv", "routed, vxlan", Attach::Routed, Road::Vxlan),
    ];
    for (short, what, attach, road) in wanted {
        let spec = Spec {
            name: short.into(),
            nodes: 2,
            attach,
            plugin: if attach == Attach::Bridge { Plugin::Bridge } else { Plugin::Causeway },
            road,
            ..Spec::default()
        };
        eprintln!("bench: lab {short}: {what}");
        labs.push(short.to_owned());
        causeway_lab::up(&spec, &binaries, &mut |_| {})?;
        paths.extend(lab_paths(&spec, what, paths.is_empty())?);
    }
    let mut notes = vec![format!(
        "{rounds} rounds of {} ms each, interleaved; both ends of RR and CRR on one processor; MTU 1500 \
         (VXLAN 1450), veth underlay",
        TIME.as_millis()
    )];
    if args.reference.join("bridge").exists() {
        paths.extend(by_reference(&args.reference, "bd")?);
    } else {
        notes.push(format!("no reference plugins in {}", args.reference.display()));
    }
    let mut series = Vec::new();
    for kind in Kind::ALL {
        let (label, unit) = kind.label();
        for path in &paths {
            let base = format!("{label} {BASE}");
            let name = format!("{label} {}", path.name);
            let against = (name != base).then_some(base);
            series.push(Series::new(name, unit, against.as_deref()));
        }
    }
    for round in 0..rounds {
        eprintln!("bench: round {} of {rounds}", round + 1);
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for (p, path) in paths.iter().enumerate() {
                let value = measure(&path.ends, kind, TIME).with_context(|| path.name.clone())?;
                series[k * paths.len() + p].samples.push(value);
            }
        }
    }
    publish("net", &notes, &series, &args.results)
}

/// Same node and across nodes; for the first lab also node to node.
fn lab_paths(spec: &Spec, what: &str, first: bool) -> Result<Vec<Route>> {
    let client = Client::open(&spec.name)?;
    let patience = Duration::from_secs(10);
    let pod = |name: &str, node: &str| -> Result<(PathBuf, IpAddr)> {
        let pod = create_pod(&client, name, Some(node), &[], patience)?;
        let ip = *pod.ips.first().context("the pod has no address")?;
        Ok((pod.netns(&spec.name), ip))
    };
    let (a, _) = pod("a", "node-1")?;
    let (b, b_ip) = pod("b", "node-1")?;
    let (c, c_ip) = pod("c", "node-2")?;
    let ends = |client: &Path, server, addr| Ends {
        client: client.to_owned(),
        server,
        addr,
        port: 0,
        first: false,
    };
    let mut paths = Vec::new();
    if first {
        let node = |n: &str| spec.dirs().netns(n);
        let addr = spec.node_addr("node-2", Family::V4).addr();
        paths.push(Route { name: BASE.into(), ends: ends(&node("node-1"), node("node-2"), addr) });
    }
    // On one node the road makes no difference.
    if spec.road == Road::Direct {
        let attach = what.split(',').next().unwrap_or(what);
        paths.push(Route { name: format!("{attach}, same node"), ends: ends(&a, b, b_ip) });
    }
    paths.push(Route { name: format!("{what}, across"), ends: ends(&a, c, c_ip) });
    Ok(paths)
}

/// Two nodes on the underlay of a lab whose pods the reference plugin made, with the routes of the
/// tutorials.
fn by_reference(plugins: &Path, lab: &str) -> Result<Vec<Route>> {
    let names = PathBuf::from("/run/netns");
    for ns in ["cw-ref-1", "cw-ref-2", "cw-ref-a", "cw-ref-b", "cw-ref-c"] {
        netns::create_named(&names.join(ns)).map_err(|e| anyhow!("{e}"))?;
    }
    for (own, other) in [(1, 2), (2, 1)] {
        let node = format!("ip -n cw-ref-{own}");
        sh(&format!(
            "ip -n cw-{lab}-net link add ref{own} type veth peer name eth0 netns cw-ref-{own} && \
             ip -n cw-{lab}-net link set ref{own} master sw1 up && \
             {node} link set lo up && {node} link set eth0 up && \
             {node} addr add 192.168.1.20{own}/24 dev eth0 && \
             {node} route add 10.244.{other}.0/24 via 192.168.1.20{other}"
        ))?;
    }
    let mut made = Vec::new();
    for (pod, node) in [("a", 1), ("b", 1), ("c", 2)] {
        let conf = serde_json::json!({
            "cniVersion": "0.3.1", "name": "ref", "type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": false,
            "ipam": {"type": "host-local", "subnet": format!("10.244.{node}.0/24"),
                "dataDir": format!("/run/netns/.cw-ref-{node}"), "routes": [{"dst": "0.0.0.0/0"}]},
        });
        let ns = names.join(format!("cw-ref-{pod}"));
        let call = format!(
            "echo '{conf}' | CNI_COMMAND=ADD CNI_CONTAINERID={pod} CNI_NETNS={} CNI_IFNAME=eth0 \
             CNI_PATH={} {}/bridge",
            ns.display(),
            plugins.display(),
            plugins.display()
        );
        let node = NetNs::open(names.join(format!("cw-ref-{node}"))).map_err(|e| anyhow!("{e}"))?;
        let text = node.run(|| sh(&call)).map_err(|e| anyhow!("{e}"))??;
        let result: serde_json::Value =
            serde_json::from_str(&text).context("the reference's result")?;
        let ip = result["ips"][0]["address"].as_str().unwrap_or_default();
        let ip: ipnet::IpNet = ip.parse().with_context(|| format!("address {ip:?}"))?;
        made.push((ns, ip.addr()));
    }
    let ends = |server: usize| Ends {
        client: made[0].0.clone(),
        server: made[server].0.clone(),
        addr: made[server].1,
        port: 0,
        first: false,
    };
    Ok(vec![
        Route { name: "reference bridge, same node".into(), ends: ends(1) },
        Route { name: "reference bridge, routes, across".into(), ends: ends(2) },
    ])
}

fn sh(line: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", line]).output().context("sh")?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        bail!("{line}: {}", String::from_utf8_lossy(&said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
