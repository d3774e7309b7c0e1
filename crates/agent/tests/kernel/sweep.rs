//! What is ours and no longer wanted goes, once every input is in sync.

use causeway_cluster::Snapshot;

use crate::node::{DEADLINE, each_stack, eventually, run, try_run};

#[test]
fn a_peer_that_left() {
    each_stack(|node| {
        node.start_with(node.three());
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() != "node-2");
        node.sender.send_replace(Snapshot::synced_with(view.clone()));
        eventually("direct peer gone", DEADLINE, || {
            let left = node.routes_to(2).concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        assert!(node.routes_to(3).iter().all(|l| l.contains("cw-vxlan")));
        view.nodes.retain(|name, _| name.as_str() == "node-1");
        node.sender.send_replace(Snapshot::synced_with(view));
        eventually("tunnel peer gone", DEADLINE, || {
            let left = node.routes_to(3).concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        eventually("tunnel device gone", DEADLINE, || match try_run("ip link show cw-vxlan") {
            Err(_) => Ok(()),
            // A node alone may keep its device for the next peer; nothing may point anywhere.
            Ok(_) => {
                let fdb = run("bridge fdb show dev cw-vxlan");
                if fdb.contains("dst ") { Err(fdb) } else { Ok(()) }
            }
        });
        node.assert_whole();
    });
}

#[test]
fn nothing_goes_before_everything_is_known() {
    each_stack(|node| {
        node.start_with(node.three());
        node.stop();
        // The list of Pods does not come; that of Nodes has lost two.
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() == "node-1");
        let mut snapshot = Snapshot::synced_with(view);
        snapshot.pods_synced = false;
        node.sender.send_replace(snapshot.clone());
        node.start();
        node.until_ready();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!node.status().inputs.synced);
        for n in [2, 3] {
            assert!(node.routes_to(n).iter().all(|l| l.contains("203")), "{:?}", node.routes_to(n));
        }
        snapshot.pods_synced = true;
        node.sender.send_replace(snapshot);
        eventually("swept after sync", DEADLINE, || {
            let left = [node.routes_to(2), node.routes_to(3)].concat().concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    });
}
