//! What `causeway doctor --firewall ufw` prints: the real ufw takes it, and it opens what it says to
//! those whom it names, and nothing else.

mod common;

use causeway_doctor::openings::{Role, Site, ufw};
use common::outside::{EXT, NODE, at, node};
use common::programs::bring;
use common::sh;
use common::traffic::{serve, tcp, udp};

#[test]
fn ufw_takes_the_words_of_doctor() {
    let _node = node();
    bring(&["ufw", "iptables", "ip6tables"]);
    // As the package's installation leaves it.
    sh(
        "cp /usr/share/ufw/ufw.conf /usr/share/ufw/*.init /usr/share/ufw/iptables/*.rules /etc/ufw/; \
        ufw logging off; ufw --force enable",
    );
    for port in [6443, 10250, 8472, 32767, 1234] {
        serve("", &format!("[::]:{port}"));
    }
    // Whether `ext` is let in, by each family.
    let open = |port: u16| [0, 1].map(|f| tcp("ext", &at(NODE[f], port)) == format!(" {}", EXT[f]));
    assert_eq!(open(32767), [false; 2], "ufw lets nobody in, or this test shows nothing");
    let site = Site {
        // By IPv6 it is another one that is a node.
        nodes: [EXT[0], "2001:db8::7"].map(|ip| ip.parse().unwrap()).to_vec(),
        pods: ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|net| net.parse().unwrap()).to_vec(),
        vxlan_port: Some(8472),
        metrics_port: Some(9471),
    };
    ufw(&site, Role::ControlPlane).iter().for_each(|line| drop(sh(line)));
    assert_eq!(open(32767), [true; 2], "NodePorts are for everybody");
    assert_eq!(open(6443), [true; 2], "so is the API");
    assert_eq!(open(10250), [true, false], "kubelets are for nodes");
    assert_eq!(open(1234), [false; 2]);
    let tunnel = [0, 1].map(|f| !udp("ext", &at(NODE[f], 8472)).is_empty());
    assert_eq!(tunnel, [true, false], "and so are tunnels");
    let rules = sh("iptables -S; ip6tables -S");
    for net in ["-s 10.244.1.0/24", "-d 10.244.1.0/24", "-s fd00:10:244:1::/64"] {
        let passes = |l: &str| l.contains("forward") && l.contains(net) && l.contains("ACCEPT");
        assert!(rules.lines().any(passes), "{net}: {rules}");
    }
}
