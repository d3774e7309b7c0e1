//! What the monitor tells, and waiting for links to go.

mod common;

use std::time::{Duration, Instant};

use causeway_kernel::Monitor;
use causeway_kernel::monitor::{Event, Events};
use causeway_model::Object;
use causeway_model::nft::NftFamily;
use causeway_plan::Op;
use common::*;
use rustix::event::{PollFd, PollFlags};

/// All events until none comes for a moment.
fn events(monitor: &mut Monitor) -> Vec<Event> {
    let mut all = Vec::new();
    let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    loop {
        let ready = {
            let mut fds = [PollFd::new(&*monitor, PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&pause)).unwrap()
        };
        if ready == 0 {
            return all;
        }
        match monitor.read().unwrap() {
            Events::Changed(events) => all.extend(events),
            Events::Overrun => panic!("overrun"),
        }
    }
}

#[test]
fn removals_by_others_are_told() {
    let mut h = start();
    let mut port = veth("cw-a", "cw-b");
    port.master = Some(name("cw-br"));
    create(
        &mut h,
        &[
            Object::Link(bridge("cw-br")),
            Object::Link(port),
            Object::Link(second_end("cw-b")),
            addr("cw-br", "192.168.9.1/24"),
            addr("cw-br", "fd09::1/64"),
            Object::Route(route_via("10.244.2.0/24", "192.168.9.2", "cw-br")),
            Object::Route(route_via("fd00:2::/64", "fd09::2", "cw-br")),
        ],
    );
    run("ip neigh add 192.168.9.7 lladdr 02:00:00:00:00:07 dev cw-br nud permanent");
    run("bridge fdb add 02:00:00:00:00:08 dev cw-a master static");
    run("nft add table inet cw_test");
    let br = h.link_index(&name("cw-br")).unwrap().unwrap();
    let port = h.link_index(&name("cw-a")).unwrap().unwrap();

    let mut monitor = Monitor::open().unwrap();
    // Nothing of before is told but what the bridge learns by itself.
    let Events::Changed(early) = monitor.read().unwrap() else { panic!("overrun") };
    assert!(early.iter().all(|e| matches!(e, Event::Fdb { gone: false, .. })), "{early:?}");
    let mut told = |what: &str, command: &str, is: &dyn Fn(&Event) -> bool| {
        run(command);
        let seen = events(&mut monitor);
        assert!(seen.iter().any(is), "{what}: {seen:?}");
    };
    told("v4 route", "ip route del 10.244.2.0/24", &|e| {
        matches!(e, Event::Route { dst, table: 254, protocol: 203, gone: true }
            if *dst == cidr("10.244.2.0/24"))
    });
    told(
        "v6 route",
        "ip -6 route del fd00:2::/64",
        &|e| matches!(e, Event::Route { dst, gone: true, .. } if *dst == cidr("fd00:2::/64")),
    );
    told(
        "neighbour",
        "ip neigh del 192.168.9.7 dev cw-br",
        &|e| matches!(e, Event::Neigh { index, gone: true, .. } if *index == br),
    );
    told(
        "fdb",
        "bridge fdb del 02:00:00:00:00:08 dev cw-a master",
        &|e| matches!(e, Event::Fdb { index, gone: true, .. } if *index == port),
    );
    told(
        "table",
        "nft add chain inet cw_test c",
        &|e| matches!(e, Event::Table { family: NftFamily::Inet, name, gone: false, .. } if name == "cw_test"),
    );
    told("table", "nft delete table inet cw_test", &|e| {
        matches!(e, Event::Table { gone: true, .. })
    });
    told(
        "port",
        "bridge link set dev cw-a isolated on",
        &|e| matches!(e, Event::Link { index, gone: false, .. } if *index == port),
    );
    told("v4 address", "ip addr del 192.168.9.1/24 dev cw-br", &|e| {
        matches!(e, Event::Addr { index, gone: true, addr }
            if *index == br && addr.to_string() == "192.168.9.1/24")
    });
    run("ip link set cw-a nomaster");
    let left = events(&mut monitor);
    assert!(!left.iter().any(|e| matches!(e, Event::Link { gone: true, .. })), "{left:?}");
    run("ip link del cw-a");
    let gone = events(&mut monitor);
    assert!(
        gone.iter().any(|e| matches!(e, Event::Link { index, gone: true, .. } if *index == port))
    );
}

#[test]
fn lost_news_are_an_overrun() {
    let mut h = start();
    create(&mut h, &[Object::Link(veth("cw-a", "cw-b")), Object::Link(second_end("cw-b"))]);
    create(&mut h, &[addr("cw-a", "192.168.9.1/24")]);
    let mut monitor = Monitor::open().unwrap();
    let routes: Vec<Object> = (0..60_000u32)
        .map(|i| {
            let dst = format!("10.{}.{}.{}/32", i >> 16, i >> 8 & 255, i & 255);
            Object::Route(route_via(&dst, "192.168.9.2", "cw-a"))
        })
        .collect();
    create(&mut h, &routes);
    // Each read ends after a while, so that the reader is not held up.
    let mut overrun = false;
    loop {
        match monitor.read().unwrap() {
            Events::Overrun => overrun = true,
            Events::Changed(events) if events.is_empty() => break,
            Events::Changed(_) => {}
        }
    }
    assert!(overrun);
    run("ip link set cw-b mtu 1400");
    assert!(!events(&mut monitor).is_empty(), "news go on after an overrun");
}

#[test]
fn waiting_for_a_link_that_somebody_else_removes() {
    let mut h = start();
    create(&mut h, &[Object::Link(veth("cw-a", "cw-b")), Object::Link(bridge("cw-br"))]);
    let index = h.link_index(&name("cw-a")).unwrap().unwrap();
    let short = Duration::from_millis(50);
    assert!(!h.wait_link_gone(index, short).unwrap());
    let remover = std::thread::spawn(|| {
        // Not the link, only its place in a bridge: told by a message of the same type.
        run("ip link set cw-a master cw-br");
        run("ip link set cw-a nomaster");
        std::thread::sleep(Duration::from_millis(100));
        run("ip link del cw-a");
    });
    let before = Instant::now();
    assert!(h.wait_link_gone(index, Duration::from_secs(10)).unwrap());
    assert!(before.elapsed() >= Duration::from_millis(80), "it was told too early");
    assert!(h.link_index(&name("cw-a")).unwrap().is_none());
    remover.join().unwrap();
    assert!(h.wait_link_gone(index, short).unwrap(), "gone already");
    apply(&mut h, &[Op::Remove(Object::Link(bridge("cw-br")))]);
}
