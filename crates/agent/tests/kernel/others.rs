//! What others made or need on the node stays: routers' advertisements, tables, interfaces.

use causeway_cluster::Snapshot;
use causeway_types::state::Attach;

use crate::node::{DEADLINE, REPAIR, Stack, each_stack, eventually, run, with};
use crate::world::{inside, send_raw_from, surround};

/// A router advertisement (RFC 4861, 4.2) that makes its sender the default router for a time in
/// seconds; 0 takes that back.
fn advertise(lifetime: u16) {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(lifetime.to_be_bytes());
    message.extend([0; 8]);
    inside("world", || send_raw_from("under0", "ff02::1", 58, &message));
}

fn default_route() -> String {
    run("ip -6 route show default")
}

/// IPv6 forwarding makes the kernel deaf to routers, unless accept_ra is 2: the node would lose
/// its default route at once, or when the router is next changed.
#[test]
fn the_default_route_that_a_router_advertised_stays() {
    for stack in [Stack::V6, Stack::Dual] {
        with(stack, <_>::default(), |node| {
            surround(node);
            run("ip -6 route del default");
            eventually("advertised", DEADLINE, || {
                // Its address may still be tentative, and one on either end.
                advertise(1800);
                let line = default_route();
                if line.contains("proto ra") { Ok(()) } else { Err(line) }
            });
            let mut view = node.three();
            view.nodes.retain(|name, _| name.as_str() != "node-3");
            node.start_with(view);
            assert_eq!(run("cat /proc/sys/net/ipv6/conf/all/forwarding"), "1\n");
            assert!(default_route().contains("proto ra"), "{}", default_route());
            assert_eq!(run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra"), "2\n");
            // It still listens: the router resigns and comes back.
            eventually("resigned", DEADLINE, || {
                advertise(0);
                let line = default_route();
                if line.is_empty() { Ok(()) } else { Err(line) }
            });
            std::thread::sleep(std::time::Duration::from_millis(200));
            eventually("back", DEADLINE, || {
                advertise(1800);
                let line = default_route();
                if line.contains("proto ra") { Ok(()) } else { Err(line) }
            });
            node.assert_whole();
        });
    }
}

/// Interfaces, tables, rules, addresses and neighbours of others, over a whole life of an agent.
#[test]
fn what_others_made_is_never_touched() {
    each_stack(|node| {
        node.config.attach = Attach::Bridge;
        run("ip link add docker0 type bridge");
        run("ip link set docker0 up");
        run("ip addr add 172.17.0.1/16 dev docker0");
        run("ip link add vxlan.calico type vxlan id 99 local 192.168.1.11 dstport 4789");
        run("ip link set vxlan.calico up");
        run("bridge fdb add 02:00:00:00:00:99 dev vxlan.calico dst 192.168.1.99");
        run("ip neigh add 172.17.0.9 lladdr 02:00:00:00:00:98 nud permanent dev docker0");
        run("ip route add 198.51.100.0/24 dev docker0 proto 203");
        run("ip -6 route add 2001:db8:99::/64 dev docker0 proto 203");
        run("ip rule add from 172.17.0.0/16 lookup 100 priority 1000");
        run("ip route add default dev docker0 table 100 proto 203");
        run("nft add table inet filter");
        run("nft add chain inet filter forward { type filter hook forward priority 0 ; }");
        run("nft add rule inet filter forward counter accept");
        run("nft add table ip causeway");
        run("nft add table inet causeway_other");
        let shows = [
            "ip link show docker0",
            "ip link show vxlan.calico",
            "ip -4 addr show docker0",
            "bridge fdb show dev vxlan.calico",
            "ip neigh show dev docker0 nud permanent",
            "ip route show dev docker0",
            "ip -6 route show 2001:db8:99::/64",
            "ip rule",
            "ip route show table 100",
            "nft -s list table inet filter",
            "nft -s list table ip causeway",
            "nft -s list table inet causeway_other",
        ];
        let all = || shows.map(run);
        let before = all();
        node.start_with(node.three());
        assert_eq!(all(), before, "after the start");
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() == "node-1");
        node.sender.send_replace(Snapshot::synced_with(view.clone()));
        eventually("swept", DEADLINE, || {
            let left = [node.routes_to(2), node.routes_to(3)].concat().concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        assert_eq!(all(), before, "after the sweep");
        run("nft delete table inet causeway");
        eventually("repaired", REPAIR, || {
            crate::node::try_run("nft list table inet causeway").map(drop)
        });
        node.stop();
        std::fs::remove_file(&node.paths.owned).unwrap();
        node.start_with(view);
        node.assert_whole();
        assert_eq!(all(), before, "after a restart without the record");
    });
}
