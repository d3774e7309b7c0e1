//! Type `portmap`: ports of the node that lead to a pod.
//!
//! Two map elements per port in the plugins' own table, one with the address and port to go to and
//! one that says which connections must be masqueraded. Chains and maps are made once, so that
//! neither a packet nor an ADD costs more where there are many ports.

mod conf;
pub(crate) mod note;

use causeway_cni_spec::{CniError, CniResult};
use causeway_kernel::conntrack::{Conntrack, Flow};
use causeway_kernel::{Without, sysctl};
use causeway_model::nft::foreign::{Layer, Place};
use causeway_model::{Desired, Object, Owner, Sysctl};
use causeway_plan::Op;
use causeway_types::{Family, IfName, names};
use rustix::io::Errno;

use crate::Plugin;
use crate::attachment;
use crate::call::Call;
use crate::files;
use crate::foreign_chains;
use crate::leftovers::Look;
use crate::notes::{Note, Notes, Whose};
use crate::owned::{self, Pair, Put};
use crate::paths::Paths;
use crate::rollback::Rollback;
use crate::space::{Failed, Space, warn_not_back};
use conf::PortmapConf;
use note::{Port, Ports};

/// Type `portmap`.
pub(crate) struct PortmapPlugin;

/// Where its notes are.
const NOTES: &str = "portmap";

fn notes(call: &Call) -> Notes {
    Notes::at(&call.paths, NOTES)
}

/// Whether the runtime speaks of ports for DEL, or a note tells of some.
pub(crate) fn has_something(call: &Call) -> Result<bool, CniError> {
    let asked = call.conf.runtime_config.port_mappings.iter().any(|m| m.host_port != 0);
    let (id, ifname) = (&call.env.container_id, &call.env.ifname);
    Ok(asked || notes(call).read::<Ports>(id, ifname)?.is_some())
}

impl Plugin for PortmapPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        let conf = PortmapConf::parse(call)?;
        let result = call.conf.require_prev_result()?;
        let ports = conf::ports(call, result)?;
        if ports.is_empty() {
            return Ok(result.clone());
        }
        let masquerade = conf.masquerade(call, result);
        let note = Ports { whose: Whose::of(call)?, masquerade, ports };
        Rollback::guard(|rollback| map(call, &note, rollback))?;
        Ok(result.clone())
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let (id, ifname) = (&call.env.container_id, &call.env.ifname);
        if let Some(note) = notes(call).read::<Ports>(id, ifname)? {
            let mut node = Space::node()?;
            if ended_later(call, &mut node)? {
                let take = |node: &mut Space| owned::take(node, &note.table(), &note.whose.tag());
                let found = take(&mut node)?;
                return notes(call).ended(&note.whose, found, || take(&mut node).map(drop));
            }
            return unmap(&notes(call), &note);
        }
        let mut node = Space::node()?;
        if call.conf.runtime_config.port_mappings.iter().any(|m| m.host_port != 0) {
            owned::take_all(&mut node, &note::sets(), &names::element_mark(id, ifname))?;
        }
        foreign_chains::remove_ports(&mut node, &call.conf.name, id)?;
        notes(call).remove(id, ifname)
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = PortmapConf::parse(call)?;
        let result = call.conf.require_prev_result()?;
        let ports = conf::ports(call, result)?;
        if ports.is_empty() {
            return Ok(());
        }
        let masquerade = conf.masquerade(call, result);
        let note = Ports { whose: Whose::of(call)?, masquerade, ports };
        let mut node = Space::node()?;
        let tag = note.whose.tag();
        for pair in owned::look(&mut node, &note.table())? {
            let right = pair.have.as_ref() == Some(&pair.want) && pair.holder() == Some(&tag);
            if !right {
                return Err(CniError::internal(format!(
                    "{} {} on the node: call DEL and ADD",
                    what(&pair),
                    if pair.have.is_none() { "is missing" } else { "has been changed" }
                )));
            }
        }
        let mut desired = Desired::default();
        let owner = Owner::Pod(call.env.container_id.clone());
        desired.add(owner, "the container's ports".to_owned(), Object::Table(note.table()));
        attachment::verify(&mut node, &desired)?;
        match localhost(&mut node, &note)? {
            None => Ok(()),
            Some(missing) => Err(CniError::internal(format!(
                "sysctl {} is not 1 on the node: ports are not reached from 127.0.0.1",
                missing.path
            ))),
        }
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        PortmapConf::parse(call).map_err(unavailable)?;
        files::try_room(&notes(call).files()).map_err(unavailable)?;
        let mut node = Space::node().map_err(unavailable)?;
        node.kernel(|handle| handle.nft()?.genid()).map(drop).map_err(unavailable)
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let notes = notes(call);
        notes.collect(call, |note: &Ports| unmap(&notes, note))
    }
}

/// The port that an element stands for, in words.
fn what(pair: &Pair) -> String {
    use causeway_model::nft::KeyPart;
    let mut text = "hostPort".to_owned();
    let mut ip = String::new();
    let mut protocol = "";
    for part in pair.id.key.iter() {
        match part {
            KeyPart::Proto(number) => protocol = conf::protocol_name(*number),
            KeyPart::Port(port) => text.push_str(&format!(" {port}/{protocol}")),
            other => ip = format!(" of {other}"),
        }
    }
    format!("{text}{ip} (map {} of table inet causeway_cni)", pair.id.set)
}

fn map(call: &Call, note: &Ports, rollback: &mut Rollback) -> Result<(), CniError> {
    let (id, ifname) = (&call.env.container_id, &call.env.ifname);
    let notes = notes(call);
    let mut node = Space::node()?;
    if let Some(before) = notes.read::<Ports>(id, ifname)? {
        // Left by an ADD that was killed, or an ADD again: what it mapped may differ.
        owned::take(&mut node, &before.table(), &before.whose.tag())?;
    }
    let (again, undone) = (notes.clone(), note.clone());
    rollback.on_failure(move || unmap(&again, &undone));
    notes.write(note)?;
    let table = note.table();
    let mut pairs = owned::look(&mut node, &table)?;
    refuse_taken(&notes, note, &pairs)?;
    let mut done = owned::put(&mut node, &table, &pairs, &[]);
    if matches!(done, Ok(Put::Lost)) {
        // First the others: their ports stay theirs.
        let own = &note.whose;
        let undo = |node: &mut Space, note: &Ports| take(node, note).map(drop);
        let failed = notes.bring_back(&mut node, &own.boot_id, Some(own), put_back, undo);
        warn_not_back(&failed);
        pairs = owned::look(&mut node, &table)?;
        refuse_taken(&notes, note, &pairs)?;
        done = owned::put_anew(&mut node, &table, &pairs, &[]).map(|()| Put::Done);
    }
    if let Err(error) = done {
        let taken = [Errno::EXIST, Errno::BUSY].map(|e| Some(e.raw_os_error()));
        if taken.contains(&error.errno) {
            // Somebody was faster.
            refuse_taken(&notes, note, &owned::look(&mut node, &table)?)?;
        }
        return Err(node.error(&Failed::Op(error)));
    }
    if let Some(sysctl) = localhost(&mut node, note)? {
        // Only where the table keeps others out.
        if !is_guarded(&mut node)? {
            owned::rebuild(&mut node, &table).map_err(|e| node.error(&Failed::Op(e)))?;
        }
        node.apply(&[Op::Create(Object::Sysctl(sysctl))])
            .map_err(|e| node.error(&Failed::Op(e)))?;
    }
    forget(&mut node, note, |port, flow| flow.answers != port.to)
}

/// Puts all ports back where somebody took them, and answers what could not be.
pub(crate) fn restore(paths: &Paths, node: &mut Space, boot_id: &str) -> Vec<String> {
    let undo = |node: &mut Space, note: &Ports| take(node, note).map(drop);
    Notes::at(paths, NOTES).bring_back(node, boot_id, None, put_back, undo)
}

/// Removes ports of pods that are gone.
pub(crate) fn sweep(paths: &Paths, look: &mut Look<'_>) -> Result<(), CniError> {
    let take = |node: &mut Space, note: &Ports| take(node, note).map(drop);
    Notes::at(paths, NOTES).sweep_over(look, "ports", take, put_back)
}

/// Puts the ports of another attachment back where somebody took them.
fn put_back(node: &mut Space, note: &Ports) -> Result<(), CniError> {
    let table = note.table();
    let pairs = owned::look(node, &table)?;
    if pairs.iter().all(Pair::is_as_wanted) && !owned::is_lost(node, &table) {
        return Ok(());
    }
    let held = |pair: &Pair| pair.holder().is_some_and(|holder| holder != note.whose.tag());
    if let Some(pair) = pairs.iter().find(|pair| held(pair)) {
        let holder = pair.holder().unwrap_or_default();
        return Err(CniError::internal(format!("{} is held by {holder}", what(pair))));
    }
    let done = owned::put_whole(node, &table, &pairs, &[]);
    done.map_err(|e| node.error(&Failed::Op(e)))?;
    forget(node, note, |port, flow| flow.answers != port.to)
}

/// Whether the rules against loopback addresses from outside are there: somebody may have emptied
/// their chain, which an ADD that finds its maps does not notice.
fn is_guarded(node: &mut Space) -> Result<bool, CniError> {
    let place = Place::new(Layer::Inet, &owned::table_id().name, note::LOCALNET);
    let rules = node.kernel(|handle| handle.nft()?.rules_of(&place))?;
    Ok(rules.len() >= note::LOCALNET_RULES)
}

/// Refuses ports that another attachment holds, unless its container is gone for good.
fn refuse_taken(notes: &Notes, note: &Ports, pairs: &[Pair]) -> Result<(), CniError> {
    let own = note.whose.tag();
    for pair in pairs {
        let Some(holder) = pair.holder().filter(|holder| *holder != own) else { continue };
        let (id, ifname) = holder.split_once(' ').unwrap_or((holder, ""));
        let noted = notes.read::<Ports>(id, ifname)?;
        if noted.as_ref().is_some_and(|n| n.whose().is_over(&note.whose.boot_id)) {
            continue;
        }
        let key: Vec<String> = pair.id.key.iter().map(|part| part.to_string()).collect();
        let by_hand = match noted {
            Some(_) => String::new(),
            // Whether it lives cannot be told.
            None => format!(
                "; if there is no such container any more, `nft 'delete element inet causeway_cni {} \
                 {{ {} }}'`",
                pair.id.set,
                key.join(" . ")
            ),
        };
        return Err(CniError::internal(format!(
            "{} is held by container {id} ({ifname}): stop that one, or choose another port{by_hand}",
            what(pair)
        )));
    }
    Ok(())
}

/// The plugin that made the pod's interface is one of ours, and will be called in a moment: it ends all
/// connections of the pod's addresses. To look for those of its ports takes the kernel milliseconds
/// where its table is large, be it empty.
fn ended_later(call: &Call, node: &mut Space) -> Result<bool, CniError> {
    let (id, ifname) = (&call.env.container_id, &call.env.ifname);
    let end = names::host_veth(id, ifname);
    let named = call.conf.prev_result.iter().flat_map(|result| &result.interfaces);
    if !named.into_iter().any(|i| i.sandbox.is_empty() && i.name == end.as_str()) {
        return Ok(false);
    }
    Ok(node.link(&end)?.is_some())
}

/// Takes the ports away: the elements that carry the attachment's mark, then what connection
/// tracking knows of them, then the note.
fn unmap(notes: &Notes, note: &Ports) -> Result<(), CniError> {
    let mut node = Space::node()?;
    let found = take(&mut node, note)?;
    notes.ended(&note.whose, found, || take(&mut node, note).map(drop))
}

/// Answers whether there was anything.
fn take(node: &mut Space, note: &Ports) -> Result<bool, CniError> {
    let found = owned::take(node, &note.table(), &note.whose.tag())?;
    forget(node, note, |port, flow| flow.answers == port.to)?;
    Ok(found)
}

/// What must be set so that packets from 127.0.0.1 leave by the pod's interface; `None` when there
/// is nothing to set.
fn localhost(node: &mut Space, note: &Ports) -> Result<Option<Sysctl>, CniError> {
    if note.masquerade.is_none() {
        return Ok(None);
    }
    let Some(port) = note.ports.iter().find(|port| port.to.is_ipv4()) else { return Ok(None) };
    let to = port.to.ip();
    let path = node.kernel(|handle| handle.route_get(to, &Without::default()))?;
    let Some(dev) = path.map(|path| path.dev).filter(|dev| !is_loopback(dev)) else {
        return Ok(None);
    };
    let path = |dev: &str| format!("net/ipv4/conf/{dev}/route_localnet");
    for dev in [dev.as_str(), "all"] {
        if node.kernel(|_| sysctl::read(&path(dev)))?.as_deref() == Some("1") {
            return Ok(None);
        }
    }
    Ok(Some(Sysctl { path: path(dev.as_str()), value: "1".to_owned() }))
}

fn is_loopback(dev: &IfName) -> bool {
    dev.as_str() == "lo"
}

/// Forgets connections of UDP to the ports, which never end while packets come, and would lead
/// them where they led before.
fn forget(
    node: &mut Space,
    note: &Ports,
    wanted: impl Fn(&Port, &Flow) -> bool,
) -> Result<(), CniError> {
    let mut tracked: Option<Conntrack> = None;
    for family in Family::BOTH {
        let of = |port: &&Port| conf::is_udp(port) && Family::of(port.to.ip()) == family;
        let ports: Vec<&Port> = note.ports.iter().filter(of).collect();
        let numbers: Vec<u16> = ports.iter().map(|port| port.host_port).collect();
        if numbers.is_empty() {
            continue;
        }
        node.kernel(|handle| {
            let tracked = match &mut tracked {
                Some(tracked) => tracked,
                None => tracked.insert(Conntrack::open_in(handle.netns())?),
            };
            if tracked.count()? == 0 {
                return Ok(0);
            }
            tracked.delete_to_ports(family, conf::UDP, &numbers, |flow| {
                // What goes through the node to the same port of others is not ours to end.
                let ip = flow.to.ip();
                let local = handle.is_local(ip)?;
                let here = |port: &Port| match port.host_ip {
                    Some(host_ip) => host_ip == ip,
                    None => local || flow.answers == port.to,
                };
                let mut to = ports.iter().filter(|port| port.host_port == flow.to.port());
                Ok(to.any(|port| here(port) && wanted(port, flow)))
            })
        })?;
    }
    Ok(())
}
