//! One type for every kernel object, and its key.

use std::fmt;
use std::net::IpAddr;

use causeway_types::{Cidr, IfName, Mac};
use ipnet::IpNet;
use serde::Serialize;

use crate::nft::{NftFamily, NftTable};
use crate::{Addr, Fdb, Link, Neigh, Route};

/// A value below `/proc/sys` (of the namespace where it applies).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sysctl {
    /// Path with slashes, because interface names may hold dots: `net/ipv4/conf/cni0/send_redirects`.
    pub path: String,
    /// The value as the file shows it, without the newline.
    pub value: String,
}

/// Any kernel object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Object {
    /// Interface.
    Link(Link),
    /// Kernel parameter.
    Sysctl(Sysctl),
    /// Interface address.
    Addr(Addr),
    /// Neighbour.
    Neigh(Neigh),
    /// Forwarding entry.
    Fdb(Fdb),
    /// nftables table.
    Table(NftTable),
    /// Route.
    Route(Route),
}

/// What tells an object from every other one of its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// Interface by name.
    Link(IfName),
    /// Kernel parameter by path.
    Sysctl(String),
    /// Address on an interface.
    Addr {
        /// Interface.
        dev: IfName,
        /// Address with prefix length.
        addr: IpNet,
    },
    /// Neighbour on an interface.
    Neigh {
        /// Interface.
        dev: IfName,
        /// Address.
        ip: IpAddr,
        /// Proxy entries are a table of their own.
        proxy: bool,
    },
    /// Forwarding entry on a device.
    Fdb {
        /// Port or tunnel device.
        dev: IfName,
        /// Ethernet address.
        mac: Mac,
    },
    /// nftables table.
    Table {
        /// Family.
        family: NftFamily,
        /// Name.
        name: String,
    },
    /// Route by destination, table and metric.
    Route {
        /// Routing table number.
        table: u32,
        /// Destination.
        dst: Cidr,
        /// Priority.
        metric: u32,
    },
}

impl Object {
    /// The object's key.
    pub fn key(&self) -> Key {
        match self {
            Object::Link(l) => Key::Link(l.name.clone()),
            Object::Sysctl(s) => Key::Sysctl(s.path.clone()),
            Object::Addr(a) => Key::Addr { dev: a.dev.clone(), addr: a.addr },
            Object::Neigh(n) => Key::Neigh { dev: n.dev.clone(), ip: n.ip, proxy: n.proxy },
            Object::Fdb(f) => Key::Fdb { dev: f.dev.clone(), mac: f.mac },
            Object::Table(t) => Key::Table { family: t.family, name: t.name.clone() },
            Object::Route(r) => Key::Route { table: r.table, dst: r.dst, metric: r.metric },
        }
    }

    /// True when `observed` (an object of the same key) has everything that this one asks for.
    pub fn satisfied_by(&self, observed: &Object) -> bool {
        match (self, observed) {
            (Object::Link(want), Object::Link(have)) => want.satisfied_by(have),
            (Object::Route(want), Object::Route(have)) => want.satisfied_by(have),
            (Object::Addr(want), Object::Addr(have)) => {
                want.dev == have.dev && want.addr == have.addr
            }
            (Object::Table(want), Object::Table(have)) => want.satisfied_by(have),
            (want, have) => want == have,
        }
    }
}

impl fmt::Display for Key {
    /// One line in the words of `ip`, `bridge`, `nft` and `sysctl`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Link(name) => write!(f, "link {name}"),
            Key::Sysctl(path) => write!(f, "sysctl {path}"),
            Key::Addr { dev, addr } => write!(f, "addr {addr} dev {dev}"),
            Key::Neigh { dev, ip, proxy: false } => write!(f, "neigh {ip} dev {dev}"),
            Key::Neigh { dev, ip, proxy: true } => write!(f, "neigh proxy {ip} dev {dev}"),
            Key::Fdb { dev, mac } => write!(f, "fdb {mac} dev {dev}"),
            Key::Table { family, name } => write!(f, "table {family} {name}"),
            Key::Route { table, dst, metric } => {
                write!(f, "route {dst}")?;
                if *table != Route::MAIN {
                    write!(f, " table {table}")?;
                }
                if *metric != Route::default_metric(dst.family()) {
                    write!(f, " metric {metric}")?;
                }
                Ok(())
            }
        }
    }
}
