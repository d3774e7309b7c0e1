//! What kube-proxy writes into a node, without kube-proxy: the rules of its iptables mode
//! (`pkg/proxy/iptables/proxier.go`) and of its nftables mode (`pkg/proxy/nftables/proxier.go`), with
//! `--masquerade-all=false`, `--cluster-cidr` set and mark bit 14.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use causeway_types::Family;

use crate::world::World;

/// `--proxy-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Iptables,
    Nftables,
}

impl Mode {
    pub(crate) const BOTH: [Self; 2] = [Self::Iptables, Self::Nftables];
}

#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
}

/// A Service of one port, by TCP and UDP.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) cluster_ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) node_port: u16,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// Names and rules of one port of a Service.
struct Port<'a> {
    service: &'a Service,
    protocol: &'static str,
}

fn ports<'a>(services: &'a [&'a Service]) -> Vec<Port<'a>> {
    let of = |service| ["tcp", "udp"].map(|protocol| Port { service, protocol });
    services.iter().flat_map(|service| of(*service)).collect()
}

impl Port<'_> {
    /// A name such as `web:http`.
    fn label(&self) -> String {
        format!("default/{}:{}", self.service.name, self.protocol)
    }

    /// The hash in a chain's name, 16 characters in the original.
    fn hash(&self) -> String {
        format!("{:X>13}{}", self.service.name.to_uppercase(), self.protocol.to_uppercase())
    }
}

/// Writes the rules for one family, in place of those before.
pub(crate) fn write(world: &World, node: &str, mode: Mode, family: Family, services: &[&Service]) {
    let cidr = world.spec.cluster_cidrs().into_iter().find(|c| c.family() == family);
    let cidr = cidr.expect("a range of the family").to_string();
    let (text, program) = match (mode, family) {
        (Mode::Iptables, Family::V4) => {
            (iptables(&cidr, services), "iptables-nft-restore --noflush")
        }
        (Mode::Iptables, Family::V6) => {
            (iptables(&cidr, services), "ip6tables-nft-restore --noflush")
        }
        (Mode::Nftables, _) => {
            let ip = world.spec.node_addr(node, family).addr();
            (nftables(family, &cidr, ip, services), "nft -f -")
        }
    };
    world.on(node, &format!("{program} <<'EOF'\n{text}EOF"));
}

/// `kube-proxy --cleanup`, and what iptables leaves.
pub(crate) fn remove(world: &World, node: &str, mode: Mode) {
    for family in ["ip", "ip6"] {
        match mode {
            Mode::Iptables => world.on(
                node,
                &format!("nft delete table {family} nat; nft delete table {family} filter"),
            ),
            Mode::Nftables => world.on(node, &format!("nft delete table {family} kube-proxy")),
        };
    }
}

/// Chain names, jumps from the chains of the kernel, and the rules.
fn iptables(cidr: &str, services: &[&Service]) -> String {
    let ports = ports(services);
    let chains: Vec<String> = ports
        .iter()
        .flat_map(|p| {
            let (hash, n) = (p.hash(), p.service.endpoints.len());
            let own = [format!("KUBE-SVC-{hash}"), format!("KUBE-EXT-{hash}")];
            own.into_iter().chain((0..n).map(move |i| format!("KUBE-SEP-{hash}{i}")))
        })
        .collect();
    let mut text = String::from(FILTER);
    text += NAT;
    for chain in chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    text += NAT_RULES;
    for port in &ports {
        iptables_port(&mut text, cidr, port);
    }
    // The last of them: what is for this node itself.
    text += "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the \
             last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n";
    text
}

const FILTER: &str = r#"*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-F INPUT
-F FORWARD
-F OUTPUT
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const NAT: &str = r"*nat
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-F PREROUTING
-F OUTPUT
-F POSTROUTING
";

const NAT_RULES: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
"#;

fn iptables_port(text: &mut String, cidr: &str, port: &Port<'_>) {
    let Port { service, protocol } = port;
    let (hash, label) = (port.hash(), port.label());
    let portal =
        format!("-m {protocol} -p {protocol} -d {} --dport {}", service.cluster_ip, service.port);
    let mut rule = |line: String| {
        let _ = writeln!(text, "-A {line}");
    };
    rule(format!(
        "KUBE-NODEPORTS -m comment --comment {label} -m {protocol} -p {protocol} --dport {} -j KUBE-EXT-{hash}",
        service.node_port
    ));
    rule(format!(
        "KUBE-EXT-{hash} -m comment --comment \"masquerade traffic for {label} external destinations\" -j KUBE-MARK-MASQ"
    ));
    rule(format!("KUBE-EXT-{hash} -j KUBE-SVC-{hash}"));
    rule(format!(
        "KUBE-SERVICES -m comment --comment \"{label} cluster IP\" {portal} -j KUBE-SVC-{hash}"
    ));
    rule(format!(
        "KUBE-SVC-{hash} -m comment --comment \"{label} cluster IP\" {portal} ! -s {cidr} -j KUBE-MARK-MASQ"
    ));
    let n = service.endpoints.len();
    for (i, Endpoint { ip, port }) in service.endpoints.iter().enumerate() {
        let to = SocketAddr::new(*ip, *port);
        let chance = match n - i {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
        };
        let comment = format!("-m comment --comment {label}");
        rule(format!(
            "KUBE-SVC-{hash} -m comment --comment \"{label} -> {to}\"{chance} -j KUBE-SEP-{hash}{i}"
        ));
        rule(format!("KUBE-SEP-{hash}{i} {comment} -s {ip} -j KUBE-MARK-MASQ"));
        rule(format!(
            "KUBE-SEP-{hash}{i} {comment} -m {protocol} -p {protocol} -j DNAT --to-destination {to}"
        ));
    }
}

/// The table `kube-proxy` of one family.
fn nftables(family: Family, cidr: &str, node_ip: IpAddr, services: &[&Service]) -> String {
    let (ip, kind) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let ports = ports(services);
    let list = |items: Vec<String>| items.join(", ");
    let cluster_ips = list(services.iter().map(|s| s.cluster_ip.to_string()).collect());
    let name = |p: &Port<'_>| format!("{}-default/{}/{}/p", p.hash(), p.service.name, p.protocol);
    let service_ips = list(
        ports
            .iter()
            .map(|p| {
                let Service { cluster_ip, port, .. } = p.service;
                format!("{cluster_ip} . {} . {port} : goto service-{}", p.protocol, name(p))
            })
            .collect(),
    );
    let node_ports = list(
        ports
            .iter()
            .map(|p| {
                format!("{} . {} : goto external-{}", p.protocol, p.service.node_port, name(p))
            })
            .collect(),
    );
    let mut chains = String::new();
    for port in &ports {
        nftables_port(&mut chains, ip, cidr, port, &name(port));
    }
    format!(
        r#"add table {ip} kube-proxy {{ comment "rules for kube-proxy" ; }}
delete table {ip} kube-proxy
table {ip} kube-proxy {{
    comment "rules for kube-proxy"
    set cluster-ips {{ type {kind}; comment "Active ClusterIPs"; elements = {{ {cluster_ips} }}; }}
    set nodeport-ips {{ type {kind}; comment "IPs that accept NodePort traffic"; elements = {{ {node_ip} }}; }}
    map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; comment "vmap to drop or reject packets to services with no endpoints"; }}
    map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; comment "vmap to drop or reject packets to service nodeports with no endpoints"; }}
    map firewall-ips {{ type {kind} . inet_proto . inet_service : verdict; comment "destinations that are subject to LoadBalancerSourceRanges"; }}
{chains}
    map service-ips {{ type {kind} . inet_proto . inet_service : verdict; comment "ClusterIP, ExternalIP and LoadBalancer IP traffic"; elements = {{ {service_ips} }}; }}
    map service-nodeports {{ type inet_proto . inet_service : verdict; comment "NodePort traffic"; elements = {{ {node_ports} }}; }}
    chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
    chain filter-input {{ type filter hook input priority -110; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}
    chain filter-forward {{ type filter hook forward priority -110; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
    chain filter-output {{ type filter hook output priority -110; ct state new jump service-endpoints-check; ct state new jump firewall-check; }}
    chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
    chain nodeport-endpoints-check {{ {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
    chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
    chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}
    chain cluster-ips-check {{ {ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"; }}
    chain services {{ {ip} daddr . meta l4proto . th dport vmap @service-ips; {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports; }}
    chain masquerading {{ meta mark & 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }}
}}
"#
    )
}

fn nftables_port(text: &mut String, ip: &str, cidr: &str, port: &Port<'_>, name: &str) {
    let Port { service, protocol } = port;
    if !text.contains("mark-for-masquerade {") {
        *text += "    chain mark-for-masquerade { meta mark set meta mark or 0x4000; }\n";
    }
    let mut ways = Vec::new();
    for (i, Endpoint { ip: to, port }) in service.endpoints.iter().enumerate() {
        let endpoint = format!("endpoint-{i}-{name}");
        let to_port = SocketAddr::new(*to, *port);
        let _ = writeln!(
            text,
            "    chain {endpoint} {{ {ip} saddr {to} jump mark-for-masquerade; meta l4proto {protocol} dnat to {to_port}; }}"
        );
        ways.push(format!("{i} : goto {endpoint}"));
    }
    let (cluster_ip, n) = (service.cluster_ip, ways.len());
    let _ = writeln!(
        text,
        "    chain service-{name} {{ {ip} daddr {cluster_ip} {protocol} dport {} {ip} saddr != {cidr} jump mark-for-masquerade; numgen random mod {n} vmap {{ {} }}; }}",
        service.port,
        ways.join(", ")
    );
    let _ = writeln!(
        text,
        "    chain external-{name} {{ jump mark-for-masquerade; goto service-{name}; }}"
    );
}
