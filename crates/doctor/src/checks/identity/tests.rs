use super::*;
use crate::facts::cluster::Address;

fn member(name: &str, address: &str, net: &str) -> Member {
    Member {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: vec![net.parse().unwrap()],
        hostnames: vec![name.into()],
        machine_id: format!("id-{name}"),
        system_uuid: format!("uuid-{name}"),
        ready: Some(true),
        ..Member::default()
    }
}

fn mac_of(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// Two nodes in good order, of which `a` is this one.
fn good() -> Facts {
    let site = Site {
        members: vec![
            member("a", "192.168.1.11", "10.244.1.0/24"),
            member("b", "192.168.1.12", "10.244.2.0/24"),
            member("c", "fd00::13", "fd00:10:244:3::/64"),
        ],
        me: "a".into(),
        hostname: "a".into(),
        boot_id: "boot-a".into(),
        addresses: vec![Address {
            dev: "eth0".into(),
            mac: Some(mac_of(11)),
            net: "192.168.1.11/24".parse().unwrap(),
        }],
        neighbours: vec![
            ("eth0".into(), "192.168.1.12".parse().unwrap(), mac_of(12)),
            ("eth0".into(), "fd00::13".parse().unwrap(), mac_of(13)),
            ("eth0".into(), "192.168.1.1".parse().unwrap(), mac_of(1)),
        ],
        ..Site::default()
    };
    Facts { site, ..Facts::default() }
}

/// The ids of what is wrong after a change, and the first finding's words.
fn after(change: impl FnOnce(&mut Site)) -> (Vec<&'static str>, String) {
    let mut facts = good();
    change(&mut facts.site);
    let found = crate::judge(&facts);
    let first = found.first().map(|f| f.what.clone()).unwrap_or_default();
    (found.iter().map(|f| f.id).collect(), first)
}

#[test]
fn good_order() {
    assert_eq!(after(|_| {}).0, Vec::<&str>::new());
}

#[test]
fn addresses_of_nodes() {
    let (ids, what) = after(|s| s.addresses[0].net = "192.168.1.99/24".parse().unwrap());
    assert_eq!(ids, ["node-address-missing"]);
    assert!(what.contains("192.168.1.11"), "{what}");
    let (ids, what) = after(|s| s.members[2].addresses = s.members[1].addresses.clone());
    assert_eq!(ids, ["node-address-twice"]);
    assert_eq!(what, "nodes b, c have the same InternalIP 192.168.1.12");
}

#[test]
fn subnets_of_pods() {
    let net = |text: &str| vec![text.parse().unwrap()];
    let (ids, what) = after(|s| s.members[1].pod_cidrs = net("10.244.0.0/16"));
    assert_eq!(ids, ["pod-subnets-overlap"]);
    assert_eq!(what, "pod subnets 10.244.0.0/16 of b and 10.244.1.0/24 of a overlap");
    let (ids, _) = after(|s| s.members[2].pod_cidrs = net("10.244.1.0/24"));
    assert_eq!(ids, ["pod-subnets-overlap"]);
    let (ids, what) = after(|s| s.members[1].pod_cidrs = net("192.168.1.128/25"));
    assert_eq!(ids, ["pod-subnet-on-underlay"]);
    assert!(what.contains("overlaps 192.168.1.0/24 of eth0"), "{what}");
    let (_, what) = after(|s| s.members[1].pod_cidrs = net("fd00::/64"));
    assert!(what.contains("contains address fd00::13 of node c"), "{what}");
}

#[test]
fn pods() {
    let shared = ("10.244.1.2".parse().unwrap(), vec!["x/a".to_owned(), "y/b".to_owned()]);
    let (ids, what) = after(|s| s.shared = vec![shared]);
    assert_eq!(ids, ["pod-address-twice"]);
    assert_eq!(what, "pods x/a, y/b have the same address 10.244.1.2");
}

#[test]
fn machines() {
    let (ids, what) = after(|s| s.members[2].machine_id = "ID-b".into());
    assert_eq!(ids, ["machine-id-twice"]);
    assert!(what.starts_with("nodes b, c have the same machine ID"), "{what}");
    let (ids, _) = after(|s| s.members[2].system_uuid = "uuid-a".into());
    assert_eq!(ids, ["machine-id-twice"]);
    let unknown = |s: &mut Site| s.members.iter_mut().for_each(|m| m.machine_id.clear());
    assert_eq!(after(unknown).0, Vec::<&str>::new());
    assert_eq!(after(|s| s.members[0].boot_id = "BOOT-a".into()).0, Vec::<&str>::new());
    assert_eq!(after(|s| s.members[0].boot_id = "boot-z".into()).0, ["node-name-taken"]);
    let booting = |s: &mut Site| {
        s.members[0].boot_id = "boot-z".into();
        s.members[0].ready = Some(false);
    };
    assert_eq!(after(booting).0, Vec::<&str>::new());
}

#[test]
fn host_names() {
    let (ids, what) = after(|s| s.hostname = "B".into());
    assert_eq!(ids, ["host-name-twice"]);
    assert!(what.contains("node a, is called b"), "{what}");
    assert_eq!(after(|s| s.hostname = "ip-10-0-0-1".into()).0, Vec::<&str>::new());
    let (ids, what) = after(|s| s.members[2].hostnames = vec!["B".into()]);
    assert_eq!(ids, ["host-name-twice"]);
    assert_eq!(what, "nodes b, c have the host name b");
}

#[test]
fn macs() {
    let (ids, what) = after(|s| s.neighbours[0].2 = mac_of(11));
    assert_eq!(ids, ["mac-twice"]);
    assert_eq!(what, "nodes a, b have the same MAC 02:00:00:00:00:0b");
    let (ids, what) = after(|s| s.neighbours[1].2 = mac_of(12));
    assert_eq!(ids, ["mac-twice"]);
    assert!(what.contains("nodes b, c"), "{what}");
    // A router answers for everybody.
    let cloud = |s: &mut Site| s.neighbours.iter_mut().for_each(|n| n.2 = mac_of(1));
    assert_eq!(after(cloud).0, Vec::<&str>::new());
    // Both families of one node.
    let dual = |s: &mut Site| {
        let ip = "fd00::12".parse().unwrap();
        s.members[1].addresses.push(ip);
        s.neighbours.push(("eth0".into(), ip, mac_of(12)));
        let local = "fe80::12".parse().unwrap();
        s.neighbours.push(("eth0".into(), local, mac_of(12)));
    };
    assert_eq!(after(dual).0, Vec::<&str>::new());
}
