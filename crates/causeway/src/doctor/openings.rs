//! `causeway doctor --firewall`: what a firewall of this node has to let in.

use std::path::Path;

use anyhow::Result;
use causeway_agent::config::Settings;
use causeway_doctor::openings::{self, Role, Site};
use causeway_plugins::{Paths, record};
use causeway_types::names;

use super::cluster::kept;
use crate::words::{columns, say};

/// In which words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// For security groups, all roles.
    Table,
    /// Commands of nft.
    Nft,
    /// Commands of ufw.
    Ufw,
}

/// A node's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Whose {
    /// API server, etcd, scheduler, controller manager.
    ControlPlane,
    /// Pods alone.
    Worker,
}

/// Prints it.
///
/// # Errors
/// When the configuration cannot be read.
pub(super) fn print(form: Form, whose: Whose) -> Result<()> {
    let site = site()?;
    let role = match whose {
        Whose::ControlPlane => Role::ControlPlane,
        Whose::Worker => Role::Worker,
    };
    let lines = match form {
        Form::Table => {
            let rows: Vec<Vec<String>> =
                openings::table(&site).into_iter().map(Vec::from).collect();
            return say(&columns(&rows));
        }
        Form::Nft => openings::nft(&site, role),
        Form::Ufw => openings::ufw(&site, role),
    };
    let unknown = if site.nodes.is_empty() {
        "# no view of the cluster is kept on this node: put the nodes' addresses in place of NODES\n"
    } else {
        ""
    };
    say(&format!("{unknown}{}\n", lines.join("\n")))
}

fn site() -> Result<Site> {
    let settings = Settings::load(Path::new(names::CONFIG_FILE))?;
    // Without the agent's word the node's own part is left out.
    let file = record::node_file(&Paths::default()).ok().flatten();
    let others = settings.metrics_address.filter(|address| !address.ip().is_loopback());
    let road = serde_json::to_value(settings.config.road)?;
    Ok(Site {
        // By the last good view.
        nodes: kept().into_iter().flat_map(|node| node.addresses).collect(),
        pods: file.iter().flat_map(|f| f.ranges()).map(|cidr| cidr.net()).collect(),
        vxlan_port: (road != "direct").then_some(settings.config.vxlan_port),
        metrics_port: others.map(|address| address.port()),
    })
}
