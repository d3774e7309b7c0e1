//! Rules of policy routing (`ip rule`), and the routes of one interface in all tables.

use std::net::IpAddr;

use causeway_model::Route;
use causeway_types::{Family, IfName};
use ipnet::IpNet;

use crate::error::Error;
use crate::handle::{Handle, Routes};
use crate::rtnl::link;
use crate::rtnl::read::{self, Names};
use crate::sock::{CREATE, EXCL, Reply, Request, attributes};

/// `struct fib_rule_hdr`.
const HEADER: usize = 12;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;
/// `FIB_RULE_INVERT`: for all packets but those.
const INVERT: u32 = 2;

/// Attributes (`FRA_*`, `linux/fib_rules.h`).
mod fra {
    pub(super) const SRC: u16 = 2;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const FWMARK: u16 = 10;
    pub(super) const SUPPRESS_IFGROUP: u16 = 13;
    pub(super) const SUPPRESS_PREFIXLEN: u16 = 14;
    pub(super) const TABLE: u16 = 15;
    pub(super) const FWMASK: u16 = 16;
    pub(super) const PROTOCOL: u16 = 21;
}

/// A rule that leads to a table, as far as it speaks of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The family that it is for.
    pub family: Family,
    /// Its place among the rules, lowest first.
    pub priority: u32,
    /// The table that it leads to; 0 for rules that lead to none.
    pub table: u32,
    /// The source that it asks for; `None`: any.
    pub from: Option<IpNet>,
    /// Who made it (`RTPROT_*`); 0 where nobody said.
    pub protocol: u8,
    /// It asks for nothing else: no destination, no interface, no mark.
    pub plain: bool,
    /// The mark that it asks for, and the bits of it that it looks at, where it asks for one.
    pub mark: Option<(u32, u32)>,
}

impl Rule {
    /// `from ADDRESS lookup TABLE`, where the kernel puts it: before all others but the first.
    pub fn from_address(ip: IpAddr, table: u32, protocol: u8) -> Self {
        let (family, from) = (Family::of(ip), Some(IpNet::from(ip)));
        Self { family, priority: 0, table, from, protocol, plain: true, mark: None }
    }
}

impl Handle {
    /// All rules of both families, in the kernel's order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            match self.route.dump("read routing rules", dump(family), decode) {
                Ok(found) => all.extend(found),
                // A kernel without IPv6 has none of its.
                Err(Error::Refused { refusal, .. }) if refusal.errno == libc::EOPNOTSUPP => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Adds a rule. A priority of 0 leaves its place to the kernel.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let request = Request::new(libc::RTM_NEWRULE, CREATE | EXCL, encode(rule));
        self.change_rule("add a routing rule", request)
    }

    /// Removes a rule; one that is gone is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_rule(&mut self, rule: &Rule) -> Result<(), Error> {
        let request = Request::new(libc::RTM_DELRULE, 0, encode(rule));
        match self.change_rule("remove a routing rule", request) {
            Err(Error::Refused { refusal, .. }) if refusal.is_gone() => Ok(()),
            other => other,
        }
    }

    fn change_rule(&mut self, what: &str, request: Request) -> Result<(), Error> {
        let outcomes = self.route.transact(vec![request])?;
        outcomes.into_iter().try_for_each(|o| o.map_err(|e| Error::refused(what, e)))
    }

    /// The routes of all tables but `local`, in the kernel's order, also several with the same
    /// destination, table and metric.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn all_routes(&mut self) -> Result<Vec<Route>, Error> {
        let links = self.route.dump("read links", link::dump(), link::decode)?;
        let names: Names = links.into_iter().map(|s| (s.index, s.link.name)).collect();
        self.routes(Routes::All, &names)
    }
}

impl Rule {
    /// True for a rule that sends packets of this address alone to a table.
    pub fn is_from(&self, ip: IpAddr) -> bool {
        self.plain && self.table != 0 && self.from == Some(IpNet::from(ip))
    }
}

/// True for a route of an interface.
pub fn leads_by(route: &Route, dev: &IfName) -> bool {
    route.dev.as_ref() == Some(dev)
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// The request for a dump of one family's rules.
pub(crate) fn dump(family: Family) -> Request {
    let mut body = vec![0; HEADER];
    body[0] = family_number(family);
    Request::new(libc::RTM_GETRULE, 0, body)
}

fn encode(rule: &Rule) -> Vec<u8> {
    let mut body = vec![0; HEADER];
    body[0] = family_number(rule.family);
    body[2] = rule.from.map_or(0, |net| net.prefix_len());
    body[4] = u8::try_from(rule.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    body[7] = TO_TABLE;
    match rule.from.map(|net| net.addr()) {
        Some(IpAddr::V4(ip)) => read::put(&mut body, fra::SRC, &ip.octets()),
        Some(IpAddr::V6(ip)) => read::put(&mut body, fra::SRC, &ip.octets()),
        None => {}
    }
    read::put(&mut body, fra::TABLE, &rule.table.to_ne_bytes());
    if rule.priority != 0 {
        read::put(&mut body, fra::PRIORITY, &rule.priority.to_ne_bytes());
    }
    if rule.protocol != 0 {
        read::put(&mut body, fra::PROTOCOL, &[rule.protocol]);
    }
    body
}

pub(crate) fn decode(reply: Reply<'_>) -> Option<Rule> {
    let header = reply.body.get(..HEADER).filter(|_| reply.kind == libc::RTM_NEWRULE)?;
    let [_, dst_len, src_len, tos, table, _, _, action] = *header.first_chunk()?;
    let mut rule = Rule {
        family: read::family(header)?,
        priority: 0,
        table: u32::from(table),
        from: None,
        protocol: 0,
        mark: None,
        plain: dst_len == 0 && tos == 0 && read::number_at(header, 8)? & INVERT == 0,
    };
    let (mut mark, mut mask) = (0, None);
    for (kind, value) in attributes(&reply.body[HEADER..]) {
        match kind {
            fra::FWMARK => (mark, rule.plain) = (read::number(value)?, false),
            fra::FWMASK => (mask, rule.plain) = (Some(read::number(value)?), false),
            fra::SRC => rule.from = Some(IpNet::new(read::ip(value)?, src_len).ok()?.trunc()),
            fra::TABLE => rule.table = read::number(value)?,
            fra::PRIORITY => rule.priority = read::number(value)?,
            fra::PROTOCOL => rule.protocol = read::byte(value)?,
            // The kernel always tells these two; all ones: not set.
            fra::SUPPRESS_IFGROUP | fra::SUPPRESS_PREFIXLEN if value == [0xff; 4] => {}
            _ => rule.plain = false,
        }
    }
    rule.mark = mask.map(|mask| (mark, mask));
    if action != TO_TABLE {
        rule.table = 0;
    }
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for ip in ["10.1.2.3", "fd00::7"] {
            let ip: IpAddr = ip.parse().unwrap();
            for table in [100, 1000] {
                let rule = Rule { priority: 5, ..Rule::from_address(ip, table, 203) };
                let body = encode(&rule);
                let reply =
                    |body| Reply { kind: libc::RTM_NEWRULE, flags: 0, seq: 0, port: 0, body };
                assert_eq!(decode(reply(&body)), Some(rule));
                assert!(rule.is_from(ip));
                for len in 0..body.len() {
                    decode(reply(&body[..len]));
                }
            }
        }
    }
}
