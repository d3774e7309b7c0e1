//! Where addresses come from: the own host-local or static in this process, or a foreign plugin by
//! exec.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use causeway_cni_spec::delegate::{delegate, ipam_add};
use causeway_cni_spec::exec::ProcessExec;
use causeway_cni_spec::{CniError, CniResult, Command, Dns, HostLocal, IpConfig, Route, Static};
use causeway_ipam::{Owner, Range};
use causeway_types::state::LeaseRecord;
use ipnet::IpNet;

use crate::call::Call;
use crate::chain;
use crate::files::{self, Planned};
use crate::garbage::Stale;
use crate::leases::{Leases, Look};
use crate::record::LeaseRecords;
use crate::store::InFlight;

/// An IPAM type that runs in this process: leases from ranges.
pub const HOST_LOCAL: &str = "host-local";
/// An IPAM type that runs in this process: addresses that are written down.
pub const STATIC: &str = "static";

/// Address management of one call.
#[derive(Clone, Debug)]
pub enum Ipam {
    /// None: a layer-2 attachment.
    None,
    /// The own host-local.
    HostLocal {
        /// Its configuration.
        conf: Box<HostLocal>,
        /// Its leases.
        leases: Box<Leases>,
    },
    /// The own static: nothing is kept, nothing given back.
    Static(Box<Static>),
    /// Another plugin, by the name of its binary.
    Foreign(String),
}

impl Ipam {
    /// The address management that the configuration asks for. `record` goes beside each lease
    /// of a served network.
    ///
    /// # Errors
    /// Codes 6 and 7 for a bad configuration.
    pub fn of(call: &Call, record: Option<LeaseRecord>) -> Result<Self, CniError> {
        match &call.conf.ipam {
            None => Ok(Ipam::None),
            Some(ipam) if ipam.plugin_type == HOST_LOCAL => {
                let conf = HostLocal::parse(&call.conf, &call.args)?;
                let records = LeaseRecords::at(&call.paths, &conf.network);
                let leases = Box::new(Leases { dir: conf.lease_dir(), records, record });
                Ok(Ipam::HostLocal { conf: Box::new(conf), leases })
            }
            Some(ipam) if ipam.plugin_type == STATIC => {
                let conf = match Static::parse(&call.conf, &call.args) {
                    // Nothing is kept: what ADD refused must not bar the way of DEL.
                    Err(_) if call.env.command == Command::Del => Static::default(),
                    parsed => parsed?,
                };
                Ok(Ipam::Static(Box::new(conf)))
            }
            Some(ipam) => Ok(Ipam::Foreign(ipam.plugin_type.clone())),
        }
    }

    /// Gets addresses for the attachment. The result has no interfaces.
    ///
    /// # Errors
    /// As [`Leases::allocate`]; the foreign plugin's own error.
    pub fn add(&self, call: &Call, look: Look) -> Result<(CniResult, InFlight), CniError> {
        match self {
            Ipam::None => Ok((CniResult::default(), InFlight::default())),
            Ipam::HostLocal { conf, leases } => {
                let dns = conf.resolv_conf.as_deref().map(resolv_conf).transpose()?;
                let (given, in_flight) =
                    leases.allocate(&conf.sets, &call.owner(), &conf.requested, look)?;
                let ips = given.iter().map(|l| IpConfig::new(l.address, l.gateway)).collect();
                let routes = conf.routes.clone();
                let dns = dns.unwrap_or_default();
                Ok((CniResult { ips, routes, dns, interfaces: Vec::new() }, in_flight))
            }
            Ipam::Static(conf) => Ok((conf.result(), InFlight::default())),
            Ipam::Foreign(name) => {
                let given = ipam_add(&ProcessExec, name, &call.env, &call.conf)?;
                Ok((given, InFlight::default()))
            }
        }
    }

    /// The result of ADD, with what its version could not say of routes: before 1.1.0 they are a
    /// destination and a gateway (CNI 1.0.0, "Success"). ADD honours the other keys all the same.
    ///
    /// # Errors
    /// Code 7 when there is none.
    pub(crate) fn previous(&self, call: &Call) -> Result<CniResult, CniError> {
        let mut previous = call.conf.require_prev_result()?.clone();
        let configured: &[Route] = match self {
            Ipam::HostLocal { conf, .. } => &conf.routes,
            Ipam::Static(conf) => &conf.routes,
            Ipam::None | Ipam::Foreign(_) => &[],
        };
        for route in &mut previous.routes {
            let bare = *route == Route::new(route.dst, route.gw);
            let same = |c: &&Route| c.dst == route.dst && (c.gw.is_none() || c.gw == route.gw);
            if let Some(same) = configured.iter().find(same).filter(|_| bare) {
                *route = Route { gw: route.gw, ..same.clone() };
            }
        }
        Ok(previous)
    }

    /// The addresses that the attachment holds, as far as they are kept here.
    ///
    /// # Errors
    /// Code 5.
    pub fn held(&self, call: &Call) -> Result<Vec<IpAddr>, CniError> {
        match self {
            Ipam::HostLocal { leases, .. } => leases.held(&call.owner()),
            Ipam::None | Ipam::Static(_) | Ipam::Foreign(_) => Ok(Vec::new()),
        }
    }

    /// Gives the attachment's addresses back; those that are named as its own beside the result
    /// of ADD may have a lease that cannot be read.
    ///
    /// # Errors
    /// Code 5; the foreign plugin's own error.
    pub fn del(&self, call: &Call, named: &[IpAddr]) -> Result<(), CniError> {
        match self {
            Ipam::None | Ipam::Static(_) => Ok(()),
            Ipam::HostLocal { leases, .. } => {
                let result = call.conf.prev_result.iter().flat_map(CniResult::container_ips);
                let named = named.iter().copied().chain(result.map(|ip| ip.address.addr()));
                leases.release(&call.owner(), &named.collect::<Vec<_>>())
            }
            Ipam::Foreign(name) => run(name, Command::Del, call),
        }
    }

    /// Gives back what an ADD got before it failed.
    ///
    /// # Errors
    /// Code 5; the foreign plugin's own error.
    pub fn give_back(&self, call: &Call, given: &CniResult) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal { leases, .. } => {
                let given: Vec<IpAddr> = given.ips.iter().map(|ip| ip.address.addr()).collect();
                leases.give_back(&call.owner(), &given)
            }
            Ipam::None | Ipam::Static(_) | Ipam::Foreign(_) => self.del(call, &[]),
        }
    }

    /// Before the first step of a removal of which no record is kept.
    /// `other_mac` as for [`Leases::begin_release`].
    pub fn begin_release(&self, call: &Call, other_mac: &[IpAddr]) {
        if let Ipam::HostLocal { leases, .. } = self {
            leases.begin_release(&call.owner(), other_mac);
        }
    }

    /// Does the attachment hold the addresses that its result names?
    ///
    /// # Errors
    /// Code 999 naming what is wrong; the foreign plugin's own error.
    pub fn check(&self, call: &Call) -> Result<(), CniError> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal { conf, leases } => {
                let held = leases.held(&call.owner())?;
                let named = call.conf.prev_result.iter().flat_map(CniResult::container_ips);
                check_leases(&call.owner(), conf, &held, named.map(|ip| ip.address.addr()))
            }
            Ipam::Static(conf) => check_static(call, conf),
            Ipam::Foreign(name) => run(name, Command::Check, call),
        }
    }

    /// The networks that addresses are taken from, as far as the configuration says.
    pub fn networks(&self) -> Vec<IpNet> {
        match self {
            Ipam::HostLocal { conf, .. } => {
                conf.sets.iter().flat_map(|s| s.ranges()).map(Range::subnet).collect()
            }
            Ipam::Static(conf) => conf.ips.iter().map(|ip| ip.address).collect(),
            Ipam::None | Ipam::Foreign(_) => Vec::new(),
        }
    }

    /// Would an ADD get its addresses, and find room for its files, these among them?
    ///
    /// # Errors
    /// Code 50; the foreign plugin's own error.
    pub(crate) fn status(&self, call: &Call, mut files: Vec<Planned>) -> Result<(), CniError> {
        if let Ipam::HostLocal { conf, leases } = self {
            files.extend(leases.files(conf.sets.len()));
        }
        files::try_room(&files).map_err(|e| CniError::not_available(e.msg))?;
        match self {
            Ipam::None | Ipam::Static(_) => Ok(()),
            Ipam::HostLocal { conf, leases } => leases.has_free(&conf.sets),
            Ipam::Foreign(name) => run(name, Command::Status, call),
        }
    }

    /// Leases of the network that belong to none of the valid attachments. Those of a foreign
    /// plugin are its own business.
    ///
    /// # Errors
    /// Code 5.
    pub fn stale(&self, valid: &BTreeSet<Owner>) -> Result<Stale, CniError> {
        match self {
            Ipam::HostLocal { leases, conf } => leases.stale(valid, conf.sets.len()),
            Ipam::None | Ipam::Static(_) | Ipam::Foreign(_) => Ok(Stale::default()),
        }
    }

    /// An ADD of the attachment has not ended, as far as its leases tell.
    ///
    /// # Errors
    /// Code 5.
    pub fn is_in_flight(&self, owner: &Owner) -> Result<bool, CniError> {
        match self {
            Ipam::HostLocal { leases, .. } => leases.is_in_flight(owner),
            Ipam::None | Ipam::Static(_) | Ipam::Foreign(_) => Ok(false),
        }
    }

    /// Passes GC on to a foreign plugin.
    ///
    /// # Errors
    /// The foreign plugin's own error.
    pub fn gc_foreign(&self, call: &Call) -> Result<(), CniError> {
        match self {
            Ipam::Foreign(name) => run(name, Command::Gc, call),
            Ipam::None | Ipam::Static(_) | Ipam::HostLocal { .. } => Ok(()),
        }
    }
}

fn run(name: &str, command: Command, call: &Call) -> Result<(), CniError> {
    delegate(&ProcessExec, name, command, &call.env, &call.conf).map(drop)
}

/// Every address of the configuration must be in the result, with its gateway where it has one. The
/// addresses are those of the configuration as it is now: one that is no longer in it stays.
fn check_static(call: &Call, conf: &Static) -> Result<(), CniError> {
    let previous = call.conf.require_prev_result()?;
    for wanted in &conf.ips {
        let same = |ip: &IpConfig| {
            ip.address == wanted.address
                && (wanted.gateway.is_none() || ip.gateway == wanted.gateway)
        };
        if !chain::own_ips(call, previous).any(same) {
            let via = wanted.gateway.map(|g| format!(" with gateway {g}")).unwrap_or_default();
            return Err(CniError::internal(format!(
                "static: address {}{via} of the configuration is not in the result of ADD: DEL and \
                 ADD bring it",
                wanted.address
            )));
        }
    }
    Ok(())
}

fn check_leases(
    owner: &Owner,
    conf: &HostLocal,
    held: &[IpAddr],
    named: impl Iterator<Item = IpAddr>,
) -> Result<(), CniError> {
    let dir = conf.lease_dir();
    if held.is_empty() {
        return Err(CniError::internal(format!(
            "host-local: failed to find address added by container {owner} in {}",
            dir.display()
        )));
    }
    // Addresses of other sources may be in the result of a chain: only own ranges count.
    let own = named.filter(|ip| conf.sets.iter().any(|set| set.contains(*ip)));
    for ip in own {
        if !held.contains(&ip) {
            return Err(CniError::internal(format!(
                "the lease of {ip} in {} is missing or another container's: {owner} holds {held:?}",
                dir.display()
            )));
        }
    }
    Ok(())
}

/// Name resolution from a file like `/etc/resolv.conf` (resolv.conf(5)).
fn resolv_conf(path: &Path) -> Result<Dns, CniError> {
    let content = files::read(path)?.ok_or_else(|| {
        CniError::invalid_config(format!(
            "key \"ipam.resolvConf\" names {}, which is not there",
            path.display()
        ))
    })?;
    let mut dns = Dns::default();
    for line in String::from_utf8_lossy(&content).lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.nameservers.extend(words.next().map(str::to_owned)),
            Some("domain") => dns.domain = words.next().unwrap_or_default().to_owned(),
            Some("search") => dns.search.extend(words.map(str::to_owned)),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    Ok(dns)
}
