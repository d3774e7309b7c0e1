use std::collections::BTreeMap;

use causeway_model::{Key, LinkKind, Object};
use causeway_types::state::Attach;
use causeway_types::{Cidr, IfName, Mtu};

use super::*;
use crate::input::{Former, Path, PluginType, TakenBridge, TakenOver, TakenTunnel};
use crate::node::{Outcome, node_objects};

const MACS: [&str; 2] = ["9a:00:00:00:00:02", "9a:00:00:00:00:06"];

fn name(n: u8) -> NodeName {
    format!("node-{n}").parse().unwrap()
}

fn node(n: u8) -> NodeInfo {
    let ip = |text: String| text.parse().unwrap();
    let cidr = |text: String| text.parse::<Cidr>().unwrap();
    NodeInfo {
        addresses: vec![ip(format!("192.168.1.{n}")), ip(format!("fd01::{n}"))],
        pod_cidrs: vec![cidr(format!("10.244.{n}.0/24")), cidr(format!("fd00:{n}::/64"))],
        ..NodeInfo::default()
    }
}

/// Node `n` as flannel leaves it, with addresses of its choice.
fn of_flannel(n: u8) -> NodeInfo {
    let data = MACS.map(|mac| format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"));
    let addresses = [format!("172.16.0.{n}"), format!("fd02::{n}")];
    let flannel = ends(|key| match key {
        BACKEND_TYPE => Some("vxlan"),
        BACKEND_DATA => Some(&data[0]),
        BACKEND_V6_DATA => Some(&data[1]),
        PUBLIC_IP => Some(&addresses[0]),
        PUBLIC_IPV6 => Some(&addresses[1]),
        _ => None,
    });
    NodeInfo { flannel, ..node(n) }
}

/// Node 1 with some peers, on an underlay that leads everywhere.
fn inputs(peers: impl IntoIterator<Item = (u8, NodeInfo)>) -> Inputs {
    let mut inputs = Inputs { me: Some(name(1)), boot_id: "b".into(), ..Inputs::default() };
    inputs.config.vni = Vni::new(1).unwrap();
    inputs.config.road = Road::Vxlan;
    inputs.config.attach = Attach::Bridge;
    inputs.config.plugin = PluginType::Bridge;
    inputs.view.nodes = peers.into_iter().map(|(n, info)| (name(n), info)).collect();
    let (dev, mtu): (IfName, _) = ("eth0".parse().unwrap(), Mtu::new(1500).unwrap());
    let all = inputs.view.nodes.values();
    let to = all.flat_map(|n| {
        n.addresses.iter().copied().chain(n.flannel.iter().map(|e| e.address)).collect::<Vec<_>>()
    });
    let path = |ip| (ip, Path { dev: dev.clone(), on_link: true, mtu });
    inputs.facts.paths = to.map(path).collect();
    let own = node(1);
    inputs.facts.addresses = own.addresses.iter().map(|ip| (dev.clone(), (*ip).into())).collect();
    inputs.facts.mtus = BTreeMap::from([(dev, mtu)]);
    inputs.view.nodes.entry(name(1)).or_insert(own);
    inputs
}

fn taken() -> TakenOver {
    let tunnel = |family, name: &str, mac: &str| TakenTunnel {
        family,
        name: name.parse().unwrap(),
        mac: mac.parse().unwrap(),
        vni: Vni::new(1).unwrap(),
        port: 8472,
    };
    TakenOver {
        from: Former::Flannel,
        boot_id: "b".into(),
        bridge: TakenBridge {
            name: "cni0".parse().unwrap(),
            mac: "16:00:00:00:00:01".parse().unwrap(),
        },
        tunnels: vec![
            tunnel(Family::V4, "flannel.1", "9e:00:00:00:00:04"),
            tunnel(Family::V6, "flannel-v6.1", "9e:00:00:00:00:06"),
        ],
        configurations: vec![],
    }
}

/// Device and gateway of the way to a subnet, the MAC behind the gateway, and where that is.
fn way(out: &Outcome, subnet: &str) -> (String, String, String) {
    let dst: Cidr = subnet.parse().unwrap();
    let metric = causeway_model::Route::default_metric(dst.family());
    let get = |key: &Key| out.desired.get(key).map(|e| e.object.clone());
    let Some(Object::Route(route)) = get(&Key::Route { table: 254, dst, metric }) else {
        panic!("no way to {subnet}: {:?}", out.problems)
    };
    let (dev, ip) = (route.dev.unwrap(), route.via.unwrap());
    let Some(Object::Neigh(neigh)) = get(&Key::Neigh { dev: dev.clone(), ip, proxy: false }) else {
        panic!("{ip} is not known")
    };
    let mac = neigh.mac.unwrap();
    let Some(Object::Fdb(fdb)) = get(&Key::Fdb { dev: dev.clone(), mac }) else {
        panic!("{mac} is nowhere")
    };
    (dev.to_string(), mac.to_string(), fdb.dst.unwrap().to_string())
}

fn told(out: &Outcome, key: &str) -> Option<String> {
    out.flannel.as_ref().expect("it is ours to say")[key].clone()
}

fn data(mac: impl std::fmt::Display) -> Option<String> {
    Some(format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"))
}

#[test]
fn what_cannot_be_read_is_no_end() {
    let read = |backend: &'static str, data: &'static str, ip: &'static str| {
        ends(|key| match key {
            BACKEND_TYPE => Some(backend),
            BACKEND_DATA => Some(data),
            PUBLIC_IP => Some(ip),
            _ => None,
        })
    };
    let good = r#"{"VNI":1,"VtepMAC":"9a:00:00:00:00:02"}"#;
    assert_eq!(read("vxlan", good, "192.168.1.2").len(), 1);
    for (backend, data, ip) in [
        ("host-gw", good, "192.168.1.2"),
        ("vxlan", "null", "192.168.1.2"),
        ("vxlan", "", "192.168.1.2"),
        ("vxlan", r#"{"VNI":0,"VtepMAC":"9a:00:00:00:00:02"}"#, "192.168.1.2"),
        ("vxlan", r#"{"VNI":1,"VtepMAC":"01:00:00:00:00:02"}"#, "192.168.1.2"),
        ("vxlan", good, "fd01::2"),
        ("vxlan", good, "somewhere"),
    ] {
        assert_eq!(read(backend, data, ip), [], "{backend} {data} {ip}");
    }
}

#[test]
fn a_node_beside_flannel_does_as_flannel_does() {
    let out = node_objects(&inputs([(2, of_flannel(2)), (3, node(3))]));
    assert!(out.known, "{:?}", out.problems);
    let strings = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(way(&out, "10.244.2.0/24"), strings("cw-vxlan", MACS[0], "172.16.0.2"));
    assert_eq!(way(&out, "fd00:2::/64"), strings("cw-vxlan6", MACS[1], "fd02::2"));
    // A node that knows nothing of flannel has one device.
    let mac = vtep_mac(&name(3)).to_string();
    assert_eq!(way(&out, "10.244.3.0/24"), strings("cw-vxlan", &mac, "192.168.1.3"));
    assert_eq!(way(&out, "fd00:3::/64"), strings("cw-vxlan", &mac, "192.168.1.3"));
    let own = data(vtep_mac(&name(1)));
    assert_eq!(told(&out, BACKEND_DATA), own);
    assert_eq!(told(&out, BACKEND_V6_DATA), own);
    assert_eq!(told(&out, PUBLIC_IP).as_deref(), Some("192.168.1.1"));
    assert_eq!(told(&out, PUBLIC_IPV6).as_deref(), Some("fd01::1"));
    assert_eq!(told(&out, MANAGED).as_deref(), Some("true"));
    let mtu = |dev: &str| match &out.desired.get(&Key::Link(dev.parse().unwrap())).unwrap().object {
        Object::Link(link) => link.mtu.unwrap().get(),
        _ => 0,
    };
    assert_eq!((mtu("cw-vxlan"), mtu("cw-vxlan6")), (1450, 1430));
}

#[test]
fn both_families_of_a_peer_that_tells_its_ends_are_taken_from_there() {
    let out = node_objects(&inputs([(2, of_flannel(2))]));
    let table = out.desired.iter().find_map(|(_, e)| match &e.object {
        Object::Table(table) => Some(table),
        _ => None,
    });
    let table = table.unwrap();
    for (set, size) in [("peers4", 1), ("peers6", 1), ("remote4", 1), ("remote6", 1)] {
        assert_eq!(table.sets[set].elements.len(), size, "{set}");
    }
    let text = causeway_model::nft::text::table(table);
    for dev in ["cw-vxlan", "cw-vxlan6"] {
        let closed = text.matches(&format!("iifname \"{dev}\"")).count();
        assert_eq!(closed, 2, "{dev}: {text}");
    }
}

#[test]
fn what_was_taken_over_keeps_its_name_and_mac() {
    let mut inputs = inputs([(2, of_flannel(2)), (3, node(3))]);
    inputs.taken = Some(taken());
    let out = node_objects(&inputs);
    assert_eq!(way(&out, "10.244.2.0/24").0, "flannel.1");
    assert_eq!(way(&out, "fd00:2::/64").0, "flannel-v6.1");
    assert_eq!(way(&out, "fd00:3::/64").0, "flannel.1", "by the device that node 3 has");
    assert_eq!(told(&out, BACKEND_DATA), data("9e:00:00:00:00:04"));
    assert_eq!(told(&out, BACKEND_V6_DATA), data("9e:00:00:00:00:06"));
    let link = |out: &Outcome, dev: &str| match &out
        .desired
        .get(&Key::Link(dev.parse().unwrap()))
        .expect(dev)
        .object
    {
        Object::Link(link) => link.clone(),
        _ => unreachable!(),
    };
    let device = link(&out, "flannel.1");
    assert_eq!(device.mac.unwrap().to_string(), "9e:00:00:00:00:04");
    let LinkKind::Vxlan(vxlan) = device.kind else { panic!("{device:?}") };
    assert_eq!(
        (vxlan.vni.get(), vxlan.port, vxlan.local.to_string()),
        (1, 8472, "192.168.1.1".into())
    );
    let addr = |dev: &str, addr: &str| {
        let key = Key::Addr { dev: dev.parse().unwrap(), addr: addr.parse().unwrap() };
        out.desired.get(&key).is_some()
    };
    assert!(addr("flannel.1", "10.244.1.0/32") && addr("flannel.1", "10.244.1.1/32"));
    assert!(addr("flannel-v6.1", "fd00:1::/128") && !addr("flannel.1", "fd00:1::1/128"));
    // The bridge's MAC is that of the pods' time, and theirs alone.
    assert_eq!(link(&out, "cni0").mac, Some(taken().bridge.mac));
    inputs.boot_id = "next".into();
    let after = node_objects(&inputs);
    assert_ne!(link(&after, "cni0").mac, Some(taken().bridge.mac));
    assert_eq!(link(&after, "flannel.1"), link(&out, "flannel.1"));
    // Also when it is alone: nobody else knows its MAC.
    inputs.view.nodes.retain(|n, _| *n == name(1));
    assert_eq!(told(&node_objects(&inputs), BACKEND_DATA), data("9e:00:00:00:00:04"));
}

#[test]
fn annotations_go_when_nobody_goes_by_them() {
    let derived = |n| FlannelEnd {
        vni: Vni::new(1).unwrap(),
        mac: vtep_mac(&name(n)),
        address: format!("192.168.1.{n}").parse().unwrap(),
    };
    let ours = |n: u8| NodeInfo { flannel: vec![derived(n)], ..node(n) };
    // Each was written because of the other two, and flannel's is gone.
    let mut all = inputs([(1, ours(1)), (2, ours(2))]);
    let out = node_objects(&all);
    let gone: Annotations = KEYS.iter().map(|key| ((*key).to_owned(), None)).collect();
    assert_eq!(out.flannel, Some(gone.clone()));
    assert_eq!(way(&out, "fd00:2::/64").0, "cw-vxlan", "and so is the second device");
    // One that flannel wrote in its time, for a device that is there no more.
    let stale = |all: &mut Inputs| {
        let own = all.view.nodes.get_mut(&name(1)).unwrap();
        own.flannel = of_flannel(1).flannel;
    };
    stale(&mut all);
    assert_eq!(node_objects(&all).flannel, Some(gone));
    // Another network's annotations are not ours to touch.
    all.config.vni = Vni::new(4096).unwrap();
    assert_eq!(node_objects(&all).flannel, None);
    all.config.vni = Vni::new(1).unwrap();
    all.config.road = Road::Direct;
    assert_eq!(node_objects(&all).flannel, None);
}

#[test]
fn another_network_identifier_is_another_network() {
    let mut inputs = inputs([(2, of_flannel(2))]);
    inputs.config.vni = Vni::DEFAULT;
    let out = node_objects(&inputs);
    let mac = vtep_mac(&name(2)).to_string();
    assert_eq!(way(&out, "10.244.2.0/24"), ("cw-vxlan".into(), mac, "192.168.1.2".into()));
    assert_eq!(out.flannel, None);
}

#[test]
fn a_device_of_flannel_that_nobody_took_over_is_left_alone() {
    let mut inputs = inputs([(2, of_flannel(2))]);
    inputs.facts.tunnels_of_others = vec!["flannel.1".parse().unwrap()];
    let out = node_objects(&inputs);
    assert!(!out.known && out.desired.is_empty() && out.flannel.is_none());
    assert!(
        out.problems[0].message.contains("causeway migrate --from flannel"),
        "{:?}",
        out.problems
    );
}

#[test]
fn roads_to_nodes_of_flannel_are_tunnels() {
    let mut inputs = inputs([(2, of_flannel(2)), (3, node(3))]);
    inputs.config.road = Road::Auto;
    let out = node_objects(&inputs);
    assert_eq!(way(&out, "10.244.2.0/24").0, "cw-vxlan");
    let dst: Cidr = "10.244.3.0/24".parse().unwrap();
    let Some(entry) = out.desired.get(&Key::Route { table: 254, dst, metric: 0 }) else { panic!() };
    assert!(matches!(&entry.object, Object::Route(r) if r.dev == Some("eth0".parse().unwrap())));
}
