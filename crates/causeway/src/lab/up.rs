//! `causeway lab up`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use causeway_lab::{Binaries, Families, KubernetesVersion, Plugin, Road, Spec, Topology};
use causeway_types::Mtu;
use causeway_types::state::Attach;
use clap::ValueEnum;

use super::Which;
use super::copy::Original;
use crate::words::say;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AttachWord {
    /// A veth pair, a /32 or /128 and a host route for each pod.
    Routed,
    /// The bridge cni0 on each node, with the configuration of every tutorial.
    Bridge,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PluginWord {
    /// Our own type.
    Causeway,
    /// The classic: type bridge with host-local.
    Bridge,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoadWord {
    /// Direct to neighbours, VXLAN across routers.
    Auto,
    /// Routes by the nodes' addresses.
    Direct,
    /// VXLAN always.
    Vxlan,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamilyWord {
    Ipv4,
    Ipv6,
    /// IPv4 and IPv6.
    Dual,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TopologyWord {
    /// All nodes on one switch.
    Flat,
    /// Two switches with a router between them; workers of even number are on the second.
    TwoSubnets,
}

/// How the lab looks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// Takes over nodes, pods, namespaces and policies: those of manifests (files, or directories of them),
    /// or with the word `cluster` those of the cluster of --kubeconfig. What is not as there is said.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    from: Vec<PathBuf>,
    /// The kubeconfig of the cluster of --from; by default that of the environment.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// With --from: so many pods at most, each of which is a process.
    #[arg(long, default_value_t = causeway_lab::MOST_PODS, value_name = "NUMBER")]
    pods: usize,
    /// Workers, 1 to 200; 3 unless given. With --from so many at most, for the cluster's nodes: 16 unless given.
    #[arg(long)]
    nodes: Option<u8>,
    /// How pods are attached.
    #[arg(long, value_enum, default_value = "routed")]
    attach: AttachWord,
    /// Plugin type; bridge unless given with --attach bridge, else causeway.
    #[arg(long, value_enum)]
    plugin: Option<PluginWord>,
    /// The road between nodes.
    #[arg(long, value_enum, default_value = "auto")]
    road: RoadWord,
    /// Address families of nodes and pods; ipv4 unless given, with --from those of the cluster, of manifests
    /// both.
    #[arg(long, value_enum)]
    family: Option<FamilyWord>,
    /// The network between the nodes.
    #[arg(long, value_enum, default_value = "flat")]
    topology: TopologyWord,
    /// MTU of that network in bytes.
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// Milliseconds between a pod's start and its status in the API.
    #[arg(long, default_value_t = 0)]
    status_delay: u64,
    /// The Kubernetes version that the API plays, 1.28 to 1.37.
    #[arg(long, default_value_t = KubernetesVersion::NEWEST)]
    kubernetes: KubernetesVersion,
}

impl Args {
    fn spec(&self) -> Result<Spec> {
        let attach = match self.attach {
            AttachWord::Routed => Attach::Routed,
            AttachWord::Bridge => Attach::Bridge,
        };
        Ok(Spec {
            name: self.which.name.clone(),
            nodes: self.nodes.unwrap_or(3),
            attach,
            plugin: match (self.plugin, attach) {
                (Some(PluginWord::Causeway), _) | (None, Attach::Routed) => Plugin::Causeway,
                (Some(PluginWord::Bridge), _) | (None, Attach::Bridge) => Plugin::Bridge,
            },
            road: match self.road {
                RoadWord::Auto => Road::Auto,
                RoadWord::Direct => Road::Direct,
                RoadWord::Vxlan => Road::Vxlan,
            },
            families: match self.family {
                None | Some(FamilyWord::Ipv4) => Families::Ipv4,
                Some(FamilyWord::Ipv6) => Families::Ipv6,
                Some(FamilyWord::Dual) => Families::Dual,
            },
            topology: match self.topology {
                TopologyWord::Flat => Topology::Flat,
                TopologyWord::TwoSubnets => Topology::TwoSubnets,
            },
            mtu: Mtu::new(self.mtu)?,
            status_delay_ms: self.status_delay,
            kubernetes: self.kubernetes,
            bare: false,
        })
    }
}

/// This program, and the plugins beside it.
pub(crate) fn binaries() -> Result<Binaries> {
    let causeway = std::env::current_exe().context("where this program is")?;
    let beside = causeway.with_file_name("causeway-cni");
    let cni = match std::env::var_os("CAUSEWAY_CNI_BIN") {
        Some(path) => PathBuf::from(path),
        None => beside,
    };
    let cni = cni.canonicalize().with_context(|| {
        format!(
            "{}: the plugins; build them beside this program (`./dev build`), or name the file \
                 in CAUSEWAY_CNI_BIN",
            cni.display()
        )
    })?;
    Ok(Binaries { causeway, cni })
}

/// Network namespaces are root's to make.
pub(crate) fn check_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("a lab makes network namespaces: run this as root");
    }
    Ok(())
}

/// Makes the lab.
///
/// # Errors
/// As [`causeway_lab::up`], and when the pods of its original do not run there under their policies.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut spec = args.spec()?;
    check_root()?;
    let original = match args.from.as_slice() {
        [] => None,
        names => Some(Original::read(names, args.kubeconfig.as_deref(), args.nodes, args.pods)?),
    };
    if let Some(original) = &original {
        spec.nodes = original.blueprint.workers;
        if args.family.is_none() {
            spec.families = original.blueprint.families;
        }
    }
    let start = Instant::now();
    let mut tell = |step: &str| eprintln!("lab {}: {step}", spec.name);
    causeway_lab::up(&spec, &binaries()?, &mut tell)?;
    let copied = match &original {
        None => Ok(String::new()),
        Some(original) => original.copy_to(&spec, &mut tell),
    };
    say(&format!(
        "lab {}: cp and {} workers are ready after {:.1} s\n",
        spec.name,
        spec.nodes,
        start.elapsed().as_secs_f64()
    ))?;
    match copied {
        Ok(text) => say(&text),
        Err(error) => Err(error.context(format!(
            "the lab is there and not like its original; look at it, or remove it with `causeway lab down \
             --name {}`",
            spec.name
        ))),
    }
}
