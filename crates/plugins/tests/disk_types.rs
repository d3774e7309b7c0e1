//! Full and read-only disks, for the types that `disk` does not have.

mod common;

use common::disk::{Out, fill, leave, new_disk, switch};
use common::served::Families;
use common::types::{Kind, Scene, each};
use common::ways::check;
use common::{sh, try_sh};
use serde_json::{Value, json};

use Kind::*;

/// The types that write something down.
const WRITERS: [Kind; 6] = [Tuning, Firewall, Portmap, Ptp, Macvlan, HostDevice];

/// The disks that a type writes to: a file system for each.
fn disks(kind: Kind) -> &'static [&'static str] {
    match kind {
        Tuning => &["/run/cni"],
        Firewall | Portmap => &["/var/lib/causeway"],
        Ptp => &["/var/lib/cni"],
        _ => &["/var/lib/cni", "/var/lib/causeway"],
    }
}

/// One disk for all that a type writes.
fn disk(kind: Kind) -> &'static str {
    if disks(kind).len() == 1 { disks(kind)[0] } else { "/var/lib" }
}

fn rest(kind: Kind) -> &'static [Kind] {
    &kind.chain()[..kind.chain().len() - 1]
}

/// The configurations of a type for some pods, which have what comes before it in the chain.
fn begin(scene: &Scene, kind: Kind, pods: usize) -> Vec<Value> {
    (1..=pods)
        .map(|n| {
            scene.pod(n);
            scene.conf(kind, n, &scene.add(rest(kind), n))
        })
        .collect()
}

#[track_caller]
fn says(answer: common::Answer, code: u64, parts: &[&str], what: &str) {
    let (got, message) = answer.err();
    assert_eq!(got, code, "{what}: {message}");
    for part in parts {
        assert!(message.contains(part), "{what}: {part:?} in {message}");
    }
    assert!(!message.contains("left behind"), "{what}: {message}");
}

/// Grows the room by one until ADD succeeds. Before that it must fail well, and STATUS tell.
fn fill_up(scene: &Scene, kind: Kind, confs: &[Value], out: Out, warm: bool) -> u64 {
    let (node, dir) = (&scene.node, disk(kind));
    for room in 0..64 {
        new_disk(dir);
        if warm {
            node.add("p2", &confs[1]);
            node.del("p2", &confs[1]);
        }
        leave(dir, out, room);
        let what = format!("{kind:?} {out:?}, room for {room}, warm {warm}");
        let before = scene.state(&[1]);
        let status = scene.status(kind);
        let add = node.call("ADD", "p1", &confs[0]).run();
        if add.code == 0 {
            assert_eq!(status.code, 0, "{what}: {}", status.stdout);
            assert!(kind.is_there(1), "{what}");
            node.del("p1", &confs[0]);
            scene.forget_parameters(1);
            scene.back(&before, &[1], &what);
            return room;
        }
        let parts = [dir, "No space left on device", out.cause()];
        says(add, 5, &parts, &what);
        scene.back(&before, &[1], &what);
        says(status, 50, &parts, &what);
        // As a runtime does after an ADD that failed.
        node.del("p1", &confs[0]);
        scene.gc(kind, &[]).ok();
        scene.back(&before, &[1], &what);
    }
    unreachable!("room for 64 is enough")
}

#[test]
fn the_disk_is_full_at_each_write_of_add() {
    each(&WRITERS, &Families::ALL, |scene, kind| {
        let confs = begin(scene, kind, 2);
        let mut rooms = Vec::new();
        for out in [Out::Inodes, Out::Bytes] {
            let cold = scene.families == Families::Dual;
            for warm in [false, true].into_iter().filter(|warm| *warm || cold) {
                rooms.push(fill_up(scene, kind, &confs, out, warm));
            }
        }
        println!("{kind:?} {:?}: failed with room for less than {rooms:?}", scene.families);
        assert!(rooms.iter().all(|room| *room >= 1), "{rooms:?}");
    });
}

#[test]
fn a_full_disk_keeps_nobody_from_removing() {
    each(&WRITERS, &Families::ALL, |scene, kind| {
        let (node, dir) = (&scene.node, disk(kind));
        new_disk(dir);
        let confs = begin(scene, kind, 3);
        let before = scene.state(&[1]);
        let results: Vec<Value> =
            (1..=3).map(|n| node.add(&format!("p{n}"), &confs[n - 1])).collect();
        fill(dir);
        check(node, "p1", &confs[0], &results[0]).ok();
        for _ in 0..2 {
            node.del("p1", &confs[0]);
            assert!(!kind.is_there(1));
        }
        fill(dir);
        scene.gc(kind, &[3]).ok();
        // What is inside a pod goes with it.
        assert!(kind == Tuning || !kind.is_there(2));
        assert!(kind.is_there(3));
        check(node, "p3", &confs[2], &results[2]).ok();
        node.del("p3", &confs[2]);
        scene.forget_parameters(1);
        scene.back(&before, &[1], "after all");
    });
}

#[test]
fn a_read_only_disk_before_add() {
    each(&WRITERS, &[Families::Dual], |scene, kind| {
        disks(kind).iter().for_each(|dir| new_disk(dir));
        let (node, confs) = (&scene.node, begin(scene, kind, 1));
        for warm in [false, true] {
            for dir in disks(kind) {
                let what = format!("{kind:?} {dir} warm {warm}");
                let before = scene.state(&[1]);
                switch(dir, "ro");
                let parts = [*dir, "Read-only file system", "mount it writable"];
                says(scene.status(kind), 50, &parts, &what);
                says(node.call("ADD", "p1", &confs[0]).run(), 5, &parts, &what);
                scene.back(&before, &[1], &what);
                scene.gc(kind, &[]).ok();
                node.del("p1", &confs[0]);
                scene.back(&before, &[1], &what);
                switch(dir, "rw");
            }
            // From now on files and directories are there.
            node.add("p1", &confs[0]);
            node.del("p1", &confs[0]);
            scene.forget_parameters(1);
        }
    });
}

/// The pod's network goes all the same. What stays on the disk goes with the next DEL or GC.
#[test]
fn a_disk_that_turns_read_only_under_a_pod() {
    each(&WRITERS, &[Families::Dual], |scene, kind| {
        disks(kind).iter().for_each(|dir| new_disk(dir));
        let (node, confs) = (&scene.node, begin(scene, kind, 1));
        let before = scene.state(&[1]);
        for dir in disks(kind) {
            for by_gc in [false, true] {
                let what = format!("{kind:?} {dir} by GC {by_gc}");
                let end = || match by_gc {
                    true => scene.gc(kind, &[]),
                    false => node.call("DEL", "p1", &confs[0]).run(),
                };
                let result = node.add("p1", &confs[0]);
                switch(dir, "ro");
                check(node, "p1", &confs[0], &result).ok();
                scene.gc(kind, &[1]).ok();
                check(node, "p1", &confs[0], &result).ok();
                for _ in 0..2 {
                    says(end(), 5, &[dir, "mount it writable"], &what);
                    // What is inside a pod goes with it: GC leaves that alone.
                    let stays = by_gc && kind == Tuning;
                    assert_eq!(kind.is_there(1), stays, "{what}");
                    assert!(try_sh("ip link show d1").0, "{what}: the node's device is lost");
                }
                switch(dir, "rw");
                end().ok();
                if by_gc && kind == Tuning {
                    sh("ip -n p1 link set eth0 mtu 1500 promisc off allmulticast off");
                }
                scene.forget_parameters(1);
                scene.back(&before, &[1], &what);
            }
        }
    });
}

/// What could not be erased speaks of things that others have by then.
#[test]
fn a_record_that_stayed_takes_nothing_from_others() {
    each(&[Portmap, HostDevice, Macvlan], &[Families::Dual], |scene, kind| {
        disks(kind).iter().for_each(|dir| new_disk(dir));
        let (node, confs) = (&scene.node, begin(scene, kind, 2));
        let before = scene.state(&[1, 2]);
        // Port and device of the first.
        let mut other = confs[1].clone();
        for key in ["runtimeConfig", "device"] {
            if !confs[0][key].is_null() {
                other[key] = confs[0][key].clone();
            }
        }
        for by_gc in [true, false] {
            node.add("p1", &confs[0]);
            switch("/var/lib/causeway", "ro");
            assert_eq!(node.call("DEL", "p1", &confs[0]).run().err().0, 5);
            switch("/var/lib/causeway", "rw");
            let result = node.add("p2", &other);
            match by_gc {
                true => drop(scene.gc(kind, &[2]).ok()),
                false => node.del("p1", &confs[0]),
            }
            check(node, "p2", &other, &result).ok();
            assert!(kind.is_there(2) && !kind.is_there(1), "{kind:?} by GC {by_gc}");
            node.del("p2", &other);
            scene.back(&before, &[1, 2], &format!("{kind:?} by GC {by_gc}"));
        }
    });
}

/// Types that write nothing do with full disks and read-only ones, `/run/causeway` too.
#[test]
fn who_needs_no_disk() {
    each(&[Bandwidth, Sbr], &[Families::Dual], |scene, kind| {
        for dir in ["/var/lib", "/run/causeway"] {
            new_disk(dir);
        }
        let (node, confs) = (&scene.node, begin(scene, kind, 1));
        let before = scene.state(&[1]);
        for how in ["full", "ro"] {
            for dir in ["/var/lib", "/run/causeway"] {
                if how == "ro" { switch(dir, "ro") } else { fill(dir) }
            }
            scene.status(kind).ok();
            let result = node.add("p1", &confs[0]);
            check(node, "p1", &confs[0], &result).ok();
            node.del("p1", &confs[0]);
            scene.back(&before, &[1], how);
        }
        assert!(try_sh("touch /var/lib/x /run/causeway/x").1.contains("Read-only"));
    });
    let alone = std::thread::spawn(|| {
        let node = common::Node::new();
        node.pod("p1");
        for dir in ["/var/lib", "/run/causeway"] {
            new_disk(dir);
            switch(dir, "ro");
        }
        for conf in [
            json!({"type": "loopback"}),
            json!({
                "type": "static",
                "ipam": {"type": "static", "addresses": [{"address": "10.1.1.1/24"}, {"address": "fd01::1/64"}]}
            }),
        ] {
            let mut conf = conf;
            (conf["cniVersion"], conf["name"]) = (json!("1.1.0"), json!("alone"));
            let mut call = node.call("ADD", "p1", &conf);
            if conf["type"] == "loopback" {
                call.ifname = "lo".to_owned();
            }
            call.run().ok();
            call.command = "DEL";
            call.run().ok();
            call.command = "STATUS";
            call.run().ok();
        }
    });
    assert!(alone.join().is_ok(), "loopback and static");
}
