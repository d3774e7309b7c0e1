use causeway_ipam::Range;

use std::collections::BTreeSet;

use super::*;
use crate::garbage::Stale;
use crate::paths::Paths;

fn sets() -> Vec<RangeSet> {
    let range = Range::new("10.1.2.0/30".parse().unwrap(), None, None, None).unwrap();
    vec![RangeSet::new(vec![range]).unwrap()]
}

fn leases(tmp: &std::path::Path, boot: Option<&str>) -> Leases {
    let paths = Paths {
        lease_records: tmp.join("records"),
        attachments: tmp.join("attachments"),
        ..Paths::default()
    };
    let record = boot.map(|boot| LeaseRecord {
        container_id: "c".into(),
        ifname: "eth0".into(),
        pod: None,
        boot_id: boot.into(),
        seen: false,
    });
    Leases { dir: tmp.join("net"), records: LeaseRecords::at(&paths, "net"), record }
}

fn owner(id: &str) -> Owner {
    Owner::new(id, "eth0")
}

#[test]
fn the_last_address_then_none_then_given_back() {
    let tmp = tempfile::tempdir().unwrap();
    let l = leases(tmp.path(), None);
    l.has_free(&sets()).unwrap();
    assert!(!l.dir.exists(), "asking makes nothing");
    l.allocate(&sets(), &owner("a"), &[], Look::Closely).unwrap();
    let err = l.allocate(&sets(), &owner("b"), &[], Look::Closely).unwrap_err();
    assert_eq!(err.code, 999, "{err}");
    assert_eq!(l.has_free(&sets()).unwrap_err().code, 50);
    l.release(&owner("a"), &[]).unwrap();
    l.release(&owner("a"), &[]).unwrap();
    l.allocate(&sets(), &owner("b"), &[], Look::Closely).unwrap();
    let twice = l.allocate(&sets(), &owner("b"), &[], Look::Closely).unwrap_err();
    assert!(twice.msg.contains("duplicate allocation is not allowed"), "{twice}");
}

#[test]
fn leases_from_before_the_boot_come_back_when_needed() {
    let tmp = tempfile::tempdir().unwrap();
    leases(tmp.path(), Some("boot-1")).allocate(&sets(), &owner("c"), &[], Look::Closely).unwrap();
    let now = leases(tmp.path(), Some("boot-2"));
    now.allocate(&sets(), &owner("b"), &[], Look::Closely).unwrap();
    assert!(now.held(&owner("c")).unwrap().is_empty());
    assert!(now.allocate(&sets(), &owner("d"), &[], Look::Closely).is_err());
}

/// The same for an address that is asked for.
#[test]
fn a_lease_from_before_the_boot_is_in_nobodys_way() {
    let tmp = tempfile::tempdir().unwrap();
    let before = leases(tmp.path(), Some("boot-1"));
    let (given, _) = before.allocate(&sets(), &owner("c"), &[], Look::Closely).unwrap();
    let ip = given[0].address.addr();
    let again = |boot, id| {
        let leases = leases(tmp.path(), Some(boot));
        leases.allocate(&sets(), &owner(id), &[ip], Look::ForMarks).map(drop)
    };
    let taken = again("boot-1", "b").unwrap_err();
    assert!(taken.msg.contains("c (eth0) has it"), "{taken}");
    again("boot-2", "b").unwrap();
    assert_eq!(before.held(&owner("b")).unwrap(), [ip]);
}

/// The reference gave the address back, which leaves our record of before the boot, and gave it
/// to a pod of this boot: that one lives.
#[test]
fn a_record_of_somebody_else_takes_nothing_back() {
    let tmp = tempfile::tempdir().unwrap();
    leases(tmp.path(), Some("boot-1")).allocate(&sets(), &owner("c"), &[], Look::Closely).unwrap();
    let now = leases(tmp.path(), Some("boot-2"));
    std::fs::write(now.dir.join("10.1.2.2"), "by-reference\r\neth0").unwrap();
    assert!(now.allocate(&sets(), &owner("c2"), &[], Look::Closely).is_err());
    assert_eq!(now.held(&owner("by-reference")).unwrap().len(), 1);
}

/// As the agent notes it of another plugin's lease. The same attachment gets the address again in
/// this boot, by a plugin that writes no records.
#[test]
fn a_record_of_its_own_from_before_the_boot_takes_nothing_back() {
    let tmp = tempfile::tempdir().unwrap();
    let unserved = leases(tmp.path(), None);
    let give = || unserved.allocate(&sets(), &owner("c"), &[], Look::Closely);
    let ip = give().unwrap().0[0].address.addr();
    unserved.note(ip, &owner("c"), "boot-1").unwrap();
    std::fs::remove_file(unserved.dir.join(ip.to_string())).unwrap();
    assert_eq!(give().unwrap().0[0].address.addr(), ip);
    let now = leases(tmp.path(), Some("boot-2"));
    assert!(now.allocate(&sets(), &owner("d"), &[ip], Look::Closely).is_err());
    assert_eq!(unserved.held(&owner("c")).unwrap(), [ip]);
    // And what it writes itself it leaves.
    now.release(&owner("c"), &[]).unwrap();
    now.allocate(&sets(), &owner("c"), &[], Look::Closely).unwrap();
    assert!(now.records.read(ip).unwrap().is_some());
}

/// The records of a pod of this boot that has the address.
fn recorded(tmp: &std::path::Path, l: &Leases, id: &str) -> std::net::IpAddr {
    let (given, _) = l.allocate(&sets(), &owner(id), &[], Look::Closely).unwrap();
    let ip = given[0].address.addr();
    let paths = Paths { attachments: tmp.join("attachments"), ..Paths::default() };
    let record = serde_json::json!({
        "containerId": id, "ifname": "eth0", "pending": false, "netns": "/run/netns/x", "network": "net",
        "attach": "bridge", "hostIfname": causeway_types::names::host_veth(id, "eth0"),
        "mac": "02:00:00:00:00:01", "hostMac": "02:00:00:00:00:02", "mtu": 1500,
        "addresses": [given[0].address.to_string()], "gateways": [], "bootId": "boot-1",
    });
    crate::record::Attachments::at(&paths).write(&serde_json::from_value(record).unwrap()).unwrap();
    ip
}

#[test]
fn records_restore_what_is_damaged_or_lost() {
    for damage in [Some(""), Some("c"), Some("c\r\neth"), None] {
        let tmp = tempfile::tempdir().unwrap();
        let l = leases(tmp.path(), Some("boot-1"));
        let ip = recorded(tmp.path(), &l, "c");
        let file = l.dir.join(ip.to_string());
        match damage {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        assert!(
            l.allocate(&sets(), &owner("d"), &[], Look::Closely).is_err(),
            "{damage:?}: {ip} twice"
        );
        l.stale(&BTreeSet::from([owner("c")]), 1).unwrap();
        assert_eq!(l.held(&owner("c")).unwrap(), [ip], "{damage:?}");
    }
}

/// The reference gave the address back, which leaves our records, and out again.
#[test]
fn a_whole_lease_counts_more_than_anothers_records() {
    let tmp = tempfile::tempdir().unwrap();
    let l = leases(tmp.path(), Some("boot-1"));
    let ip = recorded(tmp.path(), &l, "c");
    let file = l.dir.join(ip.to_string());
    std::fs::write(&file, "by-reference\r\neth0").unwrap();
    let valid = BTreeSet::from([owner("by-reference")]);
    assert_eq!(l.stale(&valid, 1).unwrap(), Stale::default());
    assert_eq!(l.held(&owner("by-reference")).unwrap(), [ip]);
    // DEL takes the lease, and leaves what may protect the other.
    l.release(&owner("by-reference"), &[]).unwrap();
    assert!(!file.exists());
    assert!(l.records.witness(ip).unwrap() == Some(owner("c")));
}

#[test]
fn gc_leaves_an_add_alone_that_has_not_ended() {
    let tmp = tempfile::tempdir().unwrap();
    let l = leases(tmp.path(), None);
    let (given, in_flight) = l.allocate(&sets(), &owner("a"), &[], Look::Closely).unwrap();
    let ip = given[0].address.addr();
    assert_eq!(l.stale(&BTreeSet::new(), 1).unwrap(), Stale::default());
    l.release_if(ip, &owner("a")).unwrap();
    assert_eq!(l.held(&owner("a")).unwrap(), [ip]);
    assert!(l.is_in_flight(&owner("a")).unwrap());
    drop(in_flight);
    assert!(!l.is_in_flight(&owner("a")).unwrap());
    assert_eq!(l.stale(&BTreeSet::new(), 1).unwrap().leases, [(ip, owner("a"))]);
}

#[test]
fn gc_lets_go_only_what_it_saw() {
    let tmp = tempfile::tempdir().unwrap();
    let l = leases(tmp.path(), None);
    l.allocate(&sets(), &owner("a"), &[], Look::Closely).unwrap();
    let stale = l.stale(&BTreeSet::new(), 1).unwrap().leases;
    l.release(&owner("a"), &[]).unwrap();
    l.allocate(&sets(), &owner("b"), &[], Look::Closely).unwrap();
    l.release_if(stale[0].0, &stale[0].1).unwrap();
    assert_eq!(l.held(&owner("b")).unwrap().len(), 1);
}

#[test]
fn what_is_not_looked_at_is_not_given_out_and_not_given_back() {
    let tmp = tempfile::tempdir().unwrap();
    let l = leases(tmp.path(), None);
    let (first, _) = l.allocate(&sets(), &owner("a"), &[], Look::ForMarks).unwrap();
    let ip = first[0].address.addr();
    // The mark has it look closely.
    let twice = l.allocate(&sets(), &owner("a"), &[], Look::ForMarks).unwrap_err();
    assert!(twice.msg.contains("duplicate allocation"), "{twice}");
    let full = l.allocate(&sets(), &owner("b"), &[], Look::ForMarks).unwrap_err();
    assert_eq!(full.code, 999, "{full}");
    // An ADD that got nothing, or another address, gives back that alone.
    l.give_back(&owner("b"), &[ip]).unwrap();
    assert_eq!(l.held(&owner("a")).unwrap(), [ip]);
    // What lies there from before the boot is free, once it is looked at.
    let file = l.dir.join(ip.to_string());
    std::fs::write(&file, "").unwrap();
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    l.allocate(&sets(), &owner("b"), &[], Look::ForMarks).unwrap();
    l.give_back(&owner("b"), &[ip]).unwrap();
    assert!(l.held(&owner("b")).unwrap().is_empty());
}

#[test]
fn a_removal_that_began_is_looked_for() {
    let tmp = tempfile::tempdir().unwrap();
    let l = leases(tmp.path(), None);
    // With room for more: nothing but the mark tells.
    let range = Range::new("10.1.2.0/28".parse().unwrap(), None, None, None).unwrap();
    let wide = [RangeSet::new(vec![range]).unwrap()];
    l.allocate(&wide, &owner("a"), &[], Look::ForMarks).unwrap();
    let twice = l.allocate(&wide, &owner("a"), &[], Look::ForMarks).unwrap_err();
    assert!(twice.msg.contains("duplicate allocation"), "{twice}");
    // As if others had made it.
    std::fs::remove_file(l.dir.join(".holds-a-eth0")).unwrap();
    l.begin_release(&owner("a"), &[]);
    let twice = l.allocate(&wide, &owner("a"), &[], Look::ForMarks).unwrap_err();
    assert!(twice.msg.contains("duplicate allocation"), "{twice}");
    l.release(&owner("a"), &[]).unwrap();
    assert!(
        std::fs::read_dir(&l.dir)
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with(".holds-") })
    );
}
