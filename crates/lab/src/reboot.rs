//! What a power cut does to a node, and its boot after it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use causeway_kernel::netns;

use crate::agents::{Action, Agents};
use crate::kubelet::Kubelet;
use crate::spec::Spec;
use crate::{enter, procs, topology};

/// Reboots a node: every process of it ends at once, every namespace is gone and with them every
/// interface, route and rule, `/run` is empty, the boot ID is new. What lies on its disk stays.
/// Nobody called DEL for its pods; the kubelet starts them again.
///
/// # Errors
/// When something cannot be taken away or made anew.
pub(crate) async fn reboot(
    spec: &Spec,
    node: &str,
    agents: &Agents,
    kubelet: Arc<Kubelet>,
) -> Result<()> {
    if node == "cp" {
        bail!("the lab's API lives in cp and would end with it; reboot another node");
    }
    let served = spec.served().iter().any(|name| name == node);
    if served {
        agents.act(node, Action::Halt).await?;
    }
    let (spec, name) = (spec.clone(), node.to_owned());
    tokio::task::spawn_blocking(move || kubelet.rebooted(|| cut(&spec, &name)))
        .await
        .context("the reboot")??;
    if served {
        agents.act(node, Action::Start).await?;
    }
    Ok(())
}

/// The power goes, and comes back.
fn cut(spec: &Spec, node: &str) -> Result<()> {
    let dirs = spec.dirs();
    let home = dirs.netns(node);
    let pods = procs::namespaces(&format!("{}{node}-", dirs.ns_prefix()));
    let mut all = pods.clone();
    all.push(home);
    procs::kill_all(&all);
    for pod in &pods {
        netns::delete_named(pod).map_err(|e| anyhow!("{e}"))?;
    }
    topology::renew(spec, node)?;
    let here = dirs.node(node);
    empty(&here.join("run-causeway"))?;
    enter::new_boot(&here)
}

/// Removes what is in a directory; the directory itself may be mounted somewhere.
fn empty(dir: &Path) -> Result<()> {
    let remove = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    remove().with_context(|| dir.display().to_string())
}
