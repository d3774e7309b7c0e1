//! Type `firewall`: lets packets of pods pass the node, and keeps bridges apart.
//!
//! A pod's addresses are elements of sets in the plugins' own table. An accept there cannot overrule
//! a chain of others that drops (Docker, ufw, firewalld set such policies): ADD then says so on
//! standard error, and fails only where no packet of the pod could ever pass. With
//! `"foreignForward": "insert"` it puts accepts for the pod's addresses into those chains.

mod conf;
mod foreign;
pub(crate) mod note;

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_cni_spec::{CniError, CniResult, Version};
use causeway_ipam::Owner as LockOwner;
use causeway_kernel::sysctl;
use causeway_model::nft::foreign::Dropping;
use causeway_model::nft::{Chain, KeyPart};
use causeway_model::{Desired, LinkKind, Object, Owner};
use causeway_types::{Cidr, Family, IfName, names};

use crate::Plugin;
use crate::adds::{Adds, Quiet};
use crate::attachment;
use crate::call::Call;
use crate::files;
use crate::foreign_chains;
use crate::leftovers::Look;
use crate::notes::{Notes, Whose};
use crate::owned::{self, Pair};
use crate::paths::Paths;
use crate::rollback::Rollback;
use crate::space::{self, Failed, Space};
use conf::FirewallConf;
use note::{ADMIN, Forward, Inserted};

/// Type `firewall`.
pub(crate) struct FirewallPlugin;

/// Where its notes are.
const NOTES: &str = "firewall";

fn notes(call: &Call) -> Notes {
    Notes::at(&call.paths, NOTES)
}

impl Plugin for FirewallPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        let conf = FirewallConf::parse(call)?;
        let result = call.conf.require_prev_result()?;
        Rollback::guard(|rollback| open(call, conf, result, rollback))?;
        Ok(result.clone())
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let (id, ifname) = (&call.env.container_id, &call.env.ifname);
        if let Some(note) = notes(call).read::<Forward>(id, ifname)? {
            return close(&notes(call), &note);
        }
        let mut node = Space::node()?;
        owned::take_all(&mut node, &note::sets(), &names::element_mark(id, ifname))?;
        let addresses = call.conf.prev_result.as_ref().map(addresses).unwrap_or_default();
        foreign_chains::remove_forward(&mut node, &addresses)?;
        notes(call).remove(id, ifname)
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = FirewallConf::parse(call)?;
        let result = call.conf.require_prev_result()?;
        let mut node = Space::node()?;
        let note = note_of(call, conf, result, &mut node)?;
        let mut desired = Desired::default();
        let owner = Owner::Pod(call.env.container_id.clone());
        desired.add(owner, "the container's packets".to_owned(), Object::Table(note.table()));
        attachment::verify(&mut node, &desired)?;
        let dropping = foreign::find(&mut node, &families(&note.addresses))?;
        if !conf.insert {
            return judge(&note.addresses, &subnets(result), &dropping);
        }
        match foreign::first_without(&mut node, &note, &dropping)? {
            None => Ok(()),
            Some(place) => Err(CniError::internal(format!(
                "chain {} of table {} {} does not accept the container's packets any more: call \
                 DEL and ADD",
                place.chain,
                place.layer.as_str(),
                place.table
            ))),
        }
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg).with_details(e.details);
        let conf = FirewallConf::parse(call).map_err(unavailable)?;
        files::try_room(&notes(call).files()).map_err(unavailable)?;
        let mut node = Space::node().map_err(unavailable)?;
        let mut families = vec![Family::V4];
        let forwarding = node.kernel(|_| sysctl::read("net/ipv6/conf/all/forwarding"));
        if forwarding.map_err(unavailable)?.is_some_and(|value| value != "0") {
            families.push(Family::V6);
        }
        let dropping = foreign::find(&mut node, &families).map_err(unavailable)?;
        if conf.insert {
            return Ok(());
        }
        let any: Vec<IpAddr> = families.iter().map(|f| f.unspecified()).collect();
        judge(&any, &[], &dropping).map_err(unavailable)
    }

    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let notes = notes(call);
        let first = notes.collect(call, |note: &Forward| close(&notes, note)).err();
        first.or(forget_bridges(call, &notes).err()).map_or(Ok(()), Err)
    }

    fn versions(&self) -> &'static [Version] {
        &[Version::V0_4_0, Version::V1_0_0, Version::V1_1_0]
    }
}

/// The addresses of the container, on whatever interface.
fn addresses(result: &CniResult) -> Vec<IpAddr> {
    result.container_ips().map(|ip| ip.address.addr()).collect()
}

/// The subnets of the container's addresses.
fn subnets(result: &CniResult) -> Vec<Cidr> {
    let all: BTreeSet<Cidr> = result.container_ips().map(|ip| Cidr::of(ip.address)).collect();
    all.into_iter().collect()
}

fn families(addresses: &[IpAddr]) -> Vec<Family> {
    let has = |family: &Family| addresses.iter().any(|ip| Family::of(*ip) == *family);
    Family::BOTH.into_iter().filter(has).collect()
}

fn note_of(
    call: &Call,
    conf: FirewallConf,
    result: &CniResult,
    node: &mut Space,
) -> Result<Forward, CniError> {
    let bridge = if conf.same_bridge { Some(bridge(result, node)?) } else { None };
    let addresses = addresses(result);
    Ok(Forward { whose: Whose::of(call)?, addresses, bridge, inserted: Vec::new() })
}

/// The bridge among the interfaces of the result.
fn bridge(result: &CniResult, node: &mut Space) -> Result<IfName, CniError> {
    for interface in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Ok(name) = IfName::new(&interface.name) else { continue };
        let link = node.link(&name)?;
        if link.is_some_and(|link| matches!(link.kind, LinkKind::Bridge)) {
            return Ok(name);
        }
    }
    Err(CniError::invalid_config(
        "key \"ingressPolicy\" is \"same-bridge\", but the result of the plugins before names no \
         bridge: chain \"firewall\" behind \"bridge\"",
    ))
}

fn open(
    call: &Call,
    conf: FirewallConf,
    result: &CniResult,
    rollback: &mut Rollback,
) -> Result<(), CniError> {
    let mut node = Space::node()?;
    let mut note = note_of(call, conf, result, &mut node)?;
    if note.addresses.is_empty() && note.bridge.is_none() {
        return Ok(());
    }
    let families = families(&note.addresses);
    let dropping = foreign::find(&mut node, &families)?;
    warn(&foreign::legacy(&families));
    if conf.insert {
        note.inserted = dropping.iter().map(|chain| foreign::inserted(&chain.place)).collect();
        let forgets = dropping.iter().filter_map(|chain| chain.forgets(&subnets(result)));
        warn(&forgets.collect::<Vec<_>>());
    } else {
        judge(&note.addresses, &subnets(result), &dropping)?;
    }
    let notes = notes(call);
    let whose = &note.whose;
    if let Some(before) = notes.read::<Forward>(&whose.container_id, &whose.ifname)? {
        // Left by an ADD that was killed, or an ADD again: its addresses may differ.
        remove(&mut node, &before)?;
    }
    if let Some(bridge) = &note.bridge {
        Adds::at(&call.paths).begin(&shared(bridge))?;
    }
    let (again, undone) = (notes.clone(), note.clone());
    rollback.on_failure(move || close(&again, &undone));
    notes.write(&note)?;
    let lost = put(&mut node, &note)?;
    let bare = foreign::insert(&mut node, &note)?;
    if lost || bare {
        let own = &note.whose;
        let failed = bring_back(&mut node, &notes, &own.boot_id, Some(own), &dropping);
        space::warn_not_back(&failed);
    }
    Ok(())
}

/// Says what chains of others do, on standard error.
///
/// # Errors
/// Code 999 when every family of the addresses is dropped for certain.
fn judge(addresses: &[IpAddr], subnets: &[Cidr], dropping: &[Dropping]) -> Result<(), CniError> {
    let all: Vec<String> = dropping.iter().map(|chain| chain.describe(subnets)).collect();
    let blocked = foreign::blocked(dropping);
    let families: BTreeSet<Family> = families(addresses).into_iter().collect();
    if !families.is_empty() && families.is_subset(&blocked) {
        return Err(CniError::internal("no packet of the pod can pass this node")
            .with_details(all.join("; ")));
    }
    warn(&all);
    Ok(())
}

fn warn(texts: &[String]) {
    texts.iter().for_each(|text| space::warn(text));
}

/// Answers whether something of it was in our table, and all in the chains of others.
fn remove(node: &mut Space, note: &Forward) -> Result<bool, CniError> {
    let removed = foreign::remove(node, note);
    let taken = owned::take(node, &note.table(), &note.whose.tag());
    Ok(removed? && taken?)
}

fn close(notes: &Notes, note: &Forward) -> Result<(), CniError> {
    let mut node = Space::node()?;
    let found = remove(&mut node, note)?;
    notes.ended(&note.whose, found, || remove(&mut node, note).map(drop))
}

/// Puts an attachment's packets into our table. Answers whether nothing of that was there.
fn put(node: &mut Space, note: &Forward) -> Result<bool, CniError> {
    let mut table = note.table();
    let pairs = owned::look(node, &table)?;
    table.chains.insert(ADMIN.to_owned(), Chain { base: None, rules: Vec::new() });
    let done = owned::put_whole(node, &table, &pairs, &[ADMIN]);
    done.map_err(|e| node.error(&Failed::Op(e)))
}

/// Puts all attachments' packets back where somebody took them, and answers what could not be.
pub(crate) fn restore(paths: &Paths, node: &mut Space, boot_id: &str) -> Vec<String> {
    match foreign::find(node, &Family::BOTH) {
        Ok(dropping) => bring_back(node, &Notes::at(paths, NOTES), boot_id, None, &dropping),
        Err(e) => vec![format!("packets of containers: {e}")],
    }
}

/// Removes packets of pods that are gone.
pub(crate) fn sweep(paths: &Paths, look: &mut Look<'_>) -> Result<(), CniError> {
    let take = |node: &mut Space, note: &Forward| remove(node, note).map(drop);
    let make = |node: &mut Space, note: &Forward| {
        put(node, note)?;
        foreign::insert(node, note).map(drop)
    };
    Notes::at(paths, NOTES).sweep_over(look, "packets", take, make)
}

/// Brings back what attachments had in our table and, of those chains of others that drop now, in those
/// where it was.
fn bring_back(
    node: &mut Space,
    notes: &Notes,
    boot_id: &str,
    but: Option<&Whose>,
    dropping: &[Dropping],
) -> Vec<String> {
    let there: Vec<Inserted> = dropping.iter().map(|c| foreign::inserted(&c.place)).collect();
    let make = |node: &mut Space, note: &Forward| {
        let table = note.table();
        let whole = owned::look(node, &table)?.iter().all(Pair::is_as_wanted);
        if !whole || owned::is_lost(node, &table) {
            put(node, note)?;
        }
        let mut there_too = note.clone();
        there_too.inserted.retain(|place| there.contains(place));
        foreign::insert(node, &there_too).map(drop)
    };
    notes.bring_back(node, boot_id, but, make, |node, note| remove(node, note).map(drop))
}

/// What stands for a bridge in the locks of attachments, as all that are on it share its elements. No
/// container has an empty name.
fn shared(bridge: &IfName) -> LockOwner {
    LockOwner::new("", bridge.as_str())
}

/// Removes bridges that no attachment is on any more, and no ADD is about to be.
fn forget_bridges(call: &Call, notes: &Notes) -> Result<(), CniError> {
    let mut sets = note::sets();
    sets.sets.retain(|_, set| set.key[0] == causeway_model::nft::KeyType::IfName);
    let mut node = Space::node()?;
    let (there, adds) = (owned::read_all(&mut node, &sets)?, Adds::at(&call.paths));
    let keys = there.sets.values().flat_map(|set| set.elements.keys().flat_map(|key| key.iter()));
    let bridges: BTreeSet<&KeyPart> = keys.collect();
    let mut quiet: Vec<(KeyPart, Quiet)> = Vec::new();
    for part in bridges {
        let KeyPart::IfName(bridge) = part else { continue };
        quiet.extend(adds.keep_out(&shared(bridge)).map(|lock| (part.clone(), lock)));
    }
    // Those that ended before have left their notes by now.
    let used: Vec<KeyPart> =
        notes.all::<Forward>()?.into_iter().filter_map(|n| n.bridge).map(KeyPart::IfName).collect();
    let unused = |part: &KeyPart| quiet.iter().any(|(p, _)| p == part) && !used.contains(part);
    owned::take_where(&mut node, &sets, &|key, _| key.iter().all(unused))
}
