//! Type `tuning`: kernel parameters of the pod's namespace and attributes of its interface, in a
//! chain after the plugin that made it.
//!
//! What the interface had is written to a file before it is changed, and put back by DEL. Kernel
//! parameters go with the namespace and are not put back, as with the reference.

mod conf;
mod pattern;
mod saved;

use std::collections::BTreeSet;

use causeway_cni_spec::{CniError, CniResult};
use causeway_kernel::tune::Attributes;
use causeway_model::{Key, Object, Sysctl};
use causeway_plan::Op;
use causeway_types::IfName;

use self::conf::TuningConf;
use self::saved::Saved;
use crate::Plugin;
use crate::adds::Adds;
use crate::call::Call;
use crate::files;
use crate::host_local::valid_owners;
use crate::record::Attachments;
use crate::rollback::Rollback;
use crate::space::{Failed, Space};

/// Type `tuning`.
pub(crate) struct TuningPlugin;

impl Plugin for TuningPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        let conf = TuningConf::of(call)?;
        let result = call.conf.require_prev_result()?.clone();
        Rollback::guard(|rollback| tune(call, &conf, rollback))?;
        Ok(changed(call, &conf, result))
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        let file = saved::file(call, &conf::data_dir(call)?);
        if let Some(saved) = Saved::read(&file)?
            && let Some(mut pod) = Space::what_is_left(call)?
        {
            put_back(call, &mut pod, &saved.attributes())?;
        }
        saved::remove(&file)
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let conf = TuningConf::of(call)?;
        call.conf.require_prev_result()?;
        check(call, &conf)
    }

    fn status(&self, call: &Call) -> Result<(), CniError> {
        let unavailable = |e: CniError| CniError::not_available(e.msg);
        let conf = TuningConf::of(call).map_err(unavailable)?;
        if conf.attributes == Attributes::default() {
            return Ok(());
        }
        files::try_room(&[(conf.data_dir.join("new"), true)]).map_err(unavailable)
    }

    /// Files of this network whose attachments are not valid any more.
    fn gc(&self, call: &Call) -> Result<(), CniError> {
        let dir = conf::data_dir(call)?;
        let valid = valid_owners(call)?;
        let kept: BTreeSet<String> =
            valid.iter().map(|o| saved::file_name(&o.container_id, &o.ifname)).collect();
        let (adds, network) = (Adds::at(&call.paths), &call.conf.name);
        let mut first = adds.sweep(&dir).err();
        for name in files::names(&dir)?.into_iter().filter(|n| !kept.contains(n)) {
            let file = dir.join(&name);
            if name.starts_with('.') || !name.ends_with(".json") {
                continue;
            }
            let Some(saved) = Saved::read(&file)?.filter(|s| s.is_of(network)) else { continue };
            let Some(_quiet) = adds.keep_out(saved.owner()) else { continue };
            if Saved::read(&file)?.as_ref() == Some(&saved) {
                first = first.or(saved::remove(&file).err());
            }
        }
        first.map_or(Ok(()), Err)
    }
}

fn ifname(call: &Call) -> Result<IfName, CniError> {
    IfName::new(&call.env.ifname).map_err(|e| CniError::environment(format!("CNI_IFNAME: {e}")))
}

fn missing(call: &Call) -> CniError {
    CniError::internal(format!(
        "there is no interface {} in {}: put \"tuning\" after the plugin that makes it",
        call.env.ifname,
        call.env.netns.as_deref().unwrap_or("".as_ref()).display()
    ))
}

fn tune(call: &Call, conf: &TuningConf, rollback: &mut Rollback) -> Result<(), CniError> {
    let dev = ifname(call)?;
    let mut pod = Space::pod(&call.netns()?)?;
    let changes = conf.attributes != Attributes::default();
    let have = pod.kernel(|k| k.attributes(&dev))?;
    if changes {
        let have = have.ok_or_else(|| missing(call))?;
        refuse_guarded(call, conf)?;
        let file = saved::file(call, &conf.data_dir);
        let now = Saved::new(call, &have, &conf.attributes);
        let saved = match Saved::read(&file)? {
            Some(earlier) => earlier.or_later(now),
            None => now,
        };
        let (before, again, written) = (saved.attributes(), call.clone(), file.clone());
        rollback.on_failure(move || saved::remove(&written));
        saved.write(&file)?;
        rollback.on_failure(move || {
            Space::what_is_left(&again)?
                .map_or(Ok(()), |mut pod| put_back(&again, &mut pod, &before))
        });
    }
    set_sysctls(&mut pod, conf, rollback, call)?;
    match have {
        Some(have) => set(&mut pod, &dev, &conf.attributes, &have),
        None => Ok(()),
    }
}

fn set(pod: &mut Space, dev: &IfName, to: &Attributes, have: &Attributes) -> Result<(), CniError> {
    let change = to.unlike(have);
    if change == Attributes::default() {
        return Ok(());
    }
    pod.kernel(|k| k.set_attributes(dev, &change))
}

/// The values that were there are put back only when this ADD fails.
fn set_sysctls(
    pod: &mut Space,
    conf: &TuningConf,
    rollback: &mut Rollback,
    call: &Call,
) -> Result<(), CniError> {
    if conf.sysctls.is_empty() {
        return Ok(());
    }
    let before: Vec<Op> = pod
        .observe(&keys(conf))?
        .iter()
        .filter(|(key, _)| matches!(key, Key::Sysctl(_)))
        .map(|(_, object)| Op::Create(object.clone()))
        .collect();
    let again = call.clone();
    rollback.on_failure(move || {
        let Some(mut pod) = Space::what_is_left(&again)? else { return Ok(()) };
        pod.apply(&before).map_err(|e| pod.error(&Failed::Op(e)))
    });
    let ops: Vec<Op> = conf
        .sysctls
        .iter()
        .map(|(path, value)| {
            Op::Create(Object::Sysctl(Sysctl { path: path.clone(), value: value.clone() }))
        })
        .collect();
    pod.apply(&ops).map_err(|e| pod.error(&Failed::Op(e)))
}

fn keys(conf: &TuningConf) -> Vec<Key> {
    conf.sysctls.keys().map(|path| Key::Sysctl(path.clone())).collect()
}

/// A pod of a served network may send by the MAC of its record alone.
fn refuse_guarded(call: &Call, conf: &TuningConf) -> Result<(), CniError> {
    let Some(mac) = conf.attributes.mac else { return Ok(()) };
    let records = Attachments::at(&call.paths);
    match records.read(&call.env.container_id, &call.env.ifname)? {
        Some(record) if record.mac != mac => Err(CniError::invalid_config(format!(
            "mac {mac}: network {} is served by the agent, and what the pod sends with another \
             address than {} would be dropped; ask for it by the \"mac\" capability of the plugin \
             that makes the interface",
            call.conf.name, record.mac
        ))),
        _ => Ok(()),
    }
}

/// Puts back what was saved; an interface that is gone is fine.
fn put_back(call: &Call, pod: &mut Space, saved: &Attributes) -> Result<(), CniError> {
    let dev = ifname(call)?;
    match pod.kernel(|k| k.attributes(&dev))? {
        Some(have) => set(pod, &dev, saved, &have),
        None => Ok(()),
    }
}

/// The result with what the interface has now.
fn changed(call: &Call, conf: &TuningConf, mut result: CniResult) -> CniResult {
    let own =
        result.interfaces.iter_mut().filter(|i| i.name == call.env.ifname && !i.sandbox.is_empty());
    for interface in own {
        if let Some(mac) = conf.attributes.mac {
            interface.mac = mac.to_string();
        }
        interface.mtu = conf.attributes.mtu.or(interface.mtu);
    }
    result
}

fn check(call: &Call, conf: &TuningConf) -> Result<(), CniError> {
    let dev = ifname(call)?;
    let mut pod = Space::pod(&call.netns()?)?;
    if !conf.sysctls.is_empty() {
        let found = pod.observe(&keys(conf))?;
        for (path, wanted) in &conf.sysctls {
            let value = match found.get(&Key::Sysctl(path.clone())) {
                Some(Object::Sysctl(sysctl)) => sysctl.value.as_str(),
                _ => "missing",
            };
            // Several values are separated by a tab there, and by whatever people like here.
            if !value.split_whitespace().eq(wanted.split_whitespace()) {
                return Err(CniError::internal(format!(
                    "sysctl {path} is {value:?}, not {wanted:?}"
                )));
            }
        }
    }
    if conf.attributes == Attributes::default() {
        return Ok(());
    }
    let have = pod.kernel(|k| k.attributes(&dev))?.ok_or_else(|| missing(call))?;
    let want = &conf.attributes;
    differs(&dev, "mac", want.mac, have.mac)?;
    differs(&dev, "mtu", want.mtu, have.mtu)?;
    differs(&dev, "promisc", want.promisc, have.promisc)?;
    differs(&dev, "allmulti", want.allmulti, have.allmulti)?;
    differs(&dev, "txQLen", want.tx_queue_len, have.tx_queue_len)
}

fn differs<T: PartialEq + std::fmt::Display>(
    dev: &IfName,
    what: &str,
    want: Option<T>,
    have: Option<T>,
) -> Result<(), CniError> {
    match (want, have) {
        (Some(want), Some(have)) if want != have => {
            Err(CniError::internal(format!("{what} of interface {dev} is {have}, not {want}")))
        }
        _ => Ok(()),
    }
}
