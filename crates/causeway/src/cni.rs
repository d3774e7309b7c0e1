//! `causeway cni`: what a container runtime does, by hand.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use causeway_cni_spec::exec::ProcessExec;
use causeway_cni_spec::runtime::{Attachment, DEFAULT_CACHE_DIR, NetworkList, Runtime};
use causeway_kernel::NetNs;

use crate::words::{say, say_json};

/// A configuration list, and where its plugins are.
#[derive(Debug, clap::Args)]
pub(crate) struct Network {
    /// The configuration list, such as /etc/cni/net.d/05-causeway.conflist.
    conflist: PathBuf,
    /// Directories of the plugins, separated by colons.
    #[arg(long, env = "CNI_PATH", default_value = "/opt/cni/bin", value_delimiter = ':')]
    cni_path: Vec<PathBuf>,
    /// Where results are kept between the commands: what container runtimes use, so that each knows
    /// of the other's attachments.
    #[arg(long, default_value = DEFAULT_CACHE_DIR)]
    cache: PathBuf,
}

/// An attachment to a network.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    #[command(flatten)]
    network: Network,
    /// The network namespace: a path, or a name that `ip netns list` shows.
    netns: String,
    /// The container's ID; the namespace's name unless given.
    #[arg(long)]
    container: Option<String>,
    /// The interface's name inside.
    #[arg(long, default_value = "eth0")]
    ifname: String,
}

/// What a container runtime does, by hand.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Attaches a namespace to a network and prints the result.
    Add(Place),
    /// Takes it out again.
    Del(Place),
    /// Is the attachment as it was made?
    Check(Place),
    /// Could the network attach a pod now?
    Status(Network),
    /// Clears what is left of attachments whose namespaces are gone.
    Gc(Network),
}

impl Network {
    fn list(&self) -> Result<NetworkList> {
        NetworkList::load(&self.conflist).map_err(|e| anyhow!("{e}"))
    }

    fn runtime(&self) -> Runtime<ProcessExec> {
        Runtime::new(ProcessExec, self.cni_path.clone(), self.cache.clone())
    }
}

impl Place {
    fn attachment(&self) -> Attachment {
        let path = match self.netns.contains('/') {
            true => PathBuf::from(&self.netns),
            false => PathBuf::from("/run/netns").join(&self.netns),
        };
        let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let container = self.container.clone().unwrap_or_else(name);
        Attachment::new(container, path, &self.ifname)
    }
}

/// Carries it out.
///
/// # Errors
/// With the plugin's words.
pub(crate) fn run(command: &Command) -> Result<()> {
    let spoken = |e| anyhow!("{e}");
    match command {
        Command::Add(place) => {
            let list = place.network.list()?;
            let result = place.network.runtime().add(&list, &place.attachment()).map_err(spoken)?;
            say_json(&result.to_value(list.cni_version).map_err(spoken)?)
        }
        Command::Del(place) => {
            let list = place.network.list()?;
            place.network.runtime().del(&list, &place.attachment()).map_err(spoken)?;
            say("gone\n")
        }
        Command::Check(place) => {
            let list = place.network.list()?;
            place.network.runtime().check(&list, &place.attachment()).map_err(spoken)?;
            say("as it should be\n")
        }
        Command::Status(network) => {
            network.runtime().status(&network.list()?).map_err(spoken)?;
            say("ready\n")
        }
        Command::Gc(network) => gc(network),
    }
}

/// Valid is what a runtime remembers and whose namespace is there. Without any memory every pod
/// would be taken for a lost one.
fn gc(network: &Network) -> Result<()> {
    let list = network.list()?;
    let runtime = network.runtime();
    let all = runtime.attachments(&list).map_err(|e| anyhow!("{e}"))?;
    if all.is_empty() {
        bail!(
            "no attachment of network {} is known in {}: nothing is cleared on that strength; name \
             the runtime's cache by --cache",
            list.name,
            network.cache.display()
        );
    }
    let mut valid = Vec::new();
    for attachment in all.iter().map(|cached| &cached.attachment) {
        let found = attachment.netns.as_ref().map(NetNs::find).transpose();
        if found.map_err(|e| anyhow!("{e}"))?.flatten().is_some() {
            valid.push(attachment.id());
        }
    }
    runtime.gc(&list, &valid).map_err(|e| anyhow!("{e}"))?;
    say(&format!("{} attachments are valid, {} were not\n", valid.len(), all.len() - valid.len()))
}
