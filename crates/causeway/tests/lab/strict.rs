//! Why `causeway doctor` speaks of strict reverse path filtering on the tunnel.

use causeway_lab::Road;
use causeway_types::Family;
use causeway_types::state::Attach;

use crate::world::{PATIENCE, dual, eventually, with};

/// One node sends by the tunnel, the other directly, as while the road is changed node by node.
#[test]
fn doctor_is_right_on_strict_filtering() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        let (a, b) = (world.pod("a", "node-1"), world.pod("b", "node-2"));
        world.whole();
        let filter = |value: &str| {
            let path = "/proc/sys/net/ipv4/conf";
            let line = format!("echo 0 > {path}/all/rp_filter; echo 0 > {path}/eth0/rp_filter; ");
            world.on("node-1", &line);
            world.on("node-2", &format!("{line} echo {value} > {path}/cw-vxlan/rp_filter"));
        };
        let reach = || world.reaches(&world.netns(&a), world.ip(&b, Family::V4), 56);
        filter("1");
        assert!(reach(), "it does no harm while both use the tunnel");
        world.agent("node-2", "stop");
        let to = world.pod_cidr("node-1", Family::V4);
        let via = world.spec.node_addr("node-1", Family::V4).addr();
        world.on("node-2", &format!("ip route replace {to} via {via} dev eth0 proto 203"));
        assert!(!reach(), "what comes by the tunnel is dropped");
        filter("0");
        eventually("it passes", PATIENCE, || if reach() { Ok(()) } else { Err(String::new()) });
    });
}
