//! `causeway doctor` and what it needs others for: the API, names and addresses among the nodes,
//! ports of other nodes. For each finding a fault, and silence before and after.

use causeway_lab::{Fault, How, Road};
use causeway_types::state::Attach;
use serde_json::{Value, json};

use crate::doctor::{Said, behind, doctor, shell, silent};
use crate::world::{PATIENCE, World, dual, eventually, test_build, with};

/// Another kubeconfig for the command alone, by an edit of the agent's.
fn by(edit: &str) -> String {
    format!("sed '{edit}' /etc/causeway/kubeconfig > /run/other.kubeconfig")
}

const OTHER: &str = "--kubeconfig /run/other.kubeconfig";

/// Ports of the control plane's host where nothing listens.
const ON_CP: &str = "nft -f - <<END
table inet away {
  chain in {
    type filter hook input priority 0;
    tcp dport 6445 drop
    tcp dport 6446 reject with icmpx admin-prohibited
  }
}
END";

/// What is in the way of the API: the words for it, the id, and the edit of the kubeconfig.
const WAYS: &[(&str, &str, &str)] = &[
    ("refuses the connection", "api-unreachable", "s/:6443/:6444/"),
    ("nothing comes back", "api-unreachable", "s/:6443/:6445/"),
    ("no way to the API server", "api-unreachable", "s/:6443/:6446/"),
    ("name is not found", "api-unreachable", "s|https://.*:6443|https://api.invalid:6443|"),
    ("no TLS", "api-unreachable", "s|^    server:|    tls-server-name: other.test\\n    server:|"),
    ("(401)", "api-refuses", "s/token: .*/token: of-yesterday/"),
    // The lab's API refuses requests under a name that it does not have.
    (
        "(403)",
        "api-refuses",
        "s|^    server: .*|    tls-server-name: localhost\\n    server: https://api.test:6443|",
    ),
    ("configured wrong", "api-unreachable", "s/^users:/users: 7 #/"),
];

/// Names that are asked for are looked up here alone.
const NAMES: &str =
    "echo nameserver 127.0.0.1 > /run/resolv; mount --bind /run/resolv /etc/resolv.conf
    echo 192.168.1.10 api.test > /run/hosts; mount --bind /run/hosts /etc/hosts";

#[test]
fn doctor_tells_why_the_api_is_not_reached() {
    with(dual(1, Attach::Routed, Road::Direct), |world| {
        world.whole();
        silent(world);
        world.on("cp", ON_CP);
        for (words, id, edit) in WAYS {
            let said = behind(world, &format!("{NAMES}\n{}", by(edit)), OTHER);
            assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), [*id], "{:?}", said.findings);
            let what = said.one(id)["what"].as_str().unwrap();
            assert!(what.contains(words), "{words}: {what}");
            // The agent has its own way.
            assert_eq!((said.code, &said.one(id)["severity"]), (1, &json!("warning")), "{what}");
        }
        // Not the agent's own file: it would say that the key waits for its next start.
        let without = "sed /kubeconfig/d /etc/causeway/config.yaml > /run/without
                       mount --bind /run/without /etc/causeway/config.yaml";
        let said = behind(world, without, "");
        assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["api-not-asked"]);
        world.on("node-1", "true");
        assert_eq!(said.code, 0);
    });
}

#[test]
fn doctor_tells_of_an_api_that_is_away_and_of_clocks() {
    with(dual(1, Attach::Routed, Road::Direct), |world| {
        world.whole();
        silent(world);
        ahead(world);
        let inflict = |fault| {
            let how = How { seconds: 60.0, ..How::default() };
            causeway_lab::inflict(&world.spec, fault, &how, &mut |_| {}).unwrap();
        };
        // Neither knows a way: an error. An agent that starts has no connection of before.
        inflict(Fault::Down);
        world.agent("node-1", "restart");
        eventually("nobody reaches the API", PATIENCE, || {
            let said = doctor(world);
            let found = said.findings.iter().find(|f| f["id"] == "api-unreachable");
            match found {
                Some(f) if f["severity"] == "error" && said.code == 2 => Ok(()),
                _ => Err(format!("{:?}", said.findings)),
            }
        });
        causeway_lab::clear(&world.spec, &mut |_| {}).unwrap();
        silent(world);
        inflict(Fault::Stall);
        let said = doctor(world);
        let what = said.one("api-unreachable")["what"].as_str().unwrap();
        assert!(what.contains("does not answer"), "{what}");
        causeway_lab::clear(&world.spec, &mut |_| {}).unwrap();
        silent(world);
    });
}

/// A clock of the command's own.
fn ahead(world: &World) {
    let library = "$(ls /usr/lib/faketime/libfaketimeMT.so.1 /usr/lib/*/faketime/libfaketimeMT.so.1 \
                   2>/dev/null | head -n 1)";
    let (there, _) = world.try_sh(&world.node_ns("node-1"), &format!("test -n \"{library}\""));
    if !there {
        println!("skipped: clock-skew: there is no libfaketime");
        return;
    }
    // One that is linked statically takes no library.
    let program = test_build().causeway;
    let line = format!(
        "export LD_PRELOAD={library} FAKETIME=+2h DONT_FAKE_MONOTONIC=1 FAKETIME_DONT_FAKE_MONOTONIC=1
         DOCTOR='{} doctor'",
        program.display()
    );
    let said = behind(world, &line, "");
    assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["clock-skew"], "{:?}", said.findings);
    let what = said.one("clock-skew")["what"].as_str().unwrap();
    assert!(what.contains("s ahead of the API"), "{what}");
}

/// Changes a Node or its status; answers what it was.
fn change(world: &World, node: &str, edit: impl Fn(&mut Value)) -> Value {
    let path = format!("/api/v1/nodes/{node}");
    for _ in 0..20 {
        let before = world.client.get(&path).unwrap();
        let mut after = before.clone();
        edit(&mut after);
        // Its agent and its kubelet write as well.
        let part = if before["status"] == after["status"] { "" } else { "/status" };
        if world.client.put(&format!("{path}{part}"), &after).is_ok() {
            return before;
        }
    }
    panic!("Node {node} cannot be changed");
}

/// Doctor says a thing, of a place, sooner or later.
#[track_caller]
fn says(world: &World, id: &str, place: &str) -> Said {
    let mut last = None;
    eventually(&format!("{id} at {place}"), PATIENCE, || {
        let said = doctor(world);
        let found = said
            .findings
            .iter()
            .any(|f| f["id"] == id && f["where"].as_str().unwrap().contains(place));
        let seen = format!("{:?}", said.findings);
        last = Some(said);
        if found { Ok(()) } else { Err(seen) }
    });
    last.expect("it was asked")
}

fn internal(node: &Value) -> Vec<Value> {
    let all = node["status"]["addresses"].as_array().unwrap().iter();
    all.filter(|a| a["type"] == "InternalIP").cloned().collect()
}

#[test]
fn doctor_tells_what_is_not_unique() {
    with(dual(3, Attach::Routed, Road::Vxlan), |world| {
        let a = world.pod("a", "node-1");
        world.whole();
        silent(world);
        machines(world);
        silent(world);
        ghosts(world, &a);
        silent(world);
        macs(world);
        silent(world);
        // A name that another node has, for the command alone.
        let line = "exec unshare -u sh -ec 'hostname NODE-2; exec $DOCTOR --json'";
        let said = behind(world, line, "");
        assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["host-name-twice"]);
        let before = change(world, "node-1", |node| {
            node["status"]["addresses"] =
                json!([{"type": "InternalIP", "address": "192.168.1.77"}]);
        });
        says(world, "node-address-missing", "Node node-1");
        change(world, "node-1", |node| {
            node["status"]["addresses"] = before["status"]["addresses"].clone()
        });
        world.whole();
        silent(world);
    });
}

/// What kubelets tell of their machines.
fn machines(world: &World) {
    for field in ["machineID", "systemUUID"] {
        for node in ["cp", "node-2"] {
            change(world, node, |n| n["status"]["nodeInfo"][field] = json!("0123abcd"));
        }
        let said = doctor(world);
        assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["machine-id-twice"]);
        assert!(said.one("machine-id-twice")["what"].as_str().unwrap().contains("cp, node-2"));
        change(world, "cp", |n| n["status"]["nodeInfo"][field] = json!("4567"));
    }
    change(world, "node-1", |n| n["status"]["nodeInfo"]["bootID"] = json!("another"));
    let said = doctor(world);
    assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["node-name-taken"]);
    let boot = world.spec.dirs().node("node-1").join("boot_id");
    let boot = std::fs::read_to_string(boot).unwrap();
    change(world, "node-1", |n| n["status"]["nodeInfo"]["bootID"] = json!(boot.trim()));
    silent(world);
    let before = change(world, "cp", |n| {
        let mut all = internal(n);
        all.push(json!({"type": "Hostname", "address": "Node-2"}));
        n["status"]["addresses"] = json!(all);
    });
    let said = doctor(world);
    assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["host-name-twice"]);
    change(world, "cp", |n| n["status"]["addresses"] = before["status"]["addresses"].clone());
}

/// Nodes and pods whose machines are not there.
fn ghosts(world: &World, pod: &causeway_lab::Pod) {
    let nodes = "/api/v1/nodes";
    let ghost = |cidr: &str, address: &str| {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"},
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
        world.client.post(nodes, &object).unwrap();
        change(world, "ghost", |n| {
            n["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
        });
    };
    for (cidr, address, id, place) in [
        ("10.244.77.0/24", "192.168.1.13", "node-address-twice", "address 192.168.1.13"),
        ("10.244.3.128/25", "192.168.1.77", "pod-subnets-overlap", "ghost"),
        ("192.168.1.128/25", "192.168.1.77", "pod-subnet-on-underlay", "ghost"),
    ] {
        ghost(cidr, address);
        says(world, id, place);
        world.client.delete(&format!("{nodes}/ghost")).unwrap();
        world.whole();
        silent(world);
    }
    let pods = "/api/v1/namespaces/default/pods";
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "copy"},
        "spec": {"nodeName": "nowhere", "containers": [{"name": "main", "image": "lab"}]}});
    world.client.post(pods, &object).unwrap();
    let path = format!("{pods}/copy");
    let mut object = world.client.get(&path).unwrap();
    let ips: Vec<Value> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
    object["status"] = json!({"phase": "Running", "podIP": pod.ips[0], "podIPs": ips});
    world.client.put(&format!("{path}/status"), &object).unwrap();
    let said = doctor(world);
    assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["pod-address-twice"]);
    assert_eq!(said.findings.len(), pod.ips.len(), "by each family");
    let what = said.one("pod-address-twice")["what"].as_str().unwrap();
    assert!(what.contains("default/a, default/copy"), "{what}");
    world.client.delete(&format!("{path}?gracePeriodSeconds=0")).unwrap();
}

/// Two hosts with one MAC, and an entry that leads to this node itself.
fn macs(world: &World) {
    let mac = |node: &str| {
        let line = world.on(node, "ip -br link show eth0");
        line.split_whitespace().find(|w| w.matches(':').count() == 5).unwrap().to_owned()
    };
    let forget = "ip neigh flush dev eth0; ip -6 neigh flush dev eth0";
    let (two, three) = (mac("node-2"), mac("node-3"));
    world.on("node-2", &format!("ip link set eth0 address {three}"));
    world.on("node-1", forget);
    says(world, "mac-twice", &three);
    world.on("node-2", &format!("ip link set eth0 address {two}"));
    world.on("node-1", forget);
    silent(world);
    let one = mac("node-1");
    let entry = format!("192.168.1.12 lladdr {one} dev eth0 nud permanent");
    world.on("node-1", &format!("ip neigh replace {entry}"));
    let said = says(world, "mac-twice", &one);
    assert!(said.one("mac-twice")["what"].as_str().unwrap().contains("node-1, node-2"));
    world.on("node-1", &format!("ip neigh del {entry}; {forget}"));
}

/// Rules of a node's input, and what doctor says on another.
struct Filter {
    node: &'static str,
    rules: &'static str,
    id: &'static str,
    place: &'static str,
    words: &'static str,
}

const FILTERS: &[Filter] = &[
    Filter {
        node: "node-2",
        rules: "tcp dport 10250 drop",
        id: "port-closed",
        place: "TCP 10250 of node-2 (192.168.1.12), node-2 (fd00:192:168:1::12)",
        words: "(kubelet) of node-2 (192.168.1.12), node-2 (fd00:192:168:1::12) is closed to this node: a \
                firewall drops it",
    },
    Filter {
        node: "node-2",
        rules: "meta nfproto ipv6 tcp dport 10250 reject",
        id: "port-closed",
        place: "TCP 10250 of node-2 (fd00:192:168:1::12)",
        words: "a firewall rejects it",
    },
    Filter {
        node: "node-2",
        rules: "tcp dport 30000-32767 reject with icmpx admin-prohibited",
        id: "port-closed",
        place: "TCP 32767",
        words: "NodePorts",
    },
    Filter {
        node: "cp",
        rules: "tcp dport 2379-2380 drop",
        id: "port-closed",
        place: "TCP 2380 of cp",
        words: "etcd",
    },
    Filter {
        node: "node-2",
        rules: "tcp dport 6443 drop",
        id: "port-closed",
        place: "TCP 6443 of node-2",
        words: "API server",
    },
    Filter {
        node: "node-2",
        rules: "meta l4proto tcp drop",
        id: "node-unreachable",
        place: "node node-2, fd00:192:168:1::12",
        words: "nothing comes back from any port",
    },
    Filter {
        node: "node-2",
        rules: "udp dport 8472 drop",
        id: "tunnel-silent",
        place: "node node-2",
        words: "nothing comes back through the tunnel from node-2 (10.244.",
    },
];

#[test]
fn doctor_tries_ports_of_other_nodes() {
    with(dual(2, Attach::Routed, Road::Vxlan), |world| {
        world.pod("a", "node-1");
        world.pod("b", "node-2");
        world.whole();
        // As part of the control plane, this node needs etcd as well.
        for node in ["node-1", "node-2"] {
            change(world, node, |node| {
                node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = json!("");
            });
        }
        silent(world);
        for Filter { node, rules, id, place, words } in FILTERS {
            world.on(
                node,
                &format!(
                    "nft 'add table inet closed; add chain inet closed in {{ type filter hook input \
                     priority -400; }}; add rule inet closed in ip saddr 192.168.1.11 {rules}; add rule \
                     inet closed in ip6 saddr fd00:192:168:1::11 {rules}'"
                ),
            );
            let said = doctor(world);
            assert_eq!(
                said.ids().into_iter().collect::<Vec<_>>(),
                [*id],
                "{rules}: {:?}",
                said.findings
            );
            let found = said.findings.iter().find(|f| f["where"].as_str().unwrap().contains(place));
            let what =
                found.unwrap_or_else(|| panic!("{place}: {:?}", said.findings))["what"].as_str();
            assert!(what.unwrap().contains(words), "{words}: {what:?}");
            world.on(node, "nft delete table inet closed");
            silent(world);
        }
        // New connections to the API fail, the agent's goes on.
        world.on(
            "cp",
            "nft 'add table inet closed; add chain inet closed in { type filter hook input priority 0; }; \
             add rule inet closed in ct state new tcp dport 6443 drop'",
        );
        let said = doctor(world);
        assert_eq!(said.ids().into_iter().collect::<Vec<_>>(), ["api-unreachable"]);
        assert_eq!(said.code, 1, "a warning: {:?}", said.findings);
        world.on("cp", "nft delete table inet closed");
        silent(world);
    });
}

/// ADD of a pod whose namespace is not there, on node-1; what it said.
fn failed_add(world: &World) -> String {
    let plugin = world.spec.dirs().bin().join("causeway");
    let line = format!(
        "echo '{{\"cniVersion\":\"1.0.0\",\"name\":\"pod-network\",\"type\":\"causeway\"}}' | \
         CNI_COMMAND=ADD CNI_CONTAINERID=z CNI_NETNS=/run/netns/nowhere CNI_IFNAME=eth0 {}",
        plugin.display()
    );
    let (code, text) = shell(world, "node-1", &line);
    assert_eq!(code, 1, "{text}");
    let error: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    error["msg"].as_str().unwrap().to_owned()
}

#[test]
fn a_failed_add_says_first_what_is_most_likely_wrong() {
    with(dual(1, Attach::Routed, Road::Direct), |world| {
        world.whole();
        silent(world);
        let plain = failed_add(world);
        assert!(!plain.contains("; ADD: ") && plain.contains("nowhere"), "{plain}");
        world.on(
            "node-1",
            "nft add table inet fw
             nft add chain inet fw f '{ type filter hook forward priority 0; policy drop; }'",
        );
        // What was found is true for some seconds.
        eventually("the finding stands before the error", PATIENCE, || {
            let text = failed_add(world);
            let (first, rest) = text.split_once("; ADD: ").unwrap_or(("", &text));
            let is = first.starts_with("foreign-forward-drop: ") && rest == plain;
            if is { Ok(()) } else { Err(text) }
        });
        world.on("node-1", "nft delete table inet fw");
        world.agent("node-1", "halt");
        assert_eq!(failed_add(world), plain, "nobody is asked");
        world.agent("node-1", "start");
    });
}
