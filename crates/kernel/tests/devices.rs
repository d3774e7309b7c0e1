//! Devices that others own, on the real kernel.

mod common;

use std::path::Path;

use causeway_kernel::device::{Macvlan, Mode, NewMacvlan};
use causeway_kernel::{Handle, netns};
use common::*;

/// The name is taken.
const EEXIST: i32 = 17;

#[test]
fn macvlan_devices_of_every_mode_are_born_in_another_namespace() {
    let mut h = start();
    let other = netns::create_named(Path::new("/run/netns/other")).unwrap();
    run("ip link add low type veth peer name far");
    run("ip link set low mtu 1450 up");
    let low = h.device("low").unwrap().unwrap();
    let mut inside = Handle::open_in(&other).unwrap();
    for (mode, shown) in Mode::ALL {
        for bc_queue_len in [None, Some(50)] {
            let wanted = mac("02:00:00:00:00:07");
            let properties = Macvlan { mode, bc_queue_len };
            let (name, mtu) = (&name("eth0"), causeway_types::Mtu::new(1400).ok());
            let mac = (mode != Mode::Passthru).then_some(wanted);
            let new = NewMacvlan { name, lower: low.index, netns: &other, mac, mtu, properties };
            h.make_macvlan(&new).unwrap();
            assert_eq!(h.make_macvlan(&new).unwrap_err().errno, EEXIST);
            let made = inside.device("eth0").unwrap().unwrap();
            let found = made.macvlan.unwrap();
            assert_eq!((found.mode, made.lower, made.link.mtu), (mode, Some(low.index), mtu));
            assert!(bc_queue_len.is_none() || found.bc_queue_len == bc_queue_len);
            assert_eq!(made.link.mac, mac.or(low.link.mac));
            let text = run("ip -n other -d link show eth0");
            assert!(text.contains(&format!("macvlan mode {shown}")), "{text}");
            run("ip -n other link del eth0");
        }
    }
    let mtu = causeway_types::Mtu::new(1500).ok();
    let properties = Macvlan { mode: Mode::Bridge, bc_queue_len: None };
    let new = NewMacvlan {
        name: &name("eth0"),
        lower: low.index,
        netns: &other,
        mac: None,
        mtu,
        properties,
    };
    // More than the device below holds.
    assert!(h.make_macvlan(&new).is_err());
    assert_eq!(inside.device("eth0").unwrap(), None);
}

#[test]
fn devices_go_to_another_namespace_and_come_back() {
    let mut h = start();
    let home = netns::NetNs::current().unwrap();
    let other = netns::create_named(Path::new("/run/netns/other")).unwrap();
    let mut inside = Handle::open_in(&other).unwrap();
    run("ip link add h0 type veth peer name far");
    run("ip link set h0 up alias before");
    run("ip addr add 10.1.0.1/24 dev h0");
    run("ip link property add dev h0 altname a-name-that-is-long-enough");
    let device = h.device("a-name-that-is-long-enough").unwrap().unwrap();
    assert_eq!((device.link.name.as_str(), device.alias.as_str()), ("h0", "before"));
    assert_eq!(h.device("h0").unwrap().unwrap(), device);
    assert_eq!(h.device("nothing").unwrap(), None);

    // A name of its own there does not bar the way.
    run("ip -n other link add h0 type bridge");
    h.give_device(device.index, &other, &name("eth0"), "h0", None).unwrap();
    assert_eq!(h.device("h0").unwrap(), None);
    let there = inside.device("eth0").unwrap().unwrap();
    assert_eq!((there.alias.as_str(), there.link.up), ("h0", false));
    assert_eq!(there.link.mac, device.link.mac);

    run("ip -n other link set eth0 up");
    let between = name("cw0123");
    inside.give_device(there.index, &home, &name("h0"), "", Some(&between)).unwrap();
    let back = h.device("h0").unwrap().unwrap();
    assert_eq!((back.alias.as_str(), back.link.mac), ("", device.link.mac));
    assert_eq!(inside.device("eth0").unwrap(), None);

    // The name is taken there: it stays, or arrives under the name between.
    run("ip -n other link add eth0 type bridge");
    let refused = h.give_device(back.index, &other, &name("eth0"), "h0", Some(&between));
    assert!(refused.is_err());
    let there = inside.device("cw0123").unwrap().expect("arrived under the name between");
    assert_eq!(there.alias, "h0");
    inside.rename_device(there.index, &name("eth1")).unwrap();
    inside.set_device_alias(there.index, "new").unwrap();
    assert_eq!(inside.device("eth1").unwrap().unwrap().alias, "new");
    let all = inside.devices().unwrap();
    assert!(all.is_sorted_by_key(|d| d.index) && all.len() == 4, "{all:?}");
}
