//! Failures of pod networks in the field, recreated. The numbers are those of the list that the
//! project keeps of them; the rest of the list is tested elsewhere.

use std::os::unix::fs::MetadataExt;

use causeway_cluster::Snapshot;
use causeway_desired::input::{Config, PluginType, Road};
use causeway_types::NodeName;
use causeway_types::state::{Attach, NodeFile};

use crate::node::{DEADLINE, Node, REPAIR, Stack, comes_back, each_stack, eventually, run, with};
use crate::world::{self, OUTSIDE, families, inside, surround};

/// Every stack with a configuration.
fn each_stack_with(config: &Config, test: fn(&mut Node)) {
    for stack in [Stack::V4, Stack::V6, Stack::Dual] {
        with(stack, config.clone(), test);
    }
}

/// Field failure 9: A configuration list that is there before the node is ready makes every pod fail. The list
/// comes last, and never half written.
#[test]
fn failure_09_the_list_before_the_node() {
    each_stack(|node| {
        let mut without = node.three();
        without.nodes.values_mut().for_each(|n| n.pod_cidrs.clear());
        node.sender.send_replace(Snapshot::synced_with(without));
        node.start();
        eventually("podCIDRs named", DEADLINE, || {
            let all = node.status().problems;
            let said = |m: &str| m.contains("Node node-1 has no spec.podCIDRs");
            let named = all.iter().any(|p| said(&p.message));
            if named { Ok(()) } else { Err(node.wrong()) }
        });
        assert!(!node.conflist().exists() && !node.paths.node_file.exists());
        let list = node.conflist();
        let file = node.paths.node_file.clone();
        let seen = std::thread::spawn(move || {
            let until = std::time::Instant::now() + DEADLINE;
            while std::time::Instant::now() < until {
                if let Ok(text) = std::fs::read(&list) {
                    serde_json::from_slice::<serde_json::Value>(&text).expect("whole");
                    return file.exists();
                }
            }
            panic!("no list");
        });
        node.sender.send_replace(Snapshot::synced_with(node.three()));
        node.until_ready();
        assert!(seen.join().expect("a whole list"), "the node file comes first");
        node.assert_whole();
    });
}

/// Field failure 10: A node that rejoins with another tunnel MAC is dead to its peers.
#[test]
fn failure_10_another_mac_of_the_tunnel() {
    each_stack(|node| {
        node.start_with(node.three());
        let mac = || {
            let text = run("ip -o link show cw-vxlan");
            text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
        };
        let before = mac();
        let fdb = run("bridge fdb show dev cw-vxlan");
        // What systemd-networkd's MACAddressPolicy does.
        run("ip link set cw-vxlan address 02:de:ad:be:ef:01");
        eventually("the MAC", REPAIR, || {
            let now = mac();
            if now == before { Ok(()) } else { Err(now) }
        });
        comes_back("what stands on it", "bridge fdb show dev cw-vxlan", &fdb);
        run("ip link del cw-vxlan");
        eventually("the device", REPAIR, || crate::node::try_run("ip link show cw-vxlan"));
        assert_eq!(mac(), before, "derived, not random");
        std::thread::sleep(std::time::Duration::from_millis(100));
        node.assert_whole();
    });
}

/// Field failure 11: Peers came, went and changed while the agent was away.
#[test]
fn failure_11_leftovers_of_peers() {
    each_stack(|node| {
        node.start_with(node.three());
        let alien = "02:00:00:00:00:77";
        run("ip link add name alien0 type bridge");
        run("ip link set alien0 up");
        for f in families(node.stack) {
            let (v, ip) = [("-4", "192.0.2.7"), ("-6", "2001:db8:7::7")][f];
            run(&format!("ip {v} neigh add {ip} lladdr {alien} nud permanent dev alien0"));
        }
        node.stop();
        // node-3 has left, node-4 has come, node-2 has moved behind the router.
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() == "node-1");
        view.nodes.extend([node.info(2, false), node.info(4, true)]);
        node.start_with(view);
        node.assert_whole();
        assert_eq!(node.routes_to(3).concat(), "");
        assert!(
            node.routes_to(2).iter().all(|l| l.contains("cw-vxlan")),
            "{:?}",
            node.routes_to(2)
        );
        assert!(node.routes_to(4).iter().all(|l| l.contains("via")), "{:?}", node.routes_to(4));
        let fdb = run("bridge fdb show dev cw-vxlan");
        assert_eq!(fdb.matches("dst ").count(), 1, "{fdb}");
        for f in families(node.stack) {
            let v = ["-4", "-6"][f];
            let neighbours = run(&format!("ip {v} neigh show dev cw-vxlan nud permanent"));
            assert_eq!(neighbours.lines().count(), 1, "{neighbours}");
            let foreign = run(&format!("ip {v} neigh show dev alien0 nud permanent"));
            assert!(foreign.contains(alien), "not ours: {foreign}");
        }
    });
}

fn mtu_of(device: &str) -> u32 {
    let text = run(&format!("ip -o link show {device}"));
    text.split("mtu ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn node_file(node: &Node) -> NodeFile {
    serde_json::from_slice(&std::fs::read(&node.paths.node_file).unwrap()).unwrap()
}

/// The pod MTU everywhere where it is written.
fn follows(node: &Node, underlay: u32) {
    let overhead = if node.stack.v4() { 50 } else { 70 };
    let want = underlay - overhead;
    eventually(&format!("MTU {want}"), DEADLINE, || {
        let list = std::fs::read_to_string(node.conflist()).unwrap_or_default();
        let have = (mtu_of("cw-vxlan"), mtu_of("cni0"), node_file(node).mtu.get());
        let listed = list.contains(&format!("\"mtu\": {want}"));
        if have == (want, want, want) && listed { Ok(()) } else { Err(format!("{have:?} {list}")) }
    });
}

/// Field failure 12: Small packets pass and large ones hang: the MTU is that of the underlay less the overhead,
/// and follows it: of the interface, and of a route to a peer.
#[test]
fn failure_12_the_mtu_of_the_underlay_changes() {
    let config = Config { attach: Attach::Bridge, plugin: PluginType::Bridge, ..Config::default() };
    each_stack_with(&config, |node| {
        node.start_with(node.three());
        follows(node, 1500);
        for mtu in [1400, 8950, 1500] {
            run(&format!("ip link set eth0 mtu {mtu}"));
            follows(node, mtu);
        }
        let (to, via) = match node.stack.v4() {
            true => ("192.168.2.0/24", "192.168.1.1"),
            false => ("fd00:2::/64", "fd00:1::1"),
        };
        run(&format!("ip route add {to} via {via} mtu 1420"));
        follows(node, 1420);
        run(&format!("ip route del {to}"));
        follows(node, 1500);
        node.assert_whole();
    });
}

/// Field failure 16: Somebody holds the lock of iptables for minutes. It is nothing to us.
#[test]
fn failure_16_the_xtables_lock_is_held() {
    each_stack(|node| {
        run("mount -t tmpfs none /run");
        let lock = std::fs::File::create("/run/xtables.lock").unwrap();
        lock.lock().unwrap();
        node.start_with(node.three());
        let show = "nft -s list table inet causeway";
        let before = run(show);
        run("nft delete table inet causeway");
        comes_back("table", show, &before);
        node.assert_whole();
        run("umount -l /run");
    });
}

/// Field failure 19: A network manager removes what it did not make: routes, addresses, neighbours, rules.
#[test]
fn failure_19_a_network_manager_tidies_up() {
    let config = Config { attach: Attach::Bridge, ..Config::default() };
    each_stack_with(&config, |node| {
        node.start_with(node.three());
        let shows: Vec<String> = families(node.stack)
            .into_iter()
            .flat_map(|f| {
                let v = ["-4", "-6"][f];
                [
                    format!("ip {v} route show proto 203"),
                    format!("ip {v} -o addr show dev cni0 scope global"),
                    format!("ip {v} -o addr show dev cw-vxlan scope global"),
                    format!("ip {v} neigh show dev cw-vxlan nud permanent"),
                ]
            })
            .chain(
                ["bridge fdb show dev cw-vxlan", "nft -s list table inet causeway"]
                    .map(str::to_owned),
            )
            .collect();
        let before: Vec<String> = shows.iter().map(|s| run(s)).collect();
        for f in families(node.stack) {
            let v = ["-4", "-6"][f];
            run(&format!("ip {v} route flush proto 203"));
            run(&format!("ip {v} addr flush dev cni0 scope global"));
            run(&format!("ip {v} addr flush dev cw-vxlan scope global"));
            run(&format!("ip {v} neigh flush dev cw-vxlan nud permanent"));
        }
        run("bridge fdb flush dev cw-vxlan");
        // firewalld and ufw do that when they are reloaded.
        run("nft flush ruleset");
        for (show, before) in shows.iter().zip(&before) {
            comes_back(show, show, before);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        node.assert_whole();
    });
}

fn renumber(node: &Node, from: u8, to: u8) {
    if node.stack.v4() {
        run(&format!("ip addr del 192.168.1.{from}/24 dev eth0"));
        run(&format!("ip addr add 192.168.1.{to}/24 dev eth0"));
        run("ip route add default via 192.168.1.1");
    }
    if node.stack.v6() {
        run(&format!("ip addr add fd00:1::{to}/64 dev eth0 nodad"));
        run(&format!("ip addr del fd00:1::{from}/64 dev eth0"));
    }
}

/// Field failure 26: The node gets another address. Until its Node says so, pods keep what they have and the
/// status names the mismatch; then the tunnel follows without a restart.
#[test]
fn failure_26_the_node_gets_another_address() {
    each_stack(|node| {
        node.start_with(node.three());
        let (table, far) = (run("nft -s list table inet causeway"), node.routes_to(3));
        renumber(node, 11, 21);
        let said = if node.stack.v4() { "192.168.1.11" } else { "fd00:1::11" };
        eventually("the mismatch", REPAIR, || {
            let all = node.status().problems;
            let named = |m: &str| m.contains(&format!("InternalIP {said} of Node node-1"));
            if all.iter().any(|p| named(&p.message)) { Ok(()) } else { Err(node.wrong()) }
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!node.status().ready);
        assert_eq!(run("nft -s list table inet causeway"), table, "nothing is taken from pods");
        assert_eq!(node.routes_to(3), far);
        assert!(node.conflist().exists());

        let mut view = node.three();
        let me = NodeName::new("node-1").unwrap();
        let info = view.nodes.get_mut(&me).unwrap();
        for address in &mut info.addresses {
            *address = address
                .to_string()
                .replace(".1.11", ".1.21")
                .replace("::11", "::21")
                .parse()
                .unwrap();
        }
        node.sender.send_replace(Snapshot::synced_with(view));
        let local = said.replace(".1.11", ".1.21").replace("::11", "::21");
        eventually("the tunnel's new address", DEADLINE, || {
            let link = crate::node::try_run("ip -d link show cw-vxlan")?;
            let ok = link.contains(&format!("local {local} ")) && node.status().ready;
            if ok { Ok(()) } else { Err(format!("{link}{}", node.wrong())) }
        });
        node.assert_whole();
    });
}

/// Field failure 26: The Node object goes and comes back, as when a kubelet registers anew: no pod may feel it.
#[test]
fn failure_26_the_node_registers_anew() {
    each_stack(|node| {
        node.start_with(node.three());
        let table = "nft -s list table inet causeway";
        let all = || (run("ip -4 route"), run("ip -6 route"), run(table));
        let before = all();
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() != "node-1");
        node.sender.send_replace(Snapshot::synced_with(view));
        eventually("named", DEADLINE, || {
            let all = node.status().problems;
            let named = all.iter().any(|p| p.message.contains("no Node object node-1"));
            if named { Ok(()) } else { Err(node.wrong()) }
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(all(), before);
        // Repairs go on meanwhile.
        run("nft delete table inet causeway");
        comes_back("table", table, &before.2);
        node.sender.send_replace(Snapshot::synced_with(node.three()));
        node.until_ready();
        assert_eq!(all(), before);
        node.assert_whole();
    });
}

/// Counts in the world by source address what comes from the node.
fn watch_sources(node: &Node) {
    let mut table = String::from(
        "add table inet seen\nadd chain inet seen c { type filter hook prerouting priority -400; }\n",
    );
    for f in families(node.stack) {
        let (ip, pod, own) =
            [("ip", "10.244.1.5", "192.168.1.11"), ("ip6", "fd00:10:244:1::5", "fd00:1::11")][f];
        for (who, source) in [("pod", pod), ("node", own)] {
            table.push_str(&format!(
                "add rule inet seen c {ip} saddr {source} udp dport 7777 counter comment \"{who}{f}\"\n"
            ));
        }
    }
    let path = node.paths.owned.with_extension("nft");
    std::fs::write(&path, table).unwrap();
    run(&format!("ip netns exec world nft -f {}", path.display()));
}

fn sources(f: usize) -> (u64, u64) {
    let count = |who: &str| inside("world", || world::counted("inet seen c", &format!("{who}{f}")));
    (count("pod"), count("node"))
}

/// The first packet to a neighbour waits until that is found.
fn arrives(f: usize, want: (u64, u64), to: &str) {
    eventually(to, DEADLINE, || {
        let have = sources(f);
        if have == want { Ok(()) } else { Err(format!("from pods and nodes: {have:?}")) }
    });
}

/// Field failures 27 and 28: Pods are seen by their own address by pods, by nodes on a direct road and where the
/// administrator says so; outside by the node's, with ports that no race can make equal.
#[test]
fn failure_28_double_translation() {
    let config = Config {
        road: Road::Auto,
        masquerade_except: ["203.0.113.0/24", "2001:db8::/48"].map(|c| c.parse().unwrap()).into(),
        ..Config::default()
    };
    each_stack_with(&config, |node| {
        surround(node);
        watch_sources(node);
        node.start_with(node.three());
        world::pod(node, "c1", 5);
        let rules = run("nft -s list chain inet causeway masq");
        let masquerades = rules.lines().filter(|l| l.contains("masquerade"));
        assert!(
            masquerades.clone().count() > 0
                && masquerades.clone().all(|l| l.contains("fully-random"))
        );
        for f in families(node.stack) {
            let pod = ["10.244.1.5", "fd00:10:244:1::5"][f];
            let own_address = [
                ["10.244.2.7", "fd00:10:244:2::7"][f],
                ["192.168.1.12", "fd00:1::12"][f],
                OUTSIDE[f],
            ];
            for to in own_address {
                let (pods, nodes) = sources(f);
                inside("c1", || world::send_udp(pod, to, 7777, b"x"));
                arrives(f, (pods + 1, nodes), to);
            }
            // A node that joins later is inside as well.
            let mut view = node.three();
            view.nodes.extend([node.info(4, true)]);
            node.sender.send_replace(Snapshot::synced_with(view));
            eventually("node-4", DEADLINE, || {
                let ways = node.routes_to(4);
                if ways.iter().all(|l| l.contains("via")) { Ok(()) } else { Err(ways.concat()) }
            });
            let to = ["10.244.4.7", "fd00:10:244:4::7"][f];
            let (pods, nodes) = sources(f);
            inside("c1", || world::send_udp(pod, to, 7777, b"x"));
            arrives(f, (pods + 1, nodes), to);
            let (pods, nodes) = sources(f);
            let to = ["198.51.100.1", "2001:db8:1::1"][f];
            inside("c1", || world::send_udp(pod, to, 7777, b"x"));
            arrives(f, (pods, nodes + 1), to);
        }
    });
}

/// Field failure 37: Neighbour tables are shared by all namespaces and overflow: what we need is permanent, and
/// permanent entries are not counted. Pods add none by talking.
#[test]
fn failure_37_the_neighbour_table_is_full() {
    each_stack(|node| {
        surround(node);
        node.start_with(node.three());
        let pod = world::pod(node, "c1", 5);
        let own: Vec<String> = pod.addresses.iter().map(|a| a.addr().to_string()).collect();
        for f in families(node.stack) {
            let ip = own[families(node.stack).iter().position(|x| *x == f).unwrap()].clone();
            run(&format!("ping -c1 -W3 -n {ip}"));
            inside("c1", || {
                world::send_udp(&ip, ["10.244.3.7", "fd00:10:244:3::7"][f], 7777, b"x")
            });
            let v = ["-4", "-6"][f];
            for dev in [pod.host_ifname.as_str(), "cw-vxlan"] {
                let all = run(&format!("ip {v} neigh show dev {dev}"));
                let others =
                    all.lines().filter(|l| !l.contains("PERMANENT") && !l.starts_with("fe80"));
                assert_eq!(others.collect::<Vec<_>>(), Vec::<&str>::new(), "{dev}");
                assert!(all.contains("PERMANENT"), "{dev}: {all}");
            }
            let inside = run(&format!("ip {v} -n c1 neigh show"));
            assert!(
                inside.lines().all(|l| l.contains("PERMANENT")
                    || l.starts_with("fe80") && !l.starts_with("fe80::1 ")),
                "{inside}"
            );
        }
    });
}

/// A stopped agent leaves everything, and files that are as they should be are not written again.
#[test]
fn failure_06_a_stop_changes_nothing() {
    each_stack(|node| {
        node.start_with(node.three());
        let all = || {
            (run("ip -4 route"), run("ip -6 route"), run("nft -s list ruleset"), run("ip -br link"))
        };
        let inodes = |node: &Node| {
            [node.conflist(), node.paths.node_file.clone()]
                .map(|p| std::fs::metadata(p).unwrap().ino())
        };
        let before = (all(), inodes(node));
        node.stop();
        assert_eq!((all(), inodes(node)), before);
        node.start_with(node.three());
        node.assert_whole();
        assert_eq!((all(), inodes(node)), before);
    });
}

/// Field failure 26: one family's address goes for a while. Peers go on sending tunnel packets to
/// it; a tunnel that changed to the other family meanwhile would be heard by nobody.
#[test]
fn failure_26_one_of_two_addresses_goes() {
    with(Stack::Dual, Config::default(), |node| {
        node.start_with(node.three());
        let link = || run("ip -o link show cw-vxlan");
        let (before, far, table) =
            (link(), node.routes_to(3), run("nft -s list table inet causeway"));
        run("ip addr del 192.168.1.11/24 dev eth0");
        eventually(
            "named",
            REPAIR,
            || {
                if node.status().ready { Err(node.wrong()) } else { Ok(()) }
            },
        );
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!((link(), node.routes_to(3)), (before, far));
        assert_eq!(run("nft -s list table inet causeway"), table);
        run("ip addr add 192.168.1.11/24 dev eth0");
        run("ip route add default via 192.168.1.1");
        node.until_ready();
        eventually("whole", DEADLINE, || {
            let left = node.engine().plan()?.lines;
            if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
        });
        node.assert_whole();
    });
}
