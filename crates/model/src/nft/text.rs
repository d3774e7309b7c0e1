//! Rules and tables as `nft -f` reads them.

use std::fmt::Write;

use causeway_types::Family;

use super::{
    Base, Chain, ChainType, Element, Field, Hook, KeyPart, KeyType, MatchOp, NftTable, Policy, Rhs,
    Rule, Set, Stmt,
};

/// A whole table.
pub fn table(table: &NftTable) -> String {
    let mut out = format!("table {} {} {{\n", table.family, table.name);
    for (name, value) in &table.sets {
        set(&mut out, name, value);
    }
    // Chains that others lead to come first: nft wants to know a chain before it is named.
    let (called, base): (Vec<_>, Vec<_>) = table.chains.iter().partition(|(_, c)| c.base.is_none());
    for (name, value) in called.into_iter().chain(base) {
        chain(&mut out, name, value);
    }
    out.push_str("}\n");
    out
}

fn set(out: &mut String, name: &str, set: &Set) {
    let keys: Vec<&str> = set.key.iter().map(|k| key_type(*k)).collect();
    let data: Vec<&str> = set.data.iter().map(|k| key_type(*k)).collect();
    let (word, data) = match (set.vmap, data.is_empty()) {
        (true, _) => ("map", " : verdict".to_owned()),
        (false, false) => ("map", format!(" : {}", data.join(" . "))),
        (false, true) => ("set", String::new()),
    };
    let _ = writeln!(out, "\t{word} {name} {{");
    let _ = writeln!(out, "\t\ttype {}{data}", keys.join(" . "));
    if set.interval {
        out.push_str("\t\tflags interval\n");
    }
    if !set.elements.is_empty() {
        let all: Vec<String> = set.elements.iter().map(|(k, e)| element(k, e)).collect();
        let _ = writeln!(out, "\t\telements = {{ {} }}", all.join(",\n\t\t\t     "));
    }
    out.push_str("\t}\n\n");
}

fn key_type(kind: KeyType) -> &'static str {
    match kind {
        KeyType::Addr(Family::V4) => "ipv4_addr",
        KeyType::Addr(Family::V6) => "ipv6_addr",
        KeyType::EtherAddr => "ether_addr",
        KeyType::IfName => "ifname",
        KeyType::InetProto => "inet_proto",
        KeyType::InetService => "inet_service",
        KeyType::Mark => "mark",
    }
}

/// One element of a set or map.
pub fn element(key: &[KeyPart], element: &Element) -> String {
    let parts: Vec<String> = key.iter().map(KeyPart::to_string).collect();
    let mut text = parts.join(" . ");
    if let Some(comment) = &element.comment {
        let _ = write!(text, " comment \"{comment}\"");
    }
    if let Some(verdict) = &element.verdict {
        let _ = write!(text, " : {verdict}");
    }
    if !element.data.is_empty() {
        let parts: Vec<String> = element.data.iter().map(KeyPart::to_string).collect();
        let _ = write!(text, " : {}", parts.join(" . "));
    }
    text
}

fn chain(out: &mut String, name: &str, chain: &Chain) {
    let _ = writeln!(out, "\tchain {name} {{");
    if let Some(base) = &chain.base {
        let _ = writeln!(out, "\t\t{}", hook(base));
    }
    for r in &chain.rules {
        let _ = writeln!(out, "\t\t{}", rule(r));
    }
    out.push_str("\t}\n\n");
}

fn hook(base: &Base) -> String {
    let kind = match base.kind {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
    };
    let hook = match base.hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
        Hook::Ingress => "ingress",
    };
    let device = base.device.as_ref().map_or(String::new(), |d| format!(" device \"{d}\""));
    let policy = match base.policy {
        Policy::Accept => "accept",
        Policy::Drop => "drop",
    };
    format!("type {kind} hook {hook}{device} priority {}; policy {policy};", base.priority)
}

/// One rule on one line.
pub fn rule(rule: &Rule) -> String {
    let mut parts: Vec<String> = rule.stmts.iter().map(stmt).collect();
    if let Some(comment) = rule.comment.as_ref().filter(|c| !c.is_empty()) {
        parts.push(format!("comment \"{comment}\""));
    }
    parts.join(" ")
}

fn stmt(stmt: &Stmt) -> String {
    match stmt {
        Stmt::Match { fields, op, rhs } => {
            let op = match op {
                MatchOp::Eq => "",
                MatchOp::Ne => "!= ",
            };
            match rhs {
                Rhs::Bits { mask, value } => {
                    let op = if op.is_empty() { "==" } else { "!=" };
                    format!("{} & {mask:#x} {op} {value:#x}", names(fields))
                }
                _ => format!("{} {op}{}", names(fields), value(fields, rhs)),
            }
        }
        Stmt::Vmap { fields, map } => format!("{} vmap @{map}", names(fields)),
        Stmt::Counter => "counter".to_owned(),
        Stmt::Limit { rate } => format!("limit rate {rate}/second burst {rate} packets"),
        Stmt::Log { group, prefix, snaplen } => {
            format!("log prefix \"{prefix}\" group {group} snaplen {snaplen}")
        }
        Stmt::Notrack => "notrack".to_owned(),
        Stmt::Masquerade { fully_random: true } => "masquerade fully-random".to_owned(),
        Stmt::Masquerade { fully_random: false } => "masquerade".to_owned(),
        Stmt::Mark { bits } => format!("meta mark set meta mark | {bits:#010x}"),
        // As nft prints what lowering makes of it: the mark, whatever was there.
        Stmt::CtMark { mark } => format!("ct mark set ct mark & {mark:#010x} | {mark:#010x}"),
        Stmt::Dnat { family, fields, map } => {
            let to = if *family == Family::V4 { "ip" } else { "ip6" };
            format!("dnat {to} to {} map @{map}", names(fields))
        }
        Stmt::Verdict(verdict) => verdict.to_string(),
        Stmt::Unknown(name) => format!("# {name}"),
    }
}

fn names(fields: &[Field]) -> String {
    let all: Vec<&str> = fields.iter().map(|f| field(*f)).collect();
    all.join(" . ")
}

fn field(field: Field) -> &'static str {
    match field {
        Field::IifName => "iifname",
        Field::OifName => "oifname",
        Field::Nfproto => "meta nfproto",
        Field::Protocol => "meta protocol",
        Field::EtherSaddr => "ether saddr",
        Field::Saddr(Family::V4) => "ip saddr",
        Field::Saddr(Family::V6) => "ip6 saddr",
        Field::Daddr(Family::V4) => "ip daddr",
        Field::Daddr(Family::V6) => "ip6 daddr",
        Field::L4Proto => "meta l4proto",
        Field::Sport => "th sport",
        Field::Dport => "th dport",
        Field::Icmpv6Type => "icmpv6 type",
        // nft has a name for it only from version 1.0.7 on.
        Field::NdTarget => "@th,64,128",
        Field::ArpSaddrEther => "arp saddr ether",
        Field::ArpSaddrIp => "arp saddr ip",
        Field::FibDaddrType => "fib daddr type",
        Field::CtState => "ct state",
        Field::Mark => "meta mark",
        Field::CtMark => "ct mark",
        Field::CtDirection => "ct direction",
        Field::CtClient(Family::V4) => "ct original ip saddr",
        Field::CtClient(Family::V6) => "ct original ip6 saddr",
        Field::CtServer(Family::V4) => "ct reply ip saddr",
        Field::CtServer(Family::V6) => "ct reply ip6 saddr",
        Field::CtProtocol => "ct protocol",
        Field::CtServerPort => "ct reply proto-src",
        Field::TcpFlags => "tcp flags",
    }
}

fn value(fields: &[Field], rhs: &Rhs) -> String {
    match rhs {
        Rhs::Set(set) => format!("@{set}"),
        Rhs::Prefix(text) => format!("\"{text}*\""),
        Rhs::Bits { .. } => String::new(),
        Rhs::Value(value) if fields == [Field::NdTarget] => {
            let hex: String =
                super::lower::bytes(value).iter().map(|b| format!("{b:02x}")).collect();
            format!("0x{hex}")
        }
        Rhs::Value(value) => value.to_string(),
    }
}
