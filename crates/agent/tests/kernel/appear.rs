//! From nothing to a whole node.

use causeway_agent::status::State;

use crate::node::{Stack, each_stack, run};

#[test]
fn routes_tunnel_filter_and_files_appear() {
    each_stack(|node| {
        node.start_with(node.three());
        for line in node.routes_to(2) {
            assert!(line.contains("via") && line.contains("dev eth0"), "{line}");
            assert!(line.contains("203"), "{line}");
        }
        for line in node.routes_to(3) {
            assert!(line.contains("dev cw-vxlan") && line.contains("203"), "{line}");
        }
        let link = run("ip -d link show cw-vxlan");
        assert!(link.contains("vxlan id 4096") && link.contains("dstport 8472"), "{link}");
        let outer = if node.stack.v4() { "192.168.2.13" } else { "fd00:2::13" };
        let fdb = run("bridge fdb show dev cw-vxlan");
        assert!(fdb.contains(&format!("dst {outer}")), "{fdb}");
        assert!(run("nft list table inet causeway").contains("chain"));

        node.assert_whole();
        let status = node.status();
        assert!(status.inputs.synced && status.inputs.view == "api");
        assert_eq!(status.inputs.nodes.objects, 3);
        assert_eq!(status.strangers, Vec::<String>::new());
        let file = std::fs::read_to_string(&node.paths.node_file).unwrap();
        assert!(file.contains("\"generation\": 1"), "{file}");
        assert!(std::fs::read_to_string(node.conflist()).unwrap().contains("cniVersion"));
    });
}

#[test]
fn a_node_without_subnet_is_told_why_it_is_not_ready() {
    crate::node::with(Stack::V4, <_>::default(), |node| {
        let mut view = node.three();
        view.nodes.iter_mut().next().unwrap().1.pod_cidrs.clear();
        node.sender.send_replace(causeway_cluster::Snapshot::synced_with(view.clone()));
        node.start();
        let problem = crate::node::eventually("the problem", crate::node::DEADLINE, || {
            let problems = node.status().problems;
            problems.into_iter().find(|p| p.message.contains("podCIDR")).ok_or_else(|| node.wrong())
        });
        assert_eq!(problem.owner, "node");
        assert!(!node.status().ready && !node.conflist().exists());
        // The controller manager wakes up.
        node.sender.send_replace(causeway_cluster::Snapshot::synced_with(node.three()));
        node.until_ready();
        assert!(node.conflist().exists());
    });
}

#[test]
fn the_script_of_the_node() {
    crate::node::with(Stack::Dual, <_>::default(), |node| {
        node.start_with(node.three());
        let script = node.engine().script(true).expect("a script");
        for part in ["10.244.2.0/24", "192.168.1.12", "cw-vxlan", "nft -f -", "ip_forward"] {
            assert!(script.contains(part), "{part} in\n{script}");
        }
        assert!(node.status().objects.iter().all(|o| o.state == State::Ok && !o.why.is_empty()));
    });
}
