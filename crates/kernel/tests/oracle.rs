//! What is observed against what `ip -j` and `bridge -j` print, on a namespace with some of
//! everything; and whole plans, which leave nothing to do.

mod common;

use causeway_kernel::{Handle, Scope};
use causeway_model::nft::{Base, Chain, ChainType, Hook, NftFamily, NftTable, Policy};
use causeway_model::{
    Desired, Fdb, Key, LinkKind, Neigh, Object, Owner, PortFlags, Route, RouteKind, RouteScope,
    Sysctl,
};
use causeway_plan::{Op, Ownership, TableId, plan, withdraw};
use causeway_types::Mtu;
use common::*;
use serde_json::Value;

/// A node with a bridge, a served port and a tunnel, in both families.
fn node() -> Vec<Object> {
    let mut br = bridge("cw-br");
    br.mac = Some(mac("02:00:00:00:00:01"));
    br.mtu = Some(Mtu::new(1450).unwrap());
    let mut port = veth("cw-a", "cw-b");
    port.master = Some(name("cw-br"));
    port.port = Some(PortFlags::SERVED);
    port.mtu = Some(Mtu::new(1450).unwrap());
    let mut all = vec![
        Object::Link(br),
        Object::Link(port),
        Object::Link(second_end("cw-b")),
        Object::Link(veth("cw-up", "cw-z")),
        Object::Link(second_end("cw-z")),
        Object::Link(vxlan("cw-vx", "192.168.9.1")),
        Object::Sysctl(Sysctl {
            path: "net/ipv4/conf/cw-br/proxy_arp_pvlan".to_owned(),
            value: "1".to_owned(),
        }),
    ];
    for text in ["10.244.1.1/24", "fd00:244:1::1/64"] {
        all.push(addr("cw-br", text));
    }
    for text in ["192.168.9.1/24", "fd09::1/64"] {
        all.push(addr("cw-up", text));
    }
    for (pod, own, peer, via) in [
        ("10.244.1.7", "10.244.1.1", "10.244.2.0/24", "10.244.2.1"),
        ("fd00:244:1::7", "fd00:244:1::1", "fd00:244:2::/64", "fd00:244:2::1"),
    ] {
        let neigh = |dev: &str, ip: &str, proxy: bool| {
            Object::Neigh(Neigh {
                dev: name(dev),
                ip: ip.parse().unwrap(),
                mac: (!proxy).then(|| mac("02:00:00:00:00:07")),
                proxy,
                permanent: true,
            })
        };
        all.extend([neigh("cw-br", pod, false), neigh("cw-vx", via, false)]);
        if pod.contains(':') {
            all.push(neigh("cw-br", pod, true));
        }
        all.push(Object::Route(Route {
            onlink: true,
            src: Some(own.parse().unwrap()),
            ..route_via(peer, via, "cw-vx")
        }));
    }
    for (net, via) in [("10.244.3.0/24", "192.168.9.3"), ("fd00:244:3::/64", "fd09::3")] {
        all.push(Object::Route(route_via(net, via, "cw-up")));
    }
    for net in ["10.244.0.0/16", "fd00:244::/48"] {
        let kind = RouteKind::Unreachable;
        let scope = RouteScope::Universe;
        all.push(Object::Route(Route { kind, scope, dev: None, ..route(net, "lo") }));
    }
    all.push(Object::Fdb(Fdb {
        dev: name("cw-a"),
        mac: mac("02:00:00:00:00:07"),
        dst: None,
        permanent: true,
    }));
    all.push(Object::Fdb(Fdb {
        dev: name("cw-vx"),
        mac: mac("02:00:00:00:00:07"),
        dst: Some("192.168.9.3".parse().unwrap()),
        permanent: true,
    }));
    all
}

fn json(line: &str) -> Vec<Value> {
    let text = run(line);
    if text.trim().is_empty() { vec![] } else { serde_json::from_str(&text).unwrap() }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Sorted one-line forms, from the tools and from us.
fn compare(
    what: &str,
    mut tools: Vec<String>,
    h: &mut Handle,
    ours: impl Fn(&Object) -> Option<String>,
) {
    let observed = observe(h);
    let mut seen: Vec<String> = observed.iter().filter_map(|(_, o)| ours(o)).collect();
    tools.sort();
    seen.sort();
    assert_eq!(seen, tools, "{what}");
}

#[test]
fn observed_is_what_the_tools_print() {
    let mut h = start();
    create(&mut h, &node());
    run("ip route add default via 192.168.9.254 metric 50");

    let tools = json("ip -j -d link")
        .iter()
        .map(|l| {
            let up = l["flags"].as_array().unwrap().iter().any(|f| f == "UP");
            let kind = text(&l["linkinfo"], "info_kind");
            let port = l["linkinfo"]["info_slave_data"]["isolated"].as_bool();
            let (dev, mac, master) = (text(l, "ifname"), text(l, "address"), text(l, "master"));
            let mtu = l["mtu"].as_u64().filter(|m| *m < 65536);
            format!("{dev} {kind} {mtu:?} {mac} up={up} {master} {port:?}")
        })
        .collect();
    compare("links", tools, &mut h, |o| {
        let Object::Link(l) = o else { return None };
        let kind = match &l.kind {
            LinkKind::Bridge => "bridge",
            LinkKind::Veth { .. } => "veth",
            LinkKind::Vxlan(_) => "vxlan",
            LinkKind::Other(kind) => kind,
        };
        let mtu = l.mtu.map(|m| u64::from(m.get()));
        let mac = l.mac.unwrap();
        let master = l.master.as_ref().map_or("", |m| m.as_str());
        let port = l.port.map(|p| p.isolated);
        Some(format!("{} {kind} {mtu:?} {mac} up={} {master} {port:?}", l.name, l.up))
    });

    let tools = json("ip -j addr")
        .iter()
        .flat_map(|l| {
            let dev = text(l, "ifname").to_owned();
            l["addr_info"]
                .as_array()
                .unwrap()
                .iter()
                .map(move |a| format!("{dev} {}/{}", text(a, "local"), a["prefixlen"]))
        })
        .collect();
    compare("addresses", tools, &mut h, |o| match o {
        Object::Addr(a) => Some(format!("{} {}", a.dev, a.addr)),
        _ => None,
    });

    let mut tools = Vec::new();
    for (family, default) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        for r in json(&format!("ip -N -j {family} route show table main")) {
            let mut dst = text(&r, "dst").replace("default", default);
            if !dst.contains('/') {
                dst += if family == "-4" { "/32" } else { "/128" };
            }
            let metric = r["metric"].as_u64().unwrap_or(0);
            let (kind, via, src) = (text(&r, "type"), text(&r, "gateway"), text(&r, "prefsrc"));
            let dev = if matches!(kind, "unreachable" | "7") { "" } else { text(&r, "dev") };
            // `boot` goes without saying.
            let protocol = r["protocol"].as_str().unwrap_or("3");
            tools.push(format!("{dst} {metric} dev={dev} via={via} src={src} proto={protocol}"));
        }
    }
    // One key may stand for several: the link-local prefix of each interface.
    tools.retain(|t| !t.starts_with("fe80::/64"));
    compare("routes", tools, &mut h, |o| {
        let Object::Route(r) = o else { return None };
        let dev = r.dev.as_ref().map_or("", |d| d.as_str());
        let say = |ip: Option<std::net::IpAddr>| ip.map_or(String::new(), |i| i.to_string());
        let (dst, metric, protocol) = (r.dst, r.metric, r.protocol);
        let (via, src) = (say(r.via), say(r.src));
        (dst != cidr("fe80::/64"))
            .then(|| format!("{dst} {metric} dev={dev} via={via} src={src} proto={protocol}"))
    });

    let mut tools: Vec<String> = json("ip -j neigh show nud permanent")
        .iter()
        .map(|n| format!("{} {} {}", text(n, "dev"), text(n, "dst"), text(n, "lladdr")))
        .collect();
    for family in ["-4", "-6"] {
        let proxies = json(&format!("ip {family} -j neigh show proxy"));
        tools.extend(proxies.iter().map(|n| format!("{} {} ", text(n, "dev"), text(n, "dst"))));
    }
    compare("neighbours", tools, &mut h, |o| {
        let Object::Neigh(n) = o else { return None };
        let mac = n.mac.map_or(String::new(), |m| m.to_string());
        Some(format!("{} {} {mac}", n.dev, n.ip))
    });

    let tools = json("bridge -j fdb")
        .iter()
        .filter(|f| text(f, "state") == "static" || f["dst"].is_string())
        .map(|f| format!("{} {} {}", text(f, "ifname"), text(f, "mac"), text(f, "dst")))
        .collect();
    compare("forwarding entries", tools, &mut h, |o| {
        let Object::Fdb(f) = o else { return None };
        let dst = f.dst.map_or(String::new(), |d| d.to_string());
        Some(format!("{} {} {dst}", f.dev, f.mac))
    });
}

/// A guard's chain on a device that the same plan makes.
fn guard() -> Object {
    let mut table = NftTable::new(NftFamily::Netdev, "cw_guard", false);
    let base = Base {
        kind: ChainType::Filter,
        hook: Hook::Ingress,
        priority: -150,
        device: Some(name("cw-a")),
        policy: Policy::Accept,
    };
    table.chains.insert("cw-a".to_owned(), Chain { base: Some(base), rules: vec![] });
    Object::Table(table)
}

#[test]
fn a_plan_carried_out_leaves_nothing_to_do() {
    let mut h = start();
    let mut desired = Desired::default();
    for object in node().into_iter().chain([guard()]) {
        desired.add(Owner::Node, "test", object);
    }
    let scope = Scope {
        tables: vec![TableId { family: NftFamily::Netdev, name: "cw_guard".to_owned() }],
        sysctls: vec!["net/ipv4/conf/cw-br/proxy_arp_pvlan".to_owned()],
        ..Scope::default()
    };
    let own = Ownership::plugin(203);
    let first = plan(&desired, &h.observe(&scope).unwrap(), &own);
    assert!(first.conflicts.is_empty(), "{:?}", first.conflicts);
    apply(&mut h, &first.ops);
    let second = plan(&desired, &h.observe(&scope).unwrap(), &own);
    assert_eq!(second.ops, [], "{:?}", second.conflicts);

    // Somebody tidies up; what is missing comes back.
    for damage in [
        "ip link set cw-br down",
        "ip link set cw-br up",
        "ip addr del 10.244.1.1/24 dev cw-br",
        "ip link set cw-a nomaster",
        "bridge fdb del 02:00:00:00:00:07 dev cw-vx dst 192.168.9.3",
        "ip neigh del fd00:244:2::1 dev cw-vx",
        "ip route del unreachable 10.244.0.0/16",
    ] {
        run(damage);
    }
    for _ in 0..2 {
        let repair = plan(&desired, &h.observe(&scope).unwrap(), &own);
        apply(&mut h, &repair.ops);
    }
    let after = plan(&desired, &h.observe(&scope).unwrap(), &own);
    assert_eq!(after.ops, [], "{:?}", after.conflicts);

    // Taking it all back, twice: what is gone already is no error.
    for _ in 0..2 {
        for (op, outcome) in withdraw(&desired).iter().zip(h.apply(&withdraw(&desired))) {
            if let Err(e) = outcome {
                assert!(matches!(op, Op::Nft { .. }) && e.is_gone(), "{op}: {e}");
            }
        }
    }
    let left = h.observe(&scope).unwrap();
    let ours = |k: &Key| {
        !matches!(k, Key::Link(n) if n.as_str() == "lo")
            && !matches!(k, Key::Addr { dev, .. } if dev.as_str() == "lo")
            && !matches!(k, Key::Table { .. })
    };
    let left: Vec<_> = left.iter().map(|(k, _)| k).filter(|k| ours(k)).collect();
    assert!(left.is_empty(), "{left:?}");
}
