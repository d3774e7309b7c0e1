//! What others delete or change comes back within a second.

use causeway_desired::input::{Config, Road};
use causeway_types::state::Attach;

use crate::node::{Node, Stack, comes_back, each_stack, eventually, run, with};

fn families(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    if node.stack.v4() {
        all.push(("-4", "10.244."));
    }
    if node.stack.v6() {
        all.push(("-6", "fd00:10:244:"));
    }
    all
}

fn cidr(start: &str, n: u8) -> String {
    if start.contains(':') { format!("{start}{n}::/64") } else { format!("{start}{n}.0/24") }
}

#[test]
fn routes_and_tunnel() {
    each_stack(|node| {
        node.start_with(node.three());
        for (family, start) in families(node) {
            for n in [2, 3] {
                let show = format!("ip {family} route show {}", cidr(start, n));
                let before = run(&show);
                run(&format!("ip {family} route del {}", cidr(start, n)));
                comes_back("route", &show, &before);
            }
            let show = format!("ip {family} neigh show dev cw-vxlan nud permanent");
            let before = run(&show);
            let neighbour = before.split_whitespace().next().expect("one").to_owned();
            run(&format!("ip {family} neigh del {neighbour} dev cw-vxlan"));
            comes_back("neighbour", &show, &before);
        }
        let show = "bridge fdb show dev cw-vxlan";
        let before = run(show);
        let words: Vec<&str> = before.split_whitespace().collect();
        run(&format!("bridge fdb del {} dev cw-vxlan dst {}", words[0], words[2]));
        comes_back("fdb entry", show, &before);

        run("ip link del cw-vxlan");
        eventually("tunnel device and all on it", crate::node::REPAIR, || {
            let whole = node.routes_to(3).iter().all(|l| l.contains("cw-vxlan"))
                && crate::node::try_run("bridge fdb show dev cw-vxlan")? == before;
            if whole { Ok(()) } else { Err(node.wrong()) }
        });
        run("ip link set cw-vxlan down");
        eventually("tunnel device up", crate::node::REPAIR, || {
            let up = run("ip -br link show cw-vxlan").contains("UP");
            let routes = node.routes_to(3).iter().all(|l| l.contains("cw-vxlan"));
            if up && routes { Ok(()) } else { Err(node.wrong()) }
        });
        run("ip link set cw-vxlan mtu 1300");
        eventually("mtu", crate::node::REPAIR, || {
            let link = run("ip link show cw-vxlan");
            if link.contains("mtu 1300") { Err(link) } else { Ok(()) }
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        node.assert_whole();
        assert!(node.status().repairs >= 4, "{}", node.wrong());
    });
}

#[test]
fn the_filter() {
    each_stack(|node| {
        node.start_with(node.three());
        let show = "nft -s list table inet causeway";
        let before = run(show);
        run("nft delete table inet causeway");
        comes_back("table", show, &before);
        run("nft flush ruleset");
        comes_back("table after a flush", show, &before);
        run("nft add rule inet causeway masq counter accept");
        comes_back("a rule too many", show, &before);
        let set = if node.stack.v4() { "pods4" } else { "pods6" };
        run(&format!("nft flush set inet causeway {set}"));
        comes_back("elements", show, &before);
        std::thread::sleep(std::time::Duration::from_millis(100));
        node.assert_whole();
    });
}

#[test]
fn the_bridge() {
    for stack in [Stack::V4, Stack::V6, Stack::Dual] {
        let config = Config { attach: Attach::Bridge, road: Road::Direct, ..Config::default() };
        with(stack, config, |node| {
            let mut view = node.three();
            view.nodes.retain(|name, _| name.as_str() != "node-3");
            node.start_with(view);
            for (family, start) in families(node) {
                let show = format!("ip {family} -o addr show dev cni0 scope global");
                let before = run(&show);
                let address = before.split_whitespace().nth(3).expect("an address").to_owned();
                assert!(address.starts_with(start), "{before}");
                run(&format!("ip addr del {address} dev cni0"));
                comes_back("bridge address", &show, &before);
            }
            run("ip link del cni0");
            eventually("bridge", crate::node::REPAIR, || {
                crate::node::try_run("ip link show cni0").map(drop)
            });
            std::thread::sleep(std::time::Duration::from_millis(300));
            node.assert_whole();
        });
    }
}

/// `sysctl --system`, or a program that is sure of itself, turns forwarding off.
#[test]
fn parameters_of_the_kernel() {
    for stack in [Stack::V4, Stack::V6, Stack::Dual] {
        let config = Config { attach: Attach::Bridge, ..Config::default() };
        with(stack, config, |node| {
            node.start_with(node.three());
            let mut paths = Vec::new();
            if stack.v4() {
                paths.push("/proc/sys/net/ipv4/ip_forward");
            }
            if stack.v6() {
                paths.push("/proc/sys/net/ipv6/conf/all/forwarding");
                paths.push("/proc/sys/net/ipv6/conf/cni0/proxy_ndp");
            }
            for path in paths {
                std::fs::write(path, "0").unwrap();
                comes_back(path, &format!("cat {path}"), "1\n");
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
            node.assert_whole();
        });
    }
}

#[test]
fn the_files() {
    with(Stack::V4, Config::default(), |node| {
        node.start_with(node.three());
        let before = std::fs::read(node.conflist()).unwrap();
        std::fs::remove_file(node.conflist()).unwrap();
        eventually("list", crate::node::REPAIR, || match std::fs::read(node.conflist()) {
            Ok(now) if now == before => Ok(()),
            other => Err(format!("{other:?}")),
        });
        std::fs::remove_file(&node.paths.node_file).unwrap();
        eventually("node file", crate::node::REPAIR, || {
            std::fs::read(&node.paths.node_file).map(drop).map_err(|e| e.to_string())
        });
        assert_eq!(node.status().generation, 1);
    });
}

/// Our own writes, and what others do beside us, do not make the loop run round and round.
#[test]
fn the_loop_comes_to_rest() {
    with(Stack::Dual, Config::default(), |node| {
        node.start_with(node.three());
        // The kernel gives new interfaces their link-local addresses within two seconds.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let before = node.status().reconciles;
        std::thread::sleep(std::time::Duration::from_secs(1));
        let idle = node.status().reconciles - before;
        assert!(idle <= 1, "{idle} rounds in a second of rest");
        for i in 0..100 {
            run(&format!("ip addr add 198.51.100.{i}/32 dev under0"));
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        let busy = node.status().reconciles - before;
        println!("{busy} rounds for 100 changes by others");
        assert!(busy < 60, "{busy} rounds");
        node.assert_whole();
    });
}
