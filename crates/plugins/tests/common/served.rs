//! A node whose agent has done its part: the node file, forwarding and, for bridges, the bridge
//! that answers for its pods.
#![allow(dead_code, unreachable_pub)]

use std::fs;

use serde_json::{Value, json};

use super::{Node, sh};

/// Which families a cluster uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    V4,
    V6,
    Dual,
}

impl Families {
    pub const ALL: [Families; 3] = [Families::V4, Families::V6, Families::Dual];

    pub fn cidrs(self) -> Vec<&'static str> {
        match self {
            Families::V4 => vec!["10.244.1.0/24"],
            Families::V6 => vec!["fd00:10:244:1::/64"],
            Families::Dual => vec!["10.244.1.0/24", "fd00:10:244:1::/64"],
        }
    }
}

/// How pods of a served node are attached, and by which plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Type `causeway`, routed.
    Routed,
    /// Type `causeway`, at the bridge.
    Bridge,
    /// Type `bridge` of a served network.
    Classic,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::Routed, Mode::Bridge, Mode::Classic];
}

/// Writes the node file and makes what the agent would have made.
pub fn serve(mode: Mode, families: Families) -> Node {
    let node = Node::new();
    write_node_file(mode, families, json!({}));
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    // An address of the node that is on no pod subnet.
    sh("ip addr add 192.168.77.1/32 dev lo && ip addr add fd77::1/128 dev lo nodad");
    if mode != Mode::Routed {
        make_bridge(families);
    }
    node
}

/// The node file with some keys in place of the usual.
pub fn write_node_file(mode: Mode, families: Families, changed: Value) {
    let mut file = json!({
        "generation": 1,
        "node": "node-1",
        "podCidrs": families.cidrs(),
        "mtu": 1450,
        "attach": if mode == Mode::Routed { "routed" } else { "bridge" },
        "bridge": "cni0",
        "noMasquerade": ["10.244.0.0/16", "fd00:10:244::/48"],
        "served": ["pod-network"],
    });
    for (key, value) in changed.as_object().unwrap() {
        file[key] = value.clone();
    }
    fs::create_dir_all("/run/causeway").unwrap();
    fs::write("/run/causeway/node.json", file.to_string()).unwrap();
}

/// The bridge as the agent makes it.
fn make_bridge(families: Families) {
    sh("ip link add cni0 address 02:00:00:00:01:01 type bridge && ip link set cni0 up");
    sh("sysctl -qw net.ipv6.conf.cni0.accept_dad=0");
    for cidr in families.cidrs() {
        let gateway = cidr.replace(".0/", ".1/").replace("::/", "::1/");
        let nodad = if cidr.contains(':') { "nodad" } else { "" };
        sh(&format!("ip addr add {gateway} dev cni0 {nodad}"));
    }
    sh("sysctl -qw net.ipv4.conf.cni0.proxy_arp=1 net.ipv4.conf.cni0.rp_filter=2 \
        net.ipv4.conf.cni0.proxy_arp_pvlan=1 net.ipv4.neigh.cni0.proxy_delay=0 \
        net.ipv4.conf.cni0.send_redirects=0 net.ipv4.conf.all.send_redirects=0 \
        net.ipv6.conf.cni0.proxy_ndp=1 net.ipv6.neigh.cni0.proxy_delay=0 \
        net.ipv6.conf.cni0.accept_ra=0");
    sh("nft 'table inet agent { chain o { type filter hook output priority 0; \
        icmpv6 type nd-redirect oifname cni0 drop; }; }'");
}

/// The configuration that the agent would have rendered.
pub fn conf(mode: Mode, families: Families) -> Value {
    if mode != Mode::Classic {
        return json!({"cniVersion": "1.0.0", "name": "pod-network", "type": "causeway"});
    }
    let ranges: Vec<Value> = families.cidrs().iter().map(|c| json!([{"subnet": c}])).collect();
    let default = |c: &&str| if c.contains(':') { "::/0" } else { "0.0.0.0/0" };
    let routes: Vec<Value> = families.cidrs().iter().map(|c| json!({"dst": default(c)})).collect();
    json!({
        "cniVersion": "1.0.0", "name": "pod-network", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    })
}

/// The pods' addresses in a result.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

/// The node's end of a pod in a result.
pub fn host_end(result: &Value) -> String {
    let interfaces = result["interfaces"].as_array().unwrap();
    let name = interfaces.iter().rev().nth(1).unwrap()["name"].as_str().unwrap();
    name.to_owned()
}

/// Where plugins look for the agent.
pub const SOCKET: &str = "/run/causeway/agent.sock";

/// An agent that answers one request after the other, and what it was asked.
pub fn agent(answers: &[&'static str]) -> std::thread::JoinHandle<Vec<String>> {
    let _ = std::fs::remove_file(SOCKET);
    let listener = std::os::unix::net::UnixListener::bind(SOCKET).unwrap();
    listener.set_nonblocking(true).unwrap();
    let answers = answers.to_vec();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut asked = Vec::new();
        for answer in answers {
            // Who is not asked says so, and waits no longer.
            let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
            let mut conn = loop {
                match listener.accept() {
                    Ok((conn, _)) => break conn,
                    Err(e) => assert!(std::time::Instant::now() < end, "{e}; asked: {asked:?}"),
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            };
            let mut request = [0; 512];
            let n = conn.read(&mut request).unwrap();
            // Whoever asked may have failed meanwhile, and be gone.
            let _ = conn.write_all(answer.as_bytes());
            let line = String::from_utf8_lossy(&request[..n]).into_owned();
            asked.push(line.lines().next().unwrap_or_default().to_owned());
        }
        asked
    })
}
