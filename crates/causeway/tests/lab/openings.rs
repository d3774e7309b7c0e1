//! `causeway doctor --firewall`: what it prints opens a node that lets nothing in, and no more.

use causeway_lab::{Families, Road};
use causeway_types::state::Attach;

use crate::world::{PATIENCE, World, dual, eventually, with};

const CLOSED: &str = "nft add table inet filter
    nft add chain inet filter input '{ type filter hook input priority 0; policy drop; }'
    nft add chain inet filter forward '{ type filter hook forward priority 0; policy drop; }'
    nft add rule inet filter input iif lo accept
    nft add rule inet filter input ct state established,related accept";

fn commands(world: &World, node: &str, role: &str) -> String {
    let (ok, text) = world.causeway(node, &["doctor", "--firewall", "nft", "--role", role]);
    assert!(ok && !text.contains("NODES"), "{text}");
    text
}

#[test]
fn doctor_opens_closed_nodes() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        world.whole();
        let reach = || {
            let one = |f: &_| world.reaches(&world.netns(&a), world.ip(&b, *f), 56);
            Families::Dual.list().iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(reach(), [true, true]);
        world.on("node-2", CLOSED);
        assert_eq!(reach(), [false, false]);
        let line = commands(world, "node-2", "worker");
        assert!(!line.contains("6443"), "{line}");
        world.on("node-2", &line);
        eventually("the node is open for pods", PATIENCE, || {
            if reach() == [true, true] {
                Ok(())
            } else {
                Err(world.on("node-2", "nft list ruleset"))
            }
        });
        // Neighbours find it, by both families.
        world.on("node-1", "ip neigh flush dev eth0; ip -6 neigh flush dev eth0");
        for family in Families::Dual.list() {
            let node = world.spec.node_addr("node-2", *family).addr();
            assert!(world.reaches(&world.node_ns("node-1"), node, 56), "{family}");
        }
        // Nobody but nodes has a way into the tunnel.
        let rules = world.on("node-2", "nft list chain inet filter input");
        let vxlan: Vec<&str> = rules.lines().filter(|l| l.contains("udp dport 8472")).collect();
        assert!(!vxlan.is_empty() && vxlan.iter().all(|l| l.contains("saddr {")), "{rules}");
        // And doctor has nothing to say about the chain that its words have opened.
        eventually("nothing is wrong", PATIENCE, || {
            let (ok, text) = world.causeway("node-2", &["doctor"]);
            if ok { Ok(()) } else { Err(text) }
        });
        // Nor has it on the other nodes: whatever they try there is open.
        for node in ["node-1", "cp"] {
            let (ok, text) = world.causeway(node, &["doctor"]);
            assert!(ok && text == "nothing wrong\n", "{node}: {text}");
        }
        // The control plane: agents reach the API again.
        world.on("cp", CLOSED);
        world.on("cp", &commands(world, "cp", "control-plane"));
        world.agent("node-1", "restart");
        world.whole();
        let (ok, text) = world.causeway("node-1", &["doctor"]);
        assert!(ok && text == "nothing wrong\n", "{text}");
    });
}
