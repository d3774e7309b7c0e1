//! A node's network as the shell script that would build it by hand: for reading, for learning,
//! and as a last resort.

use std::fmt::Write;

use causeway_model::nft::text;
use causeway_model::{
    Addr, Desired, Entry, Fdb, Link, LinkKind, Neigh, Object, PortFlags, Route, RouteKind,
    RouteScope, Sysctl,
};
use causeway_types::state::AttachmentRecord;
use causeway_types::{Family, NodeName};

/// One pod: its record, what its namespace holds.
#[derive(Clone, Debug)]
pub struct PodScript<'a> {
    /// The record that the plugin wrote.
    pub record: &'a AttachmentRecord,
    /// What the pod's namespace holds.
    pub inside: Desired,
}

/// Renders POSIX shell. Run by root on a node without Causeway it builds the same network:
/// `desired` holds the node's objects, those of its pods included.
pub fn render(node: &NodeName, desired: &Desired, pods: &[PodScript<'_>]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "#!/bin/sh\n\
         # The network of node {node}, step by step, in plain ip, bridge, sysctl and nft.\n\
         # Written by `causeway node script`. The steps come in the order in which they are safe:\n\
         # filters before what they filter, routes and forwarding last.\n\
         set -eu"
    );
    let mut entries: Vec<&Entry> = desired.iter().map(|(_, e)| e).collect();
    // A stable sort: inside a stage the order of keys stays.
    entries.sort_by_key(|e| stage(&e.object));
    let mut heading = "";
    for entry in &entries {
        let title = section(stage(&entry.object));
        if title != heading {
            let _ = writeln!(out, "\n# --- {title}");
            heading = title;
        }
        step(&mut out, entry, None, pods);
    }
    for pod in pods {
        inside(&mut out, pod);
    }
    out
}

/// The order of `plan`, said once more for people: crate `plan` builds on this one's output, not
/// the other way round.
fn stage(object: &Object) -> u8 {
    match object {
        Object::Table(t) if t.family == causeway_model::nft::NftFamily::Inet => 0,
        Object::Link(l) => match l.kind {
            LinkKind::Veth { .. } => 2,
            _ => 1,
        },
        Object::Sysctl(s) if s.path.ends_with("ip_forward") => 8,
        Object::Sysctl(s) if s.path == "net/ipv6/conf/all/forwarding" => 8,
        Object::Sysctl(_) => 3,
        Object::Addr(_) => 4,
        Object::Neigh(_) | Object::Fdb(_) => 5,
        Object::Table(_) => 6,
        Object::Route(_) => 7,
    }
}

fn section(stage: u8) -> &'static str {
    match stage {
        0 => "filters and masquerade",
        1 => "devices of the node",
        2 => "pods: a namespace each, and a veth pair into it",
        3 => "kernel parameters of devices",
        4 => "addresses of the node",
        5 => "who is where: neighbours and forwarding entries",
        6 => "what each pod may send",
        7 => "routes",
        _ => "forwarding",
    }
}

fn step(out: &mut String, entry: &Entry, ns: Option<&str>, pods: &[PodScript<'_>]) {
    if !entry.why.is_empty() {
        let _ = writeln!(out, "\n# {}", entry.why);
    }
    let ip = ns.map_or("ip".to_owned(), |ns| format!("ip -n {ns}"));
    match &entry.object {
        Object::Link(l) => link(out, l, &ip, pods),
        Object::Sysctl(Sysctl { path, value }) => {
            let _ = writeln!(out, "sysctl -q -w {path}={value}");
        }
        Object::Addr(Addr { dev, addr, .. }) => {
            let nodad = if Family::of(addr.addr()) == Family::V6 { " nodad" } else { "" };
            let _ = writeln!(out, "{ip} addr replace {addr} dev {dev}{nodad}");
        }
        Object::Neigh(n) => neigh(out, n, &ip),
        Object::Fdb(f) => fdb(out, f),
        Object::Table(t) => {
            let _ = writeln!(out, "nft -f - <<'NFT'\n{}NFT", text::table(t));
        }
        Object::Route(r) => route(out, r, &ip),
    }
}

fn link(out: &mut String, l: &Link, ip: &str, pods: &[PodScript<'_>]) {
    let name = &l.name;
    let mtu = l.mtu.map_or(String::new(), |m| format!(" mtu {m}"));
    let mac = l.mac.map_or(String::new(), |m| format!(" address {m}"));
    match &l.kind {
        LinkKind::Bridge => {
            let _ = writeln!(out, "{ip} link add {name}{mac}{mtu} type bridge");
        }
        LinkKind::Vxlan(v) => {
            let (vni, port, local) = (v.vni, v.port, v.local);
            let _ = writeln!(
                out,
                "{ip} link add {name}{mac}{mtu} type vxlan id {vni} dstport {port} local {local} \
                 nolearning"
            );
        }
        LinkKind::Veth { peer: Some(peer), peer_mac, peer_netns } => {
            let pod = pods.iter().find(|p| p.record.host_ifname == *name);
            let ns = pod.map(|p| ns_name(p.record)).or(peer_netns.clone()).unwrap_or_default();
            let peer_mac = peer_mac.map_or(String::new(), |m| format!(" address {m}"));
            let _ = writeln!(out, "ip netns add {ns}");
            let _ = writeln!(
                out,
                "{ip} link add {name}{mac}{mtu} numtxqueues 1 numrxqueues 1 type veth \
                 peer name {peer}{peer_mac}{mtu} numtxqueues 1 numrxqueues 1 netns {ns}"
            );
        }
        LinkKind::Veth { peer: None, .. } | LinkKind::Other(_) => {}
    }
    if let Some(master) = &l.master {
        let _ = writeln!(out, "{ip} link set {name} master {master}");
    }
    if let Some(PortFlags { isolated, hairpin, learning, flood }) = l.port {
        let on = |b: bool| if b { "on" } else { "off" };
        let _ = writeln!(
            out,
            "bridge link set dev {name} isolated {} hairpin {} learning {} flood {f} \
             mcast_flood {f} bcast_flood {f}",
            on(isolated),
            on(hairpin),
            on(learning),
            f = on(flood)
        );
    }
    if l.up {
        let _ = writeln!(out, "{ip} link set {name} up");
    }
}

fn neigh(out: &mut String, n: &Neigh, ip: &str) {
    let (to, dev) = (n.ip, &n.dev);
    let _ = match (n.proxy, n.mac) {
        (true, _) => writeln!(out, "{ip} neigh replace proxy {to} dev {dev}"),
        (false, Some(mac)) => {
            writeln!(out, "{ip} neigh replace {to} lladdr {mac} dev {dev} nud permanent")
        }
        (false, None) => Ok(()),
    };
}

fn fdb(out: &mut String, f: &Fdb) {
    let (mac, dev) = (f.mac, &f.dev);
    let _ = match f.dst {
        Some(dst) => writeln!(out, "bridge fdb replace {mac} dev {dev} dst {dst} self permanent"),
        None => writeln!(out, "bridge fdb replace {mac} dev {dev} master static"),
    };
}

fn route(out: &mut String, r: &Route, ip: &str) {
    let mut words = vec![ip.to_owned()];
    if r.family() == Family::V6 {
        words.push("-6".to_owned());
    }
    words.push("route replace".to_owned());
    if r.kind == RouteKind::Unreachable {
        words.push("unreachable".to_owned());
    }
    words.push(r.dst.to_string());
    words.extend(r.via.map(|via| format!("via {via}")));
    words.extend(r.dev.as_ref().map(|dev| format!("dev {dev}")));
    if r.onlink {
        words.push("onlink".to_owned());
    }
    words.extend(r.src.map(|src| format!("src {src}")));
    if r.family() == Family::V4 && r.scope == RouteScope::Link {
        words.push("scope link".to_owned());
    }
    words.push(format!("proto {}", r.protocol));
    if r.metric != Route::default_metric(r.family()) {
        words.push(format!("metric {}", r.metric));
    }
    words.extend(r.mtu.map(|mtu| format!("mtu {mtu}")));
    words.extend(r.advmss.map(|size| format!("advmss {size}")));
    let _ = writeln!(out, "{}", words.join(" "));
}

/// The name of a pod's namespace: the last part of the path that the runtime gave.
fn ns_name(record: &AttachmentRecord) -> String {
    record.netns.rsplit('/').next().unwrap_or(&record.container_id).to_owned()
}

fn inside(out: &mut String, pod: &PodScript<'_>) {
    let ns = ns_name(pod.record);
    let _ = writeln!(out, "\n# --- inside pod {}", pod.record.owner_name());
    let _ = writeln!(out, "ip -n {ns} link set lo up");
    let mut entries: Vec<&Entry> = pod.inside.iter().map(|(_, e)| e).collect();
    // The gateway's own route before the one that goes by it.
    let via = |o: &Object| matches!(o, Object::Route(r) if r.via.is_some());
    entries.sort_by_key(|e| (stage(&e.object), via(&e.object)));
    for entry in entries {
        step(out, entry, Some(&ns), &[]);
    }
}
