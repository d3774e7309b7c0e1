//! Elements of sets: keys, interval ends, verdicts, comments.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use causeway_model::nft::{Content, Element, ElementKey, KeyPart, KeyType, Set, bytes, key_part};
use causeway_types::{Cidr, Family};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::exprs::{DATA_VALUE, DATA_VERDICT, attribute, put_verdict, verdict};
use super::wire::{Body, be32, comment, comment_of};
use crate::sock::attributes;

const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_USERDATA: u16 = 6;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// Bytes of a key part, before padding.
pub(super) fn width(kind: KeyType) -> usize {
    match kind {
        KeyType::Addr(Family::V4) => 4,
        KeyType::Addr(Family::V6) | KeyType::IfName => 16,
        KeyType::EtherAddr => 6,
        KeyType::InetProto => 1,
        KeyType::InetService => 2,
        KeyType::Mark => 4,
    }
}

/// One element as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) key: Vec<u8>,
    pub(super) data: Vec<u8>,
    pub(super) end: bool,
    pub(super) element: Element,
}

impl Raw {
    /// An element by its key alone.
    pub(super) fn of(key: &[KeyPart]) -> Self {
        let (key, data) = (concat(key), Vec::new());
        Self { key, data, end: false, element: Element::default() }
    }
}

/// The kernel's elements for ours: in an interval set each prefix is a start and the address
/// behind its end (unless that is the end of all addresses).
pub(super) fn raw(set: &Set, elements: &BTreeMap<ElementKey, Element>) -> Vec<Raw> {
    let mut all = Vec::new();
    for (key, element) in elements {
        let data = concat(&element.data);
        all.push(Raw { key: concat(key), data, end: false, element: element.clone() });
        let end = match &key[..] {
            [KeyPart::Net(net)] if set.interval => behind(*net),
            [KeyPart::Ports(_, last)] => last.checked_add(1).map(|n| n.to_be_bytes().to_vec()),
            _ => None,
        };
        if let Some(end) = end {
            let (data, element) = (Vec::new(), Element::default());
            all.push(Raw { key: end, data, end: true, element });
        }
    }
    all
}

/// Parts of a concatenation are padded to 4 bytes.
fn concat(key: &[KeyPart]) -> Vec<u8> {
    if let [one] = key {
        return bytes(one);
    }
    let mut all = Vec::new();
    for part in key {
        all.extend(bytes(part));
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all
}

fn behind(net: Cidr) -> Option<Vec<u8>> {
    Some(match net.net() {
        IpNet::V4(n) => n.broadcast().to_bits().checked_add(1)?.to_be_bytes().to_vec(),
        IpNet::V6(n) => n.broadcast().to_bits().checked_add(1)?.to_be_bytes().to_vec(),
    })
}

/// Writes one element into `NFTA_SET_ELEM_LIST_ELEMENTS`.
pub(super) fn put(list: &mut Body, raw: &Raw) {
    list.nest(1, |e| {
        e.nest(ELEM_KEY, |k| {
            k.put(DATA_VALUE, &raw.key);
        });
        if raw.end {
            e.u32(ELEM_FLAGS, INTERVAL_END);
        }
        if let Some(v) = &raw.element.verdict {
            e.nest(ELEM_DATA, |d| put_verdict(d, v));
        }
        if !raw.data.is_empty() {
            e.nest(ELEM_DATA, |d| {
                d.put(DATA_VALUE, &raw.data);
            });
        }
        if let Some(c) = &raw.element.comment {
            e.put(ELEM_USERDATA, &comment(c));
        }
    });
}

/// Reads the content of `NFTA_SET_ELEM_LIST_ELEMENTS`.
pub(super) fn read(list: &[u8]) -> Vec<Raw> {
    attributes(list)
        .filter_map(|(_, e)| {
            let flags = attribute(e, ELEM_FLAGS).and_then(be32).unwrap_or(0);
            let data = attribute(e, ELEM_DATA);
            Some(Raw {
                key: attribute(attribute(e, ELEM_KEY)?, DATA_VALUE)?.to_vec(),
                data: data.and_then(|d| attribute(d, DATA_VALUE)).unwrap_or_default().to_vec(),
                end: flags & INTERVAL_END != 0,
                element: Content {
                    verdict: data.and_then(|d| verdict(attribute(d, DATA_VERDICT)?)),
                    data: Vec::new(),
                    comment: attribute(e, ELEM_USERDATA).and_then(comment_of),
                }
                .into(),
            })
        })
        .collect()
}

/// The elements that the kernel's mean. One that cannot be read is left out: the set then differs
/// from what is wanted only if its place is needed.
pub(super) fn meaning(set: &Set, mut raws: Vec<Raw>) -> BTreeMap<ElementKey, Element> {
    let mut all = BTreeMap::new();
    if !set.interval {
        for mut raw in raws {
            let data = parts(&set.data, &raw.data);
            if let (Some(key), Some(data)) = (parts(&set.key, &raw.key), data) {
                // One without anything stays small.
                if !data.is_empty() {
                    raw.element.data = data;
                }
                all.insert(key.into(), raw.element);
            }
        }
        return all;
    }
    // Ends before starts at the same address: intervals may touch.
    raws.sort_by(|a, b| (&a.key, !a.end).cmp(&(&b.key, !b.end)));
    let mut rest = raws.into_iter().peekable();
    while let Some(start) = rest.next() {
        if start.end {
            continue;
        }
        let end = rest.peek().filter(|r| r.end).map(|r| r.key.clone());
        if let (Some(first), [KeyType::InetService]) = (start.key.first_chunk::<2>(), &set.key[..])
        {
            let end = end.as_deref().and_then(|e| e.first_chunk::<2>());
            let last = end.map_or(u16::MAX, |end| u16::from_be_bytes(*end).wrapping_sub(1));
            let ports = KeyPart::Ports(u16::from_be_bytes(*first), last);
            all.insert(ports.into(), start.element);
            continue;
        }
        for net in nets(&start.key, end.as_deref()) {
            all.insert(KeyPart::Net(net).into(), start.element.clone());
        }
    }
    all
}

fn parts(kinds: &[KeyType], bytes: &[u8]) -> Option<Vec<KeyPart>> {
    let mut at = 0;
    let mut parts = Vec::new();
    for kind in kinds {
        parts.push(key_part(*kind, bytes.get(at..)?)?);
        at += width(*kind).next_multiple_of(4);
    }
    Some(parts)
}

/// The prefixes of an interval from its first address to the one before its end.
fn nets(start: &[u8], end: Option<&[u8]>) -> Vec<Cidr> {
    if let Some(start) = start.first_chunk::<4>().filter(|_| start.len() == 4) {
        let first = Ipv4Addr::from(*start);
        let last = match end.and_then(|e| e.first_chunk::<4>()) {
            Some(end) => Ipv4Addr::from_bits(u32::from_be_bytes(*end).wrapping_sub(1)),
            None => Ipv4Addr::BROADCAST,
        };
        let all = Ipv4Subnets::new(first, last, 0);
        return all.map(|n| Cidr::of(IpNet::V4(n))).collect();
    }
    let Some(start) = start.first_chunk::<16>() else { return vec![] };
    let first = Ipv6Addr::from(*start);
    let last = match end.and_then(|e| e.first_chunk::<16>()) {
        Some(end) => Ipv6Addr::from_bits(u128::from_be_bytes(*end).wrapping_sub(1)),
        None => Ipv6Addr::from_bits(u128::MAX),
    };
    Ipv6Subnets::new(first, last, 0).map(|n| Cidr::of(IpNet::V6(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(texts: &[&str], family: Family) {
        let mut set = Set::of(KeyType::Addr(family), true);
        for text in texts {
            set.add(KeyPart::Net(text.parse().unwrap()), None);
        }
        assert_eq!(meaning(&set, raw(&set, &set.elements)), set.elements);
    }

    #[test]
    fn prefixes_survive_being_intervals() {
        round(&["10.0.0.0/24", "10.0.1.0/24", "10.2.0.0/16", "224.0.0.0/4"], Family::V4);
        round(&["0.0.0.0/0"], Family::V4);
        round(&["255.255.255.255/32", "0.0.0.0/8"], Family::V4);
        round(&["fd00::/48", "ff00::/8", "2001:db8::1/128"], Family::V6);
    }

    #[test]
    fn a_range_that_is_no_prefix_becomes_several() {
        let ip = |t: &str| t.parse::<std::net::IpAddr>().unwrap();
        let key = |t: &str| bytes(&KeyPart::addr(ip(t)));
        let found = nets(&key("10.0.0.1"), Some(&key("10.0.0.4")));
        let found: Vec<String> = found.iter().map(Cidr::to_string).collect();
        assert_eq!(found, ["10.0.0.1/32", "10.0.0.2/31"]);
    }
}
