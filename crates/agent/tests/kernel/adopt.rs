//! A restarted agent takes over what it finds.

use crate::node::{Stack, each_stack, run, with};

fn ifindex(name: &str) -> String {
    run(&format!("ip -o link show {name}")).split(':').next().expect("an index").to_owned()
}

#[test]
fn a_restart_changes_nothing() {
    each_stack(|node| {
        node.start_with(node.three());
        node.assert_whole();
        let index = ifindex("cw-vxlan");
        let view = (run("ip -4 route"), run("ip -6 route"), run("nft -s list ruleset"));
        for lost in [false, true] {
            node.stop();
            assert!(node.conflist().exists(), "it stays without an agent");
            if lost {
                // As after somebody emptied /run.
                std::fs::remove_file(&node.paths.owned).unwrap();
            }
            // Everything that changes anything shows here, the kernel's own end of a test of an address too.
            crate::node::eventually("no address is tentative", crate::node::DEADLINE, || {
                let tentative = run("ip -6 addr show tentative");
                if tentative.is_empty() { Ok(()) } else { Err(tentative) }
            });
            let monitor = Monitor::start();
            node.start_with(node.three());
            node.assert_whole();
            assert_eq!(monitor.stop(), "", "nothing is written");
            assert_eq!(ifindex("cw-vxlan"), index);
            let now = (run("ip -4 route"), run("ip -6 route"), run("nft -s list ruleset"));
            assert_eq!(now, view);
            assert_eq!(node.status().repairs, 0);
            assert_eq!(node.status().generation, 1);
        }
        // Adopted means that it is also swept when it is no longer wanted.
        let mut view = node.three();
        view.nodes.retain(|name, _| name.as_str() != "node-3");
        node.sender.send_replace(causeway_cluster::Snapshot::synced_with(view));
        crate::node::eventually("swept", crate::node::DEADLINE, || {
            let left = node.routes_to(3).concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    });
}

/// `ip monitor`, whose output shows every change of links, addresses and routes.
pub(crate) struct Monitor {
    child: std::process::Child,
}

impl Monitor {
    pub(crate) fn start() -> Self {
        let child = std::process::Command::new("ip")
            .args(["monitor", "link", "address", "route"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("ip monitor");
        std::thread::sleep(std::time::Duration::from_millis(100));
        Self { child }
    }

    pub(crate) fn stop(mut self) -> String {
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.child.kill().expect("ours");
        let out = self.child.wait_with_output().expect("ends");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
}

#[test]
fn routes_with_our_number_that_are_not_ours_are_left_alone() {
    with(Stack::Dual, <_>::default(), |node| {
        run("ip route add 203.0.113.0/24 via 192.168.1.99 proto 203");
        node.start_with(node.three());
        run("ip route add 198.51.100.0/24 via 192.168.1.99 proto 203");
        run("ip -6 route add 2001:db8:1::/64 via fd00:1::99 proto 203");
        crate::node::eventually("all three reported", crate::node::DEADLINE, || {
            let strangers = node.status().strangers;
            if strangers.len() == 3 { Ok(()) } else { Err(format!("{strangers:?}")) }
        });
        node.stop();
        node.start_with(node.three());
        node.sender.send_replace(causeway_cluster::Snapshot::synced_with({
            let mut view = node.three();
            view.nodes.retain(|name, _| name.as_str() == "node-1");
            view
        }));
        crate::node::eventually("peers gone", crate::node::DEADLINE, || {
            let left = node.routes_to(2).concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        assert!(run("ip route show 203.0.113.0/24").contains("192.168.1.99"));
        assert!(run("ip route show 198.51.100.0/24").contains("192.168.1.99"));
        assert!(run("ip -6 route show 2001:db8:1::/64").contains("fd00:1::99"));
    });
}
