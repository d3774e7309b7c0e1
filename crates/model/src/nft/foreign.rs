//! Chains of others that drop forwarded packets. What one chain drops no other can accept, so an
//! accept in our own tables does not help there.

use causeway_types::{Cidr, Family};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How an agent's word on such a chain begins.
pub const STOPPED: &str = "packets of pods do not pass this node";

/// The family of a foreign table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 alone: also the tables of iptables.
    Ip,
    /// IPv6 alone: also the tables of ip6tables.
    Ip6,
}

impl Layer {
    /// All of them.
    pub const ALL: [Layer; 3] = [Layer::Inet, Layer::Ip, Layer::Ip6];

    /// The tables of iptables for a family.
    pub fn of(family: Family) -> Self {
        match family {
            Family::V4 => Layer::Ip,
            Family::V6 => Layer::Ip6,
        }
    }

    /// As `nft` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Layer::Inet => "inet",
            Layer::Ip => "ip",
            Layer::Ip6 => "ip6",
        }
    }

    /// True when packets of a family come by.
    pub fn sees(self, family: Family) -> bool {
        self == Layer::Inet || self == Layer::of(family)
    }

    /// `NFPROTO_*` (`linux/netfilter.h`).
    pub fn number(self) -> u8 {
        match self {
            Layer::Inet => 1,
            Layer::Ip => 2,
            Layer::Ip6 => 10,
        }
    }
}

/// A chain by its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Family of the table.
    pub layer: Layer,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
}

impl Place {
    /// A chain.
    pub fn new(layer: Layer, table: &str, chain: &str) -> Self {
        Self { layer, table: table.to_owned(), chain: chain.to_owned() }
    }

    /// The chain in which firewalld rejects forwarded packets: its policy is to accept, and its
    /// last rule rejects.
    pub fn firewalld() -> Self {
        Self::new(Layer::Inet, "firewalld", "filter_FORWARD")
    }

    /// The chain is one of iptables or ip6tables.
    fn is_iptables(&self) -> bool {
        self.layer != Layer::Inet && self.table == "filter" && self.chain == "FORWARD"
    }
}

/// Packets that a rule accepts without asking for anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Accepted {
    /// Their source or destination.
    pub net: IpNet,
    /// The source's, not the destination's.
    pub source: bool,
}

/// A chain of the forward hook that drops what no rule of it accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropping {
    /// Where.
    pub place: Place,
    /// No rule of it accepts anything.
    pub all: bool,
    /// What it accepts comes from or goes to interfaces of Docker; also where it accepts nothing.
    /// False where nobody followed its rules.
    pub dockers_alone: bool,
    /// What it accepts for certain, in the chain itself or where it leads to without condition;
    /// empty where nobody followed its rules.
    pub accepted: Vec<Accepted>,
    /// Networks that a rule of it asks for, or one of where it leads to, whatever that does; empty
    /// where nobody followed its rules.
    pub named: Vec<IpNet>,
    /// Chains that it leads to.
    pub leads_to: Vec<String>,
}

impl Dropping {
    /// What it is, in one line.
    pub fn what(&self) -> String {
        let Place { layer, table, chain } = &self.place;
        let how = match self.place == Place::firewalld() {
            true => "rejects with its last rule what no rule of it accepts",
            false if self.all => "has policy drop and no rule that accepts anything",
            false if self.dockers_alone => "has policy drop and accepts what is Docker's alone",
            false => "has policy drop and must have rules of its own for pods",
        };
        format!("chain {chain} of table {} {table} {how}", layer.as_str())
    }

    /// What it is and does, and the shortest way out for pods of some subnets, in one line.
    pub fn describe(&self, subnets: &[Cidr]) -> String {
        let what = self.what();
        if self.place == Place::firewalld() {
            return format!("{what}, which no other table can overrule: run `{}`", trust(subnets));
        }
        let Place { layer, table, chain } = &self.place;
        let command = match layer {
            _ if self.is_ufw() => "ufw default allow routed".to_owned(),
            Layer::Ip if self.place.is_iptables() => "iptables -P FORWARD ACCEPT".to_owned(),
            Layer::Ip6 if self.place.is_iptables() => "ip6tables -P FORWARD ACCEPT".to_owned(),
            _ => format!("nft 'chain {} {table} {chain} {{ policy accept; }}'", layer.as_str()),
        };
        format!(
            "{what}, which no other table can overrule: set \"foreignForward\" to \"insert\", or \
             run `{command}`"
        )
    }

    /// Why rules that type `firewall` inserted do not stay; `None` where they do.
    pub fn forgets(&self, subnets: &[Cidr]) -> Option<String> {
        (self.place == Place::firewalld()).then(|| {
            format!(
                "key \"foreignForward\" is \"insert\", but firewalld forgets rules of others when \
                 it reloads: run `{}`",
                trust(subnets)
            )
        })
    }

    /// True when it lets everything pass that comes from a network, and everything that goes there.
    /// firewalld sorts by zones, which nobody follows here: a network that is one's source counts.
    pub fn lets_pass(&self, net: IpNet) -> bool {
        if self.place == Place::firewalld() && self.named.iter().any(|n| n.contains(&net)) {
            return true;
        }
        let one = |source| self.accepted.iter().any(|a| a.source == source && a.net.contains(&net));
        !self.place.layer.sees(Family::of(net.addr())) || (one(true) && one(false))
    }

    /// The commands that let everything from and to these networks pass this chain, and nothing
    /// else. For networks that it does not see, none.
    pub fn commands(&self, nets: &[IpNet]) -> Vec<String> {
        let Place { layer, table, chain } = &self.place;
        let seen = nets.iter().filter(|n| layer.sees(Family::of(n.addr())));
        let each = |net: &IpNet| {
            let (program, word) = match Family::of(net.addr()) {
                Family::V4 => ("iptables", "ip"),
                Family::V6 => ("ip6tables", "ip6"),
            };
            if self.place == Place::firewalld() {
                let add = format!("--zone=trusted --add-source={net}");
                return vec![format!("firewall-cmd --permanent {add} && firewall-cmd {add}")];
            }
            if self.is_ufw() {
                return ["from", "to"].map(|way| format!("ufw route allow {way} {net}")).to_vec();
            }
            if self.place.is_iptables() {
                return ["-s", "-d"]
                    .map(|way| format!("{program} -I {chain} {way} {net} -j ACCEPT"))
                    .to_vec();
            }
            let at = format!("{} {table} {chain}", layer.as_str());
            ["saddr", "daddr"]
                .map(|way| format!("nft insert rule {at} {word} {way} {net} accept"))
                .to_vec()
        };
        seen.flat_map(each).collect()
    }

    /// It is ufw's: what is put there by other hands is gone at its next start.
    fn is_ufw(&self) -> bool {
        self.place.is_iptables()
            && self.leads_to.iter().any(|c| c.starts_with("ufw-") || c.starts_with("ufw6-"))
    }

    /// Docker sets the policy, and sets it again at each of its starts.
    pub fn is_docker(&self) -> bool {
        self.place.is_iptables() && self.leads_to.iter().any(|c| c.starts_with("DOCKER"))
    }
}

/// The command that makes firewalld let pods through, for good.
fn trust(subnets: &[Cidr]) -> String {
    let mut sources: String = subnets.iter().map(|s| format!(" --add-source={s}")).collect();
    if sources.is_empty() {
        sources = " --add-source=SUBNET".to_owned();
    }
    format!("firewall-cmd --permanent --zone=trusted{sources} && firewall-cmd --reload")
}

/// A table `filter` of the old iptables for a family, into which nobody can look by nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy(pub Family);

impl Legacy {
    /// The program that speaks to it.
    pub fn program(self) -> &'static str {
        match self.0 {
            Family::V4 => "iptables-legacy",
            Family::V6 => "ip6tables-legacy",
        }
    }

    /// What it is, and what to do, in one line.
    pub fn describe(self) -> String {
        let program = self.program();
        format!(
            "{program} has a table filter, which cannot be looked into: if `{program} -S FORWARD` \
             shows policy DROP, run `{program} -P FORWARD ACCEPT`"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropping(place: Place, leads_to: &[&str]) -> Dropping {
        let leads_to = leads_to.iter().map(|c| (*c).to_owned()).collect();
        Dropping {
            place,
            all: true,
            dockers_alone: true,
            accepted: Vec::new(),
            named: Vec::new(),
            leads_to,
        }
    }

    #[test]
    fn commands_fit_the_firewall() {
        let nets = ["10.244.1.0/24", "fd00:1::/64"].map(|n| n.parse().unwrap());
        let iptables = dropping(Place::new(Layer::Ip, "filter", "FORWARD"), &["DOCKER-USER"]);
        assert!(iptables.is_docker());
        assert_eq!(
            iptables.commands(&nets),
            [
                "iptables -I FORWARD -s 10.244.1.0/24 -j ACCEPT",
                "iptables -I FORWARD -d 10.244.1.0/24 -j ACCEPT"
            ]
        );
        let ufw = dropping(Place::new(Layer::Ip6, "filter", "FORWARD"), &["ufw6-before-forward"]);
        assert_eq!(
            ufw.commands(&nets),
            ["ufw route allow from fd00:1::/64", "ufw route allow to fd00:1::/64"]
        );
        let own = dropping(Place::new(Layer::Inet, "filter", "forward"), &[]);
        assert_eq!(
            own.commands(&nets)[2..],
            [
                "nft insert rule inet filter forward ip6 saddr fd00:1::/64 accept",
                "nft insert rule inet filter forward ip6 daddr fd00:1::/64 accept"
            ]
        );
        let firewalld = dropping(Place::firewalld(), &[]);
        assert_eq!(firewalld.commands(&nets).len(), 2);
    }

    #[test]
    fn a_network_passes_when_both_ways_are_open() {
        let mut chain = dropping(Place::new(Layer::Ip, "filter", "FORWARD"), &[]);
        let accept = |net: &str, source| Accepted { net: net.parse().unwrap(), source };
        let pods: IpNet = "10.244.1.0/24".parse().unwrap();
        chain.accepted.push(accept("10.244.0.0/16", true));
        assert!(!chain.lets_pass(pods));
        chain.accepted.push(accept("10.244.2.0/24", false));
        assert!(!chain.lets_pass(pods));
        chain.accepted.push(accept("10.244.1.0/24", false));
        assert!(chain.lets_pass(pods));
        assert!(chain.lets_pass("fd00::/64".parse().unwrap()), "IPv6 does not come by");
    }
}
