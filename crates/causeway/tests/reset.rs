//! `causeway reset --foreign`: what other networks left goes, and nothing else.

use std::process::Command;

/// Runs a shell line; it must succeed.
#[track_caller]
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether it succeeded and what it said.
fn reset(words: &[&str]) -> (bool, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_causeway")).arg("reset").args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The whole network, without what changes by itself.
fn state() -> String {
    sh("for t in iptables ip6tables; do $t-save | grep -v '^#' | sed 's/\\[.*\\]//'; done
        ip -br link | awk '{print $1}'; (ip route; ip -6 route) | grep -v fe80 | sed 's, linkdown,,'
        nft list tables; find /etc/cni/net.d /run -type f | sort")
}

/// What a node has that never saw another network: kube-proxy's chains, and ours.
const NODE: &str = "
    mkdir -p /etc/cni/net.d; echo '{}' > /etc/cni/net.d/10-mine.conflist
    ip link add eth0 type veth peer name eth0peer
    ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad; ip link set eth0 up
    ip link add cw0123456789a type veth peer name cwpeer
    ip link add lxcbr0 type bridge; ip link add lxcbr0v type veth peer name lxcbr0p
    nft add table inet causeway
    nft add chain inet causeway FLANNEL-like
    for t in iptables ip6tables; do
        $t -t nat -N KUBE-SERVICES; $t -t nat -A PREROUTING -j KUBE-SERVICES
        $t -N KUBE-FORWARD; $t -A FORWARD -j KUBE-FORWARD; $t -A KUBE-FORWARD -m mark --mark 0x4000 -j ACCEPT
        $t -t nat -A POSTROUTING -o eth0 -j MASQUERADE
    done
";

/// As they leave it.
const FLANNEL: &str = "
    ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning
    ip addr add 10.244.1.0/32 dev flannel.1; ip link set flannel.1 up
    ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
    ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; ip link set cni0 up
    mkdir -p /run/flannel; echo FLANNEL_MTU=1450 > /run/flannel/subnet.env
    echo '{}' > /etc/cni/net.d/10-flannel.conflist
    for t in iptables ip6tables; do
        $t -t nat -N FLANNEL-POSTRTG; $t -t nat -A POSTROUTING -m comment --comment flannel -j FLANNEL-POSTRTG
        $t -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
        $t -N FLANNEL-FWD; $t -A FORWARD -j FLANNEL-FWD; $t -A FLANNEL-FWD -j ACCEPT
    done
    for t in 'ip flannel-ipv4' 'ip6 flannel-ipv6'; do
        nft add table $t; nft add chain $t masq; nft add rule $t masq meta mark 0x4000 return
        nft add chain $t postrtg '{ type nat hook postrouting priority srcnat; }'; nft add rule $t postrtg jump masq
    done
";

const KUBE_ROUTER: &str = "
    ip link add kube-bridge type bridge
    iptables -N KUBE-ROUTER-FORWARD; iptables -N KUBE-POD-FW-ABC; iptables -N KUBE-NWPLCY-DEF
    iptables -A FORWARD -j KUBE-ROUTER-FORWARD
    iptables -A KUBE-ROUTER-FORWARD -d 10.1.2.3 -j KUBE-POD-FW-ABC
    iptables -A KUBE-POD-FW-ABC -j KUBE-NWPLCY-DEF
    echo '{}' > /etc/cni/net.d/10-kuberouter.conflist
";

const CALICO: &str = "
    ip link add vxlan.calico type vxlan id 4096 dstport 4789 local 192.0.2.1
    mkdir -p /run/calico; echo > /run/calico/cgroup; echo '{}' > /etc/cni/net.d/10-calico.conflist
    iptables -N cali-FORWARD; iptables -N cali-from-wl-dispatch; iptables -I FORWARD -j cali-FORWARD
    iptables -A cali-FORWARD -j cali-from-wl-dispatch
";

const CILIUM: &str = "
    ip link add cilium_host type veth peer name cilium_net
    ip6tables -N CILIUM_FORWARD; ip6tables -I FORWARD -j CILIUM_FORWARD
    echo '{}' > /etc/cni/net.d/05-cilium.conflist
";

fn with_node(test: impl FnOnce()) {
    causeway_lab::isolate().expect("these tests need root");
    sh(
        "mount -t tmpfs none /etc/cni 2>/dev/null || { mkdir -p /etc/cni; mount -t tmpfs none /etc/cni; }",
    );
    sh(NODE);
    test();
}

#[test]
fn each_network_goes_and_leaves_the_node() {
    with_node(|| {
        let before = state();
        for (word, leaves, shows) in [
            (
                "flannel",
                FLANNEL,
                "chain FLANNEL-FWD of table ip6 filter\n  table ip flannel-ipv4\n",
            ),
            ("kube-router", KUBE_ROUTER, "interface kube-bridge"),
            ("calico", CALICO, "10-calico.conflist"),
            ("cilium", CILIUM, "interface cilium_host"),
        ] {
            sh(leaves);
            let left = state();
            assert_ne!(left, before);
            let (done, said) = reset(&["--foreign", word]);
            assert!(done && said.contains(shows) && said.contains("Nothing was changed"), "{said}");
            assert_eq!(state(), left, "{word}");
            let (done, said) = reset(&["--foreign", word, "--yes"]);
            assert!(done && said.contains(shows), "{said}");
            assert_eq!(state(), before, "{word}: {said}");
            let (done, said) = reset(&["--foreign", word, "--yes"]);
            assert!(done && !said.contains("Removed:"), "{word}: {said}");
        }
        let (done, said) = reset(&["--foreign", "weave"]);
        assert!(!done && said.contains("flannel, calico, cilium, kube-router"), "{said}");
    });
}

#[test]
fn pods_of_another_network_keep_it() {
    with_node(|| {
        sh(FLANNEL);
        sh(CALICO);
        sh("ip link add veth0a1b2c3d master cni0 type veth peer name pod0
            ip link add cali0123456789a type veth peer name pod1");
        let before = state();
        for (word, pod) in [("flannel", "veth0a1b2c3d"), ("calico", "cali0123456789a")] {
            let (done, said) = reset(&["--foreign", word, "--yes"]);
            assert!(!done && said.contains(pod) && said.contains("kubectl drain"), "{said}");
            assert_eq!(state(), before);
        }
        let (done, said) = reset(&["--foreign", "calico", "--yes", "--with-pods"]);
        assert!(done && said.contains("interface cali0123456789a"), "{said}");
        // Ours hang on the bridge by now: it stays, and the rest goes.
        sh("ip link del veth0a1b2c3d; ip link set cw0123456789a master cni0");
        let (done, said) = reset(&["--foreign", "flannel", "--yes"]);
        assert!(done && said.contains("bridge cni0: cw0123456789a is a port of it"), "{said}");
        let left = state();
        assert!(left.contains("cni0") && left.contains("cw0123456789a"), "{left}");
        assert!(!left.contains("flannel") && !left.contains("FLANNEL-FWD"), "{left}");
        assert!(left.contains("KUBE-SERVICES"), "{left}");
    });
}
