//! One network namespace: what is there, and what is to be done.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use causeway_model::{Key, Link, LinkKind, Object, Observed, Route};
use causeway_plan::{Op, TableId};
use causeway_types::names::ROUTE_PROTOCOL;
use causeway_types::{Family, IfName};
use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::apply::{self, Outcome, verb};
use crate::conntrack::Conntrack;
use crate::devices::Devices;
use crate::error::{Error, OpError};
use crate::netns::{Guard, NetNs};
use crate::nft::Nft;
use crate::rtnl::read::Names;
use crate::rtnl::{addr, fdb, link, neigh, route};
use crate::sock::{Bus, Reply, Request, Socket};
use crate::sysctl;

/// The number of tracked connections of a namespace, below `/proc/sys`.
const CONNECTIONS: &str = "net/netfilter/nf_conntrack_count";

/// `RTNLGRP_LINK` (`linux/rtnetlink.h`).
const GROUP_LINK: u32 = 1;

/// What to observe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Addresses of interfaces.
    pub addrs: bool,
    /// Routes.
    pub routes: Routes,
    /// Permanent and proxy neighbours.
    pub neighbours: bool,
    /// Fixed forwarding entries.
    pub fdb: bool,
    /// nftables tables.
    pub tables: Vec<TableId>,
    /// Kernel parameters, as paths below `/proc/sys`.
    pub sysctls: Vec<String>,
}

/// Which routes to observe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// None.
    None,
    /// Those of one table.
    Table(u32),
    /// Those of all tables but `local`.
    All,
}

impl Scope {
    /// Interfaces alone.
    pub const LINKS: Self = Self {
        addrs: false,
        routes: Routes::None,
        neighbours: false,
        fdb: false,
        tables: Vec::new(),
        sysctls: Vec::new(),
    };
}

impl Default for Scope {
    /// Everything that rtnetlink shows, routes of table `main` alone; no nftables, no kernel
    /// parameters.
    fn default() -> Self {
        Self {
            addrs: true,
            routes: Routes::Table(Route::MAIN),
            neighbours: true,
            fdb: true,
            tables: Vec::new(),
            sysctls: Vec::new(),
        }
    }
}

/// A veth pair as one of its ends shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Index of this end, in its namespace.
    pub index: u32,
    /// Index of the other end, in the other namespace.
    pub other: u32,
}

impl Pair {
    /// True when the two are the ends of one pair. An index alone may be in use in both namespaces.
    pub fn is_other_end(self, end: Pair) -> bool {
        (self.index, self.other) == (end.other, end.index)
    }
}

/// A handle of one network namespace. It stays with that namespace wherever it is used.
#[derive(Debug)]
pub struct Handle {
    ns: NetNs,
    pub(crate) route: Socket,
    nft: Option<Nft>,
    /// Interfaces that are there, as the caller says; see [`Handle::expect`].
    there: Vec<IfName>,
}

impl Handle {
    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, Error> {
        let (ns, route) = (NetNs::current()?, Socket::open(Bus::Route)?);
        Ok(Self { ns, route, nft: None, there: Vec::new() })
    }

    /// Opens another namespace.
    ///
    /// # Errors
    /// As [`Handle::open`], and when the namespace cannot be entered.
    pub fn open_in(ns: &NetNs) -> Result<Self, Error> {
        let route = Socket::open_in(Bus::Route, ns)?;
        Ok(Self { ns: ns.try_clone()?, route, nft: None, there: Vec::new() })
    }

    /// The namespace.
    pub fn netns(&self) -> &NetNs {
        &self.ns
    }

    /// The namespace's nftables, opened when first asked for.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn nft(&mut self) -> Result<&mut Nft, Error> {
        let nft = match self.nft.take() {
            Some(nft) => nft,
            None => Nft::open_in(&self.ns)?,
        };
        Ok(self.nft.insert(nft))
    }

    /// From now on this interface is looked up by a way that takes no lock (`SIOCGIFINDEX` and
    /// `SIOCGIFFLAGS` of netdevice(7)), where rtnetlink waits for all that changes interfaces of
    /// whatever namespace. For a handle of a short life, and an interface that is there: for one that
    /// is not, the kernel looks for a module first, which takes milliseconds.
    pub fn expect(&mut self, name: &IfName) {
        if !self.there.contains(name) {
            self.there.push(name.clone());
        }
    }

    /// The index of an interface; `None` when there is none of this name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link_index(&mut self, name: &IfName) -> Result<Option<u32>, Error> {
        if let Some(index) = self.there.contains(name).then(|| self.route.index_of(name)).flatten()
        {
            return Ok(Some(index));
        }
        let seen = self.route.get("look up an interface", link::get_by_name(name), link::decode)?;
        Ok(seen.map(|s| s.index))
    }

    /// Whether packets pass an interface; `None` when there is none of this name.
    ///
    /// The kernel learns only a moment after both ends of a veth pair are up that there is a
    /// carrier, and drops packets until then, at a bridge's port as well. Some versions catch
    /// up when they are asked. `IFF_RUNNING` alone does not tell: it is there before the kernel has looked
    /// at all, and before it has made the queue. Who has the RTNL lock sees no such state in between.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link_running(&mut self, name: &IfName) -> Result<Option<bool>, Error> {
        if self.there.contains(name) && self.route.is_at_rest(name) {
            return Ok(Some(false));
        }
        let seen = self.route.get("look up an interface", link::get_by_name(name), link::decode)?;
        Ok(seen.map(|s| s.running))
    }

    /// One interface by name, with its index; `None` when there is none of this name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link(&mut self, name: &IfName) -> Result<Option<(u32, Link)>, Error> {
        let what = "look up an interface";
        let Some(seen) = self.route.get(what, link::get_by_name(name), link::decode)? else {
            return Ok(None);
        };
        let mut names = Names::new();
        if let Some(master) = seen.master {
            let master = self.route.get(what, link::get_by_index(master), link::decode)?;
            names.extend(master.map(|m| (m.index, m.link.name)));
        }
        Ok(Some((seen.index, seen.named(&names))))
    }

    /// The addresses of an interface; none when there is no such interface. Costs the same however
    /// many interfaces there are.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn addresses(&mut self, name: &IfName) -> Result<Vec<IpNet>, Error> {
        let Some(index) = self.link_index(name)? else { return Ok(Vec::new()) };
        let names = Names::from_iter([(index, name.clone())]);
        let read = |r: Reply<'_>| addr::decode(r, &names).map(|found| found.addr);
        match self.route.dump("read addresses", addr::dump_of(index), read) {
            // It went meanwhile.
            Err(Error::Refused { refusal, .. }) if refusal.is_gone() => Ok(Vec::new()),
            other => other,
        }
    }

    /// Whether an interface has an address, be it one of IPv6 that takes no packets yet: its route is made a moment
    /// later, and only after duplicate address detection where there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_address(&mut self, ip: IpAddr) -> Result<bool, Error> {
        if self.is_local(ip)? {
            return Ok(true);
        }
        let IpAddr::V6(ip) = ip else { return Ok(false) };
        Ok(self.route.get("look up an address", addr::get(ip), |_| Some(()))?.is_some())
    }

    /// Whether the kernel found that another host of the link has an IPv6 address of an interface
    /// (`IFA_F_DADFAILED`).
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_duplicate(&mut self, name: &IfName, ip: IpAddr) -> Result<bool, Error> {
        let Some(index) = self.link_index(name)? else { return Ok(false) };
        let read = |r: Reply<'_>| addr::is_duplicate(r, index, ip).then_some(());
        Ok(!self.route.dump("read addresses", addr::dump_of(index), read)?.is_empty())
    }

    /// The two indexes of a veth pair, seen from one of its ends; `None` when there is no veth of
    /// this name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn pair(&mut self, name: &IfName) -> Result<Option<Pair>, Error> {
        let seen = self.route.get("look up an interface", link::get_by_name(name), link::decode)?;
        let veth = seen.filter(|s| matches!(s.link.kind, LinkKind::Veth { .. }));
        Ok(veth.and_then(|s| Some(Pair { index: s.index, other: s.lower? })))
    }

    /// Makes an interface take in every frame, also those for others (`IFF_PROMISC`).
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn set_promiscuous(&mut self, name: &IfName) -> Result<(), Error> {
        let what = "set an interface promiscuous";
        let Some(index) = self.link_index(name)? else {
            return Err(Error::Invalid(format!("cannot {what}: there is no {name}")));
        };
        for outcome in self.route.transact(vec![link::promiscuous(index)])? {
            outcome.map_err(|refusal| Error::refused(what, refusal))?;
        }
        Ok(())
    }

    /// What the namespace holds, as far as the scope asks. Every table is a picture of one moment
    /// (a dump during which it changed is taken again).
    ///
    /// Of several IPv6 routes with the same destination, table and metric, the one with our
    /// protocol number is shown, else the first.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn observe(&mut self, scope: &Scope) -> Result<Observed, Error> {
        let links = self.route.dump("read links", link::dump(), link::decode)?;
        let names: Names = links.iter().map(|s| (s.index, s.link.name.clone())).collect();
        let mut observed: Observed =
            links.into_iter().map(|s| Object::Link(s.named(&names))).collect();
        let mut add = |found: Vec<Object>| {
            for object in found {
                observed.insert(object);
            }
        };
        if scope.addrs {
            let read = |r: Reply<'_>| addr::decode(r, &names).map(Object::Addr);
            add(self.route.dump("read addresses", addr::dump(), read)?);
        }
        if scope.neighbours {
            for proxy in [false, true] {
                let read = |r: Reply<'_>| neigh::decode(r, &names).map(Object::Neigh);
                add(self.route.dump("read neighbours", neigh::dump(proxy), read)?);
            }
        }
        if scope.fdb {
            let read = |r: Reply<'_>| fdb::decode(r, &names).map(Object::Fdb);
            add(self.route.dump("read forwarding entries", fdb::dump(), read)?);
        }
        for route in self.routes(scope.routes, &names)? {
            keep_route(&mut observed, route);
        }
        for table in &scope.tables {
            if let Some(found) = self.nft()?.read_table(table.family, &table.name)? {
                observed.insert(Object::Table(found));
            }
        }
        for sysctl in self.read_sysctls(&scope.sysctls)? {
            observed.insert(Object::Sysctl(sysctl));
        }
        Ok(observed)
    }

    /// The routes of a table, or of all but `local`, in the kernel's order.
    pub(crate) fn routes(&mut self, which: Routes, names: &Names) -> Result<Vec<Route>, Error> {
        let table = match which {
            Routes::None => return Ok(Vec::new()),
            Routes::Table(table) => Some(table),
            Routes::All => None,
        };
        let mut routes = Vec::new();
        for family in Family::BOTH {
            let read = |r: Reply<'_>| route::decode(r, names);
            let request: Request = route::dump(family, table);
            match self.route.dump("read routes", request, read) {
                Ok(found) => routes.extend(found),
                // A table without any route may not even exist.
                Err(Error::Refused { refusal, .. }) if refusal.is_gone() => {}
                Err(e) => return Err(e),
            }
        }
        routes.retain(|r| r.table != u32::from(libc::RT_TABLE_LOCAL));
        Ok(routes)
    }

    fn read_sysctls(&self, paths: &[String]) -> Result<Vec<causeway_model::Sysctl>, Error> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let _inside = self.inside()?;
        let mut found = Vec::new();
        for path in paths {
            let value = sysctl::read(path)?;
            found.extend(value.map(|value| causeway_model::Sysctl { path: path.clone(), value }));
        }
        Ok(found)
    }

    /// Moves the calling thread into the namespace, unless it is there.
    fn inside(&self) -> Result<Option<Guard>, Error> {
        if self.ns.is_current()? { Ok(None) } else { self.ns.enter().map(Some) }
    }

    /// Carries out operations in order, and answers with one outcome for each. A failed operation
    /// does not stop the ones after it; those that need what it would have made fail as well.
    ///
    /// Making a veth whose `peer` is `None` sets up an end that is there already: the one that
    /// came into being when the other end was made. Removing what is gone succeeds. Making a
    /// neighbour or forwarding entry takes the place of a learned one.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let mut devices = Devices::expecting(self.there.clone());
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in ops.chunk_by(|a, b| class(a) == class(b)) {
            match class(&run[0]) {
                Class::Rtnl => outcomes.extend(apply::rtnl(&mut self.route, &mut devices, run)),
                Class::Sysctl => outcomes.extend(self.write_sysctls(run)),
                Class::Nft => outcomes.extend(run.iter().map(|op| self.apply_nft(op))),
            }
        }
        outcomes
    }

    fn write_sysctls(&self, ops: &[Op]) -> Vec<Outcome> {
        let fail = |op: &Op, e: &Error| Err(OpError::other(op.key(), verb(op), e));
        let _inside = match self.inside() {
            Ok(guard) => guard,
            Err(e) => return ops.iter().map(|op| fail(op, &e)).collect(),
        };
        let write = |op: &Op| match op {
            Op::Create(Object::Sysctl(s)) | Op::Change { to: Object::Sysctl(s), .. } => {
                sysctl::write(&s.path, &s.value)
            }
            _ => Err(Error::Invalid("a kernel parameter can be set, not removed".to_owned())),
        };
        ops.iter().map(|op| write(op).or_else(|e| fail(op, &e))).collect()
    }

    fn apply_nft(&mut self, op: &Op) -> Outcome {
        let other = |e: &Error| OpError::other(op.key(), verb(op), e);
        let Op::Nft { table, ops } = op else {
            let e = Error::Invalid("a table is changed by an nftables transaction".to_owned());
            return Err(other(&e));
        };
        self.nft().map_err(|e| other(&e))?.apply(table, ops)
    }

    /// Deletes the tracked connections of which one of the addresses is an end, before or after
    /// translation. See [`Conntrack::delete_for`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_connections(&mut self, addrs: &[IpAddr]) -> Result<(), Error> {
        let count = match self.inside().and_then(|_inside| sysctl::read(CONNECTIONS))? {
            Some(count) => count.parse().unwrap_or(u64::MAX),
            None => u64::MAX,
        };
        if count == 0 {
            return Ok(());
        }
        Conntrack::open_in(&self.ns)?.delete_for(addrs, count)
    }

    /// Waits until the interface of an index is gone, because somebody else removes it. Answers
    /// false when it is still there after the time.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn wait_link_gone(&mut self, index: u32, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout;
        // Listening before looking: a removal between the two is then heard.
        let mut news = Socket::open_in(Bus::Route, &self.ns)?;
        news.join(GROUP_LINK)?;
        loop {
            let what = "look up an interface";
            if self.route.get(what, link::get_by_index(index), link::decode)?.is_none() {
                return Ok(true);
            }
            match heard_gone(&mut news, index, deadline) {
                // News were lost: look again.
                Err(Error::Overrun { .. }) => {}
                other => return other,
            }
        }
    }
}

/// Reads notifications until one says that the link is gone, or the time is over.
fn heard_gone(news: &mut Socket, index: u32, deadline: Instant) -> Result<bool, Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()) as _,
        };
        let ready = {
            let mut fds = [PollFd::new(&*news, PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&timeout))
        };
        match ready {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => return Err(Error::socket("wait for an interface to go", e)),
        }
        let Some(datagram) = news.receive_now()? else { continue };
        // A port that leaves its bridge is announced by the same message with another family,
        // which `decode` passes over.
        let gone = Reply::split(datagram)
            .filter(|r| r.kind == libc::RTM_DELLINK)
            .filter_map(link::decode)
            .any(|seen| seen.index == index);
        if gone {
            return Ok(true);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Class {
    Rtnl,
    Sysctl,
    Nft,
}

fn class(op: &Op) -> Class {
    match op.key() {
        Key::Sysctl(_) if apply::is_ipv4_conf(op) => Class::Rtnl,
        Key::Sysctl(_) => Class::Sysctl,
        Key::Table { .. } => Class::Nft,
        _ => Class::Rtnl,
    }
}

/// Several IPv6 routes may share a key; ours is the one to look at.
fn keep_route(observed: &mut Observed, route: Route) {
    let object = Object::Route(route);
    let taken = match (observed.get(&object.key()), &object) {
        (Some(Object::Route(have)), Object::Route(new)) => {
            have.protocol == ROUTE_PROTOCOL || new.protocol != ROUTE_PROTOCOL
        }
        _ => false,
    };
    if !taken {
        observed.insert(object);
    }
}
