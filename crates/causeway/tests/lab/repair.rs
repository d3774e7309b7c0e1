//! What others delete is back within a second; what others made is never touched.

use causeway_lab::{Families, Plugin, Road, Spec};
use causeway_types::state::Attach;

use crate::world::{REPAIR, World, eventually, with};

fn spec(attach: Attach) -> Spec {
    let plugin = if attach == Attach::Bridge { Plugin::Bridge } else { Plugin::Causeway };
    Spec {
        nodes: 2,
        attach,
        plugin,
        road: Road::Vxlan,
        families: Families::Dual,
        ..Spec::default()
    }
}

/// Damages node-1 and waits until the view is what it was.
#[track_caller]
fn repaired(world: &World, view: &str, damage: &str) {
    let before = world.on("node-1", view);
    assert!(!before.trim().is_empty(), "{view} shows nothing");
    world.on("node-1", damage);
    eventually(damage, REPAIR, || {
        // Some of it may be gone for a moment.
        let now = world.try_sh(&world.node_ns("node-1"), view).1;
        if now == before { Ok(()) } else { Err(format!("{view}: {now}instead of\n{before}")) }
    });
}

#[test]
fn on_every_attachment() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(spec(attach), |world| {
            let pods = world.pods();
            let remote = "ip route show proto 203; ip -6 route show proto 203";
            repaired(world, remote, "ip route del 10.244.2.0/24");
            repaired(world, remote, "ip -6 route del fd00:10:244:2::/64");
            repaired(world, remote, "ip route flush proto 203; ip -6 route flush proto 203");
            let fdb = "bridge fdb show dev cw-vxlan | sort";
            let mac = world.on("node-2", "ip -br link show cw-vxlan");
            let mac = mac.split_whitespace().nth(2).unwrap();
            repaired(world, fdb, &format!("bridge fdb del {mac} dev cw-vxlan dst 192.168.1.12"));
            let neigh = "ip neigh show dev cw-vxlan nud permanent | sort";
            repaired(world, neigh, "ip neigh del 10.244.2.1 dev cw-vxlan");
            let tables =
                "(nft -s list table inet causeway; nft -s list table netdev causeway_cni) | sort";
            repaired(world, tables, "nft delete table inet causeway");
            repaired(world, tables, "nft flush table inet causeway");
            // What a reload of firewalld or ufw does (field failure 18).
            repaired(world, tables, "nft flush ruleset");
            let vxlan = "ip -d -o link show cw-vxlan | sed 's/^[0-9]*://; s/gso.*//'; ip -br -4 addr show cw-vxlan";
            repaired(world, vxlan, "ip link set cw-vxlan down");
            repaired(world, vxlan, "ip link set cw-vxlan address 02:00:00:00:00:01");
            repaired(world, vxlan, "ip link del cw-vxlan");
            if attach == Attach::Bridge {
                let bridge = "ip -br addr show cni0";
                repaired(world, bridge, "ip addr del 10.244.1.1/24 dev cni0");
                repaired(world, bridge, "ip -6 addr del fd00:10:244:1::1/64 dev cni0");
            }
            world.whole();
            world.all_reach_all();
            assert_eq!(pods.len(), 4);
        });
    }
}

/// Field failure 19: a network manager that comes up takes everything for its own.
#[test]
fn failure_19_everything_flushed_at_once() {
    with(spec(Attach::Routed), |world| {
        let view = "ip route show proto 203; ip -6 route show proto 203; ip neigh show nud permanent | sort";
        world.pods();
        repaired(
            world,
            view,
            "for t in '' -6; do ip $t route flush proto 203; ip $t neigh flush all nud permanent; done; \
            ip addr flush dev cw-vxlan; nft flush ruleset",
        );
        world.all_reach_all();
    });
}

#[test]
fn what_others_made_stays() {
    for attach in [Attach::Routed, Attach::Bridge] {
        with(spec(attach), |world| {
            // Protocol 203 is ours only where we remember the route.
            world.on("node-1", "ip link add foreign0 type veth peer name foreign1 && ip link set foreign0 up && \
                ip link set foreign1 up && ip addr add 198.51.100.1/24 dev foreign0 && \
                ip route add 203.0.113.128/25 via 198.51.100.9 proto 203 && \
                ip route add 203.0.113.64/26 via 198.51.100.9 proto static && \
                nft add table inet foreign && nft add chain inet foreign c '{ type filter hook forward priority 10; }' && \
                nft add rule inet foreign c counter accept");
            let view = "ip -br addr show foreign0; ip route show | grep -v 10.244; nft -s list table inet foreign";
            let before = world.on("node-1", view);
            assert!(before.contains("proto 203"), "{before}");
            world.agent("node-1", "kill");
            world.agent("node-1", "restart");
            eventually("the agent is back", crate::world::PATIENCE, || {
                world.status("node-1").map_err(|e| e.to_string()).map(drop)
            });
            world.on("node-1", "ip route del 10.244.2.0/24");
            eventually("a repair, to see that it works", REPAIR, || {
                let routes = world.on("node-1", "ip route show 10.244.2.0/24");
                if routes.is_empty() { Err("no route".into()) } else { Ok(()) }
            });
            world.pod("a", "node-1");
            assert_eq!(world.on("node-1", view), before);
            let strangers = world.status("node-1").unwrap().strangers;
            assert_eq!(strangers, ["route 203.0.113.128/25"]);
        });
    }
}

/// What pods of networks that no agent serves have in the plugins' own table: of those nobody else
/// knows, and the next pod may be far.
#[test]
fn ports_of_pods_after_a_flush() {
    with(spec(Attach::Routed), |world| {
        let bin = crate::world::binaries();
        let list = r#"{"cniVersion": "1.0.0", "name": "by-hand", "plugins": [
            {"type": "bridge", "bridge": "hand0", "isGateway": true, "ipMasq": true, "macspoofchk": true,
             "ipam": {"type": "static", "addresses": [
                {"address": "10.9.0.2/24", "gateway": "10.9.0.1"}, {"address": "fd09::2/64", "gateway": "fd09::1"}]}},
            {"type": "portmap", "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}},
            {"type": "firewall"}]}"#;
        let pod = world.netns(&world.pod("a", "node-1"));
        let shell = |line: &str| {
            let output = std::process::Command::new(&bin.causeway)
                .args([
                    "lab",
                    "shell",
                    "--name",
                    &world.spec.name,
                    "node-1",
                    "--",
                    "sh",
                    "-ec",
                    line,
                ])
                .env("CAUSEWAY", &bin.causeway)
                .env("CNI", &bin.cni)
                .env("LIST", list)
                .env("POD", &pod)
                .output()
                .unwrap();
            let text =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{line}: {text}");
            text
        };
        shell(
            "mkdir -p /run/hand; for n in bridge portmap firewall; do ln -sf $CNI /run/hand/$n; done
             printf '%s' \"$LIST\" > /run/hand/list.conflist
             $CAUSEWAY cni add /run/hand/list.conflist $POD --container byhand --ifname eth1 \
                --cni-path /run/hand",
        );
        let view = "nft -s list table inet causeway_cni; nft -s list table netdev causeway_cni";
        let before = world.on("node-1", view);
        for word in ["ports4", "ports6", "forward4", "masq4", "masq6", "source MAC is not"] {
            assert!(before.contains(word), "{word}: {before}");
        }
        for damage in ["nft flush ruleset", "nft delete table inet causeway_cni"] {
            world.on("node-1", damage);
            eventually(damage, REPAIR, || {
                let now = world.try_sh(&world.node_ns("node-1"), view).1;
                let sorted = |text: &str| {
                    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                    lines.sort();
                    lines
                };
                if sorted(&now) == sorted(&before) {
                    Ok(())
                } else {
                    Err(format!("{now} instead of {before}"))
                }
            });
        }
        // One that starts finds what went while none was there.
        world.agent("node-1", "kill");
        world.on("node-1", "nft flush ruleset");
        world.agent("node-1", "restart");
        eventually("the agent is back", crate::world::PATIENCE, || {
            let now = world.try_sh(&world.node_ns("node-1"), view).1;
            if now.contains("ports4") && now.contains("8080") { Ok(()) } else { Err(now) }
        });
        shell(
            "$CAUSEWAY cni del /run/hand/list.conflist $POD --container byhand --ifname eth1 \
                --cni-path /run/hand
             ip link del hand0",
        );
        let left = world.on("node-1", "nft list table inet causeway_cni");
        assert!(!left.contains("byhand"), "{left}");
    });
}

/// What plugins do wakes the thread that reconciles: it waits until the processor is free (`SCHED_BATCH`).
#[test]
fn an_agent_takes_no_processor_from_plugins() {
    with(spec(Attach::Routed), |world| {
        let agents = world.client.control(http::Method::GET, "/agents").unwrap();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", agents["node-1"]["pid"])).unwrap();
        // The name is the second word, the policy the 41st (proc_pid_stat(5)).
        let stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")));
        let stats: Vec<String> = stats.map(Result::unwrap).collect();
        let own = stats.iter().find(|stat| stat.contains("(reconcile)")).expect("there is one");
        let words = own.rsplit_once(')').unwrap().1;
        assert_eq!(words.split_ascii_whitespace().nth(38), Some("3"), "{own}");
    });
}
