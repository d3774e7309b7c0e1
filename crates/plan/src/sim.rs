//! A simulated kernel: it refuses what the real one refuses for want of something to stand on,
//! and fails any operation on request.
//!
//! It knows only rules that `crates/kernel/tests/sim_rules.rs` shows on the real kernel, side by
//! side. Where it is stricter (it refuses to remove what is not there, and a tunnel's entry on a
//! port), that test says so.

use std::net::IpAddr;

use causeway_model::nft::{Chain, NftTable, Rhs, Stmt};
use causeway_model::{Key, LinkKind, Object, Observed, Route, RouteKind};
use causeway_types::{Family, IfName};

use crate::dependency::{stands_on, sysctl_link, without_device};
use crate::diff::target;
use crate::{NftOp, Op, TableId};

/// Why an operation failed, in the kernel's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// EEXIST: an object of this key is there.
    Exists,
    /// ENOENT, ENODEV, ESRCH: it, or what it stands on, is not there.
    Missing,
    /// ENETDOWN, ENETUNREACH: the device is down or the gateway is not on link.
    Unreachable,
    /// EBUSY: something refers to it.
    Busy,
    /// EINVAL: it makes no sense.
    Invalid,
    /// The fault that the test asked for.
    Injected,
}

/// The simulated kernel of one namespace.
#[derive(Clone, Debug, Default)]
pub struct SimKernel {
    /// What it holds.
    pub state: Observed,
    /// Operations done so far, failed ones included.
    pub done: usize,
    /// The operation with this number fails, once, and does nothing.
    pub fail_at: Option<usize>,
    /// Ingress chains need no device, and outlive theirs, as was seen on 6.18. Other kernels refuse
    /// them without the device and remove them with it.
    pub keeps_ingress_chains: bool,
}

impl SimKernel {
    /// A kernel that holds a state.
    pub fn holding(state: Observed) -> Self {
        Self { state, ..Self::default() }
    }

    /// Does one operation.
    ///
    /// # Errors
    /// When the kernel would refuse it; nothing has changed then.
    pub fn apply(&mut self, op: &Op) -> Result<(), Refusal> {
        let number = self.done;
        self.done += 1;
        if self.fail_at == Some(number) {
            return Err(Refusal::Injected);
        }
        match op {
            Op::Create(object) => self.create(object),
            Op::Change { to, .. } => self.change(to),
            Op::Remove(object) => self.remove(&object.key()),
            Op::Nft { table, ops } => self.transaction(table, ops),
        }
    }

    /// Does operations in order and goes on after a failed one, as the agent does. Answers which
    /// failed.
    pub fn apply_all(&mut self, ops: &[Op]) -> Vec<(usize, Refusal)> {
        let each = ops.iter().enumerate();
        each.filter_map(|(i, op)| self.apply(op).err().map(|e| (i, e))).collect()
    }

    fn create(&mut self, object: &Object) -> Result<(), Refusal> {
        // Kernel parameters are always there; making one is writing it.
        if !matches!(object, Object::Sysctl(_)) && self.state.get(&object.key()).is_some() {
            return Err(Refusal::Exists);
        }
        self.check(object)?;
        self.state.insert(as_observed(object));
        Ok(())
    }

    fn change(&mut self, to: &Object) -> Result<(), Refusal> {
        self.check(to)?;
        let have = self.state.get(&to.key()).ok_or(Refusal::Missing)?;
        let new = match (have, to) {
            (Object::Link(have), Object::Link(to)) => {
                if !to.same_device(have) {
                    return Err(Refusal::Invalid);
                }
                let mut new = have.clone();
                new.mtu = to.mtu.or(have.mtu);
                new.mac = to.mac.or(have.mac);
                new.master = to.master.clone().or_else(|| have.master.clone());
                new.port = to.port.or(have.port);
                new.up = to.up;
                Object::Link(new)
            }
            _ => as_observed(to),
        };
        self.state.insert(new);
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> Result<(), Refusal> {
        self.state.remove(key).ok_or(Refusal::Missing)?;
        if let Key::Link(name) = key {
            self.drop_dependents(name);
        }
        Ok(())
    }

    fn drop_dependents(&mut self, link: &IfName) {
        self.state.retain(|_, object| !stands_on(object, link));
        let objects: Vec<Object> = self.state.iter().map(|(_, o)| o.clone()).collect();
        for object in objects {
            match object {
                Object::Link(mut port) if port.master.as_ref() == Some(link) => {
                    port.master = None;
                    port.port = None;
                    self.state.insert(Object::Link(port));
                }
                Object::Table(table) if !self.keeps_ingress_chains => {
                    self.state.insert(Object::Table(without_device(&table, link)));
                }
                _ => {}
            }
        }
    }

    fn link(&self, name: &IfName) -> Result<&causeway_model::Link, Refusal> {
        match self.state.get(&Key::Link(name.clone())) {
            Some(Object::Link(link)) => Ok(link),
            _ => Err(Refusal::Missing),
        }
    }

    /// What the object stands on must be there.
    fn check(&self, object: &Object) -> Result<(), Refusal> {
        match object {
            Object::Link(l) => match &l.master {
                None => Ok(()),
                Some(master) => match self.link(master)?.kind {
                    LinkKind::Bridge => Ok(()),
                    _ => Err(Refusal::Invalid),
                },
            },
            Object::Sysctl(s) => match sysctl_link(&s.path).map(IfName::new) {
                None => Ok(()),
                Some(Ok(name)) => self.link(&name).map(drop),
                Some(Err(_)) => Err(Refusal::Missing),
            },
            Object::Addr(a) => self.link(&a.dev).map(drop),
            Object::Neigh(n) => self.link(&n.dev).map(drop),
            Object::Fdb(f) => {
                let link = self.link(&f.dev)?;
                let fits = match f.dst {
                    Some(_) => matches!(link.kind, LinkKind::Vxlan(_)),
                    None => link.master.is_some(),
                };
                if fits { Ok(()) } else { Err(Refusal::Invalid) }
            }
            Object::Route(r) => self.check_route(r),
            Object::Table(_) => Err(Refusal::Invalid),
        }
    }

    fn check_route(&self, route: &Route) -> Result<(), Refusal> {
        if route.kind != RouteKind::Unicast {
            return Ok(());
        }
        let dev = route.dev.as_ref().ok_or(Refusal::Missing)?;
        if !self.link(dev)?.up {
            return Err(Refusal::Unreachable);
        }
        if route.src.is_some_and(|src| !self.is_local(src)) {
            return Err(Refusal::Invalid);
        }
        match route.via {
            Some(via) if !route.onlink && !self.on_link(dev, via) => Err(Refusal::Unreachable),
            _ => Ok(()),
        }
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        self.state.iter().any(|(_, o)| matches!(o, Object::Addr(a) if a.addr.addr() == ip))
    }

    fn on_link(&self, dev: &IfName, ip: IpAddr) -> bool {
        let link_local = matches!(ip, IpAddr::V6(a) if a.is_unicast_link_local());
        link_local
            || self.state.iter().any(|(_, o)| match o {
                Object::Addr(a) => &a.dev == dev && a.addr.contains(&ip),
                Object::Route(r) => {
                    r.dev.as_ref() == Some(dev) && r.via.is_none() && r.dst.contains(ip)
                }
                _ => false,
            })
    }

    /// All steps happen on a copy that takes the table's place only when every one succeeded.
    fn transaction(&mut self, id: &TableId, steps: &[NftOp]) -> Result<(), Refusal> {
        let key = Key::Table { family: id.family, name: id.name.clone() };
        let mut table = match self.state.get(&key) {
            Some(Object::Table(table)) => Some(table.clone()),
            _ => None,
        };
        for step in steps {
            self.step(id, &mut table, step)?;
        }
        match table {
            Some(table) => self.state.insert(Object::Table(table)),
            None => self.state.remove(&key),
        };
        Ok(())
    }

    fn step(
        &self,
        id: &TableId,
        table: &mut Option<NftTable>,
        step: &NftOp,
    ) -> Result<(), Refusal> {
        match step {
            NftOp::AddTable => {
                table.get_or_insert_with(|| NftTable::new(id.family, id.name.clone(), false));
                return Ok(());
            }
            NftOp::DelTable => return table.take().map(drop).ok_or(Refusal::Missing),
            _ => {}
        }
        let table = table.as_mut().ok_or(Refusal::Missing)?;
        match step {
            NftOp::AddTable | NftOp::DelTable => {}
            NftOp::AddSet { name, set } => {
                let have = table.sets.entry(name.clone()).or_insert_with(|| set.clone());
                if !have.same_type(set) {
                    return Err(Refusal::Exists);
                }
            }
            NftOp::DelSet { name } => {
                if refers(table, |stmt| names_set(stmt, name)) {
                    return Err(Refusal::Busy);
                }
                table.sets.remove(name).ok_or(Refusal::Missing)?;
            }
            NftOp::AddChain { name, base } => {
                let device = base.as_ref().and_then(|b| b.device.as_ref());
                if let Some(device) = device.filter(|_| !self.keeps_ingress_chains) {
                    self.link(device)?;
                }
                let chain = Chain { base: base.clone(), rules: Vec::new() };
                let have = table.chains.entry(name.clone()).or_insert(chain);
                if have.base != *base {
                    return Err(Refusal::Exists);
                }
            }
            NftOp::FlushChain { name } => {
                table.chains.get_mut(name).ok_or(Refusal::Missing)?.rules.clear();
            }
            NftOp::DelChain { name } => {
                if refers(table, |stmt| names_chain(stmt, name)) || element_leads_to(table, name) {
                    return Err(Refusal::Busy);
                }
                table.chains.remove(name).ok_or(Refusal::Missing)?;
            }
            NftOp::AddRule { chain, rule } => {
                for stmt in &rule.stmts {
                    check_stmt(table, stmt)?;
                }
                let chain = table.chains.get_mut(chain).ok_or(Refusal::Missing)?;
                chain.rules.push(rule.clone());
            }
            NftOp::SetLastRule { chain, rule } => {
                for stmt in &rule.stmts {
                    check_stmt(table, stmt)?;
                }
                let chain = table.chains.get_mut(chain).ok_or(Refusal::Missing)?;
                *chain.rules.last_mut().ok_or(Refusal::Missing)? = rule.clone();
            }
            NftOp::AddElements { set, elements, .. } => {
                let leads = elements.values().filter_map(|e| e.verdict.as_ref().and_then(target));
                for chain in leads {
                    table.chains.get(chain).ok_or(Refusal::Missing)?;
                }
                let set = table.sets.get_mut(set).ok_or(Refusal::Missing)?;
                for (key, element) in elements {
                    match set.elements.get(key) {
                        Some(have) if have != element => return Err(Refusal::Exists),
                        Some(_) => {}
                        None => {
                            set.elements.insert(key.clone(), element.clone());
                        }
                    }
                }
            }
            NftOp::DelElements { set, elements, .. } => {
                let set = table.sets.get_mut(set).ok_or(Refusal::Missing)?;
                for key in elements.keys() {
                    set.elements.remove(key).ok_or(Refusal::Missing)?;
                }
            }
        }
        Ok(())
    }
}

fn refers(table: &NftTable, test: impl Fn(&Stmt) -> bool) -> bool {
    table.chains.values().flat_map(|c| &c.rules).flat_map(|r| &r.stmts).any(test)
}

fn names_set(stmt: &Stmt, name: &str) -> bool {
    match stmt {
        Stmt::Match { rhs: Rhs::Set(set), .. } => set == name,
        Stmt::Vmap { map, .. } => map == name,
        _ => false,
    }
}

fn names_chain(stmt: &Stmt, name: &str) -> bool {
    matches!(stmt, Stmt::Verdict(v) if target(v) == Some(name))
}

fn element_leads_to(table: &NftTable, chain: &str) -> bool {
    let mut elements = table.sets.values().flat_map(|s| s.elements.values());
    elements.any(|e| e.verdict.as_ref().and_then(target) == Some(chain))
}

fn check_stmt(table: &NftTable, stmt: &Stmt) -> Result<(), Refusal> {
    let set = match stmt {
        Stmt::Match { rhs: Rhs::Set(set), .. } => Some(set),
        Stmt::Vmap { map, .. } => Some(map),
        Stmt::Verdict(v) => match target(v) {
            Some(chain) if !table.chains.contains_key(chain) => return Err(Refusal::Missing),
            _ => None,
        },
        _ => None,
    };
    match set {
        Some(name) if !table.sets.contains_key(name) => Err(Refusal::Missing),
        _ => Ok(()),
    }
}

/// An object as the kernel shows it: nothing left open.
fn as_observed(object: &Object) -> Object {
    match object {
        Object::Link(link) => {
            let mut link = link.clone();
            if let LinkKind::Veth { .. } = link.kind {
                link.kind = LinkKind::Veth { peer: None, peer_mac: None, peer_netns: None };
            }
            Object::Link(link)
        }
        Object::Route(route) if route.family() == Family::V6 => {
            Object::Route(Route { onlink: false, ..route.clone() })
        }
        object => object.clone(),
    }
}
