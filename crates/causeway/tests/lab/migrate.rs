//! `causeway migrate`: nodes as flannel, or hands, leave them are taken over one by one. No pod loses a
//! packet, a connection or its address, and all nodes talk at every moment.

mod flannel;
mod site;

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use causeway_kernel::monitor::{Event, Events, Monitor};
use causeway_lab::{Families, Fault, How, Loss, Pod, Road, Spec, watch_loss_while};
use causeway_types::Family;
use causeway_types::state::Attach;
use serde_json::Value;

use crate::streams::{Stream, stream};
use crate::world::{PATIENCE, dual, eventually, with};
use flannel::device;
use site::Site;

/// Where Debian's package containernetworking-plugins puts them.
const REFERENCE: &str = "/usr/lib/cni";
const WORKERS: [&str; 3] = ["node-1", "node-2", "node-3"];

fn installed() -> bool {
    let there = Path::new(REFERENCE).join("bridge").is_file();
    if !there {
        println!("skipped: the reference plugins are not in {REFERENCE}");
    }
    there
}

/// How often each pair of pods, and each connection, has a packet under way.
const PACE: Duration = Duration::from_millis(10);

// --- traffic -------------------------------------------------------------------------------------

/// Echo requests every 10 ms between all pods, and open connections between neighbours, across nodes and
/// to the world outside, while something happens: what was lost.
fn under_traffic(site: &mut Site<'_>, pods: &[Pod], what: impl FnOnce(&mut Site<'_>)) {
    let world = site.world;
    let on = AtomicBool::new(true);
    let outside: Vec<IpAddr> = site.families().iter().map(|f| Spec::outside(*f).0.addr()).collect();
    let (losses, streams) = std::thread::scope(|scope| {
        let on = &on;
        let mut pings: Vec<(String, std::thread::ScopedJoinHandle<'_, Loss>)> = Vec::new();
        let mut streams: Vec<(String, std::thread::ScopedJoinHandle<'_, Stream>)> = Vec::new();
        for (i, a) in pods.iter().enumerate() {
            let ns = world.netns(a);
            for b in &pods[i + 1..] {
                for &ip in &b.ips {
                    let ns = ns.clone();
                    let go_on = || on.load(Ordering::Relaxed);
                    let watch = move || watch_loss_while(&ns, ip, PACE, go_on).unwrap();
                    pings.push((format!("{} to {ip}", a.name), scope.spawn(watch)));
                }
            }
            let next = [&pods[(i + 1) % pods.len()], &pods[(i + pods.len() - 1) % pods.len()]];
            let to = next.iter().flat_map(|b| b.ips.clone()).chain(outside.clone());
            for ip in to {
                let ns = ns.clone();
                streams.push((
                    format!("{} to {ip}", a.name),
                    scope.spawn(move || stream(&ns, ip, on, PACE)),
                ));
            }
        }
        std::thread::sleep(Duration::from_millis(500));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(site)));
        on.store(false, Ordering::Relaxed);
        let losses: Vec<_> = pings.into_iter().map(|(n, p)| (n, p.join().unwrap())).collect();
        let streams: Vec<_> = streams.into_iter().map(|(n, s)| (n, s.join().unwrap())).collect();
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        (losses, streams)
    });
    let lost: Vec<_> = losses.iter().filter(|(_, loss)| loss.lost > 0).collect();
    let sent: u32 = losses.iter().map(|(_, loss)| loss.sent).sum();
    println!("{sent} echo requests on {} pairs, {} connections", losses.len(), streams.len());
    assert!(lost.is_empty(), "{lost:?}");
    assert!(losses.iter().all(|(_, loss)| loss.sent > 100), "{losses:?}");
    assert!(streams.iter().all(|(_, stream)| stream.bytes > 10_000), "{streams:?}");
}

/// Interfaces, addresses, routes, neighbours that stay, and rules, without what changes by itself.
const STATE: &str = r"
    ip -d -o link | grep -o '^[0-9]*: [^ ]*\|link/ether [^ ]*\|isolated [a-z]*\|vxlan id [0-9]*'
    ip -o addr | awk '{print $2, $4}' | grep -v fe80
    for f in -4 -6; do ip $f route; ip $f neigh show nud permanent; done
    bridge fdb show | grep -v -e 33:33 -e 01:00:5e
    nft -s list table inet causeway; nft -s list table netdev causeway_cni
    ls /etc/cni/net.d /var/lib/causeway/attachments /var/lib/cni/networks/*
";

fn spec(families: Families, road: Road) -> Spec {
    Spec { name: "migr".into(), bare: true, families, ..dual(3, Attach::Bridge, road) }
}

/// An old pod goes by our list, and leaves nothing.
fn ends(site: &mut Site<'_>, old: &Pod) {
    let node = &old.node;
    let port =
        site.shell(node, &format!("cat /var/lib/causeway/attachments/{}-eth0.json", old.name));
    let port: Value = serde_json::from_str(&port).unwrap();
    let port = port["hostIfname"].as_str().unwrap().to_owned();
    assert!(port.starts_with("veth"), "{port}");
    let list = "/etc/cni/net.d/05-causeway.conflist";
    site.cni("del", old, list, &site.world.spec.dirs().bin());
    let name = &old.name;
    eventually("nothing of the old pod is left", PATIENCE, || {
        let mut words = vec![port.clone(), format!("{name}-eth0"), format!("/{name}\n")];
        words.extend(old.ips.iter().map(|ip| format!("{ip} ")));
        let text = site.shell(
            node,
            "ip -o link; ip neigh; ip -6 neigh; ip route; ip -6 route; \
            iptables-save; ip6tables-save; nft list ruleset; find /var/lib/cni /var/lib/causeway",
        );
        let left: Vec<&str> = text
            .lines()
            .filter(|l| {
                words
                    .iter()
                    .any(|w| format!("{l} \n").contains(w.as_str()) || l.ends_with(w.trim()))
            })
            // The gateway of pods that ask is another matter.
            .filter(|l| !l.contains("last_reserved") && !l.contains("FAILED"))
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}

fn flannel(families: Families) {
    if !installed() {
        return;
    }
    with(spec(families, Road::Vxlan), |world| {
        let mut site = Site::new(world, Road::Vxlan);
        site.configure("cp", "pod-network");
        world.agent("cp", "restart");
        let (mut pods, mut old) = (Vec::new(), Vec::new());
        for node in WORKERS {
            site.flannel(node);
            // Two neighbours at least on some node: more are more than a small machine carries.
            let names: &[&str] = if node == "node-3" { &["a"] } else { &["a", "b"] };
            for name in names {
                pods.push(site.old_pod(node, &format!("{name}{}", &node[5..])));
            }
            old.push(site.old_pod(node, &format!("old{}", &node[5..])));
        }
        site.settled("cp");
        pods.push(world.pod("c", "cp"));
        eventually("cp tells flannel's nodes where it is", PATIENCE, || {
            let node = world.client.get("/api/v1/nodes/cp").unwrap();
            let said = &node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"];
            let v6 = &node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-v6-data"];
            if said.is_string() || v6.is_string() {
                Ok(())
            } else {
                Err(node["metadata"].to_string())
            }
        });
        WORKERS.iter().for_each(|node| site.flanneld(node));
        site.all_talk(&pods);
        refused(&mut site);
        let macs: Vec<Option<String>> = WORKERS
            .iter()
            .flat_map(|n| site.families().iter().map(|f| (*n, device(*f))).chain([(*n, "cni0")]))
            .map(|(node, dev)| site.mac(node, dev))
            .collect();
        under_traffic(&mut site, &pods, |site| {
            for (i, node) in WORKERS.iter().enumerate() {
                site.migrate(node, "flannel");
                WORKERS[i + 1..].iter().for_each(|node| site.flanneld(node));
                site.all_talk(&pods);
                let new = site.new_pod(node, &format!("new{}", i + 1));
                let mut all = pods.clone();
                all.extend(old.iter().cloned());
                all.push(new);
                site.all_talk(&all);
                ends(site, &old.remove(0));
                site.all_talk(&pods);
            }
        });
        let now: Vec<Option<String>> = WORKERS
            .iter()
            .flat_map(|n| site.families().iter().map(|f| (*n, device(*f))).chain([(*n, "cni0")]))
            .map(|(node, dev)| site.mac(node, dev))
            .collect();
        assert_eq!(now, macs, "devices keep their MACs");
        isolated(&site);
        restarted(&mut site, &pods);
        cleared(&site, &pods);
        rebooted(&mut site, &mut pods);
    });
}

/// Every port is isolated, and what flannel left on the devices is gone.
fn isolated(site: &Site<'_>) {
    for node in WORKERS {
        let ports = site.world.on(node, "bridge -d link show | grep -c 'isolated off'; true");
        assert_eq!(ports.trim(), "0", "{node}");
        for &family in site.families() {
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let dev = device(family);
            let routes = site.world.on(node, &format!("ip {flag} route show dev {dev}"));
            let neigh =
                site.world.on(node, &format!("ip {flag} neigh show dev {dev} nud permanent"));
            let ours = routes.lines().filter(|l| l.contains("via") && !l.contains("fe80"));
            assert!(
                ours.clone().count() == 3 && ours.clone().all(|l| l.contains("proto 203")),
                "{routes}"
            );
            assert_eq!(neigh.lines().count(), 3, "{neigh}");
        }
        let files = site.shell(node, "ls /etc/cni/net.d");
        assert!(files.contains("10-flannel.conflist.before-causeway"), "{files}");
        assert!(!files.lines().any(|f| f == "10-flannel.conflist"), "{files}");
    }
}

/// The agent of a node that was taken over starts again, and changes nothing.
fn restarted(site: &mut Site<'_>, pods: &[Pod]) {
    let before = site.shell("node-2", STATE);
    site.agents.remove("node-2");
    site.start_agent("node-2");
    site.settled("node-2");
    assert_eq!(site.shell("node-2", STATE), before);
    assert_eq!(site.world.status("node-2").unwrap().repairs, 0);
    site.all_talk(pods);
}

/// What flannel has beside goes, and nothing that was taken over.
fn cleared(site: &Site<'_>, pods: &[Pod]) {
    let before = site.shell("node-1", STATE);
    let (done, said) = site.world.causeway("node-1", &["reset", "--foreign", "flannel", "--yes"]);
    assert!(done && said.contains("taken over"), "{said}");
    let rules = site.shell("node-1", "iptables-save; ip6tables-save");
    assert!(!rules.contains("FLANNEL"), "{rules}");
    let files = site.shell("node-1", "ls /etc/cni/net.d");
    assert!(!files.contains("flannel"), "{files}");
    let without = |text: &str| {
        text.lines().filter(|l| !l.contains("10-flannel")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(without(&site.shell("node-1", STATE)), without(&before));
    site.all_talk(pods);
}

/// A node that was taken over boots: its tunnel devices are what other nodes know.
fn rebooted(site: &mut Site<'_>, pods: &mut Vec<Pod>) {
    let devices = site.families().iter().map(|f| device(*f)).collect::<Vec<_>>();
    let before: Vec<_> = devices.iter().map(|dev| site.mac("node-3", dev)).collect();
    site.agents.remove("node-3");
    let how = How { node: "node-3".into(), ..How::default() };
    causeway_lab::inflict(&site.world.spec, Fault::Rebooted, &how, &mut |_| {}).unwrap();
    let words = ["migrate", "--from", "flannel", "--node-name", "node-3", "--yes"];
    let (done, said) = site.world.causeway("node-3", &words);
    assert!(done && said.contains("before its last boot"), "{said}");
    site.start_agent("node-3");
    site.settled("node-3");
    let now: Vec<_> = devices.iter().map(|dev| site.mac("node-3", dev)).collect();
    assert_eq!(now, before);
    pods.retain(|p| p.node != "node-3");
    pods.push(site.new_pod("node-3", "after"));
    site.all_talk(pods);
}

/// A node that is not as it should be is not touched, and what is wrong is said.
fn refused(site: &mut Site<'_>) {
    let node = "node-1";
    let file = format!("/var/lib/cni/{node}-subnet.env");
    let words =
        ["migrate", "--from", "flannel", "--node-name", node, "--yes", "--subnet-file", &file];
    let state = "find /var/lib/causeway -type f; ip -d link show cni0 | grep -o 'link/ether [^ ]*'";
    let before = site.shell(node, state);
    let refused = |site: &Site<'_>, why: &str| {
        let (done, said) = site.world.causeway(node, &words);
        assert!(
            !done && said.contains("cannot be taken over") && said.contains(why),
            "{why}: {said}"
        );
        assert_eq!(site.shell(node, state), before);
    };
    let sleep = "cp $(command -v sleep) /var/lib/cni/flanneld; exec /var/lib/cni/flanneld 600";
    let daemon = site.spawn(node, &["sh", "-c", sleep]);
    eventually("flanneld runs", PATIENCE, || {
        let comm = format!("/proc/{}/comm", daemon.0.id());
        let comm = std::fs::read_to_string(comm).unwrap_or_default();
        if comm.trim() == "flanneld" { Ok(()) } else { Err(comm) }
    });
    refused(site, "flanneld runs on this node");
    drop(daemon);
    let config = site.world.spec.dirs().node(node).join("etc-causeway/config.yaml");
    let good = std::fs::read_to_string(&config).unwrap();
    for (from, to, why) in [
        ("network: cbr0", "network: pod-network", "`network: cbr0`"),
        ("road: vxlan", "road: auto", "`road: vxlan`"),
        ("vni: 1", "vni: 4096", "`vni: 4096`"),
        ("vni: 1", "vni: 1\nvxlanPort: 4789", "`vxlanPort: 8472`"),
    ] {
        std::fs::write(&config, good.replace(from, to)).unwrap();
        refused(site, why);
    }
    std::fs::write(&config, &good).unwrap();
    let lease = site.world.pod_cidr(node, site.families()[0]).hosts().nth(98).unwrap();
    let lease = format!("/var/lib/cni/networks/cbr0/{lease}");
    site.shell(node, &format!("printf 'gone\\r\\neth0' > {lease}"));
    refused(site, "is leased to container gone (eth0)");
    site.shell(node, &format!("rm {lease}"));
    site.shell(
        node,
        "ip link add vethlost type veth peer name vethlost2; ip link set vethlost master cni0 up",
    );
    refused(site, "vethlost is a port of the bridge");
    site.shell(node, "ip link del vethlost");
    site.shell(
        node,
        &format!("cp {file} {file}.good; sed -i 's,SUBNET=.*,SUBNET=10.9.9.1/24,' {file}"),
    );
    refused(site, "SUBNET=10.9.9.1/24");
    site.shell(node, &format!("mv {file}.good {file}"));
    // An agent that starts all the same leaves the node alone.
    site.start_agent(node);
    eventually("the agent says what is to be done", PATIENCE, || {
        let status = site.world.status(node).map_err(|e| format!("{e:#}"))?;
        let text = format!("{:?}", status.problems);
        if text.contains("causeway migrate --from flannel") { Ok(()) } else { Err(text) }
    });
    site.agents.remove(node);
    assert_eq!(
        site.shell(node, "find /var/lib/causeway/attachments -type f; ls /etc/cni/net.d"),
        "10-flannel.conflist\n"
    );
}

// --- a bridge and routes by hand -------------------------------------------------------------------

/// Routes to the pods of all other nodes, as a tutorial has them made, and the classic list.
fn by_hand(site: &mut Site<'_>, node: &str) {
    site.configure(node, "mynet");
    site.delegate(node, "mynet", false);
    site.shell(node, "cp /etc/cni/delegate.conflist /etc/cni/net.d/10-mynet.conflist
        sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv6.conf.all.forwarding=1
        nft add table inet byhand
        nft 'add chain inet byhand post { type nat hook postrouting priority 100; }'
        nft add rule inet byhand post ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
        nft add rule inet byhand post ip6 saddr fd00:10:244::/48 ip6 daddr != fd00:10:244::/48 masquerade");
    for other in WORKERS.into_iter().chain(["cp"]).filter(|other| *other != node) {
        for &family in site.families() {
            let subnet = site.world.pod_cidr(other, family);
            let via = site.world.spec.node_addr(other, family).addr();
            site.shell(node, &format!("ip route add {subnet} via {via}"));
        }
    }
}

#[test]
fn nodes_with_routes_by_hand_are_taken_over() {
    if !installed() {
        return;
    }
    with(spec(Families::Dual, Road::Direct), |world| {
        let mut site = Site::new(world, Road::Direct);
        let mut pods = Vec::new();
        for node in WORKERS {
            by_hand(&mut site, node);
            let names: &[&str] = if node == "node-3" { &["a"] } else { &["a", "b"] };
            for name in names {
                pods.push(site.old_pod(node, &format!("{name}{}", &node[5..])));
            }
        }
        site.settled("cp");
        pods.push(world.pod("c", "cp"));
        site.all_talk(&pods);
        under_traffic(&mut site, &pods, |site| {
            for (i, node) in WORKERS.iter().enumerate() {
                site.migrate(node, "bridge");
                let mut all = pods.clone();
                all.push(site.new_pod(node, &format!("new{}", i + 1)));
                site.all_talk(&all);
            }
        });
        for node in WORKERS {
            let ports = world.on(node, "bridge -d link show | grep -c 'isolated off'; true");
            assert_eq!(ports.trim(), "0", "{node}");
            // The agent's own routes take the place of those that somebody makes away with.
            for &family in site.families() {
                let subnet =
                    world.pod_cidr(if node == "node-1" { "node-2" } else { "node-1" }, family);
                world.on(node, &format!("ip route del {subnet}"));
            }
            site.settled(node);
        }
        site.all_talk(&pods);
        let old = pods.remove(0);
        ends(&mut site, &old);
    });
}

#[test]
fn nodes_of_flannel_are_taken_over_ipv4() {
    flannel(Families::Ipv4);
}

#[test]
fn nodes_of_flannel_are_taken_over_ipv6() {
    flannel(Families::Ipv6);
}

#[test]
fn nodes_of_flannel_are_taken_over_dual() {
    flannel(Families::Dual);
}

/// Waits for the first route or table that an agent makes, or until it has made none for a while.
fn first_sign(news: &mut Monitor) {
    let ours = |event: &Event| match event {
        Event::Route { protocol, .. } => *protocol == 203,
        Event::Table { name, .. } => name.starts_with("causeway"),
        _ => false,
    };
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        match news.read().unwrap() {
            Events::Changed(all) if !all.iter().any(ours) => {
                std::thread::sleep(Duration::from_micros(100));
            }
            Events::Changed(_) | Events::Overrun => return,
        }
    }
}

/// An agent that dies again and again while it takes a node over: the next goes on where it was.
#[test]
fn a_takeover_that_is_cut_off_is_carried_on() {
    if !installed() {
        return;
    }
    with(spec(Families::Dual, Road::Vxlan), |world| {
        let mut site = Site::new(world, Road::Vxlan);
        site.configure("cp", "pod-network");
        world.agent("cp", "restart");
        let mut pods = Vec::new();
        for node in WORKERS {
            site.flannel(node);
        }
        for (node, name) in [("node-1", "a1"), ("node-1", "b1"), ("node-2", "a2"), ("node-2", "b2")]
        {
            pods.push(site.old_pod(node, name));
        }
        site.settled("cp");
        WORKERS.iter().for_each(|node| site.flanneld(node));
        site.all_talk(&pods);
        let (mut cut_off, mut halfway) = (0, 0);
        under_traffic(&mut site, &pods, |site| {
            for node in ["node-1", "node-2"] {
                let file = format!("/var/lib/cni/{node}-subnet.env");
                let words = ["migrate", "--from", "flannel", "--node-name", node, "--yes"];
                let (done, said) =
                    world.causeway(node, &[&words[..], &["--subnet-file", &file]].concat());
                assert!(done, "{said}");
                for life in 0..=200 {
                    let mut news = site.news(node);
                    site.start_agent(node);
                    match life {
                        // With the first thing that it does.
                        0..3 => first_sign(&mut news),
                        // Steps are small at first; on a busy machine an agent begins late.
                        _ => {
                            std::thread::sleep(Duration::from_millis(20 + life + life * life / 50))
                        }
                    }
                    site.agents.remove(node);
                    let state =
                        world.on(node, "bridge -d link; ip route; ip -6 route; nft list tables");
                    if !state.contains("isolated off") {
                        break;
                    }
                    cut_off += 1;
                    halfway += u32::from(state.contains("proto 203") || state.contains("causeway"));
                }
                site.start_agent(node);
                site.settled(node);
                site.all_talk(&pods);
                assert_eq!(world.status(node).unwrap().repairs, 0);
            }
        });
        println!("cut off {cut_off} times before ports were isolated, {halfway} times half-way");
        assert!(halfway > 0, "{cut_off}");
    });
}
