//! The loop's kernel: the network namespace of the thread that opens it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use causeway_desired::input::{Config, Path, TakenOver};
use causeway_kernel::handle::{Handle, Routes, Scope};
use causeway_kernel::monitor::{Event, Events, Monitor};
use causeway_kernel::{Without, sysctl};
use causeway_model::nft::foreign::Dropping;
use causeway_model::{Observed, Route};
use causeway_plan::Op;
use causeway_types::state::AttachmentRecord;
use causeway_types::{Family, IfName, names};

use crate::port::{Look, Port, Stale};
use crate::redirect::Redirect;

/// Sockets of one namespace.
pub(crate) struct NetnsPort {
    handle: Handle,
    monitor: Monitor,
    /// Ways that do not count when the underlay is asked for.
    without: Without,
    /// The plugins' table went.
    lost_table: bool,
    /// Tables of others changed.
    foreign: bool,
    /// By whom the table of policies was changed; 0: news were lost.
    policies: Option<BTreeSet<u32>>,
}

impl NetnsPort {
    /// Opens the calling thread's namespace. The value must stay on this thread.
    ///
    /// # Errors
    /// When the kernel refuses a socket: without CAP_NET_ADMIN.
    pub(crate) fn open(config: &Config, taken: Option<&TakenOver>) -> anyhow::Result<Self> {
        let tunnels = [IfName::new(names::VXLAN_DEV)?, IfName::new(names::VXLAN6_DEV)?];
        let mut devices: Vec<IfName> = tunnels.into_iter().chain([config.bridge.clone()]).collect();
        devices.extend(taken.iter().flat_map(|all| all.tunnels.iter().map(|t| t.name.clone())));
        let without = Without { protocols: vec![config.route_protocol], devices };
        // First the ear, then the eye: what changes in between is heard.
        let monitor = Monitor::open()?;
        Ok(Self {
            handle: Handle::open()?,
            monitor,
            without,
            lost_table: false,
            foreign: true,
            policies: None,
        })
    }
}

impl Port for NetnsPort {
    fn observe(&mut self, look: &Look) -> Result<Observed, String> {
        let kinds = look.kinds;
        let scope = Scope {
            addrs: kinds.addrs,
            routes: if kinds.routes { Routes::Table(Route::MAIN) } else { Routes::None },
            neighbours: kinds.neighs,
            fdb: kinds.neighs,
            tables: look.tables.iter().filter(|t| kinds.covers_table(&t.name)).cloned().collect(),
            sysctls: if kinds.sysctls { look.sysctls.iter().cloned().collect() } else { vec![] },
        };
        self.handle.observe(&scope).map_err(|e| e.to_string())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), String>> {
        let outcomes = self.handle.apply(ops);
        outcomes
            .into_iter()
            .map(|o| o.map_err(|e| format!("cannot {}: {}", e.attempted, e.message)))
            .collect()
    }

    fn path(&mut self, to: IpAddr) -> Result<Option<Path>, String> {
        let found = self.handle.route_get(to, &self.without).map_err(|e| e.to_string())?;
        let Some(way) = found.filter(|way| !way.local) else { return Ok(None) };
        let link = self.handle.link(&way.dev).map_err(|e| e.to_string())?;
        let device = link.and_then(|(_, link)| link.mtu);
        let Some(mtu) = [device, way.mtu].into_iter().flatten().min() else { return Ok(None) };
        Ok(Some(Path { dev: way.dev, on_link: way.via.is_none(), mtu }))
    }

    fn parameter(&mut self, path: &str) -> Option<String> {
        // This thread never leaves its namespace.
        sysctl::read(path).ok().flatten()
    }

    fn redirect(&mut self, to: &Redirect, pods: &[AttachmentRecord]) -> Result<usize, String> {
        pods.iter().map(|pod| to.apply(pod)).sum()
    }

    fn changes(&mut self) -> Stale {
        match self.monitor.read() {
            Ok(Events::Changed(events)) => {
                let mut stale = Stale::NONE;
                for event in &events {
                    self.lost_table |= is_end_of_plugins_table(event);
                    self.foreign |= is_foreign(event);
                    if let Event::Table { name, by, .. } = event
                        && name == names::NFT_POLICY
                    {
                        self.policies.get_or_insert_default().insert(*by);
                    }
                    stale.merge(of(event));
                }
                stale
            }
            Ok(Events::Overrun) => {
                tracing::info!("the kernel's news came too fast: everything is looked at again");
                self.lost_table = true;
                self.foreign = true;
                // Nobody's number: it may have been anybody.
                self.policies.get_or_insert_default().insert(0);
                Stale::ALL
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the kernel's news");
                Stale::ALL
            }
        }
    }

    fn take_lost_table(&mut self) -> bool {
        std::mem::take(&mut self.lost_table)
    }

    fn take_policy_change(&mut self) -> Option<BTreeSet<u32>> {
        self.policies.take()
    }

    fn take_foreign_change(&mut self) -> bool {
        std::mem::take(&mut self.foreign)
    }

    fn dropping(&mut self, families: &[Family]) -> Result<Vec<Dropping>, String> {
        let mut look = || {
            let nft = self.handle.nft()?;
            let mut all = nft.dropping(families)?;
            all.iter_mut().try_for_each(|chain| nft.follow(chain))?;
            Ok(all)
        };
        look().map_err(|e: causeway_kernel::Error| e.to_string())
    }

    fn changes_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

fn is_end_of_plugins_table(event: &Event) -> bool {
    matches!(event, Event::Table { name, gone: true, .. } if name == names::NFT_PLUGINS)
}

fn is_foreign(event: &Event) -> bool {
    match event {
        Event::Foreign => true,
        Event::Table { name, .. } => {
            ![names::NFT_AGENT, names::NFT_PLUGINS, names::NFT_POLICY].contains(&name.as_str())
        }
        _ => false,
    }
}

/// What a change puts in doubt. The kernel does not tell everything: IPv4 routes go without a
/// word when their interface goes down or their preferred source address goes.
fn of(event: &Event) -> Stale {
    match event {
        // With an interface its kernel parameters and its ingress chains go.
        Event::Link { gone: true, .. } => Stale::ALL,
        Event::Link { .. } => Stale { guards: false, tables: false, ..Stale::ALL },
        Event::Addr { .. } => Stale { addrs: true, routes: true, ..Stale::NONE },
        Event::Route { .. } => Stale { routes: true, ..Stale::NONE },
        Event::Neigh { .. } | Event::Fdb { .. } => Stale { neighs: true, ..Stale::NONE },
        Event::Parameter { .. } => Stale { sysctls: true, ..Stale::NONE },
        // Tables of others are looked at apart.
        Event::Foreign => Stale::NONE,
        Event::Table { name, .. } => {
            let ours = name == names::NFT_AGENT || name == names::NFT_PLUGINS;
            if ours { Stale::of_table(name) } else { Stale::NONE }
        }
    }
}
