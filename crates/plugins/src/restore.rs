//! What somebody flushed, brought back: host ports, `firewall`, masquerade and checks of MACs of the
//! attachments that live, as notes, and results that the container runtime keeps, tell of them.
//!
//! An ADD that finds what it needs gone does so by the way. Where an agent hears that it goes, nobody
//! waits for the next pod.

use causeway_cni_spec::runtime::{Cache, CachedAttachment, NetworkList};
use causeway_cni_spec::{CniError, CniResult, Interface, Version};
use causeway_desired::pod::{host_objects, mac_check};
use causeway_ipam::Owner;
use causeway_model::{Desired, Object, Observed, Owner as Whose};
use causeway_types::state::{Attach, AttachmentRecord};
use causeway_types::{IfName, Mac};
use serde::Deserialize;

use crate::attachment::context;
use crate::bridge::del::{Way, skeleton};
use crate::bridge::mend;
use crate::names::Derived;
use crate::paths::Paths;
use crate::record::{self, Attachments};
use crate::space::{Failed, Space};
use crate::{firewall, portmap};

/// Brings back what is missing in the namespace of the calling thread, and answers what could not be.
///
/// # Errors
/// Codes 5 and 999 when too little can be read to know.
pub fn flushed(paths: &Paths) -> Result<Vec<String>, CniError> {
    let boot_id = record::boot_id(paths)?;
    let mut node = Space::node()?;
    let mut failed = portmap::restore(paths, &mut node, &boot_id);
    failed.extend(firewall::restore(paths, &mut node, &boot_id));
    failed.extend(cached(paths, &mut node, None));
    Ok(failed)
}

/// The same for masquerade and checks of MACs alone, without those of `but`.
pub(crate) fn cached(paths: &Paths, node: &mut Space, but: Option<&Owner>) -> Vec<String> {
    let Some(dir) = paths.leases.parent() else { return Vec::new() };
    let served = record::node_file(paths).ok().flatten().map(|file| file.served);
    let served = served.unwrap_or_default();
    let all = match Cache::new(dir).all() {
        Ok(all) => all,
        Err(e) => return vec![e.to_string()],
    };
    let mut failed = Vec::new();
    for found in all.iter().filter(|found| !served.contains(&found.network)) {
        let (id, ifname) = (&found.attachment.container_id, &found.attachment.ifname);
        if but.is_some_and(|but| *but == Owner::new(id, ifname)) {
            continue;
        }
        if let Err(e) = one(paths, node, found) {
            failed.push(format!("masquerade of container {id} ({ifname}): {e}"));
        }
    }
    failed
}

/// What a main plugin of the list puts into tables that somebody may flush.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Main {
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    macspoofchk: bool,
}

fn one(paths: &Paths, node: &mut Space, found: &CachedAttachment) -> Result<(), CniError> {
    let (id, name) = (&found.attachment.container_id, &found.attachment.ifname);
    let Ok(ifname) = IfName::new(name) else { return Ok(()) };
    let Ok(list) = NetworkList::parse(&found.config) else { return Ok(()) };
    let ours = |kind: &str| matches!(kind, "bridge" | "ptp");
    let Some(first) = list.plugins.iter().find(|p| ours(&p.plugin_type)) else { return Ok(()) };
    let conf = serde_json::Value::Object(first.raw.clone());
    let Ok(main) = Main::deserialize(conf) else { return Ok(()) };
    let mac_checked = main.macspoofchk && first.plugin_type == "bridge";
    if !(main.ip_masq || mac_checked) || Attachments::at(paths).read(id, name)?.is_some() {
        return Ok(());
    }
    // Only what we made has an interface of this name.
    let ends = Derived::new(id, ifname);
    let end = ends.host_ifname.clone();
    if !mend::is_up(node, &end)? {
        return Ok(());
    }
    let result = CniResult::from_object(&found.result, Version::V0_4_0, "")?;
    let inside = |i: &&Interface| !i.sandbox.is_empty() && i.name == *name;
    let mac: Option<Mac> = result.interfaces.iter().find(inside).and_then(|i| i.mac.parse().ok());
    let way =
        Way { attach: Attach::Bridge, bridge: None, ip_masq: main.ip_masq, mac_check: mac_checked };
    let addresses = result.container_ips().map(|ip| ip.address).collect();
    let record = skeleton(&found.network, &way, id, ends, addresses);
    let record = AttachmentRecord { mac: mac.unwrap_or(record.mac), ..record };
    let tables = tables(&record, mac_checked && mac.is_some());
    node.make(&tables, &Observed::default()).map_err(|e: Failed| node.error(&e))?;
    // As with leases: a DEL that went by before they were here has set it down.
    if mend::is_up(node, &end)? { Ok(()) } else { node.unmake(&tables) }
}

fn tables(record: &AttachmentRecord, mac_checked: bool) -> Desired {
    let mut tables = Desired::default();
    for (_, entry) in host_objects(record, &context(false)).iter() {
        if matches!(entry.object, Object::Table(_)) && !record.addresses.is_empty() {
            tables.add(entry.owner.clone(), entry.why.clone(), entry.object.clone());
        }
    }
    if mac_checked {
        tables.add(Whose::Pod(record.owner_name()), "it checks the pod's MAC", mac_check(record));
    }
    tables
}
