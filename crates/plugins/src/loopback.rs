//! Type `loopback`: the pod's `lo` is up.

use causeway_cni_spec::{CniError, CniResult, Interface, IpConfig};
use causeway_model::{Link, LinkKind, Object};
use causeway_plan::Op;
use causeway_types::IfName;

use crate::Plugin;
use crate::call::Call;
use crate::space::{Failed, Space};

/// Type `loopback`.
pub(crate) struct LoopbackPlugin;

impl Plugin for LoopbackPlugin {
    fn add(&self, call: &Call) -> Result<CniResult, CniError> {
        let netns = call.netns()?;
        let mut pod = Space::pod(&netns)?;
        set_up(&mut pod, true)?;
        // In a chain the result of the plugin before goes on as it is.
        match &call.conf.prev_result {
            Some(result) => Ok(result.clone()),
            None => result(&mut pod, netns),
        }
    }

    fn del(&self, call: &Call) -> Result<(), CniError> {
        Space::what_is_left(call)?.map_or(Ok(()), |mut pod| set_up(&mut pod, false))
    }

    fn check(&self, call: &Call) -> Result<(), CniError> {
        let netns = call.netns()?;
        match Space::pod(&netns)?.link(&lo())? {
            Some(link) if link.up => Ok(()),
            _ => Err(CniError::internal(format!("loopback interface lo is down in {netns}"))),
        }
    }

    fn status(&self, _: &Call) -> Result<(), CniError> {
        Ok(())
    }

    /// Nothing outlives the namespace.
    fn gc(&self, _: &Call) -> Result<(), CniError> {
        Ok(())
    }

    fn is_collected(&self) -> bool {
        false
    }
}

fn lo() -> IfName {
    IfName::new("lo").expect("a valid name")
}

fn set_up(pod: &mut Space, up: bool) -> Result<(), CniError> {
    let link = |up| Object::Link(Link { up, ..Link::up(lo(), LinkKind::Other(String::new())) });
    let op = Op::Change { from: link(!up), to: link(up) };
    pod.apply(&[op]).map_err(|e| pod.error(&Failed::Op(e)))
}

fn result(pod: &mut Space, netns: String) -> Result<CniResult, CniError> {
    let ips = pod
        .addrs(&lo())?
        .into_iter()
        .map(|address| IpConfig { interface: Some(0), ..IpConfig::new(address, None) });
    let ips = ips.collect();
    let mac = "00:00:00:00:00:00".to_owned();
    let interface = Interface { name: "lo".into(), mac, sandbox: netns, ..Interface::default() };
    Ok(CniResult { interfaces: vec![interface], ips, ..CniResult::default() })
}
