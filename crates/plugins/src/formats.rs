//! Notes as they are written today. A key that is renamed or taken away would cost the notes of other
//! versions, and fails here; a new one needs a default, and is added.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::firewall::note::Forward;
use crate::inside::LinkRecord;
use crate::portmap::note::Ports;

/// What is read is written again, and what nobody knows is passed over.
fn holds<T: DeserializeOwned + Serialize>(text: Value) {
    let note: T = serde_json::from_value(text.clone()).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(serde_json::to_value(note).unwrap(), text);
    let mut newer = text.clone();
    newer["ofALaterVersion"] = json!([1]);
    let note: T = serde_json::from_value(newer).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(serde_json::to_value(note).unwrap(), text);
}

fn whose() -> Value {
    json!({"containerId": "3f1c", "ifname": "eth0", "network": "n", "netns": "/run/netns/x", "bootId": "b"})
}

#[test]
fn notes_keep_their_keys() {
    holds::<Ports>(json!({
        "whose": whose(),
        "masquerade": {"bit": 13, "all": false, "subnets": ["10.1.0.0/24"]},
        "ports": [{"protocol": 6, "hostIp": "192.0.2.1", "hostPort": 80, "to": "10.1.0.2:8080"},
                  {"protocol": 17, "hostIp": null, "hostPort": 53, "to": "[fd00::2]:53"}],
    }));
    holds::<Forward>(json!({
        "whose": whose(), "addresses": ["10.1.0.2", "fd00::2"], "bridge": "cni0",
        "inserted": [{"family": "ip", "table": "filter", "chain": "FORWARD"}],
    }));
    holds::<LinkRecord>(json!({
        "containerId": "3f1c", "ifname": "eth0", "kind": "host-device", "network": "n",
        "netns": "/run/netns/x", "mac": "02:00:00:00:00:01", "device": "eth1", "alias": "uplink",
        "hardware": true, "pending": true, "bootId": "b",
    }));
}
