//! What another pod network left on the node, by the names that are its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use causeway_agent::reset::Report;
use causeway_agent::taken_over;
use causeway_desired::input::TakenOver;
use causeway_doctor::leftovers::{NETWORKS, Network};
use causeway_kernel::nft::foreign::{Change, has_legacy_filter};
use causeway_kernel::{Handle, Scope};
use causeway_model::nft::foreign::{Layer, Place};
use causeway_model::{Link, LinkKind, Object, Observed};
use causeway_plan::Op;
use causeway_plugins::Paths;
use causeway_plugins::record::Attachments;
use causeway_types::{Family, IfName, names};

use super::Args;

/// A network by its word.
pub(super) fn network(word: &str) -> Result<&'static Network, String> {
    Network::named(word).ok_or_else(|| {
        let words: Vec<&str> = NETWORKS.iter().map(|network| network.word).collect();
        format!("expected one of {}", words.join(", "))
    })
}

/// What of another network's is ours by now (`causeway migrate`).
struct Ours {
    taken: Option<TakenOver>,
    /// The node's ends of pods that have a record.
    pods: BTreeSet<IfName>,
}

impl Ours {
    fn find() -> anyhow::Result<Self> {
        let taken = taken_over::load(Path::new(names::TAKEN_OVER)).map_err(|e| anyhow!("{e}"))?;
        let records = Attachments::at(&Paths::default()).list().map_err(|e| anyhow!("{e}"))?;
        Ok(Self { taken, pods: records.into_iter().map(|r| r.host_ifname).collect() })
    }

    fn has(&self, link: &Link) -> bool {
        self.taken.as_ref().is_some_and(|taken| taken.has(&link.name)) || self.is_pods(link)
    }

    /// A pod that our plugins made, or that was taken over.
    fn is_pods(&self, link: &Link) -> bool {
        link.name.as_str().starts_with("cw") || self.pods.contains(&link.name)
    }
}

/// Removes it, or says what would be removed.
///
/// # Errors
/// When pods of it are attached, or the kernel cannot be looked at. What fails later is in the report.
pub(super) fn remove(network: &Network, args: &Args) -> anyhow::Result<Report> {
    let ours = Ours::find()?;
    let mut kernel = Handle::open().context("the kernel's interfaces")?;
    let seen = observe(&mut kernel)?;
    let links: Vec<&Link> = links(&seen).collect();
    let is_pods = |link: &Link| {
        let veth = matches!(link.kind, LinkKind::Veth { .. });
        let on_bridge = link.master.as_ref().is_some_and(|m| Some(m.as_str()) == network.bridge);
        veth && (network.has_pod(link.name.as_str()) || on_bridge && !ours.is_pods(link))
    };
    let pods: Vec<&str> = links.iter().filter(|l| is_pods(l)).map(|l| l.name.as_str()).collect();
    if !pods.is_empty() && args.yes && !args.with_pods {
        bail!(
            "{} of {} are on this node ({}, …): drain the node first (`kubectl drain`), or say \
             --with-pods, and they lose their network",
            pods.len(),
            network.name,
            pods[0]
        );
    }
    let mut report = Report::default();
    let goes = |link: &&Link| network.has_interface(link.name.as_str()) || is_pods(link);
    let (stay, go): (Vec<&Link>, Vec<&Link>) =
        links.iter().copied().filter(goes).partition(|link| ours.has(link));
    report.left.extend(stay.iter().map(|l| format!("interface {}: it was taken over", l.name)));
    let mut interfaces: Vec<Link> = go.into_iter().cloned().collect();
    interfaces.extend(bridge(network, &links, &ours, &mut report));
    let (chains, changes) = chains(network, &mut kernel)?;
    let files = files(network, &args.conf_dir);
    legacy(network, &mut report);
    if !args.yes {
        report.removed.extend(interfaces.iter().map(|link| format!("interface {}", link.name)));
        report.removed.extend(chains);
        report.removed.extend(files.iter().map(|path| path.display().to_string()));
        return Ok(report);
    }
    // Runtimes must not call its plugins any more.
    for path in files {
        let is_dir = path.is_dir();
        let gone =
            if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        put(&mut report, path.display().to_string(), gone.map_err(|e| e.to_string()));
    }
    for link in interfaces {
        let what = format!("interface {}", link.name);
        let done =
            kernel.apply(&[Op::Remove(Object::Link(link))]).into_iter().collect::<Result<(), _>>();
        match done {
            // A pair goes by either end.
            Err(error) if error.is_gone() => report.removed.push(what),
            other => put(&mut report, what, other.map_err(|e| e.to_string())),
        }
    }
    let done = kernel.nft().and_then(|nft| nft.change_foreign(&changes));
    let done = done.map_err(|e| e.to_string());
    chains.into_iter().for_each(|chain| put(&mut report, chain, done.clone()));
    Ok(report)
}

fn put(report: &mut Report, what: String, done: Result<(), String>) {
    match done {
        Ok(()) => report.removed.push(what),
        Err(error) => report.failed.push(format!("{what}: {error}")),
    }
}

fn observe(kernel: &mut Handle) -> anyhow::Result<Observed> {
    kernel.observe(&Scope::LINKS).context("cannot look at the kernel")
}

fn links(seen: &Observed) -> impl Iterator<Item = &Link> {
    seen.iter().filter_map(|(_, object)| match object {
        Object::Link(link) => Some(link),
        _ => None,
    })
}

/// The bridge goes where it has no ports: others give it the same name.
fn bridge(network: &Network, links: &[&Link], ours: &Ours, report: &mut Report) -> Option<Link> {
    let name = network.bridge?;
    let bridge = links.iter().find(|l| l.name.as_str() == name && l.kind == LinkKind::Bridge)?;
    let own = std::fs::read_to_string(names::OWNED_FILE).unwrap_or_default();
    if own.contains(&format!("\"{name}\"")) {
        report.left.push(format!("bridge {name}: Causeway's agent keeps it"));
        return None;
    }
    if ours.has(bridge) {
        report.left.push(format!("bridge {name}: it was taken over"));
        return None;
    }
    let is_port = |l: &&&Link| l.master.as_ref() == Some(&bridge.name) && ours.is_pods(l);
    if let Some(port) = links.iter().find(is_port) {
        report.left.push(format!("bridge {name}: {} is a port of it", port.name));
        return None;
    }
    Some((**bridge).clone())
}

/// Its chains, and the steps that remove them with the rules that lead to them.
fn chains(network: &Network, kernel: &mut Handle) -> anyhow::Result<(Vec<String>, Vec<Change>)> {
    let look = "cannot look at the chains of nftables";
    let nft = kernel.nft().context(look)?;
    let all = nft.chains().context(look)?;
    let (whole, all): (Vec<Place>, Vec<Place>) =
        all.into_iter().partition(|place| network.tables.contains(&place.table.as_str()));
    let tables: BTreeSet<(Layer, String)> =
        whole.into_iter().map(|place| (place.layer, place.table)).collect();
    let (its, others): (Vec<Place>, Vec<Place>) =
        all.into_iter().partition(|place| network.has_chain(&place.chain));
    let mut changes = Vec::new();
    let same_table = |a: &Place, b: &Place| a.layer == b.layer && a.table == b.table;
    for place in its.iter().chain(others.iter().filter(|o| its.iter().any(|i| same_table(i, o)))) {
        let own = network.has_chain(&place.chain);
        let leads = |to: &[String]| to.iter().any(|chain| network.has_chain(chain));
        let rules = nft.rules_of(place).context(look)?;
        // Its chains lead to one another: all are emptied before the first one goes.
        changes.extend(
            rules
                .into_iter()
                .filter(|rule| own || leads(&rule.leads_to))
                .map(|rule| Change::DeleteRule { place: place.clone(), handle: rule.handle }),
        );
    }
    changes.extend(its.iter().map(|place| Change::DeleteChain { place: place.clone() }));
    let delete = |(layer, table): &(Layer, String)| Change::DeleteTable {
        layer: *layer,
        table: table.clone(),
    };
    changes.extend(tables.iter().map(delete));
    let name = |p: &Place| format!("chain {} of table {} {}", p.chain, p.layer.as_str(), p.table);
    let table = |(layer, table): &(Layer, String)| format!("table {} {table}", layer.as_str());
    Ok((its.iter().map(name).chain(tables.iter().map(table)).collect(), changes))
}

fn files(network: &Network, conf_dir: &Path) -> Vec<PathBuf> {
    let configurations = network.configurations.iter().map(|name| conf_dir.join(name));
    let aside = network.configurations.iter().map(|name| format!("{name}{}", taken_over::ASIDE));
    let aside = aside.map(|name| conf_dir.join(name));
    let state = network.state.iter().map(PathBuf::from);
    configurations
        .chain(aside)
        .chain(state)
        .filter(|path| path.symlink_metadata().is_ok())
        .collect()
}

/// What only the old iptables could tell.
fn legacy(network: &Network, report: &mut Report) {
    for (family, save) in
        [(Family::V4, "iptables-legacy-save"), (Family::V6, "ip6tables-legacy-save")]
    {
        if has_legacy_filter(family) && !network.chain_starts.is_empty() {
            report.left.push(format!(
                "the old iptables has tables of its own ({family}): `{save} | grep -E '{}'` shows whether \
                 {} has rules there",
                network.chain_starts.join("|"),
                network.name
            ));
        }
    }
}
