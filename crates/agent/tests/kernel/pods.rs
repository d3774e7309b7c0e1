//! Pods' interfaces as the plugins' records tell of them.

use causeway_agent::status::State;
use causeway_desired::input::Config;
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{Mac, Mtu, names};

use crate::node::{DEADLINE, Node, Stack, comes_back, each_stack, eventually, run, try_run, with};

/// A routed pod: the record as a plugin leaves it.
pub(crate) fn record(node: &Node, container: &str) -> AttachmentRecord {
    AttachmentRecord {
        container_id: container.into(),
        ifname: "eth0".parse().unwrap(),
        pod: None,
        netns: "/run/netns/none".into(),
        network: names::NETWORK.into(),
        attach: Attach::Routed,
        pending: false,
        host_ifname: names::host_veth(container, "eth0"),
        mac: Mac::derived(&format!("pod/{container}/eth0")),
        host_mac: Mac::derived(&format!("host/{container}/eth0")),
        mtu: Mtu::new(1450).unwrap(),
        addresses: vec!["10.244.1.5/32".parse().unwrap()],
        gateways: vec!["169.254.1.1".parse().unwrap()],
        bridge: None,
        masquerade_except: None,
        boot_id: node.paths.read_boot_id().unwrap(),
        leaving: None,
    }
}

pub(crate) fn write(node: &Node, record: &AttachmentRecord) -> String {
    let name = AttachmentRecord::file_name(&record.container_id, record.ifname.as_str());
    std::fs::create_dir_all(&node.paths.attachments).unwrap();
    let aside = node.paths.attachments.join(format!(".{name}.new"));
    std::fs::write(&aside, serde_json::to_vec(record).unwrap()).unwrap();
    std::fs::rename(aside, node.paths.attachments.join(&name)).unwrap();
    name
}

#[test]
fn a_pod_that_lost_its_route_gets_it_back() {
    with(Stack::V4, Config::default(), |node| {
        node.start_with(node.three());
        let pod = record(node, "c1");
        let veth = pod.host_ifname.clone();
        write(node, &pod);
        eventually("waits for the interface", DEADLINE, || {
            let objects = node.status().objects;
            let pending = objects.iter().any(|o| o.owner == "pod c1" && o.state == State::Pending);
            if pending { Ok(()) } else { Err(node.wrong()) }
        });
        assert!(node.status().ready, "a pod that is not there does not concern the node");
        run(&format!(
            "ip link add {veth} mtu 1450 address {} type veth peer name pod0",
            pod.host_mac
        ));
        run("ip link set pod0 up");
        let show = "ip route show 10.244.1.5";
        let before = eventually("route to the pod", DEADLINE, || {
            let line = run(show);
            if line.contains(veth.as_str()) { Ok(line) } else { Err(node.wrong()) }
        });
        eventually("all of it", DEADLINE, || {
            let ok = node.status().objects.iter().all(|o| o.state == State::Ok);
            if ok {
                Ok(())
            } else {
                Err(format!("{}{:#}", node.wrong(), node.engine().plan().unwrap().ops))
            }
        });
        run("ip route del 10.244.1.5");
        comes_back("pod route", show, &before);
        let guard = "nft -s list table netdev causeway_cni";
        let before = run(guard);
        run("nft delete table netdev causeway_cni");
        comes_back("guard", guard, &before);

        // The plugin takes it down: pending, then gone.
        write(node, &AttachmentRecord { pending: true, ..pod.clone() });
        std::thread::sleep(std::time::Duration::from_millis(100));
        run("ip route del 10.244.1.5");
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(run(show), "", "nobody works against the plugin");
        run(&format!("ip link del {veth}"));
        let name = AttachmentRecord::file_name("c1", "eth0");
        std::fs::remove_file(node.paths.attachments.join(name)).unwrap();
        eventually("forgotten", DEADLINE, || {
            let left = node.status().objects.into_iter().filter(|o| o.owner == "pod c1").count();
            if left == 0 { Ok(()) } else { Err(node.wrong()) }
        });
    });
}

/// The agent puts a guard back while DEL removes the pod: since Linux 6.16 the chain stays without its
/// interface.
#[test]
fn a_guard_whose_interface_is_gone_goes() {
    each_stack(|node| {
        node.start_with(node.three());
        let guard = |dev: &str| {
            run(&format!(
                "nft add chain netdev causeway_cni {dev} {{ type filter hook ingress device {dev} priority -150; }}"
            ));
        };
        run("ip link add cwalive type veth peer name cwpeer");
        run("ip link add cwgone type veth peer name cwgone2");
        guard("cwalive");
        guard("cwgone");
        run("ip link del cwgone");
        let late = try_run(
            "nft add chain netdev causeway_cni cwgone3 { type filter hook ingress device cwgone3 priority -150; }",
        );
        println!("a chain without its interface: {late:?}");
        eventually("gone", DEADLINE, || {
            let all = run("nft list chains netdev");
            if all.contains("cwgone") { Err(all) } else { Ok(()) }
        });
        assert!(run("nft list chains netdev").contains("cwalive"));
        node.assert_whole();
    });
}

#[test]
fn records_of_former_boots_and_torn_ones() {
    with(Stack::V4, Config::default(), |node| {
        let mut old = record(node, "old");
        old.boot_id = "another".into();
        write(node, &old);
        std::fs::write(node.paths.attachments.join("torn-eth0.json"), "{\"contai").unwrap();
        node.start_with(node.three());
        let status = node.status();
        assert_eq!(status.inputs.attachments, 0);
        assert!(status.objects.iter().all(|o| !o.owner.starts_with("pod")));
        assert!(status.problems.iter().any(|p| p.message.contains("torn-eth0.json")));
    });
}

#[test]
fn a_port_of_the_bridge_that_somebody_opened_is_closed_again() {
    let config = Config { attach: Attach::Bridge, ..Config::default() };
    with(Stack::Dual, config, |node| {
        node.start_with(node.three());
        let mut pod = record(node, "c2");
        pod.attach = Attach::Bridge;
        pod.bridge = Some("cni0".parse().unwrap());
        pod.addresses = ["10.244.1.5/24", "fd00:10:244:1::5/64"].map(|a| a.parse().unwrap()).into();
        pod.gateways = ["10.244.1.1", "fd00:10:244:1::1"].map(|a| a.parse().unwrap()).into();
        let veth = pod.host_ifname.clone();
        run(&format!(
            "ip link add {veth} mtu 1450 address {} type veth peer name pod0",
            pod.host_mac
        ));
        run("ip link set pod0 up");
        write(node, &pod);
        eventually("all of it", DEADLINE, || {
            let objects = node.status().objects;
            let pods = objects.iter().filter(|o| o.owner == "pod c2").count();
            let whole = pods > 0 && objects.iter().all(|o| o.state == State::Ok);
            if whole { Ok(()) } else { Err(node.wrong()) }
        });
        let port = format!("bridge -d link show dev {veth}");
        // The kernel takes a moment to see that the other end is up.
        let before = eventually("carrier", DEADLINE, || {
            let text = run(&port);
            if text.contains("state forwarding") { Ok(text) } else { Err(text) }
        });
        for flag in ["isolated on", "learning off", "flood off"] {
            assert!(before.contains(flag), "{flag} in {before}");
        }
        run(&format!("bridge link set dev {veth} isolated off learning on"));
        comes_back("port flags", &port, &before);
        let fdb = format!("bridge fdb show dev {veth} state static");
        let before = run(&fdb);
        run(&format!("bridge fdb del {} dev {veth} master", pod.mac));
        comes_back("fdb entry of the port", &fdb, &before);
        let neigh = &format!("ip neigh show 10.244.1.5 dev {veth}");
        let routes = ["ip route show 10.244.1.5", "ip -6 route show fd00:10:244:1::5"];
        let proxies = "ip -6 neigh show proxy dev cni0";
        let (before, proxies_before) = (run(neigh), run(proxies));
        assert!(!before.is_empty() && !proxies_before.is_empty());
        // The kernel tells nobody that a proxy entry went (`ip monitor` is silent, too): it is
        // missed at the next look at neighbours, here because another one went.
        run("ip -6 neigh del proxy fd00:10:244:1::5 dev cni0");
        run(&format!("ip neigh del 10.244.1.5 dev {veth}"));
        comes_back(neigh, neigh, &before);
        // Past the bridge, and as seen before.
        for (show, way, own) in [
            (routes[0], format!("10.244.1.5 dev {veth} proto 203"), "src 10.244.1.1"),
            (routes[1], format!("fd00:10:244:1::5 dev {veth} proto 203"), "src fd00:10:244:1::1"),
        ] {
            let before = run(show);
            assert!(before.contains(&way) && before.contains(own), "{before}");
            run(&show.replace("show", "del"));
            comes_back("the way past the bridge", show, &before);
        }
        comes_back(proxies, proxies, &proxies_before);
        // All of them go with a bridge that is set down.
        run("ip link set cni0 down");
        comes_back("proxy entry after down", proxies, &proxies_before);
        run(&format!("ip link set {veth} nomaster"));
        eventually("in the bridge again", crate::node::REPAIR, || {
            let all = node.status().objects.iter().all(|o| o.state == State::Ok);
            let link = run(&format!("ip link show {veth}"));
            if all && link.contains("master cni0") { Ok(()) } else { Err(node.wrong()) }
        });
        // And the bridge itself, with all that hung on it.
        let shows = [
            port.clone(),
            fdb.clone(),
            neigh.to_owned(),
            routes[0].to_owned(),
            routes[1].to_owned(),
            proxies.to_owned(),
            "ip -4 -o addr show dev cni0 scope global".to_owned(),
            "ip -6 -o addr show dev cni0 scope global".to_owned(),
            "nft -s list ruleset".to_owned(),
        ];
        // Without the index, which is a new one.
        let show = |command: &String| {
            let text = crate::node::try_run(command)?;
            let after = |l: &str| l.split_once(": ").map_or(l, |(_, rest)| rest).to_owned();
            Ok::<_, String>(text.lines().map(after).collect::<Vec<_>>())
        };
        let before: Vec<_> = shows.iter().map(|s| show(s).unwrap()).collect();
        run("ip link del cni0");
        for (command, before) in shows.iter().zip(before) {
            eventually(command, crate::node::REPAIR, || {
                let now = show(command)?;
                if now == before { Ok(()) } else { Err(format!("{now:?}\ninstead of {before:?}")) }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        node.assert_whole();
        let script = node.engine().script(true).expect("a script");
        assert!(script.contains("ip netns") && script.contains(veth.as_str()), "{script}");
        let without = node.engine().script(false).expect("a script");
        assert!(!without.contains(veth.as_str()), "{without}");
    });
}
