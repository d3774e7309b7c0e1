//! What flanneld and its plugin make of a node.

use causeway_types::Family;
use serde_json::{Value, json};

use super::site::Site;

pub(super) fn device(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.1",
        Family::V6 => "flannel-v6.1",
    }
}

/// The annotations of a family: data and address.
pub(super) fn keys(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => {
            ("flannel.alpha.coreos.com/backend-data", "flannel.alpha.coreos.com/public-ip")
        }
        Family::V6 => {
            ("flannel.alpha.coreos.com/backend-v6-data", "flannel.alpha.coreos.com/public-ipv6")
        }
    }
}

impl Site<'_> {
    /// What flanneld and its plugin make of a node.
    pub(super) fn flannel(&mut self, node: &str) {
        self.configure(node, "cbr0");
        self.delegate(node, "cbr0", false);
        let list = json!({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]});
        let conf = self.world.spec.dirs().node(node).join("etc-cni/net.d/10-flannel.conflist");
        std::fs::write(conf, list.to_string()).unwrap();
        let mut annotations = json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        });
        let mut subnet_file = format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ=true\n", self.mtu());
        for &family in self.families() {
            let (subnet, address) =
                (self.world.pod_cidr(node, family), self.world.spec.node_addr(node, family).addr());
            let (dev, bits) = (device(family), family.bits());
            let mtu = if family == Family::V4 { 1450 } else { 1430 };
            self.shell(node, &format!(
                "ip link add {dev} mtu {mtu} type vxlan id 1 dstport 8472 local {address} dev eth0 nolearning
                 sysctl -qw net.ipv6.conf.{dev}.accept_ra=0
                 ip addr add {}/{bits} dev {dev} $(test {bits} = 32 || echo nodad); ip link set {dev} up
                 sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv6.conf.all.forwarding=1",
                subnet.network()
            ));
            let mac = self.shell(
                node,
                &format!(
                    "cat /sys/class/net/{dev}/address 2>/dev/null || \
                ip -br link show {dev} | awk '{{print $3}}'"
                ),
            );
            let (data, public) = keys(family);
            let mac = self.mac(node, dev).unwrap_or(mac);
            annotations[data] = json!(format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", mac.trim()));
            annotations[public] = json!(address);
            let (tables, cluster) = match family {
                Family::V4 => ("iptables", "10.244.0.0/16"),
                Family::V6 => ("ip6tables", "fd00:10:244::/48"),
            };
            self.shell(node, &format!(
                "{tables} -t nat -N FLANNEL-POSTRTG; {tables} -t nat -A POSTROUTING -j FLANNEL-POSTRTG
                 {tables} -t nat -A FLANNEL-POSTRTG -s {subnet} -d {cluster} -j RETURN
                 {tables} -t nat -A FLANNEL-POSTRTG -s {cluster} ! -d {cluster} -j MASQUERADE --random-fully
                 {tables} -t nat -A FLANNEL-POSTRTG ! -s {cluster} -d {subnet} -j RETURN
                 {tables} -t nat -A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully
                 {tables} -N FLANNEL-FWD; {tables} -A FORWARD -j FLANNEL-FWD
                 {tables} -A FLANNEL-FWD -s {cluster} -j ACCEPT; {tables} -A FLANNEL-FWD -d {cluster} -j ACCEPT"
            ));
            let key = if family == Family::V4 { "FLANNEL_SUBNET" } else { "FLANNEL_IPV6_SUBNET" };
            let gateway = causeway_types::Cidr::new(subnet).unwrap().gateway_net();
            subnet_file.push_str(&format!("{key}={gateway}\n"));
        }
        self.shell(node, &format!("printf '{subnet_file}' > /var/lib/cni/{node}-subnet.env"));
        let path = format!("/api/v1/nodes/{node}");
        let mut object = self.world.client.get(&path).unwrap();
        let mut all = object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        all.extend(annotations.as_object().unwrap().clone());
        object["metadata"]["annotations"] = json!(all);
        self.world.client.put(&path, &object).unwrap();
    }

    pub(super) fn mac(&self, node: &str, dev: &str) -> Option<String> {
        let line = self.world.on(node, &format!("ip -br link show {dev}"));
        line.split_whitespace().find(|w| w.matches(':').count() == 5).map(str::to_owned)
    }

    /// What flanneld does on a node when Nodes change: of each that is annotated as it wants it, a
    /// neighbour, a forwarding entry and a route.
    pub(super) fn flanneld(&self, node: &str) {
        let nodes = self.world.client.get("/api/v1/nodes").unwrap();
        for other in nodes["items"].as_array().unwrap() {
            let name = other["metadata"]["name"].as_str().unwrap();
            let annotations = &other["metadata"]["annotations"];
            if name == node || annotations["flannel.alpha.coreos.com/kube-subnet-manager"] != "true"
            {
                continue;
            }
            assert_eq!(
                annotations["flannel.alpha.coreos.com/backend-type"], "vxlan",
                "{annotations}"
            );
            for &family in self.families() {
                let (data, public) = keys(family);
                let data: Value =
                    serde_json::from_str(annotations[data].as_str().unwrap()).unwrap();
                assert_eq!(data["VNI"], 1);
                let (mac, to) =
                    (data["VtepMAC"].as_str().unwrap(), annotations[public].as_str().unwrap());
                let subnet = self.world.pod_cidr(name, family);
                let (via, dev) = (subnet.network(), device(family));
                self.shell(
                    node,
                    &format!(
                        "ip neigh replace {via} lladdr {mac} dev {dev} nud permanent
                     bridge fdb replace {mac} dev {dev} dst {to} self permanent
                     ip route replace {subnet} via {via} dev {dev} onlink"
                    ),
                );
            }
        }
    }
}
