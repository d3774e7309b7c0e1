//! A disk without room, and one that is read-only: what cannot be written down is not made, what
//! was made is taken down all the same, and STATUS says so before a pod is sent here.

mod common;

use std::fs;
use std::path::Path;

use common::disk::{Out, fill, leave, new_disk, switch};
use common::served::Families;
use common::ways::{check, dual, everywhere, gc, inside};
use common::{Node, files_below, sh};
use serde_json::Value;

#[track_caller]
fn nothing_of(node: &Node, pod: &str, what: &str) {
    assert_eq!(node.residue(), "", "{what}");
    assert!(!inside(pod), "{what}: eth0 is in the pod");
}

/// Grows the room by one until ADD succeeds. Before that it must fail well, and STATUS tell.
fn fill_up(node: &Node, conf: &Value, out: Out, warm: bool) -> u64 {
    for room in 0..64 {
        new_disk("/var/lib");
        if warm {
            node.add("p2", conf);
            node.del("p2", conf);
        }
        leave("/var/lib", out, room);
        let what = format!("{out:?}, room for {room}, warm {warm}");
        let status = node.call("STATUS", "", conf).run();
        let add = node.call("ADD", "p1", conf).run();
        if add.code == 0 {
            assert_eq!(status.code, 0, "{what}: {}", status.stdout);
            node.del("p1", conf);
            nothing_of(node, "p1", &what);
            return room;
        }
        let (code, message) = add.err();
        assert_eq!(code, 5, "{what}: {message}");
        for part in ["/var/lib/", "No space left on device", out.cause()] {
            assert!(message.contains(part), "{what}: {part:?} in {message}");
        }
        assert!(!message.contains("left behind"), "{what}: {message}");
        nothing_of(node, "p1", &what);
        let (code, message) = status.err();
        assert_eq!(code, 50, "{what}: {message}");
        for part in ["/var/lib", "No space left on device", out.cause()] {
            assert!(message.contains(part), "{what}: {part:?} in {message}");
        }
        // As a runtime does after an ADD that failed.
        node.del("p1", conf);
        nothing_of(node, "p1", &what);
        assert_eq!(gc(node, conf, &[]).code, 0, "{what}");
    }
    unreachable!("room for 64 is enough")
}

#[test]
fn the_disk_is_full_at_each_write_of_add() {
    everywhere(|node, conf, way, families| {
        for pod in ["p1", "p2"] {
            node.pod(pod);
        }
        let mut rooms = Vec::new();
        for out in [Out::Inodes, Out::Bytes] {
            // One family alone writes nothing that both do not: what comes first of all is left out.
            for warm in [false, true].into_iter().filter(|w| *w || families == Families::Dual) {
                rooms.push(fill_up(node, conf, out, warm));
            }
        }
        println!("{way:?} {families:?}: failed with room for less than {rooms:?}");
        // A lease and its last address, at the least, and a record beside each where served.
        let least = families.cidrs().len() as u64 * if way.is_served() { 2 } else { 1 };
        assert!(rooms.iter().all(|room| *room >= least), "{rooms:?}");
    });
}

#[test]
fn a_full_disk_keeps_nobody_from_removing() {
    everywhere(|node, conf, way, _| {
        for pod in ["p1", "p2", "p3"] {
            node.pod(pod);
        }
        for locked in [true, false] {
            new_disk("/var/lib");
            let mut first = Value::Null;
            for pod in ["p3", "p2", "p1"] {
                first = node.add(pod, conf);
            }
            if !locked {
                // As after a restore of leases alone.
                fs::remove_file("/var/lib/cni/networks/pod-network/lock").unwrap();
            }
            fill("/var/lib");
            check(node, "p1", conf, &first).ok();
            node.del("p1", conf);
            assert!(!inside("p1"));
            node.del("p1", conf);
            fill("/var/lib");
            gc(node, conf, &["p3"]).ok();
            assert!(!inside("p2") && (inside("p3") || !way.has_interfaces()));
            let left = files_below(Path::new("/var/lib/cni/networks/pod-network"));
            assert!(left.iter().any(|f| f.is_file()), "{left:?}");
            node.del("p3", conf);
            assert_eq!(node.residue(), "", "{way:?}");
        }
    });
}

/// The two directories on file systems of their own.
fn two_disks() {
    for dir in ["/var/lib/cni", "/var/lib/causeway"] {
        fs::create_dir_all(dir).unwrap();
        sh(&format!("mount -t tmpfs tmpfs {dir}"));
    }
}

#[test]
fn a_read_only_disk_before_add() {
    dual(|node, conf, way, _| {
        two_disks();
        node.pod("p1");
        for warm in [false, true] {
            for dir in ["/var/lib/cni", "/var/lib/causeway"] {
                let needed = dir == "/var/lib/cni" || way.is_served();
                switch(dir, "ro");
                let status = node.call("STATUS", "", conf).run();
                let add = node.call("ADD", "p1", conf).run();
                if needed {
                    for (answer, want) in [(status, 50), (add, 5)] {
                        let (code, message) = answer.err();
                        assert_eq!(code, want, "{dir}: {message}");
                        for part in [dir, "Read-only file system", "mount it writable"] {
                            assert!(message.contains(part), "{part:?} in {message}");
                        }
                        assert!(!message.contains("left behind"), "{message}");
                    }
                    nothing_of(node, "p1", dir);
                    gc(node, conf, &[]).ok();
                } else {
                    status.ok();
                    add.ok();
                }
                node.del("p1", conf);
                nothing_of(node, "p1", dir);
                switch(dir, "rw");
            }
            // From now on files and directories are there.
            node.add("p1", conf);
            node.del("p1", conf);
            nothing_of(node, "p1", if warm { "warm" } else { "cold" });
        }
    });
}

#[test]
fn a_disk_that_turns_read_only_under_a_pod() {
    dual(|node, conf, way, _| {
        two_disks();
        node.pod("p1");
        for dir in ["/var/lib/cni", "/var/lib/causeway"] {
            let needed = dir == "/var/lib/cni" || way.is_served();
            for by_gc in [false, true] {
                let result = node.add("p1", conf);
                switch(dir, "ro");
                check(node, "p1", conf, &result).ok();
                gc(node, conf, &["p1"]).ok();
                check(node, "p1", conf, &result).ok();
                for _ in 0..2 {
                    let gone = match by_gc {
                        true => gc(node, conf, &[]),
                        false => node.call("DEL", "p1", conf).run(),
                    };
                    // The pod's network is gone; what is on the disk keeps the address taken.
                    assert!(!inside("p1"), "{dir}");
                    if needed {
                        let (code, message) = gone.err();
                        assert_eq!(code, 5, "{message}");
                        assert!(message.contains(dir), "{message}");
                        assert!(message.contains("mount it writable"), "{message}");
                    } else {
                        gone.ok();
                    }
                }
                switch(dir, "rw");
                match by_gc {
                    true => drop(gc(node, conf, &[]).ok()),
                    false => node.del("p1", conf),
                }
                nothing_of(node, "p1", dir);
            }
        }
    });
}
