//! nftables of one pod interface: what it may send, and its masquerade.

use std::net::IpAddr;

use causeway_model::nft::{
    Base, Chain, ChainType, Content, Field, Hook, KeyPart, KeyType, NftFamily, NftTable, Policy,
    Rule, Set, Stmt, Verdict,
};
use causeway_types::state::AttachmentRecord;
use causeway_types::{Cidr, Family, Mac, names};

use crate::cidrs;

/// ICMPv6 types of RFC 4861: router advertisement, neighbour solicitation, neighbour
/// advertisement, redirect.
const RA: u8 = 134;
const NS: u8 = 135;
const NA: u8 = 136;
const REDIRECT: u8 = 137;

/// The link-local address of an interface, which the kernel derives from its MAC.
pub(crate) fn link_local(mac: Mac) -> IpAddr {
    mac.link_local().into()
}

fn accept(comment: &str, mut stmts: Vec<Stmt>) -> Rule {
    stmts.push(Stmt::Verdict(Verdict::Accept));
    Rule::new(comment, stmts)
}

fn drop(comment: &str, mut stmts: Vec<Stmt>) -> Rule {
    stmts.extend([Stmt::Counter, Stmt::Verdict(Verdict::Drop)]);
    Rule::new(comment, stmts)
}

/// The shared table of family netdev with this pod's ingress chain.
pub(crate) fn table(record: &AttachmentRecord) -> NftTable {
    let mut rules = vec![others_macs(record)];
    let v4: Vec<IpAddr> = record.addrs_of(Family::V4).map(|a| a.addr()).collect();
    let v6: Vec<IpAddr> = record.addrs_of(Family::V6).map(|a| a.addr()).collect();
    if !v4.is_empty() {
        rules.extend(ipv4(record.mac, &v4));
    }
    if !v6.is_empty() {
        rules.extend(ipv6(record.mac, &v6));
    }
    rules.push(drop("source address is not the pod's", vec![]));
    with_chain(record, Policy::Drop, rules)
}

/// The same with the check of MACs alone: the addresses are the pod's own affair.
pub(crate) fn mac_check(record: &AttachmentRecord) -> NftTable {
    with_chain(record, Policy::Accept, vec![others_macs(record)])
}

fn others_macs(record: &AttachmentRecord) -> Rule {
    let other = Stmt::is_not(Field::EtherSaddr, KeyPart::Mac(record.mac));
    drop("source MAC is not the pod's", vec![other])
}

fn with_chain(record: &AttachmentRecord, policy: Policy, rules: Vec<Rule>) -> NftTable {
    let mut table = NftTable::new(NftFamily::Netdev, names::NFT_PLUGINS, false);
    let base = Base {
        kind: ChainType::Filter,
        hook: Hook::Ingress,
        priority: -150,
        device: Some(record.host_ifname.clone()),
        policy,
    };
    table.chains.insert(record.host_ifname.to_string(), Chain { base: Some(base), rules });
    table
}

fn ipv4(mac: Mac, addresses: &[IpAddr]) -> Vec<Rule> {
    let arp = |sender: KeyPart| {
        vec![Stmt::is(Field::ArpSaddrEther, KeyPart::Mac(mac)), Stmt::is(Field::ArpSaddrIp, sender)]
    };
    let mut rules = Vec::new();
    for ip in addresses {
        let source = Stmt::is(Field::Saddr(Family::V4), KeyPart::addr(*ip));
        rules.push(accept("the pod's address", vec![source]));
        rules.push(accept("ARP in the pod's own name", arp(KeyPart::addr(*ip))));
    }
    let nobody = KeyPart::addr(Family::V4.unspecified());
    rules.push(accept("ARP probes (RFC 5227)", arp(nobody)));
    rules
}

fn ipv6(mac: Mac, addresses: &[IpAddr]) -> Vec<Rule> {
    let kind = |t: u8| Stmt::is(Field::Icmpv6Type, KeyPart::Icmpv6(t));
    let own: Vec<IpAddr> = addresses.iter().copied().chain([link_local(mac)]).collect();
    let mut rules = vec![
        drop("router advertisement from a pod", vec![kind(RA)]),
        drop("redirect from a pod", vec![kind(REDIRECT)]),
    ];
    for ip in &own {
        let target = Stmt::is(Field::NdTarget, KeyPart::addr(*ip));
        let source = Stmt::is(Field::Saddr(Family::V6), KeyPart::addr(*ip));
        rules.push(accept("neighbour advertisement for itself", vec![source, kind(NA), target]));
    }
    // An advertisement comes from the address that it is about (RFC 4861, 7.2.4).
    rules.push(drop("neighbour advertisement for another", vec![kind(NA)]));
    for ip in &own {
        let source = Stmt::is(Field::Saddr(Family::V6), KeyPart::addr(*ip));
        rules.push(accept("the pod's address", vec![source]));
    }
    let nobody = || Stmt::is(Field::Saddr(Family::V6), KeyPart::addr(Family::V6.unspecified()));
    rules.push(accept("duplicate address detection", vec![nobody(), kind(NS)]));
    rules.push(accept("multicast listener report (RFC 3810)", vec![nobody(), kind(143)]));
    rules
}

/// The shared table of family inet with this pod's masquerade: by the pod's address into a chain
/// that all pods with the same exceptions share.
pub(crate) fn masquerade(record: &AttachmentRecord, except: &[Cidr]) -> NftTable {
    let mut table = NftTable::new(NftFamily::Inet, names::NFT_PLUGINS, false);
    let base = Base {
        kind: ChainType::Nat,
        hook: Hook::Postrouting,
        priority: 100,
        device: None,
        policy: Policy::Accept,
    };
    let mut rules = Vec::new();
    let mut mentioned: Vec<Cidr> = except.to_vec();
    for family in Family::BOTH {
        let addresses: Vec<IpAddr> = record.addrs_of(family).map(|a| a.addr()).collect();
        // Both families always: every pod must wish for the same base chain.
        mentioned.push(cidrs::multicast(family));
        let name = match family {
            Family::V4 => "masq4",
            Family::V6 => "masq6",
        };
        let mut map = Set::vmap(KeyType::Addr(family));
        for ip in addresses {
            let verdict = Some(Verdict::Goto(String::new()));
            let comment = Some(names::element_mark(&record.container_id, record.ifname.as_str()));
            map.elements.insert(
                KeyPart::addr(ip).into(),
                Content { verdict, comment, ..Content::default() }.into(),
            );
        }
        table.sets.insert(name.to_owned(), map);
        rules.push(Rule::new(
            "pods by address",
            vec![Stmt::Vmap { fields: vec![Field::Saddr(family)], map: name.to_owned() }],
        ));
    }
    let families: Vec<Family> =
        Family::BOTH.into_iter().filter(|f| record.addrs_of(*f).next().is_some()).collect();
    let list: Vec<Cidr> =
        cidrs::minimal(mentioned).into_iter().filter(|c| families.contains(&c.family())).collect();
    let chain = chain_name(&list);
    for set in table.sets.values_mut() {
        for element in set.elements.values_mut() {
            element.verdict = Some(Verdict::Goto(chain.clone()));
        }
    }
    let mut own: Vec<Rule> = list
        .iter()
        .map(|cidr| {
            let to = Stmt::is(Field::Daddr(cidr.family()), KeyPart::Net(*cidr));
            Rule::new("seen with the pod's own address", vec![to, Stmt::Verdict(Verdict::Return)])
        })
        .collect();
    own.push(Rule::new("the rest is outside", vec![Stmt::Masquerade { fully_random: true }]));
    table.chains.insert("postrouting".to_owned(), Chain { base: Some(base), rules });
    table.chains.insert(chain, Chain { base: None, rules: own });
    table
}

fn chain_name(list: &[Cidr]) -> String {
    let text: Vec<String> = list.iter().map(Cidr::to_string).collect();
    let hash = Mac::derived(&text.join(",")).0;
    let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    format!("except_{hex}")
}
