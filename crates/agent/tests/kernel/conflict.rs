//! What others made under a key that we want.

use causeway_agent::status::State;

use crate::node::{DEADLINE, Stack, eventually, run, with};

#[test]
fn a_static_route_in_the_way_is_shown_and_left_alone() {
    with(Stack::Dual, <_>::default(), |node| {
        run("ip route add 10.244.2.0/24 via 192.168.1.99");
        node.start_with(node.three());
        let object = eventually("shown", DEADLINE, || {
            let objects = node.status().objects;
            let of = |o: &causeway_agent::status::ObjectStatus| o.key == "route 10.244.2.0/24";
            objects.into_iter().find(of).ok_or_else(|| node.wrong())
        });
        assert_eq!(object.state, State::Conflict);
        assert_eq!(object.owner, "peer node-2");
        assert!(object.error.as_ref().unwrap().contains("made by somebody else"), "{object:?}");
        assert!(run("ip route show 10.244.2.0/24").contains("192.168.1.99"));
        assert!(node.status().ready, "only the way to one peer is wrong");
        // Once it is gone, ours takes its place.
        run("ip route del 10.244.2.0/24");
        eventually("ours", DEADLINE, || {
            let line = run("ip route show 10.244.2.0/24");
            if line.contains("192.168.1.12") { Ok(()) } else { Err(line) }
        });
    });
}

#[test]
fn a_static_route_that_leads_the_same_way_will_do() {
    with(Stack::V4, <_>::default(), |node| {
        run("ip route add 10.244.2.0/24 via 192.168.1.12");
        let before = run("ip route show 10.244.2.0/24");
        node.start_with(node.three());
        node.assert_whole();
        assert_eq!(run("ip route show 10.244.2.0/24"), before);
    });
}

#[test]
fn an_interface_of_another_kind_in_the_way() {
    with(Stack::V4, <_>::default(), |node| {
        node.config.attach = causeway_types::state::Attach::Bridge;
        run("ip link add cni0 type veth peer name cni0-peer");
        node.sender.send_replace(causeway_cluster::Snapshot::synced_with(node.three()));
        node.start();
        let object = eventually("shown", DEADLINE, || {
            let objects = node.status().objects;
            let of = |o: &causeway_agent::status::ObjectStatus| {
                o.key == "link cni0" && o.state == State::Conflict
            };
            objects.into_iter().find(of).ok_or_else(|| node.wrong())
        });
        assert!(object.error.unwrap().contains("another kind"));
        assert!(!node.status().ready && !node.conflist().exists());
        assert!(run("ip -d link show cni0").contains("veth"));
    });
}
