//! A range that is taken away is claimed for as long as a plugin may be giving out addresses of it.

use causeway_types::Cidr;
use causeway_types::state::AttachmentRecord;
use serde_json::json;

use super::*;

const RANGE: &str = "10.250.0.0/28";

/// A node that gives out addresses of an extra range, which is wanted no more.
fn taken_away() -> Test {
    let mut t = Test::new();
    set(&mut t, true);
    t.round();
    t.assert_whole();
    assert!(is_offered(&t));
    assert_eq!(claims(&t), [RANGE]);
    set(&mut t, false);
    t
}

fn set(t: &mut Test, wanted: bool) {
    let mut view = view(&[1, 2]);
    let own = view.nodes.get_mut(&"node-1".parse::<causeway_types::NodeName>().unwrap()).unwrap();
    let range: Cidr = RANGE.parse().unwrap();
    own.extra_cidrs = Vec::from_iter(wanted.then_some(range));
    own.claimed_cidrs = vec![range];
    t.core.set_snapshot(Snapshot::synced_with(view));
}

fn claims(t: &Test) -> Vec<String> {
    t.core.report().claims.expect("known").iter().map(Cidr::to_string).collect()
}

/// Plugins give out addresses of it.
fn is_offered(t: &Test) -> bool {
    let file = std::fs::read(&t.paths.node_file).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    file.get("extraCidrs").is_some_and(|all| all[0] == RANGE)
}

/// What the loop does by itself when it is due.
fn due(t: &mut Test) {
    t.now = t.core.next_wake().expect("there is more to do").max(t.now);
    t.core.reconcile(t.now);
}

#[test]
fn a_range_is_let_go_when_the_records_were_read_once_more() {
    for late in [false, true] {
        let mut t = taken_away();
        t.round();
        assert!(!is_offered(&t));
        assert_eq!(claims(&t), [RANGE], "the records were read before the file was written");
        let name = t.paths.attachments.join("c1-eth0.json");
        if late {
            // A plugin that read the file as it was.
            let record: AttachmentRecord = serde_json::from_value(json!({
                "containerId": "c1", "ifname": "eth0", "netns": "/run/netns/x", "pending": true,
                "network": "pod-network", "attach": "routed", "hostIfname": names::host_veth("c1", "eth0"),
                "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02", "mtu": 1450,
                "addresses": ["10.250.0.2/32"], "gateways": ["169.254.1.1"], "bootId": "boot",
            }))
            .unwrap();
            std::fs::create_dir_all(&t.paths.attachments).unwrap();
            std::fs::write(&name, serde_json::to_vec(&record).unwrap()).unwrap();
        }
        due(&mut t);
        if late {
            assert_eq!(claims(&t), [RANGE], "a pod has an address of it");
            std::fs::remove_file(&name).unwrap();
            t.round();
        }
        assert_eq!(claims(&t), [""; 0]);
    }
}

/// The file stays as it is while the node's own part is not there, and plugins go by the file.
#[test]
fn a_range_that_is_still_in_the_node_file_is_claimed() {
    let mut t = taken_away();
    t.core.self_test = SelfTest::default();
    for _ in 0..3 {
        t.round();
        assert!(is_offered(&t));
        assert_eq!(claims(&t), [RANGE]);
    }
    t.core.self_test = SelfTest::passed();
    t.round();
    due(&mut t);
    assert_eq!(claims(&t), [""; 0]);
}
