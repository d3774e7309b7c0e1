//! A start while the Kubernetes API does not answer.

use causeway_cluster::Snapshot;

use crate::node::{DEADLINE, Stack, each_stack, eventually, run, with};

#[test]
fn the_last_good_view_serves() {
    each_stack(|node| {
        node.start_with(node.three());
        node.stop();
        assert!(node.paths.last_view.exists());
        // As after a boot: kernel state and /run are gone.
        run("ip link del cw-vxlan");
        run("ip route flush proto 203");
        run("ip -6 route flush proto 203");
        run("nft flush ruleset");
        std::fs::remove_file(&node.paths.owned).unwrap();
        std::fs::remove_file(&node.paths.node_file).unwrap();
        node.sender.send_replace(Snapshot::default());
        node.start();
        node.until_ready();
        let status = node.status();
        assert_eq!(status.inputs.view, "last view");
        assert!(!status.inputs.synced);
        assert!(status.problems.iter().any(|p| p.message.contains("Kubernetes API")));
        assert!(node.routes_to(2).iter().all(|l| l.contains("eth0")));
        assert!(node.paths.node_file.exists());
        // It answers: node-3 is gone meanwhile.
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() != "node-3");
        node.sender.send_replace(Snapshot::synced_with(view));
        eventually("swept", DEADLINE, || {
            let left = node.routes_to(3).concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        eventually("shown", DEADLINE, || {
            let view = node.status().inputs.view;
            if view == "api" { Ok(()) } else { Err(view) }
        });
    });
}

#[test]
fn without_a_view_nothing_is_done_and_nothing_lost() {
    with(Stack::V4, <_>::default(), |node| {
        node.start();
        std::thread::sleep(std::time::Duration::from_millis(1300));
        let status = node.status();
        assert!(!status.ready && status.inputs.view == "none");
        assert!(status.problems.iter().any(|p| p.message.contains("Kubernetes API")));
        assert!(!node.conflist().exists());
        assert!(node.engine().plan().unwrap_err().contains("Kubernetes API"));
    });
}
