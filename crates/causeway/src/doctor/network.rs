//! What the kernel says of this node's network.

use std::collections::BTreeMap;

use causeway_doctor::Facts;
use causeway_doctor::facts::{Interface, Lacking, MarkRule};
use causeway_kernel::nft::foreign::has_legacy_filter;
use causeway_kernel::{Error, Handle, features, sysctl};
use causeway_model::LinkKind;
use causeway_model::nft::foreign::Legacy;
use causeway_types::{Family, names};

use super::gather::known;

/// `RTPROT_RA` (`linux/rtnetlink.h`).
const BY_ADVERTISEMENT: u8 = 9;

/// Parameters of the whole namespace that checks look at, below `/proc/sys`.
const SYSCTLS: [&str; 9] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
];

/// Looks at tables, interfaces, parameters, rules and what the kernel can do.
pub(super) fn look(facts: &mut Facts) {
    let lacking = known(facts, "what the kernel can do", features::lacking());
    let lacking = lacking.into_iter().map(|(name, why)| Lacking { feature: name.to_owned(), why });
    facts.lacking = lacking.collect();
    let mut handle = match Handle::open() {
        Ok(handle) => handle,
        Err(error) => return known(facts, "the node's network", Err(error)),
    };
    facts.interfaces = known(facts, "interfaces and routes", interfaces(&mut handle));
    facts.node.tunnel = facts.interfaces.iter().any(|i| i.name == names::VXLAN_DEV);
    facts.marks = known(facts, "routing rules", marks(&mut handle));
    facts.sysctls = known(facts, "kernel parameters", sysctls(&facts.interfaces));
    // Without it there is nothing to look at, which was told.
    if !facts.lacking.iter().any(|l| l.feature == "nf_tables") {
        tables(facts, &mut handle);
    }
    let old = Family::BOTH.into_iter().filter(|family| has_legacy_filter(*family));
    facts.legacy = old.map(Legacy).collect();
}

fn tables(facts: &mut Facts, handle: &mut Handle) {
    let families = match facts.node.families() {
        none if none.is_empty() => Family::BOTH.to_vec(),
        some => some,
    };
    let found = handle.nft().and_then(|nft| {
        let mut dropping = nft.dropping(&families)?;
        dropping.iter_mut().try_for_each(|chain| nft.follow(chain))?;
        Ok((dropping, nft.chains()?))
    });
    let (dropping, chains) = known(facts, "nftables", found);
    facts.dropping = dropping;
    facts.node.served |= chains.iter().any(|c| c.table == names::NFT_AGENT);
    let ours = [names::NFT_AGENT, names::NFT_PLUGINS, names::NFT_POLICY];
    facts.chains = chains.into_iter().filter(|c| !ours.contains(&c.table.as_str())).collect();
}

fn interfaces(handle: &mut Handle) -> Result<Vec<Interface>, Error> {
    let routes = handle.all_routes()?;
    let advertised = |name: &str| {
        routes.iter().any(|r| {
            r.protocol == BY_ADVERTISEMENT
                && r.dst.prefix_len() == 0
                && r.dev.as_ref().is_some_and(|dev| dev.as_str() == name)
        })
    };
    let all = handle.devices()?.into_iter().map(|device| {
        let name = device.link.name.as_str().to_owned();
        let kind = match device.link.kind {
            LinkKind::Bridge => "bridge".to_owned(),
            LinkKind::Veth { .. } => "veth".to_owned(),
            LinkKind::Vxlan(_) => "vxlan".to_owned(),
            LinkKind::Other(kind) => kind,
        };
        Interface { advertised: advertised(&name), name, kind }
    });
    Ok(all.filter(|i| i.name != "lo").collect())
}

fn marks(handle: &mut Handle) -> Result<Vec<MarkRule>, Error> {
    let rules = handle.rules()?.into_iter().filter_map(|rule| {
        let (mark, mask) = rule.mark?;
        Some(MarkRule { family: rule.family.to_string(), priority: rule.priority, mark, mask })
    });
    Ok(rules.collect())
}

fn sysctls(interfaces: &[Interface]) -> Result<BTreeMap<String, String>, Error> {
    let mut paths: Vec<String> = SYSCTLS.map(str::to_owned).to_vec();
    // Those of pods are many, and the agent's to watch.
    let own = |i: &&Interface| i.kind != "veth" || i.advertised;
    for name in interfaces.iter().filter(own).map(|i| &i.name) {
        paths.push(format!("net/ipv4/conf/{name}/rp_filter"));
        paths.push(format!("net/ipv6/conf/{name}/accept_ra"));
        paths.push(format!("net/ipv6/conf/{name}/forwarding"));
    }
    let mut found = BTreeMap::new();
    for path in paths {
        if let Some(value) = sysctl::read(&path)? {
            found.insert(path, value);
        }
    }
    Ok(found)
}
