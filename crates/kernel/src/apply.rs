//! Carrying out operations.
//!
//! Consecutive rtnetlink operations go out together: the kernel works on the messages of one
//! `sendmsg` in order and goes on after a refusal, so each operation gets an outcome of its own.

use causeway_model::{Link, LinkKind, Object, Route, RouteKind};
use causeway_plan::Op;
use causeway_types::{Family, IfName};

use crate::devices::Devices;
use crate::error::{Error, OpError, Refusal};
use crate::netns::NetNs;
use crate::rtnl::{addr, fdb, link, neigh, route};
use crate::sock::{Request, Socket};

/// The outcome of one operation.
pub(crate) type Outcome = Result<(), OpError>;

/// An operation as messages.
struct Encoded {
    requests: Vec<Request>,
    /// The index of the link that the first message makes.
    makes: Option<u32>,
    /// The namespace that a message refers to by its descriptor stays open until it is sent.
    _peer_netns: Option<NetNs>,
}

impl From<Vec<Request>> for Encoded {
    fn from(requests: Vec<Request>) -> Self {
        Self { requests, makes: None, _peer_netns: None }
    }
}

/// What an operation does, for messages to people.
pub(crate) fn verb(op: &Op) -> &'static str {
    match op {
        Op::Create(_) => "create",
        Op::Change { .. } => "change",
        Op::Remove(_) => "remove",
        Op::Nft { .. } => "change",
    }
}

/// `IPV4_DEVCONF_ARP_NOTIFY` (`linux/ip.h`).
const ARP_NOTIFY: u16 = 22;

/// A kernel parameter that rtnetlink sets: the interface, the number, the value. The way by its file
/// below `/proc/sys` leads past those of the same name in all other namespaces, of which a node has as
/// many as pods. Only one that has no effect but to be set.
fn ipv4_conf(object: &Object) -> Option<(IfName, u16, u32)> {
    let Object::Sysctl(sysctl) = object else { return None };
    let (dev, name) = sysctl.path.strip_prefix("net/ipv4/conf/")?.split_once('/')?;
    if name != "arp_notify" || matches!(dev, "all" | "default") {
        return None;
    }
    Some((IfName::new(dev).ok()?, ARP_NOTIFY, sysctl.value.parse().ok()?))
}

/// True for an operation on a kernel parameter that goes by rtnetlink.
pub(crate) fn is_ipv4_conf(op: &Op) -> bool {
    let (Op::Create(object) | Op::Change { to: object, .. }) = op else { return false };
    ipv4_conf(object).is_some()
}

/// Carries out a run of rtnetlink operations, and answers with one outcome for each.
pub(crate) fn rtnl(socket: &mut Socket, devices: &mut Devices, ops: &[Op]) -> Vec<Outcome> {
    let fail_all = |e: &Error| {
        ops.iter().map(|op| Err(OpError::other(op.key(), verb(op), e))).collect::<Vec<_>>()
    };
    let (names, makes) = mentioned(ops);
    if let Err(e) = devices.learn(socket, &names.iter().collect::<Vec<_>>(), makes) {
        return fail_all(&e);
    }
    let encoded: Vec<Result<Encoded, Error>> = ops.iter().map(|op| encode(op, devices)).collect();
    let requests: Vec<Request> =
        encoded.iter().flatten().flat_map(|e| e.requests.iter().cloned()).collect();
    let outcomes = match socket.transact(requests) {
        Ok(outcomes) => outcomes,
        Err(e) => return fail_all(&e),
    };
    let mut outcomes = outcomes.into_iter();
    let mut undo = Vec::new();
    let results = ops
        .iter()
        .zip(encoded)
        .map(|(op, encoded)| {
            let encoded = match encoded {
                Ok(encoded) => encoded,
                Err(Error::NoLink { .. }) if matches!(op, Op::Remove(_)) => return Ok(()),
                Err(e) => return Err(OpError::other(op.key(), verb(op), &e)),
            };
            let mine: Vec<_> = outcomes.by_ref().take(encoded.requests.len()).collect();
            if let (Some(index), Some(Ok(()))) = (encoded.makes, mine.first())
                && mine.iter().any(Result::is_err)
            {
                undo.push(link::remove_index(index));
            }
            judge(op, mine)
        })
        .collect();
    if !undo.is_empty() {
        // An operation succeeds or fails as a whole: a link that was made but could not be
        // finished goes again. If even that fails, the next observation sees it.
        let _ = socket.transact(undo);
    }
    results
}

/// The first refusal decides. What should be removed and is gone already is as it should be.
fn judge(op: &Op, outcomes: Vec<Result<(), Refusal>>) -> Outcome {
    for outcome in outcomes {
        match outcome {
            Ok(()) => {}
            Err(refusal) if matches!(op, Op::Remove(_)) && refusal.is_gone() => {}
            Err(refusal) => return Err(OpError::refused(op.key(), verb(op), &refusal)),
        }
    }
    Ok(())
}

/// True for the end of a veth pair that comes into being with its other end, which names it: here
/// it can only be set up.
fn is_second_end(link: &Link) -> bool {
    matches!(&link.kind, LinkKind::Veth { peer: None, .. })
}

/// The other end of a veth pair, where it comes into being in the same namespace.
fn near_peer(link: &Link) -> Option<&IfName> {
    match &link.kind {
        LinkKind::Veth { peer, peer_netns: None, .. } => peer.as_ref(),
        _ => None,
    }
}

/// The interfaces that operations refer to without making them first, and how many they make.
fn mentioned(ops: &[Op]) -> (Vec<IfName>, usize) {
    let mut names = Vec::new();
    let mut made: Vec<&IfName> = Vec::new();
    for op in ops {
        let mut refer = |name: &IfName| {
            if !made.contains(&name) {
                names.push(name.clone());
            }
        };
        match op {
            Op::Create(Object::Link(link)) if !is_second_end(link) => {
                link.master.iter().for_each(&mut refer);
                made.push(&link.name);
                made.extend(near_peer(link));
            }
            Op::Create(object) | Op::Change { to: object, .. } => {
                referred(object).for_each(&mut refer);
                ipv4_conf(object).iter().for_each(|(dev, ..)| refer(dev));
            }
            Op::Remove(Object::Link(_)) => {}
            Op::Remove(object) => referred(object).for_each(&mut refer),
            Op::Nft { .. } => {}
        }
    }
    (names, made.len())
}

/// The interfaces that an object refers to, itself included.
fn referred(object: &Object) -> impl Iterator<Item = &IfName> {
    let (one, two) = match object {
        Object::Link(link) => (Some(&link.name), link.master.as_ref()),
        Object::Addr(addr) => (Some(&addr.dev), None),
        Object::Route(route) => (route.dev.as_ref(), None),
        Object::Neigh(neigh) => (Some(&neigh.dev), None),
        Object::Fdb(fdb) => (Some(&fdb.dev), None),
        Object::Sysctl(_) | Object::Table(_) => (None, None),
    };
    one.into_iter().chain(two)
}

fn encode(op: &Op, devices: &mut Devices) -> Result<Encoded, Error> {
    match op {
        Op::Create(Object::Link(link)) if is_second_end(link) => set_link(None, link, devices),
        Op::Create(Object::Link(link)) => create_link(link, devices),
        Op::Change { from: Object::Link(from), to: Object::Link(to) } => {
            set_link(Some(from), to, devices)
        }
        Op::Remove(Object::Link(link)) => {
            devices.remove(&link.name);
            Ok(vec![link::remove(&link.name)].into())
        }
        Op::Create(object) => single(object, devices, Step::Create),
        Op::Change { from: Object::Route(from), to: Object::Route(to) } => {
            change_route(from, to, devices)
        }
        Op::Change { to, .. } => single(to, devices, Step::Change),
        Op::Remove(object) => single(object, devices, Step::Remove),
        Op::Nft { .. } => Err(not_rtnl(op)),
    }
}

/// IPv6 refuses a gateway that is said to be on the link of an interface while a route leads to it
/// by another one (`ip6_route_check_nh_onlink` in `net/ipv6/route.c`), be it the very route that is
/// to be changed. An unreachable one takes its place first: unlike after a removal no packet goes
/// by a less specific route in between.
fn change_route(from: &Route, to: &Route, devices: &Devices) -> Result<Encoded, Error> {
    let index = to.dev.as_ref().map(|dev| devices.index(dev)).transpose()?;
    let mut requests = Vec::new();
    if to.family() == Family::V6 && to.onlink && from.dev.is_some() && from.dev != to.dev {
        let kind = RouteKind::Unreachable;
        let between = Route { kind, dev: None, via: None, onlink: false, src: None, ..to.clone() };
        requests.push(route::change(&between, None));
    }
    requests.push(route::change(to, index));
    Ok(requests.into())
}

fn not_rtnl(op: &Op) -> Error {
    Error::Invalid(format!("{op}: not an operation of rtnetlink"))
}

/// Objects that are not links take one message each.
enum Step {
    Create,
    Change,
    Remove,
}

fn single(object: &Object, devices: &Devices, step: Step) -> Result<Encoded, Error> {
    if let Some((dev, parameter, value)) = ipv4_conf(object) {
        return Ok(vec![link::set_ipv4_conf(devices.index(&dev)?, parameter, value)].into());
    }
    let request = match object {
        Object::Addr(a) => {
            let index = devices.index(&a.dev)?;
            match step {
                Step::Create => addr::create(a, index),
                Step::Change => addr::change(a, index),
                Step::Remove => addr::remove(a, index),
            }
        }
        Object::Route(r) => {
            let index = r.dev.as_ref().map(|dev| devices.index(dev)).transpose()?;
            match step {
                Step::Create => route::create(r, index),
                Step::Change => route::change(r, index),
                Step::Remove => route::remove(r, index),
            }
        }
        Object::Neigh(n) => {
            let index = devices.index(&n.dev)?;
            match step {
                Step::Create | Step::Change => neigh::create(n, index),
                Step::Remove => neigh::remove(n, index),
            }
        }
        Object::Fdb(f) => {
            let index = devices.index(&f.dev)?;
            match step {
                Step::Create | Step::Change => fdb::create(f, index),
                Step::Remove => fdb::remove(f, index),
            }
        }
        Object::Link(_) | Object::Sysctl(_) | Object::Table(_) => {
            let key = object.key();
            return Err(Error::Invalid(format!("{key}: not an object of one message")));
        }
    };
    Ok(vec![request].into())
}

fn create_link(link: &Link, devices: &mut Devices) -> Result<Encoded, Error> {
    let peer_netns = match &link.kind {
        LinkKind::Veth { peer_netns: Some(path), .. } => Some(NetNs::open(path)?),
        _ => None,
    };
    let master = link.master.as_ref().map(|m| devices.index(m)).transpose()?;
    let index = devices.add(&link.name)?;
    let peer_index = near_peer(link).map(|peer| devices.add(peer)).transpose()?;
    let place = link::Surroundings {
        index,
        peer_index: peer_index.unwrap_or(0),
        master,
        peer_netns: peer_netns.as_ref(),
    };
    let requests = link::create(link, &place);
    Ok(Encoded { requests, makes: Some(index), _peer_netns: peer_netns })
}

fn set_link(from: Option<&Link>, to: &Link, devices: &Devices) -> Result<Encoded, Error> {
    let index = devices.index(&to.name)?;
    let joins = to.master.as_ref().filter(|m| from.and_then(|f| f.master.as_ref()) != Some(*m));
    let master = joins.map(|m| devices.index(m)).transpose()?;
    Ok(link::change(from, to, index, master).into())
}
