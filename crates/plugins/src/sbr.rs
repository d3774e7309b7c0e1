//! Type `sbr`: routing by source, in a chain after the plugin that made the pod's interface.
//!
//! Each address of the interface gets a table of its own, and a rule that sends what comes from the
//! address there. The routes of the interface move from table `main` to these tables, so that only
//! those that use one of its addresses use them. All of it is in the pod's namespace.
//!
//! The rule comes first and goes last: what is not found in its table is looked for in `main`, so
//! that a half filled table does no harm, and the rule tells the next DEL or ADD which table it is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult, IpConfig};
use causeway_kernel::rule::{Rule, leads_by};
use causeway_model::{Object, Route, RouteKind, RouteScope};
use causeway_plan::Op;
use causeway_types::{Cidr, Family, IfName, names};

use crate::Plugin;
use crate::call::Call;
use crate::chain::own_ips;
use crate::rollback::Rollback;
use crate::space::{Failed, Space};

/// The first table that is taken, as by the reference.
const FIRST_TABLE: u32 = 100;
/// `RT_TABLE_DEFAULT`, `main` and `local`: never taken.
const RESERVED: std::ops::RangeInclusive<u32> = 253..=255;
/// What rules of the reference carry: nobody said.
const PROTO_UNSPEC: u8 = 0;

/// Type `sbr`.
pub(crate) struct SbrPlugin;

/// A table that somebody else fills; `None`: tables of our own.
struct Conf {
    table: Option<u32>,
}

impl Plugin for SbrPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        let conf = Conf::of(call)?;
        let result = call.conf.require_prev_result()?;
        Rollback::guard(|rollback| set_up(call, &conf, result, rollback))?;
        Ok(result.clone())
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let table = Conf::of(call).ok().and_then(|conf| conf.table);
        let Some(mut pod) = Space::what_is_left(call)? else { return Ok(()) };
        let dev = ifname(call)?;
        if pod.link(&dev)?.is_none() {
            return Ok(());
        }
        let mut addresses: BTreeSet<IpAddr> =
            pod.addrs(&dev)?.into_iter().map(|a| a.addr()).collect();
        if let Some(result) = &call.conf.prev_result {
            addresses.extend(own_ips(call, result).map(|ip| ip.address.addr()));
        }
        take_down(&mut pod, &dev, &addresses, table)
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = Conf::of(call)?;
        let result = call.conf.require_prev_result()?;
        check(call, &conf, result)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        Conf::of(call).map(drop).map_err(|e| CniError::not_available(e.msg))
    }

    /// Nothing outlives the namespace.
    fn gc(&self, _: &Call) -> Result<(), CniError> {
        Ok(())
    }

    fn is_collected(&self) -> bool {
        false
    }
}

impl Conf {
    fn of(call: &Call) -> Result<Self, CniError> {
        if call.conf.key("addSourceHints")? == Some(true) {
            let why = "remove it; routes keep the source addresses that they have";
            return Err(CniError::unsupported_field("addSourceHints", true, why));
        }
        let Some(number) = call.conf.key::<i64>("table")? else { return Ok(Self { table: None }) };
        let table = u32::try_from(number).ok().filter(|t| *t != 0 && !RESERVED.contains(t));
        match table {
            Some(table) => Ok(Self { table: Some(table) }),
            None => Err(CniError::invalid_config(format!(
                "key \"table\" is {number}: must be the number of a routing table, 1 to 4294967295 \
                 without 253 to 255 (default, main and local)"
            ))),
        }
    }
}

fn ifname(call: &Call) -> Result<IfName, CniError> {
    IfName::new(&call.env.ifname).map_err(|e| CniError::environment(format!("CNI_IFNAME: {e}")))
}

fn set_up(
    call: &Call,
    conf: &Conf,
    result: &CniResult,
    rollback: &mut Rollback,
) -> Result<(), CniError> {
    let dev = ifname(call)?;
    let mut pod = Space::pod(&call.netns()?)?;
    if pod.link(&dev)?.is_none() {
        return Err(CniError::internal(format!(
            "there is no interface {dev} in {}: put \"sbr\" after the plugin that makes it",
            call.netns()?
        )));
    }
    let ips: Vec<&IpConfig> = own_ips(call, result).collect();
    let addresses: BTreeSet<IpAddr> = ips.iter().map(|ip| ip.address.addr()).collect();
    let (again, table) = (call.clone(), conf.table);
    rollback.on_failure(move || match Space::what_is_left(&again)? {
        Some(mut pod) => take_down(&mut pod, &ifname(&again)?, &addresses, table),
        None => Ok(()),
    });
    let mut moved = Vec::new();
    for ip in ips {
        let table = rule_for(&mut pod, ip.address.addr(), conf.table)?;
        if conf.table.is_none() {
            moved.extend(copy(&mut pod, &dev, ip, table)?);
        }
    }
    remove(&mut pod, &moved)
}

/// The table of an address, with a rule that leads there: the one that an ADD left that was killed,
/// or a new one.
fn rule_for(pod: &mut Space, address: IpAddr, wanted: Option<u32>) -> Result<u32, CniError> {
    let rules = pod.kernel(|k| k.rules())?;
    if let Some(rule) = rules.iter().find(|rule| is_ours(rule, address, wanted)) {
        return Ok(rule.table);
    }
    let table = match wanted {
        Some(table) => table,
        None => free_table(&rules, &pod.kernel(|k| k.all_routes())?),
    };
    add_rule(pod, address, table)?;
    Ok(table)
}

fn add_rule(pod: &mut Space, address: IpAddr, table: u32) -> Result<(), CniError> {
    let rule = Rule::from_address(address, table, names::ROUTE_PROTOCOL);
    pod.kernel(|k| k.add_rule(&rule))
}

/// A rule that was made here.
fn is_ours(rule: &Rule, address: IpAddr, table: Option<u32>) -> bool {
    rule.protocol == names::ROUTE_PROTOCOL && is_for(rule, address, table)
}

fn is_for(rule: &Rule, address: IpAddr, table: Option<u32>) -> bool {
    let leads = match table {
        Some(table) => rule.table == table,
        None => rule.table >= FIRST_TABLE && !RESERVED.contains(&rule.table),
    };
    leads && rule.is_from(address)
}

/// A rule that was made here or by the reference. Nothing marks those, and nothing those that
/// somebody set up by hand: they are the reference's where it is their table, or a table that holds
/// routes of this interface and no others.
fn is_of_type(
    rule: &Rule,
    address: IpAddr,
    table: Option<u32>,
    routes: &[Route],
    dev: &IfName,
) -> bool {
    if is_ours(rule, address, table) {
        return true;
    }
    let mut inside = routes.iter().filter(|route| route.table == rule.table).peekable();
    let theirs = rule.protocol == PROTO_UNSPEC && is_for(rule, address, table);
    theirs
        && (table.is_some() || inside.peek().is_some() && inside.all(|route| leads_by(route, dev)))
}

/// The first table that is empty and to which no rule leads.
fn free_table(rules: &[Rule], routes: &[Route]) -> u32 {
    let ruled = rules.iter().map(|rule| rule.table);
    let filled = routes.iter().map(|route| route.table);
    let taken: BTreeSet<u32> = ruled.chain(filled).chain(RESERVED).collect();
    (FIRST_TABLE..).find(|table| !taken.contains(table)).unwrap_or(FIRST_TABLE)
}

/// The routes of an interface in table `main` that go with an address. Those of the link itself
/// stay (`fe80::/64`): what comes from a link-local address has no rule.
fn movable(routes: &[Route], dev: &IfName, family: Family) -> Vec<Route> {
    let moves = |route: &&Route| {
        route.table == Route::MAIN
            && route.family() == family
            && leads_by(route, dev)
            && route.kind == RouteKind::Unicast
            && !is_link_local(route)
    };
    let mut all: Vec<Route> = routes.iter().filter(moves).cloned().collect();
    // A gateway must be reachable by a route that is there already.
    all.sort_by_key(|route| route.via.is_some());
    all
}

fn is_link_local(route: &Route) -> bool {
    matches!(route.dst.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local())
        && route.dst.prefix_len() >= 10
}

/// Copies the routes that go with an address into its table, with a default route by its gateway.
/// Answers those that were copied.
fn copy(pod: &mut Space, dev: &IfName, ip: &IpConfig, table: u32) -> Result<Vec<Route>, CniError> {
    let family = Family::of(ip.address.addr());
    let routes = movable(&pod.kernel(|k| k.all_routes())?, dev, family);
    for route in &routes {
        put(pod, Route { table, ..route.clone() })?;
    }
    if let Some(gateway) = ip.gateway.filter(|g| Family::of(*g) == family) {
        put(pod, default_route(dev, gateway, table))?;
    }
    Ok(routes)
}

fn default_route(dev: &IfName, gateway: IpAddr, table: u32) -> Route {
    let family = Family::of(gateway);
    Route {
        dst: Cidr::of(family.default_route()),
        table,
        metric: Route::default_metric(family),
        kind: RouteKind::Unicast,
        dev: Some(dev.clone()),
        via: Some(gateway),
        onlink: false,
        src: None,
        scope: RouteScope::Universe,
        // So that it is known not to come from `main`.
        protocol: names::ROUTE_PROTOCOL,
        mtu: None,
        advmss: None,
    }
}

/// Adds a route; one that is there already is fine.
fn put(pod: &mut Space, route: Route) -> Result<(), CniError> {
    match pod.apply(&[Op::Create(Object::Route(route))]) {
        Err(e) if !e.is_exists() => Err(pod.error(&Failed::Op(e))),
        _ => Ok(()),
    }
}

/// Those by a gateway first: without the way to it they would be gone.
fn remove(pod: &mut Space, routes: &[Route]) -> Result<(), CniError> {
    let by_gateway = |wanted: bool| routes.iter().filter(move |r| r.via.is_some() == wanted);
    let ops: Vec<Op> = by_gateway(true)
        .chain(by_gateway(false))
        .map(|route| Op::Remove(Object::Route(route.clone())))
        .collect();
    pod.apply(&ops).map_err(|e| pod.error(&Failed::Op(e)))
}

/// Removes the rules of addresses and, where the tables are our own, moves their routes back.
fn take_down(
    pod: &mut Space,
    dev: &IfName,
    addresses: &BTreeSet<IpAddr>,
    table: Option<u32>,
) -> Result<(), CniError> {
    let rules = pod.kernel(|k| k.rules())?;
    let routes = pod.kernel(|k| k.all_routes())?;
    let is_one =
        |rule: &&Rule| addresses.iter().any(|ip| is_of_type(rule, *ip, table, &routes, dev));
    let ours: Vec<&Rule> = rules.iter().filter(is_one).collect();
    if table.is_none() {
        let tables: BTreeSet<u32> = ours.iter().map(|rule| rule.table).collect();
        move_back(pod, dev, routes, &tables)?;
    }
    for rule in ours {
        pod.kernel(|k| k.remove_rule(rule))?;
    }
    Ok(())
}

/// Routes of an interface back to `main`, but for those that were not there.
fn move_back(
    pod: &mut Space,
    dev: &IfName,
    mut back: Vec<Route>,
    tables: &BTreeSet<u32>,
) -> Result<(), CniError> {
    back.retain(|route| leads_by(route, dev) && tables.contains(&route.table));
    back.sort_by_key(|route| route.via.is_some());
    for route in back.iter().filter(|route| route.protocol != names::ROUTE_PROTOCOL) {
        put(pod, Route { table: Route::MAIN, ..route.clone() })?;
    }
    remove(pod, &back)
}

fn check(call: &Call, conf: &Conf, result: &CniResult) -> Result<(), CniError> {
    let dev = ifname(call)?;
    let netns = call.netns()?;
    let mut pod = Space::pod(&netns)?;
    let wrong = |what: String| Err(CniError::internal(format!("{what}, in {netns}")));
    let rules = pod.kernel(|k| k.rules())?;
    let routes = pod.kernel(|k| k.all_routes())?;
    for ip in own_ips(call, result) {
        let address = ip.address.addr();
        let is_one = |rule: &&Rule| is_of_type(rule, address, conf.table, &routes, &dev);
        let Some(rule) = rules.iter().find(is_one) else {
            return wrong(format!("the rule for what comes from {address} is missing"));
        };
        if conf.table.is_some() {
            continue;
        }
        if let Some(gateway) = ip.gateway {
            let wanted = default_route(&dev, gateway, rule.table);
            let leads = |r: &Route| {
                r.table == wanted.table
                    && r.dst == wanted.dst
                    && r.via == wanted.via
                    && r.dev == wanted.dev
            };
            if !routes.iter().any(leads) {
                return wrong(format!(
                    "the default route by {gateway} is missing from table {}",
                    rule.table
                ));
            }
        }
        if !routes.iter().any(|r| r.table == rule.table && leads_by(r, &dev)) {
            return wrong(format!("table {} has no route of {dev}", rule.table));
        }
        if let Some(stray) = movable(&routes, &dev, Family::of(address)).first() {
            return wrong(format!("the route to {} is in table main again", stray.dst));
        }
    }
    Ok(())
}
